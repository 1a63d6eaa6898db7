"""What a verdict rests on beside the response: where it changed, the verdict is asked for again.

A corrected gold, another verifier or a new version of it, and corrected thinking tags (which part of a
response is the answer) change the basis. None of them changes a trace's key, so nothing is sampled again.
"""

import hashlib
import json

from pipeline.recipe.cards import Tags
from pipeline.records import Problem
from pipeline.verify.table import VERSIONS, needed


def basis_of(problem: Problem, tags: str) -> str:
    """24 hex digits: 16 of gold, verifiers with their versions and metadata, a dash, `tags_digest(tags)`."""
    versions = {name: VERSIONS.get(name) for name in sorted(needed(problem.verifier, problem.metadata))}
    return f"{digest([problem.gold, problem.verifier, versions, problem.metadata], 16)}-{tags}"


def tags_digest(tags: Tags) -> str:
    return digest([tags.open, tags.close, tags.opened_by_prompt], 8)


def digest(value: object, length: int) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]
