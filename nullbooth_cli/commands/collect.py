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
    """Run the model over the prompts and store what enters its cross-attention projections, or add it up on the way.

    Writes the schedule first if there is none. Stop it at any time: finished batches of prompts are kept, and the same
    command goes on. Prompts that were added to the file are collected, the others are left alone; with --force, prompts that
    were removed are taken out. Under accelerate launch or torchrun the processes share the work out.

    Example: nullbooth collect -c configs/nullbooth.yaml --dry-run
    """
    from nullbooth_cli.commands.run_stages import run_stages

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    control = Control(
        device=device, dry_run=dry_run, force=force, yes=yes, limit=limit, repair=repair, auto_batch=auto_batch, shard=shard
    )
    run_stages(("collect",), common, control)
