"""The names of :mod:`tests.images` that some tests still use."""

from tests.images import base64_image, bomb, encoded
from tests.images import noise_image as picture

__all__ = ["base64_image", "bomb", "encoded", "picture"]
