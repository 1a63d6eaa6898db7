"""Rows about the machine itself: what it is, and whether what is installed is the lock."""

import re
import subprocess
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tests.conftest import ROOT
from tests.gpu.setting import NotHere, Setting, require_gpus

LOCK = ROOT / "requirements/gpu.lock"
IMPORTED = ("torch", "transformers", "vllm", "peft", "trl", "bitsandbytes", "liger_kernel")


def machine(setting: Setting) -> dict[str, Any]:
    """The GPU, and what it reaches in a large product and in a copy: the ceilings of all figures below."""
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if setting.dry:
        return found
    require_gpus(setting)
    card = torch.cuda.get_device_properties(0)
    driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(driver, capture_output=True, text=True, check=False).stdout.split()
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = seconds_of(lambda: left @ right)
    block = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(block)
    copy = seconds_of(lambda: other.copy_(block))
    return {
        **found,
        "gpu": card.name,
        "number": torch.cuda.device_count(),
        "memory_gib": round(card.total_memory / 2**30, 1),
        "capability": f"{card.major}.{card.minor}",
        "driver": said[0] if said else None,
        "bf16_tflops": round(2 * size**3 / product / 1e12),
        "copy_gb_per_second": round(2 * block.numel() / copy / 1e9),
    }


def seconds_of(work: Any, times: int = 10) -> float:
    """Of one call, after three to warm up, the device having finished."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    started = time.monotonic()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.monotonic() - started) / times


def pinned(text: str) -> dict[str, str]:
    """The version of each package of a lock file; torch's is pinned by ===, so that no local build stands in."""
    lines = (line.partition("#")[0].partition(";")[0].strip() for line in text.splitlines())
    return dict(re.split("={2,3}", line, maxsplit=1) for line in lines if "==" in line)


def lock(setting: Setting) -> dict[str, Any]:
    """requirements/gpu.lock as installed: every version, torch's CUDA build, and the imports that setup checks."""
    if setting.dry:
        raise NotHere("is about gpu.lock")
    wanted = pinned(LOCK.read_text())
    differs, missing = [], []
    for name, stated in wanted.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if found != stated:
            differs.append(f"{name} {found} ({stated})")
    failed = []
    for module in IMPORTED:
        try:
            import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            failed.append(f"{module}: {' '.join(str(error).split())[:120]}")
    assert torch.version.cuda, f"torch {torch.__version__} is a build for the CPU: run make setup ACCEL=gpu"
    if differs or missing or failed:
        raise AssertionError(
            f"not imported: {failed}; {len(differs)} other versions: {', '.join(differs[:20])}; not installed: "
            f"{len(missing)} of {len(wanted)}, {', '.join(missing[:12])}"
        )
    return {"packages": len(wanted)}
