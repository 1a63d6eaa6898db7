"""Traces that exist already as the generate stage of a run, so that the later stages run on them.

Reads files of rows (pipeline/rows) in a layout of teachers/layouts.py and the finished problems stage. Writes
what generate writes to runs/<name>/generate, each response with its thinking between the tags of the recipe's
teacher. Dropped and counted: no_such_problem, a question that is not one of the problems; tags_in_text, a
response that holds such a tag in its own text and would be split there; several_turns, a chat of more than
one answer; two_thinkings, one whose field and text hold different ones; no_response, null. Where a teacher
thinks and no response of the file does, nothing is imported: a student would learn to close its thinking at
once. Output tokens are the file's where it
states them, else counted with the student's tokenizer, as filter does; where neither is to be had, the
manifest states none.

    python -m pipeline import-traces --recipe recipes/demo.yaml --file traces.jsonl --layout openr1
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError, inside
from pipeline.filter.examples import token_counter, tokenizer_file, tokenizer_identity
from pipeline.flags import WorkerFlags
from pipeline.problems.sources import normalise_question, verifiers_in_use
from pipeline.recipe.cards import StudentCard, Tags
from pipeline.recipe.schema import Samples
from pipeline.recipe.strict_yaml import nearest
from pipeline.records import STOP, Problem, ProblemFile, Trace
from pipeline.render import Split, join_response, split_response
from pipeline.rows import digest_of_all, read_rows
from pipeline.run.contract import Counts, Manifest, Plan, Usage, begin, fingerprint
from pipeline.sampling import Store
from pipeline.sampling.keys import DONE, VERIFIED
from pipeline.verify import VerifierPool
from pipeline.verify.basis import basis_of, tags_digest
from teachers.generate import check_licence
from teachers.layouts import LAYOUTS, Columns, Refused, Row, bare_question, bare_solution
from teachers.tries import write_tries

log = logging.getLogger(__name__)

STAGE_VERSION = 2


@dataclass(frozen=True, slots=True)
class Imported:
    """Files of traces (one, a directory or a glob), their layout and columns; `tags` where their thinking
    stands in others than the layout's."""

    file: Path
    layout: str
    columns: Columns = field(default_factory=Columns)
    tags: Tags | None = None

    @property
    def read_tags(self) -> Tags:
        return self.tags or LAYOUTS[self.layout][1]


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


def run(context: Context, imported: Imported, workers: WorkerFlags | None = None) -> None:
    """Import once. RecipeError for a row that cannot be read and where the licence of the teacher is not
    accepted, StageError where no row matches a problem."""
    if imported.layout not in LAYOUTS:
        raise RecipeError(f"--layout {imported.layout}: {nearest(imported.layout, list(LAYOUTS))}")
    own = imported.columns.tokens or imported.columns.thinking
    if own and imported.layout != "columns":
        raise RecipeError(f"--columns {own}: --layout {imported.layout} reads no columns")
    if context.recipe.generate.share < 1:
        raise RecipeError(
            f"generate.share: {context.recipe.generate.share:g} is about asking a teacher, and import-traces "
            "takes every trace of the file. Set generate.share: 1"
        )
    check_licence(context)
    manifest = context.require("problems", "import-traces")
    plan = plan_of(context, imported, manifest)
    stage = begin(context.directory("generate"), plan, context.start)
    if stage is None:
        return
    problems = ProblemFile(context.directory("problems") / "problems.jsonl")
    tokens = Tokens(counter(context.student_card))
    with stage, Store(stage.directory) as store:
        store.load(plan.fingerprint[:16], tags_digest(context.teacher.tags))
        importing = Importing(imported, context.teacher.tags, store, tokens)
        with VerifierPool((workers or WorkerFlags()).num_workers) as pool:
            importing.take(problems, pool)
        dropped = importing.dropped
        if not store.keys.num_traces:
            raise StageError(
                f"{imported.file}: none of its questions is one of the problems in {problems.path} "
                f"(dropped: {dict(dropped)}). The recipe's sources must hold the same questions"
            )
        importing.require_thinking()
        most = max(store.keys.most_samples(), 1)
        summary = write_tries(stage.directory / "tries.jsonl", problems, store, Samples(keep=1, max=most))
        outputs = {**store.outputs(), "tries.jsonl": summary["problems"]}
        kept = store.keys.num_traces
        counts = Counts(num_in=kept + dropped.total(), kept=kept, dropped=dict(dropped))
        notes = {**summary, "imported": imported.file.name, "tokens": dict(tokens.sources)}
        if importing.thinking["without"] and context.teacher.tags:
            notes["without_thinking"] = importing.thinking["without"]
        # nothing was sampled here, so there is no engine time; tokens are stated only where all are known
        usage = Usage() if tokens.sources["unknown"] else Usage(output_tokens=store.keys.output_tokens)
        stage.finish(counts, outputs, usage, notes)
    log.info("import-traces: %d traces, dropped %s", kept, dict(dropped) or "none")


def counter(card: StudentCard) -> Callable[[str], int] | None:
    """Counts tokens with the student's tokenizer; None, said in the log, where that is not to be had."""
    try:
        return token_counter(str(tokenizer_file(card)))
    except RecipeError as error:
        log.warning("import-traces: output tokens are not counted: %s", error)
        return None


def plan_of(context: Context, imported: Imported, problems: Manifest) -> Plan:
    """An import takes generate's place, under a plan of its own.

    Other than generate's it has the teacher's tags in it: the responses are written with them.
    """
    config = {
        "imported": imported.layout,
        "columns": without_defaults(imported.columns),
        "thinking": context.teacher.tags.model_dump(),
        "tokenizer": tokenizer_identity(context.student_card),
        "verifiers": verifiers_in_use(context.recipe.problems),
    }
    inputs = {
        "problems": problems.digest(["problems.jsonl"]),
        "file": digest_of_all([str(imported.file)]),
    }
    if imported.tags is not None:
        config["tags"] = imported.tags.model_dump()
    return Plan("generate", STAGE_VERSION, config, inputs, context.recipe.seed)


def without_defaults(columns: Columns) -> dict[str, Any]:
    """The columns without those that earlier versions had not, where they say nothing."""
    held = asdict(columns)
    return {
        name: value for name, value in held.items() if value or name in ("question", "response", "tokens")
    }


@dataclass(frozen=True, slots=True)
class Importing:
    """One file on its way into the store."""

    imported: Imported
    tags: Tags
    store: Store
    tokens: Tokens
    dropped: Counter[str] = field(default_factory=Counter)
    thinking: Counter[str] = field(default_factory=Counter)  # responses with it, and without

    def require_thinking(self) -> None:
        """StageError where the teacher thinks and none of the responses does."""
        if self.tags and not self.thinking["with"] and self.thinking["without"]:
            tags = self.imported.read_tags
            raise StageError(
                f"{self.imported.file}: none of {self.thinking['without']:,} responses has a thinking block "
                f"(looked for between {tags.open} and {tags.close}), and the recipe's teacher thinks. Name "
                "its column (--columns question=..,thinking=..,response=..) or its tags (--tags), or take a "
                "teacher's card with `thinking: none`"
            )

    def take(self, problems: ProblemFile, pool: VerifierPool) -> None:
        """Store and verify the traces of all problems; responses that are dropped are counted by reason."""
        by_question = {question_key(problem.question): problem for problem in problems}
        tags = tags_digest(self.tags)
        verdicts = pool.map(
            ((p.id, sample), p.verifier, p.gold, answer, p.metadata, basis_of(p, tags))
            for p, sample, answer in self.stored(self.matched(by_question))
        )
        for verdict in verdicts:
            self.store.add_verdict(verdict)

    def matched(self, by_question: dict[str, Problem]) -> Iterator[tuple[Problem, Row]]:
        """Rows whose question is one of the problems."""
        read, _ = LAYOUTS[self.imported.layout]
        for line in read_rows([str(self.imported.file)]):
            values = line.values or {}
            try:
                with inside(line.where):
                    row = read(values, self.imported.columns, self.imported.read_tags)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise RecipeError(
                    f"{line.where}: is not a row of layout {self.imported.layout} "
                    f"({type(error).__name__}: {error}); it has the columns {', '.join(values) or 'none'}"
                ) from None
            problem = by_question.get(question_key(row.question))
            if problem is None:
                self.dropped["no_such_problem"] += len(row.responses)
            else:
                yield problem, row

    def stored(self, rows: Iterator[tuple[Problem, Row]]) -> Iterator[tuple[Problem, int, str]]:
        """Append each response as the next sample of its problem, unless an interrupted import has it.

        Yields the answer of each one that has no verdict yet.
        """
        taken: Counter[str] = Counter()
        for problem, row in rows:
            for response, reason, stated in zip(row.responses, row.reasons, row.tokens, strict=True):
                if isinstance(response, Refused):
                    self.dropped[response.reason] += 1
                    continue
                text = retagged(response, self.imported.read_tags, self.tags)
                if text is None:
                    self.dropped["tags_in_text"] += 1
                    continue
                sample = taken[problem.id]
                taken[problem.id] += 1
                output_tokens = self.tokens.of(text if isinstance(response, Split) else response, stated)
                self.thinking["with" if split_response(text, self.tags).thinking else "without"] += 1
                held = self.store.keys.bits(problem.id, sample)
                if not held & DONE:
                    self.store.add_trace(
                        Trace(
                            problem_id=problem.id,
                            sample=sample,
                            seed=0,
                            request=self.store.request,
                            response=text,
                            finish_reason=reason or STOP,
                            prompt_tokens=0,
                            output_tokens=output_tokens,
                            teacher=self.imported.file.stem,
                        )
                    )
                if not held & VERIFIED:
                    yield problem, sample, split_response(text, self.tags).answer


def retagged(response: str | Split, layout: Tags, teacher: Tags) -> str | None:
    """A response with its thinking between the teacher's tags, by which all of generate's traces are split.

    None where its own text holds one of these tags, so that it would be split elsewhere.
    """
    split = split_response(response, layout) if isinstance(response, str) else response
    split = dataclasses.replace(split, answer=bare_solution(split.answer))
    text = join_response(split, teacher, f"{teacher.open}\n" if teacher.opened_by_prompt else "")
    if not teacher:
        return text
    again = split_response(text, teacher)
    unchanged = (again.thinking or "", again.answer) == (split.thinking or "", split.answer)
    return text if unchanged else None


def question_key(text: str) -> str:
    return fingerprint(normalise_question(bare_question(text)))[:32]
