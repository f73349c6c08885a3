"""Draw dataset/instances/toy and toy_varied, pictures of the toy subject with captions: `python dataset/make/toy_subject.py`.

Both show it on backgrounds that the study never asks for: four pictures on four, and twenty on five (pink is none of the world's
own backgrounds), at more places and in more sizes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nullbooth_cli.toy import subject

FOLDER = Path(__file__).parent.parent / "instances"


def write(folder: Path, backgrounds: Sequence[str], seed: int, radii: tuple[float, float]) -> None:
    """One picture for each background, at random places and radii (pixels), and metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i, background in enumerate(backgrounds):
        x, y = rng.uniform(-2.0, 2.0, size=2)
        picture = subject.draw(background, x, y, rng.uniform(*radii))
        name = f"sks_on_{background}.png" if len(set(backgrounds)) == len(backgrounds) else f"{i:02d}_sks_on_{background}.png"
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": subject.caption(background)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def main(folder: Path = FOLDER) -> None:
    """Write both folders."""
    write(folder / "toy", subject.TAUGHT_ON, 0, (9.0, 11.5))
    write(folder / "toy_varied", (*subject.TAUGHT_ON, "pink") * 4, 1, (8.5, 12.0))


if __name__ == "__main__":
    main()
