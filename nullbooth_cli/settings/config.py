"""The config: one YAML file, one section per stage, every key with a default, unknown keys refused.

`load_config()` reads a file strictly and applies `KEY=VALUE` overrides; `build_config()` takes a mapping. `Config` and its
sections are frozen; the description of each field is its comment in configs/nullbooth.yaml.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from nullbooth_cli.settings.schema import Section, load_settings, validate

Strategy = Literal[
    "DPM++ 2M", "DPM++ 2M Karras", "DPM++ 3M", "DPM++ 3M SDE Karras", "Euler", "Euler a", "UniPC", "DDIM", "LCM", "model"
]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
STAGES = ("schedule", "collect", "covariance", "project")
DEFAULT_RELATIVE_THRESHOLD = 1.0e-3
THRESHOLD_RULES = ("nullspace_threshold", "threshold_percent", "relative_threshold", "energy", "target_leakage", "null_dim")


class ScheduleSection(Section):
    num_denoising_steps: int = Field(30, ge=1, description="denoising steps, counted as the scheduler counts them")
    sampler_strategy: Strategy | None = Field(
        "DPM++ 2M Karras", description="null (uniform DDIM steps) or one of: " + ", ".join(STRATEGIES)
    )
    timestep_mode: Literal["avg", "first", "all_steps"] = Field(
        "avg",
        description="avg: mean over the prompts' sequences; first: the first prompt's (they differ for SDE only); "
        "all_steps: the scheduler's own, without sde_jitter",
    )
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = Field(
        None, description="null keeps the strategy's own; or linspace, leading, trailing"
    )
    sde_jitter: float = Field(
        0.02, ge=0.0, lt=1.0, description="relative noise on the sigmas of each prompt, SDE strategies only; 0 for none"
    )
    seed: int | None = Field(None, ge=0, description="seed of that noise; null draws fresh noise on every run")


class FeatureSwitches(Section):
    q_features: bool = Field(True, description="what enters to_q")
    k_features: bool = Field(True, description="what enters to_k")
    v_features: bool = Field(True, description="what enters to_v")
    out_features: bool = Field(True, description="what enters to_out.0")

    def chosen(self) -> tuple[str, ...]:
        """The features that are switched on, of q, k, v, out."""
        return tuple(name for name in ("q", "k", "v", "out") if getattr(self, f"{name}_features"))


class CollectSection(Section):
    collect_features: FeatureSwitches = Field(FeatureSwitches(), description="which projections to look at")
    cross_attention_layers: Literal["all"] | list[str | int] = Field(
        "all", description="all, or a list of layer names, glob patterns or indices"
    )
    side: Literal["input", "output"] = Field("input", description="input (for projectors) or output (for analysis only)")
    keep: Literal["features", "moments", "both"] = Field(
        "features",
        description="features: every vector is stored; moments: folded while the model runs, no vectors kept; or both",
    )
    tokens_per_prompt: int | None = Field(
        None, ge=1, description="so many image tokens of each prompt, timestep and site, drawn at random; null keeps all"
    )
    latents: Literal["path", "images"] = Field(
        "path", description="path: features are taken along the model's own denoising path; images: on noised real images"
    )
    images: str | None = Field(
        None, description="latents images: a folder of images with captions, which take the place of original_knowledge_prompts"
    )
    guidance_scale: float = Field(7.5, ge=0.0, description="classifier-free guidance, as the pipeline takes it")
    branches: Literal["both", "cond"] = Field("both", description="both branches of guidance, or only the prompt's own")
    batch_size: int = Field(8, ge=1, description="prompts per forward; also the size of a unit, the piece that is resumed")
    height: int | None = Field(None, ge=1, description="pixels; null takes the model's own size")
    width: int | None = Field(None, ge=1, description="pixels; null takes the model's own size")
    seed: int = Field(0, ge=0, description="prompt i starts from the noise of seed + i")
    feature_dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="how features are stored")
    compression: Literal["lz4"] | None = Field(None, description="null (features hardly shrink) or lz4, for slow disks")
    visual_attention_map: bool = Field(False, description="also record where the words of some prompts look, for inspect")
    attention_prompts: int | list[str] = Field(
        8, union_mode="left_to_right", description="attention maps: the first so many prompts, or a list of prompts"
    )
    attention_layers: Literal["all"] | list[str | int] = Field(
        "all", description="attention maps: all layers, or a list of names, glob patterns or indices"
    )
    attention_timesteps: int = Field(6, ge=1, description="attention maps: so many timesteps, evenly spaced over the schedule")

    @model_validator(mode="after")
    def images_where_they_are_noised(self) -> "CollectSection":
        if self.latents == "images" and self.images is None:
            raise ValueError("latents is images, but images names no folder", "set collect.images to a folder with captions")
        if self.latents == "path" and self.images is not None:
            raise ValueError("images names a folder, but latents is path", "set collect.latents to images, or images to null")
        return self


class CovarianceSection(Section):
    accumulate: Literal["float64", "float32"] = Field(
        "float64", description="precision of the products; chunks are always summed in float64"
    )
    centred: bool = Field(
        False,
        description="subtract the mean; an uncentred moment keeps the mean out of the null space, a centred one does not",
    )


class ProjectSection(Section):
    scope: Literal["pooled", "timestep"] = Field(
        "pooled", description="pooled over all timesteps (for use) or one per timestep (for looking)"
    )
    timesteps: tuple[float, float] | None = Field(
        None, strict=False, description="pooled scope: only timesteps from the first to the last of these two, such as [200, 600]"
    )
    pool_weight: Literal["count", "timestep"] = Field(
        "count", description="pooled scope: every vector weighs the same, or every timestep does"
    )
    nullspace_threshold: float | None = Field(None, gt=0.0, description="rule: eigenvalues below this are null")
    threshold_percent: float | None = Field(None, gt=0.0, lt=100.0, description="rule: the lowest so many percent are null")
    relative_threshold: float | None = Field(
        DEFAULT_RELATIVE_THRESHOLD,
        gt=0.0,
        lt=1.0,
        description="rule: below this times the largest is null; the default gives way to any other rule",
    )
    energy: float | None = Field(None, gt=0.0, le=1.0, description="rule: share of the trace kept outside the null space")
    target_leakage: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="rule: the largest null space that leaks at most this, on the held-out prompts if there are any",
    )
    null_dim: int | None = Field(None, ge=1, description="rule: so many of the smallest")
    empty: Literal["refuse", "freeze"] = Field(
        "refuse",
        description="a site without a null space is an error, or its projector is zero: its weights stay as they are",
    )

    @model_validator(mode="after")
    def one_rule(self) -> "ProjectSection":
        rules = self._set_rules()
        if not rules:
            raise ValueError(f"no threshold rule is set: give one of {', '.join(THRESHOLD_RULES)}")
        if len(rules) > 1 and set(rules) != {"nullspace_threshold", "threshold_percent"}:
            raise ValueError(f"two threshold rules are set: {', '.join(sorted(rules))}")
        return self

    @model_validator(mode="after")
    def one_scope(self) -> "ProjectSection":
        if self.scope == "timestep" and (self.timesteps is not None or self.pool_weight != "count"):
            raise ValueError("timesteps and pool_weight say how to pool: they mean nothing with scope timestep")
        if self.timesteps is not None and self.timesteps[0] > self.timesteps[1]:
            raise ValueError(f"timesteps goes from the smaller to the larger, got {list(self.timesteps)}")
        return self

    def rule(self) -> tuple[str, float]:
        """The one rule in force and its value; of an absolute threshold and a percentile, the percentile."""
        rules = self._set_rules()
        name = "threshold_percent" if "threshold_percent" in rules else rules[0]
        return name, getattr(self, name)

    def _set_rules(self) -> list[str]:
        rules = [name for name in THRESHOLD_RULES if getattr(self, name) is not None]
        if len(rules) > 1 and self.relative_threshold == DEFAULT_RELATIVE_THRESHOLD:
            rules.remove("relative_threshold")
        return rules


class Config(Section):
    model: str = Field(
        "toy", description="toy (ships with nullbooth), a pipeline folder, a hub id, or a single .safetensors file"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    variant: str | None = Field(None, description="weight variant, such as fp16")
    pipeline_config: str | None = Field(
        None, description="for a single file: the pipeline folder or hub id that tells the rest; null lets diffusers tell it"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="precision the model runs in")
    local_files_only: bool = Field(False, description="never ask the hub")
    allow_pickle: bool = Field(False, description="also read pickled weights (.bin, .ckpt), which can run any code")
    model_cpu_offload: bool = Field(False, description="keep in host memory what the device does not need at the moment")
    attention_slicing: bool = Field(False, description="compute attention in slices: slower, with less memory")
    store: str = Field("runs/toy.zarr", description="the Zarr store: a folder, or a URL such as s3://bucket/run.zarr")
    storage_options: dict[str, Any] = Field(
        {}, description="for a URL: what its client takes (endpoint, region, credentials); never written anywhere"
    )
    original_knowledge_prompts: str | list[str] = Field(
        "dataset/prompts/toy.txt",
        description="knowledge to keep: a file (.txt, .csv, .jsonl, COCO .json; file.csv#column), or a list",
    )
    heldout_prompts: str | list[str] | None = Field(
        None,
        description="other prompts, only to measure leakage on: collected apart, never mixed in; such a file or list, or null",
    )
    schedule: ScheduleSection = Field(ScheduleSection(), description="which timesteps")
    collect: CollectSection = Field(CollectSection(), description="what to record")
    covariance: CovarianceSection = Field(CovarianceSection(), description="how to sum it up")
    project: ProjectSection = Field(ProjectSection(), description="what counts as null; set at most one rule")

    @model_validator(mode="after")
    def no_prompts_beside_images(self) -> "Config":
        if self.collect.images is not None and self.heldout_prompts is not None:
            raise ValueError(
                "heldout_prompts have no images to be noised, as collect.latents: images needs",
                "set heldout_prompts to null; nullbooth inspect A B measures leakage on images that were collected apart",
            )
        return self


def public_settings(config: Config) -> dict[str, Any]:
    """The config as it may be written down: without the credentials in `storage_options`."""
    return config.model_dump(exclude={"storage_options"})


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config file and apply `KEY=VALUE` overrides. Raises ConfigError naming the key and the file."""
    return load_settings(Config, path, overrides)


def build_config(data: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "--set") -> Config:
    """Validate a nested mapping, with `a.b=c` overrides on top."""
    return validate(Config, data, overrides, source)
