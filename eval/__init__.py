"""Scores and the eval stage."""
