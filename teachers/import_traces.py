"""Traces that exist already as the generate stage of a run, so that the later stages run on them.

Reads a JSONL or Parquet file in a layout of teachers/layouts.py and the finished problems stage. Writes what
generate writes to runs/<name>/generate; a row whose question is none of the problems is dropped and counted.
Output tokens are the file's where it states them, else counted with the student's tokenizer, as filter does;
where neither is to be had the manifest states none.

    python -m pipeline import-traces --recipe recipes/demo.yaml --file traces.jsonl --layout openr1
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cards import StudentCard, student_card
from pipeline.errors import RecipeError, StageError
from pipeline.examples import token_counter, tokenizer_file, tokenizer_identity
from pipeline.recipe import Samples
from pipeline.records import Problem, Trace
from pipeline.rows import read_rows, require_file
from pipeline.sampling import Store
from pipeline.sampling.engine import completion_of
from pipeline.sampling.keys import DONE, VERIFIED
from pipeline.sources import normalise_question
from pipeline.stage import Context, Counts, Plan, begin, fingerprint, hash_file, inputs_of, require
from pipeline.strict_yaml import nearest
from pipeline.verify import VERSIONS, VerifierPool
from teachers.generate import ProblemFile
from teachers.layouts import LAYOUTS, Columns, Row, bare_question, bare_solution
from teachers.tries import write_tries

log = logging.getLogger(__name__)

STAGE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Imported:
    """A file of traces, its layout and its columns."""

    file: Path
    layout: str
    columns: Columns = field(default_factory=Columns)


@dataclass(slots=True)
class Tokens:
    """Output tokens of the traces, and how many traces had theirs from where."""

    count: Callable[[str], int] | None
    sources: Counter[str] = field(default_factory=Counter)

    def of(self, response: str, stated: int | None) -> int:
        """0 where nothing is known."""
        if stated is not None:
            self.sources["stated"] += 1
            return stated
        self.sources["counted" if self.count else "unknown"] += 1
        return self.count(response) if self.count else 0


def run(context: Context, imported: Imported) -> None:
    """Import once. StageError where problems has not finished, RecipeError where no row matches a problem."""
    if imported.layout not in LAYOUTS:
        raise RecipeError(f"--layout {imported.layout}: {nearest(imported.layout, list(LAYOUTS))}")
    if imported.columns.tokens and imported.layout != "columns":
        raise RecipeError(f"--columns {imported.columns.tokens}: --layout {imported.layout} reads no columns")
    source = context.directory("problems")
    manifest = require(source, "import-traces", context.start.recipe)
    plan = plan_of(context, imported, manifest)
    stage = begin(context.directory("generate"), plan, context.start)
    if stage is None:
        return
    problems = ProblemFile(source / "problems.jsonl")
    tokens = Tokens(counter(student_card(context.recipe.train.student)))
    with stage, Store(stage.directory) as store:
        store.load(plan.fingerprint[:16])
        dropped = take(imported, problems, store, tokens)
        if not store.keys.num_traces:
            raise StageError(
                f"{imported.file}: none of its questions is one of the problems in {source} "
                f"(dropped: {dict(dropped)}); the recipe's sources must hold the same questions"
            )
        most = max(store.keys.most_samples(), 1)
        summary = write_tries(stage.directory / "tries.jsonl", problems, store, Samples(keep=1, max=most))
        outputs = {**store.outputs(), "tries.jsonl": summary["problems"]}
        kept = store.keys.num_traces
        counts = Counts(num_in=kept + dropped.total(), kept=kept, dropped=dict(dropped))
        notes = {**summary, "imported": imported.file.name, "tokens": dict(tokens.sources)}
        # nothing was sampled here, so there is no engine time; tokens are stated only where all are known
        usage = {} if tokens.sources["unknown"] else {"output_tokens": store.keys.output_tokens}
        stage.finish(counts, dict(outputs), usage, notes)
    log.info("import-traces: %d traces, dropped %s", kept, dict(dropped) or "none")


def counter(card: StudentCard) -> Callable[[str], int] | None:
    """Counts tokens with the student's tokenizer; None, said in the log, where that is not to be had."""
    try:
        return token_counter(str(tokenizer_file(card)))
    except RecipeError as error:
        log.warning("import-traces: output tokens are not counted: %s", error)
        return None


def plan_of(context: Context, imported: Imported, problems: dict[str, Any]) -> Plan:
    """An import takes generate's place, under a plan of its own."""
    config = {
        "imported": imported.layout,
        "columns": asdict(imported.columns),
        "tokenizer": tokenizer_identity(student_card(context.recipe.train.student)),
        "verifiers": VERSIONS,
    }
    inputs = {**inputs_of({"problems": problems}), "file": hash_file(require_file(imported.file))}
    return Plan("generate", STAGE_VERSION, config, inputs, context.recipe.seed)


def take(imported: Imported, problems: ProblemFile, store: Store, tokens: Tokens) -> Counter[str]:
    """Store and verify the traces of all problems; how many responses were dropped, by reason."""
    by_question = {question_key(problem.question): problem for problem in problems}
    dropped: Counter[str] = Counter()
    with VerifierPool() as pool:
        rows = matched(imported, by_question, dropped)
        verdicts = pool.map(
            ((p.id, trace.sample), p.verifier, p.gold, trace.answer, p.metadata)
            for p, trace in stored(rows, imported, store, tokens)
        )
        for verdict in verdicts:
            store.add_verdict(verdict)
    return dropped


def matched(
    imported: Imported, by_question: dict[str, Problem], dropped: Counter[str]
) -> Iterator[tuple[Problem, Row]]:
    """Rows whose question is one of the problems."""
    read, _ = LAYOUTS[imported.layout]
    for line in read_rows(imported.file):
        try:
            row = read(line.values or {}, imported.columns)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecipeError(
                f"{line.where}: is no row of layout {imported.layout} ({type(error).__name__}: {error}); "
                f"it has the columns {', '.join(line.values or {})}"
            ) from None
        problem = by_question.get(question_key(row.question))
        if problem is None:
            dropped["no_such_problem"] += len(row.responses)
        else:
            yield problem, row


def stored(
    rows: Iterator[tuple[Problem, Row]], imported: Imported, store: Store, tokens: Tokens
) -> Iterator[tuple[Problem, Trace]]:
    """Append each response as the next sample of its problem, unless an interrupted import has it."""
    _, tags = LAYOUTS[imported.layout]
    taken: Counter[str] = Counter()
    for problem, row in rows:
        for response, reason, stated in zip(row.responses, row.reasons, row.tokens, strict=True):
            sample = taken[problem.id]
            taken[problem.id] += 1
            done = completion_of(response, reason or "stop", (0, tokens.of(response, stated)), tags)
            trace = Trace(
                problem.id, sample, 0, store.request, done.thinking, bare_solution(done.answer),
                done.finish_reason, 0, done.output_tokens, imported.file.stem,
            )  # fmt: skip
            held = store.keys.bits(problem.id, sample)
            if not held & DONE:
                store.add_trace(trace)
            if not held & VERIFIED:
                yield problem, trace


def question_key(text: str) -> str:
    return fingerprint(normalise_question(bare_question(text)))[:32]
