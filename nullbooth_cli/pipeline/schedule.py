"""Stage schedule under a config."""

from collections.abc import Iterator

from nullbooth_cli.collect.open_model import compute_steps
from nullbooth_cli.pipeline.run import Prepared, Run, prepare, start_stage
from nullbooth_cli.progress import Event, Progress
from nullbooth_cli.settings.fingerprints import fingerprint, size_settings


def run_schedule(run: Run) -> Iterator[Event]:
    """Compute the timesteps and sigmas, and write them down for every later stage.

    Cost: reads the model's config files; a flow-matching model that cannot be built without its weights is loaded.
    """
    prepare(run, lambda: _write_schedule(run))
    yield Progress("schedule", 1, 1, f"{run.store.num_steps} steps")


def _write_schedule(run: Run) -> Prepared:
    from nullbooth_cli.model.scheduler import is_flow_matching, noise_digest

    if run.workers.shard and run.states().own["schedule"].state == "complete":
        return Prepared()  # another shard was faster
    scheduler, steps = compute_steps(run.config, len(run.prompts), run.device)
    run.store.write_record("schedule", None)
    run.store.write_schedule(steps)
    values = fingerprint([(step.timestep, step.sigma) for step in steps])
    noise = noise_digest(run.config.schedule.sampler_strategy, scheduler)
    size = {"size": size_settings(run.config)} if is_flow_matching(scheduler) else {}
    start_stage(run, "schedule", {"scheduler": type(scheduler).__name__, "noise": noise, "values": values, **size})
    heldout = run.store.heldout(write=True)
    if heldout and heldout.records.get("schedule") == run.store.records["schedule"]:
        heldout.write_schedule(steps)  # the same, whatever has happened to its files
    return Prepared()
