"""A network module for kohya's sd-scripts: kohya's own LoRA network, whose every module trains within a null space.

    --network_module nullbooth_cli.kohya --network_args store=run.zarr

create_network(...)
├── kohya's own create_network    networks.lora, lora_flux or lora_sd3, by the class of the model
├── modules that the store protects: lora_down becomes A P; the others are dropped, and named
└── _Guards around the network    refuse what would break the constraint when kohya asks for it

kohya has no hook after an optimizer step, so the constraint is a parametrization. Files are kohya's: `state_dict` has A P.
The order of kohya's calls is that of train_network.py (kohya-ss/sd-scripts 48d368f).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted, listed
from nullbooth_cli.integrations.base_model import BaseModel, read_base_model, require_base
from nullbooth_cli.integrations.kohya_arguments import require_no_ggpo, require_same_inputs
from nullbooth_cli.integrations.kohya_models import KohyaModel, kohya_model
from nullbooth_cli.integrations.lora_modules import (
    Protection,
    Sorted,
    base_layer,
    constrain_modules,
    require_within,
    warn,
)
from nullbooth_cli.model.kohya_names import kohya_modules


@dataclass(frozen=True)
class _Merged:
    """A LoRA that kohya merged into the base model before the network was made: its tensors, and how strongly."""

    file: str
    tensors: Mapping[str, torch.Tensor]
    multiplier: float

    def change_of(self, name: str) -> torch.Tensor | None:
        """What it added to the weight of a module, `[M, D]` float32; None if it has no such module."""
        if f"{name}.lora_down.weight" not in self.tensors:
            return None
        down, up = (self.tensors[f"{name}.{part}.weight"].float().flatten(1) for part in ("lora_down", "lora_up"))
        alpha = self.tensors.get(f"{name}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / len(down)
        return self.multiplier * scale * (up @ down)


_merged: WeakKeyDictionary[nn.Module, list[_Merged]] = WeakKeyDictionary()


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> Any:
    """kohya's network for a model, constrained by the store that `network_args` names: `store=run.zarr`.

    `base_model=trust` leaves out the comparison of the base model with the store's. Every other argument goes to kohya's own
    network.

    Raises ConfigError without a store, for a model that is not the store's and for what the constraint cannot hold; StageError
    before `project` is complete. Cost: one read of the base weights that the store protects.
    """
    model = kohya_model(unet)
    settings = _Settings.read(kwargs)
    require_no_ggpo(kwargs)
    made = (multiplier, network_dim, network_alpha, vae, text_encoder, unet)
    network = model.networks().create_network(*made, neuron_dropout=neuron_dropout, **kwargs)
    return _constrained(network, model, unet, settings)


def create_network_from_weights(
    multiplier: float,
    file: str | None,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    weights_sd: dict[str, torch.Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[Any, dict[str, torch.Tensor]]:
    """kohya's network with the modules and ranks of a file: constrained to train, as kohya makes it to be merged or drawn with.

    kohya reads the file itself, by `load_weights`; it has to have been trained under the same store. What is merged into the
    model before `create_network` has to be as well. Raises the errors of `create_network`, and ModelError for such a file.
    """
    model = kohya_model(unet)
    settings = None if for_inference else _Settings.read(kwargs)
    require_no_ggpo(kwargs)
    own = model.networks().create_network_from_weights
    network, tensors = own(
        multiplier, file, vae, text_encoder, unet, weights_sd=weights_sd, for_inference=for_inference, **kwargs
    )
    if settings is not None:
        return _constrained(network, model, unet, settings), tensors
    network.__class__ = type("MergedNetwork", (_NotesMerge, type(network)), {})
    network._nullbooth_file, network._nullbooth_multiplier = str(file), multiplier
    return network, tensors


@dataclass(frozen=True)
class _Settings:
    store: str
    base_model: BaseModel

    @classmethod
    def read(cls, kwargs: dict[str, Any]) -> "_Settings":
        """Take nullbooth's own out of the network arguments, which are all strings."""
        store, base_model = kwargs.pop("store", ""), kwargs.pop("base_model", "compare")
        if not store:
            raise ConfigError("the network arguments name no store", "add store=run.zarr to network_args")
        return cls(store, read_base_model(base_model))


def _constrained(network: Any, model: KohyaModel, unet: nn.Module, settings: _Settings) -> Any:
    if network is None:
        raise ModelError(f"{model.module} made no network", "look at what it printed above")
    protection = Protection.of(settings.store)
    url = protection.store.url
    weights = kohya_modules(protection.projectors, model.pipeline)
    found = Sorted()
    for module in network.unet_loras:
        projector = protection.of_rows(weights.get(module.lora_name, ()))
        if projector is None:
            found.dropped.append(module.lora_name)
        else:
            found.kept.append((module, projector))
    found.require_some(url)
    projectors = {module.lora_name: projector for module, projector in found.kept}
    merged = _merged.get(unet, [])
    for lora in merged:
        _require_trained_under(lora, projectors, url)
    notes = [found.report(url)]
    if settings.base_model == "compare":
        parts: dict[str, torch.Tensor] = {}
        for module, _ in found.kept:
            parts |= model.parts(_start_of(module, merged), weights[module.lora_name])
        notes.append(require_base(protection.store.store, parts) or "")
    constrain_modules(found.kept)
    network.unet_loras = [module for module, _ in found.kept]
    network.__class__ = type("ConstrainedNetwork", (_Guards, type(network)), {})
    network._nullbooth = _Constraint(protection, model, unet, frozenset(projectors))
    warn("\n".join(filter(None, notes)))
    return network


def _start_of(module: Any, merged: list[_Merged]) -> torch.Tensor:
    """The weight of a module's layer, without what was merged into it."""
    weight: torch.Tensor = base_layer(module).weight.detach()
    for change in filter(lambda change: change is not None, (lora.change_of(module.lora_name) for lora in merged)):
        weight = weight.float() - change.reshape(weight.shape).to(weight.device)  # type: ignore[union-attr]
    return weight


def _require_trained_under(lora: _Merged, projectors: Mapping[str, Any], url: str) -> None:
    names = dict.fromkeys(key.partition(".")[0] for key in lora.tensors)
    if outside := [name for name in names if name not in projectors]:
        raise ModelError(
            f"{lora.file}, which was merged into the base model, changes {counted(len(outside), 'module')} that {url} does not "
            f"protect, such as {listed(outside, 2)}",
            "merge files that were trained under the same store, or collect from the merged model",
        )
    for name in names:
        require_within(f"{name} of {lora.file}", lora.tensors[f"{name}.lora_down.weight"], projectors[name])


class _NotesMerge(nn.Module):
    """kohya's network of a file, whose merge into the base model is remembered."""

    _nullbooth_file: str
    _nullbooth_multiplier: float

    def merge_to(self, text_encoder: Any, unet: nn.Module, weights_sd: dict[str, torch.Tensor], *more: Any, **named: Any) -> None:
        """Merge as kohya does; a network that is made for this model later takes it into account."""
        super().merge_to(text_encoder, unet, weights_sd, *more, **named)  # type: ignore[misc]  # kohya's class has it
        _merged.setdefault(unet, []).append(_Merged(self._nullbooth_file, dict(weights_sd), self._nullbooth_multiplier))


@dataclass(frozen=True)
class _Constraint:
    protection: Protection
    model: KohyaModel
    unet: nn.Module
    names: frozenset[str]


class _Guards(nn.Module):
    """What is added to kohya's network: it refuses what would break the constraint, and writes files as kohya's own."""

    _nullbooth: _Constraint

    def prepare_network(self, args: Any) -> None:
        """Refuse what trains beside the constraint, and prompts that are encoded otherwise than those of the store."""
        require_same_inputs(args, self._nullbooth.model, self._nullbooth.unet)
        if hasattr(super(), "prepare_network"):
            super().prepare_network(args)  # type: ignore[misc]  # LyCORIS has it

    def apply_to(self, text_encoder: Any, unet: nn.Module, apply_text_encoder: bool = True, apply_unet: bool = True) -> None:
        """Refuse to train a text encoder, also for a trainer that never calls `prepare_network`."""
        if apply_text_encoder or not apply_unet:
            raise ConfigError(
                "a text encoder would train, and with it every input of the model would move",
                "set network_train_unet_only",
            )
        super().apply_to(text_encoder, unet, False, True)  # type: ignore[misc]  # kohya's class has it

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a file of a run under the same store. Raises ModelError for one that changes other modules, or was trained freely.

        It has no `assign`: a constrained weight is computed.
        """
        outside = dict.fromkeys(key.partition(".")[0] for key in state_dict)
        if unknown := [name for name in outside if name not in self._nullbooth.names]:
            raise ModelError(
                f"the file changes {counted(len(unknown), 'module')} that {self._nullbooth.protection.store.url} does not "
                f"protect, such as {listed(unknown, 2)}: it was not trained under this constraint",
                "load a file that was saved under the same store",
            )
        return super().load_state_dict(state_dict, strict)

    def apply_max_norm_regularization(self, max_norm_value: float, device: Any) -> Any:
        """Refused: kohya scales tensors of `state_dict()` in place, and those of a constrained weight are copies."""
        raise ConfigError("scale_weight_norms does not reach weights that are constrained", "leave scale_weight_norms out")

    def save_weights(self, file: str, dtype: torch.dtype | None, metadata: dict[str, str] | None) -> None:
        """Save as kohya does: the file names kohya's own module as its network, and the projectors it was trained under."""
        noted = dict(metadata or {})
        if "ss_network_module" in noted:
            noted["ss_network_module"] = self._nullbooth.model.module
        noted["nullbooth_projectors"] = self._nullbooth.protection.store.provenance()["fingerprint"]
        super().save_weights(file, dtype, noted)  # type: ignore[misc]  # kohya's class has it
