"""`python -m pipeline publish`: a finished run to the hub, as a model and a data set. Never a stage.

Reads the checkpoint, the examples, the manifests and the model card that report wrote; with --dry-run writes
the two directories to runs/<name>/publish/ and contacts nobody.
"""

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.cards import student_card, teacher_card
from pipeline.errors import RecipeError, StageError
from pipeline.revisions import known_revision
from pipeline.stage import Context, check_outputs, hash_file, require

log = logging.getLogger(__name__)
STAGES = ("filter", "train", "report")


def run(context: Context, model_repo: str | None, data_repo: str | None, dry_run: bool) -> None:
    """Lay out publish/model and publish/data, then upload what has a repository, privately."""
    if not dry_run and not (model_repo or data_repo):
        raise RecipeError("publish: name --model-repo and/or --data-repo (owner/name), or give --dry-run")
    manifests = {}
    for stage in STAGES:
        manifests[stage] = require(context.directory(stage), "publish", context.start.recipe)
        check_outputs(context.directory(stage))
    target = context.directory("publish")
    shutil.rmtree(target, ignore_errors=True)
    lay_out_model(context, target / "model")
    lay_out_data(context, manifests["filter"], target / "data")
    log.info("publish: wrote %s and %s", target / "model", target / "data")
    if not dry_run:
        upload({"model": model_repo, "dataset": data_repo}, target)


def lay_out_model(context: Context, target: Path) -> None:
    """The checkpoint, the adapter below it, report's model card as README.md, and SHA256SUMS of it all."""
    train = context.directory("train")
    shutil.copytree(train / "checkpoint", target)
    if (train / "adapter").is_dir():
        shutil.copytree(train / "adapter", target / "adapter")
    shutil.copyfile(context.directory("report") / "README.md", target / "README.md")
    files = sorted(path for path in target.rglob("*") if path.is_file())
    sums = "".join(f"{hash_file(path)}  {path.relative_to(target)}\n" for path in files)
    (target / "SHA256SUMS").write_text(sums, encoding="utf-8")


def lay_out_data(context: Context, manifest: dict[str, Any], target: Path) -> None:
    """examples.parquet with its card."""
    source = context.directory("filter") / "examples.parquet"
    (target / "data").mkdir(parents=True)
    shutil.copyfile(source, target / "data" / "train.parquet")
    (target / "README.md").write_text(data_card(context, manifest, licences(source)), encoding="utf-8")


def licences(examples: Path) -> Counter[str]:
    """How many examples came under which licence."""
    import pyarrow.parquet as parquet

    if "licence" not in parquet.read_schema(examples).names:
        return Counter({"unknown": parquet.read_metadata(examples).num_rows})
    return Counter(parquet.read_table(examples, columns=["licence"]).column("licence").to_pylist())


def data_card(context: Context, manifest: dict[str, Any], found: Counter[str]) -> str:
    """The data set card: what the examples are, who wrote them, what was dropped, under which licences."""
    recipe, counts = context.recipe, manifest["counts"]
    teacher, sampling = teacher_card(recipe.generate.teacher), recipe.generate.sampling
    tags = student_card(recipe.train.student).thinking
    revision = teacher.revision or known_revision(context.run, teacher.model)
    author = f"{teacher.model} (revision {revision})" if revision else teacher.model
    dropped = sum(counts["dropped"].values())
    reasons = "\n".join(f"| {reason} | {count:,} |" for reason, count in sorted(counts["dropped"].items()))
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

- Thinking stands between `{tags.open}` and `{tags.close}` in the assistant's message.
- Sampled at temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, {sampling.max_tokens:,} tokens.
- Of {counts["in"]:,} traces {counts["kept"]:,} were kept and {dropped:,} dropped.
- Fingerprint of the stage that wrote them: `{manifest["fingerprint"]}`.

| dropped because | traces |
|---|---|
{reasons}

## Licences

{listed}

Training on the teacher's outputs is {teacher.training_on_outputs} by its licence ({teacher.licence}).
"""


def upload(repos: dict[str, str | None], target: Path) -> None:
    """Create private repositories where there are none and upload. StageError on what the hub refuses."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    for kind, repo in repos.items():
        if repo is None:
            continue
        folder = target / ("model" if kind == "model" else "data")
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
