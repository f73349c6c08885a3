"""The config that fits a model, by its config files alone."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from nullbooth_cli.collect.without_weights import TEXT_SHAPES
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.nearest_config import CONFIGS, nearest_config
from nullbooth_cli.model.sources import Source
from nullbooth_cli.settings.shipped import configs
from nullbooth_cli.toy import FOLDER
from tests.support.builders import ROOT
from tests.support.model_files import hub_cache


@pytest.mark.parametrize("name", ["sd14", "sd15", "sd21", "sdxl", "lcm", "pixart", "sd3", "flux"])
def test_every_architecture_finds_its_own(name: str) -> None:
    kind, found = nearest_config(Source(str(ROOT / "tests/architectures" / name)))
    assert found == ("sd15" if name == "sd14" else name), "1.4 and 1.5 have the same files"
    assert CONFIGS[kind] == ("sd15" if name == "sd21" else found)


def test_every_pipeline_that_is_known_without_weights_has_a_config() -> None:
    assert set(CONFIGS) == set(TEXT_SHAPES)
    assert set(CONFIGS.values()) <= set(configs())


def test_a_hub_id_is_found_in_the_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_cache(tmp_path, "owner/name")
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    assert nearest_config(Source("owner/name")) == ("StableDiffusionPipeline", "sd15")
    with pytest.raises(ConfigError, match="owner/other is not in the cache"):
        nearest_config(Source("owner/other"))


def test_a_pipeline_that_no_config_is_for(tmp_path: Path) -> None:
    index = json.loads((FOLDER / "model_index.json").read_text())
    for name, kind in index.items():
        if isinstance(kind, list) and kind[1]:
            (tmp_path / name).mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "WanPipeline"}))
    with pytest.raises(ModelError, match="is a WanPipeline, and no shipped config is for that pipeline") as caught:
        nearest_config(Source(str(tmp_path)))
    assert caught.value.hint.endswith(f"these have one: {', '.join(CONFIGS)}")
    with pytest.raises(ConfigError, match="no model folder at nowhere"):
        nearest_config(Source("./nowhere"))
