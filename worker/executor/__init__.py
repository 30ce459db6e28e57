"""The job executor: it claims the jobs that the worker receives, embeds their items, and completes or returns them."""
