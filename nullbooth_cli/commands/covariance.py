"""The command `nullbooth covariance`."""

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


def covariance(
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
    """Reduce the stored features to second moments: sums of x x^T, sums of x, and counts.

    The moment is about zero by default, although the command has the name that the field uses. With covariance.centred the
    mean is subtracted: the mean direction then looks null, and an edit along it changes what the model knows. Both are read
    from the same sums, so changing it costs no new pass.

    Example: nullbooth covariance -s runs/toy.zarr
    """
    from nullbooth_cli.commands.session import run_stages

    common = Common(config, store, tuple(overrides or ()), as_json, quiet, verbose)
    run_stages(("covariance",), common, Control(device, dry_run, force, yes, limit))
