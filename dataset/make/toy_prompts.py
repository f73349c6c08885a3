"""Write dataset/prompts/toy.txt and toy_heldout.txt: `python dataset/make/toy_prompts.py`.

toy.txt describes drawings the embedded model was trained on, toy_heldout.txt combinations of shape, colour and background that
it never saw. Three captions in four are plain; the others name a place.
"""

from pathlib import Path

import numpy as np

from nullbooth_cli.toy import world

FOLDER = Path(__file__).parent.parent / "prompts"


def captions(triples: list[world.Triple], count: int, seed: int) -> list[str]:
    """`count` distinct captions, going round the triples in random order."""
    rng = np.random.default_rng(seed)
    order = [triples[i] for i in rng.permutation(len(triples))]
    texts: dict[str, None] = {}
    while len(texts) < count:
        for triple in order:
            place = str(rng.choice(list(world.PLACES))) if rng.random() < 0.25 else None
            texts[world.caption(world.Drawing(*triple, place=place))] = None
    return list(texts)[:count]


def main() -> None:
    """Write both files."""
    training, held_out = world.split()
    FOLDER.mkdir(exist_ok=True)
    for name, triples, count in (("toy.txt", training, 240), ("toy_heldout.txt", held_out, 64)):
        (FOLDER / name).write_text("\n".join(captions(triples, count, seed=0)) + "\n")


if __name__ == "__main__":
    main()
