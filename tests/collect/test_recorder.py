"""What the recorder checks, and what it hands to sinks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from nullbooth_cli.collect import branches, find_sites
from nullbooth_cli.collect import recorder as recorder_module
from nullbooth_cli.collect.branches import ALONE, Branch
from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.errors import DataError, ModelError
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.hooks import Forward
from nullbooth_cli.model.projections import Projection
from tests.support.builders import PROMPTS, execute, small_config

FORWARDS = [Forward("", step, 0) for step in range(4)]


def test_sharing_that_changes_on_the_way_is_an_error() -> None:
    """The first two steps look shared and timestep-free; a later one is not."""
    text = torch.zeros(2, 3, 4)
    site = Site("l", "k", "input", ("l.to_k.weight", "l.to_v.weight"), True, 3, 4)
    k, v = (Projection("l", feature, f"l.to_{feature}.weight", torch.nn.Identity(), from_text=True) for feature in "kv")
    kept: list[int] = []

    class Sink:
        dtype = None

        def receive(self, site: Site, step: int, rows: list[int], values: torch.Tensor) -> None:
            kept.append(step)

    found = find_sites.FoundSites(sites=(site,), site_of={k: site, v: site}, arguments=frozenset(), branches=ALONE)
    path = DenoisingPath(num_inference_steps=3, steps=(), guidance_scale=1.0, height=None, width=None, seed=0)
    recorder = recorder_module.Recorder(
        find_sites.RecordableModel(None, path, found), [(0, Prompt("a")), (1, Prompt("b"))], sinks=[Sink()]
    )
    recorder.receive(k, FORWARDS[0], text)
    recorder.receive(v, FORWARDS[0], text)
    with pytest.raises(ModelError, match="no longer shares"):
        recorder.receive(v, FORWARDS[0], text.clone())
    recorder.begin(FORWARDS[1], {})
    recorder.receive(k, FORWARDS[1], text.clone())
    recorder.check()
    assert kept == [0]
    recorder.begin(FORWARDS[2], {})
    recorder.receive(k, FORWARDS[2], text + 1)
    with pytest.raises(ModelError, match="changes with the timestep after the first two steps"):
        recorder.check()
    text += 1
    recorder.begin(FORWARDS[3], {})
    recorder.receive(k, FORWARDS[3], text)
    with pytest.raises(ModelError, match="changes with the timestep after the first two steps"):
        recorder.check()


class Taken:
    """A sink that remembers what it is handed."""

    def __init__(self, dtype: str | None = None) -> None:
        self.dtype = dtype
        self.values: list[torch.Tensor] = []

    def receive(self, site: Site, step: int, rows: list[int], values: torch.Tensor) -> None:
        self.values.append(values)


TO_K = Projection("l", "k", "l.to_k.weight", torch.nn.Identity(), from_text=True)


def recorder_of(site: Site, sink: Any) -> recorder_module.Recorder:
    """A recorder of two prompts at one step, for one projection."""
    path = DenoisingPath(
        num_inference_steps=1, steps=(Step(0, "timestep_0999", 999.0, 1.0),), guidance_scale=1.0, height=None, width=None, seed=0
    )
    model = find_sites.RecordableModel(
        cast(Any, None), path, find_sites.FoundSites(sites=(site,), site_of={TO_K: site}, arguments=frozenset(), branches=ALONE)
    )
    return recorder_module.Recorder(model, [(0, Prompt("a")), (1, Prompt("b"))], sinks=[sink])


def test_padding_is_nan_for_the_sinks_and_no_error() -> None:
    site = Site("l", "k", "input", ("l.to_k.weight",), False, 3, 4, masked=True)
    recorder = recorder_of(site, sink := Taken("float16"))
    recorder.begin(FORWARDS[0], {"encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])})
    recorder.receive(TO_K, FORWARDS[0], torch.full((2, 3, 4), 7.0))
    recorder.check()
    assert sink.values[0].isnan()[..., 0].tolist() == [[False, False, True], [False, True, True]]
    assert sink.values[0].nan_to_num(7.0).unique().tolist() == [7.0]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), None, "a value is not finite"),
        (float("inf"), "float16", "not finite"),
        (1e6, "float16", "does not fit float16"),
    ],
)
def test_a_value_that_cannot_be_stored_is_an_error_of_the_data(value: float, dtype: str | None, message: str) -> None:
    recorder = recorder_of(Site("l", "k", "input", ("l.to_k.weight",), False, 3, 4), Taken(dtype))
    tensor = torch.ones(2, 3, 4)
    tensor[1, 2, 3] = value
    recorder.receive(TO_K, FORWARDS[0], tensor)
    with pytest.raises(DataError, match=rf"{message}.*prompt 'b', layer l, feature k, timestep 999"):
        recorder.check()


@pytest.mark.parametrize("where", ["model", "dtype"])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    config = small_config(
        tmp_path / "run.zarr",
        collect__cross_attention_layers=["mid_block*"],
        collect__feature_dtype="float16" if where == "dtype" else "float32",
    )
    real = branches.split_branches

    def spoiled(tensor: torch.Tensor, num_prompts: int, recorded: Sequence[Branch]) -> list[torch.Tensor]:
        empty, own = (part.clone() for part in real(tensor, num_prompts, recorded))
        if num_prompts > 1:
            empty[1, 0, 0] = float("nan") if where == "model" else 1e6
        return [empty, own]

    monkeypatch.setattr(recorder_module, "split_branches", spoiled)
    expected = (
        rf"{'not finite' if where == 'model' else 'does not fit float16'}: prompt '{PROMPTS[1]}', layer mid_block.*timestep 999"
    )
    with pytest.raises(DataError, match=expected):
        execute(config, "collect")
