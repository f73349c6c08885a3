"""LoRA modules of another trainer: which are kept, and what is said of the others."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.integrations.lora_modules import Protection, Sorted, constrain_modules, kind_of
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.training.parametrization import TorchProjector


def projector(dim: int = 8, null_dim: int = 3) -> TorchProjector:
    basis = np.linalg.qr(np.random.default_rng(dim).standard_normal((dim, dim)))[0]
    return TorchProjector(Projector.of(basis, null_dim))


def module(down: nn.Module, up: float = 0.0) -> Any:
    made = SimpleNamespace(lora_name="lora_unet_a", lora_down=down, lora_up=nn.Linear(2, 4, bias=False))
    nn.init.constant_(made.lora_up.weight, up)
    return made


@pytest.mark.parametrize("down", [nn.Linear(8, 2, bias=False), nn.Conv2d(8, 2, 1, bias=False)])
def test_what_is_constrained_is_a_p(down: nn.Module) -> None:
    before, p = down.weight.detach().flatten(1).double().numpy(), projector()
    constrain_modules([(module(down), p)])
    dense = p.apply(torch.eye(8, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(down.weight.detach().flatten(1).numpy(), before @ dense, atol=1e-6)


@pytest.mark.parametrize(
    ("down", "message"),
    [
        (nn.Conv2d(8, 2, 3, bias=False), r"lora_unet_a is a convolution of \(3, 3\) pixels"),
        (nn.Linear(6, 2, bias=False), "receives vectors of 6 values, and those of the store have 8"),
    ],
)
def test_layers_that_the_store_does_not_describe(down: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        constrain_modules([(module(down), projector())])


def test_what_has_learned_freely_is_refused_and_left_as_it_is() -> None:
    fresh, trained = nn.Linear(8, 2, bias=False), nn.Linear(8, 2, bias=False)
    with pytest.raises(ModelError, match="was not trained under this constraint"):
        constrain_modules([(module(fresh), projector()), (module(trained, up=1.0), projector())])
    assert type(fresh) is type(trained) is nn.Linear
    with torch.no_grad():
        trained.weight.copy_(projector().apply(trained.weight))
    constrain_modules([(module(trained, up=1.0), projector())])


def test_rows_of_one_layer_have_one_input() -> None:
    one, other = projector(), projector()
    store: Any = SimpleNamespace(url="run.zarr")
    assert Protection(store, {"q": one, "k": one}).of_rows(["q", "k", "v"]) is one
    assert Protection(store, {"q": one}).of_rows(["a"]) is None
    with pytest.raises(ModelError, match=r"run\.zarr has 2 inputs for the weights of one layer: q, k"):
        Protection(store, {"q": one, "k": other}).of_rows(["q", "k"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q", "attn1_to_q"),
        ("lora_unet_mid_block_attentions_0_proj_in", "proj_in"),
        ("lora_unet_up_blocks_1_resnets_2_conv1", "conv1"),
        ("lora_unet_input_blocks_4_1_proj_out", "proj_out"),
        ("lora_unet_middle_block_1_transformer_blocks_3_ff_net_2", "ff_net_2"),
        ("lora_unet_double_blocks_18_img_mod_lin", "img_mod_lin"),
        ("lora_unet_single_blocks_37_linear1", "linear1"),
        ("lora_unet_joint_blocks_3_x_block_attn2_qkv", "x_block_attn2_qkv"),
        ("transformer$$transformer_blocks$$7$$norm1$$linear", "norm1_linear"),
        ("lora_unet_img_in", "lora_unet_img_in"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_report_of_many_kinds() -> None:
    found = Sorted(dropped=[f"lora_unet_double_blocks_0_{letter}" for letter in "abcdefghijklmn"])
    found.kept.append((module(nn.Linear(8, 2)), projector()))
    assert found.report("run.zarr").splitlines()[-2:] == ["  1 l, such as lora_unet_double_blocks_0_l", "  and 2 more"]
    assert Sorted(kept=found.kept).report("run.zarr") == "1 of 1 LoRA module train within the null spaces of run.zarr"
    with pytest.raises(ConfigError, match=r"run\.zarr protects none of the 14 modules"):
        Sorted(dropped=found.dropped).require_some("run.zarr")
