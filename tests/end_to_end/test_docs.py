"""The docs are true: generated pages are current, links lead somewhere, commands exist, README's commands run."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from nullbooth_cli.cli import app
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.store import Store
from nullbooth_cli.toy import FOLDER
from tests.support.builders import ROOT
from tests.support.cli import nullbooth

PAGES = sorted([ROOT / "README.md", ROOT / "dataset/README.md", *(ROOT / "docs").rglob("*.md")])
# A call of nullbooth in a line of a shell: the command, and its arguments up to a pipe, a redirection or a closing quote.
CALL = re.compile(r"""(?:^|[/ '"])nullbooth (\w+)((?:'[^']*'|"[^"]*"|[^|;&>#'"])*)""")
COMMANDS = [command.name for command in app.registered_commands if command.name]


def shell_lines(page: Path) -> list[str]:
    """The commands of a page: the lines of its bash blocks, and what follows `$` in its console blocks."""
    lines = []
    for kind, block in re.findall(r"```(bash|console)\n(.*?)```", page.read_text(), re.DOTALL):
        commands = [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
        lines += commands if kind == "bash" else [line[2:] for line in commands if line.startswith("$ ")]
    return lines


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
    for line in shell_lines(page):
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
    group = typer.main.get_command(app)
    for line in shell_lines(page):
        for name, arguments in CALL.findall(line):
            with group.make_context("nullbooth", [name]) as context:
                command = group.get_command(context, name)
                assert command, line
                command.make_context(name, shlex.split(arguments), parent=context)


def test_readme_says_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(shell_lines(ROOT / "README.md"))


def test_the_demo_is_what_readme_shows() -> None:
    assert set(demo_lines()) <= set(shell_lines(ROOT / "README.md"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_entry(command: str) -> None:
    assert f"## nullbooth {command}\n" in (ROOT / "docs/reference/cli.md").read_text()


def run_line(line: str) -> tuple[int, str]:
    """Run a page's line that calls nullbooth: in this process if it does nothing else, or else in a shell.

    Returns the exit code and what went to stderr.
    """
    if re.search(r"[|;&><$]", line):
        line = re.sub(r"(?:\.venv/bin/|\b)nullbooth\b(?= )", f"{sys.executable} -m nullbooth_cli", line)
        ran = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
        return ran.returncode, ran.stderr
    result = nullbooth(*shlex.split(line)[1:])
    return result.exit_code, result.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/first-run.md"])
def test_the_commands_of_a_page_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, on 8 of the prompts and 3 steps; everything else as the page says it.

    README's own model is then the embedded one, and what was trained is that model too.
    """
    for name in ("configs", "dataset/prompts"):
        (tmp_path / name).mkdir(parents=True)
    for name, count in (("toy.txt", 8), ("toy_heldout.txt", 2)):
        prompts = (ROOT / "dataset/prompts" / name).read_text().splitlines()[:count]
        (tmp_path / "dataset/prompts" / name).write_text("\n".join(prompts))
    config = (ROOT / "configs/nullbooth.yaml").read_text().replace("num_denoising_steps: 30", "num_denoising_steps: 3 ")
    config = config.replace("nullbooth:toy", "dataset/prompts/toy")
    for name in ("nullbooth.yaml", "sd15.yaml"):
        (tmp_path / "configs" / name).write_text(config)
    shutil.copytree(FOLDER, tmp_path / "runs/trained")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in shell_lines(ROOT / page) if CALL.search(line)]
    assert lines
    for line in lines:
        # The tutorial shows one refusal on purpose: another threshold without --force.
        refused = "relative_threshold=1e-2" in line and "--force" not in line
        exit_code, stderr = run_line(line)
        assert exit_code == (3 if refused else 0), f"{line}\n{stderr}"


def test_the_store_page_reads_features(finished: tuple[Config, Store]) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/reference/store.md").read_text(), re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1].replace("runs/toy.zarr", str(finished[1].path)), names)
    site = finished[1].sites[0]
    assert names["first_prompt"].shape == (site.num_tokens, site.dim)


def test_readme_constrains_a_model(pipe: Any, finished: tuple[Config, Store]) -> None:
    code = re.search(r"^   ```python\n(.*?)^   ```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert code
    names: dict[str, Any] = {"pipe": SimpleNamespace(unet=copy.deepcopy(pipe.unet).requires_grad_(True))}
    exec(textwrap.dedent(code[1]).replace("runs/sd15.zarr", finished[1].url), names)
    trained = [parameter for parameter in names["pipe"].unet.parameters() if parameter.requires_grad]
    assert len(trained) == len(names["constraint"].report().constrained) == 40
    assert set(names["constraint"].drift().values()) == {0.0}


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
