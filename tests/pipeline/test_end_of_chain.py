"""Which models may follow the last task of a store: those that started from its model, by their own records."""

import json
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.after import After
from nullbooth_cli.pipeline.end_of_chain import require_from_end
from nullbooth_cli.pipeline.remember import RememberRequest, plan_remember, remember_events
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, leftovers, list_task
from tests.support.edited_models import save_lora
from tests.support.stores import small_store
from tests.support.tasks import collected, remember
from tests.support.trained_folders import lora_files


class Chain:
    """A store whose last task is the model `dog`, and models beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, small_store(folder)
        self.config = Config(store=self.store.url, model="toy")
        self.dog = self.trained("dog")
        list_task(self.store, "dog", kind="hard", weight=1, source=self.dog)

    def trained(self, name: str, after: str | None = None, **base: Any) -> str:
        folder = self.folder / name
        if after is not None:
            base["after"] = After.of(after, folder, digest=None).document()
        return str(lora_files(folder, f"<{name}>", **base))

    def edited(self, name: str, after: str | None = None) -> str:
        folder = self.folder / name
        folder.mkdir()
        before = None if after is None else After.of(after, folder, digest=None).document()
        (folder / "edit.json").write_text(json.dumps({"pairs": {"one": "two"}, "after": before}))
        return str(folder)

    def require(self, source: str) -> None:
        require_from_end(self.config, self.store, source)

    def refuse(self, source: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.require(source)
        assert caught.value.message == (
            f"{source} did not start from {self.dog}, the last that {self.store.url} remembers: it lacks the task dog"
        )
        assert caught.value.hint is not None
        assert caught.value.hint.startswith(f"train or edit it after {self.dog}, forget dog first")


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_what_was_made_apart_from_the_base_lacks_the_task(chain: Chain, tmp_path: Path) -> None:
    cat, edit = chain.trained("cat"), chain.edited("star")
    lora = tmp_path / "loras"
    save_lora(lora)
    for source in (cat, edit, str(lora), f"{cat}@0.5", f"{cat}+{lora}", f"{chain.dog}@0.5+{cat}"):
        chain.refuse(source)
    chain.refuse(chain.trained("bird", cat))
    chain.refuse(chain.edited("sun", edit))


def test_what_started_from_it_does_not(chain: Chain) -> None:
    cat = chain.trained("cat", chain.dog)
    apart = chain.trained("apart")
    edit = chain.edited("star", cat)
    for source in (chain.dog, cat, chain.trained("bird", cat), edit, f"{chain.dog}+{apart}", f"{cat}+{apart}@0.5"):
        chain.require(source)
    list_task(chain.store, "both", kind="hard", weight=1, source=f"{chain.dog}+{apart}@0.5")
    chain.require(f"{apart}@0.5+{cat}+{chain.dog}")
    with pytest.raises(ConfigError, match="it lacks the task both"):
        chain.require(cat)


def test_the_first_task_and_what_tells_nothing(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/model_index.json").write_text("{}")
    for source in (str(tmp_path / "merged"), "owner/name", chain.trained("cat", str(tmp_path / "merged"))):
        chain.require(source)
    chain.require(chain.trained("bird", model=str(tmp_path / "merged")))
    chain.store.arrays.update_attributes(tasks=[])
    chain.require(chain.trained("first"))


def test_a_run_whose_recipe_names_it_as_the_model(chain: Chain) -> None:
    chain.require(chain.trained("cat", model=chain.dog))


def test_it_may_be_gone_but_what_leads_to_it_may_not(chain: Chain, tmp_path: Path) -> None:
    cat = chain.trained("cat", chain.dog)
    bird = chain.trained("bird", cat)
    Path(chain.dog).rename(tmp_path / "elsewhere")
    chain.require(cat)
    Path(cat).rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"bird was trained after .*cat, which is gone"):
        chain.require(bird)


def test_it_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    config = collected(tmp_path / "run.zarr")
    remember(config, lora_files(tmp_path / "dog"), prompts=("a <sks> dog",))
    cat = str(lora_files(tmp_path / "cat", "<zwx>"))
    request = RememberRequest(source=cat, prompts=("a <zwx> cat",), name="cat")
    for refused in (lambda: plan_remember(config, request), lambda: list(remember_events(config, request))):
        with pytest.raises(ConfigError, match="it lacks the task dog"):
            refused()
    assert leftovers(Store.open(config.store)) == []
