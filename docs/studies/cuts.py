"""What holds the arms of the study: the moments of what the embedded model knows, cut in ways beside those of `project`.

One store of all four projections serves every arm. The captions that the study scores play no part in any cut: thresholds that
look at held-out prompts look at others, combinations that the model was trained on and the store has not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.stages import execute
from nullbooth_cli.settings.config import load_config
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.store import Store
from nullbooth_cli.toy import subject, world

CONFIG = Path("configs/nullbooth.yaml")


@dataclass(frozen=True)
class Cut:
    """How each spectrum is cut.

    - relative   below `value` times the largest eigenvalue, as `relative_threshold`
    - leakage    the most that leaks at most `value` of the held-out prompts, as `target_leakage`: a threshold for each site
    - subject    where the subject's share of energy, less `value` times the held-out prompts', is largest: the same
    - random     random directions, as many as `relative` would leave
    - soft       no cut: each direction is kept by value / (value + eigenvalue / largest)
    """

    way: Literal["relative", "leakage", "subject", "random", "soft"]
    value: float


class Knowledge(OpenStore):
    """A store whose projectors are cut anew. `of_subject` has the moments of the subject's captions in the untouched model."""

    def __init__(self, url: str, of_subject: str, cut: Cut) -> None:
        self._place = Store.open(url)
        super().__init__(self._place)
        self._of_subject, self._cut = Store.open(of_subject), cut

    def projectors(self, model: Any = None) -> dict[str, Projector]:
        super().projectors(model)  # refuses another model
        return {weight: projector for site in self.sites() for projector in [self._projector(site)] for weight in site.weights}

    def _projector(self, site: Site) -> Projector:
        eigenvalues, eigenvectors = (
            self._place.projectors.read_eigenvalues(site, 0),
            self._place.projectors.read_eigenvectors(site, 0),
        )
        energies = self._place.projectors.read_energies(site, 0)
        way, value = self._cut.way, self._cut.value
        if way == "soft":
            largest = eigenvalues[-1]
            kept = value / (value + np.clip(eigenvalues, 0.0, None) / largest)
            return Projector(eigenvectors * np.sqrt(kept), is_complement=False)
        if way == "subject":
            moment = second_moment(pooled(self._of_subject, site))
            wanted = np.einsum("dk,dk->k", eigenvectors, moment @ eigenvectors)
            return Projector.of(eigenvectors, worthwhile(wanted, energies[1], value))
        if way == "random":
            eigenvectors = np.linalg.qr(np.random.default_rng(0).standard_normal(eigenvectors.shape))[0]
        rule = "target_leakage" if way == "leakage" else "relative_threshold"
        return Projector.of(eigenvectors, spectrum.null_dim_of(eigenvalues, energies, rule, value)[0])


def worthwhile(wanted: NDArray[np.float64], held_out: NDArray[np.float64], price: float) -> int:
    """The null_dim at which the share of `wanted` energy less `price` times that of `held_out` is largest; both `[D]`."""
    gain = np.cumsum(wanted / wanted.sum() - price * held_out / held_out.sum())
    return int(np.argmax(np.concatenate([[0.0], gain])))


def knowledge(folder: Path, cut: Cut) -> Knowledge:
    """What the embedded model knows, cut; collected in the folder the first time."""
    known, of_subject = folder / "known.zarr", folder / "subject.zarr"
    with FileLock(folder / "knowledge.lock"):
        trained, _ = world.split()
        kept = {prompt.text for prompt in load_prompts("dataset/prompts/toy.txt")}
        others = [text for triple in trained if (text := world.caption(world.Drawing(*triple))) not in kept]
        _collect(known, "dataset/prompts/toy.txt", others)
        _collect(of_subject, [subject.caption(background) for background in subject.TAUGHT_ON], None)
    return Knowledge(str(known), str(of_subject), cut)


def _collect(place: Path, prompts: str | Sequence[str], heldout: Sequence[str] | None) -> None:
    settings = {"store": str(place), "original_knowledge_prompts": prompts, "heldout_prompts": heldout, "collect.keep": "moments"}
    config = load_config(CONFIG, [f"{name}={json.dumps(value)}" for name, value in settings.items()])
    store = Store.open_or_create(config.store, config.model_dump())
    with store.lock():
        for stage in ("schedule", "collect", "covariance", "project"):
            for _ in execute(
                stage, Run(config=config, prompts=load_prompts(config.original_knowledge_prompts), store=store, device="cpu")
            ):
                pass
