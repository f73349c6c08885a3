"""The rooms and their rules (docs/explanation/architecture.md), read from the imports and texts of every file.

The rules know the rooms, not the files in them: a new file needs no change here.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from statistics import median

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
    ("editing",),
    ("integrations",),
    ("kohya",),
    ("report",),
    ("teaching",),
    ("commands",),
    ("cli",),
)
FACES = ("__init__", "__main__")  # how the package is entered: they import what they like
MAY_IMPORT = {
    "zarr": ("store",),
    "numcodecs": ("store",),
    "obstore": ("store",),
    "fsspec": ("store",),
    "diffusers": ("model", "collect/without_weights.py", "training", "toy"),
    "nullbooth_cli.settings.config.Config": (
        *("settings", "collect/open_model.py", "collect/edited_model.py", "editing/remember.py"),
        *("pipeline", "evaluation", "api", "training", "report", "teaching", "commands", "cli"),
    ),
}
PRINTS = ("commands/console.py", "toy")
SPEAKS_OF_FLAGS = ("commands", "cli", "toy", *FACES)
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "zarr", "rich", "numpy", "pydantic"}

HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}
FILES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {re.sub(r"(/__init__)?\.py$", "", f"nullbooth_cli/{file}").replace("/", "."): file for file in FILES}
each_file = pytest.mark.parametrize("file", FILES)


def room(file: str) -> str:
    """The folder of a file, or its own name on the ground floor."""
    return file.split("/")[0].removesuffix(".py")


def is_in(file: str, places: tuple[str, ...]) -> bool:
    """Whether a file is one of these, or in one of these rooms."""
    return file in places or room(file) in places


def imported(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported, under TYPE_CHECKING and inside functions too; for a `from`, with the name taken."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(names: Iterator[str]) -> set[str]:
    """The files of the package that dotted names are in; a module is its own file, anything else is in its parent."""
    return {MODULES.get(name) or MODULES[name.rpartition(".")[0]] for name in names if name.startswith("nullbooth_cli.")}


@cache
def neighbours(file: str) -> set[str]:
    """The files that a file imports."""
    return files_of(imported(FILES[file])) - {file, "__init__.py"}


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every string that is not a docstring."""
    documented = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    docstrings = {id(node.body[0].value) for node in documented if node.body and isinstance(node.body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def command_line_words() -> re.Pattern[str]:
    """What only the command line may say: the names of its flags, and `nullbooth COMMAND`."""
    words = {text.value for file, tree in FILES.items() if room(file) == "commands" for text in texts(tree)}
    flags = "|".join(sorted(word[2:] for word in words if re.fullmatch(r"--[a-z][\w-]+", word)))
    commands = "|".join(file.removeprefix("commands/").rstrip("_.py") for file in FILES if room(file) == "commands")
    return re.compile(rf"(?<![\w-])--({flags})\b(?!-)|\bnullbooth ({commands})\b|(?<![\w-])-[cs] [A-Z]")


WORDS = command_line_words()


def test_every_file_is_in_a_room() -> None:
    assert {room(file) for file in FILES} - set(FACES) == set(HEIGHT)


@each_file
def test_imports_go_down(file: str) -> None:
    if room(file) not in FACES:
        ground = HEIGHT[room(file)] == 0  # five single files: a circle among them is found below
        others = [other for other in neighbours(file) if room(other) != room(file)]
        assert not [other for other in others if HEIGHT[room(other)] >= HEIGHT[room(file)] + ground]


def test_no_circle() -> None:
    finished = set[str]()

    def follow(file: str, path: tuple[str, ...]) -> None:
        assert file not in path, " -> ".join((*path, file))
        for other in sorted(neighbours(file)) if file not in finished else ():
            follow(other, (*path, file))
        finished.add(file)

    for file in FILES:
        if room(file) not in FACES:
            follow(file, ())


@each_file
def test_what_only_some_rooms_import(file: str) -> None:
    refused = [name for name, places in MAY_IMPORT.items() if not is_in(file, (*places, *FACES))]
    assert not [line for line in imported(FILES[file]) if any(line == name or line.startswith(f"{name}.") for name in refused)]


@each_file
def test_only_the_commands_speak_of_commands_and_flags(file: str) -> None:
    if not is_in(file, SPEAKS_OF_FLAGS):
        assert not [f"line {text.lineno}: {text.value}" for text in texts(FILES[file]) if WORDS.search(str(text.value))]


@each_file
def test_only_the_console_prints(file: str) -> None:
    if not is_in(file, PRINTS):
        calls = {ast.unparse(node.func) for node in ast.walk(FILES[file]) if isinstance(node, ast.Call)}
        assert not {call for call in calls if re.search(r"(^|\.)(print|echo|secho)$|^sys\.std(out|err)\.write", call)}


def imported_at_once(file: str) -> Iterator[str]:
    """The dotted names that a file imports when it is imported itself."""
    for statement in FILES[file].body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from imported(statement)


def test_help_imports_nothing_heavy() -> None:
    waiting, seen = ["__init__.py", "cli.py"], set[str]()
    while waiting:
        file = waiting.pop()
        seen.add(file)
        folder = f"{room(file)}/__init__.py"  # runs before any file in it
        waiting += {*files_of(imported_at_once(file)), *({folder} & set(FILES))} - seen
    assert not [(file, name) for file in seen for name in imported_at_once(file) if name.split(".")[0] in HEAVY]


CLASSES = {node.name: node for tree in FILES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def is_documented(method: str, kind: ast.ClassDef) -> bool:
    """Whether a method has a docstring in a class, or in a base class of it that is our own."""
    own = [node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == method and ast.get_docstring(node)]
    bases = [CLASSES[base.id] for base in kind.bases if isinstance(base, ast.Name) and base.id in CLASSES]
    return bool(own) or any(is_documented(method, base) for base in bases)


@each_file
def test_everything_public_is_documented(file: str) -> None:
    tree = FILES[file]
    assert ast.get_docstring(tree)
    named = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    missing = [node.name for node in named if not ast.get_docstring(node)]
    for kind in named:
        if isinstance(kind, ast.ClassDef):
            methods = {node.name for node in kind.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
            missing += [f"{kind.name}.{method}" for method in sorted(methods) if not is_documented(method, kind)]
    assert not missing


@each_file
def test_nothing_is_imported_behind_these_rules(file: str) -> None:
    """By a name that is only known when it runs, or relative to a folder."""
    if not is_in(file, FACES):
        names = {node.id for node in ast.walk(FILES[file]) if isinstance(node, ast.Name)}
        assert not {"__import__", "exec", "eval"} & names
        assert not [name for name in imported(FILES[file]) if name in ("importlib", "importlib.import_module", "runpy")]
        assert not [node for node in ast.walk(FILES[file]) if isinstance(node, ast.ImportFrom) and node.level]


@each_file
def test_private_names_stay_in_their_file(file: str) -> None:
    assert not [name for name in imported(FILES[file]) if name.startswith("nullbooth_cli.") and re.search(r"\._[a-z]", name)]


@each_file
def test_constructors_take_at_most_four_arguments_without_a_name(file: str) -> None:
    calls = [node for node in ast.walk(FILES[file]) if isinstance(node, ast.Call) and len(node.args) > 4]
    names = [ast.unparse(call.func).rpartition(".")[2] for call in calls]
    assert not [name for name in names if re.match("[A-Z]", name)]


def test_a_command_has_under_60_lines_of_logic() -> None:
    """Statements of a file that has a command of its own name; what it needs beside that is a file `<command>_<what>`."""
    counts = {}
    for file, tree in FILES.items():
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        name = file.removeprefix("commands/").removesuffix(".py")
        if room(file) == "commands" and name in functions and "_" not in name.rstrip("_"):
            statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
            counts[file] = len([node for node in statements if not isinstance(node, ast.Import | ast.ImportFrom)])
    assert {"commands/collect.py", "commands/import_.py"} <= set(counts)
    assert {file: count for file, count in counts.items() if count >= 60} == {}


def test_files_are_short() -> None:
    lines = {file: len((PACKAGE / file).read_text().splitlines()) for file in FILES}
    assert median(lines.values()) < 130
    assert not [file for file, count in lines.items() if count > 320]


def test_no_test_file_imports_another() -> None:
    """What several test files need is in tests/support."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "support"]
    found = {str(path.relative_to(ROOT)): re.findall(r"(?:from|import) (tests\.\S*test_\w+)", path.read_text()) for path in files}
    assert not {path: imported for path, imported in found.items() if imported}
