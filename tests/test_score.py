"""score: the log-probabilities that an engine gives to a text that somebody else wrote, and a round's of them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import EngineError, RecipeError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel
from pipeline.sampling import RequestFailed
from pipeline.sampling.engines.base import LOWEST_LOGPROB
from pipeline.sampling.engines.replicas import Replica
from pipeline.sampling.engines.server import read_scores
from students.format import Format
from students.rounds import Response
from students.scoring import SCORES, TeacherEngine, in_flight, score_here
from tests.scoring_server import ScoringServer, serving
from tests.students_fixtures import card_of, sampled

CHATS = [[{"role": "user", "content": f"What is {i} + {i}?"}] for i in range(3)]


@pytest.fixture
def teacher(student_directory: Path) -> SampledModel:
    return sampled(card_of(student_directory), name="teacher")


@pytest.fixture
def make(tiny: Any, style: Format) -> Any:
    return lambda **options: ScoringServer("teacher", tiny, style.prompts, style.turn_end_id, **options)


@pytest.fixture
def rounds(tmp_path: Path) -> Path:
    """The directory of rounds, with the one that is scored."""
    (tmp_path / "00000").mkdir()
    return tmp_path


@pytest.fixture
def responses(style: Format) -> list[Response]:
    texts = [style.prompts.encode(f"{2 * i}</think>\n\\boxed{{{2 * i}}}<|im_end|>") for i in range(12)]
    prompt = style.prompts.ids(CHATS[0])
    return [Response(prompt, ids, [-0.1] * len(ids), True, False) for ids in texts]


def engine_of(teacher: SampledModel, *urls: str, limit: int = 4) -> TeacherEngine:
    return TeacherEngine(teacher, EngineFlags(engine="server", urls=urls), limit)


def rows_of(responses: list[Response]) -> list[tuple[list[int], list[int]]]:
    return [(response.prompt, response.ids) for response in responses]


def test_a_server_scores_each_token_of_a_response(
    make: Any, tiny: Any, teacher: SampledModel, responses: list[Response], rounds: Path
) -> None:
    with serving(make()) as url, engine_of(teacher, url) as asked:
        found = asked.score_round(rounds, 0, responses)
    for ours, wanted in zip(found, score_here(tiny, rows_of(responses)), strict=True):
        assert ours == pytest.approx(wanted, abs=1e-4)


def test_a_teacher_that_is_served_writes_greedily(
    make: Any, tiny: Any, teacher: SampledModel, style: Format
) -> None:
    with serving(make()) as url, engine_of(teacher, url) as asked:
        written = asked.write(CHATS, 6)
    for chat, ids in zip(CHATS, written, strict=True):
        prompt = style.prompts.ids(chat)
        wanted = tiny.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
        assert ids == wanted[0, len(prompt) :].tolist()


def test_scores_that_a_round_holds_are_not_asked_for_again(
    make: Any, teacher: SampledModel, responses: list[Response], rounds: Path
) -> None:
    with (
        serving(make(answers=5)) as url,
        engine_of(teacher, url, limit=1) as asked,
        pytest.raises(EngineError, match=r"scored 5 of 12 responses of round 0, and one not \(http_400"),
    ):
        asked.score_round(rounds, 0, responses)
    path = rounds / "00000" / SCORES
    with path.open("a") as file:
        file.write('{"response": "0123", "log')  # as a kill leaves it
    server = make()
    with serving(server) as url, engine_of(teacher, url) as asked:
        found = asked.score_round(rounds, 0, responses)
        again = asked.score_round(rounds, 0, responses)
    assert server.scored.total() == 7
    assert found == again
    assert list(map(len, found)) == [len(response.ids) for response in responses]


def test_another_server_takes_over(
    make: Any, teacher: SampledModel, responses: list[Response], rounds: Path
) -> None:
    first, second = make(answers=2, dies=True), make()
    with serving(first) as one, serving(second) as two, engine_of(teacher, one, two) as asked:
        found = asked.score_round(rounds, 0, responses)
    assert len(found) == 12
    assert (first.scored.total(), second.scored.total()) == (2, 10)


def test_a_server_that_does_not_score_is_refused(make: Any, teacher: SampledModel) -> None:
    with (
        serving(make(scores=False)) as url,
        engine_of(teacher, url) as asked,
        pytest.raises(
            RecipeError, match=r"it does not say .*does not score what others wrote.*serve-teacher"
        ),
    ):
        asked.write(CHATS, 4)


@pytest.mark.parametrize(
    ("first", "is_refused"), [(-0.5, False), (1e-7, False), (0.5, True), (math.inf, True), (math.nan, True)]
)
def test_what_is_no_log_probability_is_a_bad_answer(first: float, is_refused: bool) -> None:
    steps = [None, {"7": {"logprob": first}}, {"8": {"logprob": -math.inf}}]
    answer, replica = {"choices": [{"prompt_logprobs": steps}]}, Replica("http://127.0.0.1:1/v1", 4, 4)
    if is_refused:
        with pytest.raises(RequestFailed, match="a token's log-probability is none"):
            read_scores(answer, [6, 7, 8], replica)
    else:
        assert read_scores(answer, [6, 7, 8], replica) == [0.0, first, LOWEST_LOGPROB]


def test_a_proxy_that_hides_a_vllm_is_named_with_what_to_do(make: Any, teacher: SampledModel) -> None:
    """It scores, and gives no token ids of what it writes: to keep none of them is no way out here."""
    with (
        serving(make(owner="proxy")) as url,
        engine_of(teacher, url) as asked,
        pytest.raises(RecipeError, match=r"token ids .*127.0.0.1.*name the servers themselves") as refused,
    ):
        asked.write(CHATS, 4)
    assert "keep_tokens" not in str(refused.value)


def test_servers_say_how_many_positions_they_have(make: Any, teacher: SampledModel) -> None:
    servers = serving(make(positions=180)), serving(make())
    with servers[0] as short, servers[1] as other, engine_of(teacher, short, other) as asked:
        assert asked.positions() == {short: 180}


@pytest.mark.parametrize(
    ("longest", "vocabulary", "wanted"), [(200, 576, 256), (8192, 151_936, 1), (1024, 151_936, 6)]
)
def test_scoring_is_bounded_by_tokens_times_vocabulary(longest: int, vocabulary: int, wanted: int) -> None:
    assert in_flight(longest, vocabulary, 256) == wanted


def test_the_weights_score_in_batches_whose_logits_are_bounded(
    tiny: Any, style: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of many lengths; each score is that of its row alone."""
    prompts = [style.prompts.ids([{"role": "user", "content": "7" * number}]) for number in range(1, 10)]
    rows = [(prompt, prompt[: 1 + number]) for number, prompt in enumerate(prompts)]
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    monkeypatch.setattr("students.scoring.SCORING_BYTES", 4 * 4 * longest * tiny.config.vocab_size)
    sizes = []
    hook = tiny.register_forward_hook(lambda _, given, out: sizes.append(out.logits.shape[:2]))
    scores = score_here(tiny, rows)
    hook.remove()
    assert [rows for rows, _ in sizes] == [4, 4, 1]
    assert all(kept < longest for _, kept in sizes), "none of the shared part of the prompts"
    for (prompt, response), found in zip(rows, scores, strict=True):
        logits = tiny(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = logits.gather(-1, torch.tensor(response)[:, None])[:, 0].tolist()
        assert found == pytest.approx(wanted, abs=1e-4)
