"""The weights of a trainer's model against those that a store records."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.integrations.base_model import read_base_model, require_base
from nullbooth_cli.tensors import tensor_digest, tensor_sample

NORM = "transformer_blocks.1.norm1_context.linear.weight"


@dataclass
class Recorded:
    """As much of a store as the comparison reads."""

    weights: dict[str, torch.Tensor]
    forget: str = ""
    url: str = "run.zarr"
    config: dict[str, Any] = field(default_factory=lambda: {"dtype": "float32"})

    @property
    def records(self) -> dict[str, Any]:
        digests = {name: tensor_digest(weight, "float32") for name, weight in self.weights.items()}
        samples = {name: tensor_sample(weight) for name, weight in self.weights.items()}
        made = {"tensors": digests, "samples": samples, "model": {"model": "sd15"}}
        return {"collect": {name: value for name, value in made.items() if name != self.forget}}


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(16, 12, generator=generator) for name in ("a.weight", NORM)}


def require(store: Recorded, found: dict[str, torch.Tensor]) -> str | None:
    return require_base(store, found)  # type: ignore[arg-type]


def test_the_same_weights_need_no_word() -> None:
    assert require(Recorded(weights()), {**weights(), "unknown.weight": torch.zeros(2, 2)}) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_weights_are_known_again(dtype: torch.dtype) -> None:
    rounded = {name: weight.to(torch.float16).to(dtype) for name, weight in weights().items()}
    assert require(Recorded(weights()), rounded) == (
        "2 of 2 weights of the base model equal those of the store within rounding only"
    )


def test_another_order_of_shift_and_scale_is_the_same_weight() -> None:
    """As kohya's SD3 has it in the last block."""
    swapped = {NORM: torch.cat([weights()[NORM][8:], weights()[NORM][:8]])}
    assert require(Recorded(weights()), swapped) is None
    with pytest.raises(ConfigError, match="1 of 1 weight differ"):
        require(Recorded(weights()), {"a.weight": weights()["a.weight"].roll(8, 0)})


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_a_change_of_two_percent_is_another_model(share: float) -> None:
    found = weights()
    found["a.weight"] = (1 + share) * found["a.weight"]
    with pytest.raises(ConfigError) as raised:
        require(Recorded(weights()), found)
    assert raised.value.message == (
        "the base model is not the one that run.zarr was collected from (sd15): 1 of 2 weights differ, such as a.weight"
    )
    assert "base_model to trust" in raised.value.hint


def test_stores_that_know_less() -> None:
    """An earlier store has digests alone, and an imported one may have nothing."""
    assert require(Recorded(weights(), forget="samples"), weights()) is None
    with pytest.raises(ConfigError, match="2 of 2 weights differ"):
        require(Recorded(weights(), forget="samples"), {name: weight.half() for name, weight in weights().items()})
    with pytest.raises(ConfigError, match=r"run\.zarr does not record which weights it was made from"):
        require(Recorded(weights(), forget="tensors"), weights())


def test_quantized_weights_are_not_compared() -> None:
    found = {name: weight.to(torch.float8_e4m3fn) for name, weight in weights().items()}
    with pytest.raises(ConfigError, match="2 weights of the base model are float8_e4m3fn, such as"):
        require(Recorded(weights()), found)


def test_choices() -> None:
    assert [read_base_model(word) for word in ("compare", "trust")] == ["compare", "trust"]
    with pytest.raises(ConfigError, match="'yes' is not a choice"):
        read_base_model("yes")
