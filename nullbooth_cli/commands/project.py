"""The command `nullbooth project`."""

from nullbooth_cli.commands.options import (
    AsJson,
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
    Sites,
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
    explore: Explore = False,
    sites: Sites = False,
    plot: Plot = None,
    dry_run: DryRun = False,
    force: Force = False,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Decompose the moments and cut out the null space of each site.

    The threshold is a rule of the config's project section. Another threshold reuses the stored decomposition.

    Example: nullbooth project -s runs/toy.zarr --explore

    Example: nullbooth project -s runs/toy.zarr --set project.relative_threshold=1e-2 --force
    """
    from nullbooth_cli.commands.run_stages import run_stages

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    control = Control(device=device, dry_run=dry_run, force=force, yes=yes, limit=limit, explore=explore, sites=sites, plot=plot)
    run_stages(("project",), common, control)
