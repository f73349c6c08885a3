"""The rooms: the order they stand in, and the few things that only one of them may do (docs/explanation/architecture.md)."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.builders import ROOT

PACKAGE = ROOT / "nullbooth_cli"
# From the ground up. A file imports from its own room and from rows below its own.
ROWS = (
    ("errors", "datatypes", "formatting", "progress", "tensors"),
    ("toy",),
    ("store", "settings"),
    ("nullspace", "model"),
    ("collect",),
    ("evaluation", "pipeline"),
    ("api",),
    ("training",),
    ("report",),
    ("commands",),
    ("cli",),
)
HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}
SAYS_DIFFUSERS = ("model", "collect/without_weights.py", "training", "toy")
READS_CONFIG = "collect/open_model.py"
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "zarr", "rich", "numpy", "pydantic"}
FILES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
COMMANDS = "|".join(
    file.removeprefix("commands/").removesuffix(".py").rstrip("_") for file in FILES if file.startswith("commands/")
)
FLAG = re.compile(rf"(?<![\w-])--[a-z][\w-]+|\bnullbooth (?:{COMMANDS})\b|(?<![\w-])-[cs] [A-Z]")

each_file = pytest.mark.parametrize("file", FILES)


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def below(name: str) -> bool:
    """Whether a file is in a room below pipeline/."""
    return HEIGHT.get(room(name), len(ROWS)) < HEIGHT["pipeline"]


def modules() -> dict[str, str]:
    """File by dotted module name."""
    return {"nullbooth_cli." + file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a file imports, under TYPE_CHECKING and inside functions too; for a `from`, with the name taken."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(file: str) -> set[str]:
    """The files of the package that a file imports."""
    known = modules()
    found = set()
    for name in imported(FILES[file]):
        if name.startswith("nullbooth_cli"):
            found |= {
                known[candidate]
                for candidate in (name, name.rpartition(".")[0])
                if candidate in known and candidate != "nullbooth_cli"
            }
            if name in known:
                found -= {known.get(name.rpartition(".")[0], "")}  # `from package import module` needs the module
    return found - {file}


def libraries(file: str) -> set[str]:
    return {name.split(".")[0] for name in imported(FILES[file])}


def test_every_file_is_in_a_room() -> None:
    assert {room(file) for file in FILES} - {"__init__", "__main__"} == set(HEIGHT)


@each_file
def test_imports_go_down(file: str) -> None:
    if file in ("__init__.py", "__main__.py"):
        return
    upward = [other for other in imported_files(file) if room(other) != room(file) and HEIGHT[room(other)] >= HEIGHT[room(file)]]
    assert not upward or (HEIGHT[room(file)] == 0 and all(HEIGHT[room(other)] == 0 for other in upward)), upward


def test_no_two_files_import_each_other() -> None:
    edges = {file: imported_files(file) for file in FILES if file not in ("__init__.py", "__main__.py")}
    open_, done = set[str](), set[str]()

    def visit(file: str, path: tuple[str, ...]) -> None:
        assert file not in open_, " -> ".join((*path[path.index(file) :], file))
        if file in done:
            return
        open_.add(file)
        for other in sorted(edges.get(file, ())):
            visit(other, (*path, file))
        open_.remove(file)
        done.add(file)

    for file in edges:
        visit(file, ())


@each_file
def test_the_config_stops_at_the_pipeline(file: str) -> None:
    if below(file) and room(file) != "settings" and file != READS_CONFIG:
        assert "nullbooth_cli.settings.config.Config" not in set(imported(FILES[file]))


@each_file
def test_no_command_or_flag_is_named_below_the_commands(file: str) -> None:
    if HEIGHT.get(room(file), len(ROWS)) >= HEIGHT["commands"] or room(file) == "toy":
        return
    tree = FILES[file]
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    named = [f"line {node.lineno}: {node.value}" for node in texts if id(node) not in docstrings and FLAG.search(node.value)]
    assert not named, "\n".join(named)


@each_file
def test_only_the_console_prints(file: str) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(FILES[file]) if isinstance(node, ast.Call)}
    if file != "commands/console.py" and room(file) != "toy":
        assert not calls & {"print", "sys.stdout.write", "sys.stderr.write"}


@each_file
def test_zarr_and_diffusers_stay_in_their_rooms(file: str) -> None:
    if room(file) != "store":
        assert not libraries(file) & {"zarr", "numcodecs", "obstore", "fsspec"}
    if room(file) not in SAYS_DIFFUSERS and file not in SAYS_DIFFUSERS:
        assert "diffusers" not in libraries(file)


@pytest.mark.parametrize("file", [file for file in FILES if room(file) in ("cli", "commands", "__main__")])
def test_what_help_needs_imports_nothing_heavy(file: str) -> None:
    from_help = reachable_at_import("cli.py")
    if file in from_help:
        top = ast.Module([node for node in FILES[file].body if not isinstance(node, ast.If)], [])
        names = {
            name.split(".")[0] for node in top.body if isinstance(node, ast.Import | ast.ImportFrom) for name in imported(node)
        }
        assert not names & HEAVY


def reachable_at_import(start: str) -> set[str]:
    """The files that are run when a file is imported."""
    known, seen, waiting = modules(), set[str](), [start]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for node in FILES[file].body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [n for name in imported(node) for n in (name, name.rpartition(".")[0])]
                waiting += [known[name] for name in names if name in known]
    return seen


@each_file
def test_every_module_says_what_it_is(file: str) -> None:
    assert ast.get_docstring(FILES[file])
