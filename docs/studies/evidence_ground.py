"""What all runs of the study of evidence share: what is preserved, the pictures of the subjects, and those beside them.

It is made once, on the CPU, and kept in one file of the study's folder, so that runs need neither a store nor the pictures.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from docs.studies.cuts import PROMPTS, TEXT_ALONE, collect, other_captions
from docs.studies.evidence_models import Models
from docs.studies.evidence_ways import Way
from docs.studies.refit import GUIDANCE, STEPS, fresh
from docs.studies.refit_subjects import TAUGHT, Taught, write_pictures
from nullbooth_cli.api import OpenStore
from nullbooth_cli.model.latents import encode_images
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.store import Store
from nullbooth_cli.toy import score, subject, world

REPORTED, SEARCHED = (0, 1, 2), 9  # seeds of training: of the report, of the search
EMPTY, DRAWINGS, DRAWN_FROM = 80, 256, 2_000_000  # pictures to distil of the empty prompt, true ones, their first seed
SAMPLES = 512  # pictures with noise that the Fisher information is the mean of
Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """N pictures as `latents` `[N, C, h, w]`, with their captions."""

    latents: torch.Tensor
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """`preserved` and `heldout` are second moments `[D, D]` of what k and v receive; `values` and `vectors` decompose the first.

    `pictures` are those of a subject and seed by `"circle 0"`, those that the model `pictures` drew, and true `drawings`.
    `fisher` is the diagonal information of each weight, its mean over all of them 1.
    """

    preserved: Matrix
    heldout: Matrix
    values: Matrix
    vectors: Matrix
    pictures: Mapping[str, Pictures]
    fisher: Mapping[str, torch.Tensor]

    @property
    def preserved_prompts(self) -> tuple[str, ...]:
        """The texts of the preserved prompts."""
        return tuple(text for text in self.pictures["pictures"].captions if text)

    def null_dim(self, threshold: float) -> int:
        """The dimensions of the null space at a relative threshold."""
        return spectrum.null_dim(self.values, "relative_threshold", threshold)

    def projector(self, way: Way) -> torch.Tensor:
        """P `[D, D]` in float32, the identity without a constraint."""
        if way.cut is None:
            return torch.eye(len(self.values))
        kept: Matrix = np.zeros(len(self.values))
        kept[: self.null_dim(way.cut)] = 1.0
        if way.soft:
            kept = way.cut / (way.cut + np.clip(self.values, 0.0, None) / self.values[-1])
        return torch.from_numpy((self.vectors * kept) @ self.vectors.T).float()


def open_ground(folder: Path) -> Ground:
    """The ground of a study, made the first time. Cost: a minute and a half on two cores then."""
    file = folder / "ground.npz"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "ground.lock"):
        if not file.exists():
            partial = file.with_suffix(".partial.npz")
            np.savez_compressed(partial, **_make(folder))
            partial.rename(file)
    with np.load(file) as found:
        arrays = dict(found)
    texts: dict[str, list[str]] = json.loads(str(arrays["texts"]))
    return Ground(
        **{name: arrays[name] for name in ("preserved", "heldout", "values", "vectors")},
        pictures={name: Pictures(latents=torch.from_numpy(arrays[name]), captions=tuple(texts[name])) for name in texts},
        fisher={name[7:]: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("fisher ")},
    )


def _make(folder: Path) -> dict[str, Any]:
    models = Models("cpu")
    found = {f"{taught.name} {seed}": pictures_of(models, taught, seed) for taught in TAUGHT for seed in (*REPORTED, SEARCHED)}
    captions = [*(prompt.text for prompt in load_prompts(str(PROMPTS))), *[""] * EMPTY]
    drawn = score.paint(fresh(), captions, steps=STEPS, guidance=GUIDANCE, seed=DRAWN_FROM, output_type="latent")
    found["pictures"] = Pictures(latents=torch.from_numpy(drawn), captions=tuple(captions))
    found["drawings"] = _drawings(models)
    return {
        **moments(folder / "known.zarr", str(PROMPTS), other_captions()),
        **{f"fisher {name}": value.numpy() for name, value in fisher(models, found["pictures"]).items()},
        **{name: each.latents.numpy() for name, each in found.items()},
        "texts": json.dumps({name: each.captions for name, each in found.items()}),
    }


def moments(place: Path, preserved: str | Sequence[str], heldout: Sequence[str]) -> dict[str, Matrix]:
    """The moments of what k and v receive for prompts, and their decomposition, as `Ground` has them."""
    collect(place, preserved, heldout, TEXT_ALONE)
    store = OpenStore(Store.open(place))
    [site] = store.sites()
    apart = store.heldout_moment(site)
    assert apart is not None
    found = store.store.projectors.read_decomposition(site, 0)
    return {
        "preserved": store.moment(site).second_moment,
        "heldout": apart.second_moment,
        "values": found.eigenvalues,
        "vectors": found.eigenvectors,
    }


def pictures_of(models: Models, taught: Taught, seed: int) -> Pictures:
    """The twenty pictures of a subject that a seed trains on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "pictures")
        write_pictures(taught, folder, subject.TAUGHT_ON * 5, seed)
        lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        images = [Image.open(folder / line["file_name"]).convert("RGB") for line in lines]
    latents = encode_images(models.pipe, images, models.device)
    return Pictures(latents=latents, captions=tuple(line["text"] for line in lines))


def _drawings(models: Models) -> Pictures:
    rng, trained = np.random.default_rng(0), world.split()[0]
    drawings = [world.sample(trained[rng.integers(len(trained))], rng) for _ in range(DRAWINGS)]
    images = [Image.fromarray((world.draw(each) * 255).round().astype(np.uint8)) for each in drawings]
    return Pictures(
        latents=encode_images(models.pipe, images, models.device), captions=tuple(world.caption(each) for each in drawings)
    )


def fisher(models: Models, pictures: Pictures, samples: int = SAMPLES, together: int = 64) -> dict[str, torch.Tensor]:
    """The mean square of the loss's gradient over pictures with noise, one each, for every k and v, over the mean of all.

    EWC: Kirkpatrick et al., arXiv 1612.00796. Every sample is a model of its own, so its gradient is too.
    """
    total = {name: torch.zeros_like(weight) for name, weight in models.start.items()}
    generator = torch.Generator().manual_seed(0)
    texts = models.encode_plain(pictures.captions)
    for _ in range(0, samples, together):
        chosen = torch.randint(len(pictures.captions), (together,), generator=generator)
        latents = pictures.latents[chosen].to(models.device)
        noising = models.process.draw(latents, generator)
        weights = {name: each.clone().requires_grad_() for name, each in models.untrained(together).items()}
        with models.using(weights):
            noisy, target = models.process.noised(latents, noising), models.process.target(latents, noising)
            predicted = models.predict(noisy[:, None], noising.timesteps[:, None], texts[chosen][:, None])
            (predicted[:, 0] - target).square().flatten(1).mean(1).sum().backward()
        for name, weight in weights.items():
            assert weight.grad is not None
            total[name] += weight.grad.square().sum(0)
    mean = sum(float(each.sum()) for each in total.values()) / sum(each.numel() for each in total.values())
    return {name: each / mean for name, each in total.items()}
