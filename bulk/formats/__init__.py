"""The formats of sources, a module each: see :mod:`bulk.source`."""
