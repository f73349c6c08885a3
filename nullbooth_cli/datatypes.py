"""Small values that every room uses: prompts, steps, sites and sums. Needs neither torch nor Zarr."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.errors import ConfigError, StoreError

SECOND_DENOISERS = ("transformer_2",)  # parts of a pipeline whose weights have the name of the part before theirs, in a store
HELDOUT = "heldout"  # the store of the held-out prompts, inside that of the preserved ones
TASKS = "tasks"  # the stores of what was remembered, each inside that of the preserved prompts
RESULT, TRAINED = "train.json", "trained"  # what a training run writes: its record, and the files in a checkpoint
RESULTS = ("pipeline", "lora")  # the folders of its result
CHECKPOINT = re.compile(r"checkpoint-(\d{6,})")


@dataclass(frozen=True)
class Prompt:
    """A text, or the caption of an image; `image` is then the digest of its file."""

    text: str
    image: str | None = None

    @property
    def id(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of text and image: the same in every file, order and run."""
        content = self.text if self.image is None else f"{self.text}\0{self.image}"
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Step:
    """One denoising step. `key` is only a label: compute with `timestep` and `sigma`."""

    index: int
    key: str
    timestep: float
    sigma: float


def step_key(strategy: str | None, index: int, timestep: float, *, of_units: bool = False) -> str:
    """`timestep_0999`; with a sampler strategy `alpha_00_9e2`, the index and the timestep cut to one digit.

    Timesteps `of_units`, such as ratios and angles, have two decimals: `alpha_00_1.57`.
    """
    if of_units:
        return f"alpha_{index:02d}_{timestep:.2f}"
    whole = int(timestep)
    if strategy is None:
        return f"timestep_{whole:04d}"
    digits = str(whole)
    return f"alpha_{index:02d}_{digits[0]}e{len(digits) - 1}"


def is_file_name(name: str) -> bool:
    """Whether a name is one file or folder below the one it is joined to: not a path, and not a way out of it."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


class Sums(NamedTuple):
    """Sums over vectors x of D values: `sum_xxt` `[D, D]` of x x^T, `sum_x` `[D]` of x, both float64, and their `count`."""

    sum_xxt: NDArray[np.float64]
    sum_x: NDArray[np.float64]
    count: int  # type: ignore[assignment]  # the method of a tuple is not used

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of the vectors, `[D]`."""
        return self.sum_x / self.count

    @property
    def nbytes(self) -> int:
        """The bytes of the matrix, next to which the rest is small."""
        return self.sum_xxt.nbytes


class FactoredSums(NamedTuple):
    """The same with a `factor` B `[R, D]`, R < D, in the place of the sum S of x x^T: 0 <= y^T (S - B^T B) y <= delta |y|^2.

    `trace` is that of S, the sum of |x|^2, up to round-off. `nullspace.factored` makes them.
    """

    factor: NDArray[np.float64]
    sum_x: NDArray[np.float64]
    count: int  # type: ignore[assignment]  # the method of a tuple is not used
    trace: float
    delta: float

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of the vectors, `[D]`."""
        return self.sum_x / self.count

    @property
    def nbytes(self) -> int:
        """The bytes of the factor, next to which the rest is small."""
        return self.factor.nbytes


AnySums = Sums | FactoredSums


@dataclass(frozen=True)
class Factoring:
    """Which moments are kept as factors of `rank` rows: those of more than `above` dimensions; None for no moment."""

    above: int | None = None
    rank: int = 512

    def rows(self, dim: int) -> int:
        """The rows of what stands for the sum of x x^T of a site: D for the whole matrix, or fewer for a factor."""
        return dim if self.above is None or dim <= max(self.above, self.rank) else self.rank

    @classmethod
    def recorded(cls, record: Mapping[str, Any] | None) -> "Factoring":
        """That of the moments whose stage left this record; no factors in a store that was made before there were any."""
        settings = record["settings"] if record and "settings" in record else {}
        above = settings.get("covariance.factor_above")
        return cls() if above is None else cls(above, settings["covariance.factor_rank"])


WHOLE = Factoring()  # no factors

# The feature of each linear map of an attention layer, by diffusers' names, the commonest first. The `add_` ones belong to the
# second stream of joint attention, mostly that of the text (SD3, Flux). A map that makes keys beside other things is a k.
ATTENTION_FEATURES = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "out",
    "add_q_proj": "add_q",
    "add_k_proj": "add_k",
    "add_v_proj": "add_v",
    "to_add_out": "add_out",
    "to_out": "out",
    "to_query": "q",  # Kandinsky 5
    "to_key": "k",
    "to_value": "v",
    "to_q_t": "add_q",  # HiDream
    "to_k_t": "add_k",
    "to_v_t": "add_v",
    "to_out_t": "add_out",
    "to_qkv_mlp_proj": "k",  # single blocks of Flux2
    "img_qkv_proj": "k",  # PRX
    "txt_kv_proj": "add_k",
    "img_attn_qkv": "k",  # JoyImage
    "img_attn_proj": "out",
    "txt_attn_qkv": "add_k",
    "txt_attn_proj": "add_out",
}
# Beside them those of a whole block. The single blocks of Flux feed forward by proj_mlp and proj_out.
FEATURES = {
    **ATTENTION_FEATURES,
    "ff.net.0.proj": "ff_in",
    "proj_mlp": "ff_in",
    "ff.net.2": "ff_out",
    "ff_context.net.0.proj": "add_ff_in",
    "ff_context.net.2": "add_ff_out",
    "proj_in": "proj_in",
    "proj_out": "proj_out",
    "ffn.net.0.proj": "ff_in",  # Wan
    "ffn.net.2": "ff_out",
    "feed_forward.in_layer": "ff_in",  # Kandinsky 5
    "feed_forward.out_layer": "ff_out",
    "img_mlp.net.0.proj": "ff_in",  # Qwen-Image
    "img_mlp.net.2": "ff_out",
    "txt_mlp.net.0.proj": "add_ff_in",
    "txt_mlp.net.2": "add_ff_out",
    "txt_ff.net.0.proj": "add_ff_in",  # EasyAnimate
    "txt_ff.net.2": "add_ff_out",
    "ff.linear_in": "ff_in",  # Flux2
    "ff.linear_out": "ff_out",
    "ff_context.linear_in": "add_ff_in",
    "ff_context.linear_out": "add_ff_out",
    "ff.conv_inverted": "ff_in",  # Sana
    "ff.conv_point": "ff_out",
}
MODULATION = "modulation"  # norm*.linear inside a block: scale and shift from the timestep's embedding
OTHER = "linear"  # any other linear map; its layer is its own path
EVERY_FEATURE = (*dict.fromkeys(FEATURES.values()), MODULATION, OTHER)


@dataclass(frozen=True)
class Site:
    """The tensor that enters (or leaves, `side`) one projection, or several that always share it.

    `layer` and `feature` name the first of these projections; `weights` are the parameters of all of them. A timestep-free
    tensor depends neither on the latents nor on the timestep, so it is stored once.
    """

    layer: str
    feature: str
    side: str
    weights: tuple[str, ...]
    timestep_free: bool
    num_tokens: int  # per prompt, over the recorded branches of guidance
    dim: int
    masked: bool = False  # tokens that pad a prompt are NaN in the features, and left out of the moments
    steps: tuple[int, int] | None = None  # (first, how many) of the schedule in which its denoiser runs; None for all

    def __hash__(self) -> int:  # cheap: sites are looked up in every forward
        return hash((self.layer, self.feature))

    @property
    def name(self) -> str:
        """`layer.feature`, unique in a store."""
        return f"{self.layer}.{self.feature}"

    @property
    def projections(self) -> tuple[tuple[str, str], ...]:
        """(layer, feature) of every projection that receives this tensor, in the order of `weights`."""
        return tuple(split_weight(weight) for weight in self.weights)

    def feeds(self, layer: str | None, feature: str | None) -> bool:
        """Whether a projection of this layer (a name, a part of it or a glob) and feature receives the tensor; None for any."""
        found = self.features_of(layer)
        return bool(found) if feature is None else feature in found

    def features_of(self, layer: str | None) -> list[str]:
        """The features of the projections of a layer (a name, a part of it or a glob; None for any) that receive the tensor."""
        return [
            feature
            for name, feature in self.projections
            if layer is None or fnmatchcase(name, layer) or fnmatchcase(name, f"*{layer}*")
        ]

    @property
    def first_step(self) -> int:
        """The first step of the schedule in which its denoiser runs."""
        return 0 if self.steps is None else self.steps[0]

    def own_steps(self, num_steps: int) -> range:
        """The steps of a schedule of `num_steps` in which its denoiser runs, in order."""
        return range(self.first_step, self.first_step + (num_steps if self.steps is None else self.steps[1]))

    def recorded_steps(self, num_steps: int) -> range:
        """Those of them that are stored: the first alone of a timestep-free tensor."""
        own = self.own_steps(num_steps)
        return own[:1] if self.timestep_free else own

    def recorded(self, steps: Sequence[Step]) -> Sequence[Step]:
        """The steps of a schedule that are stored, in order."""
        stored = self.recorded_steps(len(steps))
        return steps[stored.start : stored.stop]

    def num_recorded(self, num_steps: int) -> int:
        """The number of steps that are stored, of a schedule of `num_steps`."""
        return len(self.recorded_steps(num_steps))


def split_weight(weight: str) -> tuple[str, str]:
    """(layer, feature) of a linear map, from the name of its weight. Raises StoreError for the name of something else."""
    path = weight.removesuffix(".weight")
    if path in (weight, ""):
        raise StoreError(f"{weight!r} is not the weight of a projection", "use a store that nullbooth made")
    for projection, feature in FEATURES.items():
        if path.endswith(f".{projection}"):
            return path.removesuffix(f".{projection}"), feature
    layer, _, name = path.rpartition(".")
    block, _, norm = layer.rpartition(".")
    if name == "out_layer" and norm.endswith("attention"):  # Kandinsky 5, where other parts have an out_layer too
        return layer, ATTENTION_FEATURES["to_out"]
    if block and norm.startswith("norm") and name == "linear":
        return layer, MODULATION
    return path, OTHER


def denoiser_of_weight(weight: str) -> str:
    """The prefix of the denoiser that has a weight: `transformer_2.` of a second one, and "" of the main one."""
    return next((f"{part}." for part in SECOND_DENOISERS if weight.startswith(f"{part}.")), "")


def choose_sites(sites: Sequence[Site], layer: str | None, feature: str | None, name: str | None = None) -> list[Site]:
    """The sites whose tensor enters this layer and feature and whose name is `name` or matches it as a glob.

    Raises ConfigError, with the names that there are, if no site is left.
    """
    if feature is not None:
        require_feature(feature)
    found = [site for site in sites if site.feeds(layer, feature) and (name is None or fnmatchcase(site.name, name))]
    if not found and name is not None:
        listed = "\n  ".join(site.name for site in sites)
        raise ConfigError(f"no site {name}", f"name one of these sites, or a glob pattern:\n  {listed}")
    if not found:
        if there := dict.fromkeys(of for site in sites for of in site.features_of(layer)):
            where = f"a layer {layer}" if layer else "any layer"
            raise ConfigError(f"no site feeds the feature {feature} of {where}", f"choose one of {', '.join(there)}")
        layers = "\n  ".join(dict.fromkeys(site.layer for site in sites))
        raise ConfigError(f"no layer matches {layer}", f"choose one of these layers, or a glob pattern:\n  {layers}")
    return found


def require_feature(feature: str) -> None:
    """Raise ConfigError for a feature that no projection has."""
    if feature not in EVERY_FEATURE:
        raise ConfigError(f"{feature} is not a feature", f"choose one of {', '.join(EVERY_FEATURE)}")
