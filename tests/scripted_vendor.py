"""A server on loopback that answers like one of tests/vendors.yaml, whole or as a stream.

    python -m tests.scripted_vendor --vendor Ollama --seconds 300

`/seen` lists the bodies that it was sent, `gone` counts readers that went away in the middle of a stream.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.scripted_teacher import answer, application_of, serve

VENDORS: dict[str, dict[str, Any]] = {
    vendor["name"]: vendor for vendor in yaml.safe_load(Path(__file__).with_name("vendors.yaml").read_text())
}
PIECE = 5  # characters of an event
ONLY_STREAM = {
    "error": {
        "code": "invalid_parameter_error",
        "param": None,
        "message": "parameter.enable_thinking must be set to false for non-streaming calls",
        "type": "invalid_request_error",
    }
}


def filled(shape: Any, **texts: str) -> Any:
    """A shape with its $words replaced."""
    if isinstance(shape, dict):
        return {name: filled(value, **texts) for name, value in shape.items()}
    if isinstance(shape, list):
        return [filled(value, **texts) for value in shape]
    if isinstance(shape, str):
        for name, text in texts.items():
            shape = shape.replace(f"${name}", text)
    return shape


class ScriptedVendor:
    """`vendor` is an entry of vendors.yaml, or one like it. `pause` is the time between two events."""

    def __init__(self, vendor: dict[str, Any], pause: float = 0.0) -> None:
        self.vendor = vendor
        self.pause = pause
        self.bodies: list[dict[str, Any]] = []
        self.gone = 0
        self.waiting = list(vendor.get("first", []))

    def application(self) -> web.Application:
        return application_of(self, web.get("/seen", self.seen))

    async def seen(self, request: web.Request) -> web.Response:
        return web.json_response(self.bodies)

    async def models(self, request: web.Request) -> web.Response:
        listed = self.vendor["models"]
        if isinstance(listed, int):
            return web.json_response({"error": "not found"}, status=listed)
        return web.json_response(listed)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        for name, refusal in self.vendor.get("refuses", {}).items():
            if name in body:
                return self.refusal(refusal)
        if self.waiting:
            first = self.waiting.pop(0)
            return self.refusal(first) if "status" in first else web.json_response(first)
        stream = self.vendor.get("stream", "yes")
        if stream == "only" and not body.get("stream"):
            return web.json_response(ONLY_STREAM, status=400)
        question = body["messages"][-1]["content"]
        thinking, text, tokens = answer(question, body.get("seed", body.get("random_seed", 0)))
        reply = filled(self.vendor["reply"], thinking=thinking, answer=text, asked=body["model"])
        usage = {"prompt_tokens": 10, "completion_tokens": tokens}
        counted = self.vendor.get("usage", "last") == "last"
        if body.get("stream") and stream != "no":
            return await self.events(request, reply, usage if counted else None)
        message, reason = reply.pop("message"), reply.pop("finish_reason", None)
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
        return web.json_response({**reply, "choices": [choice], **({"usage": usage} if counted else {})})

    @staticmethod
    def refusal(refusal: dict[str, Any]) -> web.Response:
        text = refusal["body"] if isinstance(refusal["body"], str) else json.dumps(refusal["body"])
        return web.Response(text=text, status=refusal["status"], headers=refusal.get("headers", {}))

    async def events(
        self, request: web.Request, reply: dict[str, Any], usage: dict[str, Any] | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        message, reason = reply.pop("message"), reply.pop("finish_reason", None)
        choices: list[dict[str, Any]] = [{"delta": {"role": "assistant"}}]
        choices += [{"delta": delta} for delta in deltas(message)]
        choices.append({"delta": {}, "finish_reason": reason})
        lines = [line for line in self.vendor.get("comments", [])]
        lines += [f"data: {json.dumps({**reply, 'choices': [choice]})}\n" for choice in choices]
        if usage:
            lines.append(f"data: {json.dumps({**reply, 'choices': [], 'usage': usage})}\n")
        if self.vendor.get("done", True):
            lines.append("data: [DONE]\n")
        try:
            for line in lines:
                await response.write(f"{line}\n".encode())
                await asyncio.sleep(self.pause)
        except (ConnectionError, asyncio.CancelledError):
            self.gone += 1
            raise
        return response


def deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message in pieces: thinking before content."""
    found: list[dict[str, Any]] = []
    fields = sorted(message, key=lambda name: name == "content")
    for name in fields:
        value = message[name]
        if isinstance(value, str):
            found += [{name: value[i : i + PIECE]} for i in range(0, len(value), PIECE)] or [{name: ""}]
        elif value is not None:
            found += [{name: [part]} for part in value]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vendor", choices=VENDORS, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    flags = parser.parse_args()
    asyncio.run(serve(ScriptedVendor(VENDORS[flags.vendor]).application(), 0, flags.seconds))


if __name__ == "__main__":
    sys.exit(main())
