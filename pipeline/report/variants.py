"""`python -m pipeline variants`: a sibling recipe for every combination of some values.

Reads a recipe; writes one beside it for each combination, named after its values. With --run it runs them,
one after the other, and what no changed value reaches is linked from the run that has it: three learning
rates on the same traces buy the traces once. What base and teacher answered in one eval the next one adopts.

    python -m pipeline variants --recipe recipes/demo.yaml --set train.seed=0,1,2 --run
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError, inside
from pipeline.recipe.cards import load_cards
from pipeline.recipe.schema import Recipe, set_value
from pipeline.recipe.strict_yaml import dump, parse, read_mapping, validate
from pipeline.report.sharing import share_stages
from pipeline.run.contract import Start
from pipeline.run.lifetime import die_with_parent
from pipeline.run.stages import NAMES, STAGES, Stage

log = logging.getLogger(__name__)

# keys, with all below them, that reach a stage in front of that of their own section
REACHED_EARLIER = {"seed": "problems", "train.student": "filter", "eval.tasks": "problems"}
INTERRUPTED = 130
MAX_VARIANTS = 200  # more are a slip of the keyboard


@dataclass(frozen=True, slots=True)
class Axis:
    """One key with the values that it takes in turn."""

    key: str
    values: list[Any]

    @property
    def first_stage(self) -> str:
        """The first stage whose result depends on the key."""
        for key, stage in REACHED_EARLIER.items():
            if f"{self.key}.".startswith(f"{key}."):
                return stage
        return next(stage.name for stage in STAGES if stage.section == self.key.split(".")[0])


@dataclass(frozen=True, slots=True)
class Variant:
    """A sibling recipe on disk, and the value of each axis in it."""

    path: Path
    context: Context
    values: tuple[Any, ...]


def write_variants(context: Context, path: Path, changes: Sequence[str]) -> list[Variant]:
    """Write the recipe of every combination of `changes` (key=value,value,...) beside the one at `path`.

    RecipeError where one is not a valid recipe, or another file has its name; nothing is written then.
    """
    axes = axes_of(changes)
    variants, texts = [], []
    for values in product(*(axis.values for axis in axes)):
        stated = read_mapping(path, "recipe")
        for axis, value in zip(axes, values, strict=True):
            set_value(stated, f"{axis.key}={json.dumps(value)}")
        stated["name"] = "-".join([context.recipe.name, *labels(axes, values)])
        sibling = path.with_name(f"{stated['name']}.yaml")
        recipe = validate(Recipe, stated, str(sibling), path.parent)
        text = header(path, sibling, axes, values) + dump(stated)
        if sibling.is_file() and sibling.read_text(encoding="utf-8") != text:
            raise RecipeError(f"{sibling}: exists with other content; move it away, or run it as it is")
        with inside(str(sibling)):
            cards = load_cards(recipe)
        child = replace(context, recipe=recipe, cards=cards, start=Start(recipe=str(sibling)))
        variants.append(Variant(sibling, child, values))
        texts.append(text)
    if len({variant.path for variant in variants}) < len(variants):
        raise RecipeError("variants: two of them are alike: a value stands twice in one --set")
    for variant, text in zip(variants, texts, strict=True):
        variant.path.write_text(text, encoding="utf-8")
    log.info("variants: wrote %d recipes beside %s", len(variants), path)
    return variants


def axes_of(changes: Sequence[str]) -> list[Axis]:
    """The keys with their values, which are read as the entries of a YAML list."""
    axes = []
    for change in changes:
        key, equals, text = (part.strip() for part in change.partition("="))
        values = parse(f"[{text}]", f"--set {change}") if equals and key else None
        if not values:
            raise RecipeError(f"--set {change}: expected key=value,value, as train.learning_rate=1e-4,2e-4")
        if key == "name" or not known_section(key):
            raise RecipeError(
                f"--set {change}: no stage reads this key; sections are {', '.join(NAMES)}, seed"
            )
        axes.append(Axis(key, values))
    keys = [axis.key for axis in axes]
    if not axes or len(set(keys)) < len(keys):
        raise RecipeError("variants: give --set KEY=VALUE,VALUE, and each key once")
    number = len(list(product(*(axis.values for axis in axes))))
    if number > MAX_VARIANTS:
        raise RecipeError(f"variants: {number:,} combinations are too many ({MAX_VARIANTS} at most)")
    return axes


def known_section(key: str) -> bool:
    section, dot, _ = key.partition(".")
    return key in REACHED_EARLIER or bool(dot and section in {stage.section for stage in STAGES})


def labels(axes: Sequence[Axis], values: Sequence[Any]) -> list[str]:
    """What a name says of each value: learning_rate-0.0001. The section too where two keys end alike."""
    last = [axis.key.rpartition(".")[2] for axis in axes]
    keys = [name if last.count(name) == 1 else axis.key for name, axis in zip(last, axes, strict=True)]
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    named = [f"{key}-{text}" for key, text in zip(keys, texts, strict=True)]
    return ["".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-") for text in named]


def header(parent: Path, sibling: Path, axes: Sequence[Axis], values: Sequence[Any]) -> str:
    stated = ", ".join(f"{axis.key} {value}" for axis, value in zip(axes, values, strict=True))
    return (
        f"# Purpose:  {parent.name} with {stated}. Written by `python -m pipeline variants`.\n"
        f"# Needs:    what {parent.name} needs.\n"
        f"# Command:  make all RECIPE={sibling}\n"
        "# Expected: a row of `python -m pipeline board`.\n"
    )


Launch = Callable[[Stage, Variant, Sequence[str]], int]


def run_variants(parent: Context, variants: Sequence[Variant], axes: Sequence[Axis], launch: Launch) -> None:
    """Every stage of every variant, each in a process of its own; a variant that fails stops no other.

    StageError names those that failed, after the last. KeyboardInterrupt where one was interrupted.
    """
    failed = []
    for number, variant in enumerate(variants):
        log.info("variants: %d of %d: %s", number + 1, len(variants), variant.context.recipe.name)
        earlier = [parent, *(other.context for other in variants[:number])]
        for stage in variant.context.stages:
            donor = donor_of(stage, variant, parent, variants[:number], axes)
            if donor is not None:
                share_stages(donor.run, variant.context.run, [stage.name], "variants")
                if donor is not parent:
                    continue
                # whether the parent's is what its recipe says now, the stage itself finds out
            code = launch(stage, variant, adopted_from(stage, earlier))
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            if code:
                failed.append(f"{variant.context.recipe.name} ({stage.name})")
                break
    if failed:
        raise StageError(
            f"variants: {len(failed)} of {len(variants)} did not finish: {', '.join(failed)}. What they said "
            "stands above; the same command goes on with them"
        )


def donor_of(
    stage: Stage, variant: Variant, parent: Context, earlier: Sequence[Variant], axes: Sequence[Axis]
) -> Context | None:
    """The run whose finished `stage` this variant shares: an earlier variant's that differs in later stages
    alone, else the parent's where no axis reaches it. None where it is this variant's to make."""
    reached = [NAMES.index(axis.first_stage) <= NAMES.index(stage.name) for axis in axes]
    if variant.context.manifest(stage.name) is not None or stage.name == "report":
        return None
    for other in earlier:
        alike = all(
            mine == theirs
            for mine, theirs, counts in zip(variant.values, other.values, reached, strict=True)
            if counts
        )
        if alike and other.context.manifest(stage.name) is not None:
            return other.context
    return parent if not any(reached) and parent.manifest(stage.name) is not None else None


def adopted_from(stage: Stage, earlier: Sequence[Context]) -> list[str]:
    """The runs whose samples of equal key the stage takes."""
    if not stage.samples:
        return []
    return [context.recipe.name for context in earlier if context.directory(stage.name).is_dir()]


def by_command_line(runs: Path) -> Launch:
    """Runs a stage as `python -m pipeline` of this interpreter; its exit code."""

    def launch(stage: Stage, variant: Variant, adopt: Sequence[str]) -> int:
        command = [sys.executable, "-m", "pipeline", stage.name, f"--recipe={variant.path}", f"--runs={runs}"]
        command += [f"--adopt={name}" for name in adopt]
        # it ends with this process, also by a kill
        return subprocess.run(
            command, check=False, preexec_fn=partial(die_with_parent, os.getpid())
        ).returncode

    return launch
