"""DreamBooth training, with a constraint or without.

1. `setup.set_up()` loads the model, encodes pictures and captions once, marks the parameters that train, and constrains them
   before the optimizer is built.
2. `train()` is the loop. It yields an event for every optimizer step, saves checkpoints, and resumes from the last one.
   `restore()` loads a checkpoint and does not train.
3. `finish()` writes plain weights (a pipeline folder, or a LoRA file) and the drift of each weight.

The loss is that of diffusers' train_dreambooth.py: the mean squared error of the predicted noise of a picture at a random
timestep, plus, with a weight, the same on pictures of the class (Ruiz et al., arXiv 2208.12242). `distillation.py` has one more.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nullbooth_cli.datatypes import RESULT
from nullbooth_cli.errors import DataError
from nullbooth_cli.model.conditioning import Conditioning, capture
from nullbooth_cli.model.denoising_loss import Noising, denoising_errors
from nullbooth_cli.model.protocols import LatentPipeline
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.progress import Event, Interrupts, Note, Progress
from nullbooth_cli.settings.resizing import Size
from nullbooth_cli.settings.weighting import weighting_note
from nullbooth_cli.store.files import remove
from nullbooth_cli.training import checkpoints, model_card, optimizers, output, precision, trackers
from nullbooth_cli.training.distillation import Teacher
from nullbooth_cli.training.durable import replacing
from nullbooth_cli.training.ema import Averages
from nullbooth_cli.training.encode_once import EncodedOnce
from nullbooth_cli.training.examples import Batch, Examples, TextEncoding
from nullbooth_cli.training.output import TrainingResult
from nullbooth_cli.training.parameters import by_part, trained_parameters
from nullbooth_cli.training.placement import helpers_of
from nullbooth_cli.training.setup import TrainingRun
from nullbooth_cli.training.step_log import StepLog
from nullbooth_cli.training.word_embedding import WordEmbedding
from nullbooth_cli.training.write_trained import write_trained


def train(run: TrainingRun, interrupts: Interrupts | None = None) -> Iterator[Event]:
    """Run the optimizer steps that are not done yet; yields one event for each.

    When `interrupts` asks one process to stop, all of them finish the step, save a checkpoint and raise KeyboardInterrupt.
    Raises DataError if the loss is not finite, ResourceError if a checkpoint cannot be written. Cost: a step is
    `gradient_accumulation_steps` forwards and backwards, as many again with prior preservation, and with distillation
    as many again and as many forwards.
    """
    interrupts = interrupts or Interrupts()
    loop = _prepared(run)
    if run.checkpoint is not None:
        checkpoints.load(run, loop.optimizer, loop.rates)
        yield Note(f"resumes from step {run.steps_done}")
        yield from map(Note, run.record.changed_at(run.steps_done))
    if note := weighting_note([*run.subject.captions, *(run.prior.captions if run.prior else ()), *run.validation_prompts]):
        yield Note(note)
    loop.denoiser.train()
    try:
        with StepLog(run.recipe.output, run.steps_done, is_written=run.accelerator.is_main_process) as log, trackers.started(run):
            yield from _steps(run, loop, log, interrupts)
    finally:
        interrupts.unwritten = False
    if interrupts.requested:
        raise KeyboardInterrupt


def restore(run: TrainingRun) -> None:
    """Give the model the weights of the run's checkpoint, to finish from them. Every process calls this."""
    loop = _prepared(run)
    checkpoints.load(run, loop.optimizer, loop.rates)


def _steps(run: TrainingRun, loop: "_Loop", log: StepLog, interrupts: Interrupts) -> Iterator[Event]:
    recipe, accelerator = run.recipe, run.accelerator
    while run.steps_done < recipe.max_train_steps:
        interrupts.unwritten = True
        rate, began = optimizers.rate_of(loop.optimizer), time.monotonic()
        loss = loop.step(run.steps_done)
        run.steps_done += 1
        if run.averages is not None:
            run.averages.update()
        if not np.isfinite(loss):
            raise DataError(f"the loss is {loss} at step {run.steps_done}", "lower learning_rate, or set mixed_precision to no")
        log.add(step=run.steps_done, loss=loss, learning_rate=rate, seconds=time.monotonic() - began)
        if recipe.trackers:
            accelerator.log({"loss": loss, "learning_rate": rate}, step=run.steps_done)
        stops = _all_stop(run, interrupts)
        is_due = run.steps_done % recipe.checkpointing_steps == 0 or run.steps_done == recipe.max_train_steps
        if is_due or stops:
            log.flush()
            checkpoints.save(run)
        if is_due and not stops:
            # Everything is on disk: an interrupt may end the drawing at once, unless other processes wait for this one.
            interrupts.unwritten = accelerator.num_processes > 1
            checkpoints.draw_validation(run)
        yield Progress("train", run.steps_done, recipe.max_train_steps, f"loss {loss:.4f}")
        if stops:
            raise KeyboardInterrupt


def generator_of(seed: int, step: int, micro: int = 0, process: int = 0) -> torch.Generator:
    """What a forward of a step draws with: of the step itself, so a resumed run draws as an uninterrupted one."""
    key = np.random.SeedSequence((seed, step, micro, process)).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(key[0]) >> 1)


def _all_stop(run: TrainingRun, interrupts: Interrupts) -> bool:
    """Whether any process was asked to stop; every process gets the same answer. Cost: one number is reduced."""
    if interrupts.requested:
        run.accelerator.set_trigger()
    return bool(run.accelerator.check_trigger())


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """A run with its optimizer. `denoiser`, `optimizer` and `rates` are as accelerate wraps them.

    `encode` encodes the captions of the subject: again in every step while a word trains, else the texts were encoded once.
    """

    run: TrainingRun
    denoiser: nn.Module
    optimizer: torch.optim.Optimizer
    rates: torch.optim.lr_scheduler.LRScheduler
    parameters: list[nn.Parameter]
    encode: TextEncoding

    def step(self, number: int) -> float:
        """One optimizer step; returns its mean loss."""
        recipe, accelerator = self.run.recipe, self.run.accelerator
        losses = []
        for micro in range(recipe.gradient_accumulation_steps):
            generator = generator_of(recipe.seed, number, micro, accelerator.process_index)
            with accelerator.accumulate(self.denoiser):
                with precision.autocast(recipe, accelerator):  # accelerate wraps the denoiser, and no teacher
                    loss = self._loss(generator)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.parameters, recipe.max_grad_norm)
                self.optimizer.step()
                self.rates.step()
                self.optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return sum(losses) / len(losses)

    def _loss(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of a batch of the subject, plus those of prior preservation and of distillation."""
        run, recipe, process = self.run, self.run.recipe, self.run.process
        batch, noising = self._drawn(run.subject, generator)
        errors = self._errors(batch, noising, batch.conditioning(self.encode))
        if recipe.snr_gamma is not None:
            errors = errors * process.min_snr(noising.timesteps, recipe.snr_gamma)
        loss = errors.mean()
        if run.prior is not None:
            of_class, its_noising = self._drawn(run.prior, generator)
            loss = loss + recipe.prior_weight * self._errors(of_class, its_noising, of_class.conditioning(run.texts)).mean()
        if run.distillation is not None:
            if run.distillation.pictures is not None:
                batch, noising = self._drawn(run.distillation.pictures, generator)
            captions = run.distillation.choose(batch.captions, generator)
            kept = self._errors(batch, noising, batch.conditioning(run.texts, captions), run.distillation.teacher)
            loss = loss + recipe.distill_weight * kept.mean()
        return loss

    def _drawn(self, examples: Examples, generator: torch.Generator) -> tuple[Batch, Noising]:
        batch = examples.batch(generator, self.run.recipe.train_batch_size)
        return batch, self.run.process.draw(batch.latents, generator)

    def _errors(self, batch: Batch, noising: Noising, conditioning: Conditioning, teacher: Teacher | None = None) -> torch.Tensor:
        return denoising_errors(
            self.denoiser,
            self.run.process,
            latents=batch.latents,
            conditioning=conditioning,
            noising=noising,
            teacher=teacher,
        )


def _prepared(run: TrainingRun) -> _Loop:
    """Build the optimizer and let accelerate wrap it with the model."""
    from diffusers.optimization import get_scheduler

    recipe, accelerator = run.recipe, run.accelerator
    trained = trained_parameters(run.denoiser, run.word)
    optimizer: Any = optimizers.build(recipe, *by_part(trained), () if run.word is None else run.word.scales)
    rates = get_scheduler(
        recipe.lr_scheduler,
        optimizer,
        # accelerate advances a scheduler once for every process.
        num_warmup_steps=recipe.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=recipe.max_train_steps * accelerator.num_processes,
    )
    denoiser, optimizer, rates = accelerator.prepare(run.denoiser, optimizer, rates)
    if run.word is not None:
        run.word.attach(accelerator.prepare(run.word))
    if recipe.ema_decay is not None:
        run.averages = Averages(trained, recipe.ema_decay)
    return _Loop(
        run=run,
        denoiser=denoiser,
        optimizer=optimizer,
        rates=rates,
        parameters=[*trained.values()],
        # While the word trains, the captions change with it in every step.
        encode=run.texts if run.word is None else partial(_encode_anew, run, EncodedOnce(_frozen_encoders(run.pipe, run.word))),
    )


def _encode_anew(run: TrainingRun, once: EncodedOnce, captions: Sequence[str], size: Size) -> Conditioning:
    with once.attached():
        return capture(run.pipe, captions, size=size, guidance=run.guidance, like=run.texts.conditionings[size])


def _frozen_encoders(pipe: LatentPipeline, word: WordEmbedding) -> list[nn.Module]:
    """The text encoders in which the word does not train."""
    trained = word.parts.values()
    return [part for name, part in helpers_of(pipe).items() if name.startswith("text_encoder") and name not in trained]


def finish(run: TrainingRun) -> TrainingResult | None:
    """Write a pipeline folder, or a LoRA that `load_lora_weights` reads, a model card, and train.json. Every process calls this.

    Returns None in all but the main process. The drift is exact from the stored moments, in the precision that is saved. Raises
    ResourceError if the files cannot be written; the checkpoint stays.
    """
    recipe = run.recipe
    run.denoiser.eval()
    if run.averages is not None:
        run.averages.apply()
    drift = run.constraint.drift() if run.constraint else None
    if not run.accelerator.is_main_process:
        return None
    place = output.place_of(recipe)
    with replacing(place) as partial:
        _write_weights(run, partial)
        # Weights and train.json change together: without it, the same command writes both again from the checkpoint.
        remove(place.parent / RESULT)
    result = TrainingResult(
        output=str(place),
        steps=run.steps_done,
        method=recipe.method,
        model=recipe.model,
        pipeline=type(run.pipe).__name__,
        trained=len(run.trained),
        token=None if run.word is None else run.word.name,
        word_in=None if run.word is None else run.word.parts,
        instance_prompt=run.subject.captions[0],
        prompts=tuple(dict.fromkeys(run.subject.captions)),
        after=None if run.earlier is None else run.earlier.record(place),
        constrained_by=recipe.store,
        preserved=run.preserved,
        drift=drift,
    )
    model_card.write(recipe, result)
    output.write_result(recipe, run.record, result, run.estimate)
    return result


def _write_weights(run: TrainingRun, folder: Path) -> None:
    if run.recipe.method == "lora":
        write_trained(run, folder)
        return
    if run.constraint:
        run.constraint.merge()
    if run.word is not None:
        run.word.merge()
    with quiet_libraries():
        run.pipe.save_pretrained(folder)
