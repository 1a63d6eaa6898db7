"""Where problems come from: procedural families of reasoning-gym, local files, hub data sets.

Held-out by construction: a question whose normalised text hashes to 0 modulo 10 is reserved for
evaluation. Training sources skip such questions, procedural eval tasks take nothing else, and the
embedded models never saw one.
"""

import hashlib
import unicodedata

RESERVED_MODULUS = 10


def normalise_question(text: str) -> str:
    """NFKC, case folded, white space collapsed: two questions that read the same are the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_reserved(question: str) -> bool:
    """True for the tenth of all questions that only evaluation may use."""
    digest = hashlib.sha256(normalise_question(question).encode()).digest()
    return int.from_bytes(digest, "big") % RESERVED_MODULUS == 0
