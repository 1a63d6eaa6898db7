"""A judge on loopback that judges as told: right, credulous, echoing, talking nonsense, slow.

    python -m tests.scripted_judge --behaviour right --seconds 300

It reads the case as a model would, between its marks, and ends by itself after `--seconds`. /seen counts how
often each case was asked about, and lists the answers that it was shown, in order.
"""

import asyncio
import json
import re
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

from aiohttp import web

from tests.scripted_teacher import MODEL, application_of, main
from tests.served import served_by

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
        return application_of(self, web.get("/seen", self.seen))

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


def scripted_judge(behaviour: str, delay_seconds: float = 0.0) -> AbstractContextManager[str]:
    """The URL of one in a process of its own, which ends by itself after an hour."""
    return served_by("scripted_judge", "--behaviour", behaviour, "--delay", delay_seconds, "--seconds", 3600)


if __name__ == "__main__":
    main(ScriptedJudge, "right")
