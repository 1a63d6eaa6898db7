"""`python -m pipeline board`: all runs side by side, in the terminal and as board.html.

Reads the manifests and results of every run under runs/; writes runs/board.html. Scores stand beside each
other only where they were measured alike: the same questions, prompts, sampling and verifiers. Runs that
differ in seeds alone are one experiment, whose spread is stated as mean, range and interval.

    python -m pipeline board
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.schema import Report
from pipeline.recipe.strict_yaml import nearest
from pipeline.report.numbers import count, percent, points, score, seconds
from pipeline.report.results import RESULTS, Results, Score, TaskResult, read_results
from pipeline.report.table import Table
from pipeline.report.tables import polish_seconds, teacher_tokens
from pipeline.run.contract import Manifest, check_outputs, fingerprint, read_manifests
from pipeline.run.stages import NAMES

BOARD = "board.html"
OWN_SEEDS = ("generate", "train")  # the stages whose seed a recipe can state beside its own
SEEDS = ("seed", *(f"{stage}.seed" for stage in OWN_SEEDS))
# of the plan of eval: how the questions were put, whatever the models
MEASURED = ("samples", "prompts", "sampling", "verifiers", "forced_budgets", "judge")
LISTED = "yes"
MAX_CHARACTERS = 60  # of a value that is shown; whole values are compared
MAX_SHOWN = 4  # differences named beside a run; the rest are counted
CHOSEN_NOTE = (
    "Intervals are 95%, over questions, of each run by itself. The best of several runs was chosen for its "
    "score, so it is likely to be less good than it looks: measure it on other questions, or compare the "
    "means over seeds."
)
SHARED_NOTE = (
    "Tokens, time and cost are those of a run's stages wherever they were made: what several runs share "
    "counts in each of them."
)
SPREAD_NOTE = (
    "Runs that differ in seeds alone. The interval is that of the mean over seeds, by Student's t: it says "
    "how well the recipe does, not how well one of its students does."
)


@dataclass(frozen=True)
class BoardRun:
    """A run with what is finished of it; `results` is None before its eval."""

    path: Path
    manifests: dict[str, Manifest]
    results: Results | None

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def settings(self) -> dict[str, str]:
        """What its finished stages were planned with, as keys of a recipe."""
        return dict(flattened(planned(self.manifests)))

    @property
    def headline(self) -> TaskResult:
        assert self.results is not None
        return self.results.headline[1]

    @property
    def student(self) -> Score | None:
        """The score of the model that all this is about; None where it was not compared."""
        return self.headline.models.get("student")

    @property
    def way(self) -> str:
        """One text for all runs whose scores compare."""
        held = self.manifests["eval"]
        asked = {name: out.sha256 for name, out in held.outputs.items() if name.endswith(".problems.jsonl")}
        return fingerprint([asked, {key: held.config.get(key) for key in MEASURED}])

    @property
    def experiment(self) -> str:
        """One text for all runs that differ in seeds alone."""
        return fingerprint({key: value for key, value in self.settings.items() if key not in SEEDS})


@dataclass(frozen=True)
class Group:
    """Runs that were measured alike, those of one experiment beside each other, the best mean first."""

    runs: list[BoardRun]

    @property
    def title(self) -> str:
        return f"{len(self.runs)} run{'s' if len(self.runs) > 1 else ''} on {', '.join(self.task_names)}"

    @property
    def task_names(self) -> list[str]:
        results = self.runs[0].results
        assert results is not None
        return results.task_names

    @property
    def measured(self) -> str:
        results = self.runs[0].results
        assert results is not None
        name, entry = results.headline
        held = next(iter(entry.models.values()))
        of = f"{name} of {', '.join(self.task_names)}" if len(self.task_names) > 1 else name
        return f"{of}: {held.n:,} questions, {held.k} sample{'s' if held.k > 1 else ''} of each"

    @cached_property
    def differing(self) -> list[str]:
        """The settings that are not the same in all runs."""
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        return [
            key
            for key in keys
            if len({run.settings.get(key) for run in self.runs}) > 1 and not self.follows(key)
        ]

    def follows(self, key: str) -> bool:
        """Whether a seed of a stage is that of the recipe in every run."""
        return key in SEEDS[1:] and all(run.settings.get(key) == run.settings["seed"] for run in self.runs)

    def differences(self, run: BoardRun, keys: Sequence[str] | None = None) -> list[str]:
        return [f"{key} {self.setting(run, key)}" for key in (self.differing if keys is None else keys)]

    def setting(self, run: BoardRun, key: str) -> str:
        """What a run has for a key that some run states."""
        listed = any(other.settings.get(key) == LISTED for other in self.runs)
        text = run.settings.get(key, "no" if listed else "(default)")
        return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."

    @property
    def experiments(self) -> list[list[BoardRun]]:
        """Runs that differ in seeds alone; of two that were made with the same seeds the first."""
        found: dict[str, dict[tuple[str | None, ...], BoardRun]] = {}
        for run in self.runs:
            seeds = tuple(run.settings.get(key) for key in SEEDS)
            found.setdefault(run.experiment, {}).setdefault(seeds, run)
        return [list(runs.values()) for runs in found.values()]

    @property
    def models(self) -> list[str]:
        """The student first: it is what the runs are about."""
        names = dict.fromkeys(name for run in self.runs for name in run.headline.models)
        return sorted(names, key=lambda name: name != "student")


def read_board(runs: Path, names: Sequence[str]) -> list[BoardRun]:
    """The runs under `runs`, or those of them that `names` says. RecipeError where there is none."""
    there = {path.name: path for path in sorted(runs.iterdir()) if path.is_dir()} if runs.is_dir() else {}
    for name in names:
        if name not in there:
            raise RecipeError(f"board: {runs / name} does not exist; {nearest(name, [*there] or ['none'])}")
    found = []
    for path in [there[name] for name in names] if names else there.values():
        manifests = read_manifests(path, NAMES)
        results = None
        if "eval" in manifests:
            check_outputs(path / "eval", [RESULTS])
            results = read_results(path / "eval" / RESULTS)
        if manifests:
            found.append(BoardRun(path, manifests, results))
    if not found:
        raise RecipeError(f"board: {runs} holds no run with a finished stage; make one, or give --runs")
    return found


def groups_of(runs: Sequence[BoardRun]) -> list[Group]:
    """Those that are measured, by how; the largest group first."""
    found: dict[str, list[BoardRun]] = {}
    for run in runs:
        if run.results is not None:
            found.setdefault(run.way, []).append(run)
    return sorted((Group(ordered(held)) for held in found.values()), key=lambda group: -len(group.runs))


def ordered(runs: Sequence[BoardRun]) -> list[BoardRun]:
    """By the mean score of the experiment, then by name."""
    held: dict[str, list[BoardRun]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        held.setdefault(run.experiment, []).append(run)

    def place(found: list[BoardRun]) -> tuple[float, str]:
        scores = [run.student.pass_at_1 if run.student else -1.0 for run in found]
        return -statistics.mean(scores), found[0].name

    return [run for found in sorted(held.values(), key=place) for run in found]


def planned(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The plans of finished stages under the recipe's keys, with the student and the files that were read.
    Versions, and digests of what stages made, are left out."""
    config = {stage: manifest.config for stage, manifest in manifests.items()}
    generate, train, measured = (config.get(stage, {}) for stage in ("generate", "train", "eval"))
    seeds = {stage: manifest.seed for stage, manifest in manifests.items()}
    common = seeds.get("problems", seeds.get("filter", next(iter(seeds.values()))))
    own = {f"{stage}.seed": seeds[stage] for stage in OWN_SEEDS if stage in seeds}
    sections = {
        "problems": config.get("problems", {}).get("problems"),
        "generate": {key: value for key, value in generate.items() if key != "verifiers"},
        "judge": config.get("judge"),
        "filter": config.get("filter", {}).get("filter"),
        "polish": config.get("polish", {}).get("polish"),
        "train": {**train.get("train", {}), "student": train.get("student", {}).get("model")},
        "eval": {key: measured.get(key) for key in ("tasks", "samples", "sampling", "prompts")},
        "student": {
            key: str(value) if isinstance(value, list) else value
            for key, value in train.get("student", {}).items()
            if key != "model"
        },
        "files": files_read(manifests),
        "revisions": config.get("problems", {}).get("revisions"),
    }
    return {**{name: held for name, held in sections.items() if held}, "seed": common, **own}


def files_read(manifests: dict[str, Manifest]) -> dict[str, str]:
    """The start of the digest of each file of the user's: sources, the mix, imported traces."""
    inputs = {stage: manifest.inputs for stage, manifest in manifests.items()}
    mixed = {name: digest for name, digest in inputs.get("filter", {}).items() if name.startswith("mix.")}
    imported = {name: digest for name, digest in inputs.get("generate", {}).items() if name == "file"}
    return {name: d[:16] for name, d in {**inputs.get("problems", {}), **mixed, **imported}.items()}


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value with its path. What is in a list of names, as the rules are, is a setting of its own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flattened(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            if not isinstance(inner, dict):
                yield f"{path} {inner}", LISTED
            elif len(inner) == 1:  # a rule with its parameters
                yield f"{path} {next(iter(inner))}", LISTED
                yield from flattened(inner, path)
            else:
                yield from flattened(inner, f"{path}.{number}")
    elif value is not None:
        yield path, str(value)


def scores_table(group: Group) -> Table:
    """One row a run: what differs, every model's score, and what the run took."""
    rows = [
        [
            run.name,
            some(group.differences(run)),
            *[score_of(run, model) for model in group.models],
            gain_of(run),
            *taken(run),
        ]
        for run in group.runs
    ]
    pairs = ["student - base"]
    return Table(["run", "what differs", *group.models, *pairs, *TAKEN], rows)


def differences_table(group: Group) -> Table:
    """Every setting that is not the same in all runs, one row a run."""
    rows = [[run.name, *(group.setting(run, key) for key in group.differing)] for run in group.runs]
    return Table(["run", *group.differing], rows)


TAKEN = ["teacher tokens", "tokens trained on", "wall time", "engine time", "cost"]


def some(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - MAX_SHOWN} more" if len(texts) > MAX_SHOWN else ""
    return ", ".join(texts[:MAX_SHOWN]) + more if texts else "-"


def score_of(run: BoardRun, model: str) -> str:
    held = run.headline.models.get(model)
    return score(held.pass_at_1, held.ci95) if held else "-"


def gain_of(run: BoardRun) -> str:
    held = run.headline.paired.get("student-base")
    return points(held.delta, held.ci95) if held else "-"


def taken(run: BoardRun) -> list[str]:
    """Tokens, time and money. What is shared with another run counts in full here and there."""
    usage = {stage: manifest.usage for stage, manifest in run.manifests.items()}
    bought = usage["generate"].output_tokens if "generate" in usage else None
    wall = sum(manifest.seconds for manifest in run.manifests.values())
    engine = sum(held.engine_seconds or 0 for held in usage.values())
    # polish holds its device while it scores and trains too
    parts = polish_seconds(usage["polish"]) if "polish" in usage else {}
    paid = engine + sum(took for name, took in parts.items() if name != "sampling")
    return [
        count(bought) if bought else "-",
        count(trained) if (trained := trained_tokens(run)) else "-",
        seconds(wall),
        seconds(engine) if engine else "-",
        cost(run, paid),
    ]


def trained_tokens(run: BoardRun) -> float | None:
    """Of all passes over the examples."""
    held = run.manifests.get("train")
    epochs = held.config.get("train", {}).get("epochs") if held else None
    return epochs * held.usage.tokens_per_epoch if held and epochs and held.usage.tokens_per_epoch else None


def cost(run: BoardRun, engine_seconds: float) -> str:
    """By the prices that the recipe of its report states: of engine time, which in polish is all
    that it takes of its device, and of the teacher's tokens."""
    held = run.manifests.get("report")
    stated = Report.model_validate(held.config.get("report", {})) if held else Report()
    sums: dict[str, float] = defaultdict(float)
    if stated.price_per_engine_hour is not None and engine_seconds:
        sums[stated.currency] += engine_seconds / 3600 * stated.price_per_engine_hour
    if stated.price is not None:
        for tokens in filter(None, teacher_tokens(run.manifests).values()):
            sums[stated.price.currency] += stated.price.of(*tokens)
    return ", ".join(f"{total:.2f} {currency}" for currency, total in sums.items()) or "-"


def spread_table(group: Group) -> Table | None:
    """Experiments of several seeds: the student's mean, its range, and the interval of the mean."""
    rows = []
    keys = [key for key in group.differing if key not in SEEDS]
    for runs in group.experiments:
        values = [run.student.pass_at_1 for run in runs if run.student is not None]
        if len(values) > 1:
            low, high = min(values), max(values)
            rows.append(
                [
                    some(group.differences(runs[0], keys)) if keys else runs[0].name,
                    str(len(values)),
                    mean_of(values),
                    f"{percent(low)} to {percent(high)}",
                ]
            )
    return Table(["experiment", "seeds", "mean of the students", "range"], rows) if rows else None


def mean_of(values: Sequence[float]) -> str:
    """With its interval, which nothing is known of where all values are the same."""
    if len(set(values)) == 1:
        return f"{percent(values[0])}, all alike"
    return score(statistics.mean(values), mean_interval(values))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean of two or more by Student's t, within 0 and 1."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return max(0.0, statistics.mean(values) - half), min(1.0, statistics.mean(values) + half)


def unmeasured_table(runs: Sequence[BoardRun]) -> Table | None:
    """Runs without a finished eval, and how far each came."""
    rows = [[run.name, list(run.manifests)[-1]] for run in runs if run.results is None]
    return Table(["run", "last finished stage"], rows) if rows else None


def show_board(runs: Path, names: Sequence[str]) -> None:
    """Write board.html, and print the board and where the page is on stdout."""
    from pipeline.filter.funnel import open_console
    from pipeline.report.board_page import board_page

    held = read_board(runs, names)
    groups, left = groups_of(held), unmeasured_table(held)
    console = open_console()
    for group in groups:
        console.print(terminal_table(scores_table(group), f"Measured on {group.measured}"))
        if (spread := spread_table(group)) is not None:
            console.print(terminal_table(spread, "Over seeds"))
    if left is not None:
        console.print(terminal_table(left, "Not measured yet"))
    (runs / BOARD).write_text(board_page(groups, left), encoding="utf-8")
    print(runs / BOARD)


def terminal_table(table: Table, title: str) -> Any:
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(title=Text(title), title_justify="left")
    for head in table.head:
        drawn.add_column(Text(head), overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # no markup of a name counts
    return drawn
