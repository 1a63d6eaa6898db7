"""Formatting, preflight, training and export of the student."""
