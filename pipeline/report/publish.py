"""`python -m pipeline publish`: a finished run to the hub, as a model and a data set. Never a stage.

Reads the checkpoint, the examples, the manifests and the model card that report wrote; with --dry-run writes
the two directories to runs/<name>/publish/ and contacts nobody.
"""

import logging
import shutil
from collections import Counter
from pathlib import Path

from pipeline.context import CHECKPOINT, Context
from pipeline.errors import RecipeError, StageError
from pipeline.run.contract import Manifest, check_outputs, hash_file
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
    shutil.rmtree(target, ignore_errors=True)
    lay_out_model(context, target / "model")
    lay_out_data(context, manifests["filter"], target / "data")
    log.info("publish: wrote %s and %s", target / "model", target / "data")
    for kind, repo, part in (("model", model_repo, "model"), ("dataset", data_repo, "data")):
        if repo is not None and not dry_run:
            upload(kind, repo, target / part)


def lay_out_model(context: Context, target: Path) -> None:
    """The checkpoint, the adapter below it, report's model card as README.md, and SHA256SUMS of it all."""
    trained = context.directory(context.student_stage)
    shutil.copytree(trained / CHECKPOINT, target)
    if (trained / "adapter").is_dir():
        shutil.copytree(trained / "adapter", target / "adapter")
    shutil.copyfile(context.directory("report") / "README.md", target / "README.md")
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
    reasons = "\n".join(f"| {reason} | {count:,} |" for reason, count in sorted(counts.dropped.items()))
    listed = "\n".join(f"- {licence}: {count:,} examples" for licence, count in found.most_common())
    lone = next(iter(found)).lower() if len(found) == 1 else "other"
    return f"""\
---
license: {lone if lone != "unknown" else "other"}
task_categories: [text-generation]
tags: [reasoning, distillation]
configs:
- config_name: default
  data_files: data/train.parquet
---

# {recipe.name}

{found.total():,} verified chain-of-thought examples. Problems were answered by {author}, each answer was
checked by a verifier against its gold answer, and only traces that every rule let pass were kept.

- Thinking stands apart from the answer, as `reasoning_content` of the last message.
- Sampled at temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, {sampling.max_tokens:,} tokens.
- Of {counts.num_in:,} traces {counts.kept:,} were kept and {dropped:,} dropped.
- Fingerprint of the stage that wrote them: `{manifest.fingerprint}`.

| dropped because | traces |
|---|---|
{reasons}

## Licences

{listed}

Training on the teacher's outputs is {teacher.training_on_outputs} by its licence ({teacher.licence}).
"""


def upload(kind: str, repo: str, folder: Path) -> None:
    """Create a private repository where there is none and upload. StageError on what the hub refuses."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
        where = api.upload_folder(repo_id=repo, repo_type=kind, folder_path=str(folder))
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise StageError(
            f"publish: {repo}: the hub refused it ({said}). {folder} is complete: log in with "
            "`hf auth login` and run the same command again"
        ) from None
    log.info("publish: %s -> %s", folder, where)
