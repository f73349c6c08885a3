"""What default LoRAs leave unprotected under a config, and what recording it costs, without weights."""

from pathlib import Path
from typing import Any

import torch

from nullbooth_cli.collect.open_model import open_preview
from nullbooth_cli.collect.unprotected import DefaultLora, default_loras
from nullbooth_cli.settings.config import build_config
from tests.support.builders import ROOT
from tests.support.zoo import ENTRIES

EVERYTHING = ["attn1", "ff_in", "ff_out", "proj_in", "proj_out"]


def found(model: str, steps: int, sampler: str | None = "DPM++ 2M Karras", **collect: Any) -> dict[str, DefaultLora]:
    config = build_config(
        {"model": model, "local_files_only": True, "schedule": {"sampler_strategy": sampler}, "collect": collect}
    )
    return {lora.trainer: lora for lora in default_loras(open_preview(config, None, lambda _: None), steps)}


def test_stable_diffusion() -> None:
    """128 of kohya's 192 modules; 129 sites for all of them, of which attention to text has 33."""
    kohya = found(str(ROOT / "tests/architectures/sd15"), 2)["kohya"]
    assert (kohya.modules, kohya.protected) == (192, 64)
    assert dict(kohya.unprotected) == {"attn1": 64, "ff_in": 16, "ff_out": 16, "proj_in": 16, "proj_out": 16}
    assert kohya.linear_layers == tuple(EVERYTHING)
    assert kohya.sites == 129 - 33
    # Five inputs as wide as the block (q, k and v of attn1 share one), and that of ff_out, four times as wide: sums of x x^T and
    # of x, and a count.
    blocks = {320: 5, 640: 5, 1280: 6}
    numbers = sum(count * (5 * (d * d + d) + 16 * d * d + 4 * d + 6) for d, count in blocks.items())
    assert kohya.moment_bytes == 2 * 8 * numbers


def test_a_config_that_records_it_protects_it() -> None:
    loras = found("toy", 2, linear_layers=EVERYTHING)
    assert (loras["kohya"].protected, loras["kohya"].unprotected, loras["kohya"].sites) == (120, {}, 0)
    assert (dict(loras["ai-toolkit"].unprotected), loras["ai-toolkit"].linear_layers) == ({"linear": 21}, ())


def test_features_that_the_config_leaves_out() -> None:
    loras = found("toy", 2, collect_features={"q_features": False, "out_features": False})
    assert dict(loras["diffusers"].unprotected) == {"attn1": 40, "attn2 q": 10, "attn2 out": 10}
    assert (loras["diffusers"].protected, loras["diffusers"].linear_layers) == (20, ("attn1",))


def test_what_runs_twice_in_a_forward_has_no_word(tmp_path: Path) -> None:
    """CogView4 feeds text and image forward by the same layers, one after the other."""
    torch.manual_seed(0)
    entry = ENTRIES["CogView4Pipeline"]
    assert entry.build
    entry.build().save_pretrained(tmp_path / "model")
    lora = found(str(tmp_path / "model"), 2, "model", height=entry.size, width=entry.size, guidance_scale=4.0)["PEFT"]
    assert dict(lora.unprotected) == {"linear": 8, "modulation": 2, "ff_in": 2, "ff_out": 2}
    assert lora.linear_layers == ("modulation",)
