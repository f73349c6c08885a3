"""What the words for an edit in other prompts mean, on the embedded model: `python docs/studies/edit_elsewhere.py STORE STORE`.

"circle" is erased, and turned into "square", from its word alone and in templates: under four thresholds, by `uce` with two
weights of the preserved prompts, and by `speed`. STOREs are one of all the embedded model's prompts and one of those without
circles, with k and v features and with held-out prompts. Twelve of the prompts with circles are drawn and read back exactly:

- missing   what is missing elsewhere (`editing/contexts.py`, `InContext`), the worst of preserved and held-out prompts
- changed   share of these prompts that show no circle any more

The last lines group all edits by the words (`editing/verdict.py`). Three minutes on two cores.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.edit_words import readings
from nullbooth_cli.api import OpenStore, open_store
from nullbooth_cli.editing.edit import edit
from nullbooth_cli.editing.reach import CutStore
from nullbooth_cli.editing.verbs import as_mapping, erased
from nullbooth_cli.editing.verdict import elsewhere_word
from nullbooth_cli.model import load
from nullbooth_cli.settings.prompts import load_prompts

CONCEPT, TARGETS, DRAWN = "circle", ("", "square"), 12
THRESHOLDS, WEIGHTS = (1e-4, 1e-3, 1e-2, 1e-1), (100.0, 1.0)


def main(stores: Annotated[list[str], typer.Argument(help="Stores of the embedded model.")]) -> None:
    """Make every edit, and print what each word stands for."""
    pipe: Any = load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu")
    )
    start = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    every = [prompt.text for prompt in load_prompts("nullbooth:toy.txt")]
    texts, by_word = [text for text in every if CONCEPT in text.split()][:DRAWN], dict[str, list[float]]()
    for opened in map(open_store, stores):
        ways: list[tuple[str, OpenStore, dict[str, Any]]] = [
            *((f"alphaedit, {value:g}", CutStore(opened, value), {}) for value in THRESHOLDS),
            *((f"uce, {value:g}", opened, {"method": "uce", "preserve": value}) for value in WEIGHTS),
            ("speed", opened, {"method": "speed"}),
        ]
        for target in TARGETS:
            for how, at, settings in ways:
                pipe.unet.load_state_dict(start)
                report = edit(pipe, at, as_mapping(erased(CONCEPT, target)), **settings)
                missing = max(each.missing for each in report.in_context)
                changed = float(np.mean([shape != CONCEPT for shape, _, _ in readings(pipe, texts)]))
                by_word.setdefault(elsewhere_word(missing), []).append(changed)
                print(opened.url, target or "nothing", how, f"{missing:.2f}", f"{changed:.2f}", sep=" | ")
    for word, shares in by_word.items():
        print(f"| {word} | {len(shares)} | {np.mean(shares):.2f} | {min(shares):.2f} to {max(shares):.2f} |")


if __name__ == "__main__":
    typer.run(main)
