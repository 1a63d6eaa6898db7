"""Reading an answer: what the model wrote, how it ended, and what it took, in the words of many servers.

text        a string, or a list of parts; thinking is in the text, in a part, or in a field of its own
end         one word for each meaning: "stop", "length"; other words for it are mapped, and a word that is
            not known is a failure that says so, never a guess
tokens      as the server counts them; None where it does not
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from pipeline.recipe.cards import SampledModel, Tags
from pipeline.records import STOP, Tokens
from pipeline.render import Split, join_response, split_response
from pipeline.sampling.engines.base import LOWEST_LOGPROB, RequestFailed, likeliest
from pipeline.sampling.engines.faults import Retry

MAX_COUNT = 2**31  # of tokens, and no token's id is above it
LONGEST_REASON = 40
ROUNDING = 1e-3  # what a log-probability may be above 0; more is none, and a student would learn from it
TOKEN_ID = "token_id:"  # how vLLM's server names a token where it is asked for ids
SHOWN_END = 80  # characters of a response whose end is not understood
LENGTH = "length"
# in lower case, with "_" for blanks and dashes; whose words they are stands in docs/servers.md
ENDED = {
    **dict.fromkeys(["stop", "eos", "eos_token", "end_turn", "end_of_turn", "end_of_message"], STOP),
    **dict.fromkeys(["stop_sequence", "stop_token", "stop_word", "complete", "completed"], STOP),
    **dict.fromkeys(["length", "max_tokens", "model_length", "max_output_tokens", "out_of_tokens"], LENGTH),
    **dict.fromkeys(["token_limit", "max_length", "model_context_window_exceeded"], LENGTH),
}
# no response of the model: kind of failure by word
NO_RESPONSE = {
    **dict.fromkeys(["content_filter", "content_filtered", "safety", "refusal"], "content_filter"),
    **dict.fromkeys(["blocklist", "prohibited_content", "recitation"], "content_filter"),
    **dict.fromkeys(["guardrail_intervened"], "content_filter"),
    **dict.fromkeys(["tool_calls", "tool_use", "function_call"], "tool_calls"),
    **dict.fromkeys(["abort", "error"], "engine_error"),
}
AGAIN = {"insufficient_system_resource"}  # DeepSeek: its server gave up, another attempt may do
HIDDEN = {"reasoning.encrypted", "reasoning.summary", "redacted_thinking"}
# what may stand behind a model's name: a snapshot, a revision, a tag that says nothing. Ollama's other tags
# are sizes and quantisations (llama3:70b): other models
SNAPSHOT = re.compile(
    r"-(latest|main|free|\d{3,4}|\d{6}|\d{8}|\d{4}-\d{2}-\d{2}|[0-9a-f]{12,64})|@[\w.-]+"
    r"|:(latest|free|thinking|\d{4}|\d{6}|\d{8}|\d{4}-\d{2}-\d{2})"
)


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """An answer as it was read. `word` is the server's own for how it ended, None where it said none."""

    text: str
    word: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    tokens: Tokens | None = None


def read_answer(answer: Any, names: tuple[str, ...], model: SampledModel) -> ServerAnswer:
    """What is in a server's JSON. `names` are what the model may be called there. RequestFailed for what is
    no answer to what was asked, Retry for an answer that is empty."""
    try:
        said = answer.get("model")
        if said is not None and not any(same_model(name, said) for name in names):
            raise RequestFailed(
                "wrong_model",
                f"asked {names[0]}, the answer is from {said}. If that is the same model, give its name "
                "with --served-name",
            )
        if not answer.get("choices"):
            raise Retry("empty_choices", json.dumps(answer))
        choice = answer["choices"][0]
        word = choice.get("finish_reason")
        if word is not None and not isinstance(word, str):
            raise TypeError("finish_reason is not text")
        if word and (len(word) > LONGEST_REASON or not (word.isascii() and word.isprintable())):
            raise ValueError(f"finish_reason is {word}")
        usage = answer.get("usage") or {}
        counts = (count_of(usage, "prompt_tokens"), count_of(usage, "completion_tokens"))
        kept = tokens_of(choice)
        text = text_of(choice["message"], model.tags)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise RequestFailed("invalid_answer", f"{type(error).__name__}: {error}") from None
    # JSON can hold half of a surrogate pair, which no file can
    return ServerAnswer(text.encode(errors="replace").decode(), word or None, *counts, kept)


def end_of(answer: ServerAnswer, max_tokens: int) -> str:
    """How a response ended, "stop" or "length". RequestFailed where it is no response or the word is unknown.

    Without a word the number of tokens tells: a whole answer that is shorter than its limit came to its end.
    """
    word = re.sub(r"[\s-]+", "_", (answer.word or "").lower()).removeprefix("finish_reason_")
    if not word and answer.output_tokens is not None and answer.text.strip():
        return STOP if answer.output_tokens < max_tokens else LENGTH
    if word in ENDED:
        return ENDED[word]
    ends = f"the response ends with {answer.text[-SHOWN_END:]!r}"
    if word in AGAIN:
        raise Retry(word, ends)
    if word in NO_RESPONSE:
        raise RequestFailed(NO_RESPONSE[word], f"finish_reason {answer.word}; {ends}")
    said = f"finish_reason is {answer.word!r}" if word else "the answer does not say how it ended"
    raise RequestFailed("unknown_finish_reason", f"{said}; {ends}")


def text_of(message: dict[str, Any], tags: Tags) -> str:
    """The response as the model must have written it, whatever the server took apart."""
    content, parts = content_of(message.get("content"))
    fields = [
        parts,
        *(field_of(message.get(name)) for name in ("reasoning", "reasoning_content", "thinking")),
    ]
    if not all(isinstance(text, str) for text in (content, *(text or "" for text in fields))):
        raise TypeError("content or reasoning is not text")
    shown, hidden = details_of(message.get("reasoning_details"))
    thinking = next((text for text in (*fields, shown) if text and text.strip()), None)
    if tags.hidden:
        return content  # what is shown instead of it (a summary) was never the model's thinking
    if thinking is None:
        if hidden and tags.close not in content:
            raise RequestFailed(
                "hidden_thinking",
                "the server keeps the model's thinking to itself. Its answers can be kept as answers: say "
                "thinking: hidden in the teacher's card",
            )
        return content
    split = split_response(content, tags)
    if split.closing == "closed" and (split.thinking or "").strip() == thinking.strip():
        return content  # the same thinking twice
    return rejoined(thinking, content, tags)


def content_of(content: Any) -> tuple[Any, str]:
    """Text and thinking of a content: a string, or a list of parts of these kinds."""
    if not isinstance(content, list):
        return content or "", ""
    text, thinking = [], []
    for part in content:
        if isinstance(part, str):
            text.append(part)
            continue
        kind = part.get("type") or "text"
        if kind in ("text", "output_text"):
            text.append(part.get("text") or "")
        elif kind in ("thinking", "reasoning"):
            inner = part.get("thinking") or part.get("text") or part.get("reasoning") or ""
            thinking.append(inner if isinstance(inner, str) else content_of(inner)[0])
        else:
            raise ValueError(f"a part of the content is of the kind {kind!s:.40}")
    return "".join(text), "".join(thinking)


def field_of(value: Any) -> Any:
    """The text of a field for thinking, whose parts are thinking of whatever kind."""
    return "".join(content_of(value)) if isinstance(value, list) else value


def details_of(details: Any) -> tuple[str, bool]:
    """The thinking in a list of reasoning_details, and whether some of it is hidden."""
    if not isinstance(details, list):
        return "", False
    held = [part for part in details if isinstance(part, dict)]
    shown = "".join(part["text"] for part in held if isinstance(part.get("text"), str))
    return shown, any(part.get("type") in HIDDEN for part in held)


def rejoined(thinking: str, content: str, tags: Tags) -> str:
    """The response that a server's reasoning parser took apart, as the model must have written it.

    A parser that found no closing tag calls all of the text reasoning: the block was not closed then.
    """
    split = Split(thinking.strip("\n"), content.strip(), "closed" if content.strip() else "unclosed")
    return join_response(split, tags, f"{tags.open}\n" if tags.opened_by_prompt else "")


def tokens_of(choice: dict[str, Any]) -> Tokens | None:
    """The sampled tokens; None where the server did not give an id and a log-probability of each."""
    ids, steps = choice.get("token_ids"), (choice.get("logprobs") or {}).get("content")
    if ids is None or steps is None or len(ids) != len(steps):
        return None
    kept = [int(token) for token in ids], [logprob_of(step) for step in steps]
    if not all(0 <= token < MAX_COUNT for token in kept[0]):
        raise ValueError("a token's id is none")
    top = [top_of(step) for step in steps]
    if not all(top):
        return Tokens(*kept)
    return Tokens(
        *kept, [[token for token, _ in pairs] for pairs in top], [[p for _, p in pairs] for pairs in top]
    )


def top_of(step: dict[str, Any]) -> list[tuple[int, float]]:
    """The most likely tokens at a place, which a server that was asked to names by their ids; else none."""
    held = step.get("top_logprobs") or []
    if not all(str(entry["token"]).startswith(TOKEN_ID) for entry in held):
        return []
    found = {int(entry["token"].removeprefix(TOKEN_ID)): logprob_of(entry) for entry in held}
    if not all(0 <= token < MAX_COUNT for token in found):
        raise ValueError("a likely token's id is none")
    return likeliest(found, len(found))


def logprob_of(entry: dict[str, Any]) -> float:
    """The log-probability that stands beside a token. ValueError for what is none, as a probability."""
    logprob = max(float(entry["logprob"]), LOWEST_LOGPROB)
    if not logprob <= ROUNDING:  # nor is NaN
        raise ValueError("a token's log-probability is none")
    return logprob


def count_of(usage: dict[str, Any], name: str) -> int | None:
    """A number of tokens in a server's `usage`; None where it says none. (A prompt or a response of 0 tokens
    is none: some servers say 0 where they do not count.)"""
    count = int(usage.get(name) or 0)
    if not 0 <= count < MAX_COUNT:
        raise ValueError(f"usage.{name} is no number of tokens")
    return count or None


def same_model(asked: str, said: Any) -> bool:
    """Whether a server's name for a model is another spelling of the one that was asked for: in other case,
    with or without a provider or a folder before it, with or without a snapshot behind it."""
    if not isinstance(said, str):
        return False
    one, other = (name.lower().strip().rpartition("/")[2] for name in (asked, said))
    short, long = sorted((one, other), key=len)
    return (
        bool(short)
        and long.startswith(short)
        and (len(long) == len(short) or SNAPSHOT.fullmatch(long[len(short) :]) is not None)
    )
