"""The memory of a configuration: every family in its full size, from config files alone."""

from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.model import load
from nullbooth_cli.model.sources import Source
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training.before_loading import without_weights
from nullbooth_cli.training.memory import TrainingMemory, text_encoders, training_memory
from tests.support.builders import ROOT
from tests.support.tiny import saved
from tests.support.tiny_dreambooth import CLASS_PROMPTS

ARCHITECTURES = ROOT / "tests/architectures"
BFLOAT16 = {"dtype": "bfloat16", "mixed_precision": "bf16"}
GB = 1e9
# Published numbers of parameters: CLIP-L, CLIP-G (with its projection), OpenCLIP-H of 23 layers, the encoder of T5-XXL.
CLIP_L, CLIP_G, CLIP_H, T5 = 123_060_480, 694_659_840, 340_387_840, 4_762_310_656


FOUND: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The model of `memory()` unless another is named."""
    FOUND["folder"] = saved("sd1", tmp_path_factory.mktemp("tiny"))


def memory(
    model: Path | None = None, side: int = 32, *, on_cpu: bool = False, factors: int = 0, **settings: Any
) -> TrainingMemory:
    """Counted once for all tests that want the same."""
    recipe = Recipe(model=str(model or FOUND["folder"]), **{"train_batch_size": 1, **settings})
    key = f"{side} {on_cpu} {factors} {recipe}"
    if key not in FOUND:
        source = Source.of(recipe)
        encoders = text_encoders(load.config_folder(source))
        FOUND[key] = training_memory(recipe, without_weights(source), encoders, (side, side), on_cpu=on_cpu, factors=factors)
    found: TrainingMemory = FOUND[key]
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sd15", [CLIP_L]), ("sd21", [CLIP_H]), ("sdxl", [CLIP_L, CLIP_G]), ("flux", [CLIP_L, T5]), ("pixart", [T5])],
)
def test_text_encoders_have_the_published_size(name: str, expected: list[int]) -> None:
    found = text_encoders(str(ARCHITECTURES / name))
    assert [sum(parameter.numel() for parameter in module.parameters()) for module in found.values()] == expected


@pytest.mark.parametrize(
    ("name", "denoiser"),  # published numbers of parameters
    [("sdxl", 2_567_463_684), ("sd3", 2_243_171_520), ("pixart", 610_856_096)],
)
def test_every_family_in_full_size(name: str, denoiser: int) -> None:
    """Flux is left out for the time it takes."""
    found = memory(ARCHITECTURES / name, 512, method="lora", **BFLOAT16)
    assert found.weights == pytest.approx(2 * denoiser, rel=0.02)  # with the LoRA
    assert found.optimizer == 2 * found.gradients
    assert 0.02 * found.kept_plain < found.kept_checkpointed < 0.5 * found.kept_plain
    assert found.peak == max(found.phases.values())


def test_the_measured_training_of_stable_diffusion() -> None:
    """docs/benchmarks.md, H200: a constrained and a free model, k and v, took 10.1 GB in turns, 8.6 GB with checkpointing."""
    for measured, settings in ((10.1, {}), (8.6, {"gradient_checkpointing": True, "train_batch_size": 4})):
        found = memory(ARCHITECTURES / "sd15", 512, mixed_precision="fp16", store="any.zarr", **settings)
        both = 2 * (found.weights + found.gradients + found.optimizer) + found.constraint + found.activations
        assert both / GB == pytest.approx(measured, rel=0.02)


def test_parts_add_up() -> None:
    plain = memory()
    lora = memory(method="lora")
    assert lora.gradients < plain.gradients < plain.weights
    assert plain.phases["train"] == plain.weights + 3 * plain.gradients + plain.activations
    averaged = memory(ema_decay=0.9, optimizer="prodigy")
    assert averaged.averages == plain.gradients
    assert averaged.optimizer == 2 * plain.optimizer
    constrained = memory(store="any.zarr", factors=1000)
    assert constrained.constraint == plain.gradients + 1000
    assert constrained.activations == plain.activations + plain.gradients
    assert memory(store="any.zarr", method="lora", factors=1000).constraint == 1000


def test_half_precision_halves_what_does_not_train() -> None:
    whole, half = memory(method="lora"), memory(method="lora", **BFLOAT16)
    adapters = whole.gradients
    assert half.weights - adapters == (whole.weights - adapters) / 2
    assert half.helpers["text_encoder"] == whole.helpers["text_encoder"] / 2
    assert half.helpers["vae"] == whole.helpers["vae"]
    assert half.activations < whole.activations


def test_phases() -> None:
    """On an accelerator helpers are there when they work; in host memory from the start, and until nothing needs them."""
    helpers = sum(memory().helpers.values())
    assert list(memory().phases) == ["encode captions", "encode pictures", "train"]
    with_word = {"word": "sks"}
    assert memory(**with_word).phases["train"] == memory().phases["train"] + helpers
    assert memory(on_cpu=True).phases["train"] == memory().phases["train"] + helpers  # a pipeline is saved with them
    lora = {"method": "lora"}
    assert memory(on_cpu=True, **lora).phases["train"] == memory(**lora).phases["train"]
    drawing = memory(validation_prompts=["a dot"], class_prompts=CLASS_PROMPTS)
    assert list(drawing.phases) == ["encode captions", "encode pictures", "draw the class", "train", "draw validation pictures"]
    assert drawing.phases["draw validation pictures"] > drawing.weights + helpers


def test_every_loss_of_a_step_keeps_its_activations() -> None:
    plain, prior = memory(), memory(class_prompts=CLASS_PROMPTS)
    assert prior.activations == plain.activations + plain.kept_plain
    distilled = memory(distill_captions="empty")
    assert distilled.activations == prior.activations
    assert (plain.teacher, distilled.teacher) == (0, plain.gradients)


def test_the_table_of_the_page_has_these_figures() -> None:
    """A row, as far as one count tells; docs/memory.py computes all, in minutes."""
    page = (ROOT / "docs/how-to/teach-other-models.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| Stable Diffusion 1.5, 512 | full"))
    found = memory(ARCHITECTURES / "sd15", 512, rank=16, store="any", **BFLOAT16, gradient_checkpointing=True)
    with_word = found.phases["train"] + found.helpers["text_encoder"] + found.helpers["vae"]
    expected = (found.weights, found.helpers["text_encoder"], found.phases["train"], with_word)
    _, _, _, weights, texts, _, saving, word, *_ = row.split("|")
    assert [float(cell) for cell in (weights, texts, saving, word)] == [round(num_bytes / GB, 1) for num_bytes in expected]
