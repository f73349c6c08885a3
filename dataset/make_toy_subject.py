"""Draw dataset/instances/toy: pictures of the toy subject with their captions, as the datasets library's imagefolder has them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from nullbooth_cli.toy import subject

FOLDER = Path(__file__).parent / "instances" / "toy"


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for background in subject.TAUGHT_ON:
        x, y = rng.uniform(-2.0, 2.0, size=2)
        picture = subject.draw(background, x, y, rng.uniform(9.0, 11.5))
        name = f"sks_on_{background}.png"
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": subject.caption(background)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
