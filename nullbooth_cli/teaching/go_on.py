"""The store of an output that starts from another one: a copy of its store, which then remembers what was taught there.

What was taught is remembered by the captions of its pictures, and by the subject with the ending of every preserved prompt of its
class: "a photo of sks dog" becomes "a photo of sks dog in the snow", and so on. Of such prompts on the embedded model, the share
of energy in the null space was .0047 with the one caption remembered, .0043 with the prompts of the class that name the subject
beside it, and .0013 with these; held-out prompts have .0010.

The other output is read only. A copy gets its name when all of it is there, so whatever stops it, the same request resumes.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.trained_files import locate, prompts_of_training
from nullbooth_cli.model.words import has_word, with_token
from nullbooth_cli.pipeline.remember import RememberRequest, remember_events
from nullbooth_cli.progress import Event, Interrupts
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, name_for, open_backing, remembered
from nullbooth_cli.store.tasks import list_copied
from nullbooth_cli.teaching.decision import read
from nullbooth_cli.training import durable


def store_before(after: str) -> str:
    """The store of the output that was taught before. Raises ConfigError if it has none."""
    found = read(after)
    if found is None or not Store.exists(found.config.store):
        raise ConfigError(f"{after} has no store", "name an output that was taught to its end")
    return found.config.store


def inherit_store(after: str, store: str) -> None:
    """Copy the store of the output that was taught before, unless there is one already.

    Raises StoreError while another process writes to it, ResourceError if the copy cannot be written. Cost: its bytes.
    """
    if Store.exists(store):
        return
    source = store_before(after)
    with open_backing(source).lock(), durable.replacing(Path(store)) as partial:
        shutil.copytree(source, partial)
        list_copied(Store.open(str(partial), write=True), source, store)


def task_prompts(after: str) -> tuple[str, ...]:
    """The prompts by which what was taught before is remembered. Raises ConfigError for an output that was not taught."""
    found = read(after)
    assert found is not None  # `find` has read it
    _, captions = prompts_of_training(Path(after))
    request, word = found.request, found.request.word
    subject = with_token(request.subject, word, locate(Path(after)).token or word)
    noun = request.noun or request.kind.noun
    endings = [] if noun is None else [_ending(text, noun) for text in found.preserved if has_word(text, noun)]
    return tuple(dict.fromkeys([*captions, *(f"{subject}{ending}" for ending in endings)]))


def _ending(text: str, noun: str) -> str:
    """What follows a noun in a prompt that has it."""
    return re.split(rf"\b{re.escape(noun)}\b", text, maxsplit=1, flags=re.IGNORECASE)[1]


def remember_taught(config: Config, after: str, device: str | None, interrupts: Interrupts | None) -> Iterator[Event]:
    """Remember what was taught before as a task of the config's store, unless it is there. Raises as `remember_events` does."""
    store = Store.open(config.store)
    if remembered(store, after):
        return
    named, _ = prompts_of_training(Path(after))
    request = RememberRequest(source=after, prompts=task_prompts(after), name=name_for(store, after, "hard", named))
    yield from remember_events(config, request, device=device, interrupts=interrupts)
