"""How a run gets its store: locked while it is open, and made only where that is asked for."""

from pathlib import Path

import pytest

from nullbooth_cli.errors import StageError, StoreError
from nullbooth_cli.pipeline.open_run import open_run
from nullbooth_cli.pipeline.workers import Shard
from nullbooth_cli.store import Store
from tests.support.builders import prompts_of, small_config


def test_the_store_is_made_locked_and_let_go(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr")
    prompts = prompts_of(config)
    with open_run(config, prompts, force=True, limit=2) as run:
        assert (run.config, run.prompts, run.force, run.limit, run.repair) == (config, prompts, True, 2, False)
        with pytest.raises(StoreError, match="is in use by process"), open_run(config, prompts):
            pass
    with open_run(config, prompts) as run:
        assert run.store.records == {}
    assert "storage_options" not in Store.open(config.store).config


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr")
    with pytest.raises(RuntimeError, match="on the way"), open_run(config, prompts_of(config)):
        raise RuntimeError("on the way")
    with open_run(config, prompts_of(config)):
        pass


def test_nothing_is_made_where_something_must_be_there(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr")
    with (
        pytest.raises(StageError, match="nothing was collected yet") as caught,
        open_run(config, prompts_of(config), create=False),
    ):
        pass
    assert caught.value.rerun is not None
    assert (caught.value.rerun.stage, caught.value.rerun.store) == ("collect", config.store)
    assert not (tmp_path / "run.zarr").exists()


def test_two_shards_are_open_beside_each_other(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr")
    prompts = prompts_of(config)
    with open_run(config, prompts, shard=Shard(1, 2)) as one, open_run(config, prompts, shard=Shard(2, 2)) as two:
        assert (one.workers.mine(range(4)), two.workers.mine(range(4))) == ([0, 2], [1, 3])
