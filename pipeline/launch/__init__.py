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
from pipeline.errors import RecipeError
from pipeline.flags import RunFlags
from pipeline.recipe.cards import TeacherCard
from pipeline.sampling.shards import parse_shard, refuse_redistribution

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
    teacher, of eval's largest model, needs. RecipeError for a recipe that cannot be cut into shards."""
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
    needed, parallel = 8, f"--tensor-parallel {engine.tensor_parallel} --data-parallel {engine.data_parallel}"
    served = "--engine server --url http://host:8000/v1"
    if kind != "slurm-train":
        needed = engine.tensor_parallel * engine.data_parallel
    if stage == "eval":  # each model as its own card says
        cards = [context.card(model)[1] for model in context.recipe.eval.models]
        engines = [card.engine for card in cards if isinstance(card, TeacherCard)]
        needed = max((one.tensor_parallel * one.data_parallel for one in engines), default=1)
        parallel, served = "", "--url teacher=http://host:8000/v1"
    words = ["--recipe", context.start.recipe, *(word for pair in flags.override for word in ("--set", pair))]
    if flags.runs != Path("runs"):
        words += ["--runs", str(flags.runs)]
    text = Path(__file__).with_name(FILES[kind]).read_text(encoding="utf-8")
    return Template(text).substitute(
        recipe=join(words),
        name=quote(context.recipe.name),
        shards=shards,
        last=shards - 1,
        nodes=nodes,
        gpus=gpus or needed,
        parallel=parallel,
        stage=stage,
        served=served,
    )
