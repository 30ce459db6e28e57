"""Datasets: cut into shards by a command, embedded shard by shard by the workers, written to a folder, searched.

``run`` is the command's side, ``shard`` the worker's, ``output`` the folder between them, ``search`` reads it.
"""
