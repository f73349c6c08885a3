"""The answer of an evaluation: dataclasses whose fields are the keys of its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from nullbooth_cli.evaluation.verdict import Verdict

SCHEMA_VERSION = 3
SUBJECT = "subject"  # the set of pictures of the learned subject
EDITED, PARAPHRASES = "edited", "paraphrases"  # those of the prompts of an edit
EARLIER = "earlier"  # of what the base was taught or edited before; this set and all others are of the rest, to be preserved


@dataclass(frozen=True)
class BaseAndEdited:
    """One quantity of the base and of an edited model."""

    base: float
    edited: float


@dataclass(frozen=True)
class InstanceSimilarity(BaseAndEdited):
    """Mean cosine of pictures of the subject with those it was learned from; `among` is that of two of these, None for one."""

    among: float | None


@dataclass(frozen=True, kw_only=True)
class InstanceLoss:
    """The denoising loss of the velocity on the pictures that the subject was learned from, with their captions.

    `fall` is the share of the base's loss that the edited model lacks, with its `standard_error` over `draws` of noise and
    timestep.
    """

    base: float
    edited: float
    fall: float
    standard_error: float
    draws: int


@dataclass(frozen=True, kw_only=True)
class FeatureDistances:
    """Two sets of pictures in one feature space of `dim` dimensions, by the metrics of `metrics`.

    `cosine` compares picture by picture. The others compare the sets as a whole: None for too few pictures.
    """

    dim: int
    cosine: float
    frechet_distance: float | None = None
    kernel_distance: float | None = None
    one_nn_accuracy: float | None = None
    jensen_shannon: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class PictureChange:
    """The distance of the latents of one picture, the `number`-th of a prompt, from those of the base."""

    id: str
    number: int
    text: str
    latent_mse: float


@dataclass(frozen=True, kw_only=True)
class PictureComparison:
    """A model beside the base on one set of prompts.

    `latent_mse` is the mean squared difference of the final latents, in the denoiser's scale; `latent_mse_relative` divides it by
    that between two seeds of the base. `pixel_mse` and `psnr` (dB, None for equal pictures) are of 8-bit pictures in [0, 1].
    Quantities that could not be measured are None.
    """

    pictures: int
    latent_mse: float
    latent_mse_relative: float
    pixel_mse: float
    psnr: float | None
    lpips: float | None
    captions_right: BaseAndEdited | None
    text_alignment: BaseAndEdited | None
    features: Mapping[str, FeatureDistances]
    by_picture: tuple[PictureChange, ...]

    @property
    def relative_by_prompt(self) -> dict[str, float]:
        """The mean latent MSE of the pictures of each prompt, as a share of that between two seeds over all prompts.

        The mean over all prompts, where each has as many pictures, is `latent_mse_relative`.
        """
        by_prompt: dict[str, list[float]] = {}
        for each in self.by_picture:
            by_prompt.setdefault(each.text, []).append(each.latent_mse)
        another = self.latent_mse / self.latent_mse_relative if self.latent_mse else 1.0
        return {text: fmean(changes) / another for text, changes in by_prompt.items()}


@dataclass(frozen=True, kw_only=True)
class SubjectComparison(PictureComparison):
    """On prompts of the subject.

    `shown` is the share of the pictures in which the embedded model's exact scorer finds it. `instances` is the likeness to the
    pictures it was learned from, by feature space, and `instance_loss` the loss on these.
    """

    shown: BaseAndEdited | None
    instances: Mapping[str, InstanceSimilarity] | None
    instance_loss: InstanceLoss | None


@dataclass(frozen=True)
class EditedPicture(PictureChange):
    """The change of the picture of an edited prompt; `reached` says whether it draws one of the `targets`, None if unknown."""

    targets: tuple[str, ...]
    reached: bool | None


@dataclass(frozen=True, kw_only=True)
class EditScore:
    """The share of the pictures of edited prompts, or of paraphrases, that draw a target, by the scorer `measured_by`.

    `base` is that share before the edit, `target` that of the base's own pictures of the targets. `nearer` is, by feature space,
    the share of the pictures that are nearer to the base's picture of a target than to its picture of the prompt, all from the
    same noise. `baseline` is the mean squared difference of the latents of two seeds of the base.
    """

    pictures: int
    measured_by: str
    edited: float
    base: float
    target: float
    nearer: Mapping[str, float]
    baseline: float
    by_picture: tuple[EditedPicture, ...]


@dataclass(frozen=True, kw_only=True)
class Specificity:
    """The share of the pictures of other prompts that stay, on the set `prompts` where fewest do, by the scorer `measured_by`.

    `base` is that share before the edit. `nearer` is, by feature space, the share of the pictures that are nearer to the base's
    picture than another seed of the base is. `left_out` prompts contain an edited prompt.
    """

    prompts: str
    pictures: int
    left_out: int
    measured_by: str
    edited: float
    base: float
    nearer: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class EditScores:
    """The scores of an edit. `score` is the harmonic mean of the three, 0 if one of them is; None without all three."""

    efficacy: EditScore
    generalisation: EditScore | None
    specificity: Specificity | None
    score: float | None = field(init=False)

    def __post_init__(self) -> None:
        score = None
        if self.generalisation is not None and self.specificity is not None:
            shares = (self.efficacy.edited, self.generalisation.edited, self.specificity.edited)
            score = len(shares) / sum(1 / share for share in shares) if all(shares) else 0.0
        object.__setattr__(self, "score", score)


@dataclass(frozen=True)
class WeightDrift:
    """norm(dW K) / norm(W K) of one protected weight on the collected and on the held-out inputs K."""

    weight: str
    drift: float
    heldout_drift: float | None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The change of a model's weights: the drift of the protected ones, and the names of the others that changed."""

    largest: float
    largest_heldout: float | None
    protected_changed: int
    unprotected_changed: tuple[str, ...]
    weights: tuple[WeightDrift, ...]


@dataclass(frozen=True, kw_only=True)
class ModelAnswer:
    """One edited model: the verdicts on it, its preservation by set of prompts, its subject and its edit (None without prompts).

    `drift` is None if the store does not know the inputs of the base.
    """

    edited: str
    verdicts: tuple[Verdict, ...]
    preservation: Mapping[str, PictureComparison]
    subject: SubjectComparison | None
    edit: EditScores | None = field(default=None, metadata={"optional": True})
    drift: Drift | None

    def on(self, name: str) -> PictureComparison:
        """The comparison on a set of prompts, or on the subject's."""
        found = self.subject if name == SUBJECT else self.preservation[name]
        if found is None:
            raise KeyError(name)
        return found

    def score_of(self, name: str) -> EditScore | None:
        """The score on the edited prompts or on the paraphrases; None for any other set."""
        of = {} if self.edit is None else {EDITED: self.edit.efficacy, PARAPHRASES: self.edit.generalisation}
        return of.get(name)

    def changes(self, name: str) -> tuple[PictureChange, ...]:
        """The change of every picture of any set."""
        score = self.score_of(name)
        return self.on(name).by_picture if score is None else score.by_picture


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The first edited model, those beside it (`against`), and the `baseline`: the base from another seed, by set of prompts.

    `not_measured` gives a reason for every quantity that is missing. `files` are the pictures and pages that were written.
    """

    schema_version: int = SCHEMA_VERSION
    store: str
    base: str
    edited: str
    verdicts: tuple[Verdict, ...]
    dtype: str
    num_steps: int
    guidance_scale: float
    preservation: Mapping[str, PictureComparison]
    subject: SubjectComparison | None
    edit: EditScores | None = field(default=None, metadata={"optional": True})
    baseline: Mapping[str, PictureComparison]
    against: tuple[ModelAnswer, ...]
    not_measured: Mapping[str, str]
    drift: Drift | None
    files: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[ModelAnswer, ...]:
        """Every edited model, the first one first."""
        first = ModelAnswer(
            edited=self.edited,
            verdicts=self.verdicts,
            preservation=self.preservation,
            subject=self.subject,
            edit=self.edit,
            drift=self.drift,
        )
        return (first, *self.against)

    @property
    def model_names(self) -> list[str]:
        """The edited models by the last part of their places, or as many parts as tell them apart: `a/pipeline`."""
        parts = [Path(model.edited).parts for model in self.models]
        tried = ([str(Path(*of[-count:])) for of in parts] for count in range(1, max(map(len, parts)) + 1))
        return next((names for names in tried if len(set(names)) == len(names)), [model.edited for model in self.models])
