"""The ground that every floor stands on: settings, the job and its life, the store, the wire."""
