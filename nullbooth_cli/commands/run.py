"""The command `nullbooth run`."""

from nullbooth_cli.commands.options import (
    AsJson,
    Common,
    ConfigFile,
    Control,
    Device,
    DryRun,
    Force,
    Overrides,
    Quiet,
    StorePath,
    Verbose,
    Yes,
)


def run(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    device: Device = None,
    dry_run: DryRun = False,
    force: Force = False,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run all stages in order: schedule, collect, covariance, project.

    Complete stages are left alone, partial ones go on; with --force, stale ones are replaced.

    Example: nullbooth run -c configs/nullbooth.yaml
    """
    from nullbooth_cli.commands.session import run_stages

    common = Common(config, store, tuple(overrides or ()), as_json, quiet, verbose)
    run_stages(("schedule", "collect", "covariance", "project"), common, Control(device, dry_run, force, yes))
