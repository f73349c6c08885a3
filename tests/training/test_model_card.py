"""The model card: what the hub reads of it, what people read, and its code."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from nullbooth_cli.evaluation.verdict import forgotten, learned
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training import model_card
from nullbooth_cli.training.output import Preserved, TrainingResult
from tests.support.tiny_dreambooth import recipe, run


def result(**changes: Any) -> TrainingResult:
    of_all: dict[str, Any] = {
        "output": "out/pipeline",
        "steps": 400,
        "method": "full",
        "model": "toy",
        "trained": 20,
        "token": "<sks>",
        "instance_prompt": "a photo of <sks> dog",
        "constrained_by": "runs/words.zarr",
        "preserved": Preserved(33, "relative_threshold: 0.0001"),
        "drift": {"a": 1e-5, "b": 2.34e-4},
    }
    return TrainingResult(**{**of_all, **changes})


def test_what_the_hub_reads(tmp_path: Path) -> None:
    made = recipe(tmp_path, model="owner/name", method="lora")
    data = ModelCard(model_card.model_card(made, result(method="lora"))).data.to_dict()
    assert data == {
        "base_model": "owner/name",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "lora", "dreambooth", "nullbooth"],
        "instance_prompt": "a photo of <sks> dog",
    }
    (tmp_path / "owner/name").mkdir(parents=True)
    for local in ("toy", str(tmp_path / "owner/name")):
        data = ModelCard(model_card.model_card(made.model_copy(update={"model": local}), result())).data.to_dict()
        assert "base_model" not in data, "it would be a link to nowhere"
        assert "lora" not in data["tags"]


def test_what_people_read(tmp_path: Path) -> None:
    text = model_card.model_card(recipe(tmp_path), result(), [learned(0.9, 0.1, "exact scorer"), forgotten({"heldout": 0.01})])
    assert "taught a subject with nullbooth in 400 steps. Write `<sks>` in prompts." in text
    assert "\n# `a photo of <sks> dog`\n" in text
    assert (
        "The outputs of the trained weights on 33 prompts, by the projectors in runs/words.zarr, cut at "
        "relative_threshold: 0.0001. They moved by 0.023 % of their size at most."
    ) in text
    assert "- learned 0.90 of 1: well (exact scorer; base 0.10)\n- forgotten 0.01: hardly anything" in text
    free = model_card.model_card(recipe(tmp_path), result(preserved=None, drift=None, constrained_by=None))
    assert "Nothing was preserved: it was trained without a constraint." in free
    assert "Learned and forgotten" not in free


@pytest.mark.parametrize("method", ["full", "lora"])
def test_its_code_runs(tmp_path: Path, finished: tuple[Config, Store], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in the README.md of a run, with a word and under a constraint."""
    made = recipe(tmp_path / "out", method=method, word="sks", store=str(finished[1].path))
    document = run(made)
    card = (tmp_path / "out/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert ("load_textual_inversion" in code) == (method == "lora")
    assert document["instance_prompt"] in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace(").images", ", num_inference_steps=2).images"), {})
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (32, 32)
    assert f"on {len(finished[0].original_knowledge_prompts)} prompts" in card


def test_other_bases(tmp_path: Path) -> None:
    def loads(**changes: Any) -> str:
        made = recipe(tmp_path, method="lora", **changes)
        text = model_card.model_card(made, result(method="lora", token=None), place="me/sks")
        return next(line for line in text.splitlines() if line.startswith("pipe = "))

    assert loads(model="owner/name", variant="fp16", revision="main") == (
        'pipe = StableDiffusionPipeline.from_pretrained("owner/name", revision="main", variant="fp16", dtype=torch.float32)'
    )
    assert loads(model="sd.safetensors", pipeline_config="owner/name") == (
        'pipe = StableDiffusionPipeline.from_single_file("sd.safetensors", config="owner/name", dtype=torch.float32)'
    )


@pytest.mark.parametrize("text", ['a "sks" dog 🐕', "a\nb", "a\n---\nb", "`x`", "``` x", "null", "a: b # c", "<sks>\\ {x}\u2028"])
def test_odd_prompts(tmp_path: Path, text: str) -> None:
    card = model_card.model_card(recipe(tmp_path), result(instance_prompt=text))
    assert ModelCard(card).data.to_dict()["instance_prompt"] == text
    code = ast.parse(card.split("```python\n")[1].split("\n```")[0])
    assert text in [node.value for node in ast.walk(code) if isinstance(node, ast.Constant)]
    [title] = [line for line in card.splitlines() if line.startswith("# ")]
    fence, inside = re.fullmatch(r"# (`+)(.+?)\1", title).groups()  # type: ignore[union-attr]
    assert inside.strip() == " ".join(text.split())
    assert fence not in inside
