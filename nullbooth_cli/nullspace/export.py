"""Projectors and moments in the formats of other programs.

- `safetensors`: one factor, or P itself, per site, and a JSON header that names the tensor of every weight.
- `alphaedit`: P of several sites of one size as a tensor `[sites, D, D]` in a .pt file, the format of AlphaEdit's code.
- `folder`: run_YYYYMMDD_HHMMSS/<step key>/<layer>/{q,k,v,out}_{covariance,projection}.npy and _metadata.json.

An export appears under its name when it is complete.
"""

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from nullbooth_cli.datatypes import Site, Sums, choose_sites
from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.formatting import listed
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.pooling import DecompositionSettings, pooled, second_moment
from nullbooth_cli.nullspace.usable import load_projector, provenance, usable_projectors
from nullbooth_cli.store import Store

HEADER = "nullbooth"
HEADER_VERSION = 1


def export_safetensors(store: Store, path: Path, *, dense: bool, dtype: str) -> dict[str, Any]:
    """Write the projectors as `dtype` ("float32" or "float64"), or P itself if `dense`; returns the header.

    The header, JSON under the metadata key "nullbooth", has for each weight `tensor` (its name in the file) and `kind`: "dense"
    (P), "null_basis" (P = F F^T) or "complement" (P = I - F F^T). Raises ConfigError for per-timestep projectors.
    """
    from safetensors.numpy import save_file

    protected = usable_projectors(store)
    tensors: dict[str, Any] = {}
    weights: dict[str, dict[str, Any]] = {}
    for site in store.sites:
        projector = protected[site.weights[0]]
        kind = "dense" if dense else "complement" if projector.is_complement else "null_basis"
        tensors[site.name] = np.ascontiguousarray(projector.dense() if dense else projector.factor, dtype=dtype)
        for weight in site.weights:
            weights[weight] = {"tensor": site.name, "kind": kind, "null_dim": projector.null_dim}
    header = {"version": HEADER_VERSION, "weights": weights, "provenance": provenance(store)}
    with written(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", HEADER: json.dumps(header)})
    return header


def export_alphaedit(store: Store, path: Path, layer: str | None, feature: str | None) -> list[str]:
    """Write P of the chosen sites as one float32 tensor `[sites, D, D]`; returns their names, in its order.

    Raises ConfigError for per-timestep projectors, for sites of several sizes, and if none is chosen.
    """
    import torch

    usable = usable_projectors(store)
    sites = choose_sites(store.sites, layer, feature)
    sizes = sorted({site.dim for site in sites})
    if len(sizes) > 1:
        raise ConfigError(
            f"{len(sites)} sites have {len(sizes)} sizes: {listed(sizes)}",
            "choose sites of one size with layer and feature",
        )
    stack = np.stack([usable[site.weights[0]].dense() for site in sites])
    with written(path) as temporary:
        try:
            torch.save(torch.from_numpy(stack).float(), temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(str(error).splitlines()[0]) from error
    return [site.name for site in sites]


def export_folder(
    store: Store, settings: DecompositionSettings, place: Path, *, rule: str, value: float, only_covariance: bool
) -> Path:
    """Write plain files under `place`; returns the folder that was made. `rule` and `value` are the threshold in force.

    Per-timestep projectors, and covariances alone, have one folder for each timestep; pooled projectors have one, `pooled`. A
    tensor that several projections share is written once and linked for the others. Raises ConfigError if the folder exists, and
    for a moment that is kept as a factor.
    """
    run = place / f"run_{time.strftime('%Y%m%d_%H%M%S')}"
    if is_taken(run):
        raise ConfigError(f"{run} exists", "export again in a second: the name has the time")
    each_step = only_covariance or settings.pooling.scope == "timestep"
    with written(run) as temporary:
        for site in store.sites:
            groups = (
                [[t] for t in range(site.num_recorded(len(settings.steps)))]
                if each_step
                else settings.pooling.groups(site, settings.steps)
            )
            for index, group in enumerate(groups):
                files = _moment_files(store, site, group, settings, weight="count" if each_step else settings.pooling.weight)
                if not only_covariance:
                    files |= _projector_files(store, site, index, rule=rule, value=value)
                # A site that no timestep changes is written for all in which its denoiser runs.
                own = site.own_steps(len(settings.steps))
                steps = [settings.steps[t] for t in (own if site.timestep_free else own[index : index + 1])]
                for step in steps if each_step else [None]:
                    at = (
                        {
                            "step_index": step.index,
                            "key": step.key,
                            "timestep": step.timestep,
                            "sigma": step.sigma if math.isfinite(step.sigma) else None,  # an imported store may have none
                        }
                        if step
                        else {}
                    )
                    _place(temporary / (step.key if step else "pooled"), site, files, at)
    return run


@dataclass(frozen=True, kw_only=True)
class _SiteFiles:
    """The files of one site and group of timesteps: arrays by the ending of their file, and the metadata."""

    arrays: Mapping[str, NDArray[np.float64]]
    metadata: Mapping[str, Any]

    def __or__(self, other: "_SiteFiles") -> "_SiteFiles":
        return _SiteFiles(arrays={**self.arrays, **other.arrays}, metadata={**self.metadata, **other.metadata})


def _moment_files(
    store: Store, site: Site, timesteps: Sequence[int], settings: DecompositionSettings, *, weight: str
) -> _SiteFiles:
    sums = pooled(store, site, timesteps, weight)
    if not isinstance(sums, Sums):
        raise ConfigError(
            f"the moment of {site.name} is kept as a factor of {len(sums.factor)}: it has no [D, D] covariance to write",
            "export the projectors alone, as safetensors, or compute the moments with covariance.factor_above: null",
        )
    covariance = second_moment(sums, centred=settings.centred)
    metadata = {
        "shape": list(covariance.shape),
        "tokens": sums.count,
        "centred": settings.centred,
        "weights": list(site.weights),
        **({} if site.steps is None else {"steps": list(site.steps)}),
    }
    return _SiteFiles(arrays={"covariance": covariance}, metadata=metadata)


def _projector_files(store: Store, site: Site, index: int, *, rule: str, value: float) -> _SiteFiles:
    cut, eigenvalues = store.projectors.read_cut(site, index), store.projectors.read_eigenvalues(site, index)
    metadata = {
        "null_dim": cut.null_dim,
        "threshold": spectrum.threshold(eigenvalues, rule, value, cut.null_dim),
        "rule": {"name": rule, "value": value},
        "leakage": cut.leakage,
        "heldout_leakage": cut.heldout_leakage,
    }
    return _SiteFiles(arrays={"projection": load_projector(store, site, index).dense()}, metadata=metadata)


def _place(folder: Path, site: Site, files: _SiteFiles, at: Mapping[str, Any]) -> None:
    """Write the files of a site for each of its projections; `at` is the metadata of the timestep."""
    first: dict[str, Path] = {}
    for layer, feature in site.projections:
        (folder / layer).mkdir(parents=True, exist_ok=True)
        for ending, values in files.arrays.items():
            path = folder / layer / f"{feature}_{ending}.npy"
            if ending in first:
                os.link(first[ending], path)
            else:
                np.save(path, values)
                first[ending] = path
        text = json.dumps({"layer": layer, "feature": feature, "side": site.side, **at, **files.metadata}, indent=2)
        (folder / layer / f"{feature}_metadata.json").write_text(text + "\n")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` at the end: neither an error nor a kill leaves a partial export under that name.

    Raises ResourceError if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{path.name}.", suffix=".partial", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error


def is_taken(path: Path) -> bool:
    """Whether something of this name is there already. Raises ResourceError for a name that cannot be looked up."""
    try:
        return path.exists()
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: Exception) -> ResourceError:
    return ResourceError(f"cannot write {path}: {error}", "check the path, its permissions and the free space")
