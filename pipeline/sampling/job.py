"""What is to be sampled: the job, its fingerprint, and the seed of each sample.

A trace's key is (question, sample, request): neither gold nor verifier nor thinking tags are in it, and two
recipes that differ only after generate have the same keys, so what one of them bought the other adopts.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Prompt
from pipeline.recipe.schema import Samples, Sampling
from pipeline.records import Problem
from pipeline.run.contract import fingerprint


@dataclass(frozen=True, slots=True)
class Job:
    """One model asked with one prompt and one sampling; `samples` is the budget of each problem.

    Samples(keep=k, max=k) samples exactly k times whatever the verdicts are. `reply_schema` holds responses
    to JSON of that form; it decides them, so it is in the fingerprint.
    """

    model: SampledModel
    prompt: Prompt
    sampling: Sampling
    samples: Samples
    seed: int
    keep_tokens: bool = False
    reply_schema: dict[str, Any] | None = None
    top_logprobs: int = 0


def most_samples(problem: Problem, samples: Samples) -> int:
    """How many samples of a problem are taken at most; one without a gold answer says so itself, and where
    nobody verifies, no more are taken than are kept."""
    if problem.verifier == "none":
        return samples.keep
    return int(problem.metadata["of"]) if problem.verifier == "majority" else samples.cap or samples.max


def request_fingerprint(job: Job, source: str = "") -> str:
    """16 hex digits over what decides a response: model identity, prompt text, sampling and seed; the prompt
    is that of a problem of `source`."""
    identity = {
        "model": job.model.identity,
        "prompt": job.prompt.of(source).own,
        "sampling": job.sampling.model_dump(exclude_defaults=True),
        "seed": job.seed,
    }
    if job.reply_schema is not None:
        identity["reply_schema"] = job.reply_schema
    return fingerprint(identity)[:16]


def requests_of(job: Job) -> dict[str, str]:
    """The fingerprint for each source that has a prompt of its own; the job's stands at ""."""
    return {source: request_fingerprint(job, source) for source in ("", *job.prompt.by_source)}


def sample_seed(seed: int, problem: Problem, sample: int) -> int:
    """31 bits from (seed, problem, sample): a seed shared by two samples would make them the same text."""
    digest = hashlib.sha256(f"{seed}/{problem.lot}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
