"""The ``clip-queue`` command."""
