"""train.loss: {topk_kl: k}: the loss by hand, and with a real teacher what is stored against what it says live."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from pipeline.context import Context, load_context
from pipeline.errors import EngineError, RecipeError, StageError
from pipeline.recipe.schema import load_recipe
from pipeline.records import Tokens, Trace, from_json, line_decoder, read_examples, to_json, trace_row
from pipeline.sampling import Request, Store
from pipeline.sampling.adopt import AdoptedRun
from pipeline.sampling.engines.answers import tokens_of
from pipeline.sampling.engines.base import likeliest
from pipeline.sampling.engines.server import request_body
from pipeline.sampling.engines.vllm import tokens_of as tokens_of_output
from pipeline.sampling.job import request_fingerprint
from pipeline.verify import VerifierPool
from students.examples import build
from students.format import Encoded, load_format
from students.topk import NOTHING, StoredTops, check_share, divergence
from tests.conftest import RECIPE
from tests.test_sampling import make_job, make_problems, run_with_tokens

TOPK = ["generate.keep_tokens=true", "generate.top_logprobs=20", "train.loss={topk_kl: 20}"]


def test_all_tokens_stored_give_the_whole_divergence() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(7, 12) * 3, (torch.randn(7, 12) * 3).log_softmax(-1)
    values, ids = theirs.sort(descending=True)
    whole = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs, log_target=True, reduction="none").sum(
        -1
    )
    assert torch.allclose(divergence(ours, ids, values), whole, atol=1e-5)


def test_what_is_not_stored_is_one_bucket() -> None:
    theirs = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    ours = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    by_hand = (
        0.5 * torch.tensor(5.0).log() + 0.3 * torch.tensor(1.5).log() + 0.2 * torch.tensor(0.2 / 0.7).log()
    )
    found = divergence(ours, torch.tensor([[0, 1]]), theirs[:, :2])
    assert float(found) == pytest.approx(float(by_hand), abs=1e-6)


def test_a_token_of_which_nothing_is_known_has_the_usual_loss() -> None:
    torch.manual_seed(0)
    ours = torch.randn(3, 12, requires_grad=True)
    ids = torch.tensor([[4] * 5, [0] * 5, [11] * 5])
    held = torch.tensor([[0.0, *[NOTHING] * 4]] * 3)
    loss = divergence(ours, ids, held).sum()
    usual = torch.nn.functional.cross_entropy(ours, ids[:, 0], reduction="sum")
    assert loss.item() == pytest.approx(usual.item(), abs=1e-5)
    [ours_slope], [usual_slope] = (
        torch.autograd.grad(loss, ours, retain_graph=True),
        torch.autograd.grad(usual, ours),
    )
    assert torch.allclose(ours_slope, usual_slope, atol=1e-5)


def test_a_student_that_is_sure_has_a_finite_loss() -> None:
    ours = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    loss = divergence(ours, torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]]).log()).sum()
    loss.backward()
    assert loss.isfinite()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("gap", [0.0, 8.0, 12.0, 14.0, 18.0, 32.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_leaves_little_to_the_others_is_told_so(gap: float, dtype: torch.dtype) -> None:
    """Value and slope as in float64, where the student gives e^-gap of what the teacher does to the others."""
    torch.manual_seed(0)
    ours = torch.randn(2, 50)
    ours[:, :3] += gap
    ids = torch.tensor([[0, 1, 2], [2, 0, 1]])
    held = torch.tensor([[0.5, 0.3, 0.1], [0.9, 0.05, 0.01]]).log()
    found, exact = ours.to(dtype).requires_grad_(), ours.to(dtype).double().requires_grad_()
    logprobs, shares = exact.log_softmax(-1), held.double().exp()
    rest = 1 - shares.sum(-1)
    others = logprobs.scatter(-1, ids, -torch.inf).logsumexp(-1)
    known = (shares * (held - logprobs.gather(-1, ids))).sum(-1)
    wanted = known + rest * rest.log() - rest * others
    loss = divergence(found, ids, held)
    assert torch.allclose(loss.double(), wanted, rtol=1e-5)
    weights = torch.tensor([1.0, 3.0])
    [slope] = torch.autograd.grad((loss * weights).sum(), found)
    [exact_slope] = torch.autograd.grad((wanted * weights).sum(), exact)
    assert slope.dtype == dtype
    assert torch.allclose(slope.double(), exact_slope, atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_a_teacher_that_leaves_something_to_no_token_is_no_loss_without_end() -> None:
    """Rounded log-probabilities of a whole vocabulary may sum to less than 1."""
    ours = torch.randn(1, 3, requires_grad=True)
    loss = divergence(ours, torch.tensor([[0, 1, 2]]), torch.tensor([[0.6, 0.3, 0.1]]).log() - 1e-5)
    loss.sum().backward()
    assert loss < 1
    assert ours.grad is not None
    assert ours.grad.isfinite().all()


TRACE = Trace("0" * 16, 0, 1, "r", "x", "stop", 3, 2, "t")
TOKENS = Tokens([3, 4], [-0.1, -0.2], [[3, 9], [4, 8]], [[-0.1, -2.5], [-0.2, -3.5]])


def test_the_likeliest_tokens_stand_with_the_trace_and_in_nobodys_way() -> None:
    line = to_json(replace(TRACE, tokens=TOKENS))
    assert from_json(Trace, line).tokens == TOKENS
    assert line_decoder(Trace)(line.encode()).tokens == TOKENS
    assert trace_row(line.encode()).output_tokens == 2  # as a resume reads it
    assert TOKENS.num_top == 2
    assert '"top_' not in to_json(replace(TRACE, tokens=Tokens([3], [-0.1])))


def test_a_server_names_tokens_by_their_ids() -> None:
    def step(*pairs: tuple[str, float]) -> dict[str, Any]:
        top = [{"token": token, "logprob": logprob} for token, logprob in pairs]
        return {"token": pairs[0][0], "logprob": pairs[0][1], "top_logprobs": top}

    named = step(("token_id:3", -0.1), ("token_id:9", -2.5)), step(("token_id:8", -3.5), ("token_id:4", -0.2))
    found = tokens_of({"token_ids": [3, 8], "logprobs": {"content": list(named)}})
    assert found == Tokens([3, 8], [-0.1, -3.5], [[3, 9], [4, 8]], [[-0.1, -2.5], [-0.2, -3.5]])
    texts = tokens_of({"token_ids": [3], "logprobs": {"content": [step((" 3", -0.1), (" 9", -2.5))]}})
    assert texts == Tokens([3], [-0.1])
    for odd in (step(("token_id:3", 0.9)), step(("token_id:3", -0.1), ("token_id:9", 0.05))):
        with pytest.raises(ValueError, match="log-probability is none"):  # they are probabilities
            tokens_of({"token_ids": [3], "logprobs": {"content": [odd]}})


def test_an_engine_gives_the_sampled_token_beside_the_likeliest() -> None:
    class Held:
        def __init__(self, logprob: float) -> None:
            self.logprob = logprob

    class Output:
        token_ids = [5]
        logprobs = [{5: Held(-9.0), 1: Held(-0.5), 2: Held(-1.5)}]

    assert tokens_of_output(Output(), 2) == Tokens([5], [-9.0], [[1, 2]], [[-0.5, -1.5]])
    assert tokens_of_output(Output()) == Tokens([5], [-9.0])
    assert likeliest({7: -1.234567, 3: -1.234567}, 5) == [(3, -1.23457), (7, -1.23457)]


def test_traces_with_too_few_likeliest_tokens_are_not_adopted(tmp_path: Path) -> None:
    job = replace(make_job(1, 1), keep_tokens=True, top_logprobs=2)
    [problem] = make_problems(1)
    trace = replace(TRACE, problem_id=problem.id, request=request_fingerprint(job), tokens=TOKENS)
    with Store(tmp_path) as store:
        store.load(trace.request, "")
        store.add_trace(trace)
    assert AdoptedRun(tmp_path, job).take(problem, 0) == (trace, None)
    assert AdoptedRun(tmp_path, replace(job, top_logprobs=3)).take(problem, 0) is None
    assert AdoptedRun(tmp_path, replace(job, top_logprobs=0)).take(problem, 0) == (trace, None)


def test_a_server_is_asked_for_as_many_and_one_that_gives_none_is_refused(tmp_path: Path) -> None:
    job = replace(make_job(1, 1), keep_tokens=True, top_logprobs=5)
    request = Request([], job.sampling, 0, ("p", 0), keep_tokens=True, top_logprobs=5)
    assert request_body(request, job.model)["top_logprobs"] == 5
    assert "top_logprobs" not in request_body(replace(request, top_logprobs=0), job.model)
    with (
        VerifierPool(workers=1) as pool,
        pytest.raises(EngineError, match="for each token id and the 5 likeliest"),
    ):
        run_with_tokens()(job, make_problems(2), tmp_path, pool)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.loss={topk_kl: 20}"], "generate stores 0. Set generate.keep_tokens: true"),
        ([*TOPK[:2], "train.loss={topk_kl: 21}"], r"; train\.loss\.topk_kl: input should be less than"),
        (
            [*TOPK[:2], "train.loss=topk_kl"],
            r"train\.loss: input should be 'nll', found 'topk_kl'; train\.loss:",
        ),
        ([*TOPK[:2], "train.loss={topk: 20}"], r"train\.loss\.topk: unknown key; did you mean 'topk_kl'"),
        (
            [*TOPK, "train.held_out_share=0.1", "train.early_stopping=2", "train.stop_on=token_accuracy"],
            "token_accuracy is not measured where the loss is topk_kl",
        ),
        (["generate.top_logprobs=5"], "set keep_tokens: true"),
        (["filter.select.prefer=surprising"], "set generate.keep_tokens: true"),
    ],
    ids=[
        "nothing-stored",
        "too-many",
        "no-number",
        "mistyped",
        "accuracy",
        "no-tokens",
        "surprising",
    ],
)
def test_what_is_not_stored_cannot_be_learnt(recipe_file: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe_file, overrides)


def test_examples_of_other_tokens_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    others = replace(TRACE, sample=1, tokens=replace(TOKENS, ids=[3, 5]))
    path.write_text("".join(to_json(trace) + "\n" for trace in (replace(TRACE, tokens=TOKENS), others)))
    examples = [Encoded([1, 2, 3, 4], 2, (TRACE.problem_id, sample)) for sample in range(2)]
    stored = StoredTops(path, 2, examples)
    assert len(stored) == 1
    assert stored.of(examples[0]) == (TOKENS.top_ids, TOKENS.top_logprobs)
    assert stored.of(examples[1]) == ([[3, 3], [4, 4]], [[0.0, NOTHING]] * 2)
    assert stored.columns(examples)["top_ids"] == [[3, 9], [4, 8], [3, 3], [4, 4]]
    check_share(stored, examples, 0.5)
    with pytest.raises(StageError, match="of 1 of 2 examples no 2 likeliest tokens are stored"):
        check_share(stored, examples, 0.1)


@pytest.fixture(scope="module")
def stored_run(
    tmp_path_factory: pytest.TempPathFactory, retort: Callable[..., CompletedProcess[str]]
) -> Context:
    """A run up to train with the embedded teacher through vLLM, its likeliest tokens stored and learnt."""
    root = tmp_path_factory.mktemp("topk")
    path = root / "small.yaml"
    path.write_text(RECIPE.replace("size: 20", "size: 120").replace("epochs: 1", "epochs: 4"))
    flags = [part for pair in [*TOPK, "filter.select.prefer=surprising"] for part in ("--set", pair)]
    for stage in ("problems", "generate", "filter", "train"):
        more = ("--log-every", "1") if stage == "train" else ()
        done = retort(stage, "--recipe", path, "--runs", root / "runs", *flags, *more)
        assert done.returncode == 0, done.stderr
    return load_context(path, root / "runs", overrides=[*TOPK, "filter.select.prefer=surprising"])


@pytest.mark.slow
def test_what_is_stored_gives_the_loss_of_the_live_teacher(stored_run: Context) -> None:
    """The whole distribution of the teacher's weights in fp32, against 20 log-probabilities of vLLM's in bf16."""
    from students.model import load_base, load_teacher

    style = load_format(stored_run.student_card, stored_run.base)
    train = stored_run.recipe.train
    data = build(read_examples(stored_run.directory("filter") / "examples.parquet"), style, train, 0)
    stored = StoredTops(stored_run.directory("filter") / "kept.jsonl", 20, data.train)
    assert len(stored) == len(data.train) > 30
    base = load_base(stored_run.student_card, stored_run.base).eval()
    teacher = load_teacher(stored_run.teacher, "cpu")
    rebuilt = live = tokens = 0.0
    with torch.no_grad():
        for example in data.train:
            places = slice(example.num_prompt - 1, len(example.ids) - 1)
            ours, theirs = (model(torch.tensor([example.ids])).logits[0, places] for model in (base, teacher))
            ids, held = map(torch.tensor, stored.of(example))
            rebuilt += float(divergence(ours, ids, held).sum())
            whole = (theirs.log_softmax(-1), ours.log_softmax(-1))
            live += float((whole[0].exp() * (whole[0] - whole[1])).sum())
            tokens += len(example.trained)
    print(f"\nloss a token from stored top-20 {rebuilt / tokens:.5f}, from the live teacher {live / tokens:.5f}: "
          f"{abs(rebuilt - live) / live:.3%} apart")  # fmt: skip
    assert abs(rebuilt - live) / live < 0.01


@pytest.mark.slow
def test_a_student_learns_from_what_is_stored(stored_run: Context) -> None:
    """The loss falls, and resuming or not is the train stage's own business."""
    manifest = stored_run.require("train", "the test")
    assert manifest.config["train"]["loss"] == {"topk_kl": 20}
    text = (stored_run.directory("train") / "metrics.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in text.splitlines()]
    assert losses[-1] < losses[0]
