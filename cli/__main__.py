"""``python -m clip_queue.cli`` is the same as ``clip-queue``."""

from clip_queue.cli.main import app

app(prog_name="clip-queue")
