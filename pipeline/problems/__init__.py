"""The problems stage: sources, eval tasks, duplicates, overlap with eval questions."""
