"""What one module of a LoRA file does to its weight, for each kind of file: the change dW `[M, D]`, from its tensors.

    lora     lora_up lora_down, with lora_mid between them for a core (Tucker)
    loha     (w1_a w1_b) * (w2_a w2_b), entry by entry        (LyCORIS and PEFT; arXiv 2108.06098)
    lokr     the Kronecker product of w1 and w2, each whole or of two factors (arXiv 2309.14859)
    full     the change itself (`.diff`)
    glora    W0 a1 a2 + b1 b2, and ia3: the rows or columns of W0 times a factor (both in LyCORIS's forms)

A module with magnitudes is a `dora` (arXiv 2402.09353), whatever it is without them: every row of W0 + dW, or every column in
earlier files of LyCORIS, is rescaled to a length of its own. A convolution's weight `[M, C, k, k]` is taken as `[M, C k k]`.
OFT and BOFT rotate W0, and norms and a bias alone have no input side: these are recognized, and not measured.
"""

import re
from collections.abc import Mapping

import torch

from nullbooth_cli.model.adapter_files import pair_name

Tensors = Mapping[str, torch.Tensor]
NEED_BASE = ("dora", "glora", "ia3")
NOT_MEASURED = ("oft", "boft", "norm", "bias")
SHIFTS = ("bias", "diff_b")  # roles: times alpha over rank, as PEFT adds it, and as it is
# Roles of tensors, by the ends of their names.
_ROLES = (
    ("mid", r"lora_mid\.weight"),
    ("magnitude", r"lora_magnitude_vector(\.weight)?"),
    ("bias", r"lora_B\.bias"),
    ("same", r"alpha|dora_scale|diff(_b)?|hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)|on_input|oft_(blocks|diag)|[wb]_norm"),
    ("glora", r"[ab][12](?=\.weight)"),
    ("oft", r"oft_[rR](\.weight)?"),
    ("boft", r"boft_[RSrs](\.weight)?"),
    ("factor", r"weight"),
)
_KEY = re.compile(rf"(?P<module>.+?)\.(?:{'|'.join(f'(?P<{role}>{ends})' for role, ends in _ROLES)})(?:(?<=[ab][12])\.weight)?")
_ADAPTER = re.compile(  # its name in PEFT's own state dict, which save_pretrained leaves out
    r"(?<=\.)((?:lora_(?:A|B|magnitude_vector)|(?:hada|lokr|oft|boft)_\w+))\.(?!(?:weight|bias)$)[^.]+(?=$|\.(?:weight|bias)$)"
)
# Kinds, by the roles that they need: one of each group.
_KINDS = {
    "lora": (("down",), ("up",)),
    "full": (("diff",),),
    "loha": (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
    "lokr": (("lokr_w1", "lokr_w1_a"), ("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a"), ("lokr_w2", "lokr_w2_b")),
    "glora": (("a1",), ("a2",), ("b1",), ("b2",)),
    "ia3": (("factor",), ("on_input",)),
    "oft": (("oft", "oft_blocks", "oft_diag"),),
    "boft": (("boft",),),
    "norm": (("w_norm",),),
    "bias": (("diff_b",),),
}


def split_key(key: str) -> tuple[str, str] | None:
    """The module that a tensor's name in a file belongs to, and its role there (`down`, `up`, `alpha`, ...); None if unknown."""
    key = _ADAPTER.sub(r"\1", key)
    if pair := pair_name(key):
        return pair.layer, "down" if pair.down else "up"
    if not (found := _KEY.fullmatch(key)):
        return None
    role = next(role for role, _ in _ROLES if found[role])
    return found["module"], found[role] if role in ("same", "glora") else role


def kind_of(tensors: Tensors) -> str | None:
    """The kind that the tensors of a module, by role, are without magnitudes; None if they are no whole one."""
    kinds = [kind for kind, needs in _KINDS.items() if all(any(role in tensors for role in each) for each in needs)]
    if not kinds:
        return None
    return "norm" if kinds[0] == "full" and tensors["diff"].ndim == 1 else kinds[0]


def rank_of(kind: str, tensors: Tensors) -> int | None:
    """The rank by which alpha is divided; None where alpha means nothing."""
    roles = {"lora": ("down",), "loha": ("hada_w1_b",), "lokr": ("lokr_w1_b", "lokr_w2_b"), "glora": ("a2",)}
    found = [tensors[role] for role in roles.get(kind, ()) if role in tensors]
    return len(found[0]) if found and found[0].ndim else None


def size_of(kind: str, tensors: Tensors, base: tuple[int, int]) -> tuple[int, int] | None:
    """The size `[M, D]` of the change of a module, from shapes alone; None for tensors that do not fit each other.

    `base` is the size of W0, for kinds and magnitudes that rescale it.
    """
    of = {role: tensor if role == "on_input" else tensor.to("meta") for role, tensor in tensors.items()}
    w0 = torch.empty(base, device="meta")
    try:
        made = change_of(kind, of, 1.0, w0)
        if (magnitudes := magnitudes_of(of)) is not None:
            rescaled(w0 + made, magnitudes)
    except (IndexError, RuntimeError, ZeroDivisionError):
        return None
    m, d = made.shape
    return (m, d) if all(of[role].numel() == m for role in SHIFTS if role in of) else None


def change_of(kind: str, tensors: Tensors, scale: float, base: torch.Tensor | None = None) -> torch.Tensor:
    """The change that a module makes without magnitudes, `[M, D]` float32; `base` is W0 `[M, D]`, for kinds that need it."""
    of = {role: tensor.float() for role, tensor in tensors.items()}
    if kind == "lora":
        if "mid" in of:
            return scale * torch.einsum("mo,oi...,ic->mc...", of["up"].flatten(1), of["mid"], of["down"].flatten(1)).flatten(1)
        return scale * (of["up"].flatten(1) @ of["down"].flatten(1))
    if kind == "full":
        return of["diff"].flatten(1)
    if kind == "loha":
        first, second = (_product(of.get(f"hada_t{i}"), of[f"hada_w{i}_a"], of[f"hada_w{i}_b"]) for i in (1, 2))
        return scale * (first * second).flatten(1)
    if kind == "lokr":
        first, second = (of[f"lokr_w{i}"] if f"lokr_w{i}" in of else _lokr_half(of, i) for i in (1, 2))
        first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
        return scale * torch.kron(first, second.contiguous()).flatten(1)
    assert base is not None
    if kind == "ia3":
        factor = of["factor"].flatten()
        return base * factor.repeat_interleave(base.shape[1] // len(factor)) if bool(of["on_input"]) else base * factor[:, None]
    a1, a2, b1, b2 = (of[role].flatten(1) for role in ("a1", "a2", "b1", "b2"))
    through = base.reshape(len(base), len(a1), -1)  # [M, C, k k]
    return scale * (b1 @ b2 + torch.einsum("mck,cr,rd->mdk", through, a1, a2).flatten(1))


def magnitudes_of(tensors: Tensors) -> torch.Tensor | None:
    """The magnitudes of a DoRA, `[M, 1]` for its rows or `[1, C]` for its columns; None for another module."""
    if (of_peft := tensors.get("magnitude")) is not None:
        return of_peft.float().reshape(-1, 1)
    of_lycoris = tensors.get("dora_scale")
    return of_lycoris if of_lycoris is None else of_lycoris.float().reshape(of_lycoris.shape[0], -1)


def rescaled(weight: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """`weight`, the W0 + dW of a DoRA `[M, D]`, with rows `[M, 1]` or columns `[1, C]` as long as its magnitudes."""
    by_channel = weight.reshape(len(weight), magnitudes.shape[1], -1)
    norms = by_channel.square().sum((1, 2) if len(magnitudes) > 1 else (0, 2)).sqrt()
    return (by_channel * (magnitudes / norms.reshape(magnitudes.shape))[:, :, None]).reshape(weight.shape)


def factors_of(kind: str, tensors: Tensors, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """B `[M, r]` and A `[r, D]` in float64, whose product is the change of a loha or lokr. r is that of its plain LoRA.

    A loha of matrices has r = rank^2, exactly: the Khatri-Rao products of its factors. Anything else is taken apart by an SVD.
    """
    if kind == "loha" and "hada_t1" not in tensors:
        of = {role: tensor.double().flatten(1) for role, tensor in tensors.items() if role.startswith("hada")}
        b = torch.einsum("mi,mj->mij", of["hada_w1_a"], of["hada_w2_a"]).flatten(1)
        a = torch.einsum("id,jd->ijd", of["hada_w1_b"], of["hada_w2_b"]).flatten(0, 1)
        return scale * b, a
    u, s, v = torch.linalg.svd(change_of(kind, tensors, scale).double(), full_matrices=False)
    return u * s, v


def shortened(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product B A from as few columns of B and rows of A as it takes, within the rounding of float32."""
    (qb, rb), (qa, ra) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(rb @ ra.T)
    rank = max(int((s > torch.finfo(torch.float32).eps * s[0]).sum()), 1)
    root = s[:rank].sqrt()
    return qb @ u[:, :rank] * root, root[:, None] * (v[:rank] @ qa.T)


def _product(core: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b, or with a core the weight of a convolution `[M, C, k, k]`, whose a is `[r, M]` then."""
    return a @ b.flatten(1) if core is None else torch.einsum("ij...,im,jc->mc...", core, a, b)


def _lokr_half(of: Mapping[str, torch.Tensor], half: int) -> torch.Tensor:
    a, b = of[f"lokr_w{half}_a"], of[f"lokr_w{half}_b"]
    made = _product(of.get("lokr_t2") if half == 2 else None, a, b)
    return made if made.ndim > 2 else made.reshape(len(made), *b.shape[1:])
