"""Write dataset/images/toy: `python dataset/make/toy_images.py`.

Drawings of the embedded model's world with their captions, as a folder that `collect.images` takes: some of the combinations of
shape, colour and background that the model was trained on.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from nullbooth_cli.toy import world

FOLDER = Path(__file__).parent.parent / "images" / "toy"
COUNT = 24


def drawings() -> list[world.Drawing]:
    """`COUNT` drawings of combinations that the model was trained on."""
    rng = np.random.default_rng(0)
    triples, _ = world.split()
    return [world.sample(triples[i], rng) for i in rng.permutation(len(triples))[:COUNT]]


def main() -> None:
    """Write the images and their metadata.jsonl."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, drawing in enumerate(drawings()):
        name = f"{number:02d}.png"
        Image.fromarray((world.draw(drawing) * 255).round().astype(np.uint8)).save(FOLDER / name)
        lines.append(json.dumps({"file_name": name, "text": world.caption(drawing)}))
    (FOLDER / "metadata.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
