"""The command `nullbooth schedule`."""

from nullbooth_cli.commands.stage_command import stage_command


@stage_command("schedule")
def schedule() -> None:
    """Write down the timesteps and sigmas that all later stages use.

    They come from a diffusers scheduler built from the model's own noise schedule; later stages read them from the store.

    Example: nullbooth schedule --set schedule.sampler_strategy="DPM++ 2M Karras" --json
    """
