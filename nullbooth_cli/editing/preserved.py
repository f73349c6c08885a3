"""The prompts that a store preserves, as an edit asks for them."""

from collections.abc import Sequence

from nullbooth_cli.api import OpenStore
from nullbooth_cli.store import tasks_of


def preserved_texts(store: OpenStore) -> list[str]:
    """The texts that a store preserves, each once: those that were collected, and those of hard tasks; without the empty one."""
    of_tasks = (prompt.text for task in tasks_of(store.store, "hard") for prompt in task.store.prompts())
    return [text for text in dict.fromkeys([*store.prompts(), *of_tasks]) if text]


def evenly_spaced(prompts: Sequence[str], most: int) -> list[str]:
    """At most `most` of the prompts, from the whole list."""
    count = min(most, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]
