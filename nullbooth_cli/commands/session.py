"""Finds the config, the prompts and the store that the options mean."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.find_config import configure
from nullbooth_cli.commands.options import Common
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.knowledge import knowledge_prompts, with_heldout_texts
from nullbooth_cli.store import Backing, Store, is_url, open_backing

if TYPE_CHECKING:
    from nullbooth_cli.nullspace.budget import TaskBudget


@dataclass(frozen=True, kw_only=True)
class Session:
    """A command's config, prompts and store; `url` is the store's folder or URL, `options` name config and store in a command.

    `is_default` is that of `Configured`.
    """

    config: Config
    url: str
    prompts: tuple[Prompt, ...]
    terminal: Terminal
    options: tuple[str, ...]
    common: Common
    is_default: bool = False

    def open(self, *, write: bool = False) -> Store:
        """The store. Raises StageError if nothing was collected into it yet."""
        return Store.open(self.url, write=write, options=self.config.storage_options)

    def open_finished(self) -> Store:
        """The store. Raises StageError unless its projectors are complete."""
        store = self.open()
        require(stage_states(self.config, self.prompts, store), "project", self.url)
        return store

    def tasks(self) -> "tuple[TaskBudget, ...]":
        """The tasks of a store whose projectors are complete, with their budget under the threshold in force."""
        from nullbooth_cli.nullspace.budget import budgets
        from nullbooth_cli.pipeline.project import decomposition_of

        store = self.open()
        return tuple(budgets(store, decomposition_of(self.config, store), *self.config.project.rule(), store.sites))

    def open_if_there(self) -> Store | None:
        """The store; None if there is none yet."""
        return self.open() if self._exists() else None

    def backing(self, *, read_only: bool = False) -> Backing:
        """The place of the store, whether or not a store is there."""
        return open_backing(self.url, self.config.storage_options, read_only=read_only)

    def _exists(self) -> bool:
        return self.backing(read_only=True).exists()


def start(common: Common) -> Session:
    """Find and read the config and the prompts, and find the place of the store."""
    # Only the first process of a launch prints.
    terminal = Terminal(as_json=common.as_json, quiet=common.quiet, silent=os.environ.get("RANK", "0") != "0")
    given = configure(common)
    config = with_heldout_texts(given.config)
    url = config.store if is_url(config.store) else str(Path(config.store))
    open_backing(url, config.storage_options, read_only=True)  # refuses a URL with credentials before anything shows it
    if common.verbose:
        terminal.note(f"config {given.source}; store {url}")
    prompts = knowledge_prompts(config) if given.prompts is None else given.prompts
    return Session(
        config=config,
        url=url,
        prompts=prompts,
        terminal=terminal,
        options=given.options,
        common=common,
        is_default=given.is_default,
    )
