"""The judge at work: cases out of traces, one request each, and an account of how often it is mistaken."""
