"""An edit as a problem: read from the model once, and solved under as many thresholds and by as many methods as are asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site, split_weight
from nullbooth_cli.editing.contexts import InContext, MarkedPairs, contexts_of
from nullbooth_cli.editing.methods import MethodInputs, System, prepare, with_copies
from nullbooth_cli.editing.positions import Ends, Marked, Positions
from nullbooth_cli.editing.report import EditedWeight, EditPlan, EditReport, Targets, several
from nullbooth_cli.editing.settings import EditSettings, Method
from nullbooth_cli.editing.solve import Rows
from nullbooth_cli.editing.tokens import TokenInputs, averaged, first_tokens, text_inputs
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.fixed_inputs import read_inputs
from nullbooth_cli.model.prompt_length import cut_off_note
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector, relative_drift
from nullbooth_cli.tensors import tensor_digest
from nullbooth_cli.training.constrainable import require_constrainable
from nullbooth_cli.training.protected_weights import actual_names


@dataclass(frozen=True, kw_only=True)
class TokenPairs:
    """K1^T and (K* - K1)^T `[N, D]` of some prompts at one site, and how many rows each prompt has."""

    keys: Rows
    wanted: Rows
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _AtSite:
    """What is solved at one site: the rows to edit, those of each context, the moments, and C; None without earlier edits."""

    site: Site
    edited: TokenPairs
    contexts: tuple[TokenPairs, ...]
    moment: Moment
    heldout: Moment | None
    before: Rows | None


@dataclass(frozen=True, kw_only=True)
class _Change:
    """The change of one weight: `after` is W + R G in the weight's dtype, `by_pair` what is missing of each pair.

    `in_contexts` are <dW K1, R> and <R, R> of each context.
    """

    after: torch.Tensor
    measured: EditedWeight
    by_pair: list[float]
    in_contexts: list[tuple[float, float]]


class Problem:
    """An edit of a pipeline with a store. `edit.plan_edit` has the arguments and the errors, `solve()` gives its plan.

    Cost: the beginning of one forward for each prompt, and for at most some forty of its contexts. The moments of the sites to
    edit stay in memory, up to 24 D^2 bytes each.
    """

    def __init__(
        self,
        pipe: Pipeline,
        store: OpenStore,
        pairs: Mapping[str, Targets],
        settings: EditSettings,
        *,
        sites: Sequence[Site],
        earlier: Sequence[EditReport] = (),
    ) -> None:
        self.store, self.sites = store, tuple(sites)
        self._pipe, self._pairs, self._settings = pipe, dict(pairs), settings
        self._denoiser = denoiser_of(pipe)
        self._names = [name for site in sites for name in site.weights]
        _require_plain(self._denoiser, self._names)
        self._projectors = _projectors(store, self._denoiser, self._names, earlier)
        self._fixed = read_inputs(store.config.collect.pipeline_inputs)
        self._positions = Positions(pipe, self._fixed)
        self._marked = [
            tuple((Marked.read(source), Marked.read(target)) for target in several(targets)) for source, targets in pairs.items()
        ]
        self._contexts = contexts_of(self._marked, store, self._can_pair)
        self._cut_off = cut_off_note(pipe, _texts(self._marked))
        self._at = self._read(earlier)
        self._of_method: dict[Method, MethodInputs] = {}

    def solve(
        self,
        *,
        projectors: Mapping[str, Projector] | None = None,
        rule: tuple[str, float] | None = None,
        method: Method | None = None,
    ) -> EditPlan:
        """The plan of the edit, by other `projectors`, of the same moments, cut by a `rule` and its value, or another method.

        The model stays as it is. Cost: some 10 D^3 operations for each site, with speed for each weight; what speed and ace take
        from prompts is read the first time. Its memory: a copy of the weights to change.
        """
        how = self._settings if method is None else replace(self._settings, method=method)
        systems = {
            site: self._system(at, how, (projectors or self._projectors)[site.weights[0]], rule) for site, at in self._at.items()
        }
        changes = {
            name: _change(name, self._weight(name), systems[site], at)
            for site, at in self._at.items()
            for name in site.weights
            if split_weight(name)[1] in how.features
        }
        after = {name: change.after for name, change in changes.items()}
        worst = np.max([change.by_pair for change in changes.values()], axis=0)
        dtype = self.store.config.dtype
        report = EditReport(
            method=how.method,
            tokens=how.tokens,
            pairs=self._pairs,
            weights={name: change.measured for name, change in changes.items()},
            keys={site.name: system.source for site, system in systems.items()},
            tensors={name: tensor_digest(after.get(name, self._weight(name)), dtype) for name in self._names},
            by_pair=dict(zip(self._pairs, worst.tolist(), strict=True)),
            in_context=self._in_contexts([change.in_contexts for change in changes.values()]),
            cut_off=self._cut_off,
        )
        wanted = {site.name: system.missing for site, system in systems.items()}
        return EditPlan(report=report, after=after, wanted=wanted, denoiser=self._denoiser)

    def _system(self, at: _AtSite, how: EditSettings, projector: Projector, rule: tuple[str, float] | None) -> System:
        source, missing = with_copies(at.edited.keys, at.edited.wanted, how)
        return System(
            site=at.site,
            source=source,
            missing=missing,
            moment=at.moment,
            projector=projector,
            before=at.before,
            settings=how,
            rule=rule or self.store.config.project.rule(),
            inputs=self._method_inputs(how.method),
        )

    def _in_contexts(self, by_weight: Sequence[Sequence[tuple[float, float]]]) -> tuple[InContext, ...]:
        """What is missing in each context over all weights, by `_made_and_wanted` of each."""
        totals = np.sum(np.reshape(by_weight, (len(by_weight), len(self._contexts), 2)), axis=0)
        return tuple(
            InContext(concept=each.concept, prompts=each.prompts, count=each.count, missing=float(1 - made / wanted))
            for each, (made, wanted) in zip(self._contexts, totals, strict=True)
            if wanted
        )

    def _weight(self, name: str) -> nn.Parameter:
        return self._denoiser.get_parameter(name)

    def _method_inputs(self, method: Method) -> MethodInputs:
        if method not in self._of_method:
            how = replace(self._settings, method=method)
            self._of_method[method] = prepare(self._pipe, self.store, self.sites, [each[0][0] for each in self._marked], how)
        return self._of_method[method]

    def _can_pair(self, to_each: MarkedPairs) -> bool:
        """Whether the tokens of a context can be paired: its subject is not cut off, and no part of a longer token."""
        try:
            self._ends(to_each)
        except ConfigError:
            return False
        return True

    def _ends(self, to_each: MarkedPairs) -> list[list[Ends]] | None:
        return [self._positions.subject_ends(*pair) for pair in to_each] if self._settings.tokens == "subject" else None

    def _read(self, earlier: Sequence[EditReport]) -> dict[Site, _AtSite]:
        """The rows of every prompt at every site, of one forward for each text."""
        every = [*self._marked, *(to_each for context in self._contexts for to_each in context.pairs)]
        inputs = {text: text_inputs(self._pipe, self.sites, text, self._fixed) for text in _texts(every)}
        ends = {to_each: self._ends(to_each) for to_each in every}
        edited = {site: _token_pairs(site, self._marked, inputs, ends) for site in self.sites}
        for rows in edited.values():
            wanted = np.split(rows.wanted, np.cumsum(rows.counts)[:-1])
            if same := [source for source, of_pair in zip(self._pairs, wanted, strict=True) if not of_pair.any()]:
                raise ConfigError(f"the model reads {same[0]!r} and its target as the same text", "name another target")
        return {
            site: _AtSite(
                site=site,
                edited=edited[site],
                contexts=tuple(_token_pairs(site, context.pairs, inputs, ends) for context in self._contexts),
                moment=self.store.moment(site),
                heldout=self.store.heldout_moment(site),
                before=edited_before(self.store, site, earlier),
            )
            for site in self.sites
        }


def _texts(every: Sequence[MarkedPairs]) -> list[str]:
    return list(dict.fromkeys(each.text for to_each in every for pair in to_each for each in pair))


def _token_pairs(
    site: Site,
    prompts: Sequence[MarkedPairs],
    inputs: Mapping[str, Mapping[Site, TokenInputs]],
    ends: Mapping[MarkedPairs, list[list[Ends]] | None],
) -> TokenPairs:
    """The rows of prompts at one site, each with the mean of its targets."""
    rows = []
    for to_each in prompts:
        found = [(inputs[one.text][site], inputs[other.text][site]) for one, other in to_each]
        last = ends[to_each]
        rows.append(averaged(found, None if last is None else first_tokens(site, found, last)))
    keys, wanted = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return TokenPairs(keys=keys, wanted=wanted, counts=tuple(len(each) for each, _ in rows))


def edited_before(store: OpenStore, site: Site, earlier: Sequence[EditReport]) -> Rows | None:
    """C `[D, D]` of a site: K1 K1^T of the edits that the store remembers, and of `earlier` ones; None without any."""
    found = [rows.T @ rows for report in earlier if (rows := report.keys.get(site.name)) is not None]
    if (remembered := store.edited(site)) is not None:
        found.append(remembered)
    return np.sum(found, axis=0) if found else None


def _projectors(
    store: OpenStore, denoiser: nn.Module, names: Sequence[str], earlier: Sequence[EditReport]
) -> Mapping[str, Projector]:
    """The projector of each weight. Raises ConfigError for a model that neither the store nor the last of `earlier` knows."""
    if not earlier:
        return store.projectors(denoiser)
    last, dtype = earlier[-1].tensors, store.config.dtype
    other = [name for name in names if last.get(name) != tensor_digest(denoiser.get_parameter(name), dtype)]
    if other:
        raise ConfigError(
            f"this is not the model that the last of {counted(len(earlier), 'earlier edit')} left: "
            f"{counted(len(other), 'weight')} differ, such as {other[0]}",
            "give the reports of the edits that this pipeline has had, in order, and the store that they were made with",
        )
    return store.projectors()


def _require_plain(denoiser: nn.Module, weights: Sequence[str]) -> None:
    """Raise ModelError unless the weights to edit are what the denoiser uses."""
    require_constrainable(denoiser, weights)
    present = dict(denoiser.named_parameters())
    hidden = [name for name in weights if name not in present and name in denoiser.state_dict() | actual_names(denoiser)]
    if hidden:
        raise ModelError(
            f"{counted(len(hidden), 'weight')} to edit, such as {hidden[0]}, carry an adapter or a constraint",
            "edit the pipeline before adapters are loaded, or after unload_lora_weights(); merge() a constraint first",
        )


def _change(name: str, parameter: nn.Parameter, system: System, at: _AtSite) -> _Change:
    weight = parameter.detach()
    before = weight.cpu().double().numpy()
    wanted, factor = system.of(name, before)
    after = torch.from_numpy(before + wanted.T @ factor).to(weight)
    change = after.cpu().double().numpy() - before
    left, ends = system.source @ change.T - wanted, np.cumsum(at.edited.counts)
    # Noisy copies follow the rows of the pairs, and are no part of them.
    of_pairs = zip(np.split(left, ends)[: len(ends)], np.split(wanted, ends)[: len(ends)], strict=True)
    measured = EditedWeight(
        missing=float(np.linalg.norm(left) / np.linalg.norm(wanted)),
        drift=relative_drift(change, before, at.moment),
        change=float(np.linalg.norm(change) / np.linalg.norm(before)),
        heldout=None if at.heldout is None else relative_drift(change, before, at.heldout),
    )
    return _Change(
        after=after,
        measured=measured,
        by_pair=[float(np.linalg.norm(rest) / np.linalg.norm(whole)) for rest, whole in of_pairs],
        in_contexts=[_made_and_wanted(change, before, rows) for rows in at.contexts],
    )


def _made_and_wanted(change: Rows, weight: Rows, rows: TokenPairs) -> tuple[float, float]:
    """<dW K1, R> and <R, R> of a weight: how far the change goes towards what is wanted, and how far that is."""
    wanted = rows.wanted @ weight.T
    return float(np.sum(rows.keys @ change.T * wanted)), float(np.square(wanted).sum())
