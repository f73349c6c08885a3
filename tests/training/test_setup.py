"""The device and precision of a run, and what it says of long captions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import setup
from nullbooth_cli.training.plan import plan_training
from tests.support import tiny
from tests.support.tiny_dreambooth import recipe


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no such device: cuda:77") as caught:
        setup.set_up(recipe(tmp_path), "cuda:77")
    assert "cpu" in caught.value.hint


@pytest.mark.parametrize("begin", [setup.set_up, plan_training])
def test_a_precision_that_the_device_has_not(tmp_path: Path, begin: Callable[[Recipe, str], object]) -> None:
    with pytest.raises(ConfigError, match="mixed_precision: fp16 would be float32 on the CPU") as caught:
        begin(recipe(tmp_path, mixed_precision="fp16"), "cpu")
    assert caught.value.hint == "set mixed_precision to no or bf16"


def test_runs_of_one_process_may_differ_in_precision(tmp_path: Path) -> None:
    """accelerate keeps the precision of the first; it said that a run with another was wrong in its device."""
    for precision in ("no", "bf16", "no"):
        made = setup.set_up(recipe(tmp_path / "out", mixed_precision=precision), "cpu")
        assert made.accelerator.mixed_precision == precision
        with made.accelerator.autocast():
            assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_the_precision_of_another_program_stays(tmp_path: Path) -> None:
    accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(ConfigError, match="mixed_precision is no, and this process has an Accelerator of bf16") as caught:
        setup.set_up(recipe(tmp_path / "out"), "cpu")
    assert caught.value.hint == "set mixed_precision to bf16, or train in a process of its own"


@pytest.mark.parametrize(("name", "own"), [("sd1", 7.5), ("sdxl", 5.0), ("sd3", 7.0), ("flux", 3.5), ("pixart", 4.5)])
def test_pictures_are_drawn_with_the_guidance_of_the_pipeline(tmp_path: Path, name: str, own: float) -> None:
    """Unless the recipe has one. What a run was made with before decides whether it resumes."""
    made = {
        "model": str(tiny.saved(name, tmp_path)),
        "resolution": 32,
        "class_prompts": ["a"],
        "class_images": 1,
        "validation_inference_steps": 1,
    }
    run = setup.set_up(recipe(tmp_path / "out", **made), "cpu")
    assert run.record.decides["guidance_scale"] == run.recipe.guidance_scale == own
    assert setup.set_up(recipe(tmp_path / "out", **made, guidance_scale=2.0), "cpu").recipe.guidance_scale == 2.0


def test_captions_that_are_cut_off_are_named_once(tmp_path: Path) -> None:
    long = "a red circle on a white background " * 4 + "at dawn"
    assert setup.set_up(recipe(tmp_path), "cpu").notes == ()
    [note] = setup.set_up(recipe(tmp_path, validation_prompts=[long], class_prompts=[long], class_images=1), "cpu").notes
    assert "1 caption is too long for the tokenizer" in note
    assert "at dawn" in note


def test_without_a_gpu_the_processes_of_a_launch_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate joins them on CPUs only if it is told; each wrote its own checkpoints into one output."""
    given: dict[str, Any] = {}

    class Spy(accelerate.Accelerator):
        def __init__(self, **options: Any) -> None:
            given.update(options)
            super().__init__(**options)

    monkeypatch.setattr(accelerate, "Accelerator", Spy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    setup._accelerator(recipe(tmp_path), None)
    assert given["cpu"]
