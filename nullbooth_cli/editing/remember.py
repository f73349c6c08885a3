"""Let a store remember what a model was taught, or forget it again.

The request is made from what a place says of itself: the prompts and the name of a training run, the rows of an edit.
`pipeline.remember` records it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nullbooth_cli.api import OpenStore, open_store
from nullbooth_cli.collect.edited_model import read_place
from nullbooth_cli.editing.record import read_edit_record
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.trained_files import name_of_training, prompts_of_training
from nullbooth_cli.pipeline.remember import RememberRequest, forget_events, remember_events
from nullbooth_cli.progress import Event
from nullbooth_cli.settings.class_prompts import with_class_prompts
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Kind, Store, name_for

Listener = Callable[[Event], None]


def remember(
    place: str | Path,
    store: OpenStore | str | Path,
    prompts: str | Sequence[str] = (),
    *,
    word: str | None = None,
    name: str | None = None,
    weight: int = 1,
    soft: bool | None = None,
    device: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    on_event: Listener = lambda _: None,
) -> OpenStore:
    """Make what the model at `place` was taught part of what a store preserves, and open the store.

    `place` is anything that `evaluate` takes: a training output, a checkpoint, a pipeline folder, a LoRA. The inputs of `prompts`
    are recorded on that model; by default they are the captions that its training run names. `word`, such as "sks dog", adds
    prompts around it. `name` is by default that of the run or file, `weight` how many preserved tokens each of its tokens counts.
    A saved edit is remembered softly, unless `soft` is False or prompts are named: by the rows that it edited, which later edits
    weigh as their term C, and which take nothing of the null space. `storage_options` are those of a store at a URL.

    Raises StageError before `covariance` is complete, ConfigError for a place without a model or prompts, for prompts without the
    word that was taught, for a name that is taken, for per-timestep projectors, outputs and imported stores; ModelError for a
    model with other layers; StoreError if the store is in use. After any error, a call with the same arguments resumes.
    Cost: that of collecting the prompts, and a decomposition of every moment, and one more for each hard task.
    """
    config = _config_of(store, storage_options)
    request = request_of(config, str(place), prompts, word=word, name=name, weight=weight, soft=soft)
    for event in remember_events(config, request, device=device):
        on_event(event)
    return open_store(config.store, config.storage_options)


def forget(
    name: str,
    store: OpenStore | str | Path,
    *,
    device: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    on_event: Listener = lambda _: None,
) -> OpenStore:
    """Take a task out of what a store preserves, exactly, and open the store.

    Raises ConfigError if it remembers no task of this name, StoreError if it is in use. Cost: that of `project`.
    """
    config = _config_of(store, storage_options)
    for event in forget_events(config, name, device=device):
        on_event(event)
    return open_store(config.store, config.storage_options)


def _config_of(store: OpenStore | str | Path, storage_options: Mapping[str, Any] | None) -> Config:
    """The config of a store, wherever it is now."""
    url = store.url if isinstance(store, OpenStore) else str(store)
    found = build_config(Store.open(url, options=storage_options).config)
    return found.model_copy(update={"store": url, "storage_options": None if storage_options is None else dict(storage_options)})


def request_of(
    config: Config,
    place: str,
    prompts: str | Sequence[str] = (),
    *,
    word: str | None = None,
    name: str | None = None,
    weight: int = 1,
    soft: bool | None = None,
) -> RememberRequest:
    """What to remember of the model at a place. The arguments and errors are those of `remember`.

    Raises StoreError if there is no store. Cost: headers of files, and the rows of an edit.
    """
    record = read_edit_record(place)
    if soft and record is None:
        raise ConfigError(f"{place} is no saved edit, and only an edit is remembered softly", "remember it hard")
    has_prompts = bool(prompts) or word is not None
    if record is not None and (soft or (soft is None and not has_prompts)):
        if has_prompts:
            raise ConfigError(
                "an edit is remembered softly by the rows that it edited, and prompts are named beside it",
                "leave the prompts out, or remember it hard",
            )
        return RememberRequest(
            source=place,
            prompts=tuple(dict.fromkeys(record.prompts)),
            name=name or _name_of(config, place, "soft"),
            weight=weight,
            edits=record.sums(),
            weights=record.tensors,
            digest=record.digest,
        )
    edited = read_place(config, place)
    if record is not None and not has_prompts:
        prompts = record.prompts
    texts = with_class_prompts(prompts, word)
    if not prompts and (word is None or name_of_training(Path(place)) is not None):
        texts = tuple(dict.fromkeys([*prompts_of_training(Path(place))[1], *texts]))
    if lacking := edited.word_note(texts):
        raise ConfigError(lacking, "name the prompts that use it, or its word and noun")
    return RememberRequest(source=place, prompts=texts, name=name or _name_of(config, place, "hard"), weight=weight)


def _name_of(config: Config, place: str, kind: Kind) -> str:
    """The name of a task after its training run, file or folder."""
    path = Path(place).expanduser()
    named = name_of_training(path) or (path.stem if path.is_file() else path.resolve().name)
    return name_for(Store.open(config.store, options=config.storage_options), place, kind, named)
