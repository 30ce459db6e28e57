"""The processes of a service on one machine: Valkey, workers and the API as children that end with their parent."""
