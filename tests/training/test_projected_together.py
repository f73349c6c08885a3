"""A forward projects all adapters of a projector by one product; values, gradients and files are as without."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

import nullbooth_cli as nb
from nullbooth_cli.training import constraint as constraints
from nullbooth_cli.training.distillation import Teacher
from nullbooth_cli.training.parametrization import TorchProjector
from tests.support.tiny_training import LAYER, fresh_unet, trainable

pytestmark = pytest.mark.usefixtures("one_thread")


def adapted() -> Any:
    unet = fresh_unet()
    unet.requires_grad_(False)
    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=2, target_modules=[f"{LAYER}.to_k", f"{LAYER}.to_v"], init_lora_weights="gaussian"))
    return unet


def loosened(unet: Any) -> Any:
    """With B other than zero, so that A has a gradient."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    return unet


def step(unet: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of two forwards and one of the teacher, and the gradients."""
    teacher, given = Teacher(unet), torch.Generator().manual_seed(4)
    latents, text = torch.randn(2, 8, 8, 8, generator=given), torch.randn(2, 16, 96, generator=given)
    first, second = unet(latents, 500, text).sample, unet(latents, 100, text).sample
    loss = first.square().mean() + (second - teacher(latents, 100, text).sample + 1).square().mean()
    loss.backward()
    return float(loss.detach()), {
        name: parameter.grad.clone() for name, parameter in unet.named_parameters() if parameter.requires_grad
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_the_same_as_one_by_one(store: nb.OpenStore, monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    found = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr(constraints, "_project_together", lambda *_: [])
        unet = adapted()
        nb.constrain(unet, store)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        found.append(step(loosened(unet).train()))
    (loss, gradients), (expected, others) = found
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-8)
    assert any(gradient.abs().max() > 1e-6 for name, gradient in gradients.items() if "lora_A" in name)


def test_one_product_for_each_projector(store: nb.OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = adapted()
    nb.constrain(unet, store)
    counted: list[tuple[int, ...]] = []
    apply = TorchProjector.apply
    monkeypatch.setattr(
        TorchProjector, "apply", lambda self, rows, **how: (counted.append(tuple(rows.shape)), apply(self, rows, **how))[1]
    )
    unet(torch.ones(1, 8, 8, 8), 500, torch.ones(1, 16, 96))
    assert counted == [(2 * len(adapters_of(unet)), 96)]


def adapters_of(unet: Any) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in unet.named_parameters() if "lora_A" in name]


def test_what_changed_since_the_forward_is_what_is_saved(store: nb.OpenStore) -> None:
    """Changes that no version counter sees, as those of averages, and those of an optimizer."""
    unet = adapted()
    constraint = nb.constrain(unet, store)
    loosened(unet)
    given = torch.ones(1, 8, 8, 8), 500, torch.ones(1, 16, 96)
    unet(*given).sample.sum().backward()
    for change in (lambda a: a.data.copy_(torch.ones_like(a)), lambda a: torch.nn.init.constant_(a, 2.0)):
        for parameter in adapters_of(unet):
            change(parameter)
        saved = [tensor for name, tensor in unet.state_dict().items() if "lora_A" in name]
        projector = store.projectors()[f"{LAYER}.to_k.weight"]
        expected = np.full((2, 96), float(adapters_of(unet)[0].detach()[0, 0])) @ projector.dense()
        for tensor in saved:
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=0, atol=1e-5)
    assert max(constraint.drift().values()) < 0.5


def test_copies_and_released_models(store: nb.OpenStore) -> None:
    unet = adapted()
    constraint = nb.constrain(unet, store)
    loosened(unet)
    given = torch.ones(1, 8, 8, 8), 500, torch.ones(1, 16, 96)
    drawn = unet(*given).sample
    copied = copy.deepcopy(unet)
    torch.testing.assert_close(copied(*given).sample, drawn, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for parameter in adapters_of(copied):
            parameter.zero_()
    torch.testing.assert_close(copied(*given).sample, fresh_unet()(*given).sample, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(unet(*given).sample, drawn, rtol=0, atol=0)
    assert len(unet._forward_pre_hooks) == 1
    constraint.merge()
    assert not unet._forward_pre_hooks
    assert not unet._forward_hooks
    torch.testing.assert_close(unet(*given).sample, drawn, rtol=1e-5, atol=1e-6)
    assert trainable(unet)
