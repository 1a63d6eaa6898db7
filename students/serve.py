"""`python -m pipeline serve-student`: the finished student behind `vllm serve`, an OpenAI-compatible server.

python -m pipeline serve-student --recipe recipes/demo.yaml --port 8000
"""

import os
import sys

from pipeline.cards import SampledModel, sampled_student
from pipeline.sampling import EngineFlags
from pipeline.sampling.serving import serve_command
from pipeline.stage import Context, check_outputs, require
from students.export import CHECKPOINT


def run(context: Context, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Replace this process by the server."""
    model = finished_student(context)
    command = command_of(model, context.recipe.name, host, port)
    print(f"serving {context.recipe.name} at http://{host}:{port}/v1", file=sys.stderr)
    os.execv(command[0], command)


def finished_student(context: Context) -> SampledModel:
    """The student of a finished train stage. StageError where it is not finished or was changed."""
    directory = context.directory("train")
    require(directory, "the student", context.start.recipe)
    check_outputs(directory)
    return sampled_student(context.recipe.train.student, directory / CHECKPOINT)


def command_of(model: SampledModel, name: str, host: str, port: int) -> list[str]:
    """`vllm serve` with the student's own generation_config.json."""
    return serve_command(model, EngineFlags(), served_model_name=name, host=host, port=port)
