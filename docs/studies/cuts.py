"""The projectors of the study: moments of what the embedded model draws, cut in ways beside those of `project`.

One store of all four projections serves every arm. The captions that the study scores have no part in any cut: thresholds that
use held-out prompts use other captions, of combinations that the model was trained on and that the store does not have.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.pooling import moment_of, pooled
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.stages import execute
from nullbooth_cli.settings.config import load_config
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.store import Store
from nullbooth_cli.toy import subject, world

ROOT = Path(__file__).parents[2]
TEXT_ALONE = {f"collect.collect_features.{name}_features": name in "kv" for name in ("q", "k", "v", "out")}  # settings
CONFIG, PROMPTS = ROOT / "configs/nullbooth.yaml", ROOT / "dataset/prompts/toy.txt"


@dataclass(frozen=True)
class Cut:
    """How each spectrum is cut.

    - relative   below `value` times the largest eigenvalue, as `relative_threshold`
    - leakage    the most that leaks at most `value` of the held-out prompts, as `target_leakage`: a threshold for each site
    - subject    where the subject's share of energy, less `value` times the held-out prompts' share, is largest
    - random     random directions, as many as `relative` would leave
    - soft       no cut: each direction is scaled by value / (value + eigenvalue / largest)
    """

    way: Literal["relative", "leakage", "subject", "random", "soft"]
    value: float


class CutProjectors:
    """A store whose projectors are cut in another way: `nb.constrain` takes it as it takes an `nb.OpenStore`.

    `of_subject` has the moments of the subject's captions in the untouched model.
    """

    def __init__(self, preserved: Store, of_subject: Store, cut: Cut) -> None:
        self._open = OpenStore(preserved)
        self._preserved, self._of_subject, self._cut = preserved, of_subject, cut
        self.url = preserved.url

    def sites(self) -> tuple[Site, ...]:
        """As in the store."""
        return self._open.sites()

    def prompts(self) -> tuple[str, ...]:
        """The texts of the preserved prompts."""
        return self._open.prompts()

    def moment(self, site: Site) -> Moment:
        """As in the store."""
        return self._open.moment(site)

    def heldout_moment(self, site: Site) -> Moment | None:
        """As in the store."""
        return self._open.heldout_moment(site)

    def projectors(self, model: Mapping[str, Any] | None = None) -> dict[str, Projector]:
        """The projector of each weight, cut anew. Raises ConfigError for another model, as the store does."""
        self._open.projectors(model)
        by_site = {site: self._projector(site) for site in self.sites()}
        return {weight: projector for site, projector in by_site.items() for weight in site.weights}

    def _projector(self, site: Site) -> Projector:
        found = self._preserved.projectors.read_decomposition(site, 0)
        eigenvalues, eigenvectors, energies = found.eigenvalues, found.eigenvectors, found.energies
        way, value = self._cut.way, self._cut.value
        if way == "soft":
            scale = value / (value + np.clip(eigenvalues, 0.0, None) / eigenvalues[-1])
            return Projector(eigenvectors * np.sqrt(scale), is_complement=False)
        if way == "subject":
            wanted = moment_of(pooled(self._of_subject, site)).energies(eigenvectors)
            return Projector.of(eigenvectors, most_gain(wanted, energies[1], value))
        if way == "random":
            eigenvectors = np.linalg.qr(np.random.default_rng(0).standard_normal(eigenvectors.shape))[0]
        rule = "target_leakage" if way == "leakage" else "relative_threshold"
        return Projector.of(eigenvectors, spectrum.null_dim_of(eigenvalues, energies, rule, value)[0])


def most_gain(wanted: NDArray[np.float64], heldout: NDArray[np.float64], price: float) -> int:
    """The null_dim at which the share of `wanted` energy less `price` times that of `heldout` is largest; both `[D]`."""
    gain = np.cumsum(wanted / wanted.sum() - price * heldout / heldout.sum())
    return int(np.argmax(np.concatenate([[0.0], gain])))


def cut_projectors(folder: Path, cut: Cut) -> CutProjectors:
    """Projectors of the embedded model under a cut. The moments are collected in the folder the first time."""
    preserved, of_subject = folder / "known.zarr", folder / "subject.zarr"
    with FileLock(folder / "knowledge.lock"):
        collect(preserved, str(PROMPTS), other_captions())
        collect(of_subject, [subject.caption(background) for background in subject.TAUGHT_ON], None)
    return CutProjectors(Store.open(preserved), Store.open(of_subject), cut)


def other_captions() -> list[str]:
    """Captions that the model was trained on and that are not preserved."""
    preserved = {prompt.text for prompt in load_prompts(str(PROMPTS))}
    found = [world.caption(world.Drawing(*triple)) for triple in world.split()[0]]
    return [text for text in found if text not in preserved]


def collect(
    place: Path, prompts: str | Sequence[str], heldout: Sequence[str] | None, more: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Make a store of moments and projectors of the embedded model, or finish it; `more` are settings by their dotted names."""
    settings = {"store": str(place), "original_knowledge_prompts": prompts, "heldout_prompts": heldout, "collect.keep": "moments"}
    settings |= more
    config = load_config(CONFIG, [f"{name}={json.dumps(value)}" for name, value in settings.items()])
    store = Store.open_or_create(config.store, config.model_dump())
    with store.lock():
        for stage in ("schedule", "collect", "covariance", "project"):
            for _ in execute(
                stage, Run(config=config, prompts=load_prompts(config.original_knowledge_prompts), store=store, device="cpu")
            ):
                pass
