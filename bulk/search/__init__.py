"""The rows of an output that are nearest to a text or an image."""
