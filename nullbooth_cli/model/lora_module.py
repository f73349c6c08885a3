"""One module of a LoRA file: the weights that it changes, by how much, and its tensors after the change became dW M.

A LoRA has a form for that: its A becomes A M, and its rank, shapes and dtypes stay. So does a whole change (`.diff`). A LoHa or
LoKr becomes a plain LoRA; what acts on the weight itself (DoRA's magnitudes, GLoRA, IA3, OFT) has no input side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import lora_kinds

OTHER_BASE = "name the base that it was made for"
FUSE = "fuse it into its base with the program that made it"
_MAGNITUDES = ("magnitude", "dora_scale")
Matrix = NDArray[np.floating] | float


def at_least_16_bits(dtype: torch.dtype) -> torch.dtype:
    """float16 for 8 bits, whose rounding alone would lead far out of what was solved for; any other as it is."""
    return torch.float16 if dtype.itemsize == 1 else dtype


@dataclass(frozen=True, kw_only=True)
class LoraModule:
    """One module of a file. `name` is the one that the file has, `weights` are the parameters of the denoiser that it changes,
    `path` is what the file calls it within its `part`.

    `shape` is that of these weights, one below the other, and `rows` are those of each. A module of another part than the
    denoiser has neither. `kind` is as in `lora_kinds`, `scale` is alpha over rank.
    """

    name: str
    part: str
    path: str
    kind: str
    weights: tuple[str, ...] = ()
    rows: tuple[slice, ...] = ()
    shape: tuple[int, ...] | None = None
    scale: float
    swapped: bool = False  # its rows are in two halves, which diffusers' model has in the other order
    tensors: lora_kinds.Tensors = field(repr=False)  # by their roles
    keys: Mapping[str, str] = field(repr=False)

    @property
    def needs_base(self) -> bool:
        """Whether its change depends on the weight that it is added to."""
        return self.kind in lora_kinds.NEED_BASE

    @property
    def is_measurable(self) -> bool:
        """Whether its change can be computed."""
        return self.kind not in lora_kinds.NOT_MEASURED

    def change(self, base: torch.Tensor | None = None) -> torch.Tensor:
        """Its change dW `[M, D]` float32 at scale 1, the rows those of `weights`, one below the other; kernels are flattened.

        `base` is the weight W0 `[M, D]` or `[M, C, k, k]`, its rows in the same order, for a kind that `needs_base`. Raises
        ConfigError without it, for a kind that is not measured, and for a change of another size than the weight's.
        """
        if not self.is_measurable:
            raise ConfigError(f"{self.name} is of the kind {self.kind}, whose change is not measured", FUSE)
        if self.needs_base and base is None:
            raise ConfigError(f"{self.name} is of the kind {self.kind}: its change depends on the base", "give the base's weight")
        start = None if base is None else self._turned(base.float().flatten(1))
        made = lora_kinds.change_of(self._plain_kind, self.tensors, self.scale, start)
        self.require_size(tuple(made.shape))
        magnitudes = lora_kinds.magnitudes_of(self.tensors)
        if magnitudes is not None and start is not None:
            made = lora_kinds.rescaled(start + made, magnitudes) - start
        return self._turned(made)

    def shift(self) -> torch.Tensor | None:
        """Its change of the bias `[M]` float32, which moves every output, whatever its input; None without one."""
        scales = {"bias": self.scale, "diff_b": 1.0}
        found = [scale * self.tensors[role].float().flatten() for role, scale in scales.items() if role in self.tensors]
        return self._turned(torch.stack(found).sum(0)) if found else None

    def require_size(self, found: tuple[int, ...]) -> None:
        """Raise ConfigError unless a change `[M, D]` is that of its weights."""
        if self.shape is not None and found != (size := (self.shape[0], prod(self.shape[1:]))):
            raise ConfigError(f"{self.name} changes a weight of {list(found)}, and the base has {list(size)} there", OTHER_BASE)

    def require_whole(self) -> None:
        """Raise ConfigError unless its tensors fit each other and its weights. Cost: their shapes."""
        if not self.is_measurable or (self.shape is None and self.needs_base):
            return
        size = (0, 0) if self.shape is None else (self.shape[0], prod(self.shape[1:]))
        found = lora_kinds.size_of(self._plain_kind, self.tensors, size)
        if found is None:
            raise ConfigError(f"the tensors of {self.name} do not fit each other", "save the LoRA again")
        self.require_size(found)

    def mapped(self, matrix: Matrix, *, drop_magnitudes: bool) -> dict[str, torch.Tensor]:
        """Its tensors, by their keys in a file, after the change became dW M; `matrix` is M `[D, D]`, or a number.

        The shift of a bias is left out. With `drop_magnitudes` a DoRA becomes what it is without them. Raises ConfigError if the
        result has no form, and for a matrix of another size. Cost: A M; for a LoKr, or a LoHa with a core, an SVD of dW.
        """
        kept = {role: tensor for role, tensor in self.tensors.items() if role not in lora_kinds.SHIFTS}
        if magnitudes := kept.keys() & set(_MAGNITUDES):
            if not drop_magnitudes:
                raise ConfigError(
                    f"{self.name} is a DoRA: its magnitudes rescale the weight itself, whatever its input",
                    "allow its magnitudes to be dropped, which leaves a plain LoRA",
                )
            kept = {role: tensor for role, tensor in kept.items() if role not in magnitudes}
        if self._plain_kind in ("lora", "full"):
            role = "down" if self._plain_kind == "lora" else "diff"
            kept[role] = self._times(kept[role], matrix)
            return {self.keys[role]: tensor for role, tensor in kept.items()}
        self.require_form()
        return self._as_plain_lora(kept, matrix)

    def require_form(self) -> None:
        """Raise ConfigError for a kind without magnitudes whose dW M has no form in a file."""
        if self._plain_kind not in ("lora", "full", "loha", "lokr"):
            raise ConfigError(
                f"{self.name} is of the kind {self.kind}, which acts on the weight itself, whatever its input", FUSE
            )

    def _as_plain_lora(self, tensors: lora_kinds.Tensors, matrix: Matrix) -> dict[str, torch.Tensor]:
        b, a = lora_kinds.factors_of(self._plain_kind, tensors, self.scale)
        b, a = lora_kinds.shortened(b, self._times(a, matrix))
        dtype = at_least_16_bits(next(tensor.dtype for role, tensor in tensors.items() if role != "alpha"))
        if self.shape is not None and len(self.shape) > 2:
            b, a = b[:, :, None, None], a.reshape(len(a), *self.shape[1:])
        a, b = a.to(dtype).contiguous(), b.to(dtype).contiguous()
        if "alpha" in tensors or "." not in self.name:
            rank = torch.tensor(float(len(a)), dtype=tensors["alpha"].dtype if "alpha" in tensors else torch.float32)
            return {f"{self.name}.lora_down.weight": a, f"{self.name}.lora_up.weight": b, f"{self.name}.alpha": rank}
        adapter = next(iter(self.keys.values())).removeprefix(f"{self.name}.").partition(".")[2]  # its name, where keys have it
        ending = f".{adapter}.weight" if adapter else ".weight"
        return {f"{self.name}.lora_A{ending}": a, f"{self.name}.lora_B{ending}": b}  # without an alpha it is the rank

    def _times(self, tensor: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """A tensor `[r, D]` or `[r, C, k, k]` times M, in float64, with its own shape and dtype."""
        flat = tensor.double().flatten(1)
        if isinstance(matrix, int | float):
            return self._kept(flat * matrix, tensor)
        size = flat.shape[1]
        if matrix.shape != (size, size):
            raise ConfigError(
                f"the input of {self.name} has {size} values, and its matrix the shape {list(matrix.shape)}",
                f"give a matrix of {size} x {size}",
            )
        return self._kept(flat @ torch.from_numpy(np.asarray(matrix, np.float64)), tensor)

    def _kept(self, values: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Values in the shape and dtype of a tensor. Raises ConfigError for values that are too large for the dtype."""
        made = values.reshape(before.shape).to(at_least_16_bits(before.dtype))
        if not made.isfinite().all():
            raise ConfigError(f"the result of {self.name} is too large for {made.dtype}", "save the LoRA in float32 first")
        return made

    @property
    def _plain_kind(self) -> str:
        """The kind without magnitudes."""
        return lora_kinds.kind_of(self.tensors) or self.kind

    def _turned(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.roll(len(rows) // 2, 0) if self.swapped else rows
