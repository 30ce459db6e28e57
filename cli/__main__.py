"""``python -m cli``, the same as ``clip-queue``."""

from cli.main import app

app(prog_name="clip-queue")
