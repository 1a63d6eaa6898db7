"""`python -m pipeline serve-student`: the finished student behind `vllm serve`, an OpenAI-compatible server.

python -m pipeline serve-student --recipe recipes/demo.yaml --port 8000
"""

import os
import sys
from pathlib import Path

from pipeline.cards import SampledModel, sampled_student
from pipeline.stage import Context, check_outputs, require
from students.export import CHECKPOINT


def run(context: Context, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Replace this process by the server."""
    model = finished_student(context)
    command = serve_command(model, context.recipe.name, host, port)
    print(f"serving {context.recipe.name} at http://{host}:{port}/v1", file=sys.stderr)
    os.execv(command[0], command)


def finished_student(context: Context) -> SampledModel:
    """The student of a finished train stage. StageError where it is not finished or was changed."""
    directory = context.directory("train")
    require(directory, "the student", context.start.recipe)
    check_outputs(directory)
    return sampled_student(context.recipe.train.student, directory / CHECKPOINT)


def serve_command(model: SampledModel, name: str, host: str, port: int) -> list[str]:
    """`vllm serve` of this environment, with the student's own generation_config.json."""
    vllm = Path(sys.executable).with_name("vllm")
    return [
        str(vllm), "serve", model.model,
        "--served-model-name", name,
        "--host", host,
        "--port", str(port),
        "--dtype", model.dtype,
        "--max-model-len", str(model.max_model_len),
    ]  # fmt: skip
