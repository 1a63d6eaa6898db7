"""Parameters that a server refuses, learnt from what it says (400, 422), once for each server.

What does not bear on the result is left out with a line; what has another name there is sent under that one;
for what bears on it the collection ends: a temperature that a server ignores is another experiment.
"""

import json
import logging
import re
from typing import Any

from pipeline.errors import EngineError
from pipeline.sampling.engines.replicas import Replica

log = logging.getLogger(__name__)

# without a seed another draw is made from the same distribution; the others say how an answer is sent
WITHOUT_BEARING = {"seed", "stream", "stream_options"}
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
OTHER_NAMES = {"max_tokens": "max_completion_tokens"}
BEARING = {
    "temperature": "set generate.sampling.temperature to 1",
    "top_p": "set generate.sampling.top_p to 1",
    "top_k": "set generate.sampling.top_k to 0, which is off",
    "min_p": "set generate.sampling.min_p to 0, which is off",
    "chat_template_kwargs": "leave out template_options in the card: this server renders no template of ours",
    "reasoning_effort": "leave out reasoning_effort in the card's template_options",
    "stop": "it ends a response of this model",
}
REFUSES = re.compile(
    r"unsupported|not support|n't support|unrecogni[sz]ed|unknown|unexpected|extra_forbidden|extra inputs"
    r"|not permitted|not allowed|deprecated|invalid_?\s?param|only the default|instead",
    re.IGNORECASE,
)


def adapted(body: dict[str, Any], replica: Replica) -> dict[str, Any]:
    """The body of a request as this server is known to take it."""
    if not replica.left_out and not replica.renamed:
        return body
    kept = {name: value for name, value in body.items() if name not in replica.left_out}
    return {replica.renamed.get(name, name): value for name, value in kept.items()}


def learn(replica: Replica, body: dict[str, Any], said: str, shown: str) -> bool:
    """Whether what a server said about a request lets the next one be taken. EngineError where it refuses a
    parameter that bears on the result."""
    name = refused_parameter(body, said)
    if name is None:
        return False
    other = OTHER_NAMES.get(name)
    if other is not None:
        known = replica.renamed.get(name) == other
        replica.renamed[name] = other
        if not known:
            log.warning("%s: %s is sent as %s", replica.url, name, other)
        return True
    if name in WITHOUT_BEARING or (name in NEUTRAL and body[name] == NEUTRAL[name]):
        if name not in replica.left_out:
            replica.left_out.add(name)
            log.warning("%s: %s is left out, for it refuses it (%s)", replica.url, name, shown)
        return True
    raise EngineError(
        f"{replica.url} refuses {name} ({shown}), and {name} {body[name]!r} bears on the result: "
        f"{BEARING[name]}, or take another server"
    )


def refused_parameter(body: dict[str, Any], said: str) -> str | None:
    """Which of the parameters of `body` the server's text refuses; None where it speaks of none."""
    if not REFUSES.search(said):
        return None
    known = [name for name in body if name in WITHOUT_BEARING or name in BEARING or name in OTHER_NAMES]
    known = [name for name in known if name not in OTHER_NAMES or OTHER_NAMES[name] in said]
    named = named_in(said)
    places = {name: found.start() for name in known if (found := re.search(rf"\b{name}\b", said))}
    stated = [name for name in known if name in named]
    return stated[0] if stated else min(places, key=lambda name: places[name], default=None)


def named_in(said: str) -> set[str]:
    """The parameters that an error object states: `param`, or the places of pydantic's faults."""
    try:
        error = json.loads(said)
    except (ValueError, RecursionError):
        return set()
    found: set[str] = set()
    waiting = [error]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            found |= {str(inner["param"])} if inner.get("param") else set()
            place = inner.get("loc")
            found |= {str(place[-1])} if isinstance(place, list) and place else set()
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
    return found
