"""The optimizers by name: their groups, the memory of their states, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.recipe import OptimizerName
from nullbooth_cli.settings.schema import validate
from nullbooth_cli.training import optimizers
from tests.support.tiny_dreambooth import recipe

NAMES: tuple[OptimizerName, ...] = ("adamw", "adamw8bit", "prodigy")
SIZES = (8192, 5000, 100)


def require(name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="diffusers then imports it in every command: not among [dev]")


def made(tmp_path: Path, name: str, **changes: Any) -> tuple[torch.optim.Optimizer, list[nn.Parameter], nn.Parameter]:
    """An optimizer of three parameters, and of a word, after two steps on the same gradients."""
    require(name)
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]
    word = nn.Parameter(torch.randn(24, generator=generator))
    rates = {"learning_rate": 1.0, "word_learning_rate": 1.0} if name == "prodigy" else {"learning_rate": 1e-2}
    wanted = recipe(tmp_path, optimizer=name, **{"adam_weight_decay": 0.5, **rates, **changes})
    optimizer = optimizers.build(wanted, parameters, [word], [1.0])
    for _ in range(2):
        for parameter in (*parameters, word):
            parameter.grad = torch.linspace(-1, 1, len(parameter))
        optimizer.step()
    return optimizer, parameters, word


@pytest.mark.parametrize("name", NAMES)
def test_the_state_has_the_bytes_that_are_counted(tmp_path: Path, name: OptimizerName) -> None:
    optimizer, parameters, _ = made(tmp_path, name)
    tensors = [
        value
        for parameter in parameters
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor) and value.dim() and not key.startswith("qmap")  # one table of 256 numbers for all
    ]
    assert sum(tensor.nbytes for tensor in tensors) == optimizers.state_bytes(name, SIZES)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_word_has_no_weight_decay(tmp_path: Path, name: OptimizerName) -> None:
    optimizer, _, _ = made(tmp_path, name, word_learning_rate=1.0 if name == "prodigy" else 0.25)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == ([1.0, 1.0] if name == "prodigy" else [1e-2, 0.25])


def test_adamw_is_that_of_torch(tmp_path: Path) -> None:
    _, parameters, _ = made(tmp_path, "adamw")
    generator = torch.Generator().manual_seed(0)
    expected = nn.Parameter(torch.randn(SIZES[0], generator=generator))
    optimizer = torch.optim.AdamW([expected], lr=1e-2, weight_decay=0.5)
    for _ in range(2):
        expected.grad = torch.linspace(-1, 1, len(expected))
        optimizer.step()
    assert torch.equal(parameters[0], expected)


def test_prodigy_finds_its_step_size_and_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer, *_ = made(tmp_path, "prodigy", adam_weight_decay=0.0)
    for _ in range(100):
        optimizer.step()  # always the same way, so the first step size was too small
    assert capsys.readouterr().out == ""
    assert optimizers.rate_of(optimizer) == optimizer.param_groups[0]["d"] > 1e-6
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizers.rate_of(optimizer) == 0.5 * optimizer.param_groups[0]["d"]


def test_the_rate_of_adamw_is_its_learning_rate(tmp_path: Path) -> None:
    assert optimizers.rate_of(made(tmp_path, "adamw")[0]) == 1e-2


@pytest.mark.parametrize(("name", "extra"), [("prodigy", r"nullbooth\[train\]"), ("adamw8bit", r"nullbooth\[8bit\]")])
def test_a_package_that_is_not_installed(name: OptimizerName, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"optimizer: {name} needs .* not installed") as caught:
        optimizers.require_package(name)
    assert caught.value.hint == f"pip install '{extra}'".replace("\\", "")
    optimizers.require_package("adamw")


def test_a_small_learning_rate_of_prodigy_is_noted(tmp_path: Path) -> None:
    note = optimizers.rate_note(recipe(tmp_path, optimizer="prodigy", learning_rate=1e-3))
    assert note is not None
    assert "0.001 makes it 1,000 times smaller: set learning_rate to 1.0" in note
    assert optimizers.rate_note(recipe(tmp_path, optimizer="prodigy", learning_rate=1.0)) is None
    assert optimizers.rate_note(recipe(tmp_path, optimizer="adamw", learning_rate=1e-3)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "prodigy", "word": "sks", "learning_rate": 1.0}, "word_learning_rate is 0.01 where learning_rate is 1"),
        ({"dtype": "float16"}, "dtype: float16 cannot run with mixed_precision: no"),
        ({"dtype": "float16", "mixed_precision": "bf16"}, "dtype: float16 cannot run with mixed_precision: bf16"),
        ({"dtype": "bfloat16", "mixed_precision": "fp16"}, "dtype: bfloat16 cannot run with mixed_precision: fp16"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_combinations_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    from nullbooth_cli.settings.recipe import Recipe

    with pytest.raises(ConfigError, match=message):
        validate(Recipe, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "fp16"},
        {"dtype": "bfloat16", "mixed_precision": "bf16"},
        {"dtype": "float16", "mixed_precision": "fp16"},
        {"optimizer": "prodigy", "word": "sks", "learning_rate": 1.0, "word_learning_rate": 1.0},
    ],
)
def test_combinations_that_work(changes: dict[str, Any], tmp_path: Path) -> None:
    assert recipe(tmp_path, **changes)


@pytest.mark.parametrize(("name", "moved"), [("adamw", [1e-3, 5e-2]), ("prodigy", None)])
def test_a_larger_embedding_has_a_larger_rate(tmp_path: Path, name: OptimizerName, moved: list[float] | None) -> None:
    """The first step of Adam has the size of the learning rate."""
    words = [nn.Parameter(torch.ones(24)) for _ in range(2)]
    rate = 1e-3 if moved else 1.0
    wanted = recipe(tmp_path, optimizer=name, learning_rate=rate, word_learning_rate=rate)
    optimizer = optimizers.build(wanted, [nn.Parameter(torch.ones(3))], words, [0.02, 1.0])
    for word in words:
        word.grad = torch.linspace(1, 2, 24)
    optimizer.step()
    found = [float((1 - word.detach()).abs().max()) for word in words]
    assert found == pytest.approx(moved, rel=1e-3) if moved else found[0] == found[1] > 0
