"""Tiny CLIP, DINO and LPIPS, where `evaluate` looks for their weights."""

from pathlib import Path

import pytest
import torch
from transformers import BitImageProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from nullbooth_cli.evaluation.encoders import ALEXNET
from tests.support import tiny


def save_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny random CLIP and DINO, and a stand-in for the package lpips that gives the mean absolute difference in [-1, 1]."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=12)
    ).save_pretrained(tmp_path / "clip")
    tiny.clip_tokenizer().save_pretrained(tmp_path / "clip")
    Dinov2Model(Dinov2Config(**{**small, "image_size": 28})).save_pretrained(tmp_path / "dino")
    for kind, name, side in ((CLIPImageProcessor, "clip", 32), (BitImageProcessor, "dino", 28)):
        kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(tmp_path / name)
    (tmp_path / "lpips.py").write_text(
        "import torch\n\nclass LPIPS(torch.nn.Module):\n    def __init__(self, net, verbose):\n        super().__init__()\n"
        "    def forward(self, x, y):\n        assert x.min() >= -1 and x.max() <= 1\n"
        "        return (x - y).abs().mean((1, 2, 3), keepdim=True)\n"
    )
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints" / ALEXNET).write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path
