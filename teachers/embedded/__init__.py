"""The embedded teacher: a tiny Qwen3-MoE and the script that makes it."""
