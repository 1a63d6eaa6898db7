"""What is to be sampled: the job, its fingerprint, and the seed of each sample.

A trace's key is (problem id, sample, request fingerprint): two recipes that differ only after generate have
the same keys, so what one of them bought the other adopts.
"""

import hashlib
from dataclasses import dataclass

from pipeline.cards import SampledModel
from pipeline.recipe import Samples, Sampling
from pipeline.render import PROMPTS
from pipeline.stage import fingerprint


@dataclass(frozen=True, slots=True)
class Job:
    """One model asked in one prompt style with one sampling; `samples` is the budget of each problem.

    Samples(keep=k, max=k) samples exactly k times whatever the verdicts are.
    """

    model: SampledModel
    prompt: str
    sampling: Sampling
    samples: Samples
    seed: int


def request_fingerprint(job: Job) -> str:
    """16 hex digits over what decides a response: model identity, prompt text, sampling and seed."""
    identity = {
        "model": job.model.identity,
        "prompt": PROMPTS[job.prompt],
        "sampling": job.sampling.model_dump(),
        "seed": job.seed,
    }
    return fingerprint(identity)[:16]


def sample_seed(seed: int, problem_id: str, sample: int) -> int:
    """31 bits from (seed, problem, sample): a seed shared by two samples would make them the same text."""
    digest = hashlib.sha256(f"{seed}/{problem_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
