"""Weights that change only within a null space load, save, cast and resume as plain weights do."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import nullbooth_cli as nb
from nullbooth_cli.errors import ModelError
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.store import Store
from nullbooth_cli.toy import FOLDER
from nullbooth_cli.training.parametrization import TorchProjector, constrain_weight
from tests.support.tiny_training import (
    LAYER,
    OPTIMIZERS,
    WEIGHTS,
    adamw,
    drift_on_inputs,
    fresh_unet,
    loss_of,
    prepared,
    train,
    trainable,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def with_short_biases(unet: Any, dtype: torch.dtype) -> Any:
    """A model whose biases a dtype has exactly: rounding a bias changes what the layer computes, which no projector undoes."""
    for name, parameter in unet.named_parameters():
        if name.endswith(".bias"):
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    return unet


def test_casting_the_model_rounds_no_projector(store: nb.OpenStore) -> None:
    unet = with_short_biases(fresh_unet(), torch.bfloat16)
    constraint = nb.constrain(unet, store)
    unet.to(torch.bfloat16).to(torch.float32)
    train(unet, adamw(trainable(unet)), range(4))
    assert max(constraint.drift().values()) <= 1e-6


class TestFiles:
    def test_names_and_values_are_those_of_a_plain_model(self, store: nb.OpenStore, before: dict[str, torch.Tensor]) -> None:
        unet = fresh_unet()
        nb.constrain(unet, store)
        assert set(unet.state_dict()) == set(before)
        for name, tensor in unet.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)

    def test_a_saved_model_draws_what_the_trained_one_draws(self, store: nb.OpenStore, tmp_path: Path) -> None:
        unet = fresh_unet()
        nb.constrain(unet, store)
        train(unet, adamw(trainable(unet)), range(4))
        unet.save_pretrained(tmp_path)
        again = UNet2DConditionModel.from_pretrained(tmp_path).train()
        assert {type(module) for module in again.modules()}.isdisjoint({type(unet.get_submodule(f"{LAYER}.to_q"))})
        torch.testing.assert_close(loss_of(again, 0), loss_of(unet, 0), rtol=0, atol=0)

    def test_a_saved_lora_is_an_ordinary_one(
        self, exact: Store, store: nb.OpenStore, before: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        from peft.utils import get_peft_model_state_dict

        unet = prepared("lora")
        nb.constrain(unet, store)
        train(unet, adamw(trainable(unet)), range(4))
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=get_peft_model_state_dict(unet),
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        )
        pipe = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
        pipe.load_lora_weights(tmp_path)
        torch.testing.assert_close(loss_of(pipe.unet.train(), 0), loss_of(unet, 0))
        file = load_file(tmp_path / "pytorch_lora_weights.safetensors")
        for weight in WEIGHTS:
            a, b = (file[f"unet.{weight.replace('weight', f'lora_{part}.weight')}"].double() for part in "AB")
            assert drift_on_inputs(exact, weight, 2 * b @ a, before[weight]) <= 1e-6

    @pytest.mark.parametrize("name", ["AdamW", "SGD with momentum", "Prodigy"])
    @pytest.mark.parametrize("kind", ["full", "lora"])
    def test_a_resumed_run_is_the_uninterrupted_one(self, store: nb.OpenStore, name: str, kind: str) -> None:
        def begin() -> tuple[Any, Any, nb.Constraint]:
            unet = prepared(kind)
            constraint = nb.constrain(unet, store)
            return unet, OPTIMIZERS[name](trainable(unet)), constraint

        unet, optimizer, _ = begin()
        train(unet, optimizer, range(3))
        files = unet.state_dict(), optimizer.state_dict()
        resumed, its_optimizer, constraint = begin()
        resumed.load_state_dict({key: tensor.clone() for key, tensor in files[0].items()})
        its_optimizer.load_state_dict(torch.load(_through_a_file(files[1]), weights_only=False))
        for each, of in ((unet, optimizer), (resumed, its_optimizer)):
            train(each, of, range(3, 6))
        assert max(constraint.drift().values()) <= 1e-6
        for key, tensor in unet.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[key], tensor, rtol=1e-4, atol=1e-5, msg=key)

    def test_what_was_trained_otherwise_is_not_loaded(self, store: nb.OpenStore, before: dict[str, torch.Tensor]) -> None:
        unet = fresh_unet()
        nb.constrain(unet, store)
        state = {**before, WEIGHTS[0]: before[WEIGHTS[0]] * 1.05}
        with pytest.raises(ModelError, match=rf"{re.escape(WEIGHTS[0])} was not trained under this constraint: 0\.0"):
            unet.load_state_dict(state)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_what_was_saved_in_fewer_digits_is_loaded(self, store: nb.OpenStore, dtype: torch.dtype) -> None:
        unet = with_short_biases(fresh_unet(), dtype)
        nb.constrain(unet, store)
        train(unet, adamw(trainable(unet)), range(4))
        rounded = {name: tensor.to(dtype) for name, tensor in unet.state_dict().items()}
        again = with_short_biases(fresh_unet(), dtype)
        constraint = nb.constrain(again, store)
        again.load_state_dict(rounded)
        assert max(constraint.drift().values()) <= 1e-6, "and what rounding moved is projected out"


def _through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@given(dim=st.integers(2, 9), null=st.floats(0.01, 1), rows=st.integers(1, 5), seed=st.integers(0, 99), big=st.floats(-3, 3))
def test_any_change_stays_in_the_null_space(dim: int, null: float, rows: int, seed: int, big: float) -> None:
    rng = np.random.default_rng(seed)
    projector = Projector.of(np.linalg.qr(rng.standard_normal((dim, dim)))[0], max(1, round(null * dim)))
    linear = nn.Linear(dim, rows, bias=False)
    start = linear.weight.detach().clone()
    parameter = linear.weight
    release = constrain_weight(linear, TorchProjector(projector), keep_value=True)
    assert torch.equal(linear.weight, start)
    assert linear.parametrizations.weight.original is parameter, "an optimizer that has it keeps it"  # type: ignore[union-attr]
    with torch.no_grad():
        parameter += 10**big * torch.randn(rows, dim)
    expected = start.double().numpy() + parameter.detach().double().numpy() @ projector.dense()
    np.testing.assert_allclose(linear.weight.detach().numpy(), expected, rtol=0, atol=1e-6 * (1 + 10**big))
    other = nn.Linear(dim, rows, bias=False)
    other.weight.data = start.clone()
    constrain_weight(other, TorchProjector(projector), keep_value=True)
    other.load_state_dict(linear.state_dict())
    torch.testing.assert_close(other.weight, linear.weight, rtol=0, atol=1e-6 * (1 + 10**big))
    release()
    assert linear.weight is parameter
    np.testing.assert_allclose(linear.weight.detach().numpy(), expected, rtol=0, atol=1e-6 * (1 + 10**big))


@given(dim=st.integers(8, 64), null=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_products_in_bfloat16_cost_less_than_the_rounding_of_the_weight(dim: int, null: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    projector = Projector.of(np.linalg.qr(rng.standard_normal((dim, dim)))[0], max(1, round(null * dim)))
    change = torch.from_numpy(rng.standard_normal((16, dim))).float().requires_grad_()
    expected = change.detach().double().numpy() @ projector.dense()
    short = TorchProjector(projector).apply(change, in_bfloat16=True)
    assert short.dtype == torch.float32
    short.square().sum().backward()
    assert change.grad is not None
    rounded = float(torch.linalg.norm(change.detach().bfloat16() - change.detach()))  # at most, of a start as large as the change
    assert np.linalg.norm(short.detach().double().numpy() - expected) <= 4 * rounded
    np.testing.assert_allclose(change.grad.numpy(), 2 * expected, rtol=0, atol=0.1)
