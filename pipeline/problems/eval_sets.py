"""Another eval set after the problems are made: it is searched for in what is there, and nothing is refused.

Decontamination depends on the eval questions, and traces are bought for what it leaves. So where nothing but
the eval tasks differ from what a finished stage was planned with, its problems stay: of the questions that it
has not seen those are looked for that stand among its problems. What is found goes into eval_set.json beside
them, and filter drops the traces of those problems. A smaller eval set asks nothing that was not seen.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pipeline.context import Context
from pipeline.errors import StageError
from pipeline.problems.overlap import EvalIndex, EvalQuestion, eval_questions, find_matches
from pipeline.problems.sources import normalise_question
from pipeline.problems.tasks import TaskProblems
from pipeline.recipe.names import as_written
from pipeline.recipe.sources import HubSource, ProceduralSource, source_names
from pipeline.records import Problem, read_as, read_lines
from pipeline.run.contract import Manifest, Plan, check_outputs, fingerprint, held

log = logging.getLogger(__name__)

EVAL_SET = "eval_set.json"
PROTECTED = "protected.jsonl"


def same_but_for_eval(context: Context, plan: Plan, done: Manifest) -> bool:
    """Whether a finished stage was planned with the same sources, and with another eval set."""
    sources = context.recipe.problems.sources
    hubs = {source.hub for source in sources if isinstance(source, HubSource)}
    paths = {as_written(path) for source in sources for path in getattr(source, "path", None) or []}

    def of_sources(config: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
        kept = {key: value for key, value in config.items() if key not in ("eval_tasks", "task_cards")}
        kept["revisions"] = {
            hub: commit for hub, commit in config.get("revisions", {}).items() if hub in hubs
        }
        kept["inputs"] = {path: digest for path, digest in inputs.items() if path in paths}
        return kept

    mine = (of_sources(plan.config, plan.inputs), plan.version, plan.seed)
    return mine == (of_sources(done.config, done.inputs), done.stage_version, done.seed)


def searched_again(context: Context, plan: Plan, tasks: Callable[[], list[TaskProblems]]) -> bool:
    """Take another eval set into a finished stage; False where there is none to take it into.

    StageError where a problem is a question of it and the recipe does not decontaminate.
    """
    directory = context.directory("problems")
    done = None if context.start.force else context.manifest("problems")
    if done is None:
        return False
    if done.fingerprint == plan.fingerprint:  # the set that the problems were made with
        (directory / EVAL_SET).unlink(missing_ok=True)
        return False
    if not same_but_for_eval(context, plan, done):
        return False
    found = read_eval_set(directory)
    if found.get("plan") != plan.fingerprint:
        check_outputs(directory, ["problems.jsonl", PROTECTED])
        with held(directory):
            found = search(context, eval_questions(tasks())) | {"plan": plan.fingerprint}
            temporary = directory / f".{EVAL_SET}.tmp"
            temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            temporary.replace(directory / EVAL_SET)
    log.info(
        "problems: up to date (%s), with another eval set: %s of its %s questions are new, and %s problems "
        "are among them%s",
        directory,
        f"{found['new']:,}",
        f"{found['questions']:,}",
        f"{len(found['matched']):,}",
        "; filter drops their traces" if found["matched"] else "",
    )
    return True


def search(context: Context, questions: list[EvalQuestion]) -> dict[str, Any]:
    """What of the eval questions was not seen before, and which problems are among those."""
    directory, sources = context.directory("problems"), context.recipe.problems.sources
    decode = msgspec.json.Decoder(EvalQuestion).decode
    seen = {key_of(known) for known in read_as(decode, "an eval question", directory / PROTECTED)}
    new = [question for question in questions if key_of(question) not in seen]
    names = zip(source_names(sources), sources, strict=True)
    procedural = {name for name, source in names if isinstance(source, ProceduralSource)}
    path = directory / "problems.jsonl"
    index = EvalIndex(new)
    index.learn_templates(p for p in read_lines(Problem, path) if p.source not in procedural)
    matches = dict(find_matches(enumerate(read_lines(Problem, path)), procedural, index)) if new else {}
    matched = {
        problem.id: {"rule": match.rule, "task": match.matched.task, "question": match.matched.question}
        for number, problem in enumerate(read_lines(Problem, path))
        if (match := matches.get(number))
    }
    same = [match for match in matched.values() if match["rule"] in ("exact", "whole")]
    if same and not context.recipe.problems.decontaminate:
        raise StageError(
            f"{len(same):,} training problems are questions of the eval task {same[0]['task']}, for example "
            f"{same[0]['question'][:120]!r}, and problems.decontaminate is false. Set it to true, or take "
            "another task"
        )
    kept = matched if context.recipe.problems.decontaminate else {}
    return {"questions": len(questions), "new": len(new), "matched": kept}


def key_of(question: EvalQuestion) -> tuple[str, bool, str]:
    """What of a question decontamination looks at, wherever it is asked."""
    return normalise_question(question.question), question.procedural, question.program


def read_eval_set(directory: Path) -> dict[str, Any]:
    """What the last search found; {} where the eval set is that of the problems. StageError where damaged."""
    try:
        found = json.loads((directory / EVAL_SET).read_text(encoding="utf-8"))
        return {**found, "matched": dict(found["matched"])}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError) as error:
        raise StageError(
            f"{directory / EVAL_SET}: is not what problems wrote there ({error}); remove it, and run make "
            "problems"
        ) from None


def barred_problems(directory: Path) -> dict[str, str]:
    """The problems whose traces filter drops, and which eval question each of them is."""
    matched = read_eval_set(directory).get("matched", {})
    return {id: f"{match['rule']}: {match['task']}: {match['question']}" for id, match in matched.items()}


def barred_digest(barred: dict[str, str]) -> dict[str, str]:
    """What filter's plan says of them: nothing where there are none."""
    return {"eval_set": fingerprint(sorted(barred))} if barred else {}
