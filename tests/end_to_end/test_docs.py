"""The docs are true: generated pages are current, links lead somewhere, commands exist, README's commands run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nullbooth_cli.cli import app
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.recipe import Recipe
from tests.support.builders import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "dataset/README.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS = [command.name for command in app.registered_commands if command.name]


def shell_lines(page: Path) -> list[str]:
    """The commands of a page's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


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
        for command in re.findall(r"bin/nullbooth (\w+)", line):
            assert command in COMMANDS, line
        for target in re.findall(r"^make (\w+)", line):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        for key in re.findall(r"--set (\S+)=", line):
            section = Recipe() if "nullbooth train" in line else Config()
            for part in key.split("."):
                section = getattr(section, part)


def test_readme_says_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(shell_lines(ROOT / "README.md"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_entry(command: str) -> None:
    assert f"## nullbooth {command}\n" in (ROOT / "docs/reference/cli.md").read_text()


def nullbooth_lines(page: Path) -> list[str]:
    """A page's nullbooth commands, with the binary as it is called here."""
    return [
        line.replace(".venv/bin/nullbooth", f"{sys.executable} -m nullbooth_cli")
        for line in shell_lines(page)
        if "nullbooth" in line
    ]


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/first-run.md"])
def test_the_commands_of_a_page_run_in_order(page: str, tmp_path: Path) -> None:
    """In an empty folder, on 8 of the prompts and 3 steps; everything else as the page says it."""
    for name in ("configs", "dataset/prompts"):
        (tmp_path / name).mkdir(parents=True)
    for name, count in (("toy.txt", 8), ("toy_heldout.txt", 2)):
        prompts = (ROOT / "dataset/prompts" / name).read_text().splitlines()[:count]
        (tmp_path / "dataset/prompts" / name).write_text("\n".join(prompts))
    config = (ROOT / "configs/nullbooth.yaml").read_text().replace("num_denoising_steps: 30", "num_denoising_steps: 3 ")
    (tmp_path / "configs/nullbooth.yaml").write_text(config)
    lines = nullbooth_lines(ROOT / page)
    assert lines
    for line in lines:
        ran = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
        # The tutorial shows one refusal on purpose: another threshold without --force.
        refused = "relative_threshold=1e-2" in line and "--force" not in line
        assert ran.returncode == (3 if refused else 0), f"{line}\n{ran.stderr}"


def test_the_store_page_reads_features(finished: tuple) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/reference/store.md").read_text(), re.DOTALL)
    assert code
    names: dict = {}
    exec(code[1].replace("runs/toy.zarr", str(finished[1].path)), names)
    site = finished[1].sites[0]
    assert names["first_prompt"].shape == (site.num_tokens, site.dim)
