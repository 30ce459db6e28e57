"""The command's side of a run: it plans, submits shards, counts and reports."""
