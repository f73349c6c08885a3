"""The decomposition of a second moment that is kept as a factor: of what the factor has, and of what it may lack."""

import numpy as np
import torch

from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.store import Decomposition


def decompose_factor(moment: Moment, heldout: Moment | None, device: torch.device | str, accumulate: str) -> Decomposition:
    """The decomposition of B^T B, by the singular values of B `[R, D]`. Cost: about 6 R^2 D + 20 R^3 operations.

    By Weyl's inequality an eigenvalue of C is at least that of B^T B, and more by at most `moment.bound`, which therefore is a
    noise floor.
    """
    _, roots, vectors = torch.linalg.svd(torch.from_numpy(moment.kept).to(device), full_matrices=False)
    eigenvectors = np.ascontiguousarray(vectors.flip(0).mT.cpu().numpy())
    eigenvalues = np.zeros(moment.dim)
    eigenvalues[-len(roots) :] = roots.flip(0).square().cpu().numpy()
    on_heldout = np.full(moment.dim, np.nan) if heldout is None else heldout.spread_energies(eigenvectors)
    floor = max(spectrum.noise_floor(float(eigenvalues[-1]), moment.dim, accumulate), moment.bound)
    return Decomposition(eigenvalues, eigenvectors, np.stack([moment.spread_energies(eigenvectors), on_heldout]), floor)
