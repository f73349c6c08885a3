"""Tasks by several processes, through signals and at a URL: the same as by one process in a folder."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import nullbooth_cli as nb
from nullbooth_cli.pipeline import remember as module
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, leftovers
from tests.support.bucket import Place
from tests.support.builders import PROMPTS, TEXT_ONLY, states_of
from tests.support.cli import nullbooth, refused
from tests.support.tasks import collected, dog_and_cat, remember, spectra
from tests.support.zygote import Twist, Worker, launch, stopped

DOGS = [f"a sks dog number {number}" for number in range(7)]


@pytest.fixture(scope="module")
def dog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dog_and_cat(tmp_path_factory.mktemp("changed"))["dog"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, dog: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The spectra of a store before and after a process alone let it remember the dog."""
    config = collected(tmp_path_factory.mktemp("alone") / "run.zarr", collect__batch_size=1)
    before = spectra(config)
    remember(config, dog, prompts=DOGS)
    return before, spectra(config)


def asked(config: Config, dog: Path) -> list[str]:
    return ["remember", str(dog), *DOGS, "-s", config.store]


def test_two_processes_remember_and_forget_together(tmp_path: Path, dog: Path, alone: tuple[list[np.ndarray], ...]) -> None:
    config, slow = collected(tmp_path / "run.zarr", collect__batch_size=1), {rank: Twist(slow=0.1) for rank in range(2)}
    with stopped(launch([*asked(config, dog), "--json"], tmp_path / "log", 2, slow)) as (first, second):
        assert (first.finish(), second.finish()) == (0, 0), first.err + second.err
    assert sorted(first.begun + second.begun) == list(range(7)), "each unit once"
    assert first.begun
    assert second.begun
    assert first.out.count('"task": "dog"') == 1
    assert (second.out, second.err) == ("", "")
    np.testing.assert_allclose(spectra(config), alone[1], atol=1e-10)
    with stopped(launch(["remember", "--forget", "dog", "-s", config.store], tmp_path / "forget", 2)) as (first, second):
        assert (first.finish(), second.finish()) == (0, 0), first.err + second.err
    assert (first.out, second.out) == (f"{config.store} remembers no task\n", "")
    np.testing.assert_array_equal(spectra(config), alone[0])


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_stops_it_and_the_same_command_resumes(
    tmp_path: Path, dog: Path, alone: tuple[list[np.ndarray], ...], number: int, exit_code: int
) -> None:
    config = collected(tmp_path / "run.zarr", collect__batch_size=1)
    with stopped([Worker(asked(config, dog), tmp_path / "stopped", twist=Twist(slow=0.3, checkpoint_share=1e-9))]) as [worker]:
        until = time.monotonic() + 60
        while len(worker.begun) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert worker.pid is not None
        os.kill(worker.pid, number)
        assert worker.finish() == exit_code, worker.err
    assert ("run the same command again to resume" in worker.err) is (number != signal.SIGKILL)
    assert leftovers(Store.open(config.store)) == ["dog"]
    assert states_of(config)["project"] == "complete", "it does not count yet"
    with stopped([Worker(asked(config, dog), tmp_path / "again")]) as [again]:
        assert again.finish() == 0, again.err
    if number != signal.SIGKILL:
        assert worker.begun + again.begun == list(range(7)), "the unit that ran was finished and written"
    np.testing.assert_array_equal(spectra(config), alone[1])


def test_a_store_at_a_url(place: Place, dog: Path, alone: tuple[list[np.ndarray], ...], monkeypatch: pytest.MonkeyPatch) -> None:
    text = {"schedule__num_denoising_steps": 4, "collect__cross_attention_layers": "all", "collect__batch_size": 1}
    config = place.config(original_knowledge_prompts=PROMPTS, collect__keep="moments", **TEXT_ONLY, **text)
    assert nullbooth("run", "-c", config).exit_code == 0

    def found() -> list[np.ndarray]:
        store = place.open()
        return [store.projectors.read_eigenvalues(site, 0) for site in store.sites]

    with monkeypatch.context() as patched:
        patched.setattr(module, "list_task", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert nullbooth("remember", str(dog), *DOGS, "-c", config).exit_code == 130
    assert "unfinished task dog" in nullbooth("status", "-c", config).stdout
    opened = nb.remember(dog, place.url, DOGS, storage_options=place.bucket.options)
    np.testing.assert_allclose(found(), alone[1], atol=1e-10)
    assert [task.name for task in opened.tasks()] == ["dog"]
    assert "tasks: dog\n" in nullbooth("status", "-c", config, "--verify").stdout
    assert not place.bucket.keys(f"{place.prefix}.lock")

    [damaged] = [key for key in place.bucket.keys(f"{place.prefix}/tasks/dog/moments") if "sum_xxT/c" in key]
    place.bucket.delete(damaged)
    refused(nullbooth("status", "-c", config), 4, f"{place.url}/tasks/dog", "remember the task dog again")
    assert nullbooth("remember", str(dog), *DOGS, "-c", config).exit_code == 0
    np.testing.assert_allclose(found(), alone[1], atol=1e-10)

    assert nullbooth("remember", "--forget", "dog", "-c", config).exit_code == 0
    assert not place.bucket.keys(f"{place.prefix}/tasks/dog")
    np.testing.assert_allclose(found(), alone[0], atol=1e-10)
