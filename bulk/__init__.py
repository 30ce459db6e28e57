"""Datasets: embedded shard by shard by the workers, and searched.

In Python: ``from bulk.embed import embed`` and ``from bulk.search import search``.
"""
