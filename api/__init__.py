"""The HTTP service: it turns requests into jobs and results into responses. It needs no GPU and no torch."""
