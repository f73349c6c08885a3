"""Covariances in plain files (as `nullspace.export` writes them), made into a store that stage project can use."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import (
    EVERY_FEATURE,
    FEATURES,
    MODULATION,
    OTHER,
    Prompt,
    Site,
    Step,
    Sums,
    is_file_name,
    split_weight,
)
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline.from_sums import SummedCollection, fill_store, require_new, summed_config
from nullbooth_cli.progress import Event
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import model_names
from nullbooth_cli.store import Layout, Store, pack_sums

COVARIANCE = "_covariance.npy"
PART = "imported"
METADATA = "write timestep and tokens"
MOST_TOKENS = 2**53  # a float64 counts to here
# The end of a weight's name by its feature, where the metadata does not name the weight: the first that has the feature.
WEIGHTS = {feature: f".{name}.weight" for name, feature in reversed(FEATURES.items())}
WEIGHTS |= {MODULATION: ".linear.weight", OTHER: ".weight"}


@dataclass(frozen=True, kw_only=True)
class CovarianceFile:
    """One covariance file: its layer, feature, weight and step, and the number of tokens that it is the mean of.

    `steps` are (the first, how many) in which its denoiser runs, None for all.
    """

    path: Path
    layer: str
    feature: str
    weight: str
    step: Step
    tokens: int
    steps: tuple[int, int] | None


def find_covariances(run: Path) -> list[CovarianceFile]:
    """The covariance files of a run folder, by step, layer and feature.

    Raises ConfigError for a folder without any, for a file without metadata, and for a field of the metadata that is missing or
    wrong, naming it.
    """
    folders = sorted(folder for folder in run.iterdir() if folder.is_dir()) if run.is_dir() else []
    found = [_read(path, folder) for folder in folders for path in sorted(folder.rglob(f"*{COVARIANCE}"))]
    if not found:
        raise ConfigError(f"{run} has no covariances", f"name a folder with files <step key>/<layer>/{{q,k,v,out}}{COVARIANCE}")
    of_step: dict[str, CovarianceFile] = {}
    for file in found:
        first = of_step.setdefault(file.step.key, file)
        if repr(file.step) != repr(first.step):  # a missing sigma is NaN, which equals nothing
            raise ConfigError(
                f"{file.path} has timestep {file.step.timestep:g} and sigma {file.step.sigma:g}, and in the same folder "
                f"{first.path} has {first.step.timestep:g} and {first.step.sigma:g}",
                "write one timestep and sigma for all files of a step folder",
            )
    steps = sorted(of_step, key=lambda key: -of_step[key].step.timestep)
    number = {key: index for index, key in enumerate(steps)}
    return [replace(file, step=replace(file.step, index=number[file.step.key])) for file in found]


def _read(path: Path, folder: Path) -> CovarianceFile:
    feature = path.name.removesuffix(COVARIANCE)
    if feature not in EVERY_FEATURE:
        raise ConfigError(f"{path}: '{feature}' is not a feature", f"use one of {', '.join(EVERY_FEATURE)}")
    layer = path.parent.relative_to(folder).as_posix()
    if not is_file_name(layer):
        raise ConfigError(f"{path} is not in the folder of a layer", f"name it <step key>/<layer>/{path.name}")
    described = path.with_name(f"{feature}_metadata.json")
    try:
        metadata = json.loads(described.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {described}: {error}", f"{METADATA} into it, as JSON") from error
    if not isinstance(metadata, dict):
        raise ConfigError(f"{described} is not a mapping", f"{METADATA} into it, as JSON")
    if metadata.get("centred"):
        raise ConfigError(f"{path} is centred", "a projector needs moments about zero: export with covariance.centred: false")
    timestep, sigma, tokens = (metadata.get(key) for key in ("timestep", "sigma", "tokens"))
    if not _is_number(timestep) or timestep < 0:
        raise ConfigError(f"{described}: timestep is {timestep!r}", f"{METADATA}: a timestep is a number from 0")
    if sigma is not None and not _is_number(sigma):
        raise ConfigError(f"{described}: sigma is {sigma!r}", "write a number, or leave sigma out")
    if type(tokens) is not int or not 1 <= tokens <= MOST_TOKENS:
        raise ConfigError(f"{described}: tokens is {tokens!r}", f"{METADATA}: tokens is the number of vectors, 1 or more")
    step = Step(0, folder.name, float(timestep), math.nan if sigma is None else float(sigma))
    weight = _weight(layer, feature, metadata.get("weights"))
    steps = metadata.get("steps")
    if steps is not None and not (isinstance(steps, list) and len(steps) == 2 and all(type(n) is int and n >= 0 for n in steps)):
        raise ConfigError(f"{described}: steps is {steps!r}", "write [first, how many], or leave steps out for all")
    return CovarianceFile(
        path=path,
        layer=layer,
        feature=feature,
        weight=weight,
        step=step,
        tokens=tokens,
        steps=None if steps is None else (steps[0], steps[1]),
    )


def _weight(layer: str, feature: str, weights: object) -> str:
    """The weight of a layer and feature: one of the `weights` of the metadata, or the one with diffusers' usual name."""
    named = [name for name in weights if isinstance(name, str)] if isinstance(weights, list) else []
    ours = (name for name in named if name.startswith(layer) and name.endswith(".weight"))
    return next((name for name in ours if split_weight(name) == (layer, feature)), f"{layer}{WEIGHTS[feature]}")


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a finite number. To Python, booleans are numbers too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def import_covariances(run_folder: Path, out: Store, config: Config) -> Iterator[Event]:
    """Make the covariances of a folder the moments of a new store.

    The files name neither the model nor the prompts, so no model can be compared with the projectors. They have no mean either:
    the store refuses `covariance.centred: true`. They stay whole, so `covariance.factor_above` counts for nothing.

    Raises ConfigError for a file that cannot be read or is not a second moment, and if a site lacks a timestep or changes its
    size; StoreError if the store has a collection already.

    Cost: one decomposition a file.
    """
    require_new(out)
    found = find_covariances(run_folder)
    steps = tuple(step for _, step in sorted({f.step.index: f.step for f in found}.items()))
    sites = _sites_of(run_folder, found, steps)
    source = f"(imported from {run_folder.name})"
    prompt = Prompt(source)
    # The noise floor of single precision belongs to files that were rounded to it.
    rounded = any(_load(file).dtype.itemsize < 8 for file in found)
    moments = {"centred": False, "factor_above": None, **({"accumulate": "float32"} if rounded else {})}
    config = summed_config(config, out, [prompt]).model_copy(
        update={"model": source, "covariance": config.covariance.model_copy(update=moments)}
    )
    summed = SummedCollection(
        name=PART,
        steps=steps,
        sites=tuple(sites),
        rows=[prompt],
        layout=Layout(keep="moments", batch_size=1, dtype=config.collect.feature_dtype),
        sums=((site, [_sums(files[t], site.dim) for t in sorted(files)]) for site, files in sites.items()),
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
        one = next(iter(files.values()))
        site = Site(
            layer=layer,
            feature=feature,
            side="input",
            weights=(one.weight,),
            timestep_free=False,
            num_tokens=0,
            dim=len(_load(one)),
            steps=one.steps,
        )
        if one.steps is not None and sum(one.steps) > len(steps):
            raise ConfigError(
                f"{one.path} is of {one.steps[1]} steps from step {one.steps[0]} on, and {run_folder} has {len(steps)} steps",
                "import the whole folder of the run",
            )
        if different := sorted(set(site.own_steps(len(steps))) ^ files.keys()):
            raise ConfigError(
                f"{run_folder}: {layer} {feature} has {'a' if different[0] in files else 'no'} covariance in "
                f"{steps[different[0]].key}",
                "put the same files into every step folder, or only into those that the steps of their metadata name",
            )
        sites[site] = files
    return sites


def _load(file: CovarianceFile) -> NDArray[np.floating]:
    """The matrix of a file, `[D, D]` float32 or float64. Raises ConfigError if it is anything else, or cannot be read."""
    shape = "write it as one [D, D] array of float32 or float64"
    try:
        matrix = np.load(file.path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"cannot read {file.path}: {error}", shape) from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix) or matrix.dtype.str[1:] not in ("f4", "f8"):
        raise ConfigError(f"{file.path} is {matrix.dtype} {list(matrix.shape)}", shape)
    return np.asarray(matrix)


def _require_moment(matrix: NDArray[np.floating], path: Path) -> None:
    """Raise ConfigError for a matrix that no vectors have as their second moment. Cost: a decomposition."""
    hint = "export it again: a second moment is finite, symmetric, and has no negative eigenvalues"
    if not np.isfinite(matrix).all():
        raise ConfigError(f"{path} has values that are not finite", hint)
    trace, precision = float(matrix.diagonal().sum(dtype=np.float64)), float(np.finfo(np.float32).eps)
    skew = float(np.abs(matrix - matrix.T).max())
    if skew > precision * abs(trace):
        raise ConfigError(f"{path} is not symmetric: values across its diagonal differ by up to {skew:.3g}", hint)
    smallest = float(np.linalg.eigvalsh(matrix.astype(np.float64))[0])
    # Rounding every value of a moment to float32 moves its eigenvalues by at most this.
    if smallest < -precision * abs(trace) or trace <= 0:
        raise ConfigError(f"{path} is not the second moment of any vectors: its smallest eigenvalue is {smallest:.3g}", hint)


def _sums(file: CovarianceFile, dim: int) -> NDArray[np.float64]:
    """The sums that a covariance is the mean of, packed; their mean is unknown (NaN)."""
    matrix = _load(file)
    if len(matrix) != dim:
        raise ConfigError(f"{file.path} has {len(matrix)} dimensions, other steps have {dim}", "export the site again, whole")
    _require_moment(matrix, file.path)
    matrix = matrix.astype(np.float64)
    matrix = (matrix + matrix.T) / 2
    return pack_sums(Sums(matrix * file.tokens, np.full(dim, np.nan), file.tokens))
