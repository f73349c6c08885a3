"""Two models on one set of prompts: their pictures one by one, and as two sets in every feature space."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.evaluation import metrics
from nullbooth_cli.evaluation.answer import (
    BaseAndEdited,
    FeatureDistances,
    InstanceLoss,
    InstanceSimilarity,
    PictureChange,
    PictureComparison,
    SubjectComparison,
)
from nullbooth_cli.evaluation.encoders import FeatureSpaces
from nullbooth_cli.evaluation.pictures import Pictures, PictureSpec
from nullbooth_cli.toy import subject, world

FEWEST = 2 * metrics.NEIGHBOURS  # pictures that a comparison of whole sets takes
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class PictureFeatures:
    """The pictures of one model, encoded in every feature space: `vectors` `[N, D]` by space.

    `right` `[N]` is 1 for a picture that shows everything its caption names, or, of an edited prompt, everything that a target
    names; it is NaN where nothing is named. `shown` is 1 for a picture that shows the embedded model's subject as its caption
    asks, NaN for a caption of anything else. Both are None for models other than the embedded one. `alignment` `[N]` is the
    cosine with the prompt, None without CLIP.
    """

    drawn: Pictures
    vectors: Mapping[str, Floats]
    right: Floats | None
    shown: Floats | None
    alignment: Floats | None

    def take(self, places: slice) -> "PictureFeatures":
        """Some of the pictures."""
        return PictureFeatures(
            drawn=Pictures(self.drawn.images[places], self.drawn.latents[places]),
            vectors={name: found[places] for name, found in self.vectors.items()},
            right=None if self.right is None else self.right[places],
            shown=None if self.shown is None else self.shown[places],
            alignment=None if self.alignment is None else self.alignment[places],
        )


@dataclass(frozen=True)
class ComparedPictures:
    """The pictures `specs`, drawn by the base, by the base from another seed, and by the model to compare."""

    specs: Sequence[PictureSpec]
    base: PictureFeatures
    another: PictureFeatures
    edited: PictureFeatures


def extract_features(drawn: Pictures, specs: Sequence[PictureSpec], spaces: FeatureSpaces, *, is_toy: bool) -> PictureFeatures:
    """Encode the pictures `specs` in every feature space.

    With `is_toy`, captions are read off the pictures, which is exact, and possible only for the embedded model. Cost: about 0.1 s
    a picture for that reading.
    """
    vectors: dict[str, Floats] = {"latents": drawn.pooled()}
    vectors |= {name: encode(drawn.images) for name, encode in spaces.encoders.items()}
    pairs = list(zip(drawn.images, specs, strict=True))
    right = np.array([_is_right(image, spec) for image, spec in pairs]) if is_toy else None
    shown = np.array([_shows_subject(image, spec.prompt.text) for image, spec in pairs]) if is_toy else None
    alignment = spaces.alignment(vectors["clip"], [spec.prompt.text for spec in specs]) if spaces.alignment else None
    return PictureFeatures(drawn=drawn, vectors=vectors, right=right, shown=shown, alignment=alignment)


def _is_right(image: NDArray[np.uint8], spec: PictureSpec) -> float:
    """1 for a picture that shows all that its caption names, 0 for any other, NaN for a caption that names nothing.

    An edited prompt is right as one of its targets. A target that names nothing is right without what the edited prompt names.
    """
    is_of_edit = bool(spec.targets) or spec.source is not None
    wanted = [named for text in spec.targets or (spec.prompt.text,) if (named := world.named(text))]
    unwanted = world.named(spec.source or spec.prompt.text) if is_of_edit and not wanted else {}
    if not wanted and not unwanted:
        return float("nan")
    reading = world.read(image / 255)

    def shows(named: Mapping[str, str]) -> bool:
        return all(getattr(reading, part) == value for part, value in named.items())

    return float(any(map(shows, wanted)) if wanted else not shows(unwanted))


def _shows_subject(image: NDArray[np.uint8], text: str) -> float:
    shown = subject.is_shown(image / 255, text)
    return float("nan") if shown is None else float(shown)


def compare_pictures(compared: ComparedPictures, spaces: FeatureSpaces) -> PictureComparison:
    """A model beside the base, picture by picture and as two sets."""
    base, edited = compared.base, compared.edited
    changes = squared_differences(base.drawn.latents, edited.drawn.latents)
    latent_mse = float(changes.mean())
    pixel_mse = float(squared_differences(base.drawn.images, edited.drawn.images).mean()) / 255**2
    lpips = spaces.lpips(base.drawn.images, edited.drawn.images) if spaces.lpips else None
    return PictureComparison(
        pictures=len(base.drawn.images),
        latent_mse=latent_mse,
        latent_mse_relative=latent_mse / float(squared_differences(base.drawn.latents, compared.another.drawn.latents).mean()),
        pixel_mse=pixel_mse,
        psnr=metrics.psnr(pixel_mse),
        lpips=None if lpips is None else float(lpips.mean()),
        captions_right=_means(base.right, edited.right),
        text_alignment=_means(base.alignment, edited.alignment),
        features={name: _distances(base.vectors[name], edited.vectors[name]) for name in base.vectors},
        by_picture=tuple(
            PictureChange(spec.prompt.id, spec.number, spec.prompt.text, float(change))
            for spec, change in zip(compared.specs, changes, strict=True)
        ),
    )


def compare_subject(
    compared: ComparedPictures,
    spaces: FeatureSpaces,
    instances: Mapping[str, Floats] | None,
    loss: InstanceLoss | None,
) -> SubjectComparison:
    """A model beside the base on prompts of the subject; `instances` are vectors `[M, D]` of its pictures, by feature space."""
    base, edited = compared.base, compared.edited
    shown, found = _means(base.shown, edited.shown), compare_pictures(compared, spaces)
    if shown is not None:
        # Captions are read as shapes of one colour, which the subject is not: the better it is learned, the fewer are right.
        found = replace(found, captions_right=None)
    return SubjectComparison(
        **vars(found),
        shown=shown,
        instances=None if instances is None else similarity_to_instances(base, edited, instances),
        instance_loss=loss,
    )


def similarity_to_instances(
    base: PictureFeatures, edited: PictureFeatures, instances: Mapping[str, Floats]
) -> dict[str, InstanceSimilarity]:
    """Mean cosine between pictures of the subject and those it was learned from (vectors `[M, D]`), by feature space."""
    return {
        name: InstanceSimilarity(
            metrics.cross_cosine(base.vectors[name], vectors),
            metrics.cross_cosine(edited.vectors[name], vectors),
            metrics.inner_cosine(vectors) if len(vectors) > 1 else None,
        )
        for name, vectors in instances.items()
    }


def squared_differences(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Mean squared difference of each picture, `[N]`."""
    return np.asarray([np.square(a.astype(np.float64) - b).mean() for a, b in zip(x, y, strict=True)])


def _means(base: Floats | None, edited: Floats | None) -> BaseAndEdited | None:
    if base is None or edited is None or np.isnan(base).all():
        return None
    return BaseAndEdited(float(np.nanmean(base)), float(np.nanmean(edited)))


def _distances(base: Floats, edited: Floats) -> FeatureDistances:
    """Every metric of two sets of vectors whose rows belong together."""
    dim, cosine = base.shape[1], metrics.mean_cosine(base, edited)
    if len(base) < FEWEST:
        return FeatureDistances(dim=dim, cosine=cosine)
    return FeatureDistances(
        dim=dim,
        cosine=cosine,
        frechet_distance=metrics.frechet_distance(base, edited),
        kernel_distance=metrics.kernel_distance(base, edited, paired=True),
        one_nn_accuracy=metrics.one_nn_accuracy(base, edited, paired=True),
        jensen_shannon=metrics.jensen_shannon(base, edited),
        **asdict(metrics.neighbourhoods(base, edited, paired=True)),
    )
