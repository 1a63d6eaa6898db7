"""The stage contract, revisions and provenance of a run."""
