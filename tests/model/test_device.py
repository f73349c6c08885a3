"""Devices by name."""

import pytest
import torch

from nullbooth_cli.errors import ResourceError
from nullbooth_cli.model import device


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name, found in (("cuda:1", "cuda:1"), ("cuda", "cuda"), ("mps", "mps"), ("cpu", "cpu")):
        assert str(device.pick_device(name)) == found
    for name in ("cuda:2", "gpu", "cuda:x", ""):
        with pytest.raises(ResourceError, match=f"no such device: {name}") as caught:
            device.pick_device(name)
        assert caught.value.hint == "set the device to one of: cpu, cuda:0, cuda:1, mps"
