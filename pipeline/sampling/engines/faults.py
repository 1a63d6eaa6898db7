"""What a server's refusal means: for this request, for its parameters, for this server, or for all of them.

Statuses and the error objects that some servers put into an answer of status 200 are read alike: there the
object's code decides (OpenRouter, LiteLLM and others answer 200 once a model has begun).
"""

import json
import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.errors import EngineError
from pipeline.run.secrets import API_KEY
from pipeline.sampling.engines.base import RequestFailed

# 409 and 425: "again, later"; 520 to 530 are Cloudflare's words for a server behind it, 529 an overloaded one
TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, *range(520, 531)}
BUSY = {"http_429", "http_503", "http_529"}  # the server is well, it has too much to do
MAX_WAIT_SECONDS = 300.0  # between two attempts; who asks for more rests until then
# the codes of an account that has nothing left; the sentence "you exceeded your current quota" is none of
# them, for some servers say that for each minute
NO_MONEY = re.compile(
    r"insufficient[_ ](quota|balance|credit|funds)|billing_hard_limit|exceeded_current_quota|arrearage", re.I
)
MODERATED = re.compile(r"moderat|flagged|content|policy|safety|guardrail|inappropriate", re.I)
WORDS = {
    "rate_limit": 429,
    "too_many_requests": 429,
    "overloaded": 503,
    "unavailable": 503,
    "timeout": 504,
    "server_error": 500,
    "internal": 500,
}


class Retry(Exception):
    """A named transient error; `asked_seconds` is the wait that the server asked for, if it did."""

    def __init__(self, kind: str, detail: str, asked_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.asked_seconds = asked_seconds

    @property
    def wait_seconds(self) -> float | None:
        return None if self.asked_seconds is None else min(self.asked_seconds, MAX_WAIT_SECONDS)


class BadRequest(RequestFailed):
    """A request as it stands is refused (400, 422). `said` is the server's whole text, for it may name a
    parameter; it is not to be recorded."""

    def __init__(self, kind: str, detail: str, said: str) -> None:
        super().__init__(kind, detail)
        self.said = said


class Forbidden(RequestFailed):
    """A 403: a key that may not, or a question that a moderation refuses; `moderated` where it says so."""

    def __init__(self, detail: str, moderated: bool) -> None:
        super().__init__("http_403", detail)
        self.moderated = moderated


def fault_of(status: int, said: str, shown: str, where: str, asked_seconds: float | None = None) -> Exception:
    """What to raise for an answer of `status` that says so; `shown` is `said` as it may be recorded."""
    kind = f"http_{status}"
    if status == 401:
        return wants_a_key(where, status)
    if status == 402 or NO_MONEY.search(said):
        return EngineError(
            f"{where}: the account has nothing left ({status}: {shown}). What was finished is kept: fill it "
            "up, or name another server, and run the same command again"
        )
    if status == 403:
        return Forbidden(shown, bool(MODERATED.search(said)))
    if status in TRANSIENT_STATUS:
        return Retry(kind, shown, asked_seconds)
    if status in (400, 422):
        return BadRequest(kind, shown, said)
    return RequestFailed(kind, shown)


def wants_a_key(where: str, status: int) -> EngineError:
    return EngineError(
        f"{where} answers {status}: it wants an API key that it knows. Put one into the environment variable "
        f"{API_KEY}; it is never logged"
    )


def status_of(error: Any) -> int | None:
    """The status that an error object stands for: its code where that is one, else a word of it."""
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return None
    for name in ("code", "status", "status_code"):
        text = str(error.get(name, ""))
        if re.fullmatch(r"[45]\d\d", text):
            return int(text)
    said = " ".join(str(error.get(name, "")) for name in ("code", "type", "message"))
    said = re.sub(r"[\s-]+", "_", said.lower())
    return next((status for word, status in WORDS.items() if word in said), None)


def refuse_error(answer: Any, shown: Any, where: str) -> None:
    """Raise what the error object inside an answer stands for, where there is one."""
    if not isinstance(answer, dict):
        return
    error = answer.get("error")
    choices = answer.get("choices")
    if not error and isinstance(choices, list) and choices and isinstance(choices[0], dict):
        error = choices[0].get("error")
    if not error:
        return
    said = json.dumps(error, ensure_ascii=False)
    status = status_of(error)
    if status is None:
        if NO_MONEY.search(said):
            raise fault_of(402, said, shown(said), where)
        raise RequestFailed("error_in_answer", shown(said))
    raise fault_of(status, said, shown(said), where)


def asked_seconds(value: str | None, date: str | None = None) -> float | None:
    """Seconds of a Retry-After header, in either of its forms; None where it is neither.

    A time of day is read against the answer's own `date`, as the clocks of two machines may differ.
    """
    try:
        seconds = float(value or "nan")
    except ValueError:
        until = _time(value)
        if until is None:
            return None
        seconds = (until - (_time(date) or datetime.now(UTC))).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _time(header: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(str(header))
    except (ValueError, OverflowError):  # numbers without bounds
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
