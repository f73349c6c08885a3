"""A denoiser of two attention blocks, small enough to read: two inputs, four projections each."""

import torch
from torch import nn


class Attention(nn.Module):
    """Two inputs, four projections: what matters of a cross-attention block."""

    def __init__(self, is_cross_attention: bool = True) -> None:
        super().__init__()
        self.is_cross_attention = is_cross_attention
        self.to_q, self.to_k, self.to_v = nn.Linear(4, 4), nn.Linear(6, 4), nn.Linear(6, 4)
        self.to_out = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.0)])
        self.calls = {"to_q": 1, "to_k": 1, "to_v": 1}

    def forward(self, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        inputs = {"to_q": hidden, "to_k": text, "to_v": text}
        out = torch.zeros(*hidden.shape[:2], 4)
        for name, times in self.calls.items():
            for _ in range(times):
                out = out + getattr(self, name)(inputs[name]).mean(1, keepdim=True)
        return self.to_out[0](out)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(False), Attention()


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = hidden + block.attn2(hidden, text)
        return hidden
