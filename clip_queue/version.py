"""The version: of the package, the API's document and every output."""

__version__ = "0.2.0"
