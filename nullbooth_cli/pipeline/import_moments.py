"""Covariances in plain files (as `nullspace.export` writes them), made into a store that stage project can use."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import FEATURES, Prompt, Site, Step, Sums
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline.from_sums import SummedCollection, fill_store, require_new, summed_config
from nullbooth_cli.progress import Event
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import model_names
from nullbooth_cli.store import Layout, Store, pack_sums

COVARIANCE = "_covariance.npy"
PART = "imported"
WEIGHTS = {feature: projection for projection, feature in FEATURES.items()}


@dataclass(frozen=True, kw_only=True)
class CovarianceFile:
    """One covariance file: its layer, feature and step, and the number of tokens that it is the mean of."""

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
        raise ConfigError(f"{run} has no covariances", f"name a folder with files <step key>/<layer>/{{q,k,v,out}}{COVARIANCE}")
    steps = sorted({f.step.key: f.step.timestep for f in found}.items(), key=lambda step: -step[1])
    number = {key: index for index, (key, _) in enumerate(steps)}
    return [replace(file, step=replace(file.step, index=number[file.step.key])) for file in found]


def _read(path: Path, folder: Path) -> CovarianceFile:
    feature = path.name.removesuffix(COVARIANCE)
    if feature not in WEIGHTS:
        raise ConfigError(f"{path}: '{feature}' is not a feature", f"use one of {', '.join(WEIGHTS)}")
    described = path.with_name(f"{feature}_metadata.json")
    try:
        metadata = json.loads(described.read_text())
        if metadata.get("centred"):
            raise ConfigError(f"{path} is centred", "a projector needs moments about zero: export with covariance.centred: false")
        step = Step(0, folder.name, float(metadata["timestep"]), float(metadata.get("sigma", np.nan)))
        layer = str(path.parent.relative_to(folder))
        return CovarianceFile(path=path, layer=layer, feature=feature, step=step, tokens=int(metadata["tokens"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{described}: {type(error).__name__}: {error}", "write at least timestep and tokens into it"
        ) from error


def import_covariances(run_folder: Path, out: Store, config: Config) -> Iterator[Event]:
    """Make the covariances of a folder the moments of a new store.

    The files name neither the model nor the prompts, so no model can be compared with the projectors. They have no mean either:
    the store refuses `covariance.centred: true`. Raises ConfigError for a file that cannot be read, and if a site lacks a
    timestep or changes its size; StoreError if the store has a collection already.
    """
    require_new(out)
    found = find_covariances(run_folder)
    steps = tuple(step for _, step in sorted({f.step.index: f.step for f in found}.items()))
    sites = _sites_of(run_folder, found, steps)
    source = f"(imported from {run_folder.name})"
    prompt = Prompt(source)
    config = summed_config(config, out, [prompt]).model_copy(
        update={"model": source, "covariance": config.covariance.model_copy(update={"centred": False})}
    )
    summed = SummedCollection(
        name=PART,
        steps=steps,
        sites=tuple(sites),
        rows=[prompt],
        layout=Layout(keep="moments", batch_size=1, dtype=config.collect.feature_dtype),
        sums=((site, [_sums(files[t], site.dim) for t in range(len(steps))]) for site, files in sites.items()),
        schedule={"scheduler": "imported", "noise": "imported", "values": [step.timestep for step in steps]},
        weights="imported",
        names=model_names(config),
    )
    yield from fill_store(out, config, summed)


def _sites_of(run_folder: Path, found: Sequence[CovarianceFile], steps: Sequence[Step]) -> dict[Site, dict[int, CovarianceFile]]:
    """The file of every step of each site. Raises ConfigError for a site that lacks one."""
    by_site: dict[tuple[str, str], dict[int, CovarianceFile]] = {}
    for file in found:
        by_site.setdefault((file.layer, file.feature), {})[file.step.index] = file
    sites = {}
    for (layer, feature), files in by_site.items():
        if len(files) < len(steps):
            missing = next(step.key for step in steps if step.index not in files)
            raise ConfigError(
                f"{run_folder}: {layer} {feature} has no covariance in {missing}", "put the same files into every step folder"
            )
        site = Site(
            layer=layer,
            feature=feature,
            side="input",
            weights=(f"{layer}.{WEIGHTS[feature]}.weight",),
            timestep_free=False,
            num_tokens=0,
            dim=len(_load(files[0])),
        )
        sites[site] = files
    return sites


def _load(file: CovarianceFile) -> NDArray[np.float64]:
    shape = "write it as one [D, D] array of floating point numbers"
    try:
        matrix = np.load(file.path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file.path}: {error}", shape) from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind != "f":
        raise ConfigError(f"{file.path} is {matrix.dtype} {list(matrix.shape)}", shape)
    return np.asarray(matrix, dtype=np.float64)


def _sums(file: CovarianceFile, dim: int) -> NDArray[np.float64]:
    """The sums that a covariance is the mean of, packed; their mean is unknown (NaN)."""
    matrix = _load(file)
    if len(matrix) != dim:
        raise ConfigError(f"{file.path} has {len(matrix)} dimensions, other steps have {dim}", "export the site again, whole")
    return pack_sums(Sums(matrix * file.tokens, np.full(dim, np.nan), file.tokens))
