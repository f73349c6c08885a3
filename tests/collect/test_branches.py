"""The rows of guidance are told apart by looking, whatever their order, number and forward."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.collect.branches import Branch, find_branches, named, split_branches
from nullbooth_cli.collect.find_sites import RecordableModel, find_sites
from nullbooth_cli.collect.probe import Probe
from nullbooth_cli.collect.recorder import Recorder
from nullbooth_cli.collect.units import run_unit
from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.projections import find_projections
from tests.support.pipelines import Rows, SmallPipeline, text_of

STEPS = tuple(Step(t, f"timestep_{t}", 3.0 - t, 1.0) for t in range(3))
PATH = DenoisingPath(num_inference_steps=3, steps=STEPS, guidance_scale=1.0, height=None, width=None, seed=0)
PROMPTS = ["a red cat", "two dogs", "tree"]


class Kept:
    """A sink that keeps everything."""

    dtype = None

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], torch.Tensor] = {}

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        self.values[site.name, step] = values


def branches_of(rows: Rows) -> list[str]:
    pipe: Any = SmallPipeline(lambda _: rows)
    projections = find_projections(pipe.unet, ("q", "k"), "all")
    seen = Probe(pipe, projections, "input", num_steps=2)
    seen.run(PATH, Prompt("a cat"))
    return [branch.name for branch in find_branches(pipe, PATH, projections, "input", seen, None)]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([["prompt"]], ["prompt"]),
        ([["empty", "prompt"]], ["empty", "prompt"]),
        ([["prompt", "empty", "empty"]], ["prompt", "empty", "empty_2"]),
        ([["empty", "prompt", "prompt"]], ["empty", "prompt", "prompt_2"]),
        ([["prompt"], ["empty"]], ["prompt", "empty"]),
        ([["empty", "prompt"], ["empty"]], ["empty", "prompt", "empty_2"]),
    ],
)
def test_rows_are_named_by_what_they_depend_on(rows: Rows, names: list[str]) -> None:
    assert branches_of(rows) == names


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from(["prompt", "empty"]), min_size=1, max_size=3), min_size=1, max_size=3).filter(
        lambda rows: any("prompt" in kinds for kinds in rows)
    ),
    st.sampled_from(["both", "cond"]),
)
def test_what_is_recorded_is_what_every_row_received(rows: Rows, chosen: str) -> None:
    """Against the denoiser's own inputs, prompt by prompt: the text of each recorded row, in the order in which they ran."""
    pipe: Any = SmallPipeline(lambda _: rows)
    projections = find_projections(pipe.unet, ("q", "k", "v"), "all")
    found = find_sites(pipe, PATH, projections, side="input", branches=chosen, prompts=[Prompt(PROMPTS[0])])
    recorder = Recorder(RecordableModel(pipe, PATH, found), list(enumerate(map(Prompt, PROMPTS))), sinks=[kept := Kept()])
    run_unit(recorder=recorder, model=RecordableModel(pipe, PATH, found))
    recorder.check()
    kinds = [kind for each in rows for kind in each if chosen == "both" or kind == "prompt"]
    text = next(site for site in found.sites if site.feature == "k")
    assert text.num_tokens == 3 * len(kinds)
    assert not text.timestep_free or list(kept.values)[-1][1] >= 0
    for row, prompt in enumerate(PROMPTS):
        wanted = np.concatenate([text_of(prompt if kind == "prompt" else "").numpy() for kind in kinds])
        np.testing.assert_array_equal(kept.values[text.name, 0][row].numpy(), wanted)
    image = next(site for site in found.sites if site.feature == "q")
    assert image.num_tokens == 5 * len(kinds)
    for row in range(len(PROMPTS)):
        noise = torch.randn(5, 4, generator=torch.Generator().manual_seed(row)).numpy()
        np.testing.assert_array_equal(kept.values[image.name, 0][row].numpy(), np.concatenate([noise] * len(kinds)))
    assert {step for name, step in kept.values if name == image.name} == {0, 1, 2}


def test_guidance_that_ends_on_the_way_is_an_error() -> None:
    pipe: Any = SmallPipeline(lambda step: [["empty", "prompt"]] if step == 0 else [["prompt"]])
    projections = find_projections(pipe.unet, ("k",), "all")
    with pytest.raises(ModelError, match=r"the rows of a prompt change from step to step: \[2\] first, then \[1\]"):
        find_sites(pipe, PATH, projections, side="input", branches="both", prompts=[Prompt("a cat")])


def test_a_pipeline_that_ignores_its_prompt_is_an_error() -> None:
    pipe: Any = SmallPipeline(lambda _: [["empty", "empty"]])
    with pytest.raises(ModelError, match="no row of this pipeline depends on the prompt"):
        find_sites(
            pipe, PATH, find_projections(pipe.unet, ("k",), "all"), side="input", branches="both", prompts=[Prompt("a cat")]
        )


def test_rows_are_branches_then_prompts_then_frames() -> None:
    branches = named([2], [False, True])
    assert branches == (Branch("empty", 0, 0, 2), Branch("prompt", 0, 1, 2))
    rows = torch.arange(8.0)[:, None, None].expand(8, 3, 1)  # two branches, two prompts, two frames, three tokens
    empty, own = split_branches(rows, 2, branches)
    assert empty[:, :, 0].tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]]
    assert own[:, :, 0].tolist() == [[4, 4, 4, 5, 5, 5], [6, 6, 6, 7, 7, 7]]
    assert split_branches(rows, 4, branches[1:])[0][:, :, 0].tolist() == [[4] * 3, [5] * 3, [6] * 3, [7] * 3]
    with pytest.raises(ModelError, match="8 rows for 3 prompts of 2 branches"):
        split_branches(rows, 3, branches)
