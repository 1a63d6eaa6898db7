"""A server on loopback that writes and scores by a model's own weights, and leaves as it is told.

It speaks the part of vLLM's protocol that a teacher of polish needs: models, chat completions with token ids, and
completions of token ids with prompt_logprobs. Each text is scored alone, so that its scores are always the same.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from pipeline.sampling.prompts import ChatPrompts
from tests.scripted_teacher import application_of


class ScoringServer:
    """`model` behind `name`. `scored` counts how often each text was scored; with `scores` false it does not.
    After `answers` scores it refuses the request, and where it `dies` closes the connection. It takes
    `positions` tokens of a model at `root` and says whose it is, as a proxy may not, with `owner`; token ids are for
    who asks."""

    def __init__(
        self,
        name: str,
        model: Any,
        prompts: ChatPrompts,
        end: int,
        *,
        scores: bool = True,
        answers: int | None = None,
        dies: bool = False,
        delay_seconds: float = 0.0,
        positions: int | None = None,
        owner: str = "vllm",
        root: str | None = None,
    ) -> None:
        self.name, self.model, self.prompts, self.end = name, model, prompts, end
        self.scores, self.answers, self.dies, self.delay_seconds = scores, answers, dies, delay_seconds
        self.positions, self.owner, self.root = positions, owner, root
        self.scored: Counter[tuple[int, ...]] = Counter()

    def application(self) -> web.Application:
        return application_of(self, web.post("/v1/completions", self.completions))

    async def models(self, request: web.Request) -> web.Response:
        entry = {"id": self.name, "owned_by": self.owner, "root": self.root, "max_model_len": self.positions}
        return web.json_response({"data": [entry]})

    async def chat(self, request: web.Request) -> web.Response:
        from students.sampler import Draw, draw

        body = await request.json()
        prompt = self.prompts.ids(body["messages"])
        (found,) = draw(self.model, [Draw(prompt, 0)], self.end, body["max_tokens"], 0.0, batch=1)
        ended = found.ids[-1] == self.end
        steps = [
            {"token": str(token), "logprob": p} for token, p in zip(found.ids, found.logprobs, strict=True)
        ]
        choice = {
            "message": {"role": "assistant", "content": self.prompts.decode(found.ids)},
            "finish_reason": "stop" if ended else "length",
            "logprobs": {"content": steps},
            "token_ids": found.ids,
        }
        if not body.get("return_token_ids"):
            del choice["token_ids"]
        return web.json_response({"model": self.name, "choices": [choice]})

    async def completions(self, request: web.Request) -> web.Response:
        from students.scoring import score_here

        body = await request.json()
        ids = body["prompt"]
        assert (body["prompt_logprobs"], body["max_tokens"]) == (0, 1)
        if self.answers is not None and self.scored.total() >= self.answers:
            if self.dies and request.transport is not None:
                request.transport.close()
            return web.json_response({"error": "enough"}, status=400)
        choice: dict[str, Any] = {"text": "", "finish_reason": "length"}
        if self.scores:
            self.scored[tuple(ids)] += 1
            await asyncio.sleep(self.delay_seconds)
            (logprobs,) = score_here(self.model, [(ids[:1], ids[1:])])
            steps = [{str(token): {"logprob": p}} for token, p in zip(ids[1:], logprobs, strict=True)]
            choice["prompt_logprobs"] = [None, *steps]
        return web.json_response({"model": self.name, "choices": [choice]})


@contextmanager
def serving(server: ScoringServer) -> Iterator[str]:
    """Its URL, while a thread answers there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = web.AppRunner(server.application())

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0).start()
        return int(runner.addresses[0][1])

    try:
        port = asyncio.run_coroutine_threadsafe(start(), loop).result()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
