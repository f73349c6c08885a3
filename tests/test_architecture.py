"""The tree keeps its shape: one direction of imports, one module that prints, one that knows Zarr."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "nullbooth_cli"
ORDER = [
    "errors",
    "events",
    "pace",
    "spectrum",
    "metrics",
    "strict_yaml",
    "settings",
    "config",
    "recipe",
    "prompts",
    "images",
    "steps",
    "schedule",
    "store",
    "pooling",
    "states",
    "nullspace",
    "api",
    "tensors",
    "parametrization",
    "constraint",
    "sampling",
    "writer",
    "toy",
    "sources",
    "unloadable",
    "model",
    "encoders",
    "sites",
    "noising",
    "denoise",
    "recording",
    "editing",
    "shell",
    "opening",
    "features",
    "moments",
    "projectors",
    "analysis",
    "verify",
    "workers",
    "presence",
    "resources",
    "batches",
    "runs",
    "collecting",
    "drawing",
    "shapes",
    "attention",
    "stages",
    "plans",
    "examples",
    "embedding",
    "checkpoints",
    "training",
    "merging",
    "importing",
    "exporting",
    "changes",
    "comparison",
    "evaluation",
    "report",
    "watching",
    "plots",
    "page",
    "gallery",
    "console",
    "checks",
    "doctor",
    "commands",
    "cli",
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "zarr", "rich", "numpy", "pydantic"}


def place(path: Path) -> str:
    """The name a file has in ORDER."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in tree.body if top_level_only else ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place() -> None:
    assert {place(path) for path in MODULES} - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize("path", [m for m in MODULES if place(m) in ORDER], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    inside = [name.split(".")[1] for name in imports(path) if name.startswith("nullbooth_cli.")]
    known = [name for name in inside if name in ORDER]
    if path.name in ("holding.py", "score.py", "study.py", "train.py"):  # scripts that use the package, on top of it
        return
    assert all(ORDER.index(name) <= ORDER.index(place(path)) for name in known), known


def test_the_documented_order_is_this_one() -> None:
    assert " ".join(ORDER) in (ROOT / "docs/explanation/architecture.md").read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_console_prints_and_only_the_store_knows_zarr(path: Path) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    if place(path) not in ("console", "toy"):
        assert not calls & {"print", "sys.stdout.write", "sys.stderr.write"}
    if place(path) != "store":
        assert "zarr" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize(
    "path", [m for m in MODULES if place(m) in ("cli", "commands", "console", "__main__")], ids=lambda p: p.name
)
def test_what_help_needs_imports_nothing_heavy(path: Path) -> None:
    if path.name == "session.py":  # imported when a command runs
        return
    assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY


@pytest.mark.parametrize(
    "path", [m for m in MODULES if m.name not in ("__main__.py",)], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
