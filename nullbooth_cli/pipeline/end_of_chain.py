"""Whether a changed model came from the last one that a store remembers, as far as its files tell.

A model that was made apart, from the base, never had what the store remembers: remembered last, it would become the end of the
chain, and the next change would start from a model without it. Pipeline folders without a record tell nothing, nor do hub ids.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from nullbooth_cli.collect.edited_model import parts_of
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import AdapterFile
from nullbooth_cli.model.edit_file import started_from
from nullbooth_cli.model.trained_files import Base, locate
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, listed_tasks
from nullbooth_cli.store.tasks import is_of, resolved


def require_from_end(config: Config, store: Store, source: str) -> None:
    """Raise ConfigError if, by its files, the model at a place did not start from the last one that a store remembers.

    Of a sum, one part that did is enough, and so are all parts of the last one. Raises as `started_from` and `After.find` do.
    Cost: a small file for each model that it started from.
    """
    if not (tasks := listed_tasks(store)):
        return
    last, parts = tasks[-1], parts_of(source)

    def is_last(place: str) -> bool:
        return is_of(store, last, place)

    if is_last(source) or _places(parts_of(last.source)) <= _places(parts):
        return
    if not any((scale == 1 and is_last(name)) or _came_from(config, name, is_last) is not False for name, scale in parts):
        raise ConfigError(
            f"{source} did not start from {last.source}, the last that {store.url} remembers: it lacks the task {last.name}",
            f"train or edit it after {last.source}, forget {last.name} first, or let another store remember it",
        )


def _places(parts: Sequence[tuple[str, float]]) -> set[tuple[str, float]]:
    return {(resolved(name), scale) for name, scale in parts}


def _came_from(config: Config, place: str, is_last: Callable[[str], bool]) -> bool | None:
    """Whether a model started from the last one, at once or by others between them; None if its files do not tell."""
    seen: list[Path] = []
    while (path := Path(place).expanduser().resolve()).exists() and path not in seen:
        seen.append(path)
        made, folder, after = started_from(place)
        base = locate(path).base
        if after is not None:
            place = after.place if is_last(after.place) else str(after.find(folder, made))
        elif made == "edited" or (base is not None and base.is_same(Base.of(config))):
            return False
        elif base is None:
            return None if AdapterFile.find(path, allow_pickle=config.allow_pickle) is None else False
        else:
            place = base.model
        if is_last(place):
            return True
    return None
