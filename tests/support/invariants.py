"""Statements about arrays that tests of several rooms make."""

import numpy as np


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    """Within a tolerance relative to the largest value."""
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def assert_is_projector(p: np.ndarray, null_dim: int) -> None:
    """Symmetric, idempotent, with a null space of this dimension."""
    assert np.abs(p - p.T).max() == 0
    assert np.abs(p @ p - p).max() < 1e-10
    assert abs(np.trace(p) - null_dim) < 1e-10
