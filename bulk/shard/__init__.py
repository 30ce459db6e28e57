"""The worker's side of a run: one shard is read, embedded and written."""
