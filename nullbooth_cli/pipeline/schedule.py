"""Stage schedule under a config."""

from collections.abc import Iterator

from nullbooth_cli.collect.open_model import compute_steps
from nullbooth_cli.pipeline.run import Run, start_stage, state_of
from nullbooth_cli.progress import Event, Progress
from nullbooth_cli.settings.fingerprints import fingerprint, size_settings


def run_schedule(run: Run) -> Iterator[Event]:
    run.workers.agree(lambda: _write_schedule(run))
    run.store.reload()
    yield Progress("schedule", 1, 1, f"{run.store.num_steps} steps")


def _write_schedule(run: Run) -> None:
    from nullbooth_cli.model.scheduler import is_flow_matching, noise_digest

    run.store.reload()
    if run.workers.shard and state_of(run, "schedule") == "complete":
        return  # another shard was faster
    scheduler, steps = compute_steps(run.config, len(run.prompts), run.device)
    run.store.write_record("schedule", None)
    run.store.write_schedule(steps)
    values = fingerprint([(step.timestep, step.sigma) for step in steps])
    noise = noise_digest(run.config.schedule.sampler_strategy, scheduler)
    size = {"size": size_settings(run.config)} if is_flow_matching(scheduler) else {}
    start_stage(run, "schedule", {"scheduler": type(scheduler).__name__, "noise": noise, "values": values, **size})
