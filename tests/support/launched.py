"""Training runs in the processes of a launch, which are forked from one that has imported everything."""

import multiprocessing
import os
import socket
from collections.abc import Sequence

from nullbooth_cli.settings.recipe import Recipe
from tests.support import zygote


def train_in_processes(recipes: Sequence[Recipe], size: int, seconds: float = 120) -> None:
    """Train recipes one after the other, each by all of `size` processes together."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": str(size)}
    start = multiprocessing.get_context("forkserver").Process
    environments = [{**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    workers = [start(target=_train, args=(recipes, environment), daemon=True) for environment in environments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(seconds)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0] * size


def _train(recipes: Sequence[Recipe], environment: dict[str, str]) -> None:
    """In the fork."""
    assert zygote.THREADS == 1, "it was not safe to fork"
    os.environ.update(environment)
    from nullbooth_cli.training import dreambooth, setup

    for recipe in recipes:
        run = setup.set_up(recipe, "cpu")
        for _ in dreambooth.train(run):
            pass
        dreambooth.finish(run)
