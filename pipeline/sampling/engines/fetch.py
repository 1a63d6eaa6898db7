"""One request to a server, and the JSON of its answer: bounded, masked, each fault of a named kind.

Servers, and what stands in front of them, send anything: no HTTP at all, a body without an end, a redirect
to somewhere else, JSON of 10,000 brackets. None of it may stop a collection, fill the memory, or be recorded
with the key in it.

    connection      no connection, or one that dropped     invalid_json    the body is not JSON
    timeout         no whole answer in time                too_large       more than was asked for can take
    malformed_http  no HTTP, or not as HTTP is encoded     redirect        to another address, or in a circle
    http_<status>   any other status than 200
"""

import asyncio
import json
import math
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

import aiohttp
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError
from yarl import URL

from pipeline.errors import EngineError, no_descriptor
from pipeline.run.secrets import API_KEY, ApiKey
from pipeline.sampling.engines.base import RequestFailed

TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
REDIRECTS = {301, 302, 307, 308}
MAX_REDIRECTS = 3
CONNECT_SECONDS = 10.0
MAX_WAIT_SECONDS = 300.0  # that a server can ask for
# of the answers that pass the first size only a few are read at a time, each within the seconds
SMALL_BYTES, NUM_LARGE, LARGE_SECONDS = 64 * 2**10, 4, 60.0
FAULT_BYTES, FAULT_SECONDS = 4096, 10.0  # of an answer that is a fault; more of it is not waited for


class Retry(Exception):
    """A named transient error; `wait_seconds` is what the server asked for, if it did."""

    def __init__(self, kind: str, detail: str, wait_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long an answer may take, and how many bytes it may have once it is decompressed."""

    seconds: float
    max_bytes: int


class Fetcher:
    """Requests with one key. An async context manager."""

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self._large = asyncio.Semaphore(NUM_LARGE)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=self.key.headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            read_bufsize=SMALL_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def fetch(self, method: str, url: str, bounds: Bounds, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer. Raises Retry for what is transient, RequestFailed for the rest, EngineError
        where no request can succeed."""
        try:
            async with asyncio.timeout(bounds.seconds):
                data = await self._follow(method, URL(url), bounds.max_bytes, body)
        except aiohttp.ServerTimeoutError as error:  # of the connection: all else is timed above
            raise Retry("connection", self.key.shown(str(error))) from None
        except TimeoutError:
            raise Retry("timeout", f"no whole answer within {bounds.seconds:g} s") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            if advice := no_descriptor(error):
                raise EngineError(f"{url}: {advice}; a lower --concurrency needs fewer") from None
            raise Retry(kind_of(error), self.key.shown(f"{type(error).__name__}: {error}")) from None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise RequestFailed("invalid_json", self.key.shown(bytes(data[:FAULT_BYTES]))) from None

    async def _follow(self, method: str, url: URL, max_bytes: int, body: dict[str, Any] | None) -> bytearray:
        """The body of the answer, from where the server says that it is."""
        for _ in range(MAX_REDIRECTS + 1):
            async with self._session.request(method, url, json=body, allow_redirects=False) as response:
                if response.status == 200:
                    return await self._read(response, max_bytes)
                if response.status not in REDIRECTS:
                    await self._refuse(response)
                url = self._target(url, response.headers.get("Location", ""))
        raise RequestFailed(
            "redirect", f"more than {MAX_REDIRECTS} redirects, the last to {self._where(url)}"
        )

    async def _read(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytearray:
        """The decompressed body. It is counted as it comes: a header may lie about it."""
        data = bytearray()
        if await fill(data, response, min(SMALL_BYTES, max_bytes)):
            return data
        if max_bytes > SMALL_BYTES:
            async with self._large:
                try:
                    async with asyncio.timeout(LARGE_SECONDS):
                        if await fill(data, response, max_bytes):
                            return data
                except TimeoutError:
                    raise Retry(
                        "timeout",
                        f"more than {SMALL_BYTES:,} bytes, and not all within {LARGE_SECONDS:g} s more",
                    ) from None
        response.close()
        raise RequestFailed("too_large", f"more than the {max_bytes:,} bytes that the answer can have")

    async def _refuse(self, response: aiohttp.ClientResponse) -> NoReturn:
        """Say what an answer means that is none."""
        if response.status in (401, 403):
            raise EngineError(
                f"{self._where(response.url)} answers {response.status}: it wants an API key that it knows. "
                f"Put one into the environment variable {API_KEY}; it is never logged"
            )
        data, kind = bytearray(), f"http_{response.status}"
        try:
            async with asyncio.timeout(FAULT_SECONDS):
                await fill(data, response, FAULT_BYTES)
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError):
            pass  # the status says enough
        response.close()
        detail = self.key.shown(bytes(data))
        if response.status in TRANSIENT_STATUS:
            raise Retry(kind, detail, retry_after(response.headers.get("Retry-After")))
        raise RequestFailed(kind, detail)

    def _target(self, url: URL, location: str) -> URL:
        """Where a redirect leads. RequestFailed where that is another server: the key is not for it."""
        try:
            target = url.join(URL(location))
            secure = (url.scheme, url.port) == ("http", 80) and (target.scheme, target.port) == ("https", 443)
            same = target.host == url.host and (secure or target.origin() == url.origin())
        except ValueError:  # no address, or one without a host
            same = False
        if not same:
            raise RequestFailed(
                "redirect",
                self.key.shown(f"not followed to another server: {location}"),
            )
        return target

    def _where(self, url: URL) -> str:
        return self.key.shown(str(url))


async def fill(data: bytearray, response: aiohttp.ClientResponse, most: int) -> bool:
    """Read until the end, or until there are more than `most` bytes; whether that was the end."""
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > most:
            return False
    return True


def kind_of(error: Exception) -> str:
    """`connection` for what a server leaves that ends, `malformed_http` for what none should send."""
    if isinstance(error, aiohttp.ClientPayloadError):
        ended = isinstance(error.__cause__, ContentLengthError | None)
    else:
        ended = isinstance(error, aiohttp.ClientConnectionError | OSError)
    return "connection" if ended else "malformed_http"


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header; its other form, a date, is left to the backoff."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        return None
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS) if math.isfinite(seconds) else None
