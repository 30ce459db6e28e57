"""The processes of a service on one machine: Valkey, workers and the API, as child processes of the command."""
