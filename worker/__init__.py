"""The worker: a Celery application whose process holds the models. Inference, the job executor, the heartbeat."""
