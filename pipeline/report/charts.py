"""Charts by matplotlib as SVG data URIs, each in a light and a dark version."""

import base64
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.report.gather import Findings, funnel_of
from pipeline.report.numbers import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# colours that people with the common kinds of colour blindness tell apart, for a light and a dark ground
LIGHT = {"ink": "#1c2430", "soft": "#5d6b7c", "grid": "#d9dee5", "lost": "#c4432b"}
DARK = {"ink": "#e6eaf0", "soft": "#9aa7b8", "grid": "#38424f", "lost": "#ef7a62"}
MODELS = {
    "base": ("#7b8794", "#a3afbd"),
    "unpolished": ("#0891b2", "#22d3ee"),
    "student": ("#1f6feb", "#6ba6ff"),
    "teacher": ("#b7791f", "#f0b04f"),
}
WIDTH = 5.4  # inches: on a phone 370 pixels wide the text is then still 9 pixels high
WIDE = 11.0  # where the page is as wide as it gets
MAX_LABEL = 24  # characters: two thirds of the width are left for the bars
OTHERS = [("#7c3aed", "#b794f4"), ("#0f766e", "#4fd1c5"), ("#be185d", "#f687b3")]
OTHERS += [("#4d7c0f", "#a3e635"), ("#7f1d1d", "#fca5a5"), ("#164e63", "#67e8f9")]
# dashes, marker and thickness: what is drawn later is thinner and open, so that of two curves that lie on
# each other both are seen
STROKES = [("-", "o", 3.2), ("--", "s", 1.9), (":", "^", 1.5), ("-.", "D", 1.2)]


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture for each colour scheme, as data URIs, with the words for who cannot see it; `wide` holds
    the same two for a wide page, where the chart takes all of it."""

    light: str
    dark: str
    words: str
    wide: tuple[str, str] | None = None


def draw(
    paint: Callable[["Axes", bool], None], size: tuple[float, float], words: str, *, wide: bool = False
) -> Chart:
    """`paint` draws on axes, told whether the ground is dark; `size` is in inches."""
    light, dark = (render(paint, size, ground) for ground in (False, True))
    if not wide:
        return Chart(light, dark, words)
    return Chart(
        light, dark, words, (render(paint, (WIDE, size[1]), False), render(paint, (WIDE, size[1]), True))
    )


def render(paint: Callable[["Axes", bool], None], size: tuple[float, float], dark: bool) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    scheme = DARK if dark else LIGHT
    settings: Any = {
        "text.color": scheme["ink"],
        "axes.labelcolor": scheme["ink"],
        "axes.edgecolor": scheme["grid"],
        "xtick.color": scheme["soft"],
        "ytick.color": scheme["ink"],
        "grid.color": scheme["grid"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "svg.hashsalt": "retort",  # the same input gives the same bytes
    }
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        paint(axes, dark)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def colour(model: str, models: list[str], dark: bool) -> str:
    if model in MODELS:
        return MODELS[model][dark]
    extra = [name for name in models if name not in MODELS]
    return OTHERS[extra.index(model) % len(OTHERS)][dark]


def scores_chart(findings: Findings) -> Chart:
    """pass@1 of every model on every task, with 95% intervals."""
    tasks, models = findings.pool_first(), list(findings.models)

    def paint(axes: "Axes", dark: bool) -> None:
        step = 0.8 / len(models)
        for place, model in enumerate(models):
            scores = [entry.models[model] for _, entry in tasks]
            values = [100 * score.pass_at_1 for score in scores]
            below = [100 * (score.pass_at_1 - score.ci95[0]) for score in scores]
            above = [100 * (score.ci95[1] - score.pass_at_1) for score in scores]
            at = [row + (place - (len(models) - 1) / 2) * step for row in range(len(tasks))]
            ink = (DARK if dark else LIGHT)["ink"]
            axes.barh(at, values, 0.9 * step, color=colour(model, models, dark), label=model)
            axes.errorbar(values, at, xerr=[below, above], fmt="none", ecolor=ink, capsize=3, lw=1.2)
        axes.set_yticks(range(len(tasks)), [tick_label(name) for name, _ in tasks])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("pass@1, percent, with 95% interval")
        axes.grid(axis="x", lw=0.6)
        axes.set_axisbelow(True)
        legend_above(axes, models)

    return draw(paint, (WIDTH, 1.2 + 0.28 * len(models) * len(tasks)), "pass@1 by task and model", wide=True)


def tick_label(name: str) -> str:
    """A name that leaves room for the chart: its start and its end where it is long."""
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 9]}...{name[-6:]}"


def legend_above(axes: "Axes", names: list[str]) -> None:
    """As many columns as the picture is wide enough for; `names` are those that the parts were drawn with."""
    handles, _ = axes.get_legend_handles_labels()
    figure: Any = axes.figure
    # inches: the mark, and each letter
    columns = int(figure.get_size_inches()[0] / (0.6 + 0.085 * max(map(len, names))))
    labels = [tick_label(name) for name in names]
    ncols = max(1, min(columns, len(names)))
    figure.legend(handles, labels, loc="outside upper center", ncols=ncols, frameon=False)


def funnel_chart(findings: Findings) -> Chart | None:
    """What is left after each step; what was lost before it is drawn behind it."""
    steps = funnel_of(findings.manifests)
    if not steps:
        return None

    def paint(axes: "Axes", dark: bool) -> None:
        scheme = DARK if dark else LIGHT
        top = max(step.count + sum(step.lost.values()) for step in steps)
        for row, step in enumerate(steps):
            lost = sum(step.lost.values())
            axes.barh(row, step.count, color=MODELS["student"][dark], height=0.62)
            axes.barh(row, lost, left=step.count, color=scheme["lost"], alpha=0.45, height=0.62)
            text = f" {step.count:,}" + (f" (-{lost:,})" if lost else "")
            axes.text(step.count + lost, row, text, va="center", color=scheme["ink"])
        axes.set_yticks(range(len(steps)), [step.label for step in steps])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(top, 1))
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)

    return draw(
        paint, (WIDTH, 0.5 + 0.42 * len(steps)), "how many problems and traces each stage left", wide=True
    )


def budget_chart(findings: Findings) -> Chart | None:
    """pass@1 against the allowed tokens, with bands; of the models whose tokens are known."""
    _, entry = findings.headline
    models = sorted(entry.budget, key=lambda model: model != "student")
    if not models:
        return None

    def paint(axes: "Axes", dark: bool) -> None:
        for place, model in enumerate(models):
            curve = entry.budget[model]
            allowed = [point.max_tokens for point in curve]
            ink, (dashes, marker, thick) = colour(model, models, dark), STROKES[min(place, len(STROKES) - 1)]
            low, high = ([100 * point.ci95[end] for point in curve] for end in (0, 1))
            axes.fill_between(allowed, low, high, color=ink, alpha=0.2, lw=0)
            values = [100 * point.pass_at_1 for point in curve]
            axes.plot(allowed, values, dashes, color=ink, lw=thick, marker=marker, ms=4, label=model)
        axes.set_xscale("log", base=2)
        axes.set_xticks(allowed[::-2], [f"{budget:,}" for budget in allowed[::-2]])
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("allowed output tokens")
        axes.set_ylabel("pass@1, percent")
        axes.grid(lw=0.6)
        legend_above(axes, models)

    return draw(
        paint, (WIDTH, 3.2), "pass@1 against the number of tokens that a response may take", wide=True
    )


def lengths_chart(lengths: dict[str, Counter[int]]) -> Chart | None:
    """Output tokens of kept and of dropped traces, as shares of each; `lengths` counts traces by tokens."""
    if not lengths:
        return None
    top = max(max(values) for values in lengths.values())

    def paint(axes: "Axes", dark: bool) -> None:
        bins = [top * edge / 40 for edge in range(41)] if top else [0, 1]
        shades = {"kept": MODELS["student"][dark], "dropped": (DARK if dark else LIGHT)["lost"]}
        for name, values in lengths.items():
            weights = [100 * number / values.total() for number in values.values()]
            axes.hist([*values], bins, weights=weights, color=shades[name], alpha=0.55, label=name)
        axes.set_xlabel("output tokens")
        axes.set_ylabel("percent of the group")
        axes.grid(axis="y", lw=0.6)
        axes.set_axisbelow(True)
        legend_above(axes, [f"{name} ({values.total():,})" for name, values in lengths.items()])

    return draw(paint, (WIDTH, 2.8), "lengths of kept and dropped traces")


def polish_chart(findings: Findings) -> Chart | None:
    """The share of right responses by round: of the round's own, and of the held-out problems."""
    rows = [row for row in findings.metrics.get("polish", []) if "round" in row]
    kinds = {
        "its own problems": ("pass_rate", "unpolished", ""),
        "held-out problems": ("held_out", "student", "o"),
    }
    curves = {
        label: ([row["round"] for row in held], [100 * row[key] for row in held], model, marker)
        for label, (key, model, marker) in kinds.items()
        if (held := [row for row in rows if row.get(key) is not None])
    }
    if not any(len(at) > 1 for at, *_ in curves.values()):
        return None

    def paint(axes: "Axes", dark: bool) -> None:
        for label, (at, values, model, marker) in curves.items():
            axes.plot(at, values, color=MODELS[model][dark], lw=1.5, marker=marker, ms=4, label=label)
        axes.set_xlabel("rounds done")
        axes.set_ylabel("right responses, percent")
        axes.set_ylim(0, 100)
        axes.grid(lw=0.6)
        legend_above(axes, list(curves))

    return draw(paint, (WIDTH, 2.8), "share of right responses by round of polish")


def loss_chart(rows: list[dict[str, Any]], stage: str) -> Chart | None:
    """Loss of a stage by step, with that of the examples held out where there are some."""
    points = curve_of(rows, "loss")
    if len(points) < 2:
        return None
    held_out = curve_of(rows, "eval_loss")
    label = "training loss" if stage == "train" else f"loss of {stage}"

    def paint(axes: "Axes", dark: bool) -> None:
        axes.plot(*zip(*points, strict=True), color=MODELS["student"][dark], lw=1.5, label=label)
        if held_out:
            ink = MODELS["teacher"][dark]
            axes.plot(*zip(*held_out, strict=True), "--s", color=ink, lw=1.5, ms=4, label="held out")
            legend_above(axes, [label, "held out"])
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(lw=0.6)

    return draw(paint, (WIDTH, 2.8), f"{label} by step")


def rate_chart(rows: list[dict[str, Any]], stage: str) -> Chart | None:
    """The learning rate of a stage by step."""
    points = curve_of(rows, "learning_rate")
    if len(points) < 2:
        return None

    def paint(axes: "Axes", dark: bool) -> None:
        axes.plot(*zip(*points, strict=True), color=MODELS["student"][dark], lw=1.5)
        axes.set_xlabel("step")
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.grid(lw=0.6)

    return draw(paint, (WIDTH, 2.8), f"learning rate of {stage} by step")


def curve_of(rows: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """The steps that state a value, with it."""
    return [(row["step"], row[name]) for row in rows if "step" in row and name in row]


def board_chart(rows: list[tuple[str, dict[str, tuple[float, Interval]]]]) -> Chart:
    """A point with its interval for each model of each run; `rows` are names with shares and intervals."""
    models = list(dict.fromkeys(model for _, held in rows for model in held))

    def paint(axes: "Axes", dark: bool) -> None:
        step = 0.5 / len(models)
        for place, model in enumerate(models):
            drawn = [(row, *held[model]) for row, (_, held) in enumerate(rows) if model in held]
            at = [row + (place - (len(models) - 1) / 2) * step for row, _, _ in drawn]
            values = [100 * value for _, value, _ in drawn]
            errors = [
                [100 * (value - ci95[0]) for _, value, ci95 in drawn],
                [100 * (ci95[1] - value) for _, value, ci95 in drawn],
            ]
            marker = STROKES[min(place, len(STROKES) - 1)][1]
            ink = colour(model, models, dark)
            axes.errorbar(
                values, at, xerr=errors, fmt=marker, ms=5, color=ink, capsize=3, lw=1.4, label=model
            )
        axes.set_yticks(range(len(rows)), [tick_label(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("pass@1, percent, with 95% interval")
        axes.grid(axis="x", lw=0.6)
        legend_above(axes, models)

    return draw(paint, (WIDTH, 1.2 + 0.4 * len(rows)), "pass@1 of every run, with its interval", wide=True)
