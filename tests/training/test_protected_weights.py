"""A layer is measured by what it computes: what acts there beside the weight cannot hide."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import nullbooth_cli as nb
from nullbooth_cli.errors import ModelError
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.store import Store
from nullbooth_cli.training.constrainable import FORWARD, FUSED
from nullbooth_cli.training.constraint import LET_LOOSE
from tests.support.tiny_training import (
    LAYER,
    WEIGHTS,
    KohyaLora,
    adamw,
    add_lora,
    collected_inputs,
    drift_on_inputs,
    fresh_unet,
    prepared,
    train,
    trainable,
)

pytestmark = pytest.mark.usefixtures("one_thread")
Q, K, V, OUT = WEIGHTS


def layer(unet: Any, weight: str) -> Any:
    return unet.get_submodule(weight.removesuffix(".weight"))


class TestWhatIsNotInTheWeight:
    def test_a_lora_that_is_not_part_of_the_model(
        self, exact: Store, store: nb.OpenStore, before: dict[str, torch.Tensor]
    ) -> None:
        """Of the weights alone, the drift would be 1e-8: the number that used to be told."""
        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        torch.manual_seed(0)
        lora = KohyaLora(layer(unet, K))
        train(unet, adamw([*trainable(unet), *lora.parameters()], lr=5e-2), range(10))
        found, change = constraint.drift(), lora.up.weight.detach() @ lora.down.weight.detach()
        assert found[K] == pytest.approx(drift_on_inputs(exact, K, change, before[K]), rel=1e-3)
        assert found[K] > 0.1
        assert max(found[weight] for weight in (Q, V, OUT)) <= 1e-6
        of_weights = next(each for each in constraint._weights if each.name == K)
        moment = store.moment(of_weights.site)
        assert relative_drift(of_weights.change().weight, of_weights.start().weight, moment) <= 1e-6
        assert constraint.report().altered == {K: FORWARD}
        assert f"altered 1\n  {K}  {FORWARD}" in str(constraint.report())
        assert constraint.merge()["float32"] == pytest.approx(found[K], rel=1e-3)

    def test_of_a_layer_that_does_not_train(self, store: nb.OpenStore) -> None:
        unet = fresh_unet().requires_grad_(False)
        unet.get_parameter(Q).requires_grad_(True)
        constraint = nb.constrain(unet, store)
        assert set(constraint.drift()) == {Q}
        nn.init.normal_(KohyaLora(layer(unet, K)).up.weight)
        assert constraint.drift()[K] > 0.1

    @pytest.mark.parametrize("place", ["register_forward_pre_hook", "register_forward_hook"])
    def test_a_hook_that_doubles(self, store: nb.OpenStore, place: str) -> None:
        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        double = {
            "register_forward_pre_hook": lambda _, inputs: (2 * inputs[0],),
            "register_forward_hook": lambda _, inputs, output: 2 * output,
        }
        getattr(layer(unet, K), place)(double[place])
        assert constraint.report().altered == {K: "a forward hook is set on the layer"}
        assert constraint.drift()[K] == pytest.approx(1.0)

    def test_another_module_in_its_place(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        other = nn.Linear(96, 80, bias=False)
        unet.get_submodule(LAYER).to_k = other
        report = constraint.report()
        assert report.altered == {K: "a Linear has taken the place of the layer"}
        assert (K not in report.constrained, report.unprotected[K]) == (True, LET_LOOSE)
        assert constraint.drift()[K] > 0.1
        unet.get_submodule(LAYER).to_k = nn.Linear(5, 80)
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            constraint.drift()
        unet.get_submodule(LAYER).to_k = nn.Sequential(nn.Linear(96, 7))
        with pytest.raises(ModelError, match=r"to_k is another layer now"):
            constraint.drift()
        del unet.get_submodule(LAYER).to_k
        assert constraint.report().altered == {K: "the layer is gone"}
        with pytest.raises(ModelError, match=r"to_k is not used any more"):
            constraint.drift()

    def test_an_adapter_that_is_added_later(self, store: nb.OpenStore) -> None:
        from peft import LoHaConfig, inject_adapter_in_model

        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        inject_adapter_in_model(LoHaConfig(r=2, target_modules=[f"{LAYER}.to_q"], init_weights=False), unet)
        assert constraint.report().altered == {Q: "Linear, which is not plain LoRA"}
        assert constraint.drift()[Q] > 1e-3

    def test_dora(self, store: nb.OpenStore) -> None:
        """Its magnitudes scale W0 itself, which B A does not show."""
        unet = prepared("lora")
        constraint = nb.constrain(unet, store)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            add_lora_named(unet, "second", use_dora=True)
        unet.set_adapters(["second"])
        magnitude = unet.get_submodule(f"{LAYER}.to_k").lora_magnitude_vector["second"].weight
        magnitude.data *= 1.5
        assert constraint.drift()[K] == pytest.approx(0.5, rel=1e-3)

    def test_fused_projections(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        unet.fuse_qkv_projections()
        assert constraint.report().altered == {K: FUSED, V: FUSED}
        with pytest.raises(ModelError, match=r"to_k is not used any more"):
            constraint.drift()
        unet.unfuse_qkv_projections()
        assert constraint.report().altered == {}
        assert max(constraint.drift().values()) == 0


def add_lora_named(unet: Any, name: str, **config: Any) -> None:
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=2, target_modules=[f"{LAYER}.to_k"], **config), name)


class TestWhatIsNotHeldAnyMore:
    def test_a_constraint_that_was_taken_off(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        train(unet, adamw(trainable(unet)), range(1))
        parametrize.remove_parametrizations(layer(unet, K), "weight")
        assert constraint.report().unprotected == {K: LET_LOOSE}
        with pytest.raises(ModelError, match=r"to_k.weight has changed without the constraint"):
            constraint.drift()

    def test_a_parametrization_on_top(self, store: nb.OpenStore) -> None:
        class Twice(nn.Module):
            def forward(self, weight: torch.Tensor) -> torch.Tensor:
                return 2 * weight

        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        parametrize.register_parametrization(layer(unet, K), "weight", Twice())
        assert constraint.report().altered == {K: "its weight has a parametrization of something else"}
        assert K not in constraint.report().constrained
        assert constraint.drift()[K] == pytest.approx(1.0)

    def test_a_base_weight_that_was_let_loose(self, store: nb.OpenStore) -> None:
        """A LoRA was constrained; the weight below it trains later."""
        unet = prepared("lora")
        constraint = nb.constrain(unet, store)
        loose = f"{LAYER}.to_q.base_layer.weight"
        unet.get_parameter(loose).requires_grad_(True)
        assert constraint.report().unprotected == {loose: LET_LOOSE}
        train(unet, adamw(trainable(unet)), range(1))
        with pytest.raises(ModelError, match=r"to_q.weight has changed without the constraint"):
            constraint.drift()

    def test_after_merging(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        constraint.merge()
        assert (constraint.report().constrained, set(constraint.report().unprotected)) == ({}, set(WEIGHTS))

    @pytest.mark.parametrize("kind", ["full", "lora"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_model_that_is_cast_is_the_same(self, store: nb.OpenStore, kind: str, dtype: torch.dtype) -> None:
        unet = prepared(kind)
        constraint = nb.constrain(unet, store)
        train(unet, adamw(trainable(unet)), range(2))
        unet.to(dtype)
        assert constraint.report().altered == {}
        assert 0 < max(constraint.drift().values()) < 1e-2, "its rounding"


class TestBias:
    def test_a_bias_that_trains_counts(self, exact: Store, store: nb.OpenStore, before: dict[str, torch.Tensor]) -> None:
        unet = fresh_unet()
        with pytest.warns(UserWarning, match="train without a constraint"):
            constraint = nb.constrain(unet, store, unprotected="allow")
        train(unet, adamw(trainable(unet)), range(2))
        state, inputs = unet.state_dict(), collected_inputs(exact, OUT)
        bias = OUT.replace("weight", "bias")
        change, shift = ((state[name] - before[name]).double().numpy() for name in (OUT, bias))
        moved, output = inputs @ change.T + shift, inputs @ before[OUT].double().numpy().T
        assert constraint.drift()[OUT] == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(output), rel=1e-6)
        assert constraint.drift()[OUT] > 1e-3
        assert constraint.report().altered == {}

    @given(seed=st.integers(0, 2**16), count=st.integers(1, 20))
    def test_the_drift_of_a_shift_is_that_of_the_vectors(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        k, change, weight, shift = (rng.standard_normal(shape) for shape in ((count, 4), (3, 4), (3, 4), 3))
        found = relative_drift(change, weight, Moment(k.T @ k / count, k.mean(0), count), shift=shift)
        assert found == pytest.approx(np.linalg.norm(k @ change.T + shift) / np.linalg.norm(k @ weight.T), rel=1e-6)


@pytest.mark.parametrize("mode", [True, False], ids=["while training", "while evaluating"])
def test_measuring_leaves_the_modes_alone(store: nb.OpenStore, mode: bool) -> None:
    """And dropout does not count."""
    unet = fresh_unet()
    add_lora(unet, lora_dropout=0.5)
    constraint = nb.constrain(unet, store)
    train(unet, adamw(trainable(unet)), range(2))
    unet.train(mode)
    modes = [module.training for module in unet.modules()]
    assert max(constraint.drift().values()) <= 1e-6
    assert [module.training for module in unet.modules()] == modes
