"""The drift of weights, held against the recorded vectors themselves; and which models it refuses."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nullbooth_cli as nb
from nullbooth_cli.collect.edited_model import load_edited
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation import weight_drift
from nullbooth_cli.evaluation.answer import Drift, WeightDrift
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import features_at
from tests.support.edited_models import save_lora, toy

NAMES = ("constrained", "free", "lora")


@pytest.fixture(scope="module")
def drifts(run: tuple[Config, Store], models: Path) -> dict[str, Drift]:
    """The drift of every edited model."""
    config, store = run
    protected = [name for site in store.sites for name in site.weights]
    edited = [weight_drift.weights_of(load_edited(config, str(models / name), "cpu"), protected) for name in NAMES]
    base = weight_drift.weights_of(toy(), protected)
    return dict(zip(NAMES, weight_drift.weight_drifts(store, store.heldout(), base, edited), strict=True))


def test_drift_is_that_of_the_recorded_inputs(drifts: dict[str, Drift], run: Any, models: Path) -> None:
    """norm(dW K) / norm(W K) with the vectors themselves, in float64."""
    store, weights = run[1], {entry.weight: entry for entry in drifts["free"].weights}
    base, edited = toy().unet, load_edited(run[0], str(models / "free"), "cpu").unet
    assert set(weights) == {name for site in store.sites for name in site.weights}
    for site in store.sites:
        k = np.concatenate(
            [
                features_at(store, site, t, unit).reshape(-1, site.dim)
                for t in range(site.num_recorded(store.num_steps))
                for unit in range(2)
            ]
        ).astype(np.float64)
        for name in site.weights:
            w, v = (unet.get_parameter(name).double().numpy() for unet in (base, edited))
            expected = np.linalg.norm((v - w) @ k.T) / np.linalg.norm(w @ k.T)
            assert weights[name].drift == pytest.approx(expected, rel=1e-5)
            assert weights[name].heldout_drift > 0.01


def test_a_projected_edit_drifts_less(drifts: dict[str, Drift]) -> None:
    constrained, free = drifts["constrained"], drifts["free"]
    assert constrained.largest == max(entry.drift for entry in constrained.weights) < 0.3 * free.largest
    assert free.largest_heldout == max(entry.heldout_drift for entry in free.weights)
    assert constrained.unprotected_changed == ()
    assert free.unprotected_changed == ("unet.conv_out.bias",)
    assert constrained.protected_changed == free.protected_changed == 4


def test_a_lora_drifts_by_its_product(drifts: dict[str, Drift], run: Any, tmp_path: Path) -> None:
    """The change of a weight is B A, and nothing else changes."""
    adapted, found = save_lora(tmp_path), drifts["lora"]
    entries = {entry.weight: entry.drift for entry in found.weights}
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    wrapped, site = adapted.get_submodule(layer), next(s for s in run[1].sites if f"{layer}.weight" in s.weights)
    delta = (wrapped.lora_B["default"].weight @ wrapped.lora_A["default"].weight).detach()
    moment = nb.open_store(run[1].path).moment(site)
    weight = wrapped.base_layer.weight.detach().numpy()
    assert entries[f"{layer}.weight"] == pytest.approx(relative_drift(delta.numpy(), weight, moment), rel=1e-4)
    assert entries[f"{layer.removesuffix('to_v')}to_q.weight"] == 0.0
    assert found.protected_changed == 2


@pytest.mark.parametrize("unknown", [0, 1])
def test_a_drift_that_is_not_known_is_not_hidden_by_the_largest(unknown: int) -> None:
    entries = [WeightDrift("w", math.nan if i == unknown else 0.5, math.nan if i == unknown else 0.5) for i in range(2)]
    found = weight_drift._drift(weight_drift.Weights({}, {}), weight_drift.Weights({}, {}), entries)
    assert math.isnan(found.largest)
    assert found.largest_heldout is not None
    assert math.isnan(found.largest_heldout)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 protected weights fewer than the base, such as nowhere"):
        weight_drift.weights_of(toy(), ["nowhere"])
    base = weight_drift.Weights({}, {"w": np.zeros((2, 3))})
    with pytest.raises(ConfigError, match=r"w of there has the shape \[2, 4\], in the base \[2, 3\]"):
        weight_drift.require_same_architecture(base, {"w": (2, 4)}, "there")
    with pytest.raises(ConfigError, match="there lacks 1 protected weights of the base, such as w"):
        weight_drift.require_same_architecture(base, {"v": (2, 3)}, "there")


def test_the_weights_of_a_second_denoiser_are_its_own() -> None:
    """Both denoisers have the same names; only the second one changes."""

    def weights(second: float) -> weight_drift.Weights:
        denoisers: dict[str, Any] = {name: nn.Linear(2, 2, bias=False) for name in ("transformer", "transformer_2")}
        for denoiser, value in zip(denoisers.values(), (1.0, second), strict=True):
            nn.init.constant_(denoiser.weight, value)
            denoiser.dtype = torch.float32
        pipe: Any = SimpleNamespace(**denoisers, components=denoisers)
        return weight_drift.weights_of(pipe, ["weight", "transformer_2.weight"])

    base, edited = weights(2.0), weights(3.0)
    assert {name: float(value[0, 0]) for name, value in edited.protected.items()} == {"weight": 1.0, "transformer_2.weight": 3.0}
    drift = weight_drift._drift(base, edited, [WeightDrift("transformer_2.weight", 0.5, None)])
    assert (drift.protected_changed, drift.unprotected_changed) == (1, ())
