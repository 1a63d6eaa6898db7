"""Layers, rooms and places: static questions about the checkout, asked of its syntax trees."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("pipeline", "teachers", "students", "eval")
HEAVY = {
    "torch", "transformers", "vllm", "ray", "trl", "peft", "accelerate", "datasets", "sympy", "math_verify",
}  # fmt: skip
ONLY_IN_WORKERS = ROOT / "pipeline/verify/math/symbolic.py"
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def top_level_imports(path: Path) -> set[str]:
    """Modules imported when `path` is imported (imports inside functions and TYPE_CHECKING do not count)."""
    return imports_among(ast.parse(path.read_text()).body)


def all_imports(path: Path) -> set[str]:
    return imports_among(ast.walk(ast.parse(path.read_text())))


def imports_among(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_resolves_inside_this_checkout(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert Path(str(spec.origin)).resolve().is_relative_to(ROOT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_in_the_direction_of_the_layers(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tops = {module.split(".")[0] for module in all_imports(path)} & set(PACKAGES)
    is_entry = path == ROOT / "pipeline/__main__.py"
    assert is_entry or tops <= {package, "pipeline"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_core_imports_nothing_heavy(path: Path) -> None:
    allowed = {"math_verify", "sympy"} if path == ONLY_IN_WORKERS else set()
    assert not {module.split(".")[0] for module in top_level_imports(path)} & HEAVY - allowed


def test_whoever_asks_for_a_verdict_loads_no_symbolic_library() -> None:
    code = "import pipeline.verify, sys; print([m for m in ('sympy', 'math_verify', 'reasoning_gym') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_nobody_writes_import_eval(path: Path) -> None:
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
    assert "eval" not in {alias.name for node in statements for alias in node.names}


def room_of(parts: tuple[str, ...]) -> str:
    """A room is a module or a folder of pipeline/, or one of the other packages."""
    return "/".join(parts[:2]) if parts[0] == "pipeline" and len(parts) > 1 else parts[0]


def rooms() -> dict[str, set[str]]:
    """Which rooms each room imports from, inside functions and for type checking too."""
    known = {path.relative_to(ROOT).with_suffix("").parts for path in MODULES}
    arrows: dict[str, set[str]] = {}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        arrows.setdefault(room_of(parts), set())
        for module in all_imports(path):
            target = tuple(module.split("."))
            if target[0] in PACKAGES and (target in known or (*target, "__init__") in known):
                arrows[room_of(parts)].add(room_of(target))
    return {room: targets - {room} for room, targets in arrows.items()}


def test_rooms_stand_on_floors_and_no_two_import_each_other() -> None:
    arrows = rooms()
    while free := {room for room, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {room: targets for room, targets in arrows.items() if room not in free}
    assert arrows == {}, "these rooms import each other in a circle"


def test_pipeline_itself_is_no_corridor() -> None:
    assert len([path for path in (ROOT / "pipeline").glob("*.py") if path.stem != "__init__"]) <= 8


def test_help_imports_no_stage_and_no_heavy_library() -> None:
    code = "import pipeline.__main__, sys; print(sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(ast.literal_eval(done.stdout)) & (
        HEAVY | {"numpy", "pyarrow", "teachers", "students", "eval"}
    )
