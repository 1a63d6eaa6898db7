"""score: the log-probabilities that an engine gives to a text that somebody else wrote, and a round's of them."""

import math
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import EngineError, RecipeError, StageError
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
    """The directory of rounds, with those that are scored."""
    for number in range(3):
        (tmp_path / f"{number:05}").mkdir()
    return tmp_path


@pytest.fixture
def responses(style: Format) -> list[Response]:
    texts = [style.prompts.encode(f"{2 * i}</think>\n\\boxed{{{2 * i}}}<|im_end|>") for i in range(12)]
    prompt = style.prompts.ids(CHATS[0])
    return [Response(prompt, ids, [-0.1] * len(ids), True, False) for ids in texts]


def engine_of(
    teacher: SampledModel, *urls: str, limit: int = 4, outage_seconds: float = 600.0
) -> TeacherEngine:
    flags = EngineFlags(engine="server", urls=urls, outage_seconds=outage_seconds)
    return TeacherEngine(teacher, flags, limit)


def rows_of(responses: list[Response]) -> list[tuple[list[int], list[int]]]:
    return [(response.prompt, response.ids) for response in responses]


def test_a_server_scores_each_token_of_a_response(
    make: Any, tiny: Any, teacher: SampledModel, responses: list[Response], rounds: Path
) -> None:
    with serving(make()) as url, engine_of(teacher, url) as asked:
        found = asked.score_round(rounds, (), 0, responses)
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
        asked.score_round(rounds, (), 0, responses)
    path = rounds / "00000" / SCORES
    with path.open("a") as file:
        file.write('{"response": "0123", "log')  # as a kill leaves it
    server = make()
    with serving(server) as url, engine_of(teacher, url) as asked:
        found = asked.score_round(rounds, (), 0, responses)
        again = asked.score_round(rounds, (), 0, responses)
    assert server.scored.total() == 7
    assert found == again
    assert list(map(len, found)) == [len(response.ids) for response in responses]


def test_scores_that_were_moved_aside_are_taken_where_the_same_teacher_gave_them(
    make: Any, teacher: SampledModel, responses: list[Response], rounds: Path, tmp_path: Path
) -> None:
    aside = Path(shutil.copytree(rounds, tmp_path / "polish.1" / "rounds"))
    other = replace(teacher, identity=teacher.identity | {"revision": "another"})
    server = make()
    with serving(server) as url:
        with engine_of(teacher, url) as asked:
            bought = asked.score_round(aside, (), 0, responses[:5])
        with engine_of(other, url) as asked:
            asked.score_round(aside, (), 0, responses[:8])  # three are the other teacher's
        path = aside / "00000" / SCORES
        with path.open("a") as file:
            file.write('{"response": "0123", "log')
        held = path.read_bytes()
        with engine_of(teacher, url) as asked:
            found = asked.score_round(rounds, (aside,), 0, responses)
    assert server.scored.total() == 5 + 3 + 7
    assert found[:5] == bought
    assert path.read_bytes() == held
    assert (rounds / "00000" / SCORES).read_text().count("\n") == 12


@pytest.mark.parametrize("line", ["garbage", "7", '{"response": "0123"}', "\xff"])
def test_a_line_that_is_no_score_is_named(
    make: Any, teacher: SampledModel, responses: list[Response], rounds: Path, line: str
) -> None:
    path = rounds / "00000" / SCORES
    path.write_text(f'{{"response": "0123", "logprobs": [-1.0]}}\n{line}\n', encoding="latin-1")
    with (
        serving(make()) as url,
        engine_of(teacher, url) as asked,
        pytest.raises(StageError, match=r"scores.jsonl:2: is not a score .* Remove that line; what it held"),
    ):
        asked.score_round(rounds, (), 0, responses)


def test_a_server_without_the_name_that_was_given_is_told_of_that_name(
    make: Any, teacher: SampledModel
) -> None:
    with serving(make()) as url:
        flags = EngineFlags(engine="server", urls=(url,), served_name="another")
        with (
            TeacherEngine(teacher, flags, 4) as asked,
            pytest.raises(EngineError, match=r"does not serve another; it serves teacher.*--served-name"),
        ):
            asked.positions()


def test_another_server_takes_over(
    make: Any, teacher: SampledModel, responses: list[Response], rounds: Path
) -> None:
    first, second = make(answers=2, dies=True), make()
    with serving(first) as one, serving(second) as two, engine_of(teacher, one, two) as asked:
        found = asked.score_round(rounds, (), 0, responses)
    assert len(found) == 12
    assert (first.scored.total(), second.scored.total()) == (2, 10)


EXCHANGED = [
    ("root", "/models/other", "serves /models/other now, under the name under which it served /models/it"),
    ("positions", 100, r"takes 100 tokens now \(max_model_len\), and took 180"),
]


@pytest.mark.parametrize(("name", "value", "said"), EXCHANGED, ids=["other weights", "shorter context"])
def test_a_server_that_came_back_as_less_is_asked_no_more(
    make: Any, teacher: SampledModel, responses: list[Response], rounds: Path,
    caplog: pytest.LogCaptureFixture, name: str, value: Any, said: str,
) -> None:  # fmt: skip
    first, second = make(answers=2, dies=True, root="/models/it", positions=180), make()
    with serving(first) as one, serving(second) as two, engine_of(teacher, one, two) as asked:
        asked.positions()
        setattr(first, name, value)
        asked.score_round(rounds, (), 0, responses)
        first.answers, end = None, time.monotonic() + 60
        while "answers but is not used" not in caplog.text:
            assert time.monotonic() < end
            time.sleep(0.01)
        asked.score_round(rounds, (), 1, responses)
    assert re.search(rf"{one} answers but is not used: {one} {said}", caplog.text)
    assert (first.scored.total(), second.scored.total()) == (2, 22)


@pytest.mark.parametrize(("name", "value", "said"), EXCHANGED, ids=["other weights", "shorter context"])
def test_a_server_that_was_exchanged_between_two_rounds_is_found_out(
    make: Any, teacher: SampledModel, responses: list[Response], rounds: Path,
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str,
) -> None:  # fmt: skip
    """While the student is trained nobody asks, so no request fails."""
    monkeypatch.setattr("pipeline.sampling.engines.server.IDLE_SECONDS", 0.1)
    server = make(root="/models/it", positions=180)
    with serving(server) as url, engine_of(teacher, url, outage_seconds=0.3) as asked:
        asked.score_round(rounds, (), 0, responses[:6])
        asked.score_round(rounds, (), 1, responses[:6])
        setattr(server, name, value)
        time.sleep(0.2)
        with pytest.raises(EngineError, match=rf"no server could be used for 0 s \({url} {said}"):
            asked.score_round(rounds, (), 2, responses)
    assert server.scored.total() == 12


def test_a_pause_in_which_nobody_asked_is_no_outage(
    make: Any, teacher: SampledModel, responses: list[Response], rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sampling.engines.server.IDLE_SECONDS", 0.0)
    server = make(answers=6, dies=True)
    with serving(server) as url, engine_of(teacher, url, outage_seconds=60.0) as asked:
        asked.score_round(rounds, (), 0, responses[:6])
        asked._engine._replicas._last_sign -= 100  # so long ago
        threading.Timer(0.3, lambda: setattr(server, "answers", None)).start()
        asked.score_round(rounds, (), 1, responses)
    assert server.scored.total() == 18


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
