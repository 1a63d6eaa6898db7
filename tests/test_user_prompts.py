"""Prompts of the user's: what is asked, per source and per task, and what of it bears identity."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError
from pipeline.problems.stage import plan_of as problems_plan
from pipeline.recipe.prompts import PROMPTS, Prompt, read_prompt
from pipeline.recipe.schema import Samples, Sampling
from pipeline.records import Problem, Trace, problem_id
from pipeline.sampling import Job, Store, adopted, request_fingerprint
from pipeline.sampling.job import requests_of
from pipeline.verify.basis import tags_digest
from teachers.generate import job_of
from tests.conftest import RECIPE

QUESTION = "Which is even?\n\nA. 3\nB. 4"
BOXED = "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
SOURCE = "{reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}}"


def prompt_in(directory: Path, text: str, name: str = "mine") -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(text)
    return path


def context_of(directory: Path, *overrides: str, sources: str = "") -> Context:
    path = directory / "small.yaml"
    path.write_text(RECIPE.replace(f"    - {SOURCE}", sources or f"    - {SOURCE}"))
    return load_context(path, directory / "runs", overrides=list(overrides))


def literal(text: str) -> str:
    return "user: |-\n" + "".join(f"  {line}\n" if line else "\n" for line in text.split("\n"))


def test_a_prompt_has_a_system_turn_examples_and_a_question(tmp_path: Path) -> None:
    text = "system: Be brief.\nuser: 'Q: {question} {x} \\boxed{}'\nfew_shot: [{question: '1+1?', answer: '2'}]\n"
    prompt = read_prompt(prompt_in(tmp_path, text))
    assert prompt.messages("2+2?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 1+1? {x} \\boxed{}"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Q: 2+2? {x} \\boxed{}"},
    ]


@pytest.mark.parametrize(
    ("user", "asked"),
    [
        ("{question}!", QUESTION + "!"),
        ("Choose:\n{options}\nfor {question}", "Choose:\nA. 3\nB. 4\nfor Which is even?"),
    ],
)
def test_options_stand_where_the_prompt_puts_them(tmp_path: Path, user: str, asked: str) -> None:
    prompt = read_prompt(prompt_in(tmp_path, literal(user)))
    assert prompt.messages(QUESTION)[-1]["content"] == asked
    assert prompt.messages("1 + {2}?")[-1]["content"] == user.replace("{options}", "").replace(
        "{question}", "1 + {2}?"
    )


def test_the_text_of_a_prompt_bears_identity_and_its_place_does_not(tmp_path: Path) -> None:
    prompt_in(tmp_path, literal(BOXED))
    named, filed = context_of(tmp_path), context_of(tmp_path, "generate.prompt=mine.yaml")
    assert filed.prompt.identity == named.prompt.identity == PROMPTS["boxed"].user
    assert request_fingerprint(job_of(filed)) == request_fingerprint(job_of(named))
    prompt_in(tmp_path, literal(BOXED) + "few_shot: [{question: a, answer: b}]\n")
    changed = context_of(tmp_path, "generate.prompt=mine.yaml")
    assert request_fingerprint(job_of(changed)) != request_fingerprint(job_of(named))


FAULTS = {
    "no such file": (
        "generate.prompt=none.yaml",
        "",
        r"generate\.prompt: none\.yaml: there is no such prompt",
    ),
    "no question": (
        "generate.prompt=mine.yaml",
        "user: hello",
        r"user: the user turn must hold \{question\}",
    ),
    "unknown key": (
        "eval.prompt=mine.yaml",
        "user: '{question}'\nsytem: x",
        r"eval\.prompt: .*did you mean 'system'",
    ),
    "of a source": (
        "problems.sources.0.prompt=boxd",
        "",
        r"problems\.sources\[0\]\.prompt: unknown prompt style; did you mean 'boxed'",
    ),
    "of a task": (
        "eval.tasks.0.prompt=none.yaml",
        "",
        r"eval\.tasks\[0\]\.prompt: none\.yaml: there is no such prompt",
    ),
}


@pytest.mark.parametrize(("override", "text", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_prompt_is_one_error(tmp_path: Path, override: str, text: str, message: str) -> None:
    prompt_in(tmp_path, text)
    with pytest.raises(RecipeError, match=message) as caught:
        context_of(tmp_path, override)
    assert str(caught.value).startswith(str(tmp_path / "small.yaml"))


TWO = "    - {reasoning_gym: chain_sum, size: 5}\n    - {reasoning_gym: gcd, size: 5, prompt: mine.yaml}"


def test_a_source_may_have_a_prompt_of_its_own(tmp_path: Path) -> None:
    prompt_in(tmp_path, "user: 'Greatest? {question}'")
    prompt = context_of(tmp_path, sources=TWO).prompt
    assert prompt.messages("1", "gcd")[-1]["content"] == "Greatest? 1"
    assert prompt.messages("1", "chain_sum") == PROMPTS["boxed"].messages("1")
    assert set(prompt.by_source) == {"gcd"}


def test_a_sources_prompt_changes_its_own_keys_and_no_problem(tmp_path: Path) -> None:
    plain = context_of(tmp_path, sources=TWO.replace(", prompt: mine.yaml", ""))
    prompt_in(tmp_path, "user: 'Greatest? {question}'")
    own = context_of(tmp_path, sources=TWO)
    before, after = requests_of(job_of(plain)), requests_of(job_of(own))
    assert before[""] == after[""] != after["gcd"]
    assert problems_plan(own, {}).fingerprint == problems_plan(plain, {}).fingerprint


def test_a_task_may_have_a_prompt_of_its_own(tmp_path: Path) -> None:
    prompt_in(tmp_path, "user: 'Mine? {question}'")
    context = context_of(tmp_path, "eval.tasks.0.prompt=mine.yaml", "eval.prompt=plain")
    task = context.recipe.eval.tasks[0]
    assert context.eval_prompt(task).name == "mine"
    assert context.eval_prompt(None).name == "plain"


def test_traces_of_a_source_whose_prompt_changed_are_not_adopted_and_the_others_are(tmp_path: Path) -> None:
    def trace(problem: Problem, request: str) -> Trace:
        return Trace(problem.id, 0, 0, request, "7", "stop", 1, 1, "t")

    context = context_of(tmp_path)
    model = context.teacher
    mine = Prompt("mine", "Mine? {question}")
    sampling, samples = Sampling(temperature=1.0, max_tokens=10), Samples(keep=1, max=1)

    def job(**own: Any) -> Job:
        return Job(model, Prompt("boxed", PROMPTS["boxed"].user, by_source=own), sampling, samples, 0)

    problems = [Problem(problem_id(name), name, "7", "math", name, "MIT") for name in ("first", "second")]
    with Store(tmp_path / "traces") as store:
        store.load(requests_of(job()).values(), tags_digest(model.tags))
        for problem in problems:
            store.add_trace(trace(problem, request_fingerprint(job())))
    (source,) = adopted([tmp_path / "traces"], job(second=mine))
    taken = [source.take(problem, 0) is not None for problem in problems]
    source.close()
    assert taken == [True, False]
