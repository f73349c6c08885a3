"""The table of docs/reference/models.md: every pipeline class of diffusers that takes a prompt, and whether it works here.

The classes come from the source of the installed diffusers, so that those which need a package that is not installed are there
too, and a new release shows what is new. What is known of them is in tests/support/zoo, which the tests prove, and in the reasons
of refusals.
"""

import ast
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

WORKS, WITH, REFUSED, UNTESTED = "works", "works with", "refused", "not tested"
GUIDANCE, INPUTS = "collect.guidance_scale", "collect.pipeline_inputs"
# Inputs that make the pictures and videos of the tests small; no user has to set them.
SIZES = ("num_frames", "frames", "video_length", "max_area", "_auto_resize", "use_resolution_binning")


@cache
def classes_with_prompt() -> tuple[str, ...]:
    """The pipeline classes that diffusers exports and that take an argument `prompt`, by name."""
    import diffusers

    classes: dict[str, ast.ClassDef] = {}
    for file in sorted((Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py")):
        if "Pipeline" in (text := file.read_text(encoding="utf-8")):
            classes |= {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    exported = set(dir(diffusers))
    return tuple(name for name in sorted(exported & classes.keys()) if "Pipeline" in name and _takes_prompt(name, classes))


def _takes_prompt(name: str, classes: Mapping[str, ast.ClassDef]) -> bool:
    """Whether the call of a class, or of the first base that has one, takes a prompt."""
    if (found := classes.get(name)) is None:
        return False
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__call__":
            return "prompt" in {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
    return any(isinstance(base, ast.Name) and _takes_prompt(base.id, classes) for base in found.bases)


def answer(name: str) -> tuple[str, str]:
    """(works, works with, refused or not tested; the settings, the reason or a note) of a class."""
    from nullbooth_cli.model.pipeline_classes import why_refused
    from tests.support.zoo import ENTRIES

    entry = ENTRIES.get(name)
    if reason := why_refused(name) or (entry and entry.refused and (entry.note or entry.refused)):
        return REFUSED, reason
    if entry is None:
        return UNTESTED, ""
    settings = "; ".join(f"`{key}: {_shown(value)}`" for key, value in _needed(entry.settings).items())
    return (WITH if settings else WORKS), "; ".join(filter(None, (settings, entry.note)))


def _needed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a user has to make as well: not the guidance scale, nor the sizes of a test."""
    inputs = {name: value for name, value in settings.get(INPUTS, {}).items() if name not in SIZES}
    others = {key: value for key, value in settings.items() if key not in (GUIDANCE, INPUTS)}
    return {**({INPUTS: inputs} if inputs else {}), **others}


def _shown(value: Any) -> str:
    """A value as it is written in a config; FILE for a file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return "FILE" if re.search(r"\.(png|safetensors)$", str(value)) else str(value)


def summary() -> str:
    """How many classes there are, and how many of them work."""
    import diffusers

    answers = Counter(answer(name)[0] for name in classes_with_prompt())
    return (
        f"{len(classes_with_prompt())} pipeline classes of diffusers {diffusers.__version__} take a prompt. nullbooth works with "
        f"{answers[WORKS] + answers[WITH]} of them, {answers[WITH]} of which need a setting; it refuses {answers[REFUSED]}, and\n"
        f"{answers[UNTESTED]} are not tested."
    )


def explained() -> str:
    """What the answers mean."""
    return f"""\
- **{WORKS}**: for a small pipeline of the class with random weights, every moment of every site is that of plain hooks which run
  one prompt after the other, and a weight that is constrained, in full or by a LoRA, does not move the outputs on what was
  recorded. tests/end_to_end/test_every_pipeline.py computes both, for videos with five frames or fewer.
- **{WITH}**: the same, with the settings in the next column. FILE is a picture, or a tensor in a .safetensors file.
- **{REFUSED}**: the reason appears before anything is loaded or written.
- **{UNTESTED}**: nothing is known. A class that a new release of diffusers adds is one of these."""


def table() -> str:
    """One row for each class."""
    rows = [(name, *answer(name)) for name in classes_with_prompt()]
    return "\n".join(
        ["| class | nullbooth | setting or reason |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    )
