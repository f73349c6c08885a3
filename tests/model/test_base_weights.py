"""Single weights of a base: from the headers and files of its folder, the same as those of the loaded pipeline."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.base_weights import BaseWeights
from tests.support import tiny
from tests.support.attention import Denoiser
from tests.support.pipelines import SmallPipeline

NAMES = ["conv_in.weight", "mid_block.attentions.0.proj_in.weight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved("sd1", tmp_path_factory.mktemp("models"))


def test_files_and_the_loaded_pipeline_have_the_same(folder: Path) -> None:
    torch.manual_seed(0)
    loaded = BaseWeights.of_pipeline(tiny.sd1())
    found = BaseWeights.in_folder(folder, None)
    assert found is not None
    assert (found.pipeline_class, dict(found.shapes)) == ("StableDiffusionPipeline", dict(loaded.shapes))
    read, other = found.read(NAMES), loaded.read(NAMES)
    assert [*read] == NAMES
    for name in NAMES:
        assert torch.equal(read[name], other[name])


def test_a_second_denoiser_has_its_prefix_before_the_names_of_its_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    for part, value in (("transformer", 1.0), ("transformer_2", 2.0)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
        save_file({"to_k.weight": torch.full((2, 3), value)}, tmp_path / part / "diffusion_pytorch_model.safetensors")
    found = BaseWeights.in_folder(tmp_path, None)
    assert found is not None
    assert dict(found.shapes) == {"to_k.weight": (2, 3), "transformer_2.to_k.weight": (2, 3)}
    read = found.read(["transformer_2.to_k.weight", "to_k.weight"])
    assert {name: tensor[0, 0].item() for name, tensor in read.items()} == {"transformer_2.to_k.weight": 2.0, "to_k.weight": 1.0}
    pipe = SmallPipeline(second=Denoiser())
    loaded = BaseWeights.of_pipeline(pipe)
    name = "transformer_2.blocks.0.attn2.to_k.weight"
    assert torch.equal(loaded.read([name])[name], pipe.transformer_2.blocks[0].attn2.to_k.weight)


def test_shards_and_variants(folder: Path, tmp_path: Path) -> None:
    """Two shards of a variant, beside the plain file."""
    for part in folder.rglob("*.json"):
        (tmp_path / part.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part.relative_to(folder)).write_text(part.read_text())
    tensors = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    save_file(tensors, tmp_path / "unet/diffusion_pytorch_model.safetensors")
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    first = dict(list(halves.items())[:5])
    rest = {name: tensor for name, tensor in halves.items() if name not in first}
    save_file(first, tmp_path / "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors")
    save_file(rest, tmp_path / "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors")
    (tmp_path / "unet/diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps({}))
    for variant, dtype in ((None, torch.float32), ("fp16", torch.float16)):
        found = BaseWeights.in_folder(tmp_path, variant)
        assert found is not None
        assert found.shapes.keys() == tensors.keys()
        assert {tensor.dtype for tensor in found.read(NAMES).values()} == {dtype}


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    found = BaseWeights.in_folder(folder, None)
    assert found is not None
    with pytest.raises(ConfigError, match=r"the base has no mid_block\.x\.weight"):
        found.read(["mid_block.x.weight"])
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    assert BaseWeights.in_folder(tmp_path, None) is None
