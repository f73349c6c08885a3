"""What the words for an edit mean, on the embedded model: `python docs/studies/edit_words.py STORE`.

Nine edits, of new words and of known ones, are made under five thresholds and by `uce` with three weights of the preserved
prompts, with tokens paired from the subject on and by position. Each is drawn and read back exactly:

- drawn      share of the edited prompts, on four backgrounds, whose drawing has the shape and the colour of the target
- preserved  share of 24 other captions that are read as before the edit

STORE is one of all the embedded model's prompts with k and v features. The last lines compare the two ways to pair tokens, and
group the edits from the subject on by the words for what is missing of the worst pair and for the drift (`editing/verdict.py`).
Five minutes on two cores.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from nullbooth_cli.api import OpenStore, open_store
from nullbooth_cli.editing.edit import edit
from nullbooth_cli.editing.reach import CutStore
from nullbooth_cli.editing.settings import Tokens
from nullbooth_cli.editing.verdict import drift, reach_word
from nullbooth_cli.model import load
from nullbooth_cli.toy import score, world

STEPS, GUIDANCE = 12, 4.0
BACKGROUNDS = ("white", "black", "blue", "gray")
# What is edited, and what it should look like: "a {} on a BACKGROUND background" each.
EDITS = {
    "sks star": "red star",
    "zwx": "green ring",
    "purple qfj": "purple circle",
    "vht square": "yellow square",
    "red circle": "green square",
    "purple circle": "purple star",
    "sks": "red star",
    "sks green circle": "yellow square",
    "qfj vht": "pink cross",
}
OTHERS = ("green star", "purple triangle", "orange ring", "cyan cross", "pink square", "yellow circle")
THRESHOLDS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
WEIGHTS = (100.0, 10.0, 1.0)
Reading = tuple[str | None, str, str]


@dataclass(frozen=True)
class Point:
    """One edit: the words edited and their target, the tokens, how, what was missing, the drift, and the two shares."""

    edited: str
    target: str
    tokens: str
    how: str
    missing: float
    drift: float
    drawn: float
    preserved: float


def on(thing: str) -> list[str]:
    """A thing on every background."""
    return [f"a {thing} on a {background} background" for background in BACKGROUNDS]


def readings(pipe: Any, texts: Sequence[str]) -> list[Reading]:
    """What is read from the drawing of each text."""
    pictures = score.paint(pipe, texts, steps=STEPS, guidance=GUIDANCE, seed=0)
    return [(found.shape, found.colour, found.background) for found in map(world.read, pictures)]


def points(store: OpenStore) -> list[Point]:
    """Every edit in every way."""
    pipe: Any = load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu")
    )
    start = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    others = [text for thing in OTHERS for text in on(thing)]
    before, found = readings(pipe, others), list[Point]()
    for source, target in EDITS.items():
        pairs = dict(zip(on(source), on(target), strict=True))
        colour, shape = target.split()
        ways: list[tuple[str, OpenStore, dict[str, Any]]] = [
            *((f"alphaedit, {value:g}", CutStore(store, value), {}) for value in THRESHOLDS),
            *((f"uce, {value:g}", store, {"method": "uce", "preserve": value}) for value in WEIGHTS),
        ]
        for tokens, (how, at, settings) in product(get_args(Tokens), ways):
            pipe.unet.load_state_dict(start)
            report = edit(pipe, at, pairs, tokens=tokens, **settings)
            drawn = [read[:2] == (shape, colour) for read in readings(pipe, list(pairs))]
            same = [now == then for now, then in zip(readings(pipe, others), before, strict=True)]
            missing = max(report.by_pair.values())
            found.append(Point(source, target, tokens, how, missing, report.drift, float(np.mean(drawn)), float(np.mean(same))))
            print(*(f"{value:.2f}" if isinstance(value, float) else value for value in vars(found[-1]).values()), sep=" | ")
    return found


def compared(found: Sequence[Point]) -> list[str]:
    """Rows: the share drawn of edits between as many words and between others, by the tokens that were paired."""
    rows = []
    for tokens, is_even in product(get_args(Tokens), (True, False)):
        some = [each for each in found if each.tokens == tokens and _is_even(each) is is_even]
        drawn, preserved = (np.mean([getattr(each, name) for each in some]) for name in ("drawn", "preserved"))
        rows.append(f"| {tokens} | {'as many words' if is_even else 'others'} | {len(some)} | {drawn:.2f} | {preserved:.2f} |")
    return rows


def _is_even(point: Point) -> bool:
    return len(point.edited.split()) == len(point.target.split())


def grouped(found: Sequence[Point]) -> list[str]:
    """Rows: a word, how many edits it describes, and the mean and the worst of the share that it speaks of."""
    by_word: dict[str, list[float]] = {}
    for point in found:
        by_word.setdefault(f"missing: {reach_word(point.missing)}", []).append(point.drawn)
        by_word.setdefault(f"drift: {drift({'': point.drift}).word}", []).append(point.preserved)
    return [
        f"| {word} | {len(shares)} | {np.mean(shares):.2f} | {min(shares):.2f} to {max(shares):.2f} |"
        for word, shares in sorted(by_word.items())
    ]


def main(store: Annotated[str, typer.Argument(help="A store of the embedded model.")]) -> None:
    """Make every edit; print what each word stands for, and which way to pair tokens draws more."""
    found = points(open_store(store))
    print(*compared(found), *grouped([each for each in found if each.tokens == "subject"]), sep="\n")


if __name__ == "__main__":
    typer.run(main)
