"""Keys in the environment: who is given them, and how text that may hold one is shown.

The key of the servers (RETORT_API_KEY) goes into a request's header and nowhere else: not to child processes,
and not into a file, a log line or an error, for servers quote what they were sent. Text of a server is shown
by `ApiKey.shown`, which masks before it cuts: of a key that is cut first, the rest would not be known again.
"""

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping, MutableMapping
from urllib.parse import quote

from pipeline.errors import RecipeError

API_KEY = "RETORT_API_KEY"
SHOWN = 300  # characters of a server's text that are kept
PIECE = 8  # characters of a key in a row that are masked
ECHO = 16  # characters of a key in a row that no model writes by chance
SECRET_WORDS = {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS"}


class ApiKey:
    """A key, or none ("")."""

    def __init__(self, value: str = "") -> None:
        self.headers = {"Authorization": f"Bearer {value}"} if value else {}
        written = written_forms(value)
        self._longest = max(map(len, written), default=0)
        self._size = min(PIECE, len(value))
        self._pieces = {piece.lower() for form in written for piece in runs(form, self._size)}
        self._echoes = {piece for form in written for piece in runs(form, min(ECHO, len(value)))}
        # in each of the echoes stands one of these; there are far fewer
        self._marks = {
            form[at : at + PIECE] for form in written for at in range(0, len(form) - PIECE + 1, PIECE)
        }

    def shown(self, text: str | bytes) -> str:
        """The beginning of a text as it may be recorded: the key masked, then cut, in one printable line."""
        size = SHOWN + self._longest
        start = text[: 4 * size].decode(errors="replace") if isinstance(text, bytes) else text
        masked = self._masked(start[:size])[:SHOWN]
        return " ".join("".join(c if c.isprintable() else " " for c in masked).split())

    def stands_in(self, text: str) -> bool:
        """Whether a response quotes the key: then it is not the model that wrote it."""
        # a short key ("EMPTY", as local servers want it) is no secret, and may be a word
        if self._size < PIECE or not any(mark in text for mark in self._marks):
            return False
        return any(piece in text for piece in self._echoes)

    def _masked(self, text: str) -> str:
        if not self._size:
            return text
        kept, hidden_until = [], 0
        for place in range(len(text)):
            if text[place : place + self._size].lower() in self._pieces:
                if hidden_until <= place:
                    kept.append("***")
                hidden_until = place + self._size
            if hidden_until <= place:
                kept.append(text[place])
        return "".join(kept)


def written_forms(key: str) -> set[str]:
    """The key as a server may write it: plain, in JSON, in a URL, in base64 at each of its three places."""
    if not key:
        return set()
    forms = {key, json.dumps(key)[1:-1], quote(key, safe="")}
    if len(key) >= PIECE:  # of a shorter one nothing would be left to know it by
        for shift in range(3):
            encoded = base64.b64encode(b" " * shift + key.encode()).decode().rstrip("=")
            forms.add(encoded[4 if shift else 0 : -1])
    return forms


def runs(text: str, size: int) -> set[str]:
    """All pieces of `size` characters in a row."""
    return {text[place : place + size] for place in range(len(text) - size + 1)} if size else set()


def read_key(environment: Mapping[str, str]) -> ApiKey:
    """The key of the servers. RecipeError where it cannot stand in a header."""
    value = environment.get(API_KEY, "").strip()  # the line break at a file's end is no part of it
    odd = next((c for c in value if not (c.isascii() and c.isprintable() and c != " ")), None)
    if odd is not None:
        raise RecipeError(
            f"{API_KEY}: a key is one word of ASCII characters, found {odd!a} after "
            f"{value.index(odd)} of its {len(value)} characters. Set it anew, from a file that holds nothing "
            f"but the key: export {API_KEY}=$(cat FILE)"
        )
    return ApiKey(value)


def is_secret(name: str) -> bool:
    """Whether a variable of the environment holds a key, by its name."""
    return not SECRET_WORDS.isdisjoint(name.upper().split("_"))


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child process is given that has no use for any key."""
    return {name: value for name, value in environment.items() if not is_secret(name)}


@contextlib.contextmanager
def hidden(name: str, environment: MutableMapping[str, str]) -> Iterator[None]:
    """Without one variable, for children that are started meanwhile."""
    value = environment.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            environment[name] = value
