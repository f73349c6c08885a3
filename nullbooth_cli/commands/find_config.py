"""Finds the config that the options mean: a named file, that of the store, a file in its usual place, or the defaults.

Every key has a default, so a store or an override alone says enough: a command that only reads then finds no store there, and a
stage makes one.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullbooth_cli.commands.hints import options_of
from nullbooth_cli.commands.options import Common
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config, build_config, load_config
from nullbooth_cli.settings.places import expanded

if TYPE_CHECKING:
    from nullbooth_cli.store import Store


@dataclass(frozen=True)
class Configured:
    """A config and its `source`; `options` are the words that name both on a command line.

    `prompts` are those of the store that the config came from, so a moved store needs no prompt file; None for other configs.
    `is_default` is a config that no file and no store has: the defaults, and what overrides say.
    """

    config: Config
    source: str
    options: tuple[str, ...]
    prompts: tuple[Prompt, ...] | None = None
    is_default: bool = False


def configure(common: Common) -> Configured:
    """Find and read the config. Raises ConfigError with everything that is wrong in it, or if nothing names one."""
    named_store = common.store or os.environ.get("NULLBOOTH_STORE")
    named_store = named_store and expanded(named_store)
    named_config = common.config or os.environ.get("NULLBOOTH_CONFIG")
    prompts: tuple[Prompt, ...] | None = None
    named: tuple[tuple[str, str | None], ...]
    is_default = False
    if named_store and not named_config and (store := _existing_store(named_store, common.overrides)):
        config, source = build_config(store.config, common.overrides), f"in {named_store}"
        if not _names_prompts(common.overrides):
            prompts = store.prompts() or None  # without a collection a store has none
        named = (("-s", named_store),)
    else:
        file = find_config(named_config)
        if file is not None:
            config, source = load_config(file, common.overrides), str(file)
        elif named_store or common.overrides:
            config, source, is_default = build_config({}, common.overrides), "of defaults", True
        else:
            raise ConfigError(
                "no config: there is neither ./nullbooth.yaml nor ./configs/nullbooth.yaml",
                "write one with nullbooth init, give one with -c, or an existing store with -s",
            )
        named = (("-c", common.config), ("-s", common.store))
    if named_store:
        config = config.model_copy(update={"store": named_store})
    options = options_of([*named, *(("--set", override) for override in common.overrides)])
    return Configured(config, source, tuple(options), prompts=prompts, is_default=is_default)


def find_config(given: str | None) -> Path | None:
    """The first of -c, $NULLBOOTH_CONFIG, ./nullbooth.yaml, ./configs/nullbooth.yaml, or None.

    Raises ConfigError if one of the first two names a file that does not exist.
    """
    named = given or os.environ.get("NULLBOOTH_CONFIG")
    if named:
        if not os.path.exists(named):  # unlike Path.exists, False also for a name that is too long
            raise ConfigError(f"no config file at {named}", "give one with -c; nullbooth init writes one")
        return Path(named)
    return next((path for path in (Path("nullbooth.yaml"), Path("configs/nullbooth.yaml")) if path.is_file()), None)


def find_recipe(given: str | None) -> Path | None:
    """The recipe of -c, else ./train.yaml, or None. Raises ConfigError if the first does not exist."""
    if given is not None:
        if not os.path.exists(given):  # unlike Path.exists, False also for a name that is too long
            raise ConfigError(f"no file at {given}", "give a recipe with -c; nullbooth init writes one")
        return Path(given)
    return path if (path := Path("train.yaml")).is_file() else None


def _names_prompts(overrides: Sequence[str]) -> bool:
    """Whether overrides name a config's prompts, be it the same file again: it is then read, for it may have changed."""
    keys = {override.partition("=")[0].strip() for override in overrides}
    return bool(keys & {"original_knowledge_prompts", "collect", "collect.images"})


def storage_options_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The storage options among the overrides."""
    return build_config({}, [text for text in overrides if text.strip().startswith("storage_options")]).storage_options


def _existing_store(place: str, overrides: Sequence[str]) -> "Store | None":
    """The store at a place, if there is one. Its own config has no credentials: they come from `--set storage_options.`."""
    from nullbooth_cli.store import Store

    options = storage_options_of(overrides)
    return Store.open(place, options=options) if Store.exists(place, options) else None
