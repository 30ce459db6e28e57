"""The client: what a program that uses the service imports. It stands alone and shares no code with the service."""
