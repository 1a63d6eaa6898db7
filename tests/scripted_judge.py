"""A judge on loopback that judges as told: right, credulous, echoing, talking nonsense, slow.

    python -m tests.scripted_judge --behaviour right --seconds 300

It reads the case as a model would, between its marks, and ends by itself after `--seconds`. /seen counts how
often each case was asked about; /order lists the answers that it was shown, in order.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests.conftest import ROOT
from tests.scripted_teacher import serve

MODEL = "scripted"
FIELD = re.compile(r"<(question|reference|answer) (\w+)>\n(.*?)\n?</\1 \2>", re.DOTALL)


def fields_of(prompt: str) -> dict[str, str]:
    return {name: text for name, _, text in FIELD.findall(prompt)}


def is_right(fields: dict[str, str]) -> bool:
    """Whether the answer boxes the number of the reference, or says the reference word for word."""
    boxed = re.findall(r"\\boxed\{(\d+)\}", fields["answer"])
    numbers = re.findall(r"\d+", fields["reference"])
    return fields["answer"] == fields["reference"] or (bool(boxed) and boxed[-1:] == numbers[-1:])


def reply(verdict: str) -> str:
    return json.dumps({"reason": "It was compared.", "verdict": verdict})


class ScriptedJudge:
    def __init__(self, behaviour: str, delay_seconds: float) -> None:
        self.behaviour = behaviour
        self.delay_seconds = delay_seconds
        self.asked: Counter[str] = Counter()
        self.order: list[str] = []
        self.schemas: list[Any] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes([
            web.get("/v1/models", self.models),
            web.post("/v1/chat/completions", self.chat),
            web.get("/seen", self.seen),
        ])  # fmt: skip
        return app

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "owned_by": "script"}]})

    async def seen(self, request: web.Request) -> web.Response:
        return web.json_response({"asked": self.asked, "order": self.order, "schemas": self.schemas})

    def says(self, fields: dict[str, str]) -> str:
        right = reply("correct" if is_right(fields) else "wrong")
        return {
            "right": right,
            "slow": right,
            "cut": right,
            "fenced": f"```json\n{right}\n```",
            "thinking": f"<think>\nLet me compare.\n</think>\n\n{right}",
            "yes": reply("correct"),
            "no": reply("wrong"),
            "unsure": reply("unsure"),
            "echo": fields["answer"],
            "garbage": "The answer is, I would say, correct! {verdict: correct}",
        }[self.behaviour]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        fields = fields_of(body["messages"][0]["content"])
        self.asked[body["messages"][0]["content"]] += 1
        self.order.append(fields["answer"])
        if (held := body.get("response_format")) not in self.schemas:
            self.schemas.append(held)
        if self.behaviour == "refuses":
            return web.json_response({"error": "response_format is not supported"}, status=400)
        await asyncio.sleep(self.delay_seconds)
        message = {"role": "assistant", "content": self.says(fields)}
        finish = "length" if self.behaviour == "cut" else "stop"
        return web.json_response(
            {
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 12},
            }
        )


@contextmanager
def scripted_judge(behaviour: str, delay_seconds: float = 0.0) -> Iterator[str]:
    """The URL of one in a process of its own, which ends by itself after ten minutes."""
    command = [sys.executable, "-m", "tests.scripted_judge", "--behaviour", behaviour]
    command += ["--delay", str(delay_seconds), "--seconds", "600"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}/v1"
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviour", default="right")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=300.0)
    flags = parser.parse_args()
    asyncio.run(serve(ScriptedJudge(flags.behaviour, flags.delay).application(), 0, flags.seconds))


if __name__ == "__main__":
    sys.exit(main())
