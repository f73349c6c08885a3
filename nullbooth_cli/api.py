"""The Python interface: run the stages, and read the store that they make.

    import nullbooth_cli as nb

    store = nb.run("configs/nullbooth.yaml")        # or nb.open_store("runs/toy.zarr"), for one that is finished
    projectors = store.projectors(pipe.unet)

An open store is read, never written. Arrays are numpy, float64; torch is imported by `run`, and where a model is given.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site, Step
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.budget import TaskBudget, budgets
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.pooling import edited, moment_of, pooled
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.nullspace.usable import load_projector, provenance, usable_projectors
from nullbooth_cli.pipeline.project import decomposition_of
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.progress import Event
from nullbooth_cli.settings.config import STAGES, Config, build_config, load_config
from nullbooth_cli.settings.knowledge import knowledge_prompts, with_heldout_texts
from nullbooth_cli.store import Store

if TYPE_CHECKING:
    from torch import nn

    from nullbooth_cli.evaluation.lora_drift import LoraDrift


def run(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    stages: Sequence[str] = STAGES,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    force: bool = False,
    repair: bool = False,
    limit: int | None = None,
) -> "OpenStore":
    """Run stages in order (schedule, collect, covariance, project), and open the store that they make.

    `config` is a Config, a mapping of its keys, or the path of a file. A stage that is complete is left alone, and one that was
    interrupted is resumed. `force` replaces stages that are stale; a single stage is then done again whatever its state. `repair`
    reads all that collect or covariance wrote, and does damaged units again. `limit` is a number of units, for a single stage.
    `on_event` is called with `Begin`, `Progress` and `Note`.

    Raises ConfigError for wrong settings or prompts, StageError for a stage that is stale or comes too early, StoreError for a
    store that is damaged or in use, ResourceError if disk, memory or a device is missing, ModelError or DataError for what cannot
    be recorded. Cost: that of the stages; the store is locked meanwhile.
    """
    from nullbooth_cli.pipeline.open_run import open_run
    from nullbooth_cli.pipeline.stages import check_possible, check_request, run_stages

    wanted = (stages,) if isinstance(stages, str) else tuple(stages)
    check_request(wanted, limit=limit, repair=repair)
    found = with_heldout_texts(_config_of(config))
    create, prompts = wanted[0] in ("schedule", "collect"), knowledge_prompts(found)
    check_possible(wanted, found, prompts, device=device)
    with open_run(found, prompts, create=create, device=device, force=force, limit=limit, repair=repair) as running:
        for event in run_stages(wanted, running):
            on_event(event)
    return open_store(found.store, found.storage_options)


def _config_of(config: Config | Mapping[str, Any] | str | Path) -> Config:
    if isinstance(config, Config):
        return config
    return load_config(config) if isinstance(config, str | Path) else build_config(config, source="the config")


def open_store(url: str | Path, storage_options: Mapping[str, Any] | None = None) -> "OpenStore":
    """Open a store to read it: a folder, or a URL with the options of its client.

    Raises StageError if there is none, StoreError if it is damaged or of a newer format. Cost: one small file.
    """
    return OpenStore(Store.open(url, options=storage_options))


class OpenStore:
    """An open store. A site may be given as a `Site` or by its name, `<layer>.<feature>`.

    Whether a stage is complete is read when it is first needed, and once it is, not again: one object for every unit of every
    stage. Every later call reads one small object, and follows a run that has changed the store since.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._complete: frozenset[str] = frozenset()
        self.url = store.url

    @property
    def config(self) -> Config:
        """The config that the store was made with, without credentials."""
        return build_config(self._store.config)

    @property
    def store(self) -> Store:
        """The store itself, which evaluation and reports read."""
        return self._store

    def sites(self) -> tuple[Site, ...]:
        """Every site: `name`, `layer`, `feature`, `dim`, and `weights`, the parameters that receive this tensor."""
        return self._store.sites

    def schedule(self) -> tuple[Step, ...]:
        """The denoising steps, `index`, `key`, `timestep` and `sigma` each."""
        self._follow()
        return self._store.schedule()

    def prompts(self) -> tuple[str, ...]:
        """The texts of the prompts that were collected."""
        self._follow()
        return tuple(prompt.text for prompt in self._store.prompts())

    def moment(self, site: Site | str, step: int | None = None) -> Moment:
        """The second moment of a site at one step of the schedule (by its index), or over all of them, with hard tasks.

        A timestep-free site has the same moment at every step. Raises StageError before `covariance` is complete, ConfigError
        for a step in which the denoiser of the site does not run.
        Cost: 8 D^2 bytes read for each timestep that is added up.
        """
        self.require("covariance")
        found = self._site(site)
        chosen = None if step is None else [self._recorded(found, step)]
        return _moment(self._store, found, chosen)

    def edited(self, site: Site | str) -> NDArray[np.float64] | None:
        """K1 K1^T `[D, D]` of the edits that the store remembers softly, which a further edit leaves as they are; None without.

        Raises StageError before `covariance` is complete. Cost: as of `moment`.
        """
        self.require("covariance")
        return edited(self._store, self._site(site))

    def heldout_moment(self, site: Site | str) -> Moment | None:
        """The second moment of a site over all steps, of the held-out prompts; None without any.

        Raises StageError before `covariance` is complete. Cost: as of `moment`.
        """
        self.require("covariance")
        heldout = self._store.heldout() if self.config.heldout_prompts is not None else None
        return None if heldout is None else _moment(heldout, self._site(site), None)

    def projector(self, site: Site | str, step: int | None = None) -> Projector:
        """The projector of a site; with `project.scope: timestep` the one of that step, which is for analysis only.

        Raises StageError before `project` is complete, ConfigError for a step where the projectors are pooled, and the reverse.
        Cost: 8 D^2 bytes read, at most 4 D^2 bytes kept.
        """
        self.require("project")
        found = self._site(site)
        pooled_scope = self._store.config["project"]["scope"] == "pooled"
        if pooled_scope != (step is None):
            have = "pooled: there is one for each site" if pooled_scope else "one per timestep"
            raise ConfigError(
                f"the projectors of {self.url} are {have}", "name a step only where there is one projector for each"
            )
        return load_projector(self._store, found, 0 if step is None else self._recorded(found, step))

    def projectors(self, model: "nn.Module | Mapping[str, Any] | None" = None) -> dict[str, Projector]:
        """The projector of every protected weight, by its parameter name: what an edit or a training run may use.

        `model`, a denoiser (`pipe.unet`) or its `state_dict()`, is compared with the weights that were collected from. Raises
        ConfigError for another model, naming what differs, and for per-timestep projectors. Cost: 8 D^2 bytes read for each site,
        and one read of the model's protected weights.
        """
        self.require("project")
        tensors = model if model is None or isinstance(model, Mapping) else model.state_dict()
        return usable_projectors(self._store, tensors)

    def tasks(self) -> tuple[TaskBudget, ...]:
        """What the store remembers, in order: what every hard task took of each null space, and its own energy in what was left.

        Raises StageError before `project` is complete. Cost: 40 D bytes read for each projector and hard task.
        """
        self.require("project")
        config = self.config
        return tuple(budgets(self._store, decomposition_of(config, self._store), *config.project.rule(), self._store.sites))

    def provenance(self) -> dict[str, Any]:
        """The origin of the projectors, as a JSON document: model, weights, prompts, schedule, settings, packages.

        Raises StageError before `project` is complete.
        """
        self.require("project")
        return provenance(self._store)

    def inspect_lora(self, path: str | Path, *, device: str | None = None) -> "LoraDrift":
        """What a finished LoRA does to the preserved prompts, module by module: nothing is drawn, and no pipeline is loaded.

        `path` is a file of kohya, LyCORIS, diffusers, PEFT or another trainer, a folder with one, or a training output. The base
        is the model of the store's config; only one that is a single file is loaded as a whole, on `device`.

        Raises StageError before `project` is complete, ConfigError for what is no LoRA of that base, for another base than that
        of the collection, and for per-timestep projectors. Cost: one read of the file, and of the moments, eigenvectors and base
        weights of the modules that the store protects.
        """
        from nullbooth_cli.collect.edited_model import open_before
        from nullbooth_cli.collect.open_model import open_base
        from nullbooth_cli.evaluation.lora_drift import measure

        self.require("project")
        config = self.config
        return measure(
            self._store,
            Path(path),
            open_base(config, device),
            allow_pickle=config.allow_pickle,
            open_before=partial(open_before, config, device=device),
        )

    def require(self, stage: str) -> None:
        """Raise StageError unless a stage is complete. A complete stage is read again only after a run."""
        self._follow()
        if stage not in self._complete:
            states = stage_states(self.config, self._store.prompts(), self._store)
            require(states, stage, self.url)
            self._complete = frozenset(name for name, state in states.items() if state.is_done)

    def _follow(self) -> None:
        """Forget what was read before if a run has changed the store since."""
        if self._store.reload_if_changed():
            self._complete = frozenset()

    def _site(self, site: Site | str) -> Site:
        if isinstance(site, Site):
            return site
        by_name = {found.name: found for found in self._store.sites}
        if site not in by_name:
            raise ConfigError(f"no site {site} in {self.url}", "use a name that sites() lists")
        return by_name[site]

    def _recorded(self, site: Site, step: int) -> int:
        if not 0 <= step < self._store.num_steps:
            raise ConfigError(f"no step {step} in {self.url}", f"use a step from 0 to {self._store.num_steps - 1}")
        own = site.own_steps(self._store.num_steps)
        if step not in own:
            raise ConfigError(
                f"{site.name} has no step {step}: its denoiser does not run there", f"use a step from {own[0]} to {own[-1]}"
            )
        return 0 if site.timestep_free else own.index(step)


def _moment(store: Store, site: Site, steps: Sequence[int] | None) -> Moment:
    return moment_of(pooled(store, site, steps))
