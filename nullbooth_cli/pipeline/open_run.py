"""Opens and locks the store of a run. Stages get a store to write to in no other way."""

import contextlib
from collections.abc import Iterator
from functools import partial

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.workers import Shard, Workers, start_workers
from nullbooth_cli.progress import Interrupts
from nullbooth_cli.settings.config import Config, public_settings
from nullbooth_cli.store import Backing, Store, is_held, locked, no_store, open_backing, shard_locked

PREPARING_SECONDS = 600.0  # shards wait this long for the one that prepares the store


@contextlib.contextmanager
def open_run(
    config: Config,
    prompts: tuple[Prompt, ...],
    *,
    create: bool = True,
    device: str | None = None,
    force: bool = False,
    limit: int | None = None,
    repair: bool = False,
    auto_batch: bool = False,
    shard: Shard | None = None,
    interrupts: Interrupts | None = None,
) -> Iterator[Run]:
    """Lock the store that a config names, open it (or create an empty one), and close the run afterwards.

    A launcher's processes, and the shards of a run, share the store; any other process is refused. Raises StoreError naming the
    process that holds the lock, StageError if there is no store and none is to be created.
    """
    backing = open_backing(config.store, config.storage_options)
    if not create and not backing.exists():
        raise no_store(backing)
    preparing = partial(locked, backing, PREPARING_SECONDS, among_shards=True) if shard else None
    with start_workers(shard, preparing, partial(is_held, backing)) as workers, _locked_store(backing, workers):
        workers.agree(lambda: Store.open_or_create(config.store, public_settings(config), config.storage_options).url)
        yield Run(
            config=config,
            prompts=prompts,
            store=Store.open(config.store, write=True, options=config.storage_options),
            device=device,
            force=force,
            limit=limit,
            repair=repair,
            auto_batch=auto_batch,
            workers=workers,
            interrupts=interrupts or Interrupts(),
        )


@contextlib.contextmanager
def _locked_store(backing: Backing, workers: Workers) -> Iterator[None]:
    """Hold the store, or one shard of it: the first process of a launch holds it for all, and each other one a lock of its own.

    If the first is killed while others still write, their locks keep other runs out.
    """
    if workers.rank != 0:
        workers.agree(lambda: None)
        lock = backing.lock(workers.lock)
    elif workers.shard:
        lock = shard_locked(backing, workers.shard.number, workers.shard.count)
    else:
        lock = locked(backing)
    with lock:
        workers.has_lock()
        if workers.rank == 0:
            workers.agree(lambda: None)
        yield
