"""A teacher on loopback that answers as told: what a real server will not do on demand.

    python -m tests.scripted_teacher --port 8001 --behaviour good --seconds 300

It speaks just enough of the OpenAI protocol, is deterministic in (question, seed), and ends by itself after
`--seconds`, so no test leaves one behind. A word in [brackets] in a question overrules `--behaviour`.
"""

import argparse
import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

MODEL = "scripted"
BEHAVIOURS = [
    "good", "busy", "error_500", "hang", "drop", "invalid_json", "empty_choices", "cut_thinking",
    "wrong_model", "unclosed", "in_text", "odd_blanks", "old_field", "error_400", "no_tags", "odd_reason",
    "no_usage",
]  # fmt: skip


def answer(question: str, seed: int) -> tuple[str, str, int]:
    """Thinking, answer and output tokens, all decided by question and seed."""
    digest = hashlib.sha256(f"{question}/{seed}".encode()).digest()
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    value = sum(numbers) + (0 if digest[0] < 160 else 1)  # right 5 times in 8
    return f"adding {numbers}", f"\\boxed{{{value}}}", 20 + digest[1]


def with_odd_blanks(thinking: str, text: str) -> str:
    """A response as models write them when nobody tidies up."""
    return f" \n\t{thinking}  \n\n</think>{text} \r\n\n"


def kept_tokens(num_tokens: int) -> tuple[list[int], list[float]]:
    """The ids and the log-probabilities of a response of so many tokens."""
    return list(range(num_tokens)), [-0.25 * (i % 5) for i in range(num_tokens)]


def refusal(behaviour: str, number: int) -> web.Response | None:
    """Whether the request of this number is among those that are refused: refuse_<status>_<percent>, and
    _after_<seconds> where the server says how long to wait. What is asked again may be refused again."""
    told = re.fullmatch(r"refuse_(\d+)_(\d+)(?:_after_(\d+))?", behaviour)
    lot = int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:4], "big") % 100
    if told is None or lot >= int(told[2]):
        return None
    wait = {"Retry-After": told[3]} if told[3] else {}
    return web.json_response({"error": "slow down"}, status=int(told[1]), headers=wait)


class ScriptedTeacher:
    """`behaviour` for all questions, or the word in [brackets] of each question.

    It serves `model` and says that `owner` owns it; with `tokens` it answers /tokenize as vLLM does. Answers
    of [hold] wait until `released` is set.
    """

    def __init__(
        self,
        behaviour: str = "good",
        delay_seconds: float = 0.0,
        model: str = MODEL,
        owner: str = "script",
        tokens: list[int] | None = None,
    ) -> None:
        self.behaviour = behaviour
        self.delay_seconds = delay_seconds
        self.model, self.owner, self.tokens = model, owner, tokens
        self.released = asyncio.Event()
        self.asked: Counter[str] = Counter()
        self.last_body: dict[str, Any] = {}

    def application(self) -> web.Application:
        more = [] if self.tokens is None else [web.post("/tokenize", self.tokenize)]
        return application_of(self, web.get("/seen", self.seen), *more)

    async def tokenize(self, request: web.Request) -> web.Response:
        self.last_body = await request.json()
        return web.json_response({"tokens": self.tokens})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.model, "owned_by": self.owner}]})

    async def seen(self, request: web.Request) -> web.Response:
        return web.json_response(dict(self.asked))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = self.last_body = await request.json()
        question = body["messages"][0]["content"]
        key = f"{question}/{body['seed']}"
        self.asked[key] += 1
        told = re.search(r"\[(\w+)\]", question)
        behaviour = told[1] if told else self.behaviour
        if (refused := refusal(behaviour, self.asked.total())) is not None:
            return refused  # at once, as servers do it
        if self.delay_seconds:
            spread = hashlib.sha256(key.encode()).digest()[2] / 128
            await asyncio.sleep(self.delay_seconds * spread)
        return await self._respond(request, behaviour, body, self.asked[key] > 1)

    async def _respond(
        self, request: web.Request, behaviour: str, body: dict[str, Any], again: bool
    ) -> web.StreamResponse:
        thinking, text, tokens = answer(body["messages"][0]["content"], body["seed"])
        message: dict[str, Any] = {"role": "assistant", "content": text, "reasoning": thinking}
        reply: dict[str, Any] = {
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": tokens},
        }
        if behaviour == "busy" and not again:
            return web.json_response({"error": "slow down"}, status=429, headers={"Retry-After": "0.2"})
        if behaviour == "error_500_once" and not again:
            return web.json_response({"error": "once"}, status=500)
        if behaviour == "flaky_400" and body["seed"] % 2:
            return web.json_response({"error": "odd"}, status=400)
        if behaviour.startswith("error_") and behaviour != "error_500_once":
            key = request.headers.get("Authorization", "")
            return web.json_response({"error": f"refused {key}"}, status=int(behaviour[6:]))
        if body.get("logprobs"):
            ids, logprobs = kept_tokens(tokens)
            named = [{"token": f"t{i}", "logprob": p} for i, p in zip(ids, logprobs, strict=True)]
            reply["choices"][0]["logprobs"] = {"content": named}
            if body.get("return_token_ids"):
                reply["choices"][0]["token_ids"] = ids
        if behaviour == "hold":
            await self.released.wait()
        if behaviour == "hang":
            await asyncio.sleep(3600)
        if behaviour == "drop" and request.transport is not None:
            request.transport.close()
        if behaviour == "invalid_json":
            return web.Response(text='{"choices": [', content_type="application/json")
        if behaviour == "empty_choices":
            reply["choices"] = []
        if behaviour == "wrong_model":
            reply["model"] = f"another, for {request.headers.get('Authorization', 'anyone')}"
        if behaviour == "odd_reason":
            reply["choices"][0]["finish_reason"] = ["stop"]
        if behaviour == "no_usage":
            del reply["usage"]
        if behaviour == "cut_thinking":
            message.update(content=None)
            reply["choices"][0]["finish_reason"] = "length"
        if behaviour == "cut_answer":
            reply["choices"][0]["finish_reason"] = "length"
        if behaviour == "unclosed":
            message.update(content=f"<think>\n{thinking}", reasoning=None)
        if behaviour == "in_text":
            message.update(content=f"{thinking}\n</think>\n\n{text}", reasoning=None)
        if behaviour == "odd_blanks":
            message.update(content=with_odd_blanks(thinking, text), reasoning=None)
        if behaviour == "old_field":
            message["reasoning_content"] = message.pop("reasoning")
        if behaviour == "no_tags":
            message.update(reasoning=None)
        return web.json_response(reply)


def application_of(server: Any, *more: web.RouteDef) -> web.Application:
    """What every server of these tests answers to, by its methods `models` and `chat`, and `more`."""
    app = web.Application()
    asked = [web.get("/v1/models", server.models), web.post("/v1/chat/completions", server.chat)]
    app.add_routes([*asked, *more])
    return app


async def serve(application: web.Application, port: int, seconds: float) -> None:
    """Answer on loopback for so long; the port is printed as JSON."""
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.sleep(seconds)
    await runner.cleanup()


def main(server: Callable[[str, float], Any], behaviour: str) -> None:
    """Serve one of these for as long as the flags say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviour", default=behaviour)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=300.0)
    flags = parser.parse_args()
    application = server(flags.behaviour, flags.delay).application()
    asyncio.run(serve(application, flags.port, flags.seconds))


if __name__ == "__main__":
    main(ScriptedTeacher, "good")
