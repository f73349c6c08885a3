"""Moving averages: what they are, and that they keep a constraint."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nullbooth_cli as nb
from nullbooth_cli.store import Store
from nullbooth_cli.training.ema import Averages, averaged
from tests.support.tiny_training import WEIGHTS, adamw, changes, drift_on_inputs, loss_of, prepared, trainable

DECAY = 0.6


def test_an_average_follows_its_formula_and_gives_way_again() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((8, 5))
    parameter = nn.Parameter(torch.tensor(values[0]))
    averages = Averages({"x": parameter}, DECAY)
    expected = values[0]
    for n, value in enumerate(values[1:], start=1):
        parameter.data.copy_(torch.tensor(value))
        averages.update()
        decay = 0.0 if n == 1 else min(DECAY, n / (9 + n))
        expected = decay * expected + (1 - decay) * value
    with averaged(averages):
        np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-12)
    np.testing.assert_array_equal(parameter.detach(), values[-1])
    averages.apply()
    np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-12)


def test_loaded_averages_go_on_as_the_others() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    whole = Averages({"x": parameter}, DECAY)
    for step in range(4):
        parameter.data += step
        whole.update()
    resumed = Averages({"x": nn.Parameter(torch.ones(3))}, DECAY)
    resumed.load({"x": whole.tensors()["x"].clone()}, 4)
    resumed._parameters["x"].data.copy_(parameter.data)
    for averages in (whole, resumed):
        averages._parameters["x"].data += 7
        averages.update()
    assert torch.equal(whole.tensors()["x"], resumed.tensors()["x"])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_average_keeps_the_constraint(kind: str, exact: Store, store: nb.OpenStore, before: dict[str, torch.Tensor]) -> None:
    unet = prepared(kind)
    constraint = nb.constrain(unet, store)
    trained = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
    optimizer, averages = adamw(trainable(unet)), Averages(trained, DECAY)
    weights = {weight: before[weight].double() for weight in WEIGHTS}
    mean = {weight: 0.0 * start for weight, start in weights.items()}
    for step in range(1, 6):
        optimizer.zero_grad()
        loss_of(unet, step).backward()
        optimizer.step()
        averages.update()
        decay = 0.0 if step == 1 else min(DECAY, step / (9 + step))
        now = changes(unet, before)
        mean = {weight: decay * mean[weight] + (1 - decay) * now[weight] for weight in WEIGHTS}
    last = changes(unet, before)
    with averaged(averages):
        found: dict[str, Any] = changes(unet, before)
        drift = constraint.drift()
    for weight, start in weights.items():
        assert torch.linalg.norm(found[weight] - last[weight]) > 0.05 * torch.linalg.norm(last[weight])
        assert drift_on_inputs(exact, weight, found[weight], start) < 1e-5
        if kind == "full":  # of a LoRA, the average of B A is not the product of the averages
            torch.testing.assert_close(found[weight], mean[weight], rtol=1e-4, atol=1e-6)
    assert max(drift.values()) < 1e-5
