"""The model that a training run starts from: what its recipe names as `after`, in place of the untrained model.

A pipeline folder is loaded instead of the recipe's model. LoRAs and other trained files are put onto it, the earliest first.

Under a store, the model must be the end of the chain that the store remembers. Its weights tell that for a pipeline. Where files
are put onto it, rounding differs between devices and dtypes: then the weights before tell, and the digest of the files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.after import After
from nullbooth_cli.model.chain import Chain, digest_of
from nullbooth_cli.model.denoisers import denoiser_weights
from nullbooth_cli.model.protocols import Pipeline, Tokenizer
from nullbooth_cli.model.sources import Source
from nullbooth_cli.model.trained_files import Base, TrainedFiles
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.nullspace.usable import check_model
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.store import tasks_of
from nullbooth_cli.training.projector_source import ProjectorSource


class Store(ProjectorSource, Protocol):
    """The source of a run's constraint."""

    def projectors(self, model: Mapping[str, torch.Tensor] | None = None) -> Mapping[str, Projector]:
        """As in ProjectorSource; without a model they are compared with none."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The model at `place`. `digest` is that of the files that are put onto a pipeline; None for a pipeline alone."""

    place: str
    chain: Chain
    digest: str | None

    @classmethod
    def of(cls, recipe: Recipe) -> "Earlier | None":
        """What a recipe starts from; None without `after`. Cost: one read of the files that are put onto a pipeline.

        Raises ConfigError for a place without a model, for one that was trained on another model than the recipe's, and as
        `Chain.at` does.
        """
        if recipe.after is None:
            return None
        if not Path(recipe.after).exists():
            raise ConfigError(
                f"after: no model at {recipe.after}", "set it to the output of a training run, a LoRA, or a pipeline folder"
            )
        chain, base = Chain.at(Path(recipe.after), allow_pickle=recipe.allow_pickle), Base.of(recipe)
        for each in chain.additions:
            if isinstance(each.files, TrainedFiles):
                each.files.require_base(base)
        if chain.base is not None and not chain.base.is_same(base):
            raise ConfigError(
                f"{recipe.after} was trained on {chain.base.name}, and model is {base.name}", f"set model to {chain.base.model}"
            )
        return cls(place=recipe.after, chain=chain, digest=digest_of(chain.additions))

    def record(self, folder: Path) -> After:
        """What a file in a folder records of it."""
        return After.of(self.place, folder, digest=self.digest, prompts=self.chain.prompts)

    def add_tokens(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Give the tokenizers of its source the words that are put onto it."""
        for each in self.chain.additions:
            if isinstance(each.files, TrainedFiles) and each.files.word is not None:
                each.files.word.add_to(tokenizers)

    def require_remembered(self, store: Store) -> tuple[str, ...]:
        """The prompts of what a store remembers. Raises ConfigError if this is not the end of its chain, by the files alone."""
        if not isinstance(store, OpenStore):
            return ()
        tasks = tasks_of(store.store)
        if not tasks:
            raise ConfigError(
                f"{store.url} does not remember {self.place}: training after it would change what it was taught",
                f"let the store remember {self.place} first",
            )
        if self.digest is not None and tasks[-1].digest != self.digest:
            raise ConfigError(
                f"{self.place} is not the last that {store.url} remembers: that is {tasks[-1].name}, {tasks[-1].source}",
                f"set after to {tasks[-1].source}, or let the store remember {self.place} as it is now",
            )
        return tuple(prompt.text for task in tasks for prompt in task.store.prompts())

    def load_into(self, pipe: Pipeline, store: Store | None) -> ProjectorSource | None:
        """Put its files onto the pipeline that its source names; returns the source of projectors for what that makes.

        Raises ConfigError for files that do not fit, and for a pipeline that is not in the chain which the store remembers.
        Cost: one read of the files, and of the weights that the store protects.
        """
        found: ProjectorSource | None = store
        if self.chain.additions and isinstance(store, OpenStore):
            check_model(store.store, denoiser_weights(pipe), among="before the end")
            found = _Compared(store)
        for each in self.chain.additions:
            each.load_into(pipe)
        return found


def source_of(recipe: Recipe, earlier: Earlier | None) -> Source:
    """The pipeline to load: that of the recipe, or the folder that it starts from."""
    if earlier is None or earlier.chain.pipeline is None:
        return Source.of(recipe)
    return Source(str(earlier.chain.pipeline), local_files_only=recipe.local_files_only, allow_pickle=recipe.allow_pickle)


@dataclass(frozen=True)
class _Compared:
    """A store for a model that was compared with its chain before files were put onto it."""

    store: OpenStore

    def sites(self) -> Sequence[Site]:
        return self.store.sites()

    def moment(self, site: Site) -> Moment:
        return self.store.moment(site)

    def heldout_moment(self, site: Site) -> Moment | None:
        return self.store.heldout_moment(site)

    def projectors(self, model: Mapping[str, torch.Tensor]) -> Mapping[str, Projector]:
        return self.store.projectors()
