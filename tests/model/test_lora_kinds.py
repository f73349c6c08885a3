"""The change of each kind of LoRA is the one that LyCORIS and PEFT make of the same tensors."""

import logging
from typing import Any

import peft
import pytest
import torch
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import nn
from torch.nn import functional as F

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import lora_kinds
from nullbooth_cli.model.lora_module import LoraModule

LINEAR, CONV, POINTWISE = "linear", "conv", "pointwise"
LAYERS = {
    LINEAR: lambda: nn.Linear(12, 8),
    CONV: lambda: nn.Conv2d(6, 8, 3, padding=1),
    POINTWISE: lambda: nn.Conv2d(6, 8, 1),
}


def module_of(state: dict[str, torch.Tensor], shape: tuple[int, ...], scale: float | None = None) -> LoraModule:
    """The one module of a file with these tensors."""
    split = {key: lora_kinds.split_key(f"lora_unet_x.{key}") for key in state}
    tensors = {found[1]: state[key] for key, found in split.items() if found}
    assert len(tensors) == len(state), split
    kind = lora_kinds.kind_of(tensors)
    assert kind is not None
    rank = lora_kinds.rank_of(kind, tensors)
    if scale is None:
        scale = float(tensors["alpha"]) / rank if rank and "alpha" in tensors else 1.0
    return LoraModule(
        name="lora_unet_x",
        part="denoiser",
        path="x",
        kind="dora" if lora_kinds.magnitudes_of(tensors) is not None else kind,
        shape=shape,
        scale=scale,
        tensors=tensors,
        keys={found[1]: f"lora_unet_x.{key}" for key, found in split.items() if found},
    )


def filled(module: Any) -> Any:
    """A module of LyCORIS after some training."""
    for name, parameter in module.named_parameters():
        if "scalar" not in name and "org_" not in name:
            parameter.data += torch.randn(parameter.shape) * 0.3
    return module


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.manual_seed(0)
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("made", "options", "kind"),
    [
        (LoConModule, {}, "lora"),
        (LoConModule, {"use_tucker": True}, "lora"),
        (LoConModule, {"weight_decompose": True, "wd_on_out": True}, "dora"),
        (LoConModule, {"weight_decompose": True, "wd_on_out": False}, "dora"),
        (LohaModule, {}, "loha"),
        (LohaModule, {"use_tucker": True}, "loha"),
        (LohaModule, {"weight_decompose": True}, "dora"),
        (LokrModule, {"factor": 2}, "lokr"),
        (LokrModule, {"factor": 2, "decompose_both": True, "lora_dim": 1}, "lokr"),
        (LokrModule, {"factor": 2, "use_tucker": True, "lora_dim": 1}, "lokr"),
        (LokrModule, {"factor": 2, "full_matrix": True}, "lokr"),
        (FullModule, {}, "full"),
        (GLoRAModule, {}, "glora"),
        (IA3Module, {}, "ia3"),
    ],
)
def test_as_lycoris_runs_it(layer: str, made: Any, options: dict[str, Any], kind: str) -> None:
    """By its forward: its merging of LoHa and LoKr (4.1.3) applies alpha twice."""
    org = LAYERS[layer]()
    before, bias = org.weight.detach().clone(), org.bias.detach().clone()
    trained = made("x", org, 1.0, **({} if made is FullModule else {"lora_dim": 2, "alpha": 3.0, **options}))
    trained.apply_to()
    filled(trained)
    state = {key: value.detach() for key, value in trained.state_dict().items() if key not in ("org_weight", "bias")}
    module = module_of(state, tuple(before.shape))
    assert module.kind == kind
    found = module.change(before)
    assert found.dtype == torch.float32
    assert found.norm() > 0.1
    if made is FullModule:
        bias += state["diff_b"]
    after = (before + found.reshape(before.shape), bias)
    x = torch.randn(3, 12) if layer == LINEAR else torch.randn(3, 6, 5, 5)
    wanted = F.linear(x, *after) if layer == LINEAR else F.conv2d(x, *after, padding=org.padding)
    with torch.no_grad():
        torch.testing.assert_close(trained(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, lora_alpha=6, target_modules=["x"]),
        peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["x"]),
        peft.LoraConfig(r=2, lora_alpha=6, use_dora=True, target_modules=["x"]),
        peft.LoHaConfig(r=2, alpha=6, target_modules=["x"], init_weights=False),
        peft.LoKrConfig(r=1, alpha=6, target_modules=["x"], init_weights=False),
    ],
    ids=["lora", "rslora", "dora", "loha", "lokr"],
)
@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_as_peft_merges_it(config: Any, layer: str) -> None:
    org = nn.ModuleDict({"x": LAYERS[layer]()})
    before = org["x"].weight.detach().clone()
    wrapped = peft.get_peft_model(org, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name and "base_layer" not in name:
            parameter.data += torch.randn(parameter.shape) * 0.3
    state = {key.removeprefix("base_model.model.x."): value for key, value in peft.get_peft_model_state_dict(wrapped).items()}
    after = wrapped.merge_and_unload()["x"].weight.detach()
    alpha = config.lora_alpha if isinstance(config, peft.LoraConfig) else config.alpha
    scale = alpha / (config.r**0.5 if getattr(config, "use_rslora", False) else config.r)
    found = module_of(state, tuple(before.shape), scale).change(before)
    torch.testing.assert_close(found, (after - before).flatten(1), rtol=1e-4, atol=1e-5)


def test_a_rotation_is_named_and_not_measured() -> None:
    trained = DiagOFTModule("x", nn.Linear(12, 8), 1.0, lora_dim=4)
    state = {key: value.detach() for key, value in trained.state_dict().items() if key not in ("org_weight", "bias", "rescale")}
    module = module_of(state, (8, 12))
    assert (module.kind, module.is_measurable) == ("oft", False)
    with pytest.raises(ConfigError, match="lora_unet_x is of the kind oft, whose change is not measured"):
        module.change()


@pytest.mark.parametrize(("made", "options"), [(LohaModule, {}), (LohaModule, {"use_tucker": True}), (LokrModule, {"factor": 2})])
@pytest.mark.parametrize("layer", LAYERS)
def test_factors_of_a_plain_lora(layer: str, made: Any, options: dict[str, Any]) -> None:
    trained = filled(made("x", LAYERS[layer](), 1.0, lora_dim=1, alpha=1.0, **options))
    state = {key: value.detach() for key, value in trained.state_dict().items() if key not in ("org_weight", "bias")}
    module = module_of(state, tuple(trained.org_weight.shape))
    b, a = lora_kinds.factors_of(module.kind, module.tensors, module.scale)
    change = module.change().double()
    torch.testing.assert_close(b @ a, change, rtol=1e-5, atol=1e-6)
    b, a = lora_kinds.shortened(b, a)
    torch.testing.assert_close(b @ a, change, rtol=1e-5, atol=1e-6)
    assert len(a) == b.shape[1] == torch.linalg.matrix_rank(change, rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("lora_unet_a_b.lora_down.weight", ("lora_unet_a_b", "down")),
        ("unet.a.attn1.to_q.lora.up.weight", ("unet.a.attn1.to_q", "up")),
        ("unet.a.attn1.processor.to_q_lora.down.weight", ("unet.a.attn1.processor.to_q", "down")),
        ("text_encoder.a.fc1.lora_linear_layer.up.weight", ("text_encoder.a.fc1", "up")),
        ("double_blocks.0.processor.qkv_lora2.down.weight", ("double_blocks.0.processor.qkv_2", "down")),
        ("base_model.model.a.lora_magnitude_vector", ("base_model.model.a", "magnitude")),
        ("x.dora_scale", ("x", "dora_scale")),
        ("x.alpha", ("x", "alpha")),
        ("x.lora_B.bias", ("x", "bias")),
        ("x.diff_b", ("x", "diff_b")),
        ("x.hada_w1_a", ("x", "hada_w1_a")),
        ("x.lokr_w2", ("x", "lokr_w2")),
        ("x.a1.weight", ("x", "a1")),
        ("x.lora_mid.weight", ("x", "mid")),
        ("x.lora_A.default.weight", ("x", "down")),
        ("x.lora_B.default.bias", ("x", "bias")),
        ("x.lora_magnitude_vector.my-style.weight", ("x", "magnitude")),
        ("x.hada_w1_a.default", ("x", "hada_w1_a")),
        ("x.running_mean", None),
    ],
)
def test_keys(key: str, split: tuple[str, str] | None) -> None:
    assert lora_kinds.split_key(key) == split
