"""What the page, report.md and the model card share: tables as rows of text, and sentences.

A table that is None, or a sentence, is of something that this run does not have.
"""

import json
from collections import Counter
from collections.abc import Mapping

from pipeline.context import Context
from pipeline.recipe.cards import called
from pipeline.report.gather import Findings, funnel_of
from pipeline.report.numbers import count, p_value, points, score, seconds, short
from pipeline.report.results import POOLED, Consensus, Score, TaskResult
from pipeline.report.table import Table
from pipeline.run.contract import Manifest, Usage
from pipeline.verify.judge import Rate

BUDGET_NOTE = (
    "What each model would score if its responses were cut at fewer tokens, from the same samples: a limit "
    "does not change the tokens before it, so this is exact. A cut response counts as wrong."
)
CONTAMINATION_NOTE = (
    "How many questions of each task also stand in the training problems or traces, measured again on what "
    "the student was trained on, and the scores without them."
)
JUDGE_NOTE = (
    "{model} was asked where a verifier could not tell. Hidden among its work were canaries: the gold answer "
    "itself, which it must accept, and answers that it must refuse (another gold, nothing, a colon, an "
    "opening phrase, the question again, an order to accept, a forged reply). A judge that accepts more "
    "than {accepts:.1%} of these is not used. Intervals are 95%."
)
NUM_ROUNDS_SHOWN = 12
JUDGE_RATES = ("false_accept", "false_reject")
NOT_CONTAMINATED_NOTE = "Not measured: no student that was trained in this run is compared."


def scores_table(entry: TaskResult) -> Table:
    """One row a model: every score of one task with its interval."""
    sizes = [f"pass@{size}" for size in first_score(entry).pass_at_k]
    rows = [
        [
            model,
            f"{held.n:,} x {held.k}",
            score(held.pass_at_1, held.ci95),
            *[score(each.value, each.ci95) for each in held.pass_at_k.values()],
            consensus(held.cons_at_k),
            mean_tokens(held),
            score(held.truncated, held.intervals.truncated),
            score(held.no_answer, held.intervals.no_answer),
        ]
        for model, held in entry.models.items()
    ]
    return Table(["model", "n x k", "pass@1", *sizes, "cons@k", "tokens", "cut", "no answer"], rows)


def consensus(held: Consensus) -> str:
    return str(held.reason) if held.value is None or held.ci95 is None else score(held.value, held.ci95)


def first_score(entry: TaskResult) -> Score:
    """One of its models': n, k and the sizes of pass@k are the same for all."""
    return next(iter(entry.models.values()))


def mean_tokens(held: Score) -> str:
    bounds = held.intervals.mean_tokens  # None at one question
    extent = f"{bounds[0]:,.0f}, {bounds[1]:,.0f}" if bounds else "no interval of one"
    return "-" if held.mean_tokens is None else f"{held.mean_tokens:,.0f} [{extent}]"


def paired_table(findings: Findings) -> Table | None:
    """One row a task and pair of models: difference, p, and what this n could have found."""
    rows = [
        [
            task,
            " - ".join(pair.rsplit("-", 1)),
            points(held.delta, held.ci95),
            f"{p_value(held.p)} ({held.test})",
            p_value(held.p_holm) if held.p_holm is not None else "-",
            f"{100 * held.mde:.1f} points",
        ]
        for task, entry in findings.pool_first()
        for pair, held in entry.paired.items()
    ]
    head = ["task", "difference", "paired", "p", "p (Holm)", "could detect"]
    return Table(head, rows) if rows else None


def budget_table(entry: TaskResult) -> Table:
    """The budget curve of every model, side by side."""
    rows = [
        [f"{points[0].max_tokens:,}", *[score(point.pass_at_1, point.ci95) for point in points]]
        for points in zip(*entry.budget.values(), strict=True)
    ]
    return Table(["tokens", *entry.budget], rows)


def funnel_table(findings: Findings) -> Table:
    rows = [
        [step.stage, step.label, count(step.count), by_name(step.lost)]
        for step in funnel_of(findings.manifests)
    ]
    return Table(["stage", "what", "count", "lost before it, by reason"], rows)


def difficulty_table(findings: Findings) -> Table | None:
    """What filter kept of easy and of hard problems, by the share of a problem's traces that are right."""
    filtered = findings.manifests.get("filter")
    held: dict[str, dict[str, int]] = filtered.notes.get("by_pass_rate", {}) if filtered else {}
    rows = [
        [
            column.rstrip("%"),
            count(found["problems"]),
            count(found["problems_kept"]),
            f"{100 * found['problems_kept'] / found['problems']:.0f}",
            count(found["traces"]),
            count(found["kept"]),
            f"{100 * found['kept'] / found['traces']:.0f}",
        ]
        for column, found in held.items()
    ]
    head = ["right of 100", "problems", "with an example", "of 100", "traces", "kept", "of 100"]
    return Table(head, rows) if rows else None


def difficulty_note(findings: Findings) -> str:
    """Of problems that no trace solves, what became."""
    filtered = findings.manifests.get("filter")
    wrong = filtered.notes.get("unsolved") if filtered else None
    said = "Verification keeps what the teacher can do. What was kept, by the share of right traces:"
    if wrong is not None:
        said += (
            f" {count(wrong)} of the kept are wrong: one trace of a problem that none solves "
            "(filter.select.unsolved: keep_one)."
        )
    return said


def by_name(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items()) or "-"


def judge_table(findings: Findings) -> Table | None:
    """One row a place where the judge was asked: what it said, and its mistakes on canaries."""
    rows = []
    manifest = findings.manifests.get("judge")
    if manifest is not None:
        held, counts = manifest.notes, manifest.counts
        told = {status: held[status] for status in ("correct", "wrong") if held.get(status)}
        rates = [Rate(held["audit"][name]["mistaken"], held["audit"][name]["total"]) for name in JUDGE_RATES]
        said = by_name({**told, **counts.dropped, **counts.failed})
        rows.append(["traces", count(counts.num_in), said, count(held["canaries"]), *map(str, rates)])
    facts = findings.results.judge
    if facts is not None:
        rates = [Rate(rate.mistaken, rate.total) for rate in (facts.false_accept, facts.false_reject)]
        said = by_name(dict(sorted(facts.samples.items())))
        rows.append(
            [
                "eval samples",
                count(sum(facts.samples.values())),
                said,
                count(facts.canaries),
                *map(str, rates),
            ]
        )
    head = ["asked about", "count", "said", "canaries", "false accepts", "false rejects"]
    return Table(head, rows) if rows else None


def judge_note(findings: Findings) -> str:
    judge = findings.recipe.judge
    return JUDGE_NOTE.format(
        model=called(judge.model) if judge else "", accepts=judge.max_false_accept if judge else 0
    )


def majority_note(findings: Findings) -> str | None:
    """How many problems had no gold answer; None where all had one."""
    manifest = findings.manifests.get("filter")
    sources = (manifest.notes.get("without_gold") or {}) if manifest else {}
    if not sources:
        return None
    found = sum(counts.get("majority", 0) for counts in sources.values())
    lost = sum(counts.get("no_majority", 0) for counts in sources.values())
    few = sum(counts.get("too_few_samples", 0) for counts in sources.values())
    said = (
        f"{found + lost + few:,} problems had no gold answer. For {found:,} of them the majority of their "
        "own samples is the gold (gold_from: majority), which nobody checked; the traces of the other "
        f"{lost + few:,} were dropped."
    )
    lacking = f" Of these {few:,} have too few samples to tell: others failed, or were never taken."
    return said + lacking if few else said


def cost_table(findings: Findings) -> Table:
    rows = []
    for name, manifest in findings.manifests.items():
        usage = manifest.usage
        tokens = [count(number) if number else "-" for number in (usage.prompt_tokens, usage.output_tokens)]
        engine = seconds(usage.engine_seconds) if usage.engine_seconds else "-"
        rows.append([name, seconds(manifest.seconds), engine, *tokens, tokens_per_second(manifest)])
    head = ["stage", "wall time", "engine time", "prompt tokens", "output tokens", "tokens/s"]
    return Table(head, rows)


def tokens_per_second(manifest: Manifest) -> str:
    """Sampled ones by engine time, trained ones by training time; of adopted traces nobody took the time."""
    usage, epochs = manifest.usage, manifest.config.get("train", {}).get("epochs")
    if usage.train_seconds and usage.tokens_per_epoch and epochs:
        return count(epochs * usage.tokens_per_epoch / usage.train_seconds)
    if usage.tokens_per_second:
        return count(usage.tokens_per_second)
    if not usage.output_tokens or not usage.engine_seconds or usage.adopted or usage.found:
        return "-"
    return count(usage.output_tokens / usage.engine_seconds)


def hardware_note(findings: Findings) -> str:
    """Which machines made it, each with its stages."""
    stages: dict[str, list[str]] = {}
    for name, manifest in findings.manifests.items():
        for machine in manifest.hardware.get("machines", [manifest.hardware]):
            held = {"processor": "unknown", "cores": "?", "memory_gib": "?", "gpus": [], **machine}
            gpus = [f"{number} x {gpu}" for gpu, number in Counter(held["gpus"]).items()]
            said = f"{held['processor']}, {held['cores']} cores, {held['memory_gib']} GiB"
            of_it = f"{name}: {held['shards']:,} shards" if "shards" in held else name
            stages.setdefault(f"{said}, {', '.join(gpus) or 'no GPU'}", []).append(of_it)
    if len(stages) == 1:
        return f"Made on: {next(iter(stages))}."
    parts = [f"{machine} ({', '.join(names)})" for machine, names in stages.items()]
    return f"Made on: {'; '.join(parts)}."


def gap_text(findings: Findings) -> str | None:
    """The recovered gap of the headline in words, None where not all three models were compared."""
    gap = findings.headline[1].gap_recovered
    if gap is None:
        return None
    if gap.value is None or gap.ci95 is None:
        return f"Gap recovered: not defined, {gap.reason}."
    return f"Gap recovered: {score(gap.value, gap.ci95)} of the way from base to teacher."


def contamination_table(findings: Findings) -> Table | None:
    """One row a task and model: the score with and without the questions that training has seen."""
    rows = []
    for task, entry in findings.pool_first():
        held = entry.contamination
        if held is None:
            continue
        if not held.flagged:
            rows.append([task, f"0 of {held.questions:,}", "-", "-", "-", "-"])
            continue
        seen = f"{held.flagged:,} of {held.questions:,}"
        for model, whole in entry.models.items():
            part = (held.without_flagged or {}).get(model)
            rest = score(part.pass_at_1, part.ci95) if part else "no question is left"
            rows.append([task, seen, by_name(held.rules), model, score(whole.pass_at_1, whole.ci95), rest])
    head = ["task", "flagged questions", "by rule", "model", "pass@1", "without the flagged"]
    return Table(head, rows) if rows else None


def forced_table(findings: Findings) -> Table | None:
    """pass@1 where the thinking was cut at a budget, closed, and the answer sampled anew."""
    rows = [
        [task, model, f"{point.thinking_tokens:,}", score(point.pass_at_1, point.ci95)]
        for task, entry in findings.results.tasks.items()
        for model, curve in entry.forced_budget.items()
        for point in curve
    ]
    return Table(["task", "model", "thinking tokens", "pass@1"], rows) if rows else None


def ledger_table(findings: Findings) -> Table | None:
    """What a kept trace and a point of the student's score cost, in tokens, engine time and money."""
    bought, filtered = findings.manifests.get("generate"), findings.manifests.get("filter")
    if bought is None or filtered is None:
        return None
    kept = filtered.counts.kept
    # imported traces may be without a count of tokens, and adopted ones took no engine time here
    tokens, time = bought.usage.output_tokens, bought.usage.engine_seconds
    rows = [
        ["teacher output tokens per kept trace", count(tokens / kept) if kept and tokens else "-"],
        ["teacher engine time per kept trace", f"{time / kept:.3f} s" if kept and time else "-"],
        ["teacher output tokens per point gained", per_point(findings, tokens) if tokens else "-"],
    ]
    rows += polish_costs(findings)
    rows += token_rows(findings)
    price, currency = findings.recipe.report.price_per_engine_hour, findings.recipe.report.currency
    for name, manifest in findings.manifests.items():
        took, time = "engine time", manifest.usage.engine_seconds or 0
        if name == "polish":
            took, time = "sampling, scoring and training", sum(polish_seconds(manifest.usage).values())
        if price is not None and time:
            what = f"{name}: {took} at {price:g} {currency} an hour"
            rows.append([what, f"{time / 3600 * price:.4f} {currency}"])
    return Table(["what", "cost"], rows)


def token_rows(findings: Findings) -> list[list[str]]:
    """What the teacher's tokens cost where the recipe has a price for them: those that were bought here."""
    price = findings.recipe.report.price
    rows: list[list[str]] = []
    if price is None:
        return rows
    for name, tokens in teacher_tokens(findings.manifests).items():
        what = f"{name}: the teacher's tokens at {price} of prompt and of output"
        rows.append([what, "unknown" if tokens is None else f"{price.of(*tokens):.4f} {price.currency}"])
    return rows


def teacher_tokens(manifests: Mapping[str, Manifest]) -> dict[str, tuple[float, float] | None]:
    """Prompt and output tokens that were bought of the teacher, by stage; None where nobody counted them."""
    bought = {}
    if (generate := manifests.get("generate")) is not None:
        bought["generate"] = usage_bought(generate.usage)
    if (evaluated := manifests.get("eval")) is not None and "teacher" in evaluated.usage.models:
        held = evaluated.usage.models["teacher"]
        names = ("prompt_tokens", "output_tokens", "sampled", "adopted")
        bought["eval"] = usage_bought(Usage(**{name: held.get(name) for name in names}))
    return bought


def usage_bought(usage: Usage) -> tuple[float, float] | None:
    """Prompt and output tokens without the share of what was adopted; None where they were not counted."""
    if usage.prompt_tokens is None or usage.output_tokens is None:
        return None
    sampled, adopted = usage.sampled or 0, usage.adopted or 0
    share = sampled / (sampled + adopted) if adopted else 1.0
    output = (
        usage.output_tokens * share if usage.sampled_output_tokens is None else usage.sampled_output_tokens
    )
    return usage.prompt_tokens * share, output


def polish_costs(findings: Findings) -> list[list[str]]:
    """What polish took, and what of it a point of student - unpolished cost; nothing without polish."""
    manifest = findings.manifests.get("polish")
    if manifest is None:
        return []
    usage = manifest.usage
    times = polish_seconds(usage)
    times["in all"] = sum(times.values())  # the manifest's own seconds are of the last process alone
    tokens = {"that the student sampled": usage.output_tokens, "that the teacher scored": usage.scored_tokens}
    return [
        *([f"polish: tokens {what}", count(number) if number else "-"] for what, number in tokens.items()),
        ["polish: time", ", ".join(f"{seconds(took)} {what}" for what, took in times.items() if took)],
        [
            "polish: tokens scored per point gained by it",
            per_point(findings, usage.scored_tokens, "student-unpolished") if usage.scored_tokens else "-",
        ],
    ]


def polish_seconds(usage: Usage) -> dict[str, float]:
    """What all processes of polish took, by part."""
    parts = {
        "sampling": usage.engine_seconds,
        "scoring": usage.scoring_seconds,
        "training": usage.train_seconds,
    }
    return {name: took for name, took in parts.items() if took}


def polish_note(findings: Findings) -> str | None:
    """How many rounds there were, why no more, and what they brought; None without polish."""
    manifest, section = findings.manifests.get("polish"), findings.recipe.polish
    if manifest is None or section is None:
        return None
    notes = manifest.notes
    rounds = notes.get("rounds", section.rounds)
    said = (
        f"{rounds:,} of {section.rounds:,} rounds of {section.problems_per_round:,} problems x "
        f"{section.samples:,}, divergence {section.divergence}. Which responses of a round are right is "
        "measured and teaches nothing."
    )
    if notes.get("stopped"):
        said += f" It stopped at {notes['stopped']}."
    if notes.get("kept_round") is not None:
        said += f" The student is the one after {notes['kept_round']:,} rounds"
        said += ", the best on held-out problems." if section.held_out else "."
    gain = findings.headline[1].paired.get("student-unpolished")
    if gain is not None:
        said += f" student - unpolished: {points(gain.delta, gain.ci95)}."
    return said


def polish_table(findings: Findings) -> Table | None:
    """The curve in figures: the rounds after which the held-out problems were answered, else some of them."""
    rows = [row for row in findings.metrics.get("polish", []) if "round" in row]
    if not rows:
        return None
    measured = [row for row in rows if row.get("held_out") is not None]
    shown = measured or rows[:: max(1, len(rows) // NUM_ROUNDS_SHOWN)]
    columns = {
        "divergence": ("divergence", "{:.4f}"),
        "right, of its own": ("pass_rate", "{:.1%}"),
        "right, held out": ("held_out", "{:.1%}"),
        "tokens": ("mean_length", "{:,.0f}"),
        "cut": ("cut_share", "{:.1%}"),
        "entropy": ("entropy", "{:.3f}"),
        "importance ratio": ("importance_ratio", "{:.3f}"),
    }
    held = {
        head: form for head, (key, form) in columns.items() if any(row.get(key) is not None for row in rows)
    }
    lines = [
        [
            f"{row['round']:,}",
            *(
                form.format(value) if (value := row.get(columns[head][0])) is not None else "-"
                for head, form in held.items()
            ),
        ]
        for row in shown
    ]
    return Table(["after round", *held], lines)


def per_point(findings: Findings, tokens: int, pair: str = "student-base") -> str:
    """Tokens for each percentage point of a difference, with the interval of that difference."""
    gain = findings.headline[1].paired.get(pair)
    if gain is None or gain.ci95[0] <= 0:
        return "- (no gain that is separated from zero)"
    low, high = gain.ci95
    value, least, most = (tokens / (100 * share) for share in (gain.delta, high, low))
    return f"{value:,.0f} [{least:,.0f}, {most:,.0f}]"


def forecast_table(findings: Findings) -> Table | None:
    """What generate's pilot forecast beside what came; None where there was no pilot."""
    manifest = findings.manifests.get("generate")
    rows = []
    for name, held in (manifest.notes.get("forecast") or {} if manifest else {}).items():
        span = f" [{held['low']:,}, {held['high']:,}]" if "low" in held else ""
        ratio = f"{held['ratio']:.2f}" if held["ratio"] is not None else "-"
        fact = f"{held['fact']:,}" if held["fact"] is not None else "-"
        rows.append([name.replace("_", " "), f"{held['forecast']:,}{span}", fact, ratio])
    return Table(["generate", "forecast", "fact", "forecast / fact"], rows) if rows else None


def provenance_tables(findings: Findings) -> list[Table]:
    """Stages with their fingerprints and code, models, sources and tasks with their licences."""
    stages = [
        [
            name,
            short(manifest.fingerprint),
            short(manifest.code["commit"], 12) + (" (changed)" if manifest.code["dirty"] else ""),
            manifest.started,
            seconds(manifest.seconds),
        ]
        for name, manifest in findings.manifests.items()
    ]
    models = [[m.name, m.model, m.weights, m.card, m.licence, m.outputs] for m in findings.models.values()]
    sources = [[name, count(kept), licence] for (name, licence), kept in findings.sources.most_common()]
    tasks = [
        [name, count(first_score(entry).n), str(entry.task.version or "-"), entry.task.licence]
        for name, entry in findings.results.tasks.items()
        if entry.task is not None
    ]
    return [
        Table(["stage", "fingerprint", "code", "started", "wall time"], stages),
        Table(
            ["model", "weights of", "sha256 or revision", "card", "licence", "training on its outputs"],
            models,
        ),
        Table(["problems from", "kept", "licence"], sources),
        Table(["measured on", "questions", "version of its card", "licence"], tasks),
    ]


def software_table(findings: Findings) -> Table:
    versions = findings.results.versions
    return Table(["library", "version"], [[name, version] for name, version in versions.items()])


def recipe_json(findings: Findings) -> str:
    return json.dumps(findings.recipe.model_dump(exclude_unset=True), indent=2, ensure_ascii=False)


def subtitle(findings: Findings) -> str:
    recipe = findings.recipe
    said = (
        f"{findings.context.student_name}, fine-tuned ({recipe.train.method}) on verified traces of "
        f"{findings.context.teacher_name}"
    )
    if recipe.polish is not None:
        said += ", then polished by it on the student's own samples"
    return said


def way_of_measuring(findings: Findings) -> str:
    """How the scores were made, so that they can be made again."""
    sampling = findings.results.sampling.settings()
    settings = ", ".join(f"{name} {value}" for name, value in sampling.items() if value is not None)
    styles = sorted(set(findings.results.prompt.values()))
    return (
        f"Every model answered the same questions with the same prompt style ({', '.join(styles)}) and "
        f"sampling ({settings}). Intervals are 95%, over questions, each with all its samples; a response "
        "cut at the token limit is wrong."
    )


def what_is_measured(findings: Findings) -> str:
    """Of which questions the headline scores are."""
    name, entry = findings.headline
    held = first_score(entry)
    questions = f"{held.n:,} question{'s' if held.n > 1 else ''}"
    num_tasks = len(findings.results.task_names)
    extent = f"pass@1 over the {questions} of {name}"
    if name == POOLED:
        extent = f"pass@1 over the {questions} of all {num_tasks} tasks"
    elif num_tasks > 1:
        extent += ", the first task (tasks have different numbers of samples, so there is no score of all)"
    return f"{extent}, {held.k} sample{'s' if held.k > 1 else ''} of each."


def cost_note(findings: Findings) -> str:
    forced = " Samples closed by force are in the engine time and not in the tokens."
    polished = ", but for polish, of which sampling, scoring and training are priced"
    return (
        "Engine time is what an engine spent on sampling. Its start, training and verification are in the "
        f"wall time alone, and in no price{polished if findings.recipe.polish is not None else ''}."
        f"{forced if findings.recipe.eval.forced_budgets else ''}"
    )


def licence_note(context: Context) -> str | None:
    """What is to be read before the checkpoint is passed on, where its teacher's licence, or its judge's, may
    forbid that."""
    said = filter(None, (context.teacher_card.restriction("teacher"), context.judge_restriction))
    return " ".join(f"{each}: read it before this checkpoint is passed on." for each in said) or None


def limits(findings: Findings) -> list[str]:
    """What the scores do not say."""
    name, entry = findings.headline
    questions, tasks = first_score(entry).n, ", ".join(findings.results.task_names)
    said = [
        f"Measured on {questions:,} questions of {tasks}, and on nothing else: no claim is made about other "
        "tasks, other prompts or longer answers.",
        "The student can write wrong steps that end in a right answer: only answers were verified.",
        "It learned from one teacher's traces and has that teacher's faults.",
    ]
    if findings.recipe.judge is not None:
        said.append("Where a verifier could not tell, a model judged; how often it errs is stated above.")
    if note := majority_note(findings):
        said.append(note)
    pair = entry.paired.get("student-base")
    if pair is not None and pair.ci95[0] <= 0:
        said.append(f"On {name} no gain over its base is separated from zero.")
    return said
