"""Options that several subcommands share, with their help texts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_RUNS = Path("runs")

RecipePath = Annotated[Path, typer.Option("--recipe", "-r", help="The recipe file, recipes/*.yaml.")]
Runs = Annotated[Path, typer.Option(help="The directory that holds one directory per run.")]
Force = Annotated[bool, typer.Option("--force", help="Move a directory that blocks aside, then run.")]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; changes the fingerprint.")
]

EngineKind = Annotated[
    Literal["vllm", "server"], typer.Option(help="vLLM in this process, or OpenAI-compatible servers.")
]
Urls = Annotated[
    list[str] | None, typer.Option("--url", help="A server, as http://host:8000/v1; may be repeated.")
]
Concurrency = Annotated[int, typer.Option(help="Requests in flight at most.")]
TensorParallel = Annotated[int | None, typer.Option(help="Devices that share one model; else the card's.")]
DataParallel = Annotated[int | None, typer.Option(help="Copies of the model; else the card's.")]
ServedName = Annotated[
    str | None, typer.Option(help="The model's name at the servers, where it has another.")
]
ModelUrls = Annotated[
    list[str] | None, typer.Option("--url", help="A model that is served: teacher=http://host:8000/v1.")
]
ModelNames = Annotated[
    list[str] | None, typer.Option("--served-name", help="Its name at the server: student=demo.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the student runs.")]
Adopt = Annotated[
    list[str] | None, typer.Option("--adopt", help="The name of a run whose traces of equal key are taken.")
]
Against = Annotated[str | None, typer.Option(help="Another run, of which this one is an ablation.")]
Assume = Annotated[
    list[str] | None, typer.Option(help="name=value: problems, devices, price, memory, bandwidth, ...")
]
