"""Two models on one set of prompts: their pictures one by one, and as two sets in every feature space there is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.evaluation import metrics
from nullbooth_cli.evaluation.encoders import FeatureSpaces
from nullbooth_cli.evaluation.pictures import Pictures
from nullbooth_cli.toy import world

FEWEST = 2 * metrics.NEIGHBOURS  # pictures, for anything that is said of a distribution
QUANTITIES = {
    "frechet_distance": "Frechet distance",
    "kernel_distance": "kernel distance",
    "one_nn_accuracy": "1-NN accuracy",
    "jensen_shannon": "JS divergence, bits",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class PictureFeatures:
    """The pictures of one model on one or more sets, seen in every space: `vectors` `[N, D]` by space.

    `right` `[N]` is 1 where a picture shows all that its caption names, NaN where it names nothing (None: not the toy world).
    """

    drawn: Pictures
    vectors: Mapping[str, Floats]
    right: Floats | None
    alignment: Floats | None

    def part(self, places: slice) -> "PictureFeatures":
        return PictureFeatures(
            Pictures(self.drawn.images[places], self.drawn.latents[places]),
            {name: found[places] for name, found in self.vectors.items()},
            None if self.right is None else self.right[places],
            None if self.alignment is None else self.alignment[places],
        )


def similarity_to_instances(
    base: PictureFeatures, edited: PictureFeatures, instances: Mapping[str, Floats]
) -> dict[str, dict[str, float]]:
    """Mean cosine between the pictures of the subject and those that it was learned from, by space."""
    return {
        name: {
            "base": metrics.cross_cosine(base.vectors[name], found),
            "edited": metrics.cross_cosine(edited.vectors[name], found),
        }
        for name, found in instances.items()
    }


def extract_features(drawn: Pictures, texts: Sequence[str], spaces: FeatureSpaces, *, is_toy: bool) -> PictureFeatures:
    """See pictures in every space there is. Cost: about 0.1 s a picture for the toy world's exact scorer."""
    vectors: dict[str, Floats] = {"latents": drawn.pooled()}
    vectors |= {name: see(drawn.images) for name, see in spaces.encoders.items()}
    right = np.array([_shows(image, text) for image, text in zip(drawn.images, texts, strict=True)]) if is_toy else None
    return PictureFeatures(drawn, vectors, right, spaces.alignment(vectors["clip"], list(texts)) if spaces.alignment else None)


def _shows(image: NDArray[np.uint8], text: str) -> float:
    asked = world.named(text)
    if not asked:
        return float("nan")
    reading = world.read(image / 255)
    return float(all(getattr(reading, part) == value for part, value in asked.items()))


def compare_pictures(
    base: PictureFeatures, edited: PictureFeatures, another: PictureFeatures, spaces: FeatureSpaces
) -> dict[str, Any]:
    """Two models on one set of prompts, picture by picture and as two sets; `another` is the base from another seed.

    `latent_mse` is the mean squared difference of the final latents, in the denoiser's scale; `latent_mse_relative` divides it by
    that between two seeds of the base. `pixel_mse` and `psnr` (dB, None where equal) are of 8-bit pictures in [0, 1].
    """
    count = len(base.drawn.images)
    latent_mse = float(squared_differences(base.drawn.latents, edited.drawn.latents).mean())
    pixel_mse = float(squared_differences(base.drawn.images, edited.drawn.images).mean()) / 255**2
    lpips = spaces.lpips(base.drawn.images, edited.drawn.images) if spaces.lpips else None
    return {
        "pictures": count,
        "latent_mse": latent_mse,
        "latent_mse_relative": latent_mse / float(squared_differences(base.drawn.latents, another.drawn.latents).mean()),
        "pixel_mse": pixel_mse,
        "psnr": metrics.psnr(pixel_mse),
        "lpips": None if lpips is None else float(lpips.mean()),
        "captions_right": _means(base.right, edited.right),
        "text_alignment": _means(base.alignment, edited.alignment),
        "features": {name: _distances(base.vectors[name], edited.vectors[name]) for name in base.vectors},
    }


def squared_differences(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Mean squared difference of each picture, `[N]`."""
    return np.asarray([np.square(a.astype(np.float64) - b).mean() for a, b in zip(x, y, strict=True)])


def _means(base: Floats | None, edited: Floats | None) -> dict[str, float] | None:
    if base is None or edited is None or np.isnan(base).all():
        return None
    return {"base": float(np.nanmean(base)), "edited": float(np.nanmean(edited))}


def _distances(base: Floats, edited: Floats) -> dict[str, Any]:
    """Every metric of two sets of vectors whose rows belong together; None where the sets are too small for it."""
    found: dict[str, Any] = {"dim": base.shape[1], "cosine": metrics.mean_cosine(base, edited)}
    if len(base) < FEWEST:
        return found | dict.fromkeys(QUANTITIES)
    return {
        **found,
        "frechet_distance": metrics.frechet_distance(base, edited),
        "kernel_distance": metrics.kernel_distance(base, edited, paired=True),
        "one_nn_accuracy": metrics.one_nn_accuracy(base, edited, paired=True),
        "jensen_shannon": metrics.jensen_shannon(base, edited),
        **asdict(metrics.neighbourhoods(base, edited, paired=True)),
    }
