"""The checks on the loaded model, each in its failing form."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nullbooth_cli.collect import batch_size, open_model
from nullbooth_cli.pipeline import space
from nullbooth_cli.pipeline.doctor import on_the_model
from nullbooth_cli.pipeline.doctor.examination import Examination
from nullbooth_cli.settings.config import build_config
from tests.support.attention import Denoiser
from tests.support.builders import PROMPTS, prompts_of
from tests.support.doctor import Q_ONLY, findings, found, little, refused
from tests.support.pipelines import SmallPipeline


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: Exception) -> Iterator[None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        yield


class TestModel:
    @pytest.mark.parametrize(
        ("check", "changes", "words"),
        [
            ("schedule", {"schedule__num_denoising_steps": 1001}, ["1001 is more than the model's 1000"]),
            ("schedule", {"model": "./gone"}, ["no model folder at gone", "hub id"]),
            (
                "layers",
                {"collect__cross_attention_layers": ["middle*"]},
                ["'middle*' matches none of the 10 layers", "mid_block"],
            ),
            ("layers", {"collect__collect_features": {**Q_ONLY, "q_features": False}}, ["no feature is switched on"]),
            (
                "attention maps",
                {"collect__visual_attention_map": True, "collect__attention_prompts": ["a dog"]},
                ["'a dog' is not one of the 8 prompts"],
            ),
            (
                "attention maps",
                {"collect__visual_attention_map": True, "collect__attention_layers": ["middle*"]},
                ["'middle*' matches none"],
            ),
            (
                "probe",
                {"collect__height": 101, "collect__width": 96},
                ["StableDiffusionPipeline refuses this: `height`", "collect.height"],
            ),
            ("projectors", {"collect__side": "output"}, ["these features are outputs"]),
            ("projectors", {"project__timesteps": [1.5, 1.7]}, ["no timestep lies in project.timesteps"]),
            ("projectors", {"project__null_dim": 81, "project__relative_threshold": None}, ["more than the 80 dimensions"]),
            ("projectors", {"project__relative_threshold": 1e-16}, ["below the noise floor, 2e-15"]),
        ],
    )
    def test_what_the_config_asks_in_vain(self, tmp_path: Path, check: str, changes: dict[str, Any], words: list[str]) -> None:
        refused(found(check, little(tmp_path / "run.zarr", **changes)), *words)

    def test_weights_that_are_not_there(self, tmp_path: Path) -> None:
        from nullbooth_cli.toy import FOLDER

        shutil.copytree(FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        every = findings(little(tmp_path / "run.zarr", model=str(tmp_path / "model")))
        refused(every["model"], "has a config.json and no weights", "get the model again")
        assert every["schedule"].verdict == "ok"
        assert every["probe"].text == every["tokenizer"].text == "not checked, because of model"

    def test_a_device_that_is_too_small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = little(tmp_path / "run.zarr")
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        with failing(monkeypatch, open_model, "load_model", full):
            refused(found("model", config), "toy cannot be moved to cpu: OutOfMemoryError: CUDA out of memory", "another device")
        with failing(monkeypatch, batch_size, "time_step", full):
            every = findings(config)
        refused(every["batch"], "a batch of 4 prompts fails: OutOfMemoryError", "collect.batch_size", "auto_batch")
        assert every["time"].text == "not checked, because of batch"
        assert every["disk"].verdict == "ok"

    def test_prompts_that_are_cut(self, tmp_path: Path) -> None:
        long = "a red circle on a blue background " * 3 + "and a hidden star"
        finding = found("tokenizer", little(tmp_path / "run.zarr", heldout_prompts=[long]))
        refused(finding, "1 of 9 prompts are too long (tokenizer takes 16 tokens)", "star", "shorten", verdict="warning")

    def test_values_that_are_not_finite(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        load = open_model.load_model

        def broken(*arguments: Any) -> Any:
            pipe = load(*arguments)
            pipe.unet.conv_in.bias.fill_(float("nan"))
            return pipe

        monkeypatch.setattr(open_model, "load_model", broken)
        refused(found("batch", little(tmp_path / "run.zarr")), "a value is not finite: prompt", "set dtype to float32")

    def test_too_few_prompts(self, tmp_path: Path) -> None:
        config = little(tmp_path / "run.zarr", original_knowledge_prompts=PROMPTS[:1], schedule__num_denoising_steps=2)
        refused(found("projectors", config), "16 vectors cannot fill 80 dimensions", "more prompts", verdict="warning")

    def test_sums_that_fit_nowhere_or_only_beside_the_device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = little(tmp_path / "run.zarr", collect__keep="moments")
        monkeypatch.setattr(space, "free_memory", lambda _: 1000)
        refused(found("memory", config), "the sums of 1 sites and 16 steps need", "1,000 are free", "cross_attention_layers")
        monkeypatch.setattr(space, "place_for_sums", lambda *_: torch.device("meta"))
        refused(found("memory", config), "they stay in host memory", "fewer layers or steps", verdict="warning")

    @pytest.mark.parametrize(
        ("patience", "seconds", "forwards"), [(0.0, 0.0, 1), (600.0, 0.0, 2), (600.0, 600.0, 1 + batch_size.TIMED_STEPS)]
    )
    def test_a_step_is_timed_once_warm_unless_it_is_slow(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: Any, patience: float, seconds: float, forwards: int
    ) -> None:
        monkeypatch.setattr(batch_size, "PATIENCE_SECONDS", patience)
        monkeypatch.setattr(batch_size, "TIMED_SECONDS", seconds)
        config = little(tmp_path / "run.zarr")
        prompts = prompts_of(config)
        _, steps = open_model.compute_steps(config, len(prompts))
        path = open_model.follow_schedule(config, steps, pipe)
        loaded = open_model.find_recordable(config, pipe, path, prompts)
        ended = []
        handle = pipe.unet.register_forward_hook(lambda *_: ended.append(1))
        try:
            taken = batch_size.time_step(loaded, list(enumerate(prompts[:2])))
        finally:
            handle.remove()
        assert len(ended) == forwards
        assert taken > 0

    def test_the_first_step_does_not_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
        """A clock on which the first step takes 20 s, one of the others 9 s and the rest 2 s each."""
        clock = iter([0.0, 20.0, 22.0, 31.0, 33.0, 35.0, 37.0])
        config = little(tmp_path / "run.zarr")
        prompts = prompts_of(config)
        _, steps = open_model.compute_steps(config, len(prompts))
        path = open_model.follow_schedule(config, steps, pipe)
        loaded = open_model.find_recordable(config, pipe, path, prompts)
        monkeypatch.setattr(batch_size, "TIMED_SECONDS", 600.0)
        monkeypatch.setattr(batch_size, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        assert batch_size.time_step(loaded, list(enumerate(prompts[:2]))) == 2.0


def test_layers_of_a_second_denoiser_and_those_named_against_the_decision_count() -> None:
    pipe: Any = SmallPipeline(second=Denoiser())
    config = build_config({"collect": {"cross_attention_layers": ["*.attn1"]}})
    exam = Examination(lambda: (config, "", None))
    exam.config, exam.pipe = config, pipe
    assert on_the_model.layers(exam) == "0 of 4 layers of attention to text match, and 4 other layers, with 16 projections"
    for denoiser in (pipe.unet, pipe.transformer_2):
        for block in denoiser.blocks:
            block.attn2.is_cross_attention = False
    assert on_the_model.layers(exam).startswith("0 of 0 layers of attention to text match, and 4 other layers")
