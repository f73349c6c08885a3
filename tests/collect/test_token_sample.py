"""Samples of tokens: the same for any batch, unbiased, as likely for every token."""

import numpy as np
import pytest
import torch

from nullbooth_cli.collect import token_sample
from nullbooth_cli.collect.token_sample import TokenSampler, _draw
from tests.support.builders import execute, features_at, small_config
from tests.support.invariants import assert_close

NUM_STEPS = 5


def sample_tokens(
    values: torch.Tensor,
    num_tokens: int,
    *,
    seed: int,
    rows: list[int],
    step: int,
    site: str,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    return TokenSampler(num_tokens, seed, rows, NUM_STEPS).sample(values, step, site, padding)


class TestSampling:
    def test_the_generator_is_splitmix64(self) -> None:
        """The first outputs for the seed 1234567, as published with the reference implementation."""
        drawn = [int(_draw(torch.tensor(1234567), torch.tensor(i))) % 2**64 for i in range(3)]
        assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]

    def test_the_choice_depends_on_seed_row_step_and_site_alone(self) -> None:
        values = torch.arange(4 * 50).reshape(4, 50, 1)

        def chosen(rows: list[int], seed: int = 0, step: int = 0, site: str = "a") -> torch.Tensor:
            return sample_tokens(values[: len(rows)], 7, seed=seed, rows=rows, step=step, site=site) % 50

        every = chosen([0, 1, 2, 3])
        assert every.shape == (4, 7, 1)
        assert all(len(set(prompt.flatten().tolist())) == 7 for prompt in every)
        assert torch.equal(chosen([2])[0], every[2])
        assert torch.equal(chosen([3, 0])[1], every[0])
        for other in (chosen([0], seed=1), chosen([0], step=1), chosen([0], site="b"), chosen([1])):
            assert not torch.equal(other[0], every[0])
        assert torch.equal(sample_tokens(values, 50, seed=0, rows=[0, 1, 2, 3], step=0, site="a"), values)

    @pytest.mark.parametrize("at_once", [1, 300, 1000], ids=["one step", "some steps", "all steps"])
    def test_the_choice_does_not_depend_on_how_many_steps_are_drawn_at_once(
        self, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(token_sample, "DRAWN_AT_ONCE", at_once)
        values, together = torch.arange(2 * 50).reshape(2, 50, 1), TokenSampler(7, 0, [4, 9], NUM_STEPS)
        for step in range(NUM_STEPS):
            for site, given in (("a", values), ("b", values), ("a", values[:, :30])):
                alone = sample_tokens(given, 7, seed=0, rows=[4, 9], step=step, site=site)
                assert torch.equal(together.sample(given, step, site), alone)

    def test_a_skipped_step_and_padding_in_one_step_do_not_change_the_others(self) -> None:
        values, together = torch.arange(50).reshape(1, 50, 1), TokenSampler(7, 0, [4], NUM_STEPS)
        for step, padding in ((3, None), (1, torch.zeros(1, 50, dtype=torch.bool)), (4, None), (0, None)):
            alone = sample_tokens(values, 7, seed=0, rows=[4], step=step, site="a")
            assert torch.equal(together.sample(values, step, "a", padding), alone)

    def test_every_token_is_as_likely(self) -> None:
        """4,000 draws of 8 of 20 tokens: each token comes 1,600 times, give or take five standard deviations."""
        index = torch.arange(20).reshape(1, 20, 1)
        drawn = torch.cat([sample_tokens(index, 8, seed=0, rows=[row], step=0, site="site").flatten() for row in range(4000)])
        counts = torch.bincount(drawn, minlength=20)
        assert (counts - 1600).abs().max() < 5 * (4000 * 0.4 * 0.6) ** 0.5

    def test_moments_of_a_sample_are_unbiased(self) -> None:
        """The mean over many samples of the second moment of a sample is the second moment of all tokens, within its error."""
        values = torch.randn(1, 30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 5.0)
        exact = values[0].T @ values[0] / 30
        samples = torch.stack([sample_tokens(values, 6, seed=0, rows=[row], step=0, site="s")[0] for row in range(3000)])
        moments = samples.transpose(1, 2) @ samples / 6
        error = moments.std(0) / 3000**0.5
        assert ((moments.mean(0) - exact).abs() < 5 * error).all()

    def test_padding_is_chosen_last_and_does_not_change_the_choice(self) -> None:
        """The same tokens beside no padding, before it, after it and between it; all of them where there are too few."""
        tokens = torch.arange(1, 13)
        places = [torch.arange(12), torch.arange(3, 15), torch.tensor([0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 19])]
        found = []
        for place in places:
            values, padding = torch.zeros(1, 20, 1, dtype=torch.long), torch.ones(1, 20, dtype=torch.bool)
            values[0, place, 0], padding[0, place] = tokens, False
            choice = {"seed": 3, "rows": [5], "step": 1, "site": "a", "padding": padding}
            found.append(sample_tokens(values, 5, **choice).flatten().tolist())
            assert sorted(sample_tokens(values, 15, **choice).flatten().tolist()) == [0] * 3 + tokens.tolist()
        alone = sample_tokens(tokens[None, :, None], 5, seed=3, rows=[5], step=1, site="a").flatten().tolist()
        assert found == [alone] * 3

    def test_on_the_model_it_is_repeatable_and_leaves_text_alone(self, tmp_path) -> None:
        layers = {"collect__cross_attention_layers": ["mid_block*", 0], "collect__tokens_per_prompt": 5}
        one, two, folded, whole = (
            execute(small_config(tmp_path / f"{name}.zarr", **{**layers, **changes}), "collect", "covariance")
            for name, changes in (
                ("one", {}),
                ("two", {"collect__batch_size": 8}),
                ("folded", {"collect__keep": "moments"}),
                ("whole", {"collect__tokens_per_prompt": None}),
            )
        )
        for site, full in zip(one.sites, whole.sites, strict=True):
            assert site.num_tokens == (full.num_tokens if site.feature == "k" else 5)
            for t in range(site.num_recorded(4)):
                sampled = features_at(one, site, t, 0)
                np.testing.assert_allclose(sampled, features_at(two, site, t, 0)[:3], rtol=1e-3, atol=1e-3)
                everything = features_at(whole, full, t, 0)
                assert all((np.abs(everything[0] - token).max(1) < 1e-4).any() for token in sampled[0])
                assert one.moments.read_one(site, t)[2] == folded.moments.read_one(site, t)[2] == 8 * site.num_tokens
                assert_close(folded.moments.read_one(site, t)[0], one.moments.read_one(site, t)[0], 1e-12)
