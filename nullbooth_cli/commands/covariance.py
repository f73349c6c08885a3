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
    """Reduce the stored features to second moments.

    These are sums of x x^T, sums of x, and counts. By default the moment is about zero, although the field calls it
    covariance. With covariance.centred the mean is subtracted. The direction of the mean can then count as null, and an edit
    along it changes the pictures of preserved prompts. Both come from the same sums, so a change needs no new pass.
    Prompts that were added to the collection are added to the moments. With collect.keep: moments, collect has done this
    already.

    Example: nullbooth covariance -s runs/toy.zarr
    """
    from nullbooth_cli.commands.run_stages import run_stages

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    control = Control(device=device, dry_run=dry_run, force=force, yes=yes, limit=limit, repair=repair, release=release)
    run_stages(("covariance",), common, control)
