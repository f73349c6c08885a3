"""Loading a model by any of its names, and the errors of it."""

from typing import Any

import pytest
import torch

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.model import load as load_module

HUB = "owner/name"


def load(name: Any, **settings: Any) -> Any:
    settings = {"revision": None, "variant": None, "dtype": "float32", "local_files_only": True, **settings}
    return load_module.load_pipeline(str(name), device=torch.device("cpu"), **settings)


def refused(name: Any, *words: str, kind: type[Exception] = ConfigError, **settings: Any) -> None:
    with pytest.raises(kind) as caught:
        load(name, **settings)
    assert isinstance(caught.value, ConfigError | ResourceError)
    said = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.hint
    for word in words:
        assert word in said, said


def use_loaded(pipe: Any, patched: pytest.MonkeyPatch) -> None:
    """Let runs in this process use a model that is loaded already, each with the scheduler that it ships with."""
    shipped = pipe.scheduler

    def load_again(*_: Any, **__: Any) -> Any:
        pipe.scheduler = shipped
        return pipe

    patched.setattr(load_module, "load_pipeline", load_again)
