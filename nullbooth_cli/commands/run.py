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
    """Run all stages: schedule, collect, covariance, project.

    Complete stages are skipped, and partial ones are resumed. With --force, stale ones are replaced.

    Example: nullbooth run -c configs/nullbooth.yaml
    """
    from nullbooth_cli.commands.run_stages import run_stages
    from nullbooth_cli.settings.config import STAGES

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    control = Control(device=device, dry_run=dry_run, force=force, yes=yes)
    run_stages(STAGES, common, control)
