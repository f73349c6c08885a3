"""The pages of the documentation as tests run them: their blocks, and a folder in which the commands find what they name."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from nullbooth_cli.toy import FOLDER
from tests.support import lora_files, tiny
from tests.support.builders import ROOT
from tests.support.cli import nullbooth
from tests.support.phone_pictures import write_phone_pictures
from tests.support.teaching import SETTINGS
from tests.support.trained_folders import training_output

# A call of nullbooth in a line of a shell: the command, and its arguments up to a pipe, a redirection or a closing quote.
CALL = re.compile(r"""(?:^|[/ '"])nullbooth (\w+)((?:'[^']*'|"[^"]*"|[^|;&>#'"])*)""")
# What a page names stands for something small: the model, of its class, and the settings that decide how long it takes.
MODELS = {"sd15": "toy", "sdxl": "models/sdxl"}
COUNTS = {"toy.txt": 8, "toy_heldout.txt": 2}
QUICK = {
    "max_train_steps": 2,
    "checkpointing_steps": 2,
    "validation_inference_steps": 2,
    "mixed_precision": "no",
    "dtype": "float32",
}


def blocks(page: str, *languages: str) -> list[str]:
    """The blocks of a page in any of the languages, in order, without the indent of a list."""
    found = re.findall(rf"^( *)```(?:{'|'.join(languages)})\n(.*?)^\1```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def python_of(page: str) -> list[str]:
    """The Python of a page: its blocks, or the indented paragraphs of a module's docstring that use `nb`."""
    if page.endswith(".md"):
        return blocks(page, "python")
    docstring = ast.get_docstring(ast.parse((ROOT / page).read_text())) or ""
    paragraphs = [part for part in docstring.split("\n\n") if part.startswith("    ") and re.search(r"\bnb\b", part)]
    return ["\n".join(map(textwrap.dedent, paragraphs))] if paragraphs else []


def shell_lines(page: str) -> list[str]:
    """The commands of a page: the lines of its bash blocks, and what follows `$` in its console blocks."""
    lines = []
    for kind in ("bash", "console"):
        for block in blocks(page, kind):
            commands = [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
            lines += commands if kind == "bash" else [line[2:] for line in commands if line.startswith("$ ")]
    return lines


def run_line(line: str) -> tuple[int, str]:
    """Run a page's line that calls nullbooth: in this process if it does nothing else, or else in a shell.

    Returns the exit code and what went to stderr.
    """
    if "nullbooth teach" in line:
        line = " ".join([line.replace("--model sd15", "--model toy"), *(f"--set {setting}" for setting in SETTINGS), "--steps 2"])
    if re.search(r"[|;&><$]|^cp ", line):
        line = re.sub(r"(?:\.venv/bin/|\b)nullbooth\b(?= )", f"{sys.executable} -m nullbooth_cli", line)
        ran = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
        return ran.returncode, ran.stderr
    result = nullbooth(*shlex.split(line)[1:])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def make_folder(folder: Path) -> None:
    """What the commands of the pages start from: configs and prompts of the repository, models, stores and pictures of a user.

    Everything is of the size that `MODELS`, `COUNTS` and `QUICK` give it.
    """
    (folder / "nullbooth_cli").mkdir()  # without __init__.py, so that `python -m` finds the package elsewhere
    (folder / "nullbooth_cli/toy").symlink_to(FOLDER)
    for name, count in COUNTS.items():
        _write(folder / "dataset/prompts" / name, "\n".join((ROOT / "dataset/prompts" / name).read_text().splitlines()[:count]))
    for name in ("dataset/instances", "dataset/images/toy"):
        shutil.copytree(ROOT / name, folder / name)
    _shorten(folder / "dataset/images/toy", slice(6))
    tiny.saved("sdxl", folder / "models")
    for source in (ROOT / "configs").rglob("*.yaml"):
        settings = yaml.safe_load(source.read_text())
        settings["model"] = MODELS.get(source.stem, "toy")
        quick = (_recipe if source.parent.name == "train" else _config)(settings)
        _write(folder / source.relative_to(ROOT), yaml.safe_dump(settings | quick))
    _user_files(folder)


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    """The config's settings that make it quick."""
    heldout = {"heldout_prompts": "dataset/prompts/toy_heldout.txt"} if settings.get("heldout_prompts") else {}
    return {
        "original_knowledge_prompts": "dataset/prompts/toy.txt",
        **heldout,
        "dtype": "float32",
        "schedule": {**settings["schedule"], "num_denoising_steps": 3},
    }


def _recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """The recipe's settings that make it quick."""
    return {**QUICK, "validation_prompts": settings["validation_prompts"][:1]}


def _user_files(folder: Path) -> None:
    """What the pages take for granted: a user's own model, config, pictures, trained models, and stores made before."""
    shutil.copytree(folder / "models/sdxl", folder / "my-model")
    for name in ("trained", "other-training", "runs/trained"):
        shutil.copytree(FOLDER, folder / name)
    lora_files.diffusers_file(folder / "lora.safetensors")
    base = training_output(folder / "runs/dog", "full", 2, result=False) / "checkpoint-000002/trained/base.json"
    _write(base, json.dumps({**json.loads(base.read_text()), "prompts": ["a photo of sks dog"]}))
    shutil.copytree(folder / "dataset/instances/toy", folder / "instances/dog")
    write_phone_pictures(folder / "pictures")
    for name, part in (("preserved", slice(3)), ("heldout", slice(3, 6))):
        shutil.copytree(folder / "dataset/images/toy", folder / "photos" / name)
        _shorten(folder / "photos" / name, part)
    mine = yaml.safe_load((folder / "configs/nullbooth.yaml").read_text()) | {"store": "runs/mine.zarr", "heldout_prompts": None}
    _write(folder / "run.yaml", yaml.safe_dump(mine))


def _shorten(images: Path, part: slice) -> None:
    """Leave these images of a folder, in the order of its metadata."""
    lines = (images / "metadata.jsonl").read_text().splitlines()
    for line in lines:
        if line not in lines[part]:
            (images / json.loads(line)["file_name"]).unlink()
    (images / "metadata.jsonl").write_text("\n".join(lines[part]))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
