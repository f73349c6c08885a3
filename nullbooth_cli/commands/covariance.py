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
    Release,
    Repair,
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
    repair: Repair = False,
    release: Release = False,
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
    from the same sums, so changing it costs no new pass. Prompts that were added to the collection are added to the moments.
    With collect.keep: moments there is nothing left to do.

    Example: nullbooth covariance -s runs/toy.zarr
    """
    from nullbooth_cli.commands.run_stages import run_stages

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    control = Control(device=device, dry_run=dry_run, force=force, yes=yes, limit=limit, repair=repair, release=release)
    run_stages(("covariance",), common, control)
