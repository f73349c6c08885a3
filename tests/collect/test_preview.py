"""What a run would record, before it runs, and as a report of layers."""

from pathlib import Path

import diffusers
import pytest
import torch

from nullbooth_cli.collect.find_sites import FoundSites
from nullbooth_cli.collect.open_model import open_preview
from nullbooth_cli.collect.preview import LayersReport, Preview, layers_report
from nullbooth_cli.collect.sinks import features_nbytes
from nullbooth_cli.collect.unprotected import default_loras
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.nullspace.moments import sums_nbytes
from nullbooth_cli.settings.config import Config, build_config
from tests.support import tiny

CHOICE = {"collect": {"cross_attention_layers": [3, "mid_block*attn1"], "collect_features": {"v_features": False}}}


@pytest.fixture(scope="module")
def preview() -> Preview:
    return open_preview(build_config(CHOICE), "cpu", lambda text: pytest.fail(text))


@pytest.fixture(scope="module")
def found(preview: Preview) -> FoundSites:
    return preview.find(preview.every())


@pytest.fixture(scope="module")
def report(preview: Preview, found: FoundSites) -> LayersReport:
    return layers_report(preview, found, 4)


def test_no_weights_are_loaded(preview: Preview) -> None:
    assert not preview.loaded
    assert all(parameter.is_meta for parameter in preview.pipe.unet.parameters())  # type: ignore[attr-defined]


def test_every_projection_is_found_once_and_the_chosen_ones_are_among_them(preview: Preview, found: FoundSites) -> None:
    assert len(set(found.projections)) == len(found.projections) == len(preview.every())
    assert set(preview.chosen) <= set(found.projections)
    assert {projection.feature for projection in preview.chosen} == {"q", "k", "out"}


def test_layers_that_attend_to_text_are_counted_and_others_are_not(report: LayersReport) -> None:
    indices = [layer.index for layer in report.layers]
    assert sorted(index for index in indices if index is not None) == list(range(10))
    assert [layer.layer.rpartition(".")[2] for layer in report.layers if layer.index is None] == ["attn1"]


def test_totals_are_the_sums_of_the_sites(preview: Preview, found: FoundSites, report: LayersReport) -> None:
    assert report.every.weights == len(found.projections)
    assert report.every.feature_bytes_per_prompt == features_nbytes(found.sites, 4, 1, preview.feature_dtype)
    assert report.every.moment_bytes == sums_nbytes(found.sites, 4) == sum(size.moment_bytes for _, size in report.sites)
    assert report.chosen.layers == 2
    assert report.chosen.weights == len(preview.chosen)
    assert {name for layer in report.layers for r in layer.recordings if r.chosen for name in [r.site]} >= {
        site.name for site in found.of(preview.chosen)
    }


def test_a_filter_leaves_layers_out_and_totals_alone(preview: Preview, found: FoundSites, report: LayersReport) -> None:
    few = layers_report(preview, found, 4, lambda layer, feature: layer.startswith("mid_block") and feature == "q")
    assert {layer.layer.split(".")[0] for layer in few.layers} == {"mid_block"}
    assert {recording.features for layer in few.layers for recording in layer.recordings} == {("q",)}
    assert (few.every, few.chosen) == (report.every, report.chosen)


def test_an_empty_choice_of_the_default_config_chooses_every_layer() -> None:
    preview = open_preview(Config(), "cpu", lambda text: pytest.fail(text))
    assert set(preview.chosen) == set(preview.every())


def test_layers_that_perturbed_attention_guidance_changes_are_left_out_unless_they_are_chosen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipe = tiny.pixart()
    diffusers.PixArtSigmaPAGPipeline(**pipe.components, pag_applied_layers="blocks.1").save_pretrained(tmp_path / "model")
    wanted = {"cross_attention_layers": ["transformer_blocks.0.attn2"], "height": 256, "width": 256, "guidance_scale": 4.0}
    data = {"model": str(tmp_path / "model"), "schedule": {"num_denoising_steps": 2}, "collect": wanted}
    preview = open_preview(build_config(data), "cpu", lambda _: None)
    every = find_projections(preview.pipe.transformer, (), "all", ["*attn?.to_q"])  # type: ignore[attr-defined]
    assert [each.layer for each in preview.undisturbed(every)] == [
        "transformer_blocks.0.attn1",
        "transformer_blocks.0.attn2",
        "transformer_blocks.1.attn2",
    ]
    report = layers_report(preview, preview.find(preview.every()), 2)
    assert [layer.layer for layer in report.layers] == ["transformer_blocks.0.attn2", "transformer_blocks.1.attn2"]
    assert {lora.trainer for lora in default_loras(preview, 2)} == {"ai-toolkit", "PEFT"}
