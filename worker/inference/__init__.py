"""The inference engine: models, decoding, batches and caches. It knows items and lanes, and nothing of jobs."""
