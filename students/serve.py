"""`python -m pipeline serve-student`: the finished student behind `vllm serve`, an OpenAI-compatible server.

python -m pipeline serve-student --recipe recipes/demo.yaml --port 8000
"""

import os
import sys

from pipeline.context import Context
from pipeline.flags import EngineFlags
from pipeline.sampling.engines.serving import serve_command


def run(context: Context, host: str, port: int, flags: EngineFlags) -> None:
    """Replace this process by the server, with the student's own generation_config.json."""
    name = context.recipe.name
    student = context.finished_student("serve-student")
    # of a request that states none: the mode without thinking, for one
    options = {"default_chat_template_kwargs": student.template_options} if student.template_options else {}
    command = serve_command(student, flags, served_model_name=name, host=host, port=port, **options)
    print(f"serving {name} at http://{host}:{port}/v1", file=sys.stderr)
    os.execv(command[0], command)
