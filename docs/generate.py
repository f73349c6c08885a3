"""Write what is generated: `python docs/generate.py` (`--check` fails if a file is out of date, and writes nothing).

configs/nullbooth.yaml and docs/reference/config.md come from the fields of the config, docs/reference/cli.md from `--help`,
docs/reference/models.md and the first lines of the other configs from the config files of their models (architectures.py).
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import architectures
from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
COMMENT_COLUMN = 56
YAML_HEADER = """\
# The embedded model, end to end: about two minutes on two cores, 0.7 GB on disk.
# Every key stands here, all but collect.batch_size (8) and heldout_prompts (null) with its default.
# docs/reference/config.md says more.
# Paths start at the current folder.

"""
# The embedded model is so small that larger batches are faster on any machine; prompts to measure leakage on ship with it.
TOY = ["collect.batch_size=24", "heldout_prompts=dataset/prompts/toy_heldout.txt"]


def scalar(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.01 else str(value)
    if isinstance(value, str):
        return f'"{value}"' if set(value) & set("+ ") else value
    return json.dumps(value)


def fields(model: BaseModel) -> Iterator[tuple[str, Any, str]]:
    for name, field in type(model).model_fields.items():
        yield name, getattr(model, name), field.description or ""


def yaml_lines(model: BaseModel, indent: int = 0) -> Iterator[str]:
    for name, value, description in fields(model):
        if isinstance(value, BaseModel):
            if indent == 0:
                yield ""
            yield f"{' ' * indent}{name}:".ljust(COMMENT_COLUMN) + f"# {description}"
            yield from yaml_lines(value, indent + 2)
        else:
            yield f"{' ' * indent}{name}: {scalar(value)}".ljust(COMMENT_COLUMN) + f"# {description}"


def config_rows(model: BaseModel, prefix: str = "") -> Iterator[str]:
    for name, value, description in fields(model):
        if isinstance(value, BaseModel):
            yield from config_rows(value, f"{prefix}{name}.")
        else:
            yield f"| `{prefix}{name}` | `{scalar(value)}` | {description.replace('|', '/')} |"


def config_page() -> str:
    from nullbooth_cli.settings.config import Config

    rows = "\n".join(config_rows(Config()))
    return f"""\
# Config

One YAML file. A config is looked for in `-c`, `$NULLBOOTH_CONFIG`, `./nullbooth.yaml`, `./configs/nullbooth.yaml`; an existing
store carries its own, so `-s` alone is then enough. `--set key=value` overrides any one key and is recorded in the store.
Unknown keys are refused. YAML is read as YAML 1.2 means it: `1e-5` is a number and `no` is a word.

Of the threshold rules in `project`, exactly one is in force. Only `nullspace_threshold` and `threshold_percent` may stand
together: the percentile then wins, and the run says so.

| key | default | meaning |
| --- | --- | --- |
{rows}
"""


def cli_page() -> str:
    from typer.testing import CliRunner

    from nullbooth_cli.cli import app

    def help_of(*command: str) -> str:
        text = (
            CliRunner(env={"COLUMNS": "110", "TERMINAL_WIDTH": "110"})
            .invoke(app, [*command, "--help"], prog_name="nullbooth")
            .stdout
        )
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    names = [command.name for command in app.registered_commands if command.name]
    sections = "\n".join(f"\n## nullbooth {name}\n\n```text\n{help_of(name)}\n```" for name in names)
    return f"# Command line\n\n```text\n{help_of()}\n```\n{sections}\n"


def yaml_file() -> str:
    from nullbooth_cli.settings.config import build_config

    return YAML_HEADER + "\n".join(yaml_lines(build_config({}, TOY))) + "\n"


def recipe_page() -> str:
    from nullbooth_cli.settings.recipe import Recipe

    rows = "\n".join(config_rows(Recipe()))
    return f"""\
# Training

What `nullbooth train -c FILE` reads: one YAML file; configs/train has two. `--set key=value` overrides any one key, and unknown
keys are refused. `output` then holds a checkpoint to go on from, validation/ with the drawn prompts, train.json with the recipe
and the drift of every weight, and pipeline/ or lora/ with the result.

| key | default | meaning |
| --- | --- | --- |
{rows}
"""


FILES: dict[str, Callable[[], str]] = {
    "configs/nullbooth.yaml": yaml_file,
    "docs/reference/config.md": config_page,
    "docs/reference/cli.md": cli_page,
    "docs/reference/train.md": recipe_page,
    "docs/reference/models.md": architectures.models_page,
    **{f"configs/{name}.yaml": partial(architectures.config_file, name) for name in architectures.NAMES},
}


def main(check: bool) -> int:
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = "110"
    made = {name: make() for name, make in FILES.items()}
    old = [name for name, text in made.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text]
    if not check:
        for name in old:
            (ROOT / name).write_text(made[name])
    for name in old:
        print(f"{name} {'is out of date: run python docs/generate.py' if check else 'written'}")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
