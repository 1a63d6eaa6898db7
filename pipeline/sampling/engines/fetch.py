"""One request to a server, and the JSON of its answer: bounded, masked, each fault of a named kind.

Servers, and what stands in front of them, send anything: no HTTP at all, a body without an end, a redirect
to somewhere else, JSON of 10,000 brackets. None of it may stop a collection, fill the memory, or be recorded
with the key in it.

    connection      no connection, or one that dropped     invalid_json    the body is not JSON
    timeout         no whole answer in time                too_large       more than was asked for can take
    malformed_http  no HTTP, or not as HTTP is encoded     redirect        to another address, or in a circle
    http_<status>   any other status than 200              empty_answer    nothing at all, with status 200
    cut_stream      a stream that ends before its answer

A redirect on the same server is followed as the request that it was, a POST as a POST. Proxies of the
environment are used (HTTP_PROXY, HTTPS_PROXY, NO_PROXY); aiohttp's own trust in the environment is not, for
it would also send the password that ~/.netrc holds for the host.
"""

import asyncio
import json
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError
from yarl import URL

from pipeline.errors import EngineError, no_descriptor
from pipeline.run.secrets import ApiKey
from pipeline.sampling.engines.base import RequestFailed
from pipeline.sampling.engines.events import Assembled, Held, read_events
from pipeline.sampling.engines.faults import Retry, asked_seconds, fault_of, refuse_error

REDIRECTS = {301, 302, 307, 308}
MAX_REDIRECTS = 3
CONNECT_SECONDS = 10.0
# of the answers that pass the first size only a few are read at a time, each within the seconds
SMALL_BYTES, NUM_LARGE, LARGE_SECONDS = 64 * 2**10, 4, 60.0
FAULT_BYTES, FAULT_SECONDS = 4096, 10.0  # of an answer that is a fault; more of it is not waited for
STREAMED_BYTES = 128 * 2**20  # of text that all streams hold together


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
        self._held = Held(STREAMED_BYTES)
        self._streams: dict[int, Assembled] = {}
        self._proxies = {name: url for name, url in getproxies().items() if name in ("http", "https")}
        for name, url in self._proxies.items():
            if not url.startswith(("http://", "https://")):
                raise EngineError(
                    f"{name.upper()}_PROXY: a {url.partition(':')[0]} proxy cannot be used, only http:// "
                    "ones; unset it, or name one of those"
                )

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

    @property
    def pieces(self) -> int:
        """Pieces with text of all answers that are being streamed: about their tokens so far."""
        return sum(stream.pieces for stream in self._streams.values())

    async def fetch(self, method: str, url: str, bounds: Bounds, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer, put together where it is a stream. Raises Retry for what is transient,
        RequestFailed for the rest, EngineError where no request can succeed."""
        answer = await self._get(method, url, bounds, body)
        if isinstance(answer, bytearray):
            answer = self._parsed(answer)
        refuse_error(answer, self.key.shown, self._where(URL(url)))
        return answer

    async def text(self, url: str, bounds: Bounds) -> str:
        """The body of an answer that is no JSON."""
        data = await self._get("GET", url, bounds)
        return data.decode(errors="replace") if isinstance(data, bytearray) else ""

    async def _get(
        self, method: str, url: str, bounds: Bounds, body: dict[str, Any] | None = None
    ) -> bytearray | dict[str, Any]:
        """The body of an answer, or a stream put together; every fault of a connection by its kind."""
        try:
            async with asyncio.timeout(bounds.seconds):
                return await self._follow(method, URL(url), bounds.max_bytes, body)
        except aiohttp.ServerTimeoutError as error:  # of the connection: all else is timed above
            raise Retry("connection", self.key.shown(str(error))) from None
        except TimeoutError:
            raise Retry("timeout", f"no whole answer within {bounds.seconds:g} s") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            if advice := no_descriptor(error):
                raise EngineError(f"{url}: {advice}; a lower --concurrency needs fewer") from None
            raise Retry(kind_of(error), self.key.shown(f"{type(error).__name__}: {error}")) from None

    async def _follow(
        self, method: str, url: URL, max_bytes: int, body: dict[str, Any] | None
    ) -> bytearray | dict[str, Any]:
        """The answer, from where the server says that it is."""
        for _ in range(MAX_REDIRECTS + 1):
            how: dict[str, Any] = {"json": body, "allow_redirects": False, "proxy": self._proxy(url)}
            async with self._session.request(method, url, **how) as response:
                if response.status == 200 and response.content_type == "text/event-stream":
                    return await self._stream(response, max_bytes)
                if response.status == 200:
                    return await self._read(response, max_bytes)
                if response.status not in REDIRECTS:
                    await self._refuse(response)
                url = self._target(url, response.headers.get("Location", ""))
        raise RequestFailed(
            "redirect", f"more than {MAX_REDIRECTS} redirects, the last to {self._where(url)}"
        )

    def _proxy(self, url: URL) -> str | None:
        """The proxy that the environment names for an address."""
        host = f"{url.host}:{url.port}"
        return None if proxy_bypass(host) else self._proxies.get(url.scheme)

    async def _stream(self, response: aiohttp.ClientResponse, max_bytes: int) -> dict[str, Any]:
        assembled = Assembled(self._held, max_bytes)
        self._streams[id(assembled)] = assembled
        try:
            return await read_events(response.content.iter_any(), assembled)
        except RequestFailed as failure:
            response.close()
            raise RequestFailed(failure.kind, self.key.shown(failure.detail)) from None
        finally:
            del self._streams[id(assembled)]
            assembled.release()

    def _parsed(self, data: bytearray) -> Any:
        if not data.strip():
            raise Retry("empty_answer", "an answer of status 200 without a body")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise RequestFailed("invalid_json", self.key.shown(bytes(data[:FAULT_BYTES]))) from None

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
        data = bytearray()
        try:
            async with asyncio.timeout(FAULT_SECONDS):
                await fill(data, response, FAULT_BYTES)
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError):
            pass  # the status says enough
        response.close()
        said, headers = data.decode(errors="replace"), response.headers
        wait = asked_seconds(headers.get("Retry-After"), headers.get("Date"))
        shown, where = self.key.shown(bytes(data)), self._where(response.url)
        raise fault_of(response.status, said, shown, where, wait)

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
