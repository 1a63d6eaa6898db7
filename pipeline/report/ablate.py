"""A sibling recipe that differs from its parent in one field, and a run that shares the parent's traces.

The sibling gets the tokens that the parent trained on as its budget, so `make all` on both gives a fair
comparison, and its report shows the pair. Its problems and generate directories are the parent's own files
(hard links): their plans are equal, so both stages are up to date and no teacher is asked again.

    python -m pipeline ablate --recipe recipes/demo.yaml --drop-rule correct
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError
from pipeline.recipe.cards import load_cards
from pipeline.recipe.rule_entry import rule_name
from pipeline.recipe.schema import Recipe
from pipeline.recipe.strict_yaml import dump, nearest, parse, read_mapping, validate
from pipeline.report.against import CHANGED_STAGES, remember
from pipeline.report.sharing import share_stages
from pipeline.run.contract import difference
from pipeline.run.stages import BY_NAME, before

log = logging.getLogger(__name__)

FREE_SECTIONS = [BY_NAME[stage].section for stage in CHANGED_STAGES]


def ablate(context: Context, path: Path, changes: list[tuple[str, str]]) -> Path:
    """Write the sibling of the recipe at `path`, link its traces, and say what differs; the new file's path.

    `changes` holds exactly one of ("drop-rule", rule), ("select", preference), ("keep-unsolved", "keep_one"),
    ("set", "section.key=value").
    """
    if len(changes) != 1:
        raise RecipeError(
            "ablate changes one thing: give one of --drop-rule RULE, --select PREFER, --keep-unsolved, "
            "--set KEY=VALUE"
        )
    [(kind, value)] = changes
    for stage in shared_stages(context):
        context.require(stage, "ablate")
    budget = context.require("filter", "ablate").usage.trained_tokens
    values = read_mapping(path, "recipe")
    suffix = CHANGES[kind](values, value)
    values["filter"].setdefault("select", {})["max_tokens"] = budget
    values["name"] = f"{context.recipe.name}-{suffix}"
    sibling = path.with_name(f"{values['name']}.yaml")
    recipe = validate(Recipe, values, str(sibling), path.parent)
    child = replace(context, recipe=recipe, cards=load_cards(recipe))
    text = header(path, sibling, f"{kind} {value}", budget) + dump(values)
    if sibling.is_file() and sibling.read_text(encoding="utf-8") != text:
        raise RecipeError(f"{sibling}: exists with other content; move it away, or run it as it is")
    sibling.write_text(text, encoding="utf-8")
    lines = difference(context.recipe.model_dump(), recipe.model_dump())
    log.info("ablate: wrote %s, which differs from %s in:\n  %s", sibling, path, "\n  ".join(lines))
    share_stages(context.run, child.run, shared_stages(context), "ablate")
    remember(child, context.recipe.name)
    log.info("ablate: run it with: make all RECIPE=%s RUNS=%s", sibling, context.runs)
    return sibling


def shared_stages(context: Context) -> list[str]:
    """The stages in front of filter that the recipe has."""
    return [stage.name for stage in context.stages if stage.name in before("filter")]


def drop_rule(values: dict[str, Any], rule: str) -> str:
    rules = values["filter"]["rules"]
    names = [rule_name(entry) for entry in rules]
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
    """Any field behind the traces, which the pair must share, and before eval, which must ask the same."""
    keys, equals, value = text.partition("=")
    *sections, key = keys.strip().split(".")
    if not equals or not sections or sections[0] not in FREE_SECTIONS:
        free = " or ".join(f"{section}.…" for section in FREE_SECTIONS)
        raise RecipeError(f"--set {text}: expected {free} as section.key=value")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
    target[key] = parse(value, f"--set {text}")
    return "".join(c if c.isalnum() or c in "._" else "-" for c in f"{key}-{value}").strip("-")


def keep_unsolved(values: dict[str, Any], how: str) -> str:
    """Problems that no trace solves keep one wrong trace each: verification without its bias to the easy."""
    values["filter"].setdefault("select", {})["unsolved"] = how
    return "keep-unsolved"


CHANGES = {
    "drop-rule": drop_rule,
    "select": change_preference,
    "keep-unsolved": keep_unsolved,
    "set": change_field,
}


def header(parent: Path, sibling: Path, change: str, budget: int | None) -> str:
    return (
        f"# Purpose:  {parent.name} with one change: {change}. Written by `python -m pipeline ablate`.\n"
        f"# Needs:    the finished run of {parent.name}; its problems and traces are shared.\n"
        f"# Command:  make all RECIPE={sibling}\n"
        f"# Expected: a student trained on as many tokens as its parent, {budget:,}; compare the two.\n"
    )
