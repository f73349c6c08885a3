"""Every block of the documentation that can run is run: Python as it is, commands of nullbooth on small models and prompts."""

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import nullbooth_cli as nb
from nullbooth_cli.store import Store
from nullbooth_cli.toy import FOLDER, world
from tests.support.builders import ROOT
from tests.support.pages import CALL, make_folder, python_of, run_line, shell_lines
from tests.teaching.conftest import few_pictures

__all__ = ["few_pictures"]  # for every page that teaches

PAGES = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]
COMMANDS = [page for page in PAGES if any(CALL.search(line) for line in shell_lines(page))]
NUM_WEIGHTS = 40  # of the embedded model, which the configs of the folder collect
# The lines that no test runs, by a part of them, and the reason.
NOT_RUN = {
    "s3://": "needs a bucket: tests/end_to_end/test_remote.py runs these commands on one",
    "/usr/bin/time": "measures for minutes",
    "CUDA_VISIBLE_DEVICES": "starts four processes: tests/end_to_end/test_processes.py runs shards",
    "pipeline_config=stable-diffusion-v1-5": "needs weights from the hub: tests/model/test_load.py loads such files",
    " style.safetensors": "needs a LoRA of Stable Diffusion: tests/commands/test_inspect_lora.py and test_refit.py run both",
    "-s runs/sdxl.zarr": "needs weights from the hub: tests/end_to_end/test_recipes.py trains tiny models of its class",
    "kohya.zarr": "needs weights from the hub: tests/integrations/test_kohya.py collects from tiny models",
}
# A page whose commands another test runs.
ELSEWHERE = {"docs/how-to/slurm-array.md": "tests/end_to_end/test_slurm.py"}
# What a page refuses on purpose: the exit code of a line.
REFUSED = {"docs/tutorial/first-run.md": (r"relative_threshold=1e-2$", 3)}
# A page that continues another one, whose commands run before.
AFTER = dict.fromkeys(("docs/how-to/measure-forgetting.md", "docs/how-to/sample.md"), "docs/tutorial/teach-a-subject.md")
# The tutorials begin without a store; the other pages follow `make demo`.
FROM_NOTHING = ("README.md", "docs/tutorial/first-run.md")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user who has run `make demo`, and has two stores more."""
    folder = tmp_path_factory.mktemp("made")
    make_folder(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        lines = ["nullbooth run -c configs/nullbooth.yaml"]
        for name, prompts in (("a", "[a red circle, a blue ring]"), ("b", "[a green star]")):
            lines.append(f"nullbooth run -c run.yaml -s runs/{name}.zarr --set 'original_knowledge_prompts={prompts}'")
        for line in lines:
            exit_code, stderr = run_line(line)
            assert exit_code == 0, stderr
    return folder


def copied(made: Path, to: Path) -> Path:
    """A copy of a user's folder, free to be written to."""
    shutil.copytree(made, to, symlinks=True)
    return to


def run_page(page: str) -> None:
    """Run the lines of a page that call nullbooth, in order; each ends with 0, or with the code that the page says."""
    pattern, refusal = REFUSED.get(page, ("(?!)", 0))
    for line in shell_lines(page):
        if (CALL.search(line) or line.startswith("cp ")) and not any(part in line for part in NOT_RUN):
            exit_code, stderr = run_line(line)
            assert exit_code == (refusal if re.search(pattern, line) else 0), f"{line}\n{stderr}"


@pytest.mark.parametrize("page", [page for page in COMMANDS if page not in ELSEWHERE])
def test_the_commands_of_a_page_run_in_order(page: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied(made, tmp_path / "here"))
    if page in FROM_NOTHING:
        shutil.rmtree("runs/toy.zarr")
    if page in AFTER:
        run_page(AFTER[page])
    before = set(Path().iterdir()) | set(Path("configs").iterdir())
    run_page(page)
    written = (set(Path().iterdir()) | set(Path("configs").iterdir())) - before
    assert [str(path) for path in written if not is_ignored(path)] == [], "files that .gitignore does not name"


def test_the_tutorial_can_be_followed_after_the_demo_and_the_demo_after_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied(made, tmp_path / "here"))
    run_page("docs/tutorial/first-run.md")
    exit_code, stderr = run_line("nullbooth run -c configs/nullbooth.yaml")
    assert exit_code == 0, stderr


def is_ignored(path: Path) -> bool:
    """Whether a line of .gitignore names a path at the top of the repository, or one folder below it."""
    lines = (line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#"))
    return any(fnmatch(str(path), line) for line in lines)


def test_what_is_not_run_is_little_and_there() -> None:
    """Eleven lines of seven pages; each entry of the tables is needed."""
    lines = [line for page in COMMANDS for line in shell_lines(page) if CALL.search(line)]
    not_run = {part: [line for line in lines if part in line] for part in NOT_RUN}
    assert {part: len(found) for part, found in not_run.items()} == dict(zip(NOT_RUN, (2, 2, 2, 1, 2, 1, 1), strict=True))
    assert len(lines) > 50
    for page, test in ELSEWHERE.items():
        assert page in COMMANDS
        assert page in (ROOT / test).read_text()


def test_the_python_of_every_page_is_run() -> None:
    """Some test takes the blocks of each page that has any, and of each module whose docstring shows calls: `python_of`."""
    modules = [str(path.relative_to(ROOT)) for path in (ROOT / "nullbooth_cli").rglob("*.py")]
    shown = [page for page in [*PAGES, "dataset/README.md", *modules] if python_of(page)]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    called = set(re.findall(r'python_of\("([^"]+)"\)', tests))
    assert called == set(shown)


@pytest.fixture
def names(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that code starts with, in a folder with a finished store: `pipe`, a pipeline that a user has loaded."""
    from diffusers import DiffusionPipeline

    folder = copied(made, tmp_path / "here")
    for name in ("runs/sd15.zarr", "run.zarr"):
        (folder / name).symlink_to(folder / "runs/toy.zarr")
    monkeypatch.chdir(folder)
    return {"pipe": DiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)}


def run_python(code: list[str], names: dict[str, Any]) -> dict[str, Any]:
    """Run blocks in order, in one namespace."""
    for block in code:
        exec(block, names)
    return names


def test_readme_constrains_a_model(names: dict[str, Any]) -> None:
    names["pipe"].unet.requires_grad_(True)
    found = run_python(python_of("README.md"), names)
    trained = [parameter for parameter in found["pipe"].unet.parameters() if parameter.requires_grad]
    assert len(trained) == len(found["constraint"].report().constrained) == NUM_WEIGHTS
    assert set(found["constraint"].drift().values()) == {0.0}


def test_the_page_of_the_embedded_model_draws(names: dict[str, Any]) -> None:
    run_python(python_of("docs/toy.md"), names)
    read = world.read(np.asarray(Image.open("circle.png")) / 255)
    assert (read.colour, read.shape, read.background) == ("red", "circle", "blue")


def test_the_page_of_errors_opens_a_store_and_shows_an_error(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    code = python_of("docs/reference/errors.md")
    assert run_python(code, names)["store"].schedule()
    assert capsys.readouterr().out == ""
    shutil.rmtree("runs/toy.zarr")
    run_python(code, names)
    assert capsys.readouterr().out.endswith(" 3\n")


def test_the_page_of_the_store_reads_features(names: dict[str, Any]) -> None:
    found = run_python(python_of("docs/reference/store.md"), names)
    site = Store.open("runs/toy.zarr").sites[0]
    assert found["first_prompt"].shape == (site.num_tokens, site.dim)


def test_the_code_of_the_package(names: dict[str, Any]) -> None:
    run_python(python_of("nullbooth_cli/__init__.py"), names)
    assert set(names["constraint"].drift().values()) == {0.0}


def test_the_code_of_the_interface(names: dict[str, Any]) -> None:
    run_python(python_of("nullbooth_cli/api.py"), names)
    assert len(names["projectors"]) == NUM_WEIGHTS


def test_the_code_of_the_constraint(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names["pipe"].unet.requires_grad_(True)
    run_python(python_of("nullbooth_cli/training/constraint.py"), {**names, "nb": nb})
    assert capsys.readouterr().out.startswith(f"constrained {NUM_WEIGHTS}\n")


def test_the_code_of_an_edit(names: dict[str, Any]) -> None:
    found = run_python(python_of("nullbooth_cli/editing/edit.py"), {**names, "nb": nb})
    assert found["report"].pairs == {"a zwx": "a red star"}
