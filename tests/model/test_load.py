"""Loading: every kind of model people have, the same model wherever it is, and what is said where it cannot be loaded."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import httpx2
import huggingface_hub
import peft
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.collect import open_model
from nullbooth_cli.collect import recorder as recorder_module
from nullbooth_cli.collect import units as units_module
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError, ModelError, ResourceError, StageError
from nullbooth_cli.model import device
from nullbooth_cli.model import load as load_module
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.sources import Source
from nullbooth_cli.nullspace.usable import usable_projectors
from nullbooth_cli.pipeline.differences import model_renamed
from nullbooth_cli.pipeline.doctor.examination import Examination
from nullbooth_cli.pipeline.doctor.examine import examine
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, ROOT, execute, small_config, states_of
from tests.support.model_files import COMMIT, copy_folder, hub_cache, pickle_folder, save_single_file, weights_file

HUB = "owner/name"
TINY = {"collect__cross_attention_layers": ["mid_block*"], "collect__batch_size": 4}


def load(name: Any, **settings: Any) -> Any:
    settings = {"revision": None, "variant": None, "dtype": "float32", "local_files_only": True, **settings}
    return load_module.load_pipeline(str(name), device=torch.device("cpu"), **settings)


def refused(name: Any, *words: str, kind: type[Exception] = ConfigError, **settings: Any) -> None:
    with pytest.raises(kind) as caught:
        load(name, **settings)
    assert isinstance(caught.value, ConfigError | ResourceError)
    said = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.hint
    for word in words:
        assert word in said, said


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """The embedded model in every form: its name, and what must be set beside it. The last is in the cache of the hub."""
    folder = tmp_path_factory.mktemp("kinds")
    hub_cache(folder / "cache", HUB)
    return {
        "folder": (str(copy_folder(folder / "moved")), {}),
        "pickled folder": (str(pickle_folder(copy_folder(folder / "pickled"))), {"allow_pickle": True}),
        "single file": (str(save_single_file(pipe, folder / "one.safetensors")), {"pipeline_config": "toy"}),
        "checkpoint": (str(save_single_file(pipe, folder / "one.ckpt")), {"pipeline_config": "toy", "allow_pickle": True}),
        "hub": (HUB, {}),
    }


@pytest.fixture
def cache(kinds: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(kinds["folder"][0]).parent / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


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


class TestIdentity:
    """What makes a model another one, and what does not."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> tuple[Any, Path]:
        folder = copy_folder(tmp_path / "model")
        return small_config(tmp_path / "run.zarr", model=str(folder), **TINY), folder

    def notes(self, config: Any) -> list[str]:
        return [each.text for each in self.events(config) if hasattr(each, "text")]

    def events(self, config: Any) -> list[Any]:
        from nullbooth_cli.pipeline import run as run_module
        from nullbooth_cli.pipeline import stages
        from tests.support.builders import prompts_of

        store = Store.open(config.store, write=True)
        return list(
            stages.execute("collect", run_module.Run(config=config, prompts=prompts_of(config), store=store, device="cpu"))
        )

    @pytest.mark.parametrize("limit", [1, None], ids=["begun", "finished"])
    def test_a_moved_folder_is_the_same_model(self, run: Any, tmp_path: Path, limit: int | None) -> None:
        config, folder = run
        execute(config, "collect", limit=limit)
        moved = config.model_copy(update={"model": str(folder.rename(tmp_path / "moved"))})
        assert [str(name) for name in model_renamed(moved, Store.open(config.store))] == [f"model: {folder} -> {moved.model}"]
        assert f"the same model by its weights: model: {folder} -> {moved.model}" in self.notes(moved)
        store = Store.open(config.store)
        assert states_of(moved)["collect"] == "complete"
        assert model_renamed(moved, store) == ()
        assert store.config["model"] == moved.model

    def test_a_single_file_of_the_same_weights_is_the_same_model(self, run: Any, kinds: Any) -> None:
        config, folder = run
        execute(config, "collect")
        file = kinds["single file"][0]
        moved = config.model_copy(update={"model": file, "pipeline_config": str(folder)})
        assert f"the same model by its weights: model: {folder} -> {file}" in self.notes(moved)
        assert Store.open(config.store).config == moved.model_dump(exclude={"storage_options"})

    def test_a_known_name_loads_nothing(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        config, _ = run
        execute(config, "collect")
        monkeypatch.setattr(load_module, "load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
        assert len(self.notes(config)) == 1

    @pytest.mark.parametrize("limit", [1, None], ids=["begun", "finished"])
    def test_other_weights_under_another_name_are_refused(self, run: Any, tmp_path: Path, limit: int | None) -> None:
        config, folder = run
        execute(config, "collect", limit=limit)
        other = copy_folder(tmp_path / "other")
        tensors = load_file(weights_file(other, "text_encoder"))
        tensors["final_layer_norm.bias" if "final_layer_norm.bias" in tensors else next(iter(tensors))] += 0.01
        save_file(tensors, weights_file(other, "text_encoder"), metadata={"format": "pt"})
        with pytest.raises(StageError, match=r"not the one this collection was started with\n  weights \w+ -> \w+"):
            self.events(config.model_copy(update={"model": str(other)}))
        assert Store.open(config.store).config["model"] == str(folder)

    @pytest.mark.parametrize("limit", [1, None], ids=["begun", "finished"])
    def test_another_noise_schedule_is_refused(self, run: Any, tmp_path: Path, limit: int | None) -> None:
        config, _ = run
        execute(config, "collect", limit=limit)
        other = copy_folder(tmp_path / "other")
        file = other / "scheduler/scheduler_config.json"
        file.write_text(file.read_text().replace("v_prediction", "epsilon"))
        with pytest.raises(StageError, match=r"the scheduler of the model .* is not the one") as caught:
            self.events(config.model_copy(update={"model": str(other)}))
        assert caught.value.rerun is not None
        assert (caught.value.rerun.stage, caught.value.rerun.force) == ("schedule", True)

    def test_a_schedule_of_another_model_is_not_collected_along(self, run: Any, tmp_path: Path) -> None:
        config, folder = run
        execute(config, "schedule")
        file = folder / "scheduler/scheduler_config.json"
        file.write_text(file.read_text().replace("v_prediction", "epsilon"))
        with pytest.raises(StageError, match="is not the one"):
            execute(config, "collect")

    def test_doctor_compares_as_well(self, run: Any, tmp_path: Path) -> None:
        config, _ = run
        execute(config, "collect")
        other = copy_folder(tmp_path / "other")
        named = config.model_copy(update={"model": str(other)})
        found = {finding.check: finding for finding in examine(Examination(lambda: (named, "c.yaml", None), "cpu"))}
        assert found["probe"].verdict == "ok"
        tensors = load_file(weights_file(other, "unet"))
        save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights_file(other, "unet"))
        found = {finding.check: finding for finding in examine(Examination(lambda: (named, "c.yaml", None), "cpu"))}
        assert found["stale"].verdict == "ok"
        assert found["probe"].verdict == "error"
        assert "is not the one this collection was started with" in found["probe"].text

    def test_status_says_it_and_loads_nothing(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config, _ = run
        execute(config, "collect")
        monkeypatch.setattr(load_module, "load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
        result = CliRunner().invoke(app, ["status", "-s", config.store, "--set", "model=./gone"])
        assert "-> ./gone, the same model or another: collect compares the weights" in result.stdout
        answer = CliRunner().invoke(app, ["status", "-s", config.store, "--set", "model=./gone", "--json"]).stdout
        assert json.loads(answer)["renamed"] == [{"field": "model", "old": config.model, "new": "./gone"}]
        assert json.loads(answer)["stages"]["collect"]["state"] == "complete"


class TestFiles:
    """Models that are not whole, not there, or not to be trusted."""

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("./gone", ["no model folder at gone", "hub id"]),
            ("a/b/c", ["no model folder at a/b/c"]),
            ("models/gone.safetensors", ["no model file at models/gone.safetensors"]),
            ("https://huggingface.co/owner/name/x.safetensors", ["is an address", "hf download owner/name FILE"]),
            (str(ROOT / "README.md"), ["README.md is not a model", ".safetensors"]),
            (str(ROOT / "nullbooth_cli/toy/unet"), ["it has no model_index.json", "only one part of a pipeline"]),
        ],
    )
    def test_names(self, name: str, words: list[str]) -> None:
        refused(name, *words)

    def test_a_folder_with_a_single_file(self, tmp_path: Path) -> None:
        (tmp_path / "one.safetensors").touch()
        refused(tmp_path, "it has no model_index.json", f"set model to the file {tmp_path / 'one.safetensors'}")

    @pytest.mark.parametrize("part", ["unet", "text_encoder"])
    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ("missing", ["is not whole: weights are missing, such as", ".weight"]),
            ("cut", ["is damaged, perhaps by a download that was cut off", "delete the file"]),
            ("web page", ["is damaged"]),
            ("size", ["have other sizes than its config says", "from the same model"]),
            ("gone", ["cannot load the model", "no file named"]),
        ],
    )
    def test_weights(self, tmp_path: Path, part: str, wrong: str, words: list[str]) -> None:
        folder = copy_folder(tmp_path / "model")
        file = weights_file(folder, part)
        tensors = load_file(file)
        name = next(name for name, tensor in tensors.items() if (tensor.ndim == 2 and "mlp.fc1" in name) or "attn2.to_k" in name)
        if wrong == "missing":
            del tensors[name]
            save_file(tensors, file, metadata={"format": "pt"})
            words = [*words, name]
        elif wrong == "size":
            save_file({**tensors, name: tensors[name][1:].clone()}, file, metadata={"format": "pt"})
        elif wrong == "cut":
            file.write_bytes(file.read_bytes()[:50_000])
        elif wrong == "web page":
            file.write_text("<html>sign in</html>")
        else:
            file.unlink()
        refused(folder, *words)

    def test_a_vocabulary(self, tmp_path: Path) -> None:
        folder = copy_folder(tmp_path / "model")
        shutil.rmtree(folder / "tokenizer")
        refused(folder, "is not whole: the vocabulary of its tokenizer is missing")

    def test_a_pipeline_of_the_future(self, tmp_path: Path) -> None:
        index = copy_folder(tmp_path / "model") / "model_index.json"
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "FuturePipeline"))
        refused(index.parent, "this diffusers does not know the pipeline", "FuturePipeline", "pip install -U diffusers")

    @pytest.mark.parametrize("kind", ["pickled folder", "checkpoint"])
    def test_pickles_are_refused_until_they_are_allowed(self, kinds: Any, kind: str) -> None:
        name, settings = kinds[kind]
        refused(name, "pickle", "allow_pickle: true", **{**settings, "allow_pickle": False})

    def test_a_single_file_without_its_configs(self, kinds: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        name, _ = kinds["single file"]
        # With 8 latent channels it looks like that model to diffusers.
        refused(name, "has weights only", "timbrooks/instruct-pix2pix is not in the cache", "set pipeline_config to the folder")
        refused(name, "pipeline_config: ", "is a single file as well", pipeline_config=name)
        refused(name, "revision and variant mean nothing for a single file", pipeline_config="toy", revision="main")
        refused("toy", "pipeline_config is only for single-file models", pipeline_config="toy")

    def test_a_single_file_without_some_of_its_weights(self, kinds: Any, tmp_path: Path) -> None:
        tensors = load_file(kinds["single file"][0])
        parts = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        save_file(parts, tmp_path / "unet.safetensors")
        refused(tmp_path / "unet.safetensors", "is not a whole pipeline", "CLIPTextModel", pipeline_config="toy")
        del tensors[next(name for name in tensors if "attn2.to_k" in name)]
        save_file(tensors, tmp_path / "less.safetensors")
        refused(tmp_path / "less.safetensors", "is not whole: weights are missing", pipeline_config="toy")
        (tmp_path / "cut.safetensors").write_bytes(Path(kinds["single file"][0]).read_bytes()[:50_000])
        refused(tmp_path / "cut.safetensors", "cut.safetensors is damaged", pipeline_config="toy")


Answer = Callable[[httpx2.Request], httpx2.Response]


def says(status: int, code: str) -> Answer:
    return lambda _: httpx2.Response(status, headers={"X-Error-Code": code})


def unreachable(_: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("no way")


def repository(answer: Answer, *files: str) -> Answer:
    """A repository that exists, with these files; asked for one of them the hub gives the answer."""
    siblings = [{"rfilename": file} for file in files]

    def respond(request: httpx2.Request) -> httpx2.Response:
        if "/tree/" in request.url.path:
            entries = [{"type": "file", "path": file, "size": 1, "oid": COMMIT} for file in files]
            return httpx2.Response(200, json=entries)
        if request.url.path.startswith("/api/"):
            return httpx2.Response(200, json={"id": HUB, "sha": COMMIT, "siblings": siblings})
        return answer(request)

    return respond


class TestHub:
    """The errors that huggingface_hub itself raises, from the answers that the hub gives."""

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Answer], None]]:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("time.sleep", lambda _: None)  # between its attempts

        def answering(answer: Answer) -> None:
            hooks = {"request": [_http.hf_request_event_hook]}
            huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer), event_hooks=hooks))

        yield answering
        huggingface_hub.set_client_factory(_http.default_client_factory)

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (
                repository(says(403, "GatedRepo"), "model_index.json"),
                ["owner/name is gated", "accept their terms at https://huggingface.co/owner/name, then: hf auth login"],
            ),
            (
                says(404, "RepoNotFound"),
                ["the hub has no model owner/name, or it is private", "check the spelling", "hf auth login"],
            ),
            (says(401, ""), ["the hub has no model owner/name, or it is private"]),
            (says(404, "RevisionNotFound"), ["owner/name has no revision v9", "https://huggingface.co/owner/name/commits"]),
            (
                unreachable,
                ["the hub cannot be reached", "check the network", "run hf download owner/name"],
            ),
        ],
        ids=["gated", "not found", "unauthorised", "revision", "unreachable"],
    )
    def test_what_the_hub_answers(self, hub: Any, answer: Answer, words: list[str]) -> None:
        hub(answer)
        refused(HUB, *words, local_files_only=False, revision="v9")
        with pytest.raises(ConfigError, match=re.escape(words[0])):
            load_module.load_scheduler(Source(HUB, revision="v9"))

    def test_it_is_not_asked(self, hub: Any) -> None:
        hub(lambda request: pytest.fail(f"{request.url} was asked for"))
        refused(HUB, "owner/name is not in the cache, and local_files_only forbids", "hf download owner/name")

    def test_it_may_not_be_asked(self, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        hub(unreachable)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        refused(HUB, "owner/name is not in the cache, and HF_HUB_OFFLINE forbids", local_files_only=False)

    def test_a_repository_that_is_no_pipeline(self, hub: Any) -> None:
        hub(repository(says(404, "EntryNotFound"), "adapter.safetensors"))
        refused(HUB, "owner/name is not a pipeline", "https://huggingface.co/owner/name/tree/main", local_files_only=False)
        with pytest.raises(ConfigError, match=r"owner/name is not a pipeline folder: it has no model_index\.json"):
            load_module.load_scheduler(Source(HUB))

    def test_pickles_are_not_even_downloaded(self, hub: Any) -> None:
        index = (ROOT / "nullbooth_cli/toy/model_index.json").read_bytes()
        asked = []

        def give(request: httpx2.Request) -> httpx2.Response:
            asked.append(request.url.path)
            headers = {"X-Repo-Commit": COMMIT, "ETag": '"0"', "Content-Length": str(len(index))}
            return httpx2.Response(200, headers=headers, content=index if request.method == "GET" else b"")

        hub(repository(give, "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"))
        refused(HUB, "owner/name has pickled weights", "allow_pickle: true", local_files_only=False)
        assert all(path.endswith("model_index.json") for path in asked)


class TestDevices:
    def test_offload_needs_an_accelerator(self) -> None:
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

    def test_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        for name, found in (("cuda:1", "cuda:1"), ("cuda", "cuda"), ("mps", "mps"), ("cpu", "cpu")):
            assert str(device.pick_device(name)) == found
        for name in ("cuda:2", "gpu", "cuda:x", ""):
            with pytest.raises(ResourceError, match=f"no such device: {name}") as caught:
                device.pick_device(name)
            assert caught.value.hint == "set the device to one of: cpu, cuda:0, cuda:1, mps"


class Kept:
    dtype = None

    def __init__(self) -> None:
        self.tensors: dict[tuple[str, int], torch.Tensor] = {}

    def receive(self, site: Any, step: int, _: Any, values: torch.Tensor) -> None:
        self.tensors[site.name, step] = values.clone()

    def due(self) -> bool:
        return False

    def checkpoint(self, units: Any) -> None:
        pass


def recorded(pipe: Any) -> tuple[dict[tuple[str, int], torch.Tensor], tuple[str, ...]]:
    """What collect records of two prompts, by site and step; and the names of the weights that it belongs to."""
    config = small_config(Path("none"))
    _, steps = open_model.compute_steps(config, 2)
    path = open_model.follow_schedule(config, steps, pipe)
    model = open_model.find_recordable(config, pipe, path, Prompt(PROMPTS[0]))
    kept = Kept()
    members = [(row, Prompt(PROMPTS[row])) for row in range(2)]
    recorder = recorder_module.Recorder(model, members, branches="both", sinks=[kept])
    units_module.run_unit(model, recorder)
    recorder.check()
    return kept.tensors, tuple(weight for site in model.sites for weight in site.weights)


@pytest.fixture(scope="module")
def plain() -> tuple[dict[tuple[str, int], torch.Tensor], tuple[str, ...]]:
    return recorded(load("toy"))


def adapted(unet: Any, *, random: bool) -> Any:
    """LoRA around every projection, as diffusers' training scripts put it; at the start it changes nothing."""
    unet.add_adapter(
        peft.LoraConfig(
            r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian" if not random else False
        )
    )
    return unet


class TestWrapped:
    """Models that something was done to after loading: what is recorded stays the same, or it is refused."""

    def same(self, pipe: Any, plain: Any, atol: float = 0.0) -> None:
        tensors, weights = recorded(pipe)
        assert weights == plain[1]
        assert tensors.keys() == plain[0].keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, plain[0][key], rtol=0, atol=atol)

    def test_offloaded_whole(self, plain: Any, pipe: Any) -> None:
        offloaded = load("toy")
        offloaded.enable_model_cpu_offload(device="cpu")
        self.same(offloaded, plain)
        assert load_module.weights_digest(offloaded) == load_module.weights_digest(pipe)

    def test_an_early_end_leaves_nothing_on_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The denoiser is offloaded by the part after it, which a path that is ended early never reaches."""
        offloaded = load("toy")
        offloaded.enable_model_cpu_offload(device="cpu")
        freed = []
        monkeypatch.setattr(type(offloaded), "maybe_free_model_hooks", lambda _: freed.append(1))
        recorded(offloaded)
        assert len(freed) == 2

    def test_offloaded_layer_by_layer(self, plain: Any) -> None:
        offloaded = load("toy")
        accelerate.cpu_offload(offloaded.unet, execution_device=torch.device("cpu"))
        self.same(offloaded, plain)

    def test_sliced(self, plain: Any) -> None:
        # Sums of another order.
        self.same(load("toy", attention_slicing=True), plain, atol=1e-4)

    def test_adapters_give_the_names_of_the_plain_weights(self, plain: Any, finished: Any) -> None:
        pipe = load("toy")
        adapted(pipe.unet, random=False)
        self.same(pipe, plain)
        projectors = usable_projectors(finished[1], pipe.unet.state_dict())
        assert set(projectors) == set(plain[1])
        unloaded = load("toy")
        adapted(unloaded.unet, random=False).delete_adapters("default")
        self.same(unloaded, plain)

    def test_adapters_that_do_something_are_another_model(self, plain: Any) -> None:
        pipe = load("toy")
        digest = load_module.weights_digest(pipe)
        adapted(pipe.unet, random=True)
        tensors, weights = recorded(pipe)
        assert weights == plain[1]
        assert any(not torch.equal(tensor, plain[0][key]) for key, tensor in tensors.items())
        assert load_module.weights_digest(pipe) != digest

    def test_a_model_that_is_wrapped_whole(self, plain: Any, finished: Any) -> None:
        pipe = load("toy")
        pipe.unet = peft.get_peft_model(pipe.unet, peft.LoraConfig(r=2, target_modules=["to_k"]))
        with pytest.raises(ModelError, match=r"pipe\.unet is wrapped in a PeftModel, which renames its weights") as caught:
            recorded(pipe)
        assert "pipe.unet = pipe.unet.get_base_model()" in caught.value.hint
        assert usable_projectors(finished[1], pipe.unet.state_dict())
        pipe.unet = pipe.unet.get_base_model()
        self.same(pipe, plain)

    def test_adapters_saved_into_the_weights_are_refused(self, tmp_path: Path) -> None:
        """diffusers would load such a file with the projections at random."""
        folder = copy_folder(tmp_path / "model")
        pipe = load(folder)
        adapted(pipe.unet, random=True).save_pretrained(folder / "unet")
        refused(folder, "is not whole: weights are missing", "attn", "adapters fused or unloaded")

    def test_fused_projections(self) -> None:
        pipe = load("toy")
        pipe.fuse_qkv_projections()
        with pytest.raises(ModelError, match="are fused") as caught:
            find_projections(load_module.denoiser_of(pipe), ("q",), "all")
        assert "pipe.unfuse_qkv_projections()" in caught.value.hint

    @pytest.mark.parametrize("how", ["function", "method", "blocks"])
    def test_compiled(self, how: str) -> None:
        pipe = load("toy")
        if how == "function":
            pipe.unet = torch.compile(pipe.unet, backend="eager")
        elif how == "method":
            pipe.unet.compile(backend="eager")
        else:
            pipe.unet._repeated_blocks = ["BasicTransformerBlock"]
            pipe.unet.compile_repeated_blocks(backend="eager")
        with pytest.raises(ModelError, match=r"pipe\.unet is compiled: hooks that are set after the first") as caught:
            recorded(pipe)
        assert "as it was loaded" in caught.value.hint
