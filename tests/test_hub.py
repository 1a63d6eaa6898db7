"""A stand-in hub on loopback: publish, load by hub id, pin, publish again, load again; huggingface_hub for real.

Each step is a process of its own, as HF_ENDPOINT is read when the library is imported.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from pipeline.context import Context
from pipeline.records import Example, read_examples, write_examples
from pipeline.report.use import in_transformers, place_of
from pipeline.run.contract import Counts, Start
from tests.conftest import RECIPE, ROOT
from tests.finished_run import Run, finish
from tests.served import served_by
from tests.standin_hub import TOKEN

pytestmark = pytest.mark.slow

MODEL, DATA = "lab/small", "lab/small-examples"
BASE = ROOT / "students/embedded"
Hub = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a machine whose hub is the stand-in, with a token and an empty cache."""
    home = str(tmp_path_factory.mktemp("hub"))
    held = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with served_by("standin_hub", "--seconds", 1800) as url:
        where = {"HF_ENDPOINT": url.removesuffix("/v1"), "HF_HOME": home, "HF_HUB_DISABLE_XET": "1"}
        yield {**held, **where, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}


def run_python(environment: dict[str, str], *arguments: object, **more: str) -> CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**environment, **more}, capture_output=True, text=True, check=False
    )


def write_finished(folder: Path, weights: bytes, num_examples: int) -> Context:
    """A run whose student is the embedded base, its last bytes changed, with a card and some examples."""
    context = Run(folder).context
    chat = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "1"},
    ]
    examples = [Example(str(n), 0, chat, 5, 1, "sums", "MIT") for n in range(num_examples)]
    write_examples(folder / "examples.parquet", examples)
    made = (folder / "examples.parquet").read_bytes()
    finish(context, "filter", Counts(num_examples, num_examples), {"examples.parquet": made})
    files = {
        f"checkpoint/{path.name}": path.read_bytes()
        for path in BASE.iterdir()
        if path.suffix not in (".py", "")
    }
    name = "checkpoint/model.safetensors"
    files[name] = files[name][: -len(weights)] + weights
    finish(context, "train", Counts(num_examples, num_examples), files)
    card = f"---\nlicense: mit\nlibrary_name: transformers\n---\n\nfrom {place_of(context)}\n"
    finish(context, "report", Counts(0, 0), {"README.md": card.encode()})
    return context


def publish(environment: dict[str, str], context: Context) -> None:
    repositories = ["--model-repo", MODEL, "--data-repo", DATA]
    flags = ["--recipe", context.start.recipe, "--runs", context.runs, *repositories]
    done = run_python(environment, "-m", "pipeline", "publish", *flags)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"-> \S*/(lab/[\w-]+)/commit/\w{40}", done.stderr) == [MODEL, DATA]


LOAD = """\
import hashlib, sys
import datasets, transformers
from huggingface_hub import HfApi
model, data, *places = sys.argv[1:]
for place in places:
    where = {"revision": place} if "/" not in place else {}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model if where else place, **where).state_dict()
    text = b"".join(loaded[name].float().numpy().tobytes() for name in sorted(loaded))
    print(hashlib.sha256(text).hexdigest())
print(len(datasets.load_dataset(data, split="train")))
print(HfApi().model_info(model).sha)
"""


def loaded(environment: dict[str, str], *places: object) -> list[str]:
    """A digest of the weights at each revision of the model, or in each directory, then the number of examples
    and the commit that main points to."""
    done = run_python(environment, "-c", LOAD, MODEL, DATA, *places)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> list[Context]:
    folder = tmp_path_factory.mktemp("published")
    return [
        write_finished(folder / name, data, size)
        for name, data, size in (("a", b"\0" * 8, 3), ("b", b"\1" * 8, 5))
    ]


def test_what_was_published_loads_by_its_name_and_a_pin_holds(
    environment: dict[str, str], contexts: list[Context], tmp_path: Path
) -> None:
    publish(environment, contexts[0])
    first, local, num_examples, commit = loaded(environment, "main", contexts[0].checkpoint)
    assert (first, num_examples) == (local, "3")
    publish(environment, contexts[1])
    elsewhere = {**environment, "HF_HOME": str(tmp_path / "another machine")}
    second, pinned, num_examples, later = loaded(elsewhere, "main", commit)
    assert second != first
    assert later != commit
    assert (pinned, num_examples) == (first, "5")
    asking = "import sys; from huggingface_hub import HfApi; HfApi().model_info(sys.argv[1])"
    assert run_python(environment, "-c", asking, MODEL).returncode == 0
    assert run_python({**environment, "HF_TOKEN": ""}, "-c", asking, MODEL).returncode != 0  # it is private


def test_the_card_on_the_hub_says_where_it_is(environment: dict[str, str], contexts: list[Context]) -> None:
    publish(environment, contexts[0])
    code = f"from huggingface_hub import hf_hub_download; print(open(hf_hub_download({MODEL!r}, 'README.md')).read())"
    done = run_python(environment, "-c", code)
    assert f"from {MODEL}\n" in done.stdout, done.stderr[-2000:]


def test_the_card_s_lines_for_transformers_run(environment: dict[str, str], contexts: list[Context]) -> None:
    publish(environment, contexts[0])
    done = run_python(environment, "-c", in_transformers(contexts[0], MODEL))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_a_card_that_the_hub_refuses_is_one_error(environment: dict[str, str], tmp_path: Path) -> None:
    context = write_finished(tmp_path, b"\3" * 8, 2)
    card = b"---\nlicense: my own\n---\n"
    finish(replace(context, start=Start(force=True)), "report", Counts(0, 0), {"README.md": card})
    flags = ["--recipe", context.start.recipe, "--runs", context.runs, "--model-repo", "lab/refused"]
    done = run_python(environment, "-m", "pipeline", "publish", *flags)
    assert done.returncode == 1
    assert re.search(r"error: publish: lab/refused: the hub refused it .*my own is not known", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_published_data_set_is_a_source_whose_revision_is_pinned(
    environment: dict[str, str], contexts: list[Context], tmp_path: Path
) -> None:
    """A recipe with a null revision takes today's commit, and goes on with it when the data set moves on."""
    upload = (
        "import sys; from huggingface_hub import HfApi; api = HfApi();"
        "api.create_repo('lab/sums', repo_type='dataset', private=True, exist_ok=True);"
        "api.upload_folder(repo_id='lab/sums', repo_type='dataset', folder_path=sys.argv[1])"
    )
    recipe = yaml.safe_load(RECIPE)
    recipe["problems"]["sources"] = [{"hub": "lab/sums", "licence": "CC0-1.0"}]
    path, folder = tmp_path / "small.yaml", tmp_path / "sums"
    path.write_text(yaml.safe_dump(recipe))
    folder.mkdir()
    flags = ["-m", "pipeline", "problems", "--recipe", path, "--runs", tmp_path / "runs", "--workers", "1"]
    for size, name in ((6, "first"), (9, "second")):
        rows = [{"question": f"What is {n} plus {name}?", "answer": str(n)} for n in range(size)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert run_python(environment, "-c", upload, folder).returncode == 0
        done = run_python(environment, *flags)
        assert done.returncode == 0, done.stderr[-2000:]
        held = (tmp_path / "runs/small/problems/problems.jsonl").read_text()
        assert "plus first" in held
        assert "plus second" not in held
    again = run_python(environment, *flags, "--force")
    assert again.returncode == 0, again.stderr[-2000:]
    assert (tmp_path / "runs/small/problems/problems.jsonl").read_text() == held
    assert re.fullmatch(
        r"\w{40}", json.loads((tmp_path / "runs/small/revisions.json").read_text())["lab/sums"]
    )


def test_an_export_directory_loads_as_its_data_alone(environment: dict[str, str], tmp_path: Path) -> None:
    context = write_finished(tmp_path, b"\2" * 8, 4)
    for kind in ("sharegpt", "trl"):
        done = run_python(environment, "-m", "pipeline", "export", "--format", kind,
                          "--recipe", context.start.recipe, "--runs", context.runs)  # fmt: skip
        assert done.returncode == 0, done.stderr
    code = (
        "import sys, datasets; folder = sys.argv[1];"
        "print([(name, datasets.load_dataset(folder, *name, split='train').shape) for name in ((), ('sharegpt',))])"
    )
    done = run_python(environment, "-c", code, context.directory("export"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[((), (4, 2)), (('sharegpt',), (4, 1))]"
    assert len(list(read_examples(context.directory("filter") / "examples.parquet"))) == 4
