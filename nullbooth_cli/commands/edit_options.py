"""Reads the options of `nullbooth edit`, and refuses an edit that does not reach its targets."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from nullbooth_cli.editing.around import Around
from nullbooth_cli.editing.reach import EditRung
from nullbooth_cli.editing.report import EditReport
from nullbooth_cli.editing.verbs import NEUTRAL, EditFile, debiased, erased, made, mapped, read_edits
from nullbooth_cli.editing.verdict import reach_word
from nullbooth_cli.errors import ConfigError, Rerun
from nullbooth_cli.formatting import listed
from nullbooth_cli.nullspace.export import is_taken

AROUND: Mapping[str, Around | None] = {**{kind: kind for kind in get_args(Around)}, "none": None}
ALL = 1.0  # of --max-missing: whatever is missing


def require_place(output: str | None, *, dry_run: bool) -> None:
    """Raise ConfigError unless exactly one of an output and a dry run is asked for, and for an output that exists."""
    if output is None and not dry_run:
        raise ConfigError("no output is named", "name a folder with -o, or add --dry-run to see what the edit would do")
    if output is not None and dry_run:
        raise ConfigError("--dry-run writes nothing, and --output names a folder", "leave one of them out")
    if output is not None and is_taken(Path(output)):
        raise ConfigError(f"{output} exists already", "name another folder")


def require_map_pairs(arguments: Sequence[str], before: Callable[[Sequence[str]], int]) -> None:
    """Raise ConfigError unless SOURCE and TARGET follow each --map of the arguments, and whole pairs come before it.

    `before` counts the prompts among the arguments before one.
    """
    for i, argument in enumerate(arguments):
        if argument == "--map":
            following = [text for text in arguments[i + 1 : i + 3] if not text.startswith("-")]
            if len(following) < 2 or arguments[i + 1].startswith("-"):
                raise ConfigError("--map has no SOURCE and TARGET after it", 'write --map "a sks star" "a red star"')
            if before(arguments[:i]) % 2:
                raise ConfigError("--map comes after a source that has no target", "write both of a pair side by side")


def pairs_to_edit(
    prompts: Sequence[str],
    *,
    erase: Sequence[str] = (),
    to: str | None = None,
    debias: Sequence[str] = (),
    over: str | None = None,
    file: str | None = None,
    around: str = "object",
) -> EditFile:
    """The pairs of the arguments, in their order, then those of the file, and its settings.

    Raises ConfigError naming all pairs that are wrong.
    """
    if around not in AROUND:
        raise ConfigError(f"--around '{around}' is not a choice", f"choose {', '.join(AROUND)}")
    kind = AROUND[around]
    if len(prompts) % 2:
        raise ConfigError(f"'{prompts[-1]}' has no target", "name a target after each source: an even number of prompts")
    if to is not None and not erase:
        raise ConfigError(f"--to '{to}' says what an erased concept becomes, and nothing is erased", "add --erase CONCEPT")
    if bool(debias) is not (over is not None):
        problem = "--over names attributes, and nothing is debiased" if over is not None else f"'{debias[0]}' has no attributes"
        raise ConfigError(problem, 'write --debias PROFESSION --over "male,female"')
    attributes = [] if over is None else over.split(",")
    pairs = made(
        [
            *(partial(mapped, *pair, around=kind) for pair in zip(prompts[::2], prompts[1::2], strict=True)),
            *(partial(erased, concept, to or NEUTRAL, kind) for concept in erase),
            *(partial(debiased, profession, attributes, kind) for profession in debias),
        ]
    )
    more = EditFile([], {}) if file is None else read_edits(file, kind)
    return EditFile([*pairs, *more.pairs], more.settings)


def require_reached(report: EditReport, store: str, most: float, thresholds: Callable[[], Sequence[EditRung]]) -> None:
    """Raise ConfigError if `most` of a pair or more is missing, by itself or in other prompts, with what would reach it.

    `thresholds` are those of `reach`, `store` the place of the store.
    """
    missing = {f"of '{source}'": value for source, value in report.by_pair.items()}
    missing |= {f"in {each.prompts} prompts with '{each.concept}'": each.missing for each in report.in_context}
    missing = {place: float(f"{value:.2g}") for place, value in missing.items()}  # as printed
    beyond = sorted((place for place in missing if not missing[place] < most), key=lambda place: -missing[place])
    if not beyond or most == ALL:
        return
    message = f"{listed([f'{missing[place]:.2g} {place}' for place in beyond], 3)} would be missing: nothing is written"
    others = [f"save it as it is with --max-missing {ALL:g}"]
    if any(each.prompts == "preserved" and not each.missing < most for each in report.in_context):
        others.insert(0, "collect without the prompts that have it: it is itself preserved")
    *rungs, by_uce = thresholds() or (None,)
    if by_uce is None:
        raise ConfigError(message, "\nor ".join(["lower --preserve or --ridge, at the cost of drift", *others]))
    others = [f"--method uce: {_measures(by_uce)}", "lower --ridge, at the cost of drift", *others]
    reached = next((rung for rung in rungs if rung is not None and rung.missing < most and (rung.elsewhere or 0) < most), None)
    if reached is None:
        raise ConfigError(f"{message}, and no threshold of the projectors reaches it", "\nor ".join(others))
    raise ConfigError(
        message,
        Rerun(
            "project",
            force=True,
            store=store,
            settings=(f"project.relative_threshold={reached.relative_threshold:g}",),
            otherwise="\n".join([f"then {_measures(reached)}", *(f"or {other}" for other in others)]),
        ),
    )


def _measures(rung: EditRung) -> str:
    heldout = "" if rung.heldout is None else f", {rung.heldout:.2g} on held-out prompts"
    elsewhere = "" if rung.elsewhere is None else f", {rung.elsewhere:.2g} in other prompts"
    return f"{rung.missing:.2g} is missing ({reach_word(rung.missing)}){elsewhere}, drift {rung.drift:.2g}{heldout}"
