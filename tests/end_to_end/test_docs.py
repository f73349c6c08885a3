"""The docs are true: generated pages are current, links lead somewhere, commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from nullbooth_cli.cli import app
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.recipe import Recipe
from tests.support.builders import ROOT
from tests.support.pages import CALL, blocks, shell_lines

PAGES = sorted([ROOT / "README.md", ROOT / "dataset/README.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS = [command.name for command in app.registered_commands if command.name]


def demo_lines() -> list[str]:
    """What `make demo` runs."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]


def test_generated_pages_are_current() -> None:
    checked = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_docs_exist(page: Path) -> None:
    for line in shell_lines(str(page)):
        for command, _ in CALL.findall(line):
            assert command in COMMANDS, line
        for target in re.findall(r"^make (\w+)", line):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        for key in re.findall(r"--set (\S+)=", line):
            section = Recipe() if "nullbooth train" in line else Config()
            for part in key.split("."):
                section = getattr(section, part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_parser_takes_every_command_of_a_page(page: Path) -> None:
    """Its options, their values, the number of its arguments."""
    require_parsed(shell_lines(str(page)))


def test_the_parser_takes_the_examples_of_the_help() -> None:
    examples = [line for each in app.registered_commands for line in re.findall(r"Example: (.+)", each.callback.__doc__ or "")]
    assert len(examples) >= len(COMMANDS)
    require_parsed(examples)


def require_parsed(lines: list[str]) -> None:
    """Raise the parser's error for a line with a call of nullbooth that it does not take."""
    group = typer.main.get_command(app)
    for line in lines:
        for name, arguments in CALL.findall(line):
            with group.make_context("nullbooth", [name]) as context:
                command = group.get_command(context, name)
                assert command, line
                command.make_context(name, shlex.split(arguments), parent=context)


def test_readme_says_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(shell_lines("README.md"))


def test_the_demo_is_what_readme_shows() -> None:
    assert set(demo_lines()) <= set(shell_lines("README.md"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_entry(command: str) -> None:
    assert f"## nullbooth {command}\n" in (ROOT / "docs/reference/cli.md").read_text()


def test_the_comparison_counts_the_commands_that_it_shows() -> None:
    page = "docs/explanation/compared.md"
    shown = [block.strip() for block in blocks(page, "text")]
    text = (ROOT / page).read_text()
    for row, counts in (
        ("characters to type", [len(block) for block in shown]),
        ("options", [len(re.findall(r"(?<= )--?[a-z]\w*", block)) for block in shown]),
        ("commands, once installed", [1 + block.count("export ") + block.count("\nnullbooth ") for block in shown]),
    ):
        assert f"| {row} | {' | '.join(map(str, counts))} |" in text
    terms = [
        len(cells.split(", "))
        for cells in re.findall(r"^\| [^|]+ \| (rare word, .+|config, recipe, store.+) \|$", text, re.MULTILINE)
    ]
    assert f"| terms to know | {' | '.join(map(str, terms))} |" in text


DEFINED = ("second moment", "null space", "projector", "leakage", "preserved prompt", "held-out prompt", "site", "unit", "stale")
WITHOUT_GLOSSARY = ("docs/reference/glossary.md", "docs/changelog.md", "docs/contributing.md", "docs/index.md", "docs/toy.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_that_uses_defined_words_links_the_glossary(page: Path) -> None:
    if str(page.relative_to(ROOT)) in WITHOUT_GLOSSARY:
        return
    text = page.read_text()
    if any(re.search(rf"\b{word}s?\b", text) for word in DEFINED):
        assert "glossary.md" in text


def test_the_glossary_defines_each_word_once() -> None:
    words = [
        word.strip()
        for line in (ROOT / "docs/reference/glossary.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| word", "| ---"))
        for word in line.split("|")[1].split(",")
    ]
    assert len(words) == len(set(words))
    assert {"site", "unit", "second moment", "null space", "projector", "leakage", "drift", "preserved prompts"} <= set(words)
