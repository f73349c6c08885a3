"""Refit: solve a finished change again so that it forgets less, without training and without its pictures.

`nb.refit("lora.safetensors", store, ["a photo of sks dog"], output="refitted.safetensors")` writes a file, and returns a report.
Each module of the change is multiplied by one matrix from the right, dW' = dW M. It keeps what it does to the inputs of the
prompts that use it, as far as that leaves the outputs on the preserved inputs alone (`refit_solution` has the formula). A LoRA
keeps its rank, and every file its form. `refit_files` reads and writes them, `refit_inputs` records what the prompts give.

`m` weighs preservation. A ladder of it is predicted from the moments alone; "auto" takes the knee.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Literal

import torch

from nullbooth_cli.api import OpenStore
from nullbooth_cli.collect.edited_model import load_before
from nullbooth_cli.datatypes import Site, denoiser_of_weight
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted, listed
from nullbooth_cli.model.denoisers import denoiser_of, denoiser_weights
from nullbooth_cli.model.prompt_length import cut_off_note
from nullbooth_cli.nullspace.export import is_taken
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.usable import ChainPart, check_model
from nullbooth_cli.progress import Begin, Event, Note, Progress, result_of
from nullbooth_cli.settings.class_prompts import with_class_prompts
from nullbooth_cli.settings.config import Config
from nullbooth_cli.training.refit_change import ChangedModule, FinishedChange
from nullbooth_cli.training.refit_files import find_change, open_change, require_output, require_word
from nullbooth_cli.training.refit_inputs import used_inputs
from nullbooth_cli.training.refit_solution import (
    FINE,
    LADDER,
    LEAST,
    Balance,
    Curve,
    Matrix,
    Rung,
    drift_before,
    knee,
    rungs_of,
    solve,
)

NUM_DRAWN = 16
Outside = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class RefittedWeight:
    """One weight at the chosen m: `missing` and `drift` as in `Rung`, and the drift of the change as it was."""

    missing: float
    drift: float
    drift_before: float


@dataclass(frozen=True, kw_only=True)
class RefitReport:
    """A refit. All figures are predictions from moments: evaluate the model to confirm them.

    `output` is None if nothing was written. `drift_before` and `largest_drift_before` are those of the change as it was, `chosen`
    is the rung of `m`. `outside` are the modules that the store does not protect, `text_encoders` those of the text encoders,
    which change the inputs of preserved prompts too; all of them were dropped if `dropped`, else they are as they were.
    """

    file: str
    store: str
    output: str | None
    prompts: tuple[str, ...]
    m: float
    chosen: Rung
    drift_before: float
    largest_drift_before: float
    ladder: tuple[Rung, ...]
    weights: Mapping[str, RefittedWeight]
    outside: tuple[str, ...]
    text_encoders: tuple[str, ...]
    dropped: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{counted(len(self.weights), 'weight')} refitted at m = {self.m:g}: {self.chosen.missing:.0%} of what the change "
            f"does to its prompts is missing, drift on the preserved prompts {self.drift_before:.2g} -> {self.chosen.drift:.2g} "
            f"(largest {self.largest_drift_before:.2g} -> {self.chosen.largest_drift:.2g})"
        )


@dataclass(frozen=True, kw_only=True)
class RefitRequest:
    """`file` is the place of a finished change, `prompts` those that use it; with `output` None nothing is written.

    Raises ConfigError for values without a refit, and for an output that exists.
    """

    file: str
    prompts: tuple[str, ...]
    output: str | None
    m: float | Literal["auto"] = "auto"
    outside: Outside = "keep"
    num_drawn: int = NUM_DRAWN
    device: str | None = None

    def __post_init__(self) -> None:
        if self.m != "auto" and not (isinstance(self.m, Real) and LEAST <= self.m < math.inf):
            raise ConfigError(f"m={self.m} is not a weight", f"set m to auto, or to a number from {LEAST:g}, such as 10")
        if self.outside not in ("keep", "drop"):
            raise ConfigError(f"outside={self.outside!r} is not a choice", "set outside to keep or drop")
        if self.num_drawn < 1:
            raise ConfigError(f"num_drawn={self.num_drawn} draws no prompt", "set it to 1 or more")
        if not self.prompts or not all(text.strip() for text in self.prompts):
            raise ConfigError(
                "no prompt uses the change" if not self.prompts else "a prompt is empty",
                "name the prompts that will be drawn with it, such as 'a photo of sks dog'",
            )
        if self.output is not None and is_taken(Path(self.output)):
            raise ConfigError(f"{self.output} exists already", "name another place")


def refit(
    file: str | Path,
    store: OpenStore,
    prompts: str | Sequence[str] = (),
    *,
    output: str | Path | None,
    word: str | None = None,
    m: float | Literal["auto"] = "auto",
    outside: Outside = "keep",
    num_drawn: int = NUM_DRAWN,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> RefitReport:
    """Refit the LoRA, training output or pipeline folder at `file`; write it to `output` in the same form (None: only predict).

    `prompts` are those that will be drawn with the change; `word`, such as "sks dog", adds prompts around it. A larger `m` keeps
    preserved prompts better and more of the change goes missing; "auto" takes the knee. `outside`: whether modules that the store
    does not protect stay as they are or are dropped. The first `num_drawn` prompts are drawn if a site needs pictures.

    Raises ConfigError for a change that cannot be refitted, of another base, or without a module in the store, and for an output
    that exists; StageError before `covariance` is complete; ModelError or DataError for what cannot be recorded. Cost: the load
    of the model, `collect` of the prompts, and about 30 D^3 operations for each site.
    """
    request = RefitRequest(
        file=str(file),
        prompts=with_class_prompts(prompts, word),
        output=None if output is None else str(output),
        m=m,
        outside=outside,
        num_drawn=num_drawn,
        device=device,
    )
    return result_of(refit_events(store, store.config, request), on_event)


def refit_events(store: OpenStore, config: Config, request: RefitRequest) -> Generator[Event, None, RefitReport]:
    """The work of `refit` under a config of the store; yields events."""
    store.require("covariance")
    others = [prefix for site in store.sites() if (prefix := denoiser_of_weight(site.weights[0]))]
    if others:
        raise ConfigError(
            f"a refit changes one denoiser, and {store.url} has weights of a second one, {others[0].removesuffix('.')}",
            "train the pipeline under the constraint instead",
        )
    found = find_change(config, request.file)
    require_word(found, request.prompts)
    if request.output is not None:
        require_output(found, Path(request.output))
    yield Note(f"loading the model {config.model}")
    among: ChainPart = "ends" if found.at.after is None else "all"  # what comes after it may be remembered too
    pipe = load_before(
        config, found.at, request.device, lambda base: check_model(store.store, denoiser_weights(base), among=among)
    )
    change = open_change(found, config, pipe, {weight for site in store.sites() for weight in site.weights}, request.device)
    site_of = _sites_of(store, change, request)
    outside = [module for module in change.modules if module not in site_of]
    notes = [*([found.message] if found.message else []), *_outside_notes(outside, request.outside)]
    yield from map(Note, notes)
    parameters = denoiser_of(pipe).state_dict()
    initial = {weight: parameters[weight].detach().cpu().clone() for module in site_of for weight in module.weights}
    dropped = outside if request.outside == "drop" else []
    pipe, unseen = change.load_into(pipe, dropped)
    more = [*unseen, *([cut] if (cut := cut_off_note(pipe, list(request.prompts))) else [])]
    notes += more
    yield from map(Note, more)
    sites = list(dict.fromkeys(site_of.values()))
    receivers = [weight for site in sites for weight in site.weights]
    moments = yield from used_inputs(pipe, config, store.schedule(), receivers, request.prompts, num_drawn=request.num_drawn)
    place = pipe._execution_device
    solver = _Solver(
        store=store,
        change=change,
        modules={site: [module for module, of in site_of.items() if of == site] for site in sites},
        moments={site: moments[site.weights[0]] for site in sites},
        initial=initial,
        device="cpu" if place.type == "mps" else str(place),  # mps has no float64
    )
    del pipe
    looked_at = (*LADDER, *(FINE if request.m == "auto" else (float(request.m),)))
    curves = yield from solver.curves(looked_at)
    rungs, before = rungs_of(looked_at, [*curves.values()]), drift_before([*curves.values()])
    chosen = len(LADDER) + knee(rungs[len(LADDER) :], before)
    report = RefitReport(
        file=request.file,
        store=store.url,
        output=request.output,
        prompts=request.prompts,
        m=looked_at[chosen],
        chosen=rungs[chosen],
        drift_before=before,
        largest_drift_before=max(curve.drift_before for curve in curves.values()),
        ladder=tuple(rungs[: len(LADDER)]),
        weights={
            weight: RefittedWeight(
                missing=float(curve.missing[chosen]), drift=float(curve.drift[chosen]), drift_before=curve.drift_before
            )
            for weight, curve in curves.items()
        },
        outside=tuple(module.name for module in outside if module.weights),
        text_encoders=tuple(module.name for module in outside if not module.weights),
        dropped=bool(dropped),
        notes=tuple(notes),
    )
    if request.output is not None:
        maps = solver.maps(report.m)
        new = change.write(Path(request.output), maps, dropped=dropped, initial=initial, note=f"refit: {report}")
        yield from map(Note, new)
        report = replace(report, notes=(*report.notes, *new))
    return report


@dataclass(frozen=True, kw_only=True)
class _Solver:
    """The modules of a change at each site of the store, with the moments of their prompts."""

    store: OpenStore
    change: FinishedChange
    modules: Mapping[Site, Sequence[ChangedModule]]
    moments: Mapping[Site, Moment]
    initial: Mapping[str, torch.Tensor]
    device: str

    def curves(self, ladder: Sequence[float]) -> Generator[Event, None, dict[str, Curve]]:
        """The curve of each weight over a ladder of m."""
        found: dict[str, Curve] = {}
        yield Begin("refit", 0, len(self.modules))
        for number, (site, modules) in enumerate(self.modules.items(), start=1):
            used, preserved = self.moments[site], self.store.moment(site)
            balance = Balance(used.kept, preserved.ceiling, self.device, means=(used.mean, preserved.mean))
            for module in modules:
                shifts = self.change.shift(module)
                for weight, rows in self.change.change(module, self.initial).items():
                    found[weight] = balance.curve(rows, self.initial[weight].flatten(1), ladder, shift=shifts.get(weight))
            yield Progress("refit", number, len(self.modules), site.name)
        return found

    def maps(self, m: float) -> dict[str, Matrix]:
        """M `[D, D]` of each module, by its name."""
        solved = {site: solve(self.moments[site].kept, self.store.moment(site).ceiling, m, self.device) for site in self.modules}
        return {module.name: solved[site] for site, modules in self.modules.items() for module in modules}


def _sites_of(store: OpenStore, change: FinishedChange, request: RefitRequest) -> dict[ChangedModule, Site]:
    """The site of each module that the store has. The weights of a module have one input, so any of them tells it."""
    by_weight = {weight: site for site in store.sites() for weight in site.weights}
    if any(site.side != "input" for site in by_weight.values()):
        raise ConfigError(f"{store.url} has outputs, and a refit needs inputs", "set collect.side to input, and collect again")
    found = {
        module: site
        for module in change.modules
        if (site := next((by_weight[weight] for weight in module.weights if weight in by_weight), None)) is not None
    }
    if not found and not any(module.weights for module in change.modules):
        raise ConfigError(
            f"{request.file} changes text encoders alone, and a store has what the denoiser receives",
            "name a LoRA that changes the denoiser",
        )
    if not found:
        raise ConfigError(
            f"none of the {counted(len(change.modules), 'module')} of {request.file} is in {store.url}, "
            f"such as {change.modules[0].name}",
            "collect the inputs of these modules, or name a store that has them",
        )
    return found


def _outside_notes(outside: Sequence[ChangedModule], choice: Outside) -> list[str]:
    """What happens to the modules that the store does not protect, for the user."""
    of_text = [module.name for module in outside if not module.weights]
    others = [module.name for module in outside if module.weights]
    what = "dropped" if choice == "drop" else "kept as they are"
    notes = []
    if others:
        risk = "the subject may need them" if choice == "drop" else "what they forget stays"
        notes.append(f"{counted(len(others), 'module')} outside the store {what}, and {risk}: {listed(others)}")
    if of_text:
        risk = "the subject may need them" if choice == "drop" else "they change the text of preserved prompts as well"
        notes.append(f"{counted(len(of_text), 'module')} of text encoders {what}, and {risk}: {listed(of_text)}")
    return notes
