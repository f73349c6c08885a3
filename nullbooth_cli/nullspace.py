"""The projector of a site, and which of them a model may use. Needs no torch until it is given a tensor of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.store import Site, Store

if TYPE_CHECKING:
    import torch

Rows = TypeVar("Rows", NDArray[np.float64], "torch.Tensor")


@dataclass(frozen=True)
class Projector:
    """P = U0 U0^T of one site, as the smaller of two factors.

    `factor` `[D, F]` float64 has orthonormal columns: the null basis U0 (P = F F^T), or, if `is_complement`, what is known
    (P = I - F F^T). F is at most D / 2, so it takes at most half the bytes of P.
    """

    factor: NDArray[np.float64]
    is_complement: bool

    @classmethod
    def of(cls, eigenvectors: NDArray[np.float64], null_dim: int) -> "Projector":
        """From all eigenvectors `[D, D]`, of which the first `null_dim` span the null space."""
        smaller = 2 * null_dim > len(eigenvectors)
        columns = eigenvectors[:, null_dim:] if smaller else eigenvectors[:, :null_dim]
        return cls(np.ascontiguousarray(columns), smaller)

    @property
    def dim(self) -> int:
        return int(self.factor.shape[0])

    @property
    def null_dim(self) -> int:
        return int(self.dim - self.factor.shape[1] if self.is_complement else self.factor.shape[1])

    def apply(self, rows: Rows) -> Rows:
        """`rows @ P` for `[M, D]`, an array or a torch tensor (then on its device and in its dtype).

        Cost: 4 M D F operations and M F values beside the result; no `[D, D]` matrix is formed.
        """
        factor: Any = self.factor
        if not isinstance(rows, np.ndarray):
            import torch

            factor = torch.from_numpy(self.factor).to(rows)
        part: Rows = (rows @ factor) @ factor.T
        result: Rows = rows - part if self.is_complement else part
        return result

    def dense(self) -> NDArray[np.float64]:
        """P itself, `[D, D]` float64, exactly symmetric. Cost: 2 D^2 F operations, 8 D^2 bytes."""
        p = self.factor @ self.factor.T
        p = np.eye(self.dim) - p if self.is_complement else p
        return np.asarray((p + p.T) / 2)


def overlap(one: Projector, other: Projector) -> float:
    """How far the smaller null space lies in the larger: trace(P Q) / min(null_dim), 0 to 1; 1 if it lies in it wholly.

    It is the mean squared cosine of the principal angles between them (Bjorck and Golub, 1973). Two random null spaces come to
    about the larger null_dim / D: see `chance`. Cost: 2 D F F' operations.
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


def chance(one: Projector, other: Projector) -> float:
    """The overlap to expect of two null spaces of these sizes that have nothing to do with each other."""
    return max(one.null_dim, other.null_dim) / one.dim


def leakage_on(projector: Projector, second_moment: NDArray[np.float64]) -> float:
    """norm(P K) / norm(K) on the vectors K that a second moment `[D, D]` was made of. Cost: 2 D^2 F operations."""
    total = float(np.trace(second_moment))
    inside = float(np.einsum("df,df->", projector.factor, second_moment @ projector.factor))
    share = (total - inside if projector.is_complement else inside) / total if total > 0 else 0.0
    return float(np.sqrt(max(share, 0.0)))


def relative_drift(change: NDArray[np.floating], weight: NDArray[np.floating], second_moment: NDArray[np.float64]) -> float:
    """norm(dW K) / norm(W K) of a change to a weight, both `[M, D]`, on the vectors K that a second moment `[D, D]` was made of.

    norm(dW K)^2 = N tr(dW C dW^T), in float64: how much the output of the layer changes, as a share of itself. NaN where the
    weight gives no output at all and changes. Cost: 4 M D^2 operations.
    """
    moved, output = (
        max(float(np.einsum("md,md->", rows @ second_moment, rows)), 0.0)
        for rows in (change.astype(np.float64), weight.astype(np.float64))
    )
    if moved == 0:
        return 0.0
    return float(np.sqrt(moved / output)) if output > 0 else float("nan")


def load_projector(store: Store, site: Site, index: int = 0) -> Projector:
    """The projector of a site; `index` is 0 for a pooled one, or the recorded timestep."""
    return Projector.of(store.read_eigenvectors(site, index), store.read_cut(site, index).null_dim)


def usable_projectors(store: Store, tensors: Mapping[str, Any] | None = None) -> dict[str, Projector]:
    """The projector of each weight that a store protects, by the weight's name: what an edit or a training may use.

    With `tensors`, the weights of a model by name (its `state_dict()`), they are compared with those that the prompts were run
    through. Raises ConfigError for per-timestep projectors, and for another model, naming what differs. Weights that share their
    input share one Projector. Cost: one read of the eigenvectors, and of the weights.
    """
    scope = store.records["project"]["settings"]["project.scope"]
    if scope == "timestep":
        raise ConfigError(
            "per-timestep projectors cannot constrain a weight: it is the same at every timestep, and each of them protects one",
            "nullbooth project --set project.scope=pooled --force",
        )
    if tensors is not None:
        check_model(store, tensors)
    found: dict[str, Projector] = {}
    for site in store.sites:
        projector = load_projector(store, site)
        found |= dict.fromkeys(site.weights, projector)
    return found


def check_model(store: Store, tensors: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the weights that a store protects are, value for value, those of a model, named as its
    `state_dict()` names them.

    The prompts may have been run in a lower precision than the model has now: then its weights are rounded to that first.
    Adapters of PEFT, loaded but not fused, change no base weight.
    """
    recorded = store.records["collect"].get("tensors")
    if not recorded:
        raise ConfigError(
            f"{store.url} does not say which weights it was made from: it was imported, or made by an earlier nullbooth",
            "collect again, or use the projectors without naming a model, at your own risk",
        )
    dtype = store.config["dtype"]
    tensors = {plain_name(name): tensor for name, tensor in tensors.items()}
    named = store.records["collect"]["model"]["model"]
    missing = [name for name in recorded if name not in tensors]
    changed = [name for name in recorded if name in tensors and tensor_digest(tensors[name], dtype) != recorded[name]]
    if missing or changed:
        said = [
            f"{len(names)} weights {what}, such as {names[0]}"
            for names, what in ((missing, "are not there"), (changed, "differ"))
            if names
        ]
        raise ConfigError(
            f"these projectors belong to another model than the one at hand ({named}, run in {dtype}): " + "; ".join(said),
            "use the model that was collected from, before any training; or collect from this one",
        )


def plain_name(name: str) -> str:
    """The name that a weight has in the plain model, where PEFT put adapters around it or around the whole model."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def tensor_digest(tensor: Any, dtype: str) -> str:
    """SHA-256 of a torch tensor's shape and its values in a dtype, cut to 16 hexadecimal digits."""
    import torch

    values = tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()
    digest = hashlib.sha256(f"{dtype}:{tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def provenance(store: Store) -> dict[str, Any]:
    """Everything that the projectors of a store came from: model, weights, prompts, schedule, settings, package versions."""
    records, config, heldout = store.records, store.config, store.heldout()
    return {
        "fingerprint": records["project"]["fingerprint"],
        "model": {**records["collect"]["model"], "dtype": config["dtype"]},
        "weights": records["collect"]["weights"],
        "tensors": records["collect"].get("tensors", {}),
        "prompts": {"count": len(store.prompts()), "digest": records["covariance"]["rows"]["digest"]},
        "heldout_prompts": None if heldout is None else {"count": len(heldout.prompts())},
        "schedule": [{"key": s.key, "timestep": s.timestep, "sigma": s.sigma} for s in store.schedule()],
        "settings": {name: record["settings"] for name, record in records.items() if name != "decomposition"},
        "packages": store.packages,
    }
