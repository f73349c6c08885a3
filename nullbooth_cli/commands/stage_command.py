"""The shape that all stage commands have."""

import inspect
from collections.abc import Callable

from nullbooth_cli.commands.options import (
    AsJson,
    AutoBatch,
    Common,
    ConfigFile,
    Control,
    Device,
    DryRun,
    Explore,
    Force,
    Limit,
    Overrides,
    Plot,
    Quiet,
    Release,
    Repair,
    ShardOf,
    StorePath,
    Verbose,
    Yes,
)

# The options that only some stage commands have. `--limit` counts units of one stage, so `run` has none.
_SPECIAL = {
    "limit": {("collect",), ("covariance",), ("project",)},
    "repair": {("collect",), ("covariance",)},
    "auto_batch": {("collect",)},
    "shard": {("collect",)},
    "release": {("covariance",)},
    "explore": {("project",)},
    "plot": {("project",)},
}


def stage_command(*stages: str) -> Callable[[Callable[[], None]], Callable[..., None]]:
    """Make a command that runs these stages in order, out of a function that only has the help text."""

    def decorate(described: Callable[[], None]) -> Callable[..., None]:
        def command(
            config: ConfigFile = None,
            store: StorePath = None,
            overrides: Overrides = None,
            device: Device = None,
            limit: Limit = None,
            auto_batch: AutoBatch = False,
            shard: ShardOf = None,
            repair: Repair = False,
            release: Release = False,
            explore: Explore = False,
            plot: Plot = None,
            dry_run: DryRun = False,
            force: Force = False,
            yes: Yes = False,
            as_json: AsJson = False,
            quiet: Quiet = False,
            verbose: Verbose = False,
        ) -> None:
            from nullbooth_cli.commands.run_stages import run_stages

            common = Common(config, store, tuple(overrides or ()), as_json, quiet, verbose)
            control = Control(device, dry_run, force, yes, limit, repair, auto_batch, shard, release, explore, plot)
            run_stages(stages, common, control)

        signature = inspect.signature(command)
        kept = [p for name, p in signature.parameters.items() if stages in _SPECIAL.get(name, {stages})]
        command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]  # read by inspect.signature
        command.__name__, command.__doc__ = described.__name__, described.__doc__
        return command

    return decorate
