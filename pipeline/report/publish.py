"""`python -m pipeline publish`: a finished run to the hub, as a model and a data set. Never a stage.

Reads the checkpoint, the examples, the manifests and the model card that report wrote; with --dry-run writes
the two directories to runs/<name>/publish/ and contacts nobody.
"""

import logging
import shutil
from collections import Counter
from pathlib import Path

from pipeline.context import CHECKPOINT, Context
from pipeline.errors import RecipeError, StageError, in_one_line
from pipeline.report.licences import license_fields
from pipeline.report.markdown import front_matter, listed
from pipeline.report.table import Table, escape, table_lines
from pipeline.report.use import place_of
from pipeline.run.contract import Manifest, check_outputs, hash_file, held
from pipeline.run.revisions import known_revision

log = logging.getLogger(__name__)


def run(context: Context, model_repo: str | None, data_repo: str | None, dry_run: bool) -> None:
    """Lay out publish/model and publish/data, then upload what has a repository, privately."""
    if not dry_run and not (model_repo or data_repo):
        raise RecipeError("publish: name --model-repo and/or --data-repo (owner/name), or give --dry-run")
    manifests = {}
    for stage in ("filter", context.student_stage, "report"):
        manifests[stage] = context.require(stage, "publish")
        check_outputs(context.directory(stage))
    target = context.directory("publish")
    if target.is_symlink():
        raise StageError(f"{target}: is a symbolic link; what it leads to is not touched. Remove the link")
    with held(target):
        clear(target)
        lay_out_model(context, manifests[context.student_stage], target / "model", model_repo or ".")
        lay_out_data(context, manifests["filter"], target / "data")
        log.info("publish: wrote %s and %s", target / "model", target / "data")
        for kind, repo, part in (("model", model_repo, "model"), ("dataset", data_repo, "data")):
            if repo is not None and not dry_run:
                upload(kind, repo, target / part)


def clear(target: Path) -> None:
    """Empty the directory. rmtree enters no link, and removes one that stands in its way."""
    for part in ("model", "data"):
        path = target / part
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)


def lay_out_model(context: Context, manifest: Manifest, target: Path, repository: str) -> None:
    """The checkpoint, the adapter below it, report's model card as README.md, and SHA256SUMS of it all.

    What the card says of how to use the student it says of `repository`, where it is found from now on. Only
    what the manifest names is copied: nothing that was put beside it goes to the hub.
    """
    for name in manifest.outputs:
        part, _, rest = name.partition("/")
        if part not in (CHECKPOINT, "adapter"):
            continue
        path = target / (rest if part == CHECKPOINT else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context.directory(context.student_stage) / name, path)
    card = (context.directory("report") / "README.md").read_text(encoding="utf-8")
    (target / "README.md").write_text(card.replace(place_of(context), repository), encoding="utf-8")
    files = sorted(path for path in target.rglob("*") if path.is_file())
    sums = "".join(f"{hash_file(path)}  {path.relative_to(target)}\n" for path in files)
    (target / "SHA256SUMS").write_text(sums, encoding="utf-8")


def lay_out_data(context: Context, manifest: Manifest, target: Path) -> None:
    """examples.parquet with its card."""
    import pyarrow.parquet as parquet

    source = context.directory("filter") / "examples.parquet"
    (target / "data").mkdir(parents=True)
    shutil.copyfile(source, target / "data" / "train.parquet")
    licences = Counter(parquet.read_table(source, columns=["licence"]).column("licence").to_pylist())
    (target / "README.md").write_text(data_card(context, manifest, licences), encoding="utf-8")


def data_card(context: Context, manifest: Manifest, found: Counter[str]) -> str:
    """The data set card: what the examples are, who wrote them, what was dropped, under which licences."""
    recipe, counts = context.recipe, manifest.counts
    teacher, sampling = context.teacher_card, recipe.generate.sampling
    revision = teacher.revision or known_revision(context.run, teacher.model)
    author = f"{teacher.model} (revision {revision})" if revision else teacher.model
    dropped = sum(counts.dropped.values())
    reasons = [[reason, f"{count:,}"] for reason, count in sorted(counts.dropped.items())]
    listed_licences = [f"{escape(licence)}: {count:,} examples" for licence, count in found.most_common()]
    facts = {
        **license_fields(found),
        "task_categories": ["text-generation"],
        "tags": ["reasoning", "distillation"],
        "configs": [{"config_name": "default", "data_files": "data/train.parquet"}],
    }
    about = [
        "Thinking stands apart from the answer, as `reasoning_content` of the last message.",
        f"Sampled at temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, "
        f"{sampling.max_tokens:,} tokens.",
        f"Of {counts.num_in:,} traces {counts.kept:,} were kept and {dropped:,} dropped.",
        f"Fingerprint of the stage that wrote them: `{manifest.fingerprint}`.",
    ]
    if manifest.notes.get("without_gold"):
        about.append(
            "Where a problem had no gold answer, the majority of its own samples took its place; such "
            "examples say `gold_from: majority`."
        )
    if recipe.judge is not None:
        about.append(f"Where a verifier could not tell, {escape(context.judge.name)} judged.")
    return f"""\
{front_matter(facts)}

# {escape(recipe.name)}

{found.total():,} verified chain-of-thought examples. Problems were answered by {escape(author)}, each
answer was checked by a verifier against its gold answer, and only traces that every rule let pass were kept.

{listed(about)}

{chr(10).join(table_lines(Table(["dropped because", "traces"], reasons)))}

## Licences

{listed(listed_licences)}

{outputs_note(context)}
"""


def outputs_note(context: Context) -> str:
    """What the licences of teacher and judge say of training on these examples, where their cards know."""
    teacher = context.teacher_card
    outputs, judge = teacher.training_on_outputs, context.judge_restriction
    said = f"Training on the teacher's outputs is {outputs} by its licence ({teacher.licence})."
    if outputs == "unstated":
        said = f"{teacher.restriction('teacher')}: read it before these are passed on."
    return escape(f"{said} {judge}: read it before these are passed on." if judge else said)


def upload(kind: str, repo: str, folder: Path) -> None:
    """Create a private repository where there is none and upload. StageError on what the hub refuses, a card
    that it cannot read (a ValueError of its library) too."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
        where = api.upload_folder(repo_id=repo, repo_type=kind, folder_path=str(folder))
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, OSError, ValueError) as error:
        said = in_one_line(error, 200)
        raise StageError(
            f"publish: {repo}: the hub refused it ({said}). {folder} is complete: log in with "
            "`hf auth login` and run the same command again"
        ) from None
    log.info("publish: %s -> %s", folder, where)
