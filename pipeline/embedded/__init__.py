"""What the training of the two embedded models shares."""
