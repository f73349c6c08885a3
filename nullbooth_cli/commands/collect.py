"""The command `nullbooth collect`."""

from nullbooth_cli.commands.options import (
    AsJson,
    Common,
    ConfigFile,
    Control,
    Device,
    DryRun,
    Force,
    Limit,
    Overrides,
    Quiet,
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
    dry_run: DryRun = False,
    force: Force = False,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the model over the prompts and store what enters its cross-attention projections.

    Writes the schedule first if there is none. Stop it at any time: finished batches of prompts are kept, and the same
    command goes on.

    Example: nullbooth collect -c configs/nullbooth.yaml --dry-run
    """
    from nullbooth_cli.commands.session import run_stages

    common = Common(config, store, tuple(overrides or ()), as_json, quiet, verbose)
    run_stages(("collect",), common, Control(device, dry_run, force, yes, limit))
