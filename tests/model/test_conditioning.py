"""What a denoiser receives, captured from a call of its pipeline."""

import copy
from typing import Any

import pytest
import torch

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.conditioning import Conditioning, capture, joined
from nullbooth_cli.model.load import freeze
from tests.support import tiny

# The arguments with a row for each caption; those of the places of Flux have none.
BY_ROW = {
    "sd1": {"encoder_hidden_states"},
    "sd2": {"encoder_hidden_states"},
    "sdxl": {"encoder_hidden_states", "added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids"},
    "sd3": {"encoder_hidden_states", "pooled_projections"},
    "flux": {"encoder_hidden_states", "pooled_projections", "guidance"},
    "pixart": {"encoder_hidden_states", "encoder_attention_mask"},
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    return freeze(tiny.PIPELINES[name]())


def captured(pipe: Any, captions: list[str], side: int = 8, **settings: Any) -> Conditioning:
    size = (side * pipe.vae_scale_factor,) * 2
    return capture(pipe, captions, size=size, guidance=1.0, **settings)


@pytest.mark.parametrize("name", BY_ROW)
def test_each_caption_has_its_row(name: str) -> None:
    pipe = made(name)
    three, alone = captured(pipe, ["a", "b c", "d"]), captured(pipe, ["b c"])
    assert set(three.by_row) == set(alone.by_row) == BY_ROW[name]
    assert (len(three), len(alone)) == (3, 1)
    for key, tensor in three.rows([1]).by_row.items():
        torch.testing.assert_close(tensor, alone.by_row[key], rtol=1e-4, atol=1e-5)
    assert not torch.equal(three.by_row["encoder_hidden_states"][0], three.by_row["encoder_hidden_states"][1])


def test_what_is_known_of_another_capture_saves_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, calls = made("flux"), []
    first = captured(pipe, ["a", "b"])
    encode = pipe.encode_prompt
    monkeypatch.setattr(pipe, "encode_prompt", lambda *args, **given: calls.append(1) or encode(*args, **given))
    again = captured(pipe, ["a", "b"], like=first)
    assert calls == [1]
    assert again.by_row.keys() == first.by_row.keys()
    assert all(torch.equal(tensor, first.by_row[key]) for key, tensor in again.by_row.items())


def test_arguments_are_those_of_the_denoiser() -> None:
    pipe, seen = made("sdxl"), []
    given = captured(pipe, ["a", "b"]).rows([1, 0, 1]).arguments()
    assert {key: tuple(value.shape) for key, value in given["added_cond_kwargs"].items()} == {
        "text_embeds": (3, 24),
        "time_ids": (3, 6),
    }
    pipe.unet.register_forward_pre_hook(lambda _, __, arguments: seen.append(arguments), with_kwargs=True)
    pipe(["b"], height=16, width=16, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    assert given.keys() == seen[0].keys()
    torch.testing.assert_close(given["encoder_hidden_states"][:1], seen[0]["encoder_hidden_states"])


def test_sizes_are_those_of_the_call() -> None:
    square, wide = (captured(made("sdxl"), ["a"], side).by_row["added_cond_kwargs.time_ids"] for side in (8, 16))
    assert (square.tolist(), wide.tolist()) == ([[16, 16, 0, 0, 16, 16]], [[32, 32, 0, 0, 32, 32]])
    assert [len(captured(made("flux"), ["a"], side).shared["img_ids"]) for side in (8, 16)] == [16, 64]


def test_joined_and_moved() -> None:
    pipe = made("pixart")
    found = joined([captured(pipe, ["a"]), captured(pipe, ["b", "c"])]).to(torch.device("cpu"), torch.bfloat16)
    assert len(found) == 3
    assert found.by_row["encoder_hidden_states"].dtype == torch.bfloat16
    assert found.by_row["encoder_attention_mask"].dtype == captured(pipe, ["a"]).by_row["encoder_attention_mask"].dtype
    changed = found.with_rows({"encoder_hidden_states": torch.zeros(3, 1, 1), "unknown": torch.zeros(3)})
    assert (changed.by_row.keys(), changed.shared) == (found.by_row.keys(), found.shared)
    assert not changed.by_row["encoder_hidden_states"].any()


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux"])
def test_a_trained_embedding_gets_a_gradient(name: str) -> None:
    pipe = made(name)
    table = pipe.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    found = captured(pipe, ["a"])
    sum(tensor.sum() for tensor in found.by_row.values()).backward()
    assert table.grad is not None
    assert table.grad.abs().sum() > 0


def test_a_denoiser_that_runs_on_more_rows_is_refused() -> None:
    with pytest.raises(ModelError, match="StableDiffusionPipeline gives its denoiser 4 rows of encoder_hidden_states for 2"):
        capture(made("sd1"), ["a", "b"], size=(16, 16), guidance=7.5)


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_a_schedule_of_a_store_stays(name: str) -> None:
    """The scheduler of an evaluation walks the stored steps, and refuses any other number."""
    pipe = made(name)
    first = captured(pipe, ["a"])
    pipe.scheduler = scheduler = copy.deepcopy(pipe.scheduler)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("its steps are set")

    scheduler.set_timesteps = refuse
    found = captured(pipe, ["a"])
    assert pipe.scheduler is scheduler
    assert all(torch.equal(tensor, first.by_row[key]) for key, tensor in found.by_row.items())


def test_no_hook_is_left_and_the_weights_stay() -> None:
    pipe = made("sd1")
    hooks, before = len(pipe.unet._forward_pre_hooks), torch.get_rng_state()
    captured(pipe, ["a"])
    assert len(pipe.unet._forward_pre_hooks) == hooks
    assert torch.equal(torch.get_rng_state(), before)
