"""Loading: the same model in every form that people have."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from nullbooth_cli.collect import open_model
from nullbooth_cli.errors import ResourceError
from nullbooth_cli.model import load as load_module
from nullbooth_cli.model.sources import Source
from tests.support.builders import ROOT, small_config
from tests.support.loading import load, refused
from tests.support.model_files import copy_folder, weights_file


class TestKinds:
    @pytest.mark.parametrize("kind", ["folder", "pickled folder", "single file", "checkpoint", "hub"])
    def test_it_is_the_same_model_in_any_form(self, kinds: Any, kind: str, pipe: Any, cache: Path) -> None:
        name, settings = kinds[kind]
        loaded = load(name, **settings)
        assert type(loaded) is type(pipe)
        assert load_module.weights_digest(loaded) == load_module.weights_digest(pipe)
        assert not any(module.training for module in (loaded.unet, loaded.vae, loaded.text_encoder))
        for part in ("unet", "vae", "text_encoder"):
            for one, other in zip(
                getattr(loaded, part).state_dict().values(), getattr(pipe, part).state_dict().values(), strict=True
            ):
                assert torch.equal(one, other)
        where = {key: value for key, value in settings.items() if key != "variant"}
        scheduler = load_module.load_scheduler(Source(name, local_files_only=True, **where))
        assert dict(scheduler.config) == dict(loaded.scheduler.config)

    def test_nothing_is_said_on_stderr(self, kinds: Any, cache: Path) -> None:
        """Whatever the libraries warn of on the way, in a process of their own."""
        script = f"""
import torch
from nullbooth_cli.model import load
from nullbooth_cli.model.sources import Source
for name, settings in {list(kinds.values())!r}:
    where = {{"revision": None, "local_files_only": True, **settings}}
    load.load_scheduler(Source(name, **where))
    pipe = load.load_pipeline(name, variant=None, dtype="float32", device=torch.device("cpu"), **where)
    print(load.weights_digest(pipe))
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_CACHE": str(cache)}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
        assert done.stderr == ""
        assert len(done.stdout.split()) == len(kinds)
        assert len(set(done.stdout.split())) == 1

    def test_a_variant_is_taken_where_there_is_one(self, tmp_path: Path, pipe: Any) -> None:
        folder = copy_folder(tmp_path / "model")
        for part in ("unet", "vae", "text_encoder"):
            file = weights_file(folder, part)
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
        assert load_module.weights_digest(load(folder, variant="fp16")) == load_module.weights_digest(pipe)
        refused(folder, "has no weights of the variant bf16", "set variant to one of: fp16; or to null", variant="bf16")


def test_one_model_is_loaded_at_a_time(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    """Two loads at once leave models without weights, as the libraries replace functions of torch meanwhile."""
    running, most, whole = 0, 0, load_module._from_folder

    def counting(*arguments: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return whole(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(load_module, "_from_folder", counting)
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(load, ["toy"] * 3))
    assert most == 1
    assert {load_module.weights_digest(each) for each in loaded} == {load_module.weights_digest(pipe)}


def test_offload_needs_an_accelerator() -> None:
    refused(
        "toy",
        "model_cpu_offload",
        "this run is on the CPU",
        "set the device to an accelerator",
        kind=ResourceError,
        model_cpu_offload=True,
    )
    with pytest.raises(ResourceError, match="this run is on the CPU"):
        open_model.load_model(small_config(Path("none"), model_cpu_offload=True), "cpu")
