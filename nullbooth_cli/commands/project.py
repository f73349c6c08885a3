"""The command `nullbooth project`."""

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


def project(
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
    """Decompose the moments and cut each spectrum into known and null.

    One threshold rule of the config's project section is in force. Another threshold re-uses the stored decomposition.

    Example: nullbooth project -s runs/toy.zarr --set project.relative_threshold=1e-2 --force
    """
    from nullbooth_cli.commands.session import run_stages

    common = Common(config, store, tuple(overrides or ()), as_json, quiet, verbose)
    run_stages(("project",), common, Control(device, dry_run, force, yes, limit))
