"""The pictures of an evaluation: as files, and in one page beside its numbers. `gallery.html` is the page.

The page shows a few rows of every set, evenly from the prompt that changed most to the one that changed least, so that it stays
small and hides neither end.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nullbooth_cli import __version__
from nullbooth_cli.errors import ResourceError
from nullbooth_cli.evaluation.evaluate import ANOTHER, BASE, SUBJECT, Evaluation, names_of, places_of, summary
from nullbooth_cli.report.page import fill_page

ROWS = 12  # of each set
SIDE = 256  # pixels of a picture in the page, at most
AMPLIFIED = 4  # how much brighter differences are shown


def write_gallery(path: Path, found: Evaluation) -> Path:
    """Write the page. Cost: 5 MB for plotly's script, and up to 130 kB a picture: 12 rows a set, 2 + 2 for each edited model."""
    document = found.document
    models = [document, *document["against"]]
    data = {
        **{key: document[key] for key in ("store", "base", "dtype", "num_steps", "guidance_scale", "not_measured")},
        "version": __version__,
        "models": names_of(document),
        "places": [each["edited"] for each in models],
        "another": ANOTHER,
        "summary": summary(document),
        "drift": [each["drift"] for each in models],
        "baseline": {name: each["latent_mse"] for name, each in document["baseline"].items()},
        "by_picture": {name: [_changes(each, name) for each in models] for name in found.sets},
        "amplified": AMPLIFIED,
        "rows": _rows(found, [each["edited"] for each in models]),
    }
    return fill_page(path, "gallery.html", data)


def _changes(answer: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Text and latent MSE of every picture of a set."""
    compared = answer["subject"] if name == SUBJECT else answer["preservation"][name]
    return [{"text": each["text"], "latent_mse": each["latent_mse"]} for each in compared["by_picture"]]


def _rows(found: Evaluation, edited: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name, places in places_of(found.sets).items():
        changed = [each["latent_mse"] for each in _changes(found.document, name)]
        order = np.argsort(changed)[::-1]
        for place in order[np.unique(np.linspace(0, len(order) - 1, min(ROWS, len(order))).round().astype(int))]:
            images = {model: drawn.images[places][place] for model, drawn in found.drawn.items()}
            rows.append(
                {
                    "set": name,
                    "text": found.sets[name][place].prompt.text,
                    "latent_mse": changed[place],
                    "base": _uri(images[BASE]),
                    "another": _uri(images[ANOTHER]),
                    "edited": [[_uri(images[model]), _uri(_difference(images[BASE], images[model]))] for model in edited],
                }
            )
    return rows


def _difference(base: NDArray[np.uint8], edited: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (AMPLIFIED * np.abs(base.astype(int) - edited)).clip(0, 255).astype(np.uint8)


def _uri(image: NDArray[np.uint8]) -> str:
    """A picture as a PNG inside of a URI."""
    made = Image.fromarray(image)
    made.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_images(folder: Path, found: Evaluation) -> Path:
    """Write every picture as <set>/<prompt id>-<number>-<model>.png; models are base, another-seed, edited, against-1, ..."""
    names = [BASE, ANOTHER.replace(" ", "-"), "edited", *(f"against-{i}" for i in range(1, len(found.drawn) - 2))]
    try:
        for name, places in places_of(found.sets).items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for model, drawn in zip(names, found.drawn.values(), strict=True):
                for shot, image in zip(found.sets[name], drawn.images[places], strict=True):
                    Image.fromarray(image).save(folder / name / f"{shot.name}-{model}.png")
    except OSError as error:
        raise ResourceError(f"cannot write into {folder}: {error}", "check the folder and its permissions") from error
    return folder
