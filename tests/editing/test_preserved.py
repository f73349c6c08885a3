"""The preserved prompts of an edit: what a store was collected from and remembers, and a choice over the whole list."""

from types import SimpleNamespace
from typing import Any

import pytest

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.editing import preserved
from nullbooth_cli.editing.preserved import evenly_spaced, preserved_texts


def test_texts_of_collection_and_hard_tasks_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def tasks_of(store: str, kind: str) -> list[Any]:
        assert (store, kind) == ("store", "hard")
        return [SimpleNamespace(store=SimpleNamespace(prompts=lambda: [Prompt("a sks dog"), Prompt("a cat")]))]

    monkeypatch.setattr(preserved, "tasks_of", tasks_of)
    opened: Any = SimpleNamespace(store="store", prompts=lambda: ["a cat", "", "a dog"])
    assert preserved_texts(opened) == ["a cat", "a dog", "a sks dog"]


def test_prompts_are_chosen_over_the_whole_list() -> None:
    texts = [str(i) for i in range(10)]
    assert evenly_spaced(texts, 3) == ["0", "3", "6"]
    assert evenly_spaced(texts, 20) == texts
    assert evenly_spaced([], 3) == []
