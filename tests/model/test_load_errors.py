"""Models that cannot be loaded: files that are not whole, and the answers of the hub."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import load as load_module
from nullbooth_cli.model.sources import Source
from tests.support.builders import ROOT
from tests.support.loading import HUB, load, refused
from tests.support.model_files import COMMIT, copy_folder, weights_file


class TestFiles:
    """Models that are not whole, not there, or not to be trusted."""

    @pytest.mark.parametrize("part", ["unet", "text_encoder"])
    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ("missing", ["is not whole: weights are missing, such as", ".weight"]),
            ("cut", ["is damaged, perhaps by a download that was cut off", "delete the file"]),
            ("web page", ["is damaged"]),
            ("size", ["have other sizes than its config says", "from the same model"]),
            ("gone", ["has a config.json and no weights", "get the model again"]),
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

    def test_a_file_that_cannot_be_opened_now_is_not_damaged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As for want of memory, while something else is wrong with the model."""
        folder = copy_folder(tmp_path / "model")
        (folder / "tokenizer" / "tokenizer.json").write_text("{")

        def without_memory(*_: Any) -> Any:
            raise OSError("Cannot allocate memory")

        monkeypatch.setattr("safetensors.safe_open", without_memory)
        with pytest.raises(ConfigError) as caught:
            load(folder)
        assert "damaged" not in caught.value.message

    def test_a_vocabulary(self, tmp_path: Path) -> None:
        folder = copy_folder(tmp_path / "model")
        shutil.rmtree(folder / "tokenizer")
        refused(folder, "has no tokenizer", "model_index.json names one", "is missing or empty")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "special_tokens_map.json").write_text("{}")
        refused(folder, "is not whole: the vocabulary of its tokenizer is missing")

    def test_a_pipeline_of_the_future(self, tmp_path: Path) -> None:
        index = copy_folder(tmp_path / "model") / "model_index.json"
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "FuturePipeline"))
        refused(index.parent, "this diffusers does not know the pipeline", "FuturePipeline", "pip install -U diffusers")

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


def too_slow(_: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectTimeout("no answer")


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
            (too_slow, ["the hub cannot be reached", "check the network", "run hf download owner/name"]),
        ],
        ids=["gated", "not found", "unauthorised", "revision", "unreachable", "too slow"],
    )
    def test_what_the_hub_answers(self, hub: Any, answer: Answer, words: list[str]) -> None:
        hub(answer)
        refused(HUB, *words, local_files_only=False, revision="v9")
        with pytest.raises(ConfigError, match=re.escape(words[0])):
            load_module.load_scheduler(Source(HUB, revision="v9"))

    @pytest.mark.parametrize("problem", [unreachable, too_slow])
    def test_a_hub_that_cannot_be_reached_is_asked_once(self, hub: Any, monkeypatch: pytest.MonkeyPatch, problem: Answer) -> None:
        """Its library asks six times for a file, with waits of 23 seconds; for the list of files once."""
        asked = []
        monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"{seconds} seconds are waited"))
        hub(lambda request: (asked.append(request.url), problem(request))[1])
        with pytest.raises(ConfigError, match="the hub cannot be reached"):
            load_module.config_folder(Source(HUB))
        assert len(asked) == 1

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
