"""Reads the options of `nullbooth edit`, refuses an edit that reaches nothing, and draws its answer."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from nullbooth_cli.commands.tables import table
from nullbooth_cli.editing.around import Around
from nullbooth_cli.editing.positions import Marked
from nullbooth_cli.editing.reach import EditRung, Trial
from nullbooth_cli.editing.report import several
from nullbooth_cli.editing.settings import EditSettings, Method
from nullbooth_cli.editing.verbs import NEUTRAL, Pair, debiased, erased, made, mapped, read_pairs
from nullbooth_cli.editing.verdict import reach_word
from nullbooth_cli.errors import ConfigError, Rerun
from nullbooth_cli.formatting import counted, listed
from nullbooth_cli.model.words import has_word
from nullbooth_cli.nullspace.export import is_taken

if TYPE_CHECKING:
    from nullbooth_cli.report.answers import EditAnswer

METHODS = get_args(Method)
AROUND: Mapping[str, Around | None] = {**{kind: kind for kind in get_args(Around)}, "none": None}


class Setting(NamedTuple):
    """A setting of an edit: its default, and the methods that take it."""

    default: float
    methods: Sequence[str] = METHODS


SETTINGS = {
    "ridge": Setting(EditSettings.ridge),
    "preserve": Setting(EditSettings.preserve, ("uce",)),
    "copies": Setting(EditSettings.copies),
}
SHOWN = 20  # pairs in the answer
ALL = 1.0  # of --max-missing: whatever is missing


def require_place(output: str | None, *, dry_run: bool) -> None:
    """Raise ConfigError unless exactly one of an output and a dry run is asked for, and for an output that exists."""
    if output is None and not dry_run:
        raise ConfigError("no output is named", "name a folder with -o, or add --dry-run to see what the edit would do")
    if output is not None and dry_run:
        raise ConfigError("--dry-run writes nothing, and --output names a folder", "leave one of them out")
    if output is not None and is_taken(Path(output)):
        raise ConfigError(f"{output} exists already", "name another folder")


def pairs_to_edit(
    prompts: Sequence[str],
    *,
    erase: Sequence[str] = (),
    to: str | None = None,
    debias: Sequence[str] = (),
    over: str | None = None,
    file: str | None = None,
    around: str = "object",
) -> list[Pair]:
    """The pairs of the arguments, in their order, then those of the file. Raises ConfigError naming all that are wrong."""
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
    return [*pairs, *(read_pairs(file, kind) if file is not None else [])]


def tokens_of(tokens: str | None, pairs: Sequence[Pair]) -> str:
    """Which tokens are paired: as it was given, else from the subject on if brackets mark one, as those of verbs do."""
    return tokens or ("subject" if any("[" in pair.source for pair in pairs) else "all")


def settings_of(method: str, given: Mapping[str, float | None]) -> dict[str, float]:
    """The settings of a method: what was given, else its default.

    Raises ConfigError for one that the method does not take: it would change nothing.
    """
    for option, value in given.items():
        if value is not None and method in METHODS and method not in SETTINGS[option].methods:
            methods = " or ".join(SETTINGS[option].methods)
            raise ConfigError(f"--{option} has no part in {method}", f"leave it out, or choose --method {methods}")
    taken = {option: setting.default for option, setting in SETTINGS.items() if method in setting.methods}
    return taken | {option: value for option, value in given.items() if value is not None}


def preserved_notes(pairs: Iterable[str], preserved: Sequence[str]) -> list[str]:
    """A note for each marked subject of the sources `pairs` that preserved prompts have: those prompts will look as before."""
    subjects = dict.fromkeys(subject for source in pairs if (subject := Marked.read(source).subject))
    counts = {subject: sum(has_word(text, subject) for text in preserved) for subject in subjects}
    return [
        f"{counted(count, 'preserved prompt')} with '{subject}' will be drawn as before: collect without them to edit it"
        for subject, count in counts.items()
        if count
    ]


def require_reached(trial: Trial, most: float) -> None:
    """Raise ConfigError if `most` of a pair or more is missing, with the threshold or the method that would reach it."""
    missing = {source: float(f"{value:.2g}") for source, value in trial.plan.report.by_pair.items()}
    beyond = sorted((source for source in missing if not missing[source] < most), key=lambda source: -missing[source])
    if not beyond or most == ALL:
        return
    message = f"{listed([f'{missing[source]:.2g} of {source!r}' for source in beyond], 3)} would be missing: nothing is written"
    anyway = f"save it as it is with --max-missing {ALL:g}"
    *thresholds, by_uce = trial.thresholds() or (None,)
    if by_uce is None:
        raise ConfigError(message, f"lower --preserve or --ridge, at the cost of drift; or {anyway}")
    others = [f"--method uce: {_measures(by_uce)}", "lower --ridge, at the cost of drift", anyway]
    reached = next((rung for rung in thresholds if rung is not None and rung.missing < most), None)
    if reached is None:
        raise ConfigError(f"{message}, and no threshold of the projectors reaches it", "\nor ".join(others))
    raise ConfigError(
        message,
        Rerun(
            "project",
            force=True,
            store=trial.url,
            settings=(f"project.relative_threshold={reached.relative_threshold:g}",),
            otherwise="\n".join([f"then {_by(trial)}{_measures(reached)}", *(f"or {other}" for other in others)]),
        ),
    )


def _by(trial: Trial) -> str:
    """The method of the ladder, if it is another one than the trial's."""
    return "" if trial.plan.report.method == "alphaedit" else "by --method alphaedit "


def _measures(rung: EditRung) -> str:
    heldout = "" if rung.heldout is None else f", {rung.heldout:.2g} on held-out prompts"
    return f"{rung.missing:.2g} is missing ({reach_word(rung.missing)}), drift {rung.drift:.2g}{heldout}"


def draw(answer: "EditAnswer") -> list[Any]:
    """The verdicts; of several pairs those that are not reached; the ladder, if there is one; and the folder."""
    would = "would be edited" if answer.output is None else "edited"
    after = f", after {answer.after}" if answer.after else ""
    lines: list[Any] = [
        *(f"{answer.store} remembers {name} now" for name in answer.remembered),
        f"{counted(len(answer.pairs), 'prompt')} {would} in {len(answer.weights)} weights ({answer.method}{after})",
        *(line for verdict in answer.verdicts for line in verdict.lines),
    ]
    if len(answer.by_pair) > 1:
        lines += ["", _pairs(answer)]
    if answer.ladder:
        lines += ["", _ladder(answer.ladder)]
    return [*lines, *([answer.output] if answer.output else [])]


def _pairs(answer: "EditAnswer") -> Any:
    """The pairs, those furthest from their targets first."""
    worst = sorted(answer.by_pair.items(), key=lambda item: -item[1])
    rows = [
        [f"{missing:.2g}", reach_word(missing), f"{source} -> {' + '.join(several(answer.pairs[source])) or 'nothing'}"]
        for source, missing in worst[:SHOWN]
    ]
    if len(worst) > SHOWN:
        rows.append(["", "", f"and {len(worst) - SHOWN} more"])
    return table(["missing", "", "prompt"], rows, right=frozenset({0}))


def _ladder(rungs: Sequence[EditRung]) -> Any:
    """What the edit would do under other thresholds, and by uce."""
    columns = ["relative_threshold", "null_dim", "missing", "", "drift", "held-out"]
    rows = [
        [
            rung.method if rung.relative_threshold is None else f"{rung.relative_threshold:g}",
            "" if rung.null_dim is None else str(rung.null_dim),
            f"{rung.missing:.2g}",
            reach_word(rung.missing),
            f"{rung.drift:.2g}",
            "" if rung.heldout is None else f"{rung.heldout:.2g}",
        ]
        for rung in rungs
    ]
    return table(columns, rows, right=frozenset({0, 1, 2, 4, 5}), drop=("null_dim",))
