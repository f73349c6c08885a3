"""The settings that decide the result of a stage, and their digest.

A stage is stale when the fingerprint that is stored with it differs from that of the present settings.
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.pipeline_inputs import KEY, recorded_inputs


def model_names(config: Config) -> dict[str, Any]:
    """The names of the model. A change of them alone makes nothing stale: the weights are compared."""
    return {key: getattr(config, key) for key in ("model", "revision", "variant")}


def stage_settings(config: Config, stage: str, keep: str | None = None) -> dict[str, Any]:
    """The settings that decide the result of a stage, in addition to the results of the stages before it.

    Settings that decide only speed or layout are left out (`batch_size`, `compression`), and so are the places of model and
    images: their contents are compared when they are loaded. Collect depends on the precision of what it stores, features or
    sums (`keep`, by default the config's). `covariance.centred` belongs to `project`: the stored sums serve both values.
    """
    if stage == "schedule":
        return _flat(config.schedule, "schedule")
    if stage == "collect":
        keep = keep or config.collect.keep
        unused = ("feature_dtype",) if keep == "moments" else ()
        beside = ("visual_attention_map", "attention_prompts", "attention_layers", "attention_timesteps")
        collect = _flat(
            config.collect,
            "collect",
            without=("batch_size", "compression", "keep", "images", "pipeline_inputs", *beside, *unused),
        )
        if not config.collect.linear_layers:  # stores that were made before there was such a key
            del collect["collect.linear_layers"]
        return {
            "dtype": config.dtype,
            **collect,
            **input_settings(config),
            **({} if keep == "features" else sums_settings(config)),
        }
    if stage == "covariance":
        return sums_settings(config)
    rule, value = config.project.rule()
    empty = {} if config.project.empty == "refuse" else {"project.empty": config.project.empty}
    return {**decomposition_settings(config), "project.rule": rule, f"project.{rule}": value, **empty}


def sums_settings(config: Config) -> dict[str, Any]:
    """The settings that decide how vectors are summed; those of factors only where there are any."""
    section = config.covariance
    factors = {} if section.factor_above is None else _flat(section, "covariance", without=("accumulate", "centred"))
    return {"covariance.accumulate": section.accumulate, **factors}


def size_settings(config: Config) -> dict[str, Any]:
    """Settings that the schedule of a flow-matching model can depend on: its pipeline shifts the sigmas by the image's size.

    Some pipelines take this size from a picture that they are given. Prompts that are inputs do not matter.
    """
    inputs = {name: value for name, value in input_settings(config).items() if "prompt" not in name}
    return {"collect.height": config.collect.height, "collect.width": config.collect.width, **inputs}


def input_settings(config: Config) -> dict[str, Any]:
    """The fixed inputs of the pipeline, files by their digests; none where there are none. Cost: one read of every file."""
    return {f"{KEY}.{name}": value for name, value in recorded_inputs(config.collect.pipeline_inputs).items()}


def decomposition_settings(config: Config) -> dict[str, Any]:
    """The settings of project that decide the decomposition; a new threshold changes none of them."""
    section = config.project
    return {
        "covariance.centred": config.covariance.centred,
        "project.scope": section.scope,
        "project.timesteps": list(section.timesteps) if section.timesteps else None,
        "project.pool_weight": section.pool_weight,
    }


def _flat(section: BaseModel, prefix: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name in without:
            continue
        if isinstance(value, BaseModel):
            flat |= _flat(value, f"{prefix}.{name}")
        else:
            flat[f"{prefix}.{name}"] = value
    return flat


def fingerprint(values: object) -> str:
    """SHA-256 of the values as canonical JSON, cut to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
