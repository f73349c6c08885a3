"""A store of two denoisers constrains each: which of them a model is, its weights say."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import nullbooth_cli as nb
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoisers import denoiser_weights
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.nullspace.usable import check_model
from nullbooth_cli.tensors import tensor_digest
from tests.support.attention import Denoiser
from tests.support.pipelines import SmallPipeline

NAMES = ("blocks.0.attn2.to_k.weight", "blocks.0.attn2.to_v.weight")
SECOND = "transformer_2."


class TwoDenoisers:
    """A store of two weights in each denoiser of a pipeline, with a random null space of half the dimensions for each."""

    def __init__(self, pipe: Any) -> None:
        tensors = {name: tensor for name, tensor in denoiser_weights(pipe).items() if name.endswith(NAMES)}
        recorded = {name: tensor_digest(tensor, "float32") for name, tensor in tensors.items()}
        records = {"collect": {"tensors": recorded, "model": {"model": "small"}}}
        no_tasks = SimpleNamespace(has_attribute=lambda _: False)
        self._store: Any = SimpleNamespace(url="run.zarr", records=records, config={"dtype": "float32"}, arrays=no_tasks)
        rng = np.random.default_rng(0)
        self.found = {prefix: Projector.of(np.linalg.qr(rng.standard_normal((6, 6)))[0], 3) for prefix in ("", SECOND)}

    def sites(self) -> Sequence[Site]:
        weights = {prefix: tuple(f"{prefix}{name}" for name in NAMES) for prefix in self.found}
        return [
            Site(f"{prefix}blocks.0.attn2", "k", "input", of, timestep_free=True, num_tokens=3, dim=6)
            for prefix, of in weights.items()
        ]

    def moment(self, site: Site) -> Any:
        raise NotImplementedError("the drift is not measured here")

    def projectors(self, model: Mapping[str, torch.Tensor]) -> Mapping[str, Projector]:
        check_model(self._store, model)
        return {weight: self.found[site.layer.removesuffix("blocks.0.attn2")] for site in self.sites() for weight in site.weights}


@pytest.fixture
def pipe() -> Any:
    torch.manual_seed(1)
    made = SmallPipeline(second=Denoiser())
    for denoiser in (made.unet, made.transformer_2):
        denoiser.requires_grad_(False)
    return made


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize(("part", "prefix"), [("unet", ""), ("transformer_2", SECOND)])
def test_each_is_constrained_by_its_own_projectors(pipe: Any, kind: str, part: str, prefix: str) -> None:
    store, denoiser = TwoDenoisers(pipe), getattr(pipe, part)
    inputs = torch.randn(20, 6) - store.found[prefix].apply(torch.randn(20, 6))
    preserved = inputs - store.found[prefix].apply(inputs)
    layer = denoiser.get_submodule("blocks.0.attn2")
    if kind == "full":
        layer.to_k.weight.requires_grad_(True)
        layer.to_v.weight.requires_grad_(True)
    else:
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["blocks.0.attn2.to_k", "blocks.0.attn2.to_v"]), denoiser)
    before = layer.to_k(preserved), layer.to_k(inputs + 1)
    constraint = nb.constrain(denoiser, store)
    of_lora = tuple(name.replace("weight", "lora_A.default.weight") for name in NAMES)
    assert dict(constraint.report().constrained) == dict.fromkeys(NAMES if kind == "full" else of_lora, (3, 6))
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    torch.testing.assert_close(layer.to_k(preserved), before[0], rtol=0, atol=1e-5)
    assert (layer.to_k(inputs + 1) - before[1]).abs().max() > 0.1


def test_equal_denoisers_are_told_apart_by_name_alone(pipe: Any) -> None:
    pipe.transformer_2.load_state_dict(pipe.unet.state_dict())
    store, second = TwoDenoisers(pipe), pipe.transformer_2.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"this Denoiser may be any of 2 denoisers of the store: .* are equal") as caught:
        nb.constrain(second, store)
    assert caught.value.hint == "set part to the name of the main one (unet, transformer) or transformer_2"
    constraint = nb.constrain(second, store, part="transformer_2")
    assert len(constraint.report().constrained) == 2


@pytest.mark.parametrize("part", ["vae", "transformer_3", ""])
def test_a_part_that_the_store_has_nothing_of(pipe: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=f"part='{part}': the store has no projectors of it"):
        nb.constrain(pipe.unet, TwoDenoisers(pipe), part=part)


def test_another_model_and_the_wrong_part_are_refused(pipe: Any) -> None:
    store = TwoDenoisers(pipe)
    torch.manual_seed(2)
    with pytest.raises(ConfigError, match=r"another model .*: 2 weights differ, such as blocks\.0\.attn2\.to_k\.weight"):
        nb.constrain(Denoiser(), store)
    with pytest.raises(ConfigError, match=r"2 weights differ, such as transformer_2\.blocks\.0\.attn2\.to_k\.weight"):
        nb.constrain(pipe.unet, store, part="transformer_2")
    with pytest.raises(ConfigError, match=r"2 weights are missing, such as blocks\.0\.attn2\.to_k\.weight"):
        nb.constrain(nn.Linear(2, 2), store)
