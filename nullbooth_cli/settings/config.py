"""The config: one YAML file, one section per stage, every key with a default, unknown keys refused.

`load_config()` reads a file strictly and applies `KEY=VALUE` overrides; `build_config()` takes a mapping. `Config` and its
sections are frozen; the description of each field is its comment in configs/nullbooth.yaml.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from nullbooth_cli.datatypes import Factoring
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.pipeline_inputs import expanded_inputs
from nullbooth_cli.settings.schema import CONFIG, RECIPE, Kind, Section, load_settings, refusal, validate

Strategy = Literal[
    "DPM++ 2M", "DPM++ 2M Karras", "DPM++ 3M", "DPM++ 3M SDE Karras", "Euler", "Euler a", "UniPC", "DDIM", "LCM", "model"
]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
STAGES = ("schedule", "collect", "covariance", "project")
DEFAULT_RELATIVE_THRESHOLD = 1.0e-3
THRESHOLD_RULES = ("nullspace_threshold", "threshold_percent", "relative_threshold", "energy", "target_leakage", "null_dim")


class ScheduleSection(Section):
    """The timesteps: settings of the stage schedule."""

    num_denoising_steps: int = Field(
        30, ge=1, le=limits.STEPS, description="denoising steps, counted as the scheduler counts them"
    )
    sampler_strategy: Strategy | None = Field(
        "DPM++ 2M Karras", description="null for uniform DDIM steps, or one of: " + ", ".join(STRATEGIES)
    )
    timestep_mode: Literal["avg", "first", "all_steps"] = Field(
        "avg",
        description="avg: mean over the prompts' sequences; first: the first prompt's (only SDE strategies differ); "
        "all_steps: the scheduler's own, without sde_jitter",
    )
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = Field(
        None, description="linspace, leading, trailing, or null for the strategy's own"
    )
    sde_jitter: float = Field(
        0.02, ge=0.0, lt=1.0, description="relative noise on the sigmas of each prompt, SDE strategies only; 0 for none"
    )
    seed: int | None = Field(None, ge=0, le=limits.SEED, description="seed of that noise; null draws new noise in every run")


class FeatureSwitches(Section):
    """The inputs of the attention layers that are recorded."""

    q_features: bool = Field(True, description="inputs of to_q")
    k_features: bool = Field(True, description="inputs of to_k")
    v_features: bool = Field(True, description="inputs of to_v")
    out_features: bool = Field(True, description="inputs of to_out.0")

    def chosen(self) -> tuple[str, ...]:
        """The features that are switched on, among q, k, v, out."""
        return tuple(name for name in ("q", "k", "v", "out") if getattr(self, f"{name}_features"))


class CollectSection(Section):
    """The features to record, and how they are stored."""

    places: ClassVar[tuple[str, ...]] = ("images",)

    collect_features: FeatureSwitches = Field(FeatureSwitches(), description="which projections to record")
    cross_attention_layers: Literal["all"] | list[str | int] = Field(
        "all", description="all, or a list of layer names, glob patterns or indices"
    )
    linear_layers: list[str] = Field(
        [],
        description="linear layers to record beside those: attn1, ff_in, ff_out, proj_in, proj_out, modulation, all, or glob "
        "patterns of module names; collect_features and cross_attention_layers do not restrict them",
    )
    side: Literal["input", "output"] = Field("input", description="input (for projectors) or output (for analysis only)")
    keep: Literal["features", "moments", "both"] = Field(
        "features",
        description="features: every vector is stored; moments: vectors are only summed, while the model runs; or both",
    )
    tokens_per_prompt: int | None = Field(
        None,
        ge=1,
        le=limits.COUNT,
        description="number of image tokens recorded of each prompt, timestep and site, drawn at random; null for all",
    )
    latents: Literal["path", "images"] = Field(
        "path", description="path: features come from the model's own denoising path; images: from noised real images"
    )
    images: str | None = Field(
        None, description="with latents images: a folder of images with captions, used instead of original_knowledge_prompts"
    )
    guidance_scale: float = Field(7.5, ge=0.0, description="classifier-free guidance, as the pipeline takes it")
    pipeline_inputs: dict[str, Any] = Field(
        {},
        description="what the pipeline takes beside the prompt, the same in every call, as {image: photo.png, strength: 1.0}: "
        "pictures and tensors (.safetensors) by their files, texts, numbers, true or false",
    )
    branches: Literal["both", "cond"] = Field("both", description="both branches of guidance, or only the prompt's own")
    batch_size: int = Field(
        8, ge=1, le=limits.BATCH, description="prompts per forward; also the size of a unit, the piece of a stage that is resumed"
    )
    height: int | None = Field(None, ge=1, le=limits.PIXELS, description="pixels; null for the model's own size")
    width: int | None = Field(None, ge=1, le=limits.PIXELS, description="pixels; null for the model's own size")
    seed: int = Field(0, ge=0, le=limits.SEED, description="prompt i starts from the noise of seed + i")
    feature_dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="how features are stored")
    compression: Literal["lz4"] | None = Field(None, description="null (features hardly shrink) or lz4, for slow disks")
    visual_attention_map: bool = Field(False, description="also record attention maps of the words of some prompts, for inspect")
    attention_prompts: Annotated[int, Field(ge=0, le=limits.COUNT)] | list[str] = Field(
        8,
        union_mode="left_to_right",
        description="attention maps: number of prompts, counted from the first, or a list of prompts",
    )
    attention_layers: Literal["all"] | list[str | int] = Field(
        "all", description="attention maps: all layers, or a list of names, glob patterns or indices"
    )
    attention_timesteps: int = Field(
        6, ge=1, le=limits.STEPS, description="attention maps: number of timesteps, evenly spaced over the schedule"
    )

    @field_validator("pipeline_inputs")
    @classmethod
    def _expand_inputs(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return expanded_inputs(value)
        except ConfigError as error:
            raise refusal(error.message, error.hint) from error

    @model_validator(mode="after")
    def _images_only_with_latents_images(self) -> "CollectSection":
        if self.latents == "images" and self.images is None:
            raise refusal("latents is images, but images names no folder", "set collect.images to a folder with captions")
        if self.latents == "path" and self.images is not None:
            raise refusal("images names a folder, but latents is path", "set collect.latents to images, or images to null")
        return self


class CovarianceSection(Section):
    """How the recorded vectors are summed."""

    accumulate: Literal["float64", "float32"] = Field(
        "float64", description="precision of the products; chunks are always summed in float64"
    )
    centred: bool = Field(
        False,
        description="subtract the mean; then the direction of the mean can count as null",
    )
    factor_above: int | None = Field(
        None,
        ge=1,
        le=limits.COUNT,
        description="moments of more dimensions than this are kept as factors of factor_rank rows, with a known error; "
        "null: every moment is whole",
    )
    factor_rank: int = Field(
        512, ge=2, le=limits.COUNT, description="rows of such a factor: about as many directions can be preserved"
    )

    @model_validator(mode="after")
    def _factors_are_about_zero(self) -> "CovarianceSection":
        if self.centred and self.factor_above is not None:
            raise refusal(
                "centred is true, and a factor of a moment is about zero", "set centred to false, or factor_above to null"
            )
        return self

    def factoring(self) -> Factoring:
        """Which moments are kept as factors."""
        return Factoring(self.factor_above, self.factor_rank)


class ProjectSection(Section):
    """Which directions count as null. One threshold rule is in force."""

    alternatives: ClassVar[tuple[str, ...]] = THRESHOLD_RULES

    scope: Literal["pooled", "timestep"] = Field(
        "pooled",
        description="pooled: one null space for all timesteps, for training and editing; timestep: one for each, for inspection",
    )
    timesteps: tuple[float, float] | None = Field(
        None, strict=False, description="pooled scope: only the timesteps between these two, such as [200, 600]; null for all"
    )
    pool_weight: Literal["count", "timestep"] = Field(
        "count", description="pooled scope: count: every vector has the same weight; timestep: every timestep has"
    )
    nullspace_threshold: float | None = Field(None, gt=0.0, description="rule: eigenvalues below this are null")
    threshold_percent: float | None = Field(
        None, gt=0.0, lt=100.0, description="rule: this percentage of the eigenvalues, the smallest, is null"
    )
    relative_threshold: float | None = Field(
        DEFAULT_RELATIVE_THRESHOLD,
        gt=0.0,
        lt=1.0,
        description="rule: eigenvalues below this times the largest are null; the default where no rule is set",
    )
    energy: float | None = Field(None, gt=0.0, le=1.0, description="rule: share of the trace that stays outside the null space")
    target_leakage: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="rule: the largest null space with at most this leakage, on the held-out prompts if there are any",
    )
    null_dim: int | None = Field(
        None, ge=1, le=limits.COUNT, description="rule: number of the smallest eigenvalues that are null"
    )
    empty: Literal["refuse", "freeze"] = Field(
        "refuse",
        description="refuse: a site without a null space is an error; freeze: its projector is zero, its weights never change",
    )

    @model_validator(mode="before")
    @classmethod
    def _another_rule_replaces_the_default(cls, data: Any) -> Any:
        """Only the default gives way: a relative_threshold that was written down counts, also with the default's value."""
        others = isinstance(data, dict) and any(data.get(rule) is not None for rule in THRESHOLD_RULES)
        return {**data, "relative_threshold": None} if others and "relative_threshold" not in data else data

    @model_validator(mode="after")
    def _one_rule(self) -> "ProjectSection":
        rules = self._set_rules()
        if not rules:
            raise refusal("no threshold rule is set", f"set one of {', '.join(THRESHOLD_RULES)}")
        if len(rules) > 1 and set(rules) != {"nullspace_threshold", "threshold_percent"}:
            hint = "keep one rule and set the others to null"
            raise refusal(f"more than one threshold rule is set: {', '.join(sorted(rules))}", hint)
        return self

    @model_validator(mode="after")
    def _one_scope(self) -> "ProjectSection":
        if self.scope == "timestep" and (self.timesteps is not None or self.pool_weight != "count"):
            hint = "set project.scope to pooled, or take out timesteps and pool_weight"
            raise refusal("timesteps and pool_weight say how to pool, but scope is timestep", hint)
        if self.timesteps is not None and self.timesteps[0] > self.timesteps[1]:
            raise refusal(f"timesteps is {list(self.timesteps)}, from the larger to the smaller", "swap the two")
        return self

    def rule(self) -> tuple[str, float]:
        """The rule in force and its value; if both an absolute threshold and a percentile are set, the percentile."""
        rules = self._set_rules()
        name = "threshold_percent" if "threshold_percent" in rules else rules[0]
        return name, getattr(self, name)

    def _set_rules(self) -> list[str]:
        return [name for name in THRESHOLD_RULES if getattr(self, name) is not None]


class Config(Section):
    """All settings of a run: the model, the store, the prompts, and one section for each stage."""

    places: ClassVar[tuple[str, ...]] = ("model", "pipeline_config", "store", "original_knowledge_prompts", "heldout_prompts")
    file_kind: ClassVar[Kind | None] = CONFIG
    other_kind: ClassVar[Kind | None] = RECIPE

    model: str = Field(
        "toy", description="toy (ships with nullbooth), a pipeline folder, a hub id, or a single .safetensors file"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    variant: str | None = Field(None, description="weight variant, such as fp16")
    pipeline_config: str | None = Field(
        None, description="for a single file: pipeline folder or hub id with the other parts; null lets diffusers choose"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="precision the model runs in")
    local_files_only: bool = Field(False, description="never contact the hub")
    allow_pickle: bool = Field(False, description="also read pickled weights (.bin, .ckpt), which can run any code")
    model_cpu_offload: bool = Field(
        False, description="keep the parts in host memory that the device does not need at the moment"
    )
    attention_slicing: bool = Field(False, description="compute attention in slices: slower, with less memory")
    store: str = Field("runs/toy.zarr", description="the Zarr store: a folder, or a URL such as s3://bucket/run.zarr")
    storage_options: dict[str, Any] = Field(
        {}, repr=False, description="for a URL: options of its client (endpoint, region, credentials); never written anywhere"
    )
    original_knowledge_prompts: str | list[str] = Field(
        "nullbooth:toy.txt",
        description="prompts to preserve: a file (.txt, .csv, .tsv, .jsonl, .json; file.csv#column), one that nullbooth ships "
        "(nullbooth:NAME), or a list",
    )
    heldout_prompts: str | list[str] | None = Field(
        None,
        description="prompts used only to measure leakage, never for a moment; a file or list as above, or null",
    )
    schedule: ScheduleSection = Field(ScheduleSection(), description="which timesteps")
    collect: CollectSection = Field(CollectSection(), description="what to record")
    covariance: CovarianceSection = Field(CovarianceSection(), description="how to sum it")
    project: ProjectSection = Field(ProjectSection(), description="what counts as null; set one rule")

    @model_validator(mode="after")
    def _no_heldout_prompts_with_images(self) -> "Config":
        if self.collect.images is not None and self.heldout_prompts is not None:
            raise refusal(
                "collect.latents is images, and heldout_prompts have no images",
                "set heldout_prompts to null; to measure leakage on other images, collect them into a store of their own and "
                "compare the two stores",
            )
        return self


def public_settings(config: Config) -> dict[str, Any]:
    """The config as it may be stored: without `storage_options`, which can have credentials."""
    return config.model_dump(exclude={"storage_options"})


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config file and apply `KEY=VALUE` overrides. Raises ConfigError naming the key and the file."""
    return load_settings(Config, Path(path), overrides)


def build_config(data: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "overrides") -> Config:
    """Validate a nested mapping, with `a.b=c` overrides on top."""
    return validate(Config, data, overrides, source)
