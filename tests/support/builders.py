"""Builders that many tests share: a small config, its stages run through the library, and looks into its store.

Eight prompts and four steps are enough: every property tested with them holds or fails at any size.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Prompt, Site, Sums
from nullbooth_cli.pipeline import stages
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.settings.knowledge import knowledge_prompts
from nullbooth_cli.store import Store

ROOT = Path(__file__).parent.parent.parent
PROMPTS = [
    "a red circle on a blue background",
    "a green square on a white background",
    "a yellow star at the left of a black background",
    "a cyan ring on a gray background",
    "a purple cross on a red background",
    "a pink triangle at the top of a green background",
    "a blue circle on a yellow background",
    "an orange star on a purple background",
]
# One layer, two steps, a prompt a unit: the quickest run that has several units.
MID = {"collect__cross_attention_layers": ["mid_block*"], "collect__batch_size": 1, "schedule__num_denoising_steps": 2}
CIRCLES = ["a red circle on a blue background", "a blue circle on a yellow background", "a green circle on a white background"]
# Of the text alone: no denoising for the features, so that only the maps take time.
TEXT_ONLY = {"collect__collect_features__q_features": False, "collect__collect_features__out_features": False}
MANY = [f"{prompt}, {more}" for more in ("small", "large", "very large", "tiny", "huge") for prompt in PROMPTS]


def small_config(store: Path, **changes: Any) -> Config:
    """Eight prompts, four steps, three prompts a unit; `changes` are dotted keys with `__` for the dot.

    A guidance scale of None is left out: there are classes that take none.
    """
    data: dict[str, Any] = {
        "store": str(store),
        "original_knowledge_prompts": PROMPTS,
        "schedule": {"num_denoising_steps": 4, "sampler_strategy": "DPM++ 2M Karras"},
        "collect": {"batch_size": 3, "feature_dtype": "float32", "guidance_scale": 4.0},
        "project": {"relative_threshold": 0.05},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    if data["collect"].get("guidance_scale", 0) is None:
        del data["collect"]["guidance_scale"]
    return build_config(data)


def execute(config: Config, *wanted: str, store: Store | None = None, **control: Any) -> Store:
    """Run stages through the library, as the commands do."""
    store = store or Store.open_or_create(config.store, config.model_dump())
    prompts = prompts_of(config)
    for stage in wanted:
        with store.lock():
            for _ in stages.execute(stage, Run(config=config, prompts=prompts, store=store, device="cpu", **control)):
                pass
    return store


def first_half(folder: Path) -> tuple[Config, Store]:
    """A finished store of the first half of the prompts, with another threshold, and its config."""
    config = small_config(folder / "run.zarr", original_knowledge_prompts=PROMPTS[:4], project__relative_threshold=0.02)
    return config, execute(config, "collect", "covariance", "project")


def per_timestep(config: Config, store: Store, folder: Path) -> tuple[Config, Store]:
    """A copy of a finished store that is projected for each timestep, and its config."""
    shutil.copytree(store.path, folder / "run.zarr")
    project = config.project.model_copy(update={"scope": "timestep"})
    stepwise = config.model_copy(update={"store": str(folder / "run.zarr"), "project": project})
    return stepwise, execute(stepwise, "project", force=True)


def project_again(config: Config, store: Store, **project: Any) -> None:
    """Project again under other settings of `project`; a rule takes the place of the one in force."""
    data = config.model_dump()
    if set(project) & {"nullspace_threshold", "threshold_percent", "energy", "target_leakage", "null_dim"}:
        project["relative_threshold"] = None
    execute(build_config({**data, "project": {**data["project"], **project}}), "project", store=store, force=True)


def features_at(store: Store, site: Site, timestep: int, unit: int) -> NDArray[Any]:
    """The vectors of one recorded timestep and unit, `[b, L, D]` as stored."""
    block = next(block for block in store.blocks(site) if timestep in block)
    values: NDArray[Any] = store.features.read(site, block, unit)[timestep - block.start]
    return values


def vectors_at(store: Store, site: Site, timestep: int) -> NDArray[Any]:
    """The vectors of one recorded timestep of all units, `[N, L, D]` as stored."""
    return np.concatenate([features_at(store, site, timestep, unit) for unit in range(len(store.progress.done("collect")))])


def set_moment(store: Store, site: Site, timestep: int, sums: Sums) -> None:
    """Put other sums in the place of one recorded timestep."""
    block = next(block for block in store.blocks(site) if timestep in block)
    store.moments.write(site, block, [sums if t == timestep else store.moments.read_one(site, t) for t in block])


def prompts_of(config: Config) -> tuple[Prompt, ...]:
    return knowledge_prompts(config)


def states_of(config: Config) -> dict[str, str]:
    return {name: found.state for name, found in stage_states(config, prompts_of(config), Store.open(config.store)).items()}
