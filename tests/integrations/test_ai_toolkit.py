"""ai-toolkit's training with the extension: the whole way, and what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.integrations.ai_toolkit import EXTENSION, constrained, require_ai_toolkit
from tests.support.ai_toolkit import SDTrainer
from tests.support.tiny_collected import Collected

Models = Callable[[str], Collected]


def process(collected: Collected, settings: dict[str, Any] | None = None, **changes: Any) -> Any:
    given = {"store": collected.store.url, **(settings or {})}
    return constrained(SDTrainer)(collected.load(), {"nullbooth": given}, **changes)


def drifts(collected: Collected, file: Path) -> dict[str, float]:
    """norm(dW K) / norm(W K) of each weight that a file changes; NaN for one that the store does not have."""
    tensors, pipe = load_file(file), collected.load()
    start = (pipe.transformer if hasattr(pipe, "transformer") else pipe.unet).state_dict()
    moments = {weight: collected.store.moment(site).second_moment for site in collected.store.sites() for weight in site.weights}
    found = {}
    for key in (key for key in tensors if ".lora_A." in key):
        weight = key.removeprefix("transformer.").replace(".lora_A", "")
        a, b, w = (each.double().flatten(1).numpy() for each in (tensors[key], tensors[key.replace("_A", "_B")], start[weight]))
        c = moments.get(weight)
        found[weight] = np.nan if c is None else float(np.sqrt(max(np.trace(b @ a @ c @ a.T @ b.T), 0) / np.trace(w @ c @ w.T)))
    return found


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_trained_file_is_silent_on_the_collected_inputs(
    models: Models, file: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    collected = models(name)
    made = process(collected)
    made.run(file)
    protected = {weight for site in collected.store.sites() for weight in site.weights if "transformer_blocks" in weight}
    found = drifts(collected, file)
    assert set(found) == protected
    assert max(found.values()) < 1e-6
    ups = [value for key, value in load_file(file).items() if ".lora_B." in key]
    assert max(float(up.norm()) for up in ups) > 1e-2  # it did train
    assert "are dropped, because the store has no inputs of them" in caplog.text
    listed = sum(len(group["params"]) for group in made.params)
    assert listed == 2 * len(protected) == len([*made.network.parameters()])


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_ai_toolkits_own_training_drifts(models: Models, file: Path, name: str) -> None:
    collected = models(name)
    SDTrainer(collected.load(), {}).run(file)
    assert np.nanmin([*drifts(collected, file).values()]) > 1e-2


def test_dropped_layers_compute_what_they_did(models: Models, file: Path) -> None:
    made = process(models("sd1"))
    made.run(file, steps=1)
    layer = made.denoiser.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    x = torch.randn(2, 3, 64)
    assert layer.forward.__func__ is torch.nn.Linear.forward
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_training_goes_on_from_its_own_file_only(models: Models, file: Path, tmp_path: Path) -> None:
    collected, second = models("sd1"), tmp_path / "second.safetensors"
    process(collected).run(file)
    process(collected, resume=file).run(second, steps=0)
    before, now = load_file(file), load_file(second)
    assert all(torch.allclose(before[key], now[key], atol=1e-6) for key in before)
    SDTrainer(collected.load(), {}).run(file)
    with pytest.raises(ModelError, match=r"has learned something, and .* does not protect it"):
        process(collected, resume=file).run(second)
    save_file({key: value for key, value in load_file(file).items() if "attn2" in key}, file)
    with pytest.raises(ModelError, match=r"was not trained under this constraint: 0\.\d+ of its norm"):
        process(collected, resume=file).run(second)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"store": ""}, {}, "the process names no store"),
        ({"sotre": "a"}, {}, "sotre is not a key of the process"),
        ({}, {"type": "lokr"}, "network.type is lokr"),
        ({}, {"type": "none"}, "trains no network, but the model itself"),
        ({}, {"train_text_encoder": True}, "train_text_encoder moves every input of the model"),
        ({}, {"quantize": True}, "model.quantize is on, and quantized weights cannot be compared"),
        ({}, {"layer_offloading": True}, "layer_offloading runs the network's layers in its own way"),
        (
            {},
            {"more": [{"params": [torch.nn.Parameter(torch.zeros(3, 5))], "lr": 1.0}]},
            r"1 tensor would train beside the network, such as one of shape \(3, 5\)",
        ),
    ],
)
def test_what_is_refused(models: Models, file: Path, settings: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        process(models("sd1"), settings, **changes).run(file)


def test_another_base_model(models: Models, file: Path) -> None:
    made = process(models("sd1"))
    made.denoiser.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight").data *= 1.1
    with pytest.raises(ConfigError, match="1 of 17 weights differ"):
        made.run(file)
    made = process(models("sd1"), {"base_model": "trust"})
    made.denoiser.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight").data *= 1.1
    made.run(file, steps=1)


def test_extension_is_what_ai_toolkit_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"toolkit.extension": {"Extension": object}, "extensions_built_in.sd_trainer.SDTrainer": {"SDTrainer": SDTrainer}}
    for name, names in modules.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(name))
        sys.modules[name].__dict__.update(names)
    space: dict[str, Any] = {}
    exec(EXTENSION, space)
    [extension] = space["AI_TOOLKIT_EXTENSIONS"]
    assert extension.uid == "nullbooth_trainer"
    assert issubclass(extension.get_process(), SDTrainer)
    assert "hook_add_extra_train_params" in vars(extension.get_process())


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not ai-toolkit: it has no toolkit/extension"):
        require_ai_toolkit(tmp_path)
