"""A sibling recipe that differs from its parent in one field, and a run that shares the parent's traces.

The sibling gets the tokens that the parent trained on as its budget, so `make all` on both gives a fair
comparison, and its report shows the pair. Its problems and generate directories are the parent's own files
(hard links): their plans are equal, so both stages are up to date and no teacher is asked again.

    python -m pipeline ablate --recipe recipes/demo.yaml --drop-rule correct
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError, StageError
from pipeline.recipe import load_recipe
from pipeline.report.against import remember
from pipeline.rule_parameters import parse_rule
from pipeline.stage import Context, difference, read_manifest, require
from pipeline.strict_yaml import nearest, parse, read_mapping

log = logging.getLogger(__name__)

SHARED_STAGES = ("problems", "generate")
FREE_SECTIONS = ("filter", "train")


def ablate(context: Context, path: Path, changes: list[tuple[str, str]]) -> Path:
    """Write the sibling of the recipe at `path`, link its traces, and say what differs; the new file's path.

    `changes` holds exactly one of ("drop-rule", rule), ("select", preference), ("set", "section.key=value").
    """
    if len(changes) != 1:
        raise RecipeError(
            "ablate changes one thing: give one of --drop-rule RULE, --select PREFER, --set KEY=VALUE"
        )
    [(kind, value)] = changes
    for stage in SHARED_STAGES:
        require(context.directory(stage), "ablate", context.start.recipe)
    manifest = require(context.directory("filter"), "ablate", context.start.recipe)
    values = read_mapping(path, "recipe")
    suffix = CHANGES[kind](values, value)
    budget = manifest["usage"]["trained_tokens"]
    values["filter"].setdefault("select", {})["max_tokens"] = budget
    values["name"] = f"{context.recipe.name}-{suffix}"
    sibling = path.with_name(f"{values['name']}.yaml")
    text = header(path, sibling, f"{kind} {value}", budget) + yaml.safe_dump(values, sort_keys=False)
    write_new(sibling, text)
    child = load_recipe(sibling)
    lines = difference(context.recipe.model_dump(), child.model_dump())
    log.info("ablate: wrote %s, which differs from %s in:\n  %s", sibling, path, "\n  ".join(lines))
    share_traces(context, child.name)
    remember(context.runs / child.name, context.recipe.name)
    log.info("ablate: run it with: make all RECIPE=%s RUNS=%s", sibling, context.runs)
    return sibling


def drop_rule(values: dict[str, Any], rule: str) -> str:
    rules = values["filter"]["rules"]
    names = [parse_rule(entry)[0] for entry in rules]
    if rule not in names:
        raise RecipeError(f"--drop-rule {rule}: the recipe has no such rule; {nearest(rule, names)}")
    if len(rules) == 1:
        raise RecipeError(
            f"--drop-rule {rule}: it is the recipe's only rule, and filter.rules cannot be empty"
        )
    values["filter"]["rules"] = [e for e, name in zip(rules, names, strict=True) if name != rule]
    return f"without-{rule}"


def change_preference(values: dict[str, Any], prefer: str) -> str:
    values["filter"].setdefault("select", {})["prefer"] = prefer
    return f"select-{prefer}"


def change_field(values: dict[str, Any], text: str) -> str:
    """Any field of filter or train; the sections before them decide the traces, which the pair must share."""
    keys, equals, value = text.partition("=")
    *sections, key = keys.strip().split(".")
    if not equals or not sections or sections[0] not in FREE_SECTIONS:
        raise RecipeError(f"--set {text}: expected filter.… or train.… as section.key=value")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
    target[key] = parse(value, f"--set {text}")
    return "".join(c if c.isalnum() or c in "._" else "-" for c in f"{key}-{value}").strip("-")


CHANGES = {"drop-rule": drop_rule, "select": change_preference, "set": change_field}


def header(parent: Path, sibling: Path, change: str, budget: int) -> str:
    return (
        f"# Purpose:  {parent.name} with one change: {change}. Written by `python -m pipeline ablate`.\n"
        f"# Needs:    the finished run of {parent.name}; its problems and traces are shared.\n"
        f"# Command:  make all RECIPE={sibling}\n"
        f"# Expected: a student trained on as many tokens as its parent, {budget:,}; compare the two.\n"
    )


def write_new(path: Path, text: str) -> None:
    """Write the file; RecipeError where another text stands there, which is never overwritten."""
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise RecipeError(f"{path}: exists with other content; move it away, or run it as it is")
    path.write_text(text, encoding="utf-8")


def share_traces(context: Context, name: str) -> None:
    """Give the sibling's run the parent's finished problems and generate, as links to the same files."""
    for stage in SHARED_STAGES:
        source, target = context.directory(stage), context.runs / name / stage
        held = read_manifest(target)
        if held is None and target.exists():
            raise StageError(f"{target}: exists and is not finished; nothing was touched. Move it away")
        wanted = require(source, "ablate", context.start.recipe)["fingerprint"]
        if held is not None and held["fingerprint"] != wanted:
            raise StageError(
                f"{target}: holds another {stage} than {source}; nothing was touched. Move it away"
            )
        if held is None:
            shutil.copytree(source, target, copy_function=link_or_copy)
            log.info("ablate: %s shares the files of %s", target, source)


def link_or_copy(source: str, target: str) -> str:
    """A hard link; a copy where the file system has none (other disk)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
