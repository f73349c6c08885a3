"""Covariances that lie in plain files (see `exporting`), made into a store that `project` goes on from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nullbooth_cli.datatypes import FEATURES, Prompt, Site, Step, Sums
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.pipeline.run import Run, start_stage
from nullbooth_cli.pipeline.stages import execute
from nullbooth_cli.progress import Event
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import model_names
from nullbooth_cli.store import Layout, Store, create_collection, pack_sums

COVARIANCE = "_covariance.npy"
PART = "imported"
WEIGHTS = {feature: projection for projection, feature in FEATURES.items()}


@dataclass(frozen=True)
class CovarianceFile:
    """One covariance file."""

    path: Path
    layer: str
    feature: str
    step: Step
    tokens: int


def find_covariances(run: Path) -> list[CovarianceFile]:
    """The covariance files of a run folder, by step, layer and feature.

    Raises ConfigError for a folder without any, a file without metadata, and metadata without timestep or tokens, naming it.
    """
    folders = sorted(folder for folder in run.iterdir() if folder.is_dir()) if run.is_dir() else []
    found = [_read(path, folder) for folder in folders for path in sorted(folder.rglob(f"*{COVARIANCE}"))]
    if not found:
        raise ConfigError(f"{run} holds no covariances", f"expected {run}/<step key>/<layer>/{{q,k,v,out}}{COVARIANCE}")
    steps = sorted({f.step.key: f.step.timestep for f in found}.items(), key=lambda step: -step[1])
    number = {key: index for index, (key, _) in enumerate(steps)}
    return [
        CovarianceFile(f.path, f.layer, f.feature, Step(number[f.step.key], f.step.key, f.step.timestep, f.step.sigma), f.tokens)
        for f in found
    ]


def _read(path: Path, folder: Path) -> CovarianceFile:
    feature = path.name.removesuffix(COVARIANCE)
    if feature not in WEIGHTS:
        raise ConfigError(f"{path}: '{feature}' is no feature", f"features are {', '.join(WEIGHTS)}")
    described = path.with_name(f"{feature}_metadata.json")
    try:
        metadata = json.loads(described.read_text())
        if metadata.get("centred"):
            raise ConfigError(f"{path} is centred", "a projector needs moments about zero: export with covariance.centred: false")
        step = Step(0, folder.name, float(metadata["timestep"]), float(metadata.get("sigma", np.nan)))
        return CovarianceFile(path, str(path.parent.relative_to(folder)), feature, step, int(metadata["tokens"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{described}: {type(error).__name__}: {error}", "it says at least timestep and tokens") from error


def import_covariances(run_folder: Path, out: Store, config: Config) -> Iterator[Event]:
    """Make the covariances of a folder the moments of a new store; what they were made from is not known to it.

    The mean is not in such files: the store refuses `covariance.centred: true`. Raises ConfigError for what cannot be read, or
    if a site lacks a timestep or changes its size; StoreError if the store holds something already.
    """
    if "collect" in out.records:
        raise StoreError(f"{out.url} holds a collection already", "name another place with -s; nothing was changed")
    found = find_covariances(run_folder)
    steps = tuple(step for _, step in sorted({f.step.index: f.step for f in found}.items()))
    by_site: dict[tuple[str, str], dict[int, CovarianceFile]] = {}
    for file in found:
        by_site.setdefault((file.layer, file.feature), {})[file.step.index] = file
    sites = {}
    for (layer, feature), files in by_site.items():
        if len(files) < len(steps):
            missing = next(step.key for step in steps if step.index not in files)
            raise ConfigError(
                f"{run_folder}: {layer} {feature} has no covariance in {missing}", "every step folder needs the same files"
            )
        dim = _load(files[0]).shape[0]
        sites[Site(layer, feature, "input", (f"{layer}.{WEIGHTS[feature]}.weight",), False, 0, dim)] = files
    prompts = (Prompt(f"(imported from {run_folder.name})"),)
    config = config.model_copy(
        update={
            "model": f"(imported from {run_folder.name})",
            "store": out.url,
            "original_knowledge_prompts": [prompt.text for prompt in prompts],
            "heldout_prompts": None,
            "collect": config.collect.model_copy(update={"keep": "moments"}),
            "covariance": config.covariance.model_copy(update={"centred": False}),
        }
    )
    layout = Layout("moments", 1, config.collect.feature_dtype)
    run = Run(config, prompts, out)
    out.write_schedule(steps)
    start_stage(run, "schedule", {"scheduler": "imported", "noise": "imported", "values": [step.timestep for step in steps]})
    create_collection(out, sites=tuple(sites), num_steps=len(steps), num_rows=1, layout=layout)
    out.write_rows(0, prompts)
    part = out.moments.part(PART)
    part.create(sites, len(steps))
    part.checkpoint(((site, [_sums(files[t], site.dim) for t in range(len(steps))]) for site, files in sites.items()), [0])
    out.progress.commit("collect", [0])
    start_stage(run, "collect", {"weights": "imported"}, layout=vars(layout), model=model_names(config))
    yield from execute("covariance", run)


def _load(file: CovarianceFile) -> Any:
    try:
        matrix = np.load(file.path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file.path}: {error}", "it is a [D, D] array of floating point numbers") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind != "f":
        raise ConfigError(f"{file.path} is {matrix.dtype} {list(matrix.shape)}", "it is a [D, D] array of floating point numbers")
    return matrix.astype(np.float64)


def _sums(file: CovarianceFile, dim: int) -> Any:
    matrix = _load(file)
    if len(matrix) != dim:
        raise ConfigError(f"{file.path} has {len(matrix)} dimensions, other steps have {dim}", "a site has one size")
    return pack_sums(Sums(matrix * file.tokens, np.full(dim, np.nan), file.tokens))
