"""What `--debias` does, in the world of names: `python docs/studies/debias_names.py OUT`, from a checkout.

OUT is that of `sequence_edits.py --world names`, which has the model, the store and the searched settings. Each of eight names is
to look like the mean of its own shape in two colours, neither its own: one name alone, and all of them at once. "shown" is what
24 pictures of each name show, in the mean over the names: the first colour, the second, the name's own, another, and of all these
the right shape. "uneven" is how far the shares of the two colours of a name are from each other.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.edit_pairs import STEPS
from docs.studies.edit_tables import settings_of
from docs.studies.edit_ways import THRESHOLD, WAYS, Bench, Preserved, open_texts
from docs.studies.forgetting import GUIDANCE
from docs.studies.names_world import NamesWorld, names
from docs.studies.refit import fresh
from nullbooth_cli.editing.edit import edit
from nullbooth_cli.toy import score, world

NAMES, PICTURES, SEED = 8, 24, 900_000
AT_ONCE = tuple(way for way in WAYS if way.name in ("alphaedit, at once", "uce, at once"))
SHOWN = ("first", "second", "uneven", "own", "other", "shape")


@dataclass(frozen=True)
class Debiased:
    """A name on a background, and the two colours that it is to have in equal shares."""

    name: str
    background: str
    colours: tuple[str, str]

    @property
    def source(self) -> str:
        """The prompt that is edited."""
        return f"a {self.name} on a {self.background} background"

    @property
    def targets(self) -> tuple[str, ...]:
        """The prompts whose mean it gets."""
        shape = names()[self.name][1]
        return tuple(world.caption(world.Drawing(shape, colour, self.background)) for colour in self.colours)


def chosen() -> list[Debiased]:
    """The first names that seed 0 edits, each with a background and two colours that are neither its own nor the background's."""
    found, rng = [], np.random.default_rng(0)
    for each in NamesWorld().edits(0)[:NAMES]:
        colours = [colour for colour in world.COLOURS if colour not in (names()[each.word][0], each.background)]
        first, second = rng.choice(colours, 2, replace=False)
        found.append(Debiased(each.word, each.background, (str(first), str(second))))
    return found


def shares(pipe: Any, each: Debiased) -> dict[str, float]:
    """The share of the pictures of a name that show each of `SHOWN`."""
    counted = dict.fromkeys(SHOWN, 0)
    own, shape = names()[each.name]
    kinds = {each.colours[0]: "first", each.colours[1]: "second", own: "own"}
    pictures = score.paint(pipe, [each.source] * PICTURES, steps=STEPS, guidance=GUIDANCE, seed=SEED)
    for reading in map(world.read, pictures):
        counted[kinds.get(reading.colour, "other")] += 1
        counted["shape"] += reading.shape == shape
    counted["uneven"] = abs(counted["first"] - counted["second"])
    return {kind: count / PICTURES for kind, count in counted.items()}


def rows(bench: Bench, settings: Mapping[str, Mapping[str, float]]) -> list[tuple[str, int, dict[str, float]]]:
    """(way, names edited at once, what is shown) of the untouched model and of each way."""
    asked = chosen()
    bench.reset()
    found = [("untouched", 0, _means([shares(bench.pipe, each) for each in asked]))]
    for way in AT_ONCE:
        numbers = settings[way.name]
        for count in (1, len(asked)):
            shown = []
            for start in range(0, len(asked), count):
                group = asked[start : start + count]
                bench.reset()
                pairs = {each.source: each.targets for each in group}
                edit(bench.pipe, Preserved(bench.store, numbers.get(THRESHOLD, 1.0)), pairs, **way.settings(numbers))
                shown += [shares(bench.pipe, each) for each in group]
            found.append((way.name, count, _means(shown)))
    return found


def _means(shown: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {kind: float(np.mean([each[kind] for each in shown])) for kind in SHOWN}


def table(found: Sequence[tuple[str, int, Mapping[str, float]]]) -> list[str]:
    """A Markdown table of what is shown."""
    heads = ("way", "names at once", "first colour", "second colour", "uneven", "own colour", "another", "right shape")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return lines + [f"| {way} | {count} | {' | '.join(f'{shown[kind]:.2f}' for kind in SHOWN)} |" for way, count, shown in found]


def main(out: Annotated[Path, typer.Argument(help="Folder of the study of names.")]) -> None:
    """Make the edits, and print the table. Two minutes on one core."""
    model = NamesWorld().model(out)
    store = open_texts(out / NamesWorld().store(0), NamesWorld().preserved(0), model)
    found = rows(Bench(fresh(model), store), {way.name: settings_of(way, out) for way in AT_ONCE})
    typer.echo("\n".join(table(found)))


if __name__ == "__main__":
    typer.run(main)
