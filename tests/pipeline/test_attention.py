"""The maps of a collection: which prompts, layers and timesteps have them, and when they are recorded again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline.attention import find_prompt
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.stages import execute as execute_stage
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.progress import Note, Progress
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import AttentionMaps, Store
from tests.support.builders import CIRCLES, TEXT_ONLY, execute, prompts_of, small_config, states_of


def test_chosen_prompts_layers_and_timesteps(small: Any) -> None:
    config, store = small
    maps = [store.attention.read(prompt) for prompt in prompts_of(config)[:2]]
    for found in maps:
        assert found.steps == (0, 3)
        assert sorted(found.layers) == [f"up_blocks.2.attentions.{i}.transformer_blocks.0.attn2" for i in (0, 1)]
        for values in found.layers.values():
            assert values.shape == (2, 8, 8, len(found.words))
            assert values.dtype == np.float16
            assert np.isfinite(values).all()
            assert values.sum(axis=-1).max() <= 1.001
    third = find_prompt(config, store, prompts_of(config)[1].id[:6])
    assert third == prompts_of(config)[1]
    with pytest.raises(ConfigError, match=r"'nothing' names 0 of the prompts") as caught:
        find_prompt(config, store, "nothing")
    assert prompts_of(config)[0].id in caught.value.hint


def test_by_name(small: Any) -> None:
    config, store = small
    wanted = config.model_copy(update={"collect": config.collect.model_copy(update={"attention_prompts": [CIRCLES[0]]})})
    events = again(wanted, store)
    assert recorded(events) == [f"attention maps of '{CIRCLES[0]}'"]
    assert any(isinstance(event, Note) and "recorded again" in event.text for event in events)
    unknown = config.model_copy(update={"collect": config.collect.model_copy(update={"attention_prompts": ["a cat"]})})
    with pytest.raises(ConfigError, match="'a cat' is not one of the 8 prompts"):
        again(unknown, store)


def test_held_out_prompts_get_none(tmp_path: Path) -> None:
    config = small_config(
        tmp_path / "run.zarr",
        **TEXT_ONLY,
        original_knowledge_prompts=CIRCLES[:1],
        heldout_prompts=CIRCLES[1:],
        collect__visual_attention_map=True,
        collect__attention_prompts=[CIRCLES[0]],
    )
    store = execute(config, "collect")
    store.attention.read(Prompt(CIRCLES[0]))
    assert not (store.path / "heldout" / "attention").exists()


def test_the_collection_does_not_notice(tmp_path: Path) -> None:
    """Maps that are asked for later make nothing stale, and what was collected stays as it is, byte for byte."""
    config = small_config(tmp_path / "run.zarr", **TEXT_ONLY)
    store = execute(config, "collect", "covariance", "project")
    before = {path: path.read_bytes() for path in (store.path / "features").rglob("*") if path.is_file()}
    asked = config.model_copy(
        update={"collect": config.collect.model_copy(update={"visual_attention_map": True, "attention_prompts": 1})}
    )
    assert set(states_of(asked).values()) == {"complete"}
    assert stage_states(asked, prompts_of(asked), store)["collect"].attention.state == "missing"
    assert len(recorded(again(asked, store))) == 1
    assert set(states_of(asked).values()) == {"complete"}
    assert stage_states(asked, prompts_of(asked), store)["collect"].attention.state == "complete"
    assert {path: path.read_bytes() for path in (store.path / "features").rglob("*") if path.is_file()} == before
    assert recorded(again(asked, store)) == []


def test_only_what_is_missing_or_damaged_is_recorded_again(small: Any) -> None:
    config, store = small
    first, second = prompts_of(config)[:2]
    kept = store.attention.read(first)
    store.progress.mark("attention", [1], 0)  # as a kill before the mark would leave it
    assert recorded(again(config, store)) == [f"attention maps of '{second.text}'"]
    chunk = next(path for path in (store.path / "attention" / second.id).rglob("c.*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    shown = CliRunner().invoke(app, ["status", "-s", str(store.path), "--verify"])
    assert shown.exit_code == 4
    assert "nullbooth collect --repair" in shown.stderr
    assert recorded(again(config, store, repair=True)) == [f"attention maps of '{second.text}'"]
    assert CliRunner().invoke(app, ["status", "-s", str(store.path), "--verify"]).exit_code == 0
    same(store.attention.read(first), kept)


def same(one: AttentionMaps, other: AttentionMaps) -> None:
    assert (one.words, one.steps, list(one.layers)) == (other.words, other.steps, list(other.layers))
    np.testing.assert_array_equal(one.image, other.image)
    for layer in one.layers:
        np.testing.assert_array_equal(one.layers[layer], other.layers[layer])


@pytest.fixture
def small(tmp_path: Path) -> tuple[Config, Store]:
    config = small_config(
        tmp_path / "run.zarr",
        **TEXT_ONLY,
        collect__visual_attention_map=True,
        collect__attention_prompts=2,
        collect__attention_layers=["up_blocks.2*"],
        collect__attention_timesteps=2,
    )
    return config, execute(config, "collect")


def again(config: Config, store: Store, **control: Any) -> list[Any]:
    """The events of collecting once more."""
    return list(execute_stage("collect", Run(config=config, prompts=prompts_of(config), store=store, device="cpu", **control)))


def recorded(events: list[Any]) -> list[str]:
    return [event.what for event in events if isinstance(event, Progress) and event.stage == "attention"]
