"""The ground that every floor stands on: settings, the job and its life, the store, the wire."""

__version__ = "0.1.0"
