"""An extension of ai-toolkit: its own trainer, whose LoRA modules train within null spaces.

    - type: nullbooth_trainer          # where its configs have sd_trainer
      nullbooth: {store: run.zarr}

ai-toolkit builds its network, loads a file that is to go on, and lists what trains; then it calls `hook_add_extra_train_params`
before the optimizer is built (ostris/ai-toolkit 27a03a9, jobs/process/BaseSDTrainProcess.py). The constraint is made there: what
is dropped leaves the network, the model and the list, because everything in that list is set to train again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted
from nullbooth_cli.integrations.base_model import TRUST, read_base_model, require_base
from nullbooth_cli.integrations.lora_modules import Protection, Sorted, base_layer, constrain_modules, warn

FOLDER = "extensions/nullbooth"  # inside of ai-toolkit
EXTENSION = '''\
"""Train within the null spaces of a nullbooth store: `type: nullbooth_trainer`, `nullbooth: {store: run.zarr}`."""

from toolkit.extension import Extension


class NullboothTrainer(Extension):
    uid = "nullbooth_trainer"
    name = "Null-space trainer"

    @classmethod
    def get_process(cls):
        from extensions_built_in.sd_trainer.SDTrainer import SDTrainer
        from nullbooth_cli.integrations.ai_toolkit import constrained

        return constrained(SDTrainer)


AI_TOOLKIT_EXTENSIONS = [NullboothTrainer]
'''
_KEYS = ("store", "base_model")


def require_ai_toolkit(folder: Path) -> None:
    """Raise ConfigError for a folder without ai-toolkit."""
    if not (folder / "toolkit/extension.py").is_file():
        raise ConfigError(
            f"{folder} is not ai-toolkit: it has no toolkit/extension.py", "name the folder that has ai-toolkit's run.py"
        )


def constrained(trainer: type) -> type:
    """The subclass of ai-toolkit's SDTrainer that constrains what it trains."""
    base: Any = trainer

    class NullboothProcess(base):  # type: ignore[misc]  # a class of another program
        def hook_add_extra_train_params(self, params: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return constrain_process(self, super().hook_add_extra_train_params(params))

    return NullboothProcess


def constrain_process(process: Any, params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Constrain the network of a process of ai-toolkit; returns its parameter groups without what was dropped.

    Raises ConfigError for a config without a store, for anything but plain LoRA of the denoiser, for another base model than the
    store's, and for parameters that train beside the network; ModelError if the network resumes from a file that was trained
    freely. Cost: one read of the base weights that the store protects.
    """
    settings = process.get_conf("nullbooth", None) or {}
    _require_settings(settings)
    _require_plain_lora(process)
    protection = Protection.of(str(settings["store"]))
    url, network = protection.store.url, process.network
    names = {id(module): name for name, module in process.sd.get_model_to_train().named_modules()}
    found, dropped = Sorted(), []
    for module in network.unet_loras:
        projector = protection.projectors.get(f"{names.get(id(base_layer(module)), '')}.weight")
        if projector is None:
            _require_untrained(module, url)
            found.dropped.append(module.lora_name)
            dropped.append(module)
        else:
            found.kept.append((module, projector))
    found.require_some(url)
    groups = _without(params, dropped, [module for module, _ in found.kept])
    notes = [found.report(url)]
    if read_base_model(str(settings.get("base_model", "compare"))) == "compare":
        if process.model_config.quantize:
            raise ConfigError("model.quantize is on, and quantized weights cannot be compared with those of the store", TRUST)
        weights = {f"{names[id(base_layer(module))]}.weight": base_layer(module).weight.detach() for module, _ in found.kept}
        notes.append(require_base(protection.store.store, weights) or "")
    constrain_modules(found.kept)
    for module in dropped:
        base_layer(module).forward = module.org_forward
        network._modules.pop(module.lora_name, None)
    network.unet_loras = [module for module, _ in found.kept]
    warn("\n".join(filter(None, notes)))
    return groups


def _require_settings(settings: Mapping[str, Any]) -> None:
    if unknown := [key for key in settings if key not in _KEYS]:
        raise ConfigError(f"nullbooth: {unknown[0]} is not a key of the process", f"the keys are {', '.join(_KEYS)}")
    if not settings.get("store"):
        raise ConfigError("the process names no store", "add nullbooth: {store: run.zarr} to it")


def _require_plain_lora(process: Any) -> None:
    """Raise ConfigError for what is not a LoRA of the denoiser alone."""
    network, config = process.network, process.network_config
    wrong = {
        "the process trains no network, but the model itself": network is None,
        f"network.type is {getattr(config, 'type', None)}": network is not None and str(config.type).lower() != "lora",
        "train.train_text_encoder moves every input of the model": bool(process.train_config.train_text_encoder),
        "network.layer_offloading runs the network's layers in its own way": bool(getattr(config, "layer_offloading", False)),
    }
    if reasons := [reason for reason, is_so in wrong.items() if is_so]:
        raise ConfigError("; ".join(reasons), "train a network of type lora, without text encoder and layer_offloading")


def _require_untrained(module: Any, url: str) -> None:
    """Raise ModelError if a module that would be dropped has learned something: it came from a file of free training."""
    if not hasattr(module, "lora_up"):
        raise ConfigError(
            f"{module.lora_name} is not plain LoRA, and {url} does not protect it", "leave all_layers and full_if_contains out"
        )
    if any(bool(up.any()) for up in module.lora_up.parameters()):
        raise ModelError(
            f"{module.lora_name} has learned something, and {url} does not protect it: it was not trained under this constraint",
            "begin without that file, or with one that was trained under the same store",
        )


def _without(params: list[dict[str, Any]], dropped: list[nn.Module], kept: list[nn.Module]) -> list[dict[str, Any]]:
    gone, ours = ({id(parameter) for module in modules for parameter in module.parameters()} for modules in (dropped, kept))
    groups = [{**group, "params": [one for one in group["params"] if id(one) not in gone]} for group in params]
    others = [one for group in groups for one in group["params"] if id(one) not in ours]
    if others:
        raise ConfigError(
            f"{counted(len(others), 'tensor')} would train beside the network, such as one of shape {tuple(others[0].shape)}",
            "train the network alone: no adapter, no decorator, no embedding",
        )
    return [group for group in groups if group["params"]]
