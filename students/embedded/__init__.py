"""The embedded base: a tiny dense Qwen3 and the script that makes it."""
