"""Engines: vLLM in this process, and OpenAI-compatible servers."""
