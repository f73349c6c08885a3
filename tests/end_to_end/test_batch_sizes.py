"""The batch size changes nothing: one, two or five prompts of unequal length at a time give the same moments and features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from nullbooth_cli.collect import open_model
from nullbooth_cli.collect.find_sites import RecordableModel
from nullbooth_cli.collect.recorder import Recorder
from nullbooth_cli.collect.sinks import to_length
from nullbooth_cli.collect.units import run_unit
from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.nullspace.moments import SecondMoments, fold
from tests.support import tiny
from tests.support.builders import small_config
from tests.support.loading import load, use_loaded
from tests.support.zoo import ENTRIES

# diffusers' own Chroma says the first of itself, torch the second of Mochi on a CPU.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning"),
]
TEXTS = ("a cat", "a dog with a hat and a red coat", "star", "two red birds", "a cat at sea")
NUM_STEPS = 2
SIZES = {"pixart": 256, "chroma": 16, "qwen_image": 32}
# Of the zoo, one class of each way to give text and masks to a denoiser.
CLASSES = (
    *("AuraFlowPipeline", "BriaFiboPipeline", "CogView3PlusPipeline", "CogView4Pipeline", "ErnieImagePipeline"),
    *("FluxImg2ImgPipeline", "HiDreamImagePipeline", "HunyuanDiTPipeline", "HunyuanImagePipeline", "Krea2Pipeline"),
    *("LuminaPipeline", "Lumina2Pipeline", "SanaPipeline", "ZImagePipeline"),
    *("AllegroPipeline", "CogVideoXPipeline", "EasyAnimatePipeline", "HunyuanVideoPipeline", "IFPipeline"),
    *("Kandinsky5T2VPipeline", "LTXPipeline", "LattePipeline", "MochiPipeline", "MotifVideoPipeline"),
)
TINY = {**tiny.PIPELINES, "sd35": tiny.sd35, **tiny.UNEQUAL_TEXTS}
Features = dict[tuple[str, int, int], NDArray[np.float64]]  # by (site, step, prompt): `[L, D]`, padding is NaN


class Taken:
    """A sink that adds moments up and keeps features, as `MomentSink` and `FeatureSink` do."""

    dtype = None

    def __init__(self, model: RecordableModel) -> None:
        num_steps = len(model.path.steps)
        self.moments = {site: SecondMoments(site.num_recorded(num_steps), site.dim) for site in model.sites}
        self.features: Features = {}

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        fold(self.moments[site], site, values.flatten(0, 1)[None], step)
        for row, vectors in zip(rows, to_length(site, values), strict=True):
            self.features[site.name, step, row] = vectors.double().numpy()


def recorded(model: RecordableModel, batch_size: int) -> Taken:
    taken = Taken(model)
    members = [(row, Prompt(text)) for row, text in enumerate(TEXTS)]
    batch_size = 1 if model.found.alone else batch_size
    for start in range(0, len(members), batch_size):
        recorder = Recorder(model, members[start : start + batch_size], sinks=[taken])
        run_unit(model, recorder)
        recorder.check()
    return taken


def model_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> RecordableModel:
    torch.manual_seed(0)
    if name in TINY:
        size, settings = SIZES.get(name, 16), {}
        TINY[name]().save_pretrained(folder / "model")
    else:
        size, settings = ENTRIES[name].size, ENTRIES[name].settings
        ENTRIES[name].build().save_pretrained(folder / "model")
    config = small_config(
        folder / "run.zarr",
        **{
            "model": str(folder / "model"),
            "original_knowledge_prompts": list(TEXTS),
            "schedule__num_denoising_steps": NUM_STEPS,
            "schedule__sampler_strategy": "model",
            "collect__keep": "both",
            "collect__height": size,
            "collect__width": size,
            **{key.replace(".", "__"): value for key, value in settings.items()},
            **changes,
        },
    )
    noise = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    monkeypatch.chdir(folder)
    use_loaded(load(folder / "model"), monkeypatch)
    _, steps = open_model.compute_steps(config, len(TEXTS))
    return open_model.load_recordable(config, steps, tuple(map(Prompt, TEXTS)), "cpu")


@pytest.mark.parametrize("name", [*TINY, *(name for name in CLASSES if name in ENTRIES)])
def test_the_batch_size_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name, tmp_path, monkeypatch)
    alone, *others = (recorded(model, size) for size in (1, 2, 5))
    for taken in others:
        assert taken.features.keys() == alone.features.keys()
        for place, expected in alone.features.items():
            assert expected.shape[0] == next(site.num_tokens for site in model.sites if site.name == place[0])
            np.testing.assert_allclose(taken.features[place], expected, rtol=0, atol=1e-3 * np.nanmax(np.abs(expected)))
        for site, moments in alone.moments.items():
            for one, other in zip(moments.sums(), taken.moments[site].sums(), strict=True):
                assert one.count == other.count, site.name
                np.testing.assert_allclose(other.sum_xxt, one.sum_xxt, rtol=0, atol=1e-4 * np.abs(one.sum_xxt).max())
