"""What one does with a filtered run: the funnel, exports for other trainers, ablations."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError
from pipeline.filter.exports import ExportFormat, as_alpaca, as_sharegpt, export
from pipeline.filter.funnel import difficulty_of, shorten, show_funnel
from pipeline.filter.stage import run
from pipeline.flags import WorkerFlags
from pipeline.records import to_json
from pipeline.report.ablate import ablate
from pipeline.report.against import recall
from tests.filter_fixtures import (
    Stages,
    filtered_run,
    make_recipe,
    make_trace,
    make_verdict,
    ordinary_stages,
    read_rows,
    write_stages,
)

ONE = WorkerFlags(workers=1)


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("funnel") / "small.yaml"
    path.write_text(yaml.safe_dump(make_recipe().model_dump(exclude_defaults=True), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def context(recipe_path: Path) -> Context:
    """A filtered run of 24 traces, one of which tries to write to the terminal and one to the page."""
    context = load_context(recipe_path, recipe_path.parent / "runs")
    stages = ordinary_stages()
    nasty = make_trace(stages.problems[0], 7, "0.5", thinking="\x1b[31mred\x1b[0m [bold]not bold[/bold]")
    write_stages(
        context.runs,
        Stages(
            stages.problems,
            [*stages.traces, to_json(nasty), "{torn"],
            [*stages.verdicts, to_json(make_verdict(stages.problems[0], 7, "wrong"))],
        ),
    )
    run(context, ONE)
    return context


def test_the_funnel_counts_by_rule_source_and_difficulty(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    show_funnel(context)
    out = capsys.readouterr().out
    assert "\x1b[" not in out
    lines = {" ".join(line.split()) for line in out.splitlines()}
    # rule, reason, traces, share, sources others and sums, then the pass rates
    assert "in 25 96.2% 13 12 . . 25 . . ." in lines
    assert "finished - truncated 6 23.1% 3 3 . . 6 . . ." in lines
    assert "correct - wrong 7 26.9% 4 3 . . 7 . . ." in lines
    assert "kept 12 46.2% 6 6 . . 12 . . ." in lines
    assert "! broken_line 1 3.8%" in lines


def test_examples_of_a_reason_are_shown_without_control_characters(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    show_funnel(context, "wrong")
    out = capsys.readouterr().out
    assert out.startswith("5 of 7 rows with wrong")
    assert out.count("question: What is") == 5
    assert "\x1b" not in out
    show_funnel(context, "truncated")
    out = capsys.readouterr().out
    assert out.count("thinking: word word word word") == 5
    assert out.count("answer: \\boxed{") == 5
    show_funnel(context, "finished")
    assert "finish_reason length" in capsys.readouterr().out
    show_funnel(context, "broken_line")
    assert "1 of 1 rows" in capsys.readouterr().out
    show_funnel(context, "kept")
    assert capsys.readouterr().out.startswith("5 of 12 rows with kept")
    with pytest.raises(
        RecipeError, match=r"--show wrnog: nothing was dropped for it; did you mean 'wrong'\?"
    ):
        show_funnel(context, "wrnog")


@pytest.mark.parametrize(
    ("rate", "column"),
    [
        (0.0, "0%"),
        (0.1, "1-25%"),
        (0.25, "1-25%"),
        (0.5, "26-50%"),
        (0.51, "51-75%"),
        (0.99, "76-99%"),
        (1.0, "100%"),
    ],
)
def test_the_column_of_a_pass_rate(rate: float, column: str) -> None:
    assert difficulty_of(rate) == column


def test_long_texts_are_shortened_in_the_middle() -> None:
    assert shorten("a" * 3000).startswith("a" * 750 + " [... 1,500 more ...] ")


def test_exports_hold_every_example(context: Context) -> None:
    kept = read_rows(context.directory("filter") / "kept.jsonl")
    rows = {kind: read_rows(export(context, kind)) for kind in ("trl", "sharegpt", "alpaca")}
    assert {kind: len(exported) for kind, exported in rows.items()} == dict.fromkeys(rows, len(kept))
    trl, sharegpt, alpaca = (exported[0] for exported in rows.values())
    assert [turn["role"] for turn in trl["prompt"] + trl["completion"]] == ["user", "assistant"]
    assert [turn["from"] for turn in sharegpt["conversations"]] == ["human", "gpt"]
    assert trl["completion"][0]["content"] == sharegpt["conversations"][1]["value"] == alpaca["output"]
    assert trl["completion"][0]["content"].startswith("<think>\nword \n</think>\n\n\\boxed{")
    assert trl["prompt"][0]["content"] == alpaca["instruction"]
    assert alpaca["input"] == ""
    assert {p.name for p in context.directory("export").iterdir()} == {
        "trl.jsonl",
        "sharegpt.jsonl",
        "alpaca.jsonl",
        "dataset_info.json",
        "axolotl.yaml",
        "README.md",
    }
    front = yaml.safe_load((context.directory("export") / "README.md").read_text().split("---")[1])
    assert front["configs"][0] == {"config_name": "trl", "data_files": "trl.jsonl", "default": True}
    assert [entry["data_files"] for entry in front["configs"]] == [f"{kind}.jsonl" for kind in rows]


def test_every_column_that_llama_factory_looks_up_is_in_every_row(context: Context) -> None:
    rows = {kind: read_rows(export(context, kind)) for kind in ("sharegpt", "alpaca")}
    info = json.loads((context.directory("export") / "dataset_info.json").read_text())
    assert list(info) == ["small_sharegpt", "small_alpaca"]
    for kind, exported in rows.items():
        entry = info[f"small_{kind}"]
        assert (entry["file_name"], entry["formatting"]) == (f"{kind}.jsonl", kind)
        assert all(set(row) == set(entry["columns"].values()) for row in exported)


def test_axolotl_is_told_the_path_and_the_keys(context: Context) -> None:
    export(context, "sharegpt")
    datasets = yaml.safe_load((context.directory("export") / "axolotl.yaml").read_text())["datasets"]
    [entry] = [entry for entry in datasets if entry["type"] == "chat_template"]
    [row, *_] = read_rows(Path(entry["path"]))
    keys = entry["message_property_mappings"]
    assert set(row[entry["field_messages"]][0]) == {keys["role"], keys["content"]}


def test_a_chat_of_several_turns_is_exported_whole() -> None:
    texts = ["be brief", "a", "b", "c", "d"]
    roles = ["system", "user", "assistant", "user", "assistant"]
    chat = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    assert as_alpaca(chat) == {
        "instruction": "c",
        "input": "",
        "output": "d",
        "history": [["a", "b"]],
        "system": "be brief",
    }
    spoken = as_sharegpt(chat)["conversations"]
    assert [turn["from"] for turn in spoken] == ["system", "human", "gpt", "human", "gpt"]
    assert [turn["value"] for turn in spoken] == texts


@pytest.mark.parametrize("kind", ["trl", "sharegpt", "alpaca"])
def test_an_export_loads_block_by_block(tmp_path: Path, kind: ExportFormat) -> None:
    """A reader takes the types from the first block: what stands in the last chats alone must be there too."""
    import datasets

    pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    long = [{"role": "system", "content": "be brief"}, *pair, *pair]
    mix = tmp_path / "chat.jsonl"
    mix.write_text("".join(json.dumps({"messages": c}) + "\n" for c in (long, pair)))
    entry = {"name": "chat", "path": str(mix), "weight": 1.0, "licence": "CC0-1.0"}
    recipe = make_recipe(filter={"mix": [entry]})
    context = filtered_run(recipe, tmp_path / "runs", ordinary_stages(60))
    path = str(export(context, kind))
    rows = datasets.load_dataset(
        "json", data_files=path, split="train", chunksize=4096, cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == 122


def test_an_ablation_differs_in_one_field_and_shares_the_traces(context: Context, recipe_path: Path) -> None:
    sibling = ablate(context, recipe_path, [("drop-rule", "correct")])
    child = load_context(sibling, context.runs)
    manifest = context.require("filter", "the test")
    tokens = manifest.usage.trained_tokens or 0
    expected = context.recipe.model_dump()
    expected["name"] = "small-without-correct"
    expected["filter"]["rules"] = ["finished", "closed_thinking"]
    expected["filter"]["select"]["max_tokens"] = tokens
    assert child.recipe.model_dump() == expected
    assert recall(child) == context.run  # which its report is set against
    for name in ("problems/problems.jsonl", "generate/traces-00000.jsonl", "generate/manifest.json"):
        assert (context.runs / "small" / name).samefile(context.runs / "small-without-correct" / name)
    run(child, ONE)
    manifest = child.require("filter", "the test")
    assert tokens - 40 < (manifest.usage.trained_tokens or 0) <= tokens
    assert any(
        row["verdict"]["status"] == "wrong" for row in read_rows(child.directory("filter") / "kept.jsonl")
    )
    assert ablate(context, recipe_path, [("drop-rule", "correct")]) == sibling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "ablate changes one thing"),
        ([("drop-rule", "correct"), ("select", "first")], "ablate changes one thing"),
        ([("drop-rule", "corect")], r"the recipe has no such rule; did you mean 'correct'\?"),
        ([("set", "generate.prompt=plain")], r"expected filter\.… or train\.…"),
        ([("select", "longest")], r"filter\.select\.prefer: .* found 'longest'"),
    ],
    ids=["none", "two", "unknown", "section", "value"],
)
def test_an_ablation_that_cannot_be_is_an_error(
    context: Context, recipe_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        ablate(context, recipe_path, changes)


def test_a_sibling_is_never_overwritten(context: Context, recipe_path: Path) -> None:
    path = recipe_path.with_name("small-select-first.yaml")
    path.write_text("mine\n")
    with pytest.raises(RecipeError, match="exists with other content"):
        ablate(context, recipe_path, [("select", "first")])
    assert path.read_text() == "mine\n"


def test_an_unfinished_run_cannot_be_shown(recipe_path: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"filter has not run\. Run: make filter"):
        show_funnel(load_context(recipe_path, tmp_path))


def test_the_command_line(
    context: Context, recipe_path: Path, retort: Callable[..., CompletedProcess[str]]
) -> None:
    flags = ("--recipe", recipe_path, "--runs", context.runs)
    assert "! broken_line" in retort("funnel", *flags).stdout
    done = retort("export", *flags, "--format", "alpaca")
    assert done.stdout.strip().endswith("small/export/alpaca.jsonl")
    done = retort("ablate", *flags, "--select", "random")
    assert Path(done.stdout.strip()).is_file()
    assert "make all RECIPE=" in done.stderr
    done = retort("ablate", *flags, "--keep-unsolved")
    assert "unsolved: keep_one" in Path(done.stdout.strip()).read_text()
    done = retort("filter", *flags)
    assert (done.returncode, "up to date" in done.stderr) == (0, True)
