"""The command `nullbooth collect`."""

from nullbooth_cli.commands.options import (
    AsJson,
    AutoBatch,
    Common,
    ConfigFile,
    Control,
    Device,
    DryRun,
    Force,
    Limit,
    Overrides,
    Quiet,
    Repair,
    ShardOf,
    StorePath,
    Verbose,
    Yes,
)


def collect(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    device: Device = None,
    limit: Limit = None,
    auto_batch: AutoBatch = False,
    shard: ShardOf = None,
    repair: Repair = False,
    dry_run: DryRun = False,
    force: Force = False,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the model on the prompts and store attention's inputs.

    The inputs of each projection are stored, or only their sums (collect.keep). Writes the schedule first if the store has
    none. Stop it at any time: finished batches of prompts stay, and the same command resumes. Prompts that were added to the
    file are collected; with --force, prompts that were removed from the file are taken out of the store. Under accelerate
    launch or torchrun the processes share the work.

    Example: nullbooth collect -c configs/nullbooth.yaml --dry-run
    """
    from nullbooth_cli.commands.run_stages import run_stages

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    control = Control(
        device=device, dry_run=dry_run, force=force, yes=yes, limit=limit, repair=repair, auto_batch=auto_batch, shard=shard
    )
    run_stages(("collect",), common, control)
