"""The eval stage with a scripted teacher for its engines: what is sampled, what is adopted, what a fault leaves."""

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.asking import Asked, Asking
from eval.flags import EvalFlags
from eval.forced import ForcedEngine, forced_job, places_of
from eval.stage import run
from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import AdoptFlags, EngineFlags, ModelFlags, WorkerFlags
from pipeline.recipe.cards import sampled_teacher, teacher_card
from pipeline.recipe.prompts import PROMPTS, Chat
from pipeline.recipe.schema import Sampling
from pipeline.records import Problem, Trace, problem_id, to_json
from pipeline.render import split_response
from pipeline.report.results import RESULTS, Results, read_results
from pipeline.run.contract import Counts, Plan, Start, Usage, begin
from pipeline.sampling import Completion, Request, RequestFailed, Store, request_fingerprint
from pipeline.sampling.prompts import ChatPrompts, load_prompts
from pipeline.verify.basis import tags_digest
from pipeline.verify.table import VERSIONS
from tests.conftest import RECIPE, ROOT
from tests.served import num_asked, scripted_server

EVAL = """\
eval:
  tasks: [{{path: {path}, verifier: text}}]
  samples: 2
  compare: [teacher]
"""
TEACHER = sampled_teacher("embedded-moe", teacher_card("embedded-moe"))


@pytest.fixture(scope="module")
def finished(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which one, `small`, has asked the teacher six sums, two samples each."""
    runs = tmp_path_factory.mktemp("finished")
    evaluate(context_of(runs), url)
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """The same, for one test."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def context_of(runs: Path, *overrides: str, name: str = "small", force: bool = False) -> Context:
    path = runs / "recipe.yaml"
    path.write_text(RECIPE[: RECIPE.index("eval:")] + EVAL.format(path=sums(runs, "sums", 6)))
    return load_context(path, runs, Start(force=force, recipe=str(path)), [f"name={name}", *overrides])


def sums(runs: Path, name: str, size: int) -> Path:
    """A task file of so many questions, which the scripted teacher can answer."""
    path = runs / f"{name}.jsonl"
    rows = [{"question": f"{name}: {i} + {2 * i} =", "answer": str(3 * i)} for i in range(size)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(context: Context, url: str, *adopt: str) -> Usage:
    """Run the stage with every model at the server; what it took."""
    names = [*context.recipe.eval.compare, *[extra.name for extra in context.recipe.eval.extra]]
    models = ModelFlags(
        model_urls=tuple(f"{name}={url}" for name in names),
        model_names=tuple(f"{name}=scripted" for name in names),
    )
    run(context, EvalFlags(EngineFlags(), models, AdoptFlags(adopt=adopt), WorkerFlags(workers=1)))
    manifest = context.require("eval", "the test")
    return manifest.usage


def results_of(context: Context) -> Results:
    return read_results(context.directory("eval") / RESULTS)


def test_every_sample_is_counted(finished: Path) -> None:
    context = context_of(finished)
    manifest = context.require("eval", "the test")
    usage = manifest.usage
    assert (usage.sampled, usage.adopted, usage.found, manifest.counts.kept) == (12, 0, 0, 12)
    assert usage.models["teacher"]["sampled"] == 12
    assert set(manifest.outputs) == {
        "sums.problems.jsonl",
        "sums.teacher.samples-00000.jsonl",
        "sums.teacher.verdicts.jsonl",
        "sums.teacher.failures.jsonl",
        "results.json",
    }
    results = results_of(context)
    score = results.tasks["sums"].models["teacher"]
    assert (score.n, score.k, score.failed) == (6, 2, 0)
    assert results.verifier == {"text": VERSIONS["text"]}


def test_a_finished_eval_is_up_to_date(runs: Path) -> None:
    context = context_of(runs)
    before = {path: path.stat().st_mtime_ns for path in context.directory("eval").iterdir()}
    evaluate(context, "http://127.0.0.1:1/v1")
    assert {path: path.stat().st_mtime_ns for path in context.directory("eval").iterdir()} == before


def test_more_samples_take_only_what_is_new(url: str, runs: Path) -> None:
    before = num_asked(url)
    more = context_of(runs, "eval.samples=5", force=True)
    usage = evaluate(more, url)
    assert (usage.sampled, usage.adopted) == (num_asked(url) - before, 12) == (18, 12)
    assert results_of(more).tasks["sums"].models["teacher"].k == 5


def test_a_new_task_takes_only_its_own_samples(url: str, runs: Path) -> None:
    paths = sums(runs, "sums", 6), sums(runs, "others", 4)
    tasks = f"eval.tasks=[{', '.join(f'{{path: {path}, verifier: text}}' for path in paths)}]"
    with pytest.raises(StageError, match=r"eval is finished under a different plan[\s\S]*config\.prompts"):
        evaluate(context_of(runs, tasks), url)
    usage = evaluate(context_of(runs, tasks, force=True), url)
    assert (usage.sampled, usage.adopted) == (8, 12)


def test_a_new_model_takes_only_its_own_samples(url: str, runs: Path) -> None:
    extra = "eval.extra=[{name: base-again, student: embedded-dense}]"
    usage = evaluate(context_of(runs, extra, force=True), url)
    assert (usage.sampled, usage.adopted) == (12, 12)
    assert (usage.models["teacher"]["sampled"], usage.models["base-again"]["adopted"]) == (0, 0)


def test_samples_of_another_run_are_adopted_by_its_name(url: str, runs: Path) -> None:
    first, second = context_of(runs), context_of(runs, name="second")
    usage = evaluate(second, url, "small")
    assert (usage.sampled, usage.adopted) == (0, 12)
    assert results_of(first).to_json()["tasks"] == results_of(second).to_json()["tasks"]
    with pytest.raises(RecipeError, match=r"--adopt nowhere: .*nowhere does not exist; known: second, small"):
        evaluate(context_of(runs, name="third"), url, "nowhere")
    assert not (runs / "third/eval").exists()


def test_a_corrected_gold_answer_verifies_again_and_buys_nothing(url: str, runs: Path) -> None:
    context = context_of(runs, force=True)
    path = sums(runs, "sums", 6)
    path.write_text(path.read_text().replace('"answer": "3"', '"answer": "4"'))
    before = results_of(context).tasks["sums"].models["teacher"].pass_at_1
    usage = evaluate(context, url)
    assert (usage.sampled, usage.adopted) == (0, 12)
    assert results_of(context).tasks["sums"].models["teacher"].pass_at_1 != before


def test_other_sampling_adopts_nothing(url: str, runs: Path) -> None:
    usage = evaluate(context_of(runs, "generate.sampling.temperature=0.5", force=True), url)
    assert (usage.sampled, usage.adopted) == (12, 0)


def test_a_fault_before_anything_is_bought_leaves_the_directory_as_it_was(url: str, runs: Path) -> None:
    fault = "generate.sampling.max_tokens=100000"
    for name in ("small", "new"):
        with pytest.raises(RecipeError, match="no room is left for a question"):
            evaluate(context_of(runs, fault, name=name, force=True), url)
    assert context_of(runs).manifest("eval") is not None
    assert not (runs / "small/eval.1").exists()
    assert not (runs / "new/eval").exists()


def test_where_too_many_samples_fail_the_next_attempt_takes_just_those(url: str, tmp_path: Path) -> None:
    context = context_of(tmp_path)
    with (
        scripted_server(0.0, "flaky_400") as flaky,
        pytest.raises(StageError, match=r"\d of 12 samples failed, more than generate.max_failure_rate"),
    ):
        evaluate(context, flaky)
    assert context.manifest("eval") is None
    before = num_asked(url)
    usage = evaluate(context, url)
    assert usage.found
    assert usage.sampled == num_asked(url) - before == 12 - usage.found


def test_where_every_sample_fails_the_failures_are_named(tmp_path: Path) -> None:
    with (
        scripted_server(0.0, "error_400") as url,
        pytest.raises(
            StageError,
            match=r"12 of 12 samples failed.*The last one, http_400: .*refused.*jsonl there say why",
        ),
    ):
        evaluate(context_of(tmp_path), url)


def finish(context: Context, stage: str, files: dict[str, str], config: dict[str, Any]) -> None:
    """A finished stage of made-up content; a checkpoint of the embedded base where it is train."""
    stage_run = begin(context.directory(stage), Plan(stage, 1, config, {}, 0), context.start)
    assert stage_run is not None
    with stage_run:
        for name, text in files.items():
            (stage_run.directory / name).write_text(text)
        if stage == "train":
            ignored = shutil.ignore_patterns("*.py")
            shutil.copytree(ROOT / "students/embedded", context.checkpoint, ignore=ignored)
            files = {f"checkpoint/{path.name}": "" for path in context.checkpoint.iterdir()}
        stage_run.finish(Counts(1, 1), dict.fromkeys(files))


@pytest.fixture
def trained(tmp_path: Path) -> Context:
    """A run whose student is trained, on one question of the eval task too; it alone is compared."""
    context = context_of(tmp_path, "eval.compare=[student]")
    seen = Problem(problem_id("sums: 2 + 4 ="), "sums: 2 + 4 =", "6", "text", "made", "CC0")
    finish(context, "problems", {"problems.jsonl": to_json(seen) + "\n"}, {})
    finish(context, "filter", {"kept.jsonl": ""}, {})
    finish(context, "train", {}, {"epochs": 1})
    return context


def test_the_student_is_known_by_its_checkpoint(url: str, trained: Context) -> None:
    evaluate(trained, url)
    results = results_of(trained)
    assert results.models["student"] == trained.student.identity
    seen = results.tasks["sums"].contamination
    assert seen is not None
    assert (seen.questions, seen.rules) == (6, {"exact": 1, "fuzzy": 5})  # the sums differ in numbers
    manifest = trained.require("eval", "the test")
    assert set(manifest.inputs) == {"problems", "filter", "task sums"}
    again = dataclasses.replace(trained, start=Start(force=True, recipe=trained.start.recipe))
    finish(again, "train", {}, {"epochs": 2})  # which made the same checkpoint
    evaluate(trained, "http://127.0.0.1:1/v1")
    assert trained.manifest("eval") == manifest


def test_a_student_that_was_changed_after_training_is_refused(url: str, trained: Context) -> None:
    path = trained.checkpoint / "generation_config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(StageError, match=r"generation_config.json: was changed after train finished"):
        evaluate(trained, url)
    assert not trained.directory("eval").exists()


class Echo:
    """An engine that answers every request alike, and keeps what it was asked."""

    def __init__(self, chat: ChatPrompts) -> None:
        self.notes: dict[str, Any] = {}
        self.asked: list[Request] = []
        self._chat = chat

    async def ready(self) -> None: ...

    async def prompts(self) -> ChatPrompts | None:
        return self._chat

    def prompt(self, messages: Chat) -> Any:
        return self._chat.ids(messages)

    async def sample(self, request: Request) -> Completion:
        self.asked.append(request)
        return Completion("\\boxed{7}", "stop", len(request.prompt), 5)


@pytest.fixture(scope="module")
def chat() -> ChatPrompts:
    prompts = load_prompts(TEACHER)
    assert prompts is not None
    return prompts


PROBLEM = Problem(problem_id("1 + 2 + 4 = ?"), "1 + 2 + 4 = ?", "7", "math", "made", "CC0")
SHORT, LONG = "\n1+2=3\n</think>\n\n\\boxed{7}", "\n1+2=3;3+4=7;1+2+4=7\n</think>\n\n\\boxed{8}"


def forced(
    directory: Path, chat: ChatPrompts, response: str, budget: int, finish: str = "stop", sample: int = 0
) -> tuple[Completion, list[Request]]:
    """What becomes of one free sample under a budget, and what the engine was asked for that."""
    sampling = Sampling(temperature=1.0, max_tokens=100)
    asking, task = Asking(directory, sampling, 0), Asked("sums", [PROBLEM], PROMPTS["boxed"], 2)
    request = request_fingerprint(asking.job(TEACHER, task))
    with asking.store("sums", "teacher") as store:
        store.load(request, tags_digest(TEACHER.tags))
        store.add_trace(Trace(PROBLEM.id, 0, 1, request, response, finish, 20, 30, "teacher"))
    inner = Echo(chat)
    engine = ForcedEngine(inner, TEACHER, places_of(asking.store("sums", "teacher"), request), budget)

    async def ask() -> Completion:
        await engine.ready()
        prompt = engine.prompt(PROMPTS["boxed"].messages(PROBLEM.question))
        return await engine.sample(Request(prompt, sampling, 1, (PROBLEM.id, sample)))

    return asyncio.run(ask()), inner.asked


def test_thinking_within_the_budget_is_taken_as_it_is(tmp_path: Path, chat: ChatPrompts) -> None:
    done, asked = forced(tmp_path, chat, SHORT, 50)
    assert (done.text, done.finish_reason, done.output_tokens, asked) == (SHORT, "stop", 30, [])


@pytest.mark.parametrize(
    ("response", "finish"),
    [(LONG, "stop"), ("\n1+2=3;3+4=7;1+2+4=7", "stop"), ("\n1+2=3;3+4=7;1+2+4=7", "length")],
    ids=["closed", "unclosed", "cut"],
)
def test_longer_thinking_is_closed_and_answered_anew(
    response: str, finish: str, tmp_path: Path, chat: ChatPrompts
) -> None:
    done, (asked,) = forced(tmp_path, chat, response, 6, finish)
    split, whole = (split_response(text, TEACHER.tags) for text in (done.text, response))
    assert (split.answer, split.closing) == ("\\boxed{7}", "closed")
    assert len(chat.encode(split.thinking or "")) == 6
    assert (whole.thinking or "").startswith(split.thinking or "-")
    prompt = chat.ids(PROMPTS["boxed"].messages(PROBLEM.question))
    added = asked.prompt[len(prompt) :]
    assert chat.decode(added) == f"{split.thinking}\n</think>\n\n"
    assert asked.sampling.max_tokens == 94
    assert (done.prompt_tokens, done.output_tokens) == (len(prompt), len(added) + 5)


def test_a_free_sample_that_failed_is_a_failure_of_its_own_kind(tmp_path: Path, chat: ChatPrompts) -> None:
    with pytest.raises(RequestFailed) as failure:
        forced(tmp_path, chat, SHORT, 50, sample=1)
    assert failure.value.kind == "no_free_sample"


def test_other_tags_make_another_forced_sample(tmp_path: Path) -> None:
    """Of a free one the tags say only how it is read."""
    asking = Asking(tmp_path, Sampling(temperature=1.0, max_tokens=100), 0)
    task = Asked("sums", [PROBLEM], PROMPTS["boxed"], 2)
    other = dataclasses.replace(TEACHER, tags=TEACHER.tags.model_copy(update={"close": "</thought>"}))
    jobs = [asking.job(model, task) for model in (TEACHER, other)]
    assert request_fingerprint(jobs[0]) == request_fingerprint(jobs[1])
    assert len({request_fingerprint(forced_job(job, 8)) for job in jobs}) == 2


def test_samples_of_many_shards_are_found_by_their_keys(tmp_path: Path) -> None:
    with Store(tmp_path, "sums.teacher.samples", max_shard_bytes=1) as store:
        store.load("r", tags_digest(TEACHER.tags))
        for sample in range(3):
            store.add_trace(Trace(PROBLEM.id, sample, 1, "r", "text", "stop", 1, 1, "teacher"))
    places = places_of(Store(tmp_path, "sums.teacher.samples"), "r")
    assert set(places) == {(PROBLEM.id, sample) for sample in range(3)}
    assert len({place.path for place in places.values()}) == 3
