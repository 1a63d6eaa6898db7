"""The generate stage: what is bought from a teacher, and what its traces are."""
