"""The table of pipeline classes in docs/reference/models.md: it has every class of diffusers, and says what the zoo proves."""

import json
import sys
from pathlib import Path

import diffusers
import pytest

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model import load
from nullbooth_cli.model.pipeline_call import call_of
from nullbooth_cli.model.pipeline_classes import why_refused
from tests.support.builders import ROOT, small_config
from tests.support.zoo import ENTRIES, Entry

sys.path.insert(0, str(ROOT / "docs"))
import pipelines


def test_a_class_that_diffusers_adds_is_not_tested_until_it_has_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = (*pipelines.classes_with_prompt(), "FuturePipeline")
    monkeypatch.setattr(pipelines, "classes_with_prompt", lambda: classes)
    assert "| FuturePipeline | not tested |  |" in pipelines.table()
    assert f"{len(classes)} pipeline classes of diffusers {diffusers.__version__}" in pipelines.summary()
    monkeypatch.setitem(
        ENTRIES, "FuturePipeline", Entry(settings={"collect.pipeline_inputs": {"image": "picture.png", "n": 1.0, "flag": False}})
    )
    assert "| FuturePipeline | works with | `collect.pipeline_inputs: {image: FILE, n: 1.0, flag: false}` |" in pipelines.table()


def test_settings_that_only_the_tests_need_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"collect.pipeline_inputs": {"num_frames": 5}, "collect.guidance_scale": None}
    monkeypatch.setitem(ENTRIES, "FuturePipeline", Entry(settings=small))
    assert pipelines.answer("FuturePipeline") == (pipelines.WORKS, "")
    monkeypatch.setitem(ENTRIES, "FuturePipeline", Entry(settings={**small, "collect.batch_size": 1}))
    assert pipelines.answer("FuturePipeline") == (pipelines.WITH, "`collect.batch_size: 1`")


def test_classes_are_those_of_diffusers_that_take_a_prompt() -> None:
    classes = set(pipelines.classes_with_prompt())
    assert {"StableDiffusionPipeline", "FluxPipeline", "WanPipeline", "KolorsPipeline"} < classes
    # By a class of its own file, by one that is inherited, and by an image alone.
    assert {"FluxFillPipeline", "AnimateDiffSDXLPipeline"} < classes
    assert not {"DDPMPipeline", "DiffusionPipeline", "StableVideoDiffusionPipeline", "AutoPipelineForText2Image"} & classes
    assert {name for name, entry in ENTRIES.items() if entry.refused is None} <= classes


def test_at_least_40_classes_work_whole() -> None:
    works = [name for name in pipelines.classes_with_prompt() if pipelines.answer(name)[0] in (pipelines.WORKS, pipelines.WITH)]
    assert len(works) >= 40


def test_a_name_that_is_refused_is_refused_before_anything_is_loaded_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    refused = {name: reason for name in pipelines.classes_with_prompt() if (reason := why_refused(name))}
    assert len(refused) > 20
    for name, reason in refused.items():
        assert name not in ENTRIES or ENTRIES[name].refused
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ModelError) as caught:
            nb.run(small_config(tmp_path / "run.zarr", model=str(tmp_path)))
        assert reason in caught.value.message
    assert not (tmp_path / "run.zarr").exists()


def test_a_class_of_the_zoo_names_each_input_that_it_needs_and_lacks() -> None:
    needs = {name: call_of(getattr(diffusers, name)).needs for name, entry in ENTRIES.items() if entry.refused is None}
    for name, needed in needs.items():
        given = ENTRIES[name].settings.get("collect.pipeline_inputs", {})
        for missing in needed:
            with pytest.raises(ConfigError, match=rf"^{name} needs {missing} beside the prompt"):
                call_of(getattr(diffusers, name)).require_inputs({key: value for key, value in given.items() if key != missing})
    assert set(needs["StableDiffusionXLControlNetUnionInpaintPipeline"]) == {
        "control_image",
        "control_mode",
        "image",
        "mask_image",
    }
    assert not needs["StableDiffusionPipeline"]
