"""Stage collect: its notes, and outputs, which are collected but not projected."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline import prepare_collect, run, stages
from nullbooth_cli.progress import Note
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, features_at, prompts_of, small_config
from tests.support.by_hand import by_hand


def test_outputs_can_be_collected_but_not_projected(tmp_path: Path, pipe: Any) -> None:
    config = small_config(tmp_path / "run.zarr", collect__side="output", collect__cross_attention_layers=["mid_block*"])
    store = execute(config, "collect", "covariance")
    site = next(site for site in store.sites if site.feature == "k")
    assert (site.side, site.timestep_free, len(site.weights)) == ("output", True, 1)
    text = by_hand(pipe, PROMPTS[:3], 0, f"{site.layer}.to_k")[0]
    with torch.no_grad():
        expected = pipe.unet.get_submodule(f"{site.layer}.to_k")(torch.from_numpy(text[3:])).numpy()
    np.testing.assert_allclose(features_at(store, site, 0, 0)[:, 16:], expected, atol=1e-4)
    with pytest.raises(ConfigError, match=r"features are outputs"):
        execute(config, "project")


@pytest.mark.parametrize(("batch_size", "keep"), [(2, "features"), (40, "features"), (40, "moments")])
def test_a_batch_far_larger_than_the_prompts_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, keep: str
) -> None:
    monkeypatch.setattr(prepare_collect, "NOTED_BYTES", 1)
    config = small_config(
        tmp_path / "run.zarr",
        original_knowledge_prompts=["a red circle", "a blue square"],
        collect={"batch_size": batch_size, "keep": keep, "cross_attention_layers": [0]},
    )
    store = Store.create(config.store, config.model_dump())
    events = list(stages.execute("collect", run.Run(config=config, prompts=prompts_of(config), store=store, device="cpu")))
    told = [event.text for event in events if isinstance(event, Note) and "whole batches" in event.text]
    if batch_size == 2 or keep == "moments":
        assert told == []
        return
    (note,) = told
    assert note.startswith("batch_size is 40 for 2 prompts: ")
    promised = float(note.rpartition("up to ")[2].split()[0])
    assert store.nbytes("features") / 1e6 == pytest.approx(promised, rel=0.05)


@pytest.mark.parametrize(("chosen", "own", "notes"), [(None, 7.5, 0), (None, 3.5, 1), (7.5, 3.5, 0)])
def test_a_guidance_that_nobody_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: float | None, own: float, notes: int
) -> None:
    monkeypatch.setattr("nullbooth_cli.model.pipeline_call.Call.own_guidance", own)
    section = {"batch_size": 8, "cross_attention_layers": [0], **({} if chosen is None else {"guidance_scale": chosen})}
    config = small_config(tmp_path / "run.zarr", original_knowledge_prompts=["a red circle"], collect=section)
    store = Store.create(config.store, config.model_dump())
    events = stages.execute("collect", run.Run(config=config, prompts=prompts_of(config), store=store, device="cpu"))
    said = [event.text for event in events if isinstance(event, Note) and "guidance_scale" in event.text]
    assert said == ["collect.guidance_scale is not set: it is 7.5, and a StableDiffusionPipeline draws with 3.5"] * notes


def test_prompts_that_lose_words_or_have_weights_are_reported_once(tmp_path: Path) -> None:
    long = "a photo of a sks red circle at the left of a blue background with a green star"
    config = small_config(
        tmp_path / "run.zarr", original_knowledge_prompts=[long, "a ((red)) star"], collect__cross_attention_layers=[0]
    )
    store = Store.create(config.store, config.model_dump())
    events = list(stages.execute("collect", run.Run(config=config, prompts=prompts_of(config), store=store, device="cpu")))
    told = [event.text for event in events if isinstance(event, Note) and ("tokenizer" in event.text or "weights" in event.text)]
    assert told == [
        f"1 prompt is too long for the tokenizer, which cuts off its end, 'with a green star' of '{long}'",
        "warning: 1 prompt has syntax for weights, which diffusers does not read: it takes '((red))' as text, such as in "
        "'a ((red)) star'",
    ]
