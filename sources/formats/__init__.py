"""The formats of sources, a module each: see :mod:`clip_queue.sources.registry`."""
