"""Cuts of a spectrum: below the noise floor nothing is claimed, and too few vectors leave the rest null."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.cut import SiteSpectrum, cut
from nullbooth_cli.nullspace.decompose import eigh
from nullbooth_cli.nullspace.pooling import second_moment

SITE = Site("mid", "q", "input", ("mid.to_q.weight",), False, 4, 3)


def spectrum_of(eigenvalues: np.ndarray, noise_floor: float) -> SiteSpectrum:
    """Without held-out prompts."""
    return SiteSpectrum(SITE, 0, eigenvalues, np.stack([eigenvalues, np.full(len(eigenvalues), np.nan)]), noise_floor)


@pytest.mark.parametrize(("rule", "value"), [("nullspace_threshold", 1e-16), ("relative_threshold", 1e-16)])
def test_a_threshold_below_it_is_refused(rule: str, value: float) -> None:
    values = np.array([0.0, 1e-17, 1e-3, 1.0])
    floor = spectrum.noise_floor(1.0, 4, "float64")
    with pytest.raises(ConfigError, match=rf"{rule} 1e-16 cuts mid\.q at 1e-16, below its noise floor of 4\.44e-16"):
        cut(spectrum_of(values, floor), rule=rule, value=value)
    assert cut(spectrum_of(values, floor), rule=rule, value=1e-10).null_dim == 2


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.data())
def test_too_few_leave_at_least_the_rest_null(dim: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, dim - 1))
    x = np.random.default_rng(data.draw(st.integers(0, 2**31))).standard_normal((count, dim))
    [(eigenvalues, _)] = eigh([second_moment(Sums(x.T @ x, x.sum(0), count))])
    floor = spectrum.noise_floor(float(eigenvalues[-1]), dim, "float64")
    null_dim = cut(spectrum_of(eigenvalues, floor), rule="relative_threshold", value=1e-9).null_dim
    assert null_dim >= dim - count
    [doubt] = spectrum.doubts_of(dim=dim, count=count, null_dim=null_dim, threshold=1.0, noise_floor=floor)
    assert f"null_dim is at least {dim - count}, which may be chance" in doubt.text


def test_an_empty_null_space_is_refused_unless_it_may_be() -> None:
    found = spectrum_of(np.array([0.5, 0.6, 0.8, 1.0]), 1e-15)
    with pytest.raises(ConfigError, match=r"the null space of mid\.q is empty under relative_threshold 0\.1: its 4 eigenvalues"):
        cut(found, rule="relative_threshold", value=0.1)
    assert cut(found, rule="relative_threshold", value=0.1, may_be_empty=True) == (0, 0.0, None)
