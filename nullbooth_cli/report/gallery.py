"""The pictures of an evaluation: as files, and in one page beside its numbers. `web/gallery.html` is the page.

The page shows a few rows of every set, evenly spaced from the prompt that changed most to the one that changed least. So it stays
small and shows both extremes.
"""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nullbooth_cli import __version__
from nullbooth_cli.datatypes import split_weight
from nullbooth_cli.evaluation.answer import EDITED, PARAPHRASES, SUBJECT, Drift, EvaluationReport, PictureChange
from nullbooth_cli.evaluation.draw_models import ANOTHER, BASE
from nullbooth_cli.evaluation.evaluate import Evaluation
from nullbooth_cli.evaluation.pictures import Pictures
from nullbooth_cli.evaluation.request import PictureSets, slices_of, target_slices
from nullbooth_cli.evaluation.summary import REST, SummaryRow, summary
from nullbooth_cli.report.files import writing
from nullbooth_cli.report.headline import Answer, model_answers, threshold_answers
from nullbooth_cli.report.inspection import InspectReport
from nullbooth_cli.report.names import layer_names, site_name
from nullbooth_cli.report.page import fill_page

ROWS = 12  # of each set
SIDE = 256  # pixels of a picture in the page, at most
FIRST = (EDITED, PARAPHRASES, REST, SUBJECT)  # sets of prompts whose pictures and numbers come before all others
AMPLIFIED = 4  # how much brighter differences are shown

Image8 = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """One picture of every model, as URIs; `edited` has for each edited model its picture and the difference to the base.

    `another` is the base from another seed; of an edited prompt, the base's picture of its first `target`.
    """

    set: str
    text: str
    target: str | None
    latent_mse: float
    base: str
    another: str
    edited: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class GalleryData:
    """The document that the page draws. `models`, `places`, `answers` and `drift` have one entry for each edited model.

    `drift` has none where it is not known.

    `threshold` are the answers about the projectors, none where they are not known, and `weights` what the protected weights are
    called. `baseline` is the latent MSE of another seed and `by_picture` that of every picture for each edited model, both by
    set; the set of the subject is the first.
    """

    store: str
    base: str
    dtype: str
    num_steps: int
    guidance_scale: float
    not_measured: Mapping[str, str]
    version: str
    models: tuple[str, ...]
    places: tuple[str, ...]
    answers: tuple[tuple[Answer, ...], ...]
    threshold: tuple[Answer, ...]
    weights: tuple[str, ...]
    another: str
    summary: tuple[SummaryRow, ...]
    drift: tuple[Drift, ...]
    baseline: Mapping[str, float]
    by_picture: Mapping[str, tuple[tuple[PictureChange, ...], ...]]
    amplified: int
    rows: tuple[GalleryRow, ...]


def write_gallery(path: Path, found: Evaluation, projectors: InspectReport | None = None) -> Path:
    """Write the page of an evaluation. Raises ResourceError if it cannot be written.

    `projectors` are those of the store, so that the page says which threshold is in force.

    Cost: 1.2 MB for plotly's script, and up to 130 kB a picture: 12 rows a set, 2 + 2 for each edited model.
    """
    return fill_page(path, "gallery.html", gallery_data(found, projectors))


def gallery_data(found: Evaluation, projectors: InspectReport | None = None) -> GalleryData:
    """The document of the page of an evaluation."""
    report = found.report
    drifts = tuple(model.drift for model in report.models if model.drift is not None)
    weights = [split_weight(each.weight) for each in drifts[0].weights] if drifts else []
    sets = sorted(found.sets, key=_place)
    called = layer_names(layer for layer, _ in weights) if weights else {}
    return GalleryData(
        store=report.store,
        base=report.base,
        dtype=report.dtype,
        num_steps=report.num_steps,
        guidance_scale=report.guidance_scale,
        not_measured=report.not_measured,
        version=__version__,
        models=tuple(report.model_names),
        places=tuple(model.edited for model in report.models),
        another=ANOTHER,
        answers=tuple(map(model_answers, report.models)),
        threshold=() if projectors is None else threshold_answers(projectors),
        weights=tuple(site_name(called, layer, feature) for layer, feature in weights),
        summary=tuple(sorted(summary(report), key=lambda row: _place(row.prompts))),
        drift=drifts,
        baseline={name: _baseline(report, name) for name in sets},
        by_picture={name: tuple(model.changes(name) for model in report.models) for name in sets},
        amplified=AMPLIFIED,
        rows=tuple(_rows(found)),
    )


def _place(name: str) -> int:
    """The place of a set of prompts in the page: what was taught or edited comes first."""
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _baseline(report: EvaluationReport, name: str) -> float:
    """The latent MSE of another seed on a set of prompts."""
    score = report.models[0].score_of(name)
    return report.baseline[name].latent_mse if score is None else score.baseline


def _rows(found: Evaluation) -> Iterator[GalleryRow]:
    first, *_ = models = found.report.models
    of_targets = target_slices(found.sets)
    for name, places in slices_of(found.sets).items():
        changes, specs = first.changes(name), found.sets[name]
        order = np.argsort([change.latent_mse for change in changes])[::-1]
        for number in order[np.unique(np.linspace(0, len(order) - 1, min(ROWS, len(order))).round().astype(int))]:
            images = {model: drawn.images[places][number] for model, drawn in found.drawn.items()}
            edited = [images[model.edited] for model in models]
            another = images[ANOTHER]
            if found.targets is not None and name in of_targets:
                another = found.targets.images[of_targets[name][number].start]
            yield GalleryRow(
                set=name,
                text=specs[number].prompt.text,
                target=specs[number].targets[0] if name in of_targets else None,
                latent_mse=changes[number].latent_mse,
                base=picture_uri(images[BASE]),
                another=picture_uri(another),
                edited=tuple((picture_uri(image), picture_uri(_difference(images[BASE], image))) for image in edited),
            )


def _difference(base: Image8, edited: Image8) -> Image8:
    return (AMPLIFIED * np.abs(base.astype(int) - edited)).clip(0, 255).astype(np.uint8)


def picture_uri(image: Image8) -> str:
    """An image `[H, W, 3]` as a PNG inside a URI, at most `SIDE` pixels high and wide."""
    made = Image.fromarray(image)
    made.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_images(folder: Path, found: Evaluation) -> Path:
    """Write every picture as <set>/<prompt id>-<number>-<model>.png; models are base, another-seed, edited, against-1, ...

    Those of the targets of an edited prompt, by the base, are called target, target-2, ... Raises ResourceError if the folder
    cannot be written.
    """
    names = [BASE, ANOTHER.replace(" ", "-"), "edited", *(f"against-{i}" for i in range(1, len(found.drawn) - 2))]
    with writing(f"into {folder}"):
        for name, places in slices_of(found.sets).items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for model, drawn in zip(names, found.drawn.values(), strict=True):
                for spec, image in zip(found.sets[name], drawn.images[places], strict=True):
                    Image.fromarray(image).save(folder / name / f"{spec.name}-{model}.png")
        if found.targets is not None:
            _write_targets(folder, found.sets, found.targets)
    return folder


def _write_targets(folder: Path, sets: PictureSets, targets: Pictures) -> None:
    for name, of_pictures in target_slices(sets).items():
        for spec, places in zip(sets[name], of_pictures, strict=True):
            for number, image in enumerate(targets.images[places], start=1):
                target = "target" if number == 1 else f"target-{number}"
                Image.fromarray(image).save(folder / name / f"{spec.name}-{target}.png")
