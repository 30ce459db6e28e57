"""Figures, each as a ratio within one run, rounds alternated, spread given: ``python -m bench``."""
