"""The command `nullbooth schedule`."""

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


def schedule(
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
    """Store the timesteps and sigmas that all later stages use.

    They come from a diffusers scheduler that is built from the model's own noise schedule.

    Example: nullbooth schedule --set schedule.sampler_strategy="DPM++ 2M Karras" --json
    """
    from nullbooth_cli.commands.run_stages import run_stages

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    control = Control(device=device, dry_run=dry_run, force=force, yes=yes)
    run_stages(("schedule",), common, control)
