"""Pushing a result to a hub on this machine, and everything that stands in the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.evaluation.verdict import forgotten
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import hub, output
from tests.support.hub import TOKEN, Hub, running
from tests.support.tiny_dreambooth import recipe


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that every request goes to, and its token."""
    with running() as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


@pytest.fixture
def trained(free_run: dict[str, Any]) -> tuple[Recipe, output.TrainingResult]:
    made = recipe(Path(free_run["output"]).parent)
    result = output.finished(made)
    assert result is not None
    return made, result


def test_the_result_and_its_card(server: Hub, trained: tuple[Recipe, output.TrainingResult]) -> None:
    made, result = trained
    hub.require_account("sks", made)
    assert hub.push("sks", made, result, [forgotten({"known": 0.01})]) == f"{server.url}/me/sks"
    files = server.files["me/sks"]
    folder = Path(result.output)
    of_result = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(of_result) > 8
    card = files.pop("README.md").decode()
    assert files == of_result
    assert 'from_pretrained("me/sks"' in card
    assert "forgotten 0.01" in card
    assert ModelCard(card).data.to_dict()["library_name"] == "diffusers"
    [request] = server.made
    assert (request["name"], request.get("private") or request.get("visibility") == "private") == ("sks", True)


def test_no_token(server: Hub, trained: tuple[Recipe, output.TrainingResult], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(ConfigError, match="cannot push to me/sks: this machine has no token of the hub") as caught:
        hub.require_account("me/sks", trained[0])
    assert caught.value.hint.startswith("run hf auth login, or set HF_TOKEN")


def test_a_refused_token(server: Hub, trained: tuple[Recipe, output.TrainingResult], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ConfigError, match="the hub refuses the token, or me/sks is not yours"):
        hub.require_account("me/sks", trained[0])
    with pytest.raises(ConfigError, match="the hub refuses the token") as caught:
        hub.push("me/sks", *trained)
    assert f"then run this again: {trained[1].output} is whole, and nothing is trained again" in caught.value.hint


def test_a_hub_that_cannot_take_it(server: Hub, trained: tuple[Recipe, output.TrainingResult]) -> None:
    server.broken = True
    with pytest.raises(ResourceError, match=r"cannot push to me/sks: .*507") as caught:
        hub.push("me/sks", *trained)
    assert "nothing is trained again" in caught.value.hint
    server.broken = False
    hub.push("me/sks", *trained)
    assert "README.md" in server.files["me/sks"]


def test_no_network(trained: tuple[Recipe, output.TrainingResult], monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as gone:
        pass
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", gone.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ResourceError, match="cannot push to me/sks: the hub cannot be reached") as caught:
        hub.require_account("me/sks", trained[0])
    assert caught.value.hint == "check the network"


@pytest.mark.parametrize("name", ["a b", "me/sks/more", "-sks"])
def test_a_name_that_no_repository_has(name: str, trained: tuple[Recipe, output.TrainingResult]) -> None:
    with pytest.raises(ConfigError, match="is not the name of a repository"):
        hub.require_account(name, trained[0])


def test_a_recipe_that_forbids_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="local_files_only forbids"):
        hub.require_account("me/sks", recipe(tmp_path, local_files_only=True))
