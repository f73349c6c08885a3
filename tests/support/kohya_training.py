"""kohya's training loop around a network: its calls, in the order of train_network.py (kohya-ss/sd-scripts 48d368f).

What a batch is does not matter here: the denoiser gets random tensors of the shapes that its pipeline gives it, which respect no
null space.
"""

import json
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.kohya_models import as_kohya_loads_it, text_encoders


class _Seen(Exception):
    pass


def arguments(**changes: Any) -> Namespace:
    """The arguments of kohya's scripts that matter here, at their defaults but for a short run of the denoiser alone."""
    given: dict[str, Any] = {
        "network_module": "nullbooth_cli.kohya",
        "network_args": [],
        "network_dim": 4,
        "network_alpha": 2.0,
        "network_dropout": None,
        "network_weights": None,
        "network_train_unet_only": True,
        "network_train_text_encoder_only": False,
        "dim_from_weights": False,
        "base_weights": None,
        "base_weights_multiplier": None,
        "scale_weight_norms": None,
        "clip_skip": None,
        "max_token_length": None,
        "weighted_captions": False,
        "max_grad_norm": 1.0,
        "learning_rate": 3e-2,
        "save_precision": torch.float32,
        "full_bf16": False,
        "max_train_steps": 6,
    }
    assert set(changes) <= {*given, "apply_t5_attn_mask", "apply_lg_attn_mask", "t5xxl_max_token_length"}
    return Namespace(**{**given, **changes})


def conditioning(pipe: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The denoiser of a pipeline, and what it is called with."""
    denoiser = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    seen: list[Any] = []

    def keep(_: Any, args: Any, kwargs: Any) -> None:
        seen.append((args, kwargs))
        raise _Seen

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        pipe("a cat", height=16, width=16, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    except _Seen:
        pass
    finally:
        handle.remove()
    (args, kwargs) = seen[0]
    return denoiser, args, kwargs


def random_like(value: Any, generator: torch.Generator) -> Any:
    """The same structure with random values: latents, texts; ids, times and guidance stay."""
    if isinstance(value, dict):
        return {key: random_like(each, generator) for key, each in value.items()}
    if isinstance(value, torch.Tensor) and value.ndim > 1 and value.is_floating_point() and value.any():
        return torch.randn(value.shape, generator=generator)
    return value


def make_network(pipe: Any, args: Namespace) -> tuple[Any, Any]:
    """A network up to where the optimizer is built, and the model that it is applied to."""
    unet, encoder = as_kohya_loads_it(pipe), text_encoders(pipe)
    module: Any = import_module(args.network_module)
    for number, file in enumerate(args.base_weights or ()):
        multiplier = (args.base_weights_multiplier or [1.0])[number]
        merged, tensors = module.create_network_from_weights(multiplier, file, pipe.vae, encoder, unet, for_inference=True)
        merged.merge_to(encoder, unet, tensors, torch.float32, "cpu")
    given = dict(each.split("=", 1) for each in args.network_args)
    if args.dim_from_weights:
        network, _ = module.create_network_from_weights(1, args.network_weights, pipe.vae, encoder, unet, **given)
    else:
        given.setdefault("dropout", args.network_dropout)
        network = module.create_network(
            1.0, args.network_dim, args.network_alpha, pipe.vae, encoder, unet, neuron_dropout=args.network_dropout, **given
        )
    assert network is not None
    if hasattr(network, "prepare_network"):
        network.prepare_network(args)
    if args.scale_weight_norms and not hasattr(network, "apply_max_norm_regularization"):
        args.scale_weight_norms = False
    if not args.network_module.startswith("lycoris") and hasattr(pipe, "transformer"):
        assert network.train_t5xxl is False
    train_unet, train_text = not args.network_train_text_encoder_only, not args.network_train_unet_only
    network.apply_to(encoder, unet, train_text, train_unet)
    if args.network_weights is not None:
        network.load_weights(args.network_weights)
    return network, unet


def train(pipe: Any, args: Namespace, file: Path) -> Any:
    """Train a network for a few steps and save it; returns it."""
    network, unet = make_network(pipe, args)
    network.enable_gradient_checkpointing()
    rates = None, None, args.learning_rate
    if hasattr(network, "prepare_optimizer_params_with_multiple_te_lrs"):
        groups = network.prepare_optimizer_params_with_multiple_te_lrs(*rates)
    else:
        groups = network.prepare_optimizer_params(*rates)
    optimizer = torch.optim.AdamW(groups[0] if isinstance(groups, tuple) else groups, lr=args.learning_rate, weight_decay=1e-2)
    if args.full_bf16:
        network.to(torch.bfloat16)
    denoiser, given, named = conditioning(pipe)
    denoiser.requires_grad_(False)
    network.prepare_grad_etc(None, unet)
    network.on_epoch_start(None, unet)
    run_steps(network, unet, optimizer, args, (given, named))
    metadata = {
        "ss_network_module": args.network_module,
        "ss_network_dim": str(args.network_dim),
        "ss_network_args": json.dumps(dict(each.split("=", 1) for each in args.network_args)),
    }
    network.save_weights(str(file), args.save_precision, metadata)
    return network


def run_steps(network: Any, unet: nn.Module, optimizer: Any, args: Namespace, call: tuple[Any, dict[str, Any]]) -> None:
    """kohya's steps: backward, clipping, norms, step."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if args.full_bf16 else None
    for _ in range(args.max_train_steps):
        given, named = (random_like(dict(enumerate(part)) if isinstance(part, tuple) else part, generator) for part in call)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = unet(*given.values(), **{**named, "return_dict": False})[0]
        loss = (output.float() - torch.randn(output.shape, generator=generator)).square().mean()
        loss.backward()
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(network.get_trainable_params(), args.max_grad_norm)
        if hasattr(network, "update_grad_norms"):
            network.update_grad_norms()
            network.update_norms()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if args.scale_weight_norms:
            network.apply_max_norm_regularization(args.scale_weight_norms, "cpu")
