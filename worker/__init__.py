"""The engine: a Celery application whose worker process owns the model."""
