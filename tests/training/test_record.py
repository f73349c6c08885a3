"""What a run resumes from: settings that decide its weights are compared, inputs by their content, the rest is free."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import record
from nullbooth_cli.training.record import OtherSettings, RunRecord
from tests.support.tiny_dreambooth import INSTANCES

SETTINGS = {"word": "sks", "class_prompts": ["a circle"], "instance_images": str(INSTANCES), "distill_captions": "empty"}
OTHER_VALUES = {
    "revision": "main",
    "variant": "fp16",
    "after": str(toy.FOLDER),  # test_earlier has LoRAs
    "store": "elsewhere.zarr",
    "instance_images": str(INSTANCES),  # test_pictures has others
    "distill_pictures": "instance",  # test_distillation has others
    "method": "full",  # with a word there is no other
    "features": ["q"],
    "word": "star",
    "class_prompts": ["a square"],
    "linear_layers": ["ff_in"],
    "snr_gamma": 5.0,
    "training_guidance": 1.0,
    "guidance_scale": 3.0,
    "timestep_density": "mode",
    "distill_captions": ["a star"],
    "lr_scheduler": "linear",
    "mixed_precision": "bf16",
    "validation_prompts": ["a star"],
    "instance_prompt": "a sks star",
    "resize": "buckets",
    "resolution": 64,
    "ema_decay": 0.9,
}
SAME = {*record.FREE, *record.BY_CONTENT, "max_train_steps", "method", "rank"} - {"class_prompts", "instance_prompt"}


class Store:
    """Two weights that share a projector of their own."""

    def __init__(self, seed: int = 0) -> None:
        basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
        self.found = dict.fromkeys(("a.weight", "b.weight"), Projector.of(basis, 2))

    def projectors(self, model: Mapping[str, Any] | None = None) -> Mapping[str, Projector]:
        return self.found


def made(recipe: Recipe, store: Store | None = None, processes: int = 1) -> RunRecord:
    return RunRecord.of(recipe, store, processes)


def changed(before: RunRecord, now: RunRecord) -> set[str]:
    try:
        now.resumed("out", before, 2, ())
    except OtherSettings as error:
        return set(error.changed)
    return set()


@pytest.mark.parametrize("key", Recipe.model_fields)
def test_each_setting(key: str) -> None:
    """A new setting blocks a resume until it is listed as one that leaves the weights as they are."""
    one = Recipe(**SETTINGS)
    value = getattr(one, key)
    new = OTHER_VALUES.get(key, not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "x")
    other = one.model_copy(update={key: new})
    decides = set() if key in SAME else {"pictures and captions" if key == "instance_prompt" else key}
    assert changed(made(one), made(other)) == decides


def test_what_is_not_used_decides_nothing() -> None:
    one = Recipe(instance_images=str(INSTANCES))
    for key in (*record.WITH_LORA, *record.WITH_WORD, *record.WITH_CLASS, *record.WITH_DISTILLATION[1:]):
        new = "empty" if key == "distill_captions" else 3
        assert changed(made(one), made(one.model_copy(update={key: new}))) == set(), key
    assert changed(made(one), made(one.model_copy(update={"features": ["v", "k"]}))) == set()
    layers = [one.model_copy(update={"linear_layers": order}) for order in (["ff_in", "attn1"], ["attn1", "ff_in"])]
    assert changed(*map(made, layers)) == set()


def test_pictures(tmp_path: Path) -> None:
    one = Recipe(instance_images=str(INSTANCES))
    shutil.copytree(INSTANCES, tmp_path / "moved")
    other = one.model_copy(update={"instance_images": str(tmp_path / "moved")})
    assert changed(made(one), made(other)) == set(), "the same pictures in another folder"
    picture = tmp_path / "moved/sks_on_black.png"
    data = picture.read_bytes()
    shutil.copy(tmp_path / "moved/sks_on_gray.png", picture)
    (tmp_path / "moved/metadata.jsonl").write_text(
        (tmp_path / "moved/metadata.jsonl").read_text().replace("on a gray", "on another")
    )
    assert changed(made(one), made(other)) == {"pictures and captions"}
    picture.write_bytes(data)
    assert changed(made(one), made(other)) == {"pictures and captions"}, "another caption"


def test_projectors_and_processes() -> None:
    one = Recipe(instance_images=str(INSTANCES))
    assert changed(made(one, Store()), made(one, Store())) == set()
    assert changed(made(one, Store()), made(one, Store(1))) == {"projectors"}
    assert changed(made(one, Store()), made(one)) == {"projectors"}
    assert changed(made(one), made(one, processes=2)) == {"processes"}


def test_the_weights_of_the_model() -> None:
    one = made(Recipe(instance_images=str(INSTANCES)))
    assert changed(one.with_model("abc"), one.with_model("abc")) == set()
    assert changed(one.with_model("abc"), one.with_model("def")) == {"weights of the model"}
    assert changed(one.with_model("abc"), one) == set(), "not known before it is loaded"


def test_a_change_on_purpose_is_history() -> None:
    one = made(Recipe(instance_images=str(INSTANCES)))
    other = made(Recipe(instance_images=str(INSTANCES), learning_rate=2e-3, train_batch_size=8, max_train_steps=300))
    with pytest.raises(
        OtherSettings, match=r"the run in out was .*\n  learning_rate: 0\.001 -> 0\.002\n  train_batch_size: 4 -> 8"
    ):
        other.resumed("out", one, 50, ())
    with pytest.raises(OtherSettings, match=r"inputs\n  train_batch_size: 4 -> 8$"):
        other.resumed("out", one, 50, ("learning_rate",))
    resumed = other.resumed("out", one, 50, ("learning_rate", "train_batch_size"))
    change = {"step": 50, "learning_rate": [1e-3, 2e-3], "train_batch_size": [4, 8], "max_train_steps": [200, 300]}
    assert resumed.history == (change,)
    assert resumed.changed_at(50) == ["learning_rate: 0.001 -> 0.002", "train_batch_size: 4 -> 8", "max_train_steps: 200 -> 300"]
    assert resumed.changed_at(60) == []
    assert replace(resumed, history=()) == other
    assert other.resumed("out", resumed, 60, ()).history == (change,), "resumed once more, without another word"
    assert RunRecord.from_document(resumed.document()) == resumed


def test_a_setting_that_is_newer_than_the_run() -> None:
    """It had its default: a run that was begun before there was such a key resumes, and not with another value."""
    one = made(Recipe(instance_images=str(INSTANCES)))
    older = replace(one, decides={key: value for key, value in one.decides.items() if key not in ("resize", "resolution")})
    assert changed(older, one) == set()
    assert changed(older, made(Recipe(instance_images=str(INSTANCES), resize="buckets"))) == {"resize"}


def test_what_cannot_change() -> None:
    record.require_changeable(record.CHANGEABLE)
    assert set(record.CHANGEABLE) <= set(Recipe.model_fields)
    with pytest.raises(ConfigError, match="method, rank cannot change") as caught:
        record.require_changeable(["method", "learning_rate", "rank"])
    assert "learning_rate, word_learning_rate" in caught.value.hint
