"""The Python interface: `import nullbooth_cli as nb; store = nb.open_store("runs/toy.zarr")`.

Everything is read, nothing written. What comes back are numpy arrays; torch is imported only when it is given a tensor of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site, Step
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.nullspace.usable import load_projector, provenance, usable_projectors
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.store import Store

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Moment:
    """The vectors of a site: `second_moment` `[D, D]`, the mean of x x^T about zero, exactly symmetric; `mean` `[D]`; how many.

    Both arrays are float64. The mean of an imported store is NaN: the files did not say it.
    """

    second_moment: NDArray[np.float64]
    mean: NDArray[np.float64]
    count: int


def open_store(url: str | Path, storage_options: Mapping[str, Any] | None = None) -> "OpenStore":
    """Open a store for reading: a folder, or a URL with what its client takes.

    Raises StoreError if there is none, or it is damaged or of a newer format. Cost: one small file.
    """
    return OpenStore(Store.open(url, options=storage_options))


class OpenStore:
    """An open store. A site may be given as a `Site` or by its name, `<layer>.<feature>`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url

    @property
    def store(self) -> Store:
        """The store below it, which evaluation and reports read."""
        return self._store

    def sites(self) -> tuple[Site, ...]:
        """Every recording: `name`, `layer`, `feature`, `dim`, and `weights`, the parameters that receive this tensor."""
        return self._store.sites

    def schedule(self) -> tuple[Step, ...]:
        """The denoising steps, `index`, `key`, `timestep` and `sigma` each."""
        return self._store.schedule()

    def prompts(self) -> tuple[str, ...]:
        """The texts of the prompts that were collected."""
        return tuple(prompt.text for prompt in self._store.prompts())

    def moment(self, site: Site | str, step: int | None = None) -> Moment:
        """The second moment of a site at one step of the schedule (by its index), or over all of them.

        A site that no timestep changes has the same at every step. Raises StageError before `covariance` is complete.
        Cost: 8 D^2 bytes read for each timestep that is added up.
        """
        self._require("covariance")
        found = self._site(site)
        chosen = None if step is None else [self._recorded(found, step)]
        sums = pooled(self._store, found, chosen)
        return Moment(second_moment(sums), sums.mean, sums.count)

    def projector(self, site: Site | str, step: int | None = None) -> Projector:
        """The projector of a site; with `project.scope: timestep` the one of that step, which is for looking only.

        Raises StageError before `project` is complete, ConfigError for a step where the projectors are pooled, and the reverse.
        Cost: 8 D^2 bytes read, at most 4 D^2 bytes kept.
        """
        self._require("project")
        found = self._site(site)
        pooled_scope = self._store.config["project"]["scope"] == "pooled"
        if pooled_scope != (step is None):
            have = "pooled: there is one for each site" if pooled_scope else "one per timestep"
            raise ConfigError(
                f"the projectors of {self.url} are {have}", "name a step only where there is one projector for each"
            )
        return load_projector(self._store, found, 0 if step is None else self._recorded(found, step))

    def projectors(self, model: "nn.Module | Mapping[str, Any] | None" = None) -> dict[str, Projector]:
        """The projector of every protected weight, by its parameter name: what an edit or a training may use.

        `model`, a denoiser (`pipe.unet`) or its `state_dict()`, is compared with the weights that were collected from. Raises
        ConfigError for another model, naming what differs, and for per-timestep projectors. Weights that share their input share
        one object.
        """
        self._require("project")
        tensors = model if model is None or isinstance(model, Mapping) else model.state_dict()
        return usable_projectors(self._store, tensors)

    def provenance(self) -> dict[str, Any]:
        """Everything that the projectors came from, as a JSON document: model, weights, prompts, schedule, settings, packages."""
        self._require("project")
        return provenance(self._store)

    def _require(self, stage: str) -> None:
        states = stage_states(build_config(self._store.config), self._store.prompts(), self._store)
        require(states, stage, self.url)

    def _site(self, site: Site | str) -> Site:
        if isinstance(site, Site):
            return site
        by_name = {found.name: found for found in self._store.sites}
        if site not in by_name:
            raise ConfigError(f"no site {site} in {self.url}", "sites() names them")
        return by_name[site]

    def _recorded(self, site: Site, step: int) -> int:
        if not 0 <= step < self._store.num_steps:
            raise ConfigError(f"no step {step}", f"the schedule of {self.url} has steps 0 to {self._store.num_steps - 1}")
        return 0 if site.timestep_free else step
