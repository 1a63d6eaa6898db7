"""Launch files: a run over many machines, by the schedulers that users have. Fill one in, read it, submit it.

Reads the recipe and a file of this folder; prints the file with the recipe's name and the sizes in it.

    python -m pipeline launch slurm --recipe recipes/R.yaml --shards 16 > generate.sbatch
    python -m pipeline launch slurm --stage eval --recipe recipes/R.yaml --shards 16 > eval.sbatch
    python -m pipeline launch sky --recipe recipes/R.yaml --shards 16 > generate.sky.yaml
    python -m pipeline launch slurm-train --recipe recipes/R.yaml --nodes 2 > train.sbatch
"""

from pathlib import Path
from shlex import join, quote
from string import Template

from pipeline.context import Context
from pipeline.errors import RecipeError, inside
from pipeline.flags import EngineFlags, RunFlags
from pipeline.recipe.cards import TeacherCard
from pipeline.sampling.engines.serving import num_devices
from pipeline.sampling.shards import parse_shard, refuse_redistribution

GPUS_OF_A_NODE = 8  # as machines for training and for large models have them
FILES = {"slurm": "generate.sbatch", "sky": "generate.sky.yaml", "slurm-train": "train.sbatch"}


def launch_file(
    kind: str,
    context: Context,
    flags: RunFlags,
    sizes: tuple[int, int],
    gpus: int | None = None,
    stage: str = "generate",
) -> str:
    """The text of a launch file for `sizes` = (shards, nodes); `gpus` a node, else those that one copy of the
    teacher, of eval's largest model, needs. RecipeError for a recipe that cannot be cut into shards, and for
    a model that one node does not hold."""
    shards, nodes = sizes
    engine = context.teacher_card.engine
    if kind != "slurm-train":
        parse_shard(f"0/{shards}")
    if kind != "slurm-train" and stage == "generate":
        refuse_redistribution(context.recipe.generate.samples)
    if stage != "generate" and kind != "slurm":
        raise RecipeError(
            f"--stage {stage}: is for launch slurm, whose nodes see the student's checkpoint and all else "
            f"that {stage} reads; leave it out with {kind}"
        )
    if kind == "sky" and flags.runs != Path("runs"):
        raise RecipeError("--runs: on SkyPilot's machines a run is in runs/ of the checkout; leave it out")
    parallel = f"--tensor-parallel {engine.tensor_parallel} --data-parallel {engine.data_parallel}"
    served = "--engine server --url http://host:8000/v1"
    sampled = {context.teacher_name: context.teacher_card}
    if stage == "eval":  # each model as its own card says
        cards = {model: context.card(model)[1] for model in context.recipe.eval.models}
        sampled = {model: card for model, card in cards.items() if isinstance(card, TeacherCard)}
        parallel, served = "", "--url {model}=http://host:8000/v1"
    if gpus is None:
        gpus = GPUS_OF_A_NODE if kind == "slurm-train" else gpus_for(sampled, served)
    served = served.format(model=next(iter(sampled), "teacher"))
    words = ["--recipe", context.start.recipe, *(word for pair in flags.override for word in ("--set", pair))]
    if flags.runs != Path("runs"):
        words += ["--runs", str(flags.runs)]
    text = Path(__file__).with_name(FILES[kind]).read_text(encoding="utf-8")
    return Template(text).substitute(
        recipe=join(words),
        merge=quote(f".venv/bin/python -m pipeline {stage} {join(words)} --merge"),
        name=quote(context.recipe.name),
        train=quote(str(flags.runs / context.recipe.name / "train")),
        shards=shards,
        last=shards - 1,
        nodes=nodes,
        gpus=gpus,
        parallel=parallel,
        stage=stage,
        served=served,
    )


def gpus_for(sampled: dict[str, TeacherCard], served: str) -> int:
    """GPUs of a node for one copy of the largest of these models, of which one runs at a time.

    RecipeError for a model over several nodes: a job is one node, and nothing in these files joins two.
    `served` are the flags of a job that asks a server, which may name the {model}.
    """
    needed = 1
    for name, card in sampled.items():
        with inside(name):
            devices = num_devices(card.engine, EngineFlags())
        if devices > GPUS_OF_A_NODE:
            raise RecipeError(
                f"{name}: one copy takes {devices} GPUs, as its card says, and a job is one node, mostly of "
                f"{GPUS_OF_A_NODE}. Give --gpus {devices} where a node has as many; else start it over more "
                "nodes with python -m pipeline serve-teacher (docs/cluster.md), and the jobs with --gpus 1 "
                f"and ENGINE='{served.format(model=name)}'"
            )
        needed = max(needed, devices)
    return needed
