"""Sites are found by looking at the first steps: what is shared, and what does not depend on the timestep."""

from typing import Any

import pytest
import torch

from nullbooth_cli.collect.find_sites import FoundSites, find_sites
from nullbooth_cli.datatypes import Prompt, Step
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.denoisers import denoisers_of
from nullbooth_cli.model.hooks import Forward
from nullbooth_cli.model.projections import find_projections
from tests.support.attention import Denoiser
from tests.support.pipelines import SmallPipeline

STEPS = tuple(Step(t, f"timestep_{t}", 6.0 - t, 1.0) for t in range(6))
PATH = DenoisingPath(num_inference_steps=6, steps=STEPS, guidance_scale=1.0, height=None, width=None, seed=0)
ALL = ("q", "k", "v", "out")
TEXT = {f"blocks.{i}.attn2.to_{name}.weight" for i in (0, 1) for name in "kv"}


def found_in(pipe: Any, side: str = "input", features: tuple[str, ...] = ALL) -> FoundSites:
    projections = find_projections(denoisers_of(pipe), features, "all")
    return find_sites(pipe, PATH, projections, side=side, branches="both", prompts=[Prompt("a cat")])


def test_sharing_is_found_by_looking() -> None:
    groups = {frozenset(site.weights): site.timestep_free for site in found_in(SmallPipeline()).sites}
    assert groups[frozenset(TEXT)] is True
    assert all(len(weights) == 1 and not free for weights, free in groups.items() if weights != TEXT)


def test_outputs_are_shared_by_nobody() -> None:
    sites = found_in(SmallPipeline(), side="output").sites
    assert all(len(site.weights) == 1 for site in sites)
    assert {site.weights[0] for site in sites if site.timestep_free} == TEXT


def test_equal_values_in_different_memory_are_not_shared() -> None:
    class Copying(Denoiser):
        def forward(self, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                hidden = hidden + block.attn2(hidden, text.clone())
            return hidden

    groups = {frozenset(site.weights): site.timestep_free for site in found_in(SmallPipeline(denoiser=Copying())).sites}
    for block in (0, 1):
        assert groups[frozenset({f"blocks.{block}.attn2.to_k.weight", f"blocks.{block}.attn2.to_v.weight"})] is True


def test_a_second_denoiser_has_sites_of_its_own_and_the_rest_of_the_steps() -> None:
    found = found_in(SmallPipeline(second=Denoiser(), boundary=2))
    assert {site.steps for site in found.sites if site.layer.startswith("transformer_2.")} == {(2, 4)}
    assert {site.steps for site in found.sites if not site.layer.startswith("transformer_2.")} == {(0, 2)}
    assert {frozenset(site.weights) for site in found.sites if site.timestep_free} == {
        frozenset(TEXT),
        frozenset(f"transformer_2.{weight}" for weight in TEXT),
    }
    assert found.last_forward(6) == Forward("transformer_2.", 5, 0)
    # Text alone is known once each denoiser has run.
    assert found_in(SmallPipeline(second=Denoiser(), boundary=2), features=("k", "v")).last_forward(6) == Forward(
        "transformer_2.", 2, 0
    )


def test_a_denoiser_that_never_runs_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"transformer_2\. never runs along these 6 steps"):
        found_in(SmallPipeline(second=Denoiser(), boundary=6))


def test_the_forwards_that_are_needed_count_those_of_guidance() -> None:
    pipe = SmallPipeline(lambda _: [["prompt"], ["empty"]])
    assert found_in(pipe).forwards_needed(6) == 12
    assert found_in(pipe, features=("k", "v")).forwards_needed(6) == 2
    assert found_in(SmallPipeline()).forwards_needed(6) == 6


class Timed(Denoiser):
    """One that is told the timestep, and does nothing with it."""

    def forward(self, hidden: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden, text)


def test_forwards_at_two_timesteps_are_no_step() -> None:
    """As of a solver that runs the denoiser between two steps of its scheduler."""
    rows = [["prompt"], ["empty"]]
    found_in(SmallPipeline(lambda _: rows, denoiser=Timed(), timestep=lambda step, turn: 900.0 - step))
    with pytest.raises(ModelError, match=r"at two timesteps in one step of its scheduler: 900 and 899\.5"):
        found_in(SmallPipeline(lambda _: rows, denoiser=Timed(), timestep=lambda step, turn: 900.0 - step - turn / 2))
