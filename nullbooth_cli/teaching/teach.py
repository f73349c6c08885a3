"""From pictures to a taught model and its verdicts.

1. `decide` turns the request into a config, a recipe and prompt files, unless the output has them already.
2. What the recipe names is read before anything is loaded: pictures, captions, the word, the class of the model.
3. The four stages of the pipeline make the store (`go_on` copies that of an output to start from); training runs under its
   projectors; evaluation draws the taught model and the one before: the base, or that of the output to start from.
4. A sheet of pictures, a page, and evaluation.json, which is written last.

Each of them resumes: the same request on the same output does what is left to do.
"""

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.datatypes import RESULT
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.evaluate import evaluation_events
from nullbooth_cli.evaluation.request import EvaluationRequest, Instance, PictureSets, picture_sets, specs_of
from nullbooth_cli.evaluation.samples import SampleRequest, draw_samples
from nullbooth_cli.evaluation.verdict import Verdict
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.pipeline.open_run import open_run
from nullbooth_cli.pipeline.stages import check_possible, run_stages
from nullbooth_cli.progress import Event, Interrupts, Note, result_of
from nullbooth_cli.report.gallery import write_gallery
from nullbooth_cli.report.inspection import inspect_store
from nullbooth_cli.report.json_document import Document, to_json
from nullbooth_cli.report.sheet import Sheet, write_sheet
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.settings.knowledge import heldout_prompts, knowledge_prompts, with_heldout_texts
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.store import Store
from nullbooth_cli.teaching.decide import find
from nullbooth_cli.teaching.decision import Decision, write
from nullbooth_cli.teaching.go_on import inherit_store, remember_taught
from nullbooth_cli.training import dreambooth, durable, hub, model_card, output, setup
from nullbooth_cli.training.before_loading import Inputs, read_inputs
from nullbooth_cli.training.output import TrainingResult

EVALUATION, PAGE, SHEET = "evaluation.json", "report.html", "sheet.png"
OTHER_ROWS, SEEDS = 4, (0, 1)  # of the sheet: earlier and held-out prompts that should look as before, below the subject's


@dataclass(frozen=True, kw_only=True)
class TeachReport(Document):
    """The answer: the verdicts on the model that was written to `result`, and the files. `prompt` draws the subject.

    `largest_drift` is that of the trained weights on the preserved prompts, norm(dW K0) / norm(W0 K0). `after` is the output that
    it started from, which the verdicts compare it with; None for the model itself.
    """

    output: str
    model: str
    result: str
    steps: int
    prompt: str
    verdicts: tuple[Verdict, ...]
    largest_drift: float | None
    store: str
    page: str
    sheet: str
    after: str | None = None


def teach(
    pictures: str | Path | None = None,
    *,
    output: str | Path,
    device: str | None = None,
    push_to: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    **given: Any,
) -> TeachReport:
    """Teach a model the subject of some pictures, and measure what it learned and forgot. `given` are fields of `TeachRequest`.

    `push_to` is a repository on the hub that the result is uploaded to.

    Raises ConfigError for pictures, words and settings that cannot be used and for an output of another request, ModelError for a
    model that cannot be trained, before it is loaded; then as `run`, `set_up` and `evaluate` do. Cost: that of training, and of
    three pictures for each prompt that is drawn.
    """
    request = {"pictures": None if pictures is None else str(pictures), **given}
    named = {key: value for key, value in request.items() if value is not None}
    return result_of(teach_events(named, str(output), device=device, push_to=push_to), on_event)


def teach_events(
    given: Mapping[str, Any],
    place: str,
    *,
    device: str | None = None,
    push_to: str | None = None,
    interrupts: Interrupts | None = None,
) -> Generator[Event, None, TeachReport]:
    """The events of `teach`. `given` has the fields of the request that the user named, `place` is the output.

    `push_to` is a repository on the hub that the result is uploaded to.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "this is one of several processes, and one is enough to teach", "start it alone; a recipe can be trained by several"
        )
    on_cpu = pick_device(device).type == "cpu"
    decision = find(given, place, on_cpu=on_cpu)
    yield from map(Note, decision.notes)
    if push_to is not None:
        hub.require_account(push_to, decision.recipe)
    inputs = read_inputs(decision.recipe, decision.preserved)  # before there is an output: a wrong request leaves nothing
    with output.locked(place):
        decision = find(given, place, on_cpu=on_cpu)  # another process may have made it since
        config, recipe = decision.config, decision.recipe
        if decision.is_new:
            write(decision)
        yield from _preserve(decision, device, interrupts)
        result = yield from _train(recipe, device, interrupts)
        verdicts = yield from _measure(decision, inputs, result, device)
        model_card.write(recipe, result, verdicts)
        if push_to is not None:
            yield Note(f"pushed to {hub.push(push_to, recipe, result, verdicts)}")
    return TeachReport(
        output=place,
        model=recipe.model,
        result=result.output,
        steps=result.steps,
        prompt=inputs.written(decision.subject)[0],
        verdicts=verdicts,
        largest_drift=result.largest_drift,
        store=config.store,
        page=str(Path(place) / PAGE),
        sheet=str(Path(place) / SHEET),
        after=decision.request.after,
    )


def _preserve(decision: Decision, device: str | None, interrupts: Interrupts | None) -> Generator[Event, None, None]:
    """Run the pipeline: the store has the projectors of the preserved prompts, and of what was taught before, then."""
    config = with_heldout_texts(decision.config)
    prompts = knowledge_prompts(config)
    sums, after = STAGES[:-1], decision.request.after
    if after is not None:
        inherit_store(after, config.store)
    check_possible(STAGES, config, prompts, device=device)
    with open_run(config, prompts, device=device, interrupts=interrupts) as run:
        yield from run_stages(STAGES if after is None else sums, run)
    if after is not None:
        yield from remember_taught(config, after, device, interrupts)
        with open_run(config, prompts, device=device, interrupts=interrupts) as run:
            yield from run_stages(STAGES[-1:], run)


def taught(recipe: Recipe) -> TrainingResult | None:
    """The result in the recipe's output, be it of an earlier checkpoint that was chosen; None if there is something to train."""
    return output.finished(recipe, takes_earlier=True)


def _train(recipe: Recipe, device: str | None, interrupts: Interrupts | None) -> Generator[Event, None, TrainingResult]:
    """Train, unless that is done."""
    if done := taught(recipe):
        chosen = "" if done.steps == recipe.max_train_steps else f" of {recipe.max_train_steps}: an earlier checkpoint was chosen"
        yield Note(f"training is complete: the result has {counted(done.steps, 'step')}{chosen}")
        return done
    ready = setup.set_up(recipe, device)
    yield from map(Note, ready.notes)
    yield from dreambooth.train(ready, interrupts)
    result = dreambooth.finish(ready)
    assert result is not None  # this is the main process
    return result


def _measure(
    decision: Decision, inputs: Inputs, result: TrainingResult, device: str | None
) -> Generator[Event, None, tuple[Verdict, ...]]:
    """Draw the model before and the taught one, and write the page and the sheet, unless they are there for these weights."""
    folder, before = Path(decision.output), decision.request.after
    if (found := measured(decision.output)) is not None:
        yield Note("evaluation is complete")
        return found
    weights, written = durable.digest(folder / RESULT), folder / EVALUATION
    store, request = Store.open(decision.config.store), _evaluation_request(decision, inputs, result, device)
    evaluation = yield from evaluation_events(decision.config, store, request)
    write_gallery(folder / PAGE, evaluation, inspect_store(decision.config, store))
    prompts = [*inputs.written(decision.subject), *decision.earlier[:OTHER_ROWS], *decision.heldout[:OTHER_ROWS]]
    samples = yield from draw_samples(
        SampleRequest(
            models=(result.output,) if before is None else (before, result.output),
            prompts=tuple(dict.fromkeys(prompts)),
            seeds=SEEDS,
            with_base=before is None,
            num_inference_steps=decision.recipe.validation_inference_steps,
            guidance_scale=decision.recipe.guidance_scale,
            device=device,
            config=decision.config,
        )
    )
    write_sheet(folder / SHEET, Sheet.of(samples))
    with durable.replacing(written) as partial:
        partial.write_text(durable.record_text({"of": weights, "report": to_json(evaluation.report)}))
    return evaluation.report.verdicts


def measured(place: str) -> tuple[Verdict, ...] | None:
    """The verdicts on the result in an output; None unless they, the page and the sheet are there for these weights."""
    folder = Path(place)
    written = folder / EVALUATION
    if not all((folder / name).exists() for name in (RESULT, EVALUATION, PAGE, SHEET)):
        return None
    found = durable.read_record(written, f"move {written} away, and run this again: it is written again")
    if found["of"] != durable.digest(folder / RESULT):
        return None
    return tuple(Verdict(**verdict) for verdict in found["report"]["verdicts"])


def sets_of(decision: Decision, config: Config, subject: list[str]) -> PictureSets:
    """What is drawn to measure a taught model: preserved and held-out prompts, earlier subjects, and the `subject`."""
    kind = decision.request.kind
    earlier = load_prompts(decision.earlier) if decision.earlier else []
    return picture_sets(
        {"preserved": knowledge_prompts(config), "heldout": heldout_prompts(config)},
        load_prompts(subject),
        num_prompts=kind.num_prompts,
        subject_images=kind.subject_images,
        earlier=specs_of(earlier, kind.num_prompts, kind.subject_images),
    )


def _evaluation_request(decision: Decision, inputs: Inputs, result: TrainingResult, device: str | None) -> EvaluationRequest:
    """The request of an evaluation that answers all questions, against the model that training started from."""
    return EvaluationRequest(
        edited=(result.output,),
        base=decision.request.after,
        sets=sets_of(decision, decision.config, inputs.written(decision.subject)),
        instances=tuple(
            Instance(picture.path, caption) for picture, caption in zip(inputs.pictures, inputs.captions, strict=True)
        ),
        device=device,
        batch_size=decision.config.collect.batch_size,
    )
