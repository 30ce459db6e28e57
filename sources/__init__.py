"""What can be embedded: sources, their formats and their stores. It knows neither queue nor model nor worker."""
