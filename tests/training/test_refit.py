"""Refits of finished changes in every form that files have, against the formula written plainly on the embedded model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.progress import Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training.refit_solution import FINE, LADDER, Rung, knee
from tests.support import lora_files, trained_folders
from tests.support.builders import execute, small_config
from tests.support.edited_models import toy
from tests.support.refits import USED, WEIGHT, changed, moment_of, plain_m, text_inputs


@pytest.fixture(scope="module")
def opened(finished: tuple[Config, Store]) -> nb.OpenStore:
    return nb.open_store(finished[1].url)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_lora_is_multiplied_and_keeps_its_form(opened: nb.OpenStore, pipe: Any, tmp_path: Path, form: str) -> None:
    """The two forms of one change stay one change: converted and refitted is refitted and converted."""
    file, output = tmp_path / "style.safetensors", tmp_path / "new" / "refitted.safetensors"
    tensors = lora_files.kohya_tensors() if form == "kohya" else load_file(lora_files.diffusers_file(file))
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(tensors, file, metadata={"ss_network_dim": "4"})
    report = nb.refit(file, opened, USED, output=output, m=10, device="cpu")
    m = plain_m(text_inputs(pipe, USED), moment_of(opened, WEIGHT), 10)
    wanted = changed(file).numpy() @ m
    np.testing.assert_allclose(changed(output).numpy(), wanted, atol=2e-3 * np.abs(wanted).max())
    after = load_file(output)
    assert {name: (t.shape, t.dtype) for name, t in after.items()} == {name: (t.shape, t.dtype) for name, t in tensors.items()}
    assert [name for name in tensors if not torch.equal(tensors[name], after[name])] == [
        name for name in tensors if "down" in name or "lora_A" in name
    ]
    with safe_open(output, "pt") as read:
        assert read.metadata()["ss_network_dim"] == "4"
        assert "m = 10" in read.metadata()["nullbooth"]
    assert (report.m, report.outside, report.output) == (10, (), str(output))


def test_the_report_is_what_the_model_then_does(opened: nb.OpenStore, pipe: Any, tmp_path: Path) -> None:
    file = lora_files.kohya_file(tmp_path / "style.safetensors")
    events: list[Any] = []
    report = nb.refit(file, opened, USED, output=None, device="cpu", on_event=events.append)
    k1, c0 = text_inputs(pipe, USED), moment_of(opened, WEIGHT)
    change, w = lora_files.change().double().numpy(), pipe.unet.get_parameter(WEIGHT).detach().double().numpy()

    def drift(rows: np.ndarray) -> float:
        return float(np.sqrt(np.trace(rows @ c0 @ rows.T) / np.trace(w @ c0 @ w.T)))

    assert report.drift_before == report.largest_drift_before == pytest.approx(drift(change), rel=1e-4)
    for rung in (*report.ladder, report.chosen):
        after = change @ plain_m(k1, c0, rung.m)
        missing = np.linalg.norm((after - change) @ k1.T) / np.linalg.norm(change @ k1.T)
        assert (rung.missing, rung.drift) == pytest.approx((missing, drift(after)), rel=1e-3, abs=1e-5)
    assert tuple(rung.m for rung in report.ladder) == LADDER
    assert report.m in FINE
    assert report.weights[WEIGHT].drift == report.chosen.drift
    assert not any(isinstance(event, Note) and "outside" in event.text for event in events)
    assert [*tmp_path.iterdir()] == [file]  # a prediction writes nothing


def test_the_knee_is_the_rung_nearest_to_no_loss_and_no_drift() -> None:
    def rung(m: float, missing: float, drift: float) -> Rung:
        return Rung(m=m, missing=missing, largest_missing=missing, drift=drift, largest_drift=drift)

    rungs = [rung(1, 0.1, 1.5), rung(3, 0.3, 0.9), rung(10, 0.4, 0.6), rung(30, 0.9, 0.1)]
    chosen = {before: rungs[knee(rungs, before)].m for before in (0.0, 1.0, 3.0, 30.0)}
    assert chosen == {0.0: 1, 1.0: 10, 3.0: 3, 30.0: 1}  # squared distances at 3: 0.26, 0.18, 0.20, 0.81


def test_layers_that_see_pictures_are_recorded_on_the_changed_model(opened: nb.OpenStore, tmp_path: Path) -> None:
    """q and out: their inputs are drawn with the LoRA in place, so two strengths give two matrices; k has one of the text."""
    layer = lora_files.LAYER.removesuffix(".to_v")
    unet = toy().unet
    generator = torch.Generator().manual_seed(1)
    found = []
    for scale in (0.01, 1.0):
        tensors = {}
        for part in ("to_q", "to_out.0"):
            rows, dim = unet.get_parameter(f"{layer}.{part}.weight").shape
            tensors[f"unet.{layer}.{part}.lora_A.weight"] = torch.eye(dim)
            tensors[f"unet.{layer}.{part}.lora_B.weight"] = scale * torch.randn(rows, dim, generator=generator.manual_seed(1))
        file = tmp_path / f"{scale}.safetensors"
        save_file(tensors, file)
        output = tmp_path / f"{scale}-refitted.safetensors"
        report = nb.refit(file, opened, USED, output=output, m=3, num_drawn=1, device="cpu")
        found.append({name: tensor for name, tensor in load_file(output).items() if "lora_A" in name})
        assert len(report.weights) == 2
    for weak, strong in zip(found[0].values(), found[1].values(), strict=True):  # A is the identity, so A M is M
        assert float((weak - strong).norm() / weak.norm()) > 1e-3


def test_prompts_around_a_word(opened: nb.OpenStore, tmp_path: Path) -> None:
    file = lora_files.kohya_file(tmp_path / "style.safetensors")
    report = nb.refit(file, opened, ["a zwx star"], word="zwx circle", output=None, device="cpu")
    assert len(report.prompts) > 100
    assert report.prompts[0] == "a zwx star"
    assert sum("zwx circle" in prompt for prompt in report.prompts) == len(report.prompts) - 1


def test_one_prompt_may_be_a_string(opened: nb.OpenStore, tmp_path: Path) -> None:
    file = lora_files.kohya_file(tmp_path / "style.safetensors")
    report = nb.refit(file, opened, "zwx", output=tmp_path / "new.safetensors", m=np.int64(10), device="cpu")  # type: ignore[arg-type]
    assert (report.prompts, report.m) == (("zwx",), 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": []}, "no prompt uses the change"),
        ({"prompts": [" "]}, "a prompt is empty"),
        ({"m": 0}, "m=0 is not a weight"),
        ({"m": "much"}, "m=much is not a weight"),
        ({"m": 9e-4}, "m=0.0009 is not a weight"),
        ({"outside": "scale"}, "outside='scale' is not a choice"),
        ({"num_drawn": 0}, "draws no prompt"),
        ({"file": "missing"}, "nothing at missing"),
        ({"output": "taken.safetensors"}, "exists already"),
        ({"output": "new.pt"}, "not the name of a .safetensors file"),
    ],
)
def test_requests_without_a_refit(
    opened: nb.OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nullbooth_cli.training.refit.load_before", lambda *_: pytest.fail("a model was loaded"))
    lora_files.kohya_file(tmp_path / "style.safetensors")
    (tmp_path / "taken.safetensors").touch()
    with pytest.raises(ConfigError, match=words):
        nb.refit(
            **{
                "file": "style.safetensors",
                "store": opened,
                "prompts": USED,
                "output": "new.safetensors",
                "device": "cpu",
                **changes,
            }
        )


def test_changes_that_cannot_be_refitted(opened: nb.OpenStore, finished: tuple[Config, Store], tmp_path: Path) -> None:
    def refused(words: str, place: Path, prompts: list[str] = USED) -> None:
        with pytest.raises(ConfigError, match=words):
            nb.refit(place, opened, prompts, output=tmp_path / "never.safetensors", device="cpu")
        assert not (tmp_path / "never.safetensors").exists()

    tensors = lora_files.kohya_tensors()
    name = f"lora_unet_{lora_files.LAYER.replace('.', '_')}"
    other = {key.replace("attn2", "attn1"): t[:, :80] if "down" in key else t for key, t in tensors.items()}
    save_file({key: t.contiguous() for key, t in other.items()}, tmp_path / "outside.safetensors")
    refused("none of the 1 module of .* is in .*attn1_to_v", tmp_path / "outside.safetensors")
    save_file({**tensors, f"{name}.dora_scale": torch.ones(80, 1)}, tmp_path / "dora.safetensors")
    refused(r"1 module, such as .*to_v \(dora\), for which the weight itself counts", tmp_path / "dora.safetensors")
    save_file({k: t for k, t in lora_files.kohya_tensors(text_encoder=True).items() if "te_" in k}, tmp_path / "te.safetensors")
    refused("te.safetensors changes text encoders alone, and a store has what the denoiser receives", tmp_path / "te.safetensors")
    refused("no prompt has the word that was taught, <sks>", trained_folders.lora_files(tmp_path / "trained"))
    sks = trained_folders.full_files(tmp_path / "sks")
    refused("no prompt has the word that was taught, sks", sks, ["a dog asks"])
    refused("was trained on other", trained_folders.lora_files(tmp_path / "other", model="other"), ["a <sks> circle"])
    toy().save_pretrained(tmp_path / "whole")
    refused("the denoiser of .*whole is that of the base: nothing changed", tmp_path / "whole")


def test_a_store_before_its_moments_is_refused(tmp_path: Path) -> None:
    store = nb.OpenStore(execute(small_config(tmp_path / "run.zarr"), "schedule"))
    with pytest.raises(StageError, match="covariance"):
        nb.refit(lora_files.kohya_file(tmp_path / "style.safetensors"), store, USED, output=None)


def test_a_store_of_two_denoisers_is_refused(opened: nb.OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = lora_files.kohya_file(tmp_path / "style.safetensors")
    sites = [replace(each, weights=tuple(f"transformer_2.{name}" for name in each.weights)) for each in opened.sites()]
    monkeypatch.setattr(opened, "sites", lambda: sites)
    with pytest.raises(ConfigError, match=r"a refit changes one denoiser, and .* has weights of a second one, transformer_2"):
        nb.refit(file, opened, USED, output=None, device="cpu")


def test_the_report_is_a_sentence(opened: nb.OpenStore, tmp_path: Path) -> None:
    report = nb.refit(lora_files.kohya_file(tmp_path / "style.safetensors"), opened, USED, output=None, m=10, device="cpu")
    assert str(report).startswith("1 weight refitted at m = 10: ")
    json.dumps(report.notes)
