"""The projector of a site, and measures on projectors. Needs no torch until it is given a tensor."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.nullspace.moment import Moment

if TYPE_CHECKING:
    import torch

Rows = TypeVar("Rows", NDArray[np.float64], "torch.Tensor")


@dataclass(frozen=True)
class Projector:
    """P = U0 U0^T of one site, as the smaller of two factors.

    `factor` `[D, F]` float64 has orthonormal columns: the null basis U0 (P = F F^T), or, if `is_complement`, a basis of the
    preserved directions (P = I - F F^T). F is at most D / 2, so it takes at most half the bytes of P. Of a moment that is kept as
    a factor only the second is known.
    """

    factor: NDArray[np.float64]
    is_complement: bool

    @classmethod
    def of(cls, eigenvectors: NDArray[np.float64], null_dim: int) -> "Projector":
        """From eigenvectors in columns, all of them, `[D, D]`, or the last few; the first `null_dim` of all span the null space.

        Raises ValueError if a preserved direction is not among them.
        """
        dropped = eigenvectors.shape[0] - eigenvectors.shape[1]
        if null_dim < dropped:
            raise ValueError(f"{eigenvectors.shape[1]} eigenvectors cannot span {len(eigenvectors) - null_dim} directions")
        is_complement = dropped > 0 or 2 * null_dim > len(eigenvectors)
        columns = eigenvectors[:, null_dim - dropped :] if is_complement else eigenvectors[:, :null_dim]
        return cls(np.ascontiguousarray(columns), is_complement)

    @property
    def dim(self) -> int:
        """D, the number of values of an input vector."""
        return int(self.factor.shape[0])

    @property
    def null_dim(self) -> int:
        """The dimension of the null space, the trace of P."""
        return int(self.dim - self.factor.shape[1] if self.is_complement else self.factor.shape[1])

    def apply(self, rows: Rows) -> Rows:
        """`rows @ P` for `[M, D]`, an array or a torch tensor (then on its device and in its dtype).

        Cost: 4 M D F operations and M F values beside the result; no `[D, D]` matrix is formed.
        """
        if isinstance(rows, np.ndarray):
            return apply_factor(rows, self.factor, is_complement=self.is_complement)
        import torch

        return apply_factor(rows, torch.from_numpy(self.factor).to(rows), is_complement=self.is_complement)

    def dense(self) -> NDArray[np.float64]:
        """P itself, `[D, D]` float64, exactly symmetric. Cost: 2 D^2 F operations, 8 D^2 bytes."""
        p = self.factor @ self.factor.T
        p = np.eye(self.dim) - p if self.is_complement else p
        return np.asarray((p + p.T) / 2)


def apply_factor(rows: Rows, factor: Rows, *, is_complement: bool, multiplied: Rows | None = None) -> Rows:
    """`rows @ P` for `[M, D]` and a factor `[D, F]`, both arrays or both tensors. Cost: 4 M D F operations.

    `multiplied` are the rows in the dtype of the factor, where the two differ; what is subtracted from stays as it is.
    """
    inside: Rows = ((rows if multiplied is None else multiplied) @ factor) @ factor.T
    return rows - inside if is_complement else inside


def overlap(one: Projector, other: Projector) -> float:
    """The share of the smaller null space that lies in the larger: trace(P Q) / min(null_dim), 0 to 1. NaN if one is empty.

    It is the mean squared cosine of the principal angles between them (Bjorck and Golub, 1973). Two random null spaces overlap by
    about `expected_overlap`. Cost: 2 D F F' operations.
    """
    smaller = min(one.null_dim, other.null_dim)
    if smaller == 0:
        return float("nan")
    shared = float(np.square(one.factor.T @ other.factor).sum())
    if one.is_complement and other.is_complement:
        shared += one.dim - one.factor.shape[1] - other.factor.shape[1]
    elif one.is_complement or other.is_complement:
        shared = (other if one.is_complement else one).factor.shape[1] - shared
    return shared / smaller


def expected_overlap(one: Projector, other: Projector) -> float:
    """The mean overlap of two random null spaces of these sizes: the larger null_dim / D."""
    return max(one.null_dim, other.null_dim) / one.dim


def leakage_on(projector: Projector, moment: Moment) -> float:
    """norm(P K) / norm(K) on the vectors K of a moment; the most it can be if that is a factor. Cost: 2 D^2 F operations."""
    total = moment.trace
    least, most = moment.energy(projector.factor.T)
    share = (total - least if projector.is_complement else most) / total if total > 0 else 0.0
    return float(np.sqrt(min(max(share, 0.0), 1.0)))


def relative_drift(
    change: NDArray[np.floating],
    weight: NDArray[np.floating],
    moment: Moment,
    *,
    shift: NDArray[np.float64] | None = None,
) -> float:
    """norm(dW K) / norm(W K) of a change to a weight, both `[M, D]`, on the vectors K of a moment C.

    norm(dW K)^2 = N tr(dW C dW^T), in float64: how much the output of the layer changes, as a share of itself. Where the moment
    is a factor, it is the most that this can be. A `shift` `[M]` is a change of the bias. NaN if the output was zero and is not
    any more. Cost: 4 M D^2 operations, 4 M R D for a factor.
    """
    (_, moved), (output, _) = moment.energy(change), moment.energy(weight)
    if shift is not None and shift.any():
        moved = max(moved + 2 * float(shift @ (change @ moment.mean)) + float(shift @ shift), 0.0)
    if moved == 0:
        return 0.0
    return float(np.sqrt(moved / output)) if output > 0 else float("nan")
