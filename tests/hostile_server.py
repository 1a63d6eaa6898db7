"""A server on loopback that sends what no server should: not HTTP, no end, somebody's key.

    python -m tests.hostile_server --behaviour gzip_bomb --seconds 300

It speaks bytes, not HTTP. /v1/models is answered well, but by the behaviours whose name begins with `models_`.
A word in [brackets] in a question overrules `--behaviour`; `echoes` takes another echo for each request. It ends
by itself after `--seconds`, so no test leaves one behind.
"""

import argparse
import asyncio
import base64
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

MODEL = "scripted"
MEGABYTE = b" " * 2**20
BOMB_MEGABYTES = 400


def head(status: str = "200 OK", *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""]).encode(
        "utf-8", "surrogatepass"
    )


def sized(body: str | bytes, status: str = "200 OK", *lines: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    return head(status, f"Content-Length: {len(data)}", *lines) + data


def answer(**change: Any) -> dict[str, Any]:
    """A good answer, or one with other fields."""
    message = {"role": "assistant", "content": "\\boxed{1}", "reasoning": "so"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 20}
    return {"model": MODEL, "choices": [choice], "usage": usage} | change


def saying(**change: Any) -> bytes:
    """The same with another content or finish_reason."""
    reply = answer()
    reply["choices"][0] |= {name: change[name] for name in change if name == "finish_reason"}
    reply["choices"][0]["message"] |= {name: change[name] for name in change if name != "finish_reason"}
    return sized(json.dumps(reply))


def models(*names: str) -> bytes:
    return sized(json.dumps({"data": [{"id": name, "owned_by": "script"} for name in names]}))


async def endless(start: bytes, piece: bytes, pause: float = 0.0) -> AsyncIterator[bytes]:
    yield start
    while True:
        yield piece
        await asyncio.sleep(pause)


async def bomb(start: bytes) -> AsyncIterator[bytes]:
    """A thousandth of the bytes that it is once it is decompressed."""
    packer = zlib.compressobj(9, wbits=31)
    yield start
    for _ in range(BOMB_MEGABYTES):
        yield packer.compress(MEGABYTE) + packer.flush(zlib.Z_SYNC_FLUSH)
        await asyncio.sleep(0)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = head("200 OK", "Transfer-Encoding: chunked")
BAD_GZIP = zlib.compress(b"{}" * 500)[:20] + b"\0" * 50

# what each behaviour sends, and as what kind of failure that is to be recorded; "" for a trace
FAULTS: dict[str, tuple[Callable[[], bytes | AsyncIterator[bytes]], str]] = {
    "nested_json": (lambda: sized("[" * 200_000), "invalid_json"),
    "nested_model": (lambda: sized(json.dumps(answer(model=0)).replace("0", "[" * 500 + "]" * 500, 1)), "wrong_model"),
    "long_number": (lambda: sized('{"model": ' + "9" * 10_000 + "}"), "invalid_json"),
    "no_unicode": (lambda: sized(b'{"model": "\xff\xfe"}'), "invalid_json"),
    "endless_tokens": (lambda: sized('{"model": "scripted", "choices": [{"message": {}, "finish_reason": "stop"}],'
                                     '"usage": {"completion_tokens": 1e999}}'), "invalid_answer"),
    "half_a_surrogate": (lambda: saying(finish_reason="\ud800"), "invalid_answer"),
    "half_a_model": (lambda: sized(json.dumps(answer(model="\ud800"))), "wrong_model"),
    "list_of_usage": (lambda: sized(json.dumps(answer(usage=[1]))), "invalid_answer"),
    "redirect_loop": (lambda: sized("", "307 Temporary Redirect", "Location: /v1/chat/completions"), "redirect"),
    "redirect_file": (lambda: sized("", "302 Found", "Location: file:///etc/hostname"), "redirect"),
    "redirect_elsewhere": (lambda: sized("", "308 Permanent Redirect", "Location: http://127.0.0.1:9/v1"), "redirect"),
    "redirect_nonsense": (lambda: sized("", "301 Moved", "Location: http://[::1"), "redirect"),
    "redirect_nowhere": (lambda: sized("", "301 Moved"), "redirect"),
    "see_other": (lambda: sized("", "303 See Other", "Location: /v1/models"), "http_303"),
    "large_header": (lambda: sized("{}", "200 OK", "X-Large: " + "x" * 100_000), "malformed_http"),
    "endless_headers": (lambda: endless(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n" * 1000), "malformed_http"),
    "ssh": (lambda: b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", "malformed_http"),
    "malformed_status": (lambda: b"HTTP/1.1 two hundred OK\r\n\r\n", "malformed_http"),
    "no_chunk_size": (lambda: CHUNKED + b"zz\r\n{}\r\n", "malformed_http"),
    "negative_size": (lambda: head("200 OK", "Content-Length: -5") + b"{}", "malformed_http"),
    "two_lengths": (lambda: head("200 OK", "Content-Length: 2", "Content-Length: 3") + b"{} ", "malformed_http"),
    "bad_gzip": (lambda: sized(BAD_GZIP, "200 OK", "Content-Encoding: gzip"), "malformed_http"),
    "half_a_body": (lambda: head("200 OK", "Content-Length: 100") + b"{", "connection"),
    "nothing": (lambda: b"", "connection"),
    "gzip_bomb": (lambda: bomb(head("200 OK", "Content-Encoding: gzip")), "too_large"),
    "giant_body": (lambda: endless(head("200 OK", "Content-Length: 99999999999"), MEGABYTE), "too_large"),
    "endless_body": (lambda: endless(CHUNKED, chunk(MEGABYTE)), "too_large"),
    "endless_fault": (lambda: endless(head("404 Not Found", "Content-Length: 99999999999"), MEGABYTE), "http_404"),
    "many_lists": (lambda: endless(CHUNKED + chunk(b"["), chunk(b"[]," * 100_000)), "too_large"),
    "lists_of_4_mb": (lambda: sized("[" + "[]," * 1_400_000 + "0]"), "too_large"),
    "drip": (lambda: endless(CHUNKED, chunk(b" "), 0.02), "timeout"),
    "endless_continue": (lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "timeout"),
    "half_a_header": (lambda: endless(b"HTTP/1.1 200 OK\r\nX-", b"", 0.1), "timeout"),
    "odd_cookies": (lambda: sized(json.dumps(answer()), "200 OK", "Set-Cookie: a=\x01;;;=b; path=\x7f"), ""),
    "blank_lines": (lambda: sized("\n" * 1000 + json.dumps(answer())), ""),
}  # fmt: skip

ECHOES: dict[str, Callable[[str], bytes]] = {
    "whole": lambda key: sized(f"Incorrect API key provided: {key}", "400 Bad Request"),
    "at_the_border": lambda key: sized("x" * 280 + key, "400 Bad Request"),
    "cut_by_the_server": lambda key: sized("x" * 100 + key[:20], "400 Bad Request"),
    "in_a_log": lambda key: sized(f"\x1b[31m{key}\x1b[0m\r\n{key[8:]}", "422 Unprocessable"),
    "transient": lambda key: sized("y" * 290 + key, "500 Internal Server Error"),
    "percent_encoded": lambda key: sized(f"GET /?key={quote(key, safe='')}", "404 Not Found"),
    "in_json": lambda key: sized(json.dumps({"error": key})[:-1], "200 OK"),
    "in_base64": lambda key: sized(base64.b64encode(f"user:{key}".encode()), "400 Bad Request"),
    "at_the_border_of_json": lambda key: sized("[" + " " * 185 + key, "200 OK"),
    "status_line": lambda key: f"HTTP/1.1 {key}\r\n\r\n".encode(),
    "odd_header": lambda key: head("200 OK", f"X Key: {key}"),
    "header_of_keys": lambda key: head("200 OK", f"X-Key: {key * 1000}"),
    "chunk_size": lambda key: CHUNKED + f"{key}\r\n".encode(),
    "location": lambda key: sized("", "302 Found", f"Location: http://127.0.0.1:9/?key={key}"),
    "odd_location": lambda key: sized("", "302 Found", f"Location: {key}://x:y"),
    "model": lambda key: sized(json.dumps(answer(model="m" * 250 + key))),
    "choices": lambda key: sized(json.dumps(answer(choices=[], id="i" * 120 + key))),
    "usage": lambda key: sized(json.dumps(answer(usage={"completion_tokens": key}))),
    "reason": lambda key: saying(finish_reason=key),
    "content": lambda key: saying(content=f"your key is {key}"),
    "reasoning": lambda key: saying(reasoning=f"the header says {key[4:24]}..."),
    "cookie": lambda key: sized(json.dumps(answer()), "200 OK", f"Set-Cookie: {key}=\x01; {key}"),
}  # fmt: skip

MODELS: dict[str, Callable[[str], bytes | AsyncIterator[bytes]]] = {
    "models_giant": lambda key: endless(head("200 OK"), b'{"id": "a"},' * 10_000),
    "models_bomb": lambda key: bomb(head("200 OK", "Content-Encoding: gzip")),
    "models_nested": lambda key: sized("[" * 200_000),
    "models_of_keys": lambda key: models(*[f"a model of {key}"] * 20),
    "models_at_the_border": lambda key: models("m" * 280 + key),
    "models_ssh": lambda key: b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    "models_redirect": lambda key: sized("", "302 Found", f"Location: file:///{key}"),
    "models_refused": lambda key: sized(f"not {key}", "401 Unauthorized"),
    "models_length": lambda key: sized(
        json.dumps({"data": [{"id": MODEL, "owned_by": "script", "max_model_len": key}]})
    ),
}


class HostileServer:
    """`behaviour` for all requests, or the word in [brackets] of each question."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.asked: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = re.search(r"content-length: (\d+)", request, re.IGNORECASE)
            body = (await reader.readexactly(int(size[1]))).decode() if size else ""
            key = re.search(r"Bearer (\S+)", request)
            sent = self.answer_to(request.split()[1], body, key[1] if key else "")
            if isinstance(sent, bytes):
                writer.write(sent)
            else:
                async for piece in sent:
                    writer.write(piece)
                    await writer.drain()
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side has gone: some behaviours last until it does
        finally:
            writer.close()

    def answer_to(self, path: str, body: str, key: str) -> bytes | AsyncIterator[bytes]:
        if path.endswith("/models"):
            return MODELS[self.behaviour](key) if self.behaviour in MODELS else models(MODEL)
        told = re.search(r"\[(\w+)\]", body)
        name = told[1] if told else self.behaviour
        if name == "echoes":
            names = [*ECHOES, "good", "good"]
            name = names[self.asked.total() % len(names)]
        self.asked[name] += 1
        if name in ECHOES:
            return ECHOES[name](key)
        return FAULTS[name][0]() if name in FAULTS else saying()


async def start(behaviour: str) -> tuple[asyncio.Server, int]:
    """A server that listens, and its port."""
    server = await asyncio.start_server(HostileServer(behaviour).serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def serve(behaviour: str, seconds: float) -> None:
    server, port = await start(behaviour)
    print(json.dumps({"port": port}), flush=True)
    await asyncio.sleep(seconds)
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviour", default="good")
    parser.add_argument("--seconds", type=float, default=300.0)
    flags = parser.parse_args()
    asyncio.run(serve(flags.behaviour, flags.seconds))


if __name__ == "__main__":
    sys.exit(main())
