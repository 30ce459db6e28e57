"""The door: HTTP to jobs and back. Runs where there is no GPU and no torch."""
