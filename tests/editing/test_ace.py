"""ACE's choice of queries and its edit against the authors' steps, written plainly."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

import nullbooth_cli as nb
from nullbooth_cli.collect.open_model import denoising_path
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.editing.ace import query_projectors
from nullbooth_cli.editing.tokens import text_inputs
from nullbooth_cli.model.denoise import denoise
from tests.support.edits import embedded, fresh

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
TEXTS = ("a red circle on a blue background", "a green star on a white background")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def nearest_queries(pipe: Any, path: Any) -> np.ndarray:
    """For each prompt the query of all steps and places that is nearest to the keys of its tokens, in one layer."""
    attention, found = pipe.unet.get_submodule(LAYER), []
    for number, text in enumerate(TEXTS):
        seen: list[torch.Tensor] = []
        handle = attention.to_q.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output[-1]))
        denoise(pipe, path, [(number, Prompt(text))])
        handle.remove()
        assert len(seen) == path.num_inference_steps
        queries = torch.cat(seen).double().numpy()
        keys = embedded(pipe, text) @ attention.to_k.weight.double().numpy().T
        found.append(queries[(unit(queries) @ unit(keys).T).sum(1).argmax()])
    return np.array(found)


def test_targets_of_keys_are_projected_on_what_queries_do_not_see(text_store: nb.OpenStore, pipe: Any) -> None:
    path, sites = replace(denoising_path(text_store.config), num_inference_steps=3), text_store.sites()
    inputs = {text: text_inputs(pipe, sites, text) for text in TEXTS}
    width = pipe.unet.get_submodule(LAYER).to_q.out_features
    found = query_projectors(pipe, path, inputs, (width - 2) / width)
    assert found.keys() == {name for name in sites[0].weights if name.endswith("to_k.weight")}
    queries = nearest_queries(pipe, path)
    p_q = np.eye(width) - np.linalg.pinv(queries) @ queries
    np.testing.assert_allclose(found[f"{LAYER}.to_k.weight"], p_q, atol=1e-5)


def test_an_edit_of_the_embedded_model(text_store: nb.OpenStore, pipe: Any) -> None:
    """dW = (v* K1^T - W K1 K1^T) P (K1 K1^T P + a I)^-1, v* = P_Q W K* for keys and W K* for values."""
    edited = fresh()
    width = pipe.unet.get_submodule(LAYER).to_q.out_features
    report = nb.edit(
        edited, text_store, {"a sks": "a red star"}, method="ace", tokens="all", prompts=2, project=(width - 2) / width
    )
    chosen = [text_store.prompts()[i * len(text_store.prompts()) // 2] for i in range(2)]
    inputs = {text: text_inputs(pipe, text_store.sites(), text) for text in chosen}
    path = replace(denoising_path(text_store.config), num_inference_steps=10)
    p_q = query_projectors(pipe, path, inputs, (width - 2) / width)[f"{LAYER}.to_k.weight"]
    k1, target = embedded(pipe, "a sks").T, embedded(pipe, "a red star").T
    site = text_store.sites()[0]
    p, a = text_store.projector(site).dense(), 1e-2 * text_store.moment(site).trace
    for projection, hidden in (("to_k", p_q), ("to_v", np.eye(width))):
        name = f"{LAYER}.{projection}.weight"
        w = pipe.unet.get_parameter(name).double().numpy()
        v = hidden @ w @ target
        expected = (v @ k1.T - w @ k1 @ k1.T) @ p @ np.linalg.inv(k1 @ k1.T @ p + a * np.eye(96))
        change = edited.unet.get_parameter(name).double().numpy() - w
        assert np.linalg.norm(change - expected) < 1e-4 * np.linalg.norm(expected)
        missing = np.linalg.norm((w + change) @ k1 - v) / np.linalg.norm(w @ k1 - v)
        assert abs(report.weights[name].missing - missing) < 1e-3
