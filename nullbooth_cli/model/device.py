"""The device of a run, and the memory that is free on it."""

import psutil
import torch

from nullbooth_cli.errors import ResourceError


def pick_device(requested: str | None) -> torch.device:
    """The requested device; without a request CUDA if there is one, else the CPU. Raises ResourceError, naming the devices."""
    if requested is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
    try:
        device = torch.device(requested)
    except RuntimeError:
        device = torch.device("meta")  # which is never found
    named = f"{device.type}:{device.index or 0}" if device.type == "cuda" else device.type
    if named not in found:
        raise ResourceError(f"no such device: {requested}", f"set the device to one of: {', '.join(found)}")
    return device


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; for the CPU, those that the operating system calls available."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
