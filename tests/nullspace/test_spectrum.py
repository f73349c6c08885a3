import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace import spectrum

KNOWN = np.array([0.0, 1e-6, 1e-3, 1e-2, 1.0, 2.0])
# Exact zeros, and numbers whose products are numbers still: half of the smallest one there is is 0.
spectra = st.lists(st.just(0.0) | st.floats(1e-100, 1e6), min_size=1, max_size=40).map(lambda values: np.sort(np.array(values)))


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("nullspace_threshold", 2e-2, 4),
        ("nullspace_threshold", 1e-2, 3),
        ("threshold_percent", 50.0, 3),
        ("threshold_percent", 99.0, 5),
        ("relative_threshold", 1e-3, 3),
        ("relative_threshold", 1e-9, 1),
        ("energy", 0.6, 5),
        ("energy", 0.9, 4),
        ("energy", 1.0, 1),
        ("target_leakage", 0.02, 3),
        ("target_leakage", 0.061, 4),
        ("null_dim", 2, 2),
    ],
)
def test_rules_on_a_known_spectrum(rule: str, value: float, expected: int) -> None:
    assert spectrum.null_dim(KNOWN, rule, value) == expected


@pytest.mark.parametrize(
    ("eigenvalues", "rule", "value", "expected"),
    [
        (np.ones(5), "relative_threshold", 1e-3, 0),
        (np.ones(5), "threshold_percent", 50.0, 0),
        (np.array([0.0, 0.0, 1.0]), "target_leakage", 1e-9, 2),
        (np.array([-1e-17, 0.0, 1e9]), "relative_threshold", 1e-12, 2),
        (np.array([-1e-12, 1.0, 1.0]), "energy", 1.0, 1),
        (np.array([3.0]), "relative_threshold", 0.5, 0),
        (np.array([3.0]), "null_dim", 1, 1),
    ],
    ids=["flat", "flat percentile", "exact zeros", "one huge", "negative round-off", "D = 1", "D = 1 all"],
)
def test_edges(eigenvalues: np.ndarray, rule: str, value: float, expected: int) -> None:
    assert spectrum.null_dim(eigenvalues, rule, value) == expected


def test_more_than_there_are() -> None:
    with pytest.raises(ConfigError, match="null_dim 7 is more than the 6"):
        spectrum.null_dim(KNOWN, "null_dim", 7)


@given(spectra, st.floats(1e-6, 0.999))
def test_leakage_is_the_share_of_the_trace(eigenvalues: np.ndarray, value: float) -> None:
    null = spectrum.null_dim(eigenvalues, "target_leakage", value)
    assert spectrum.leakage(eigenvalues, null) <= value
    if eigenvalues.sum() > 0:
        assert spectrum.leakage(eigenvalues, null) == pytest.approx(np.sqrt(eigenvalues[:null].sum() / eigenvalues.sum()))
        assert null == len(eigenvalues) or spectrum.leakage(eigenvalues, null + 1) > value


@given(spectra, st.floats(0.01, 1.0))
def test_energy_keeps_its_share_with_the_fewest(eigenvalues: np.ndarray, value: float) -> None:
    null = spectrum.null_dim(eigenvalues, "energy", value)
    total = eigenvalues.sum()
    if total > 0:
        assert eigenvalues[null:].sum() >= value * total * (1 - 1e-9)
        assert eigenvalues[null + 1 :].sum() < value * total * (1 + 1e-9)


@given(spectra.filter(lambda values: values[-1] > 1e-3), st.floats(1e-3, 1e3))
def test_scaling_the_data_changes_only_the_absolute_rule(eigenvalues: np.ndarray, scale: float) -> None:
    assert spectrum.effective_rank(eigenvalues * scale) == pytest.approx(spectrum.effective_rank(eigenvalues))
    for rule, value in (("energy", 0.5), ("null_dim", 1), ("threshold_percent", 37.0)):
        shifted = spectrum.null_dim(eigenvalues * 2.0**3, rule, value)
        assert shifted == spectrum.null_dim(eigenvalues, rule, value)


def test_effective_rank_counts_equal_directions() -> None:
    assert spectrum.effective_rank(np.array([0.0, 0.0, 5.0, 5.0, 5.0])) == pytest.approx(3.0)
    assert spectrum.effective_rank(np.zeros(4)) == 0.0


def test_condition() -> None:
    assert spectrum.condition(np.array([0.5, 2.0])) == 4.0
    assert spectrum.condition(np.array([0.0, 2.0])) == float("inf")


@pytest.mark.parametrize(
    "rule", ["nullspace_threshold", "threshold_percent", "relative_threshold", "energy", "target_leakage", "null_dim"]
)
def test_the_threshold_separates_null_from_known(rule: str) -> None:
    value = {"null_dim": 3, "threshold_percent": 50.0}.get(rule, 5e-3)
    cut = spectrum.threshold(KNOWN, rule, value, spectrum.null_dim(KNOWN, rule, value))
    assert cut is not None
    assert np.count_nonzero(cut > KNOWN) == spectrum.null_dim(KNOWN, rule, value)


def warnings_of(*facts: float) -> list[str]:
    """Facts in the order of the signature, for tables of cases."""
    names = ("dim", "count", "null_dim", "threshold", "noise_floor", "leakage", "heldout_leakage")
    return [doubt.text for doubt in spectrum.doubts_of(**dict(zip(names, facts, strict=False)))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ((100, 50, 60, 1e-3, 1e-12), "cannot fill 100 dimensions"),
        ((100, 500, 60, 1e-3, 1e-12), "1,000 or more are advised"),
        ((100, 5000, 60, 1e-13, 1e-12), "below the noise floor"),
        ((100, 5000, 60, 5e-12, 1e-12), "close to the noise floor"),
        ((100, 5000, 60, 1e-3, 1e-12, 0.2), "leakage 0.2 on the collected prompts, more than 0.1"),
        ((100, 5000, 60, 1e-3, 1e-12, 0.09, 0.11), "leakage 0.11 on the held-out prompts, more than 0.1"),
        ((100, 5000, 60, 1e-3, 1e-12, 0.01, 0.03), "the prompts do not represent others"),
    ],
)
def test_each_doubt_is_said_alone(facts: tuple, words: str) -> None:
    (found,) = warnings_of(*facts)
    assert words in found


@pytest.mark.parametrize("more", [(), (0.09,), (0.05, 0.09)])
def test_a_well_founded_null_space_has_none(more: tuple) -> None:
    assert warnings_of(100, 5000, 60, 1e-3, 1e-12, *more) == []
    assert warnings_of(100, 5000, 0, 1e-13, 1e-12) == []


def test_doubts_of_a_kind_are_one_line() -> None:
    """Of the site with the worst value; a site counts once, however many of its steps are in doubt."""
    leaking = {name: {"dim": 8, "count": 100, "null_dim": 3, "threshold": 0.1, "noise_floor": 1e-12} for name in "abc"}
    found = [
        (name, "", doubt)
        for (name, facts), leakage in zip(leaking.items(), (0.16, 0.21, 0.12), strict=True)
        for doubt in spectrum.doubts_of(**facts, leakage=leakage)
    ]
    few = [
        (name, key, doubt)
        for name, key, count in (("a", "timestep_0999", 70), ("a", "timestep_0001", 30), ("b", "timestep_0001", 40))
        for doubt in spectrum.doubts_of(dim=8, count=count, null_dim=1, threshold=None, noise_floor=0.0)
    ]
    assert spectrum.worst_doubts([*found, *few]) == [
        "leakage 0.21 on the collected prompts, more than 0.1: b, the worst of 3 sites",
        "30 vectors for 8 dimensions; 80 or more are advised: a at timestep_0001, the worst of 2 sites",
    ]
    assert spectrum.worst_doubts(few[:1]) == ["70 vectors for 8 dimensions; 80 or more are advised: a at timestep_0999"]
    assert spectrum.worst_doubts([]) == []


@pytest.mark.parametrize("threshold", [0.0, 1e-14])
def test_the_deepest_cut_below_the_noise_floor_is_the_worst(threshold: float) -> None:
    facts = {"dim": 8, "count": 100, "null_dim": 3, "noise_floor": 1e-12}
    cuts = [(name, "", *spectrum.doubts_of(**facts, threshold=cut)) for name, cut in (("a", 5e-13), ("b", threshold))]  # type: ignore[arg-type]
    assert spectrum.worst_doubts(cuts) == [
        f"cut at {threshold:.2g}, below the noise floor of 1e-12: which directions are null is round-off: b, the worst of 2 sites"
    ]


class TestSparkline:
    def test_a_step_is_a_decade(self) -> None:
        decades = np.array([10.0**-e for e in range(8)])[::-1]
        assert spectrum.sparkline(decades, 3, width=8) == "█▇▆▅▄|▃▂▁"

    @given(st.lists(st.floats(-1e-12, 1e6), min_size=1, max_size=200), st.data())
    def test_it_falls_and_has_its_width(self, values: list[float], data: st.DataObject) -> None:
        eigenvalues = np.sort(np.array(values))
        line = spectrum.sparkline(eigenvalues, data.draw(st.integers(0, len(values))))
        blocks = line.replace("|", "")
        assert len(blocks) == 16
        assert list(blocks) == sorted(blocks, reverse=True)
        assert line.count("|") == int(eigenvalues[-1] > 0)


def test_a_count_that_ends_inside_it_is_doubted() -> None:
    assert [doubt.text for doubt in spectrum.doubts_of(dim=4, count=40, null_dim=1, threshold=1e-17, noise_floor=4e-16)] == [
        "cut at 1e-17, below the noise floor of 4e-16: which directions are null is round-off"
    ]
    assert [doubt.text for doubt in spectrum.doubts_of(dim=4, count=40, null_dim=2, threshold=1e-3, noise_floor=4e-16)] == []


def test_ten_for_each_dimension_are_advised() -> None:
    assert [doubt.text for doubt in spectrum.doubts_of(dim=8, count=79, null_dim=1, threshold=1.0, noise_floor=0.0)] == [
        "79 vectors for 8 dimensions; 80 or more are advised"
    ]
    assert [doubt.text for doubt in spectrum.doubts_of(dim=8, count=80, null_dim=1, threshold=1.0, noise_floor=0.0)] == []
