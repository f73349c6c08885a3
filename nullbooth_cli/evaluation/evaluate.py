"""What an edited model forgot and what it learned: its pictures beside those of the base, from the same prompts and noise.

1. `evaluate()` draws with the base, with the base from another seed, and with every edited model, one loaded at a time.
2. `comparison` measures two of them on one set of prompts. Base against base from another seed is the baseline: a distance is to
   be read as a share of it, and 1 means as different as another seed. `changes` has what follows from the weights alone.
3. `summary()` gives the rows of a table with every model side by side.
"""

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.collect.open_model import load_path
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.compare import (
    FEWEST,
    QUANTITIES,
    PictureFeatures,
    compare_pictures,
    extract_features,
    similarity_to_instances,
    squared_differences,
)
from nullbooth_cli.evaluation.encoders import FeatureSpaces, load_feature_spaces
from nullbooth_cli.evaluation.pictures import Pictures, PictureSpec, draw_pictures, load_edited, pooled_latents, read_images
from nullbooth_cli.evaluation.weight_drift import Weights, drift_documents, require_same_architecture, weights_of
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.nullspace.usable import check_model
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store

SCHEMA_VERSION = 1
BASE, ANOTHER = "base", "another seed"
SUBJECT = "subject"
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Request:
    """`edited` are places of models, the first is the one in question; `sets` name what is drawn, `SUBJECT` what was learned."""

    edited: tuple[str, ...]
    sets: Mapping[str, tuple[PictureSpec, ...]]
    spaces: Mapping[str, str]
    instances: Path | None = None
    device: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """The answer, and the pictures behind it: those of each model, by its name, in the order of the sets' shots."""

    document: dict[str, Any]
    sets: Mapping[str, tuple[PictureSpec, ...]]
    drawn: Mapping[str, Pictures]


def places_of(sets: Mapping[str, Sequence[PictureSpec]]) -> dict[str, slice]:
    """Where each set stands among the pictures of a model."""
    ends = list(accumulate(map(len, sets.values()), initial=0))
    return {name: slice(*ends[i : i + 2]) for i, name in enumerate(sets)}


def evaluate(config: Config, store: Store, request: Request) -> Generator[Event, None, Evaluation]:
    """Draw, look and compare. Raises ConfigError if the base is not the model that was collected from, or a model does not load.

    Cost: `len(edited) + 2` pictures for each shot, one model on the device at a time; in host memory all of the pictures, and the
    protected weights of every model.
    """
    shots = [shot for of_set in request.sets.values() for shot in of_set]
    total, weights, drawn = len(shots) * (2 + len(request.edited)), dict[str, Weights](), dict[str, Pictures]()
    protected = [name for site in store.sites for name in site.weights]
    device = pick_device(request.device)
    spaces = load_feature_spaces(request.spaces, device)

    def drawing(name: str, pipe: Any, series: int = 0) -> Iterator[Event]:
        parts = []
        for part in draw_pictures(pipe, path, shots, config.collect.batch_size, series):
            parts.append(part)
            done = len(drawn) * len(shots) + sum(len(each.images) for each in parts)
            yield Progress("evaluate", done, total, name)
        drawn[name] = Pictures.joined(parts)

    yield Note(f"loading the model {config.model}, to {device}")
    pipe, path = load_path(config, store.schedule(), str(device))
    path = replace(path, images=None)  # pictures are drawn from noise, also where real images were looked at
    check_model(store, denoiser_of(pipe).state_dict())
    weights[BASE] = weights_of(pipe, protected)
    yield from drawing(BASE, pipe)
    yield from drawing(ANOTHER, pipe, series=1)
    instances, scheduler = None, pipe.scheduler
    if request.instances is not None:
        images = read_images(request.instances, *drawn[BASE].images.shape[1:3])
        instances = {"latents": pooled_latents(pipe, images), **{name: see(images) for name, see in spaces.encoders.items()}}
    for place in request.edited:
        pipe = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield Note(f"loading {place}")
        pipe = load_edited(config, place, str(device))
        pipe.scheduler = scheduler  # the path is the base's, whatever the edited pipeline was saved with
        weights[place] = weights_of(pipe, protected)
        require_same_architecture(weights[BASE], weights[place], place)
        if weights[place].digests == weights[BASE].digests:
            yield Note(f"{place} holds the weights of the base: nothing was edited")
        yield from drawing(place, pipe)
        if drawn[place].latents.shape != drawn[BASE].latents.shape:
            raise ConfigError(
                f"{place} draws latents of {drawn[place].latents.shape[1:]}, the base of {drawn[BASE].latents.shape[1:]}",
                "an edited model has the size of its base",
            )
    yield Note("comparing")
    texts = [shot.prompt.text for shot in shots]
    looks = {name: extract_features(found, texts, spaces, is_toy=config.model == "toy") for name, found in drawn.items()}
    document = {
        "schema_version": SCHEMA_VERSION,
        "store": store.url,
        "base": config.model,
        "edited": request.edited[0],
        "dtype": config.dtype,
        "num_steps": store.num_steps,
        "guidance_scale": config.collect.guidance_scale,
        **_answers(request, looks, spaces, instances),
        "not_measured": _not_measured(request, spaces, is_toy=config.model == "toy"),
    }
    heldout = store.heldout() if config.heldout_prompts is not None else None
    drifts = drift_documents(store, heldout, weights[BASE], [weights[place] for place in request.edited])
    for found, drifted in zip([document, *document["against"]], drifts, strict=True):
        found["drift"] = drifted
    return Evaluation(document, request.sets, drawn)


def _answers(
    request: Request, looks: Mapping[str, PictureFeatures], spaces: FeatureSpaces, instances: Mapping[str, Floats] | None
) -> dict[str, Any]:
    """Preservation and subject of each edited model, and the baseline."""
    places = places_of(request.sets)

    def compared(model: str, name: str) -> dict[str, Any]:
        base, another, edited = (looks[each].part(places[name]) for each in (BASE, ANOTHER, model))
        found = compare_pictures(base, edited, another, spaces)
        found["by_picture"] = [
            {"id": shot.prompt.id, "number": shot.number, "text": shot.prompt.text, "latent_mse": float(value)}
            for shot, value in zip(request.sets[name], squared_differences(base.drawn.latents, edited.drawn.latents), strict=True)
        ]
        if name == SUBJECT:
            found["instances"] = None if instances is None else similarity_to_instances(base, edited, instances)
        return found

    def answer(model: str) -> dict[str, Any]:
        kept = {name: compared(model, name) for name in places if name != SUBJECT}
        return {"preservation": kept, "subject": compared(model, SUBJECT) if SUBJECT in places else None}

    first, *others = (answer(place) for place in request.edited)
    against = [{"edited": place, **found} for place, found in zip(request.edited[1:], others, strict=True)]
    return {**first, "baseline": {name: compared(ANOTHER, name) for name in places}, "against": against}


def _not_measured(request: Request, spaces: FeatureSpaces, *, is_toy: bool) -> dict[str, str]:
    """What the answer lacks, and why."""
    why = dict(spaces.missing)
    if spaces.alignment is None and "clip" not in why:
        why["text_alignment"] = "the CLIP folder has no tokenizer"
    if not is_toy:
        why["captions_right"] = "only drawings of the embedded model can be read back exactly"
    if SUBJECT not in request.sets:
        why["subject"] = "no subject: name one with --subject or --subject-prompts"
    elif request.instances is None:
        why["instances"] = "no pictures of the subject: give them with --instances"
    for name, shots in request.sets.items():
        if len(shots) < FEWEST:
            why[f"distributions of {name}"] = f"{len(shots)} pictures are too few to compare distributions: it takes {FEWEST}"
    return why


def names_of(document: Mapping[str, Any]) -> list[str]:
    """The edited models by the last part of their places, where that tells them apart."""
    places = [found["edited"] for found in (document, *document["against"])]
    names = [Path(place).name for place in places]
    return names if len(set(names)) == len(names) else places


def summary(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured, as rows of a table: {prompts, quantity, values}, values of another seed and of each edited model."""
    rows = []
    for name, baseline in document["baseline"].items():
        answers = [document, *document["against"]]
        compared = [baseline, *(each["subject"] if name == SUBJECT else each["preservation"][name] for each in answers)]
        for label, path in _paths(baseline):
            values = [reduce(lambda found, key: found[key], path, each) for each in compared]
            if any(value is not None for value in values):
                rows.append({"prompts": name, "quantity": label, "values": values})
    return rows


def _paths(found: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The quantities of a comparison: what each is called, and where it stands."""

    def beside_base(label: str, *path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        both = reduce(lambda at, key: at[key], path, found)
        if both is not None:
            yield f"{label} (base {both['base']:.3g})", (*path, "edited")

    yield "pictures", ("pictures",)
    yield "latent MSE", ("latent_mse",)
    yield "latent MSE, of another seed's", ("latent_mse_relative",)
    yield "pixel MSE", ("pixel_mse",)
    yield "PSNR, dB", ("psnr",)
    yield "LPIPS", ("lpips",)
    yield from beside_base("captions drawn right", "captions_right")
    yield from beside_base("CLIP: cosine with the prompt", "text_alignment")
    for space in found["features"]:
        yield f"{space}: cosine with the base", ("features", space, "cosine")
        for key, label in QUANTITIES.items():
            yield f"{space}: {label}", ("features", space, key)
    for space in found.get("instances") or {}:
        yield from beside_base(f"{space}: cosine with the instances", "instances", space)
