"""The largest batch that fits, on a CPU by arithmetic and on CUDA by trying."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nullbooth_cli.collect import batch_size as batch_size_module
from nullbooth_cli.collect import find_sites
from nullbooth_cli.collect.branches import ALONE
from nullbooth_cli.datatypes import Prompt
from tests.support.builders import PROMPTS, execute, small_config, states_of


class TestAutoBatch:
    def test_the_largest_batch_that_fits_memory(self) -> None:
        assert batch_size_module.largest_that_fits(300, 400, free=2000, most=64) == 10
        assert batch_size_module.largest_that_fits(100, 200, free=10**9, most=64) == 64
        assert batch_size_module.largest_that_fits(100, 200, free=10, most=64) == 1

    def test_it_sets_the_unit_and_is_recorded(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"])
        store = execute(config, "collect", auto_batch=True, limit=1)
        assert store.layout.batch_size == len(PROMPTS)
        assert states_of(config)["collect"] == "complete"

    def test_a_device_without_room_is_tried_with_less(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The search on CUDA, driven by a denoiser that runs out of memory above five prompts."""
        tried: list[int] = []

        def denoise(pipe: Any, path: Any, members: list[Any]) -> None:
            tried.append(len(members))
            if len(members) > 5:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

        monkeypatch.setattr(batch_size_module, "denoise", denoise)
        model = find_sites.RecordableModel(pipe, None, SimpleNamespace(projections=(), side="input", branches=ALONE))
        prompts = tuple(Prompt(f"prompt {i}") for i in range(40))
        fits = batch_size_module.largest_that_runs(model, prompts, 40)
        assert 1 <= fits <= 5
        assert tried[0] == 40
        assert tried == sorted(tried, reverse=True)


class TestLimitedMemory:
    """The limit of CUDA's allocator, on a made-up card of 100 bytes."""

    @pytest.fixture
    def limits(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Every limit that was set; the last one holds."""
        found = [0.9]
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=100))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: found[-1], raising=False)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda limit, _: found.append(limit))
        monkeypatch.setattr(batch_size_module, "free_memory", lambda _: 50)
        return found

    def test_a_share_of_what_is_free_and_afterwards_the_limit_of_before(self, limits: list[float]) -> None:
        with batch_size_module._limited_memory(torch.device("cuda")):
            assert limits[-1] == batch_size_module.MARGIN * 50 / 100
        assert limits[-1] == 0.9
        with pytest.raises(ZeroDivisionError), batch_size_module._limited_memory(torch.device("cuda")):
            1 / 0  # noqa: B018
        assert limits[-1] == 0.9

    def test_a_smaller_limit_of_the_program_stays(self, limits: list[float]) -> None:
        limits.append(0.1)
        with batch_size_module._limited_memory(torch.device("cuda")):
            assert limits[-1] == 0.1
        assert limits[-1] == 0.1

    def test_threads_wait_for_each_other(self, limits: list[float]) -> None:
        inside, most = [0], []

        def work() -> None:
            for _ in range(50):
                with batch_size_module._limited_memory(torch.device("cuda")):
                    inside[0] += 1
                    most.append(inside[0])
                    inside[0] -= 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1
        assert limits[-1] == 0.9
