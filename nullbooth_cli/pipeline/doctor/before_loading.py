"""Checks of what a run finds before it starts: packages, config, prompts, device, and the store's place."""

import platform
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.formatting import counted, size
from nullbooth_cli.pipeline.doctor.examination import Examination

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAMED_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "zarr")
INSTALL = "pip install -c constraints.txt -e . in the folder of nullbooth, or pip install --upgrade nullbooth"


def packages(_: Examination) -> str:
    versions = _require(_requirements(""))
    named = ", ".join(f"{name} {versions[name]}" for name in NAMED_PACKAGES)
    return f"{counted(len(versions), 'package')} fit: Python {platform.python_version()}, {named}"


def _requirements(extra: str) -> "Iterator[Requirement]":
    """What nullbooth itself requires, or what one of its extras adds."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        lines = requires("nullbooth") or []
    except PackageNotFoundError:
        raise ConfigError("nullbooth itself is not installed, so nothing says what it requires", INSTALL) from None
    for requirement in map(Requirement, lines):
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        added = requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        if added and not always if extra else always:
            yield requirement


def _require(requirements: "Iterable[Requirement]") -> dict[str, str]:
    """The installed versions. Raises ConfigError naming every package that is missing or does not fit."""
    from importlib.metadata import PackageNotFoundError, version

    versions, wrong = {}, []
    for requirement in requirements:
        try:
            installed = versions[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed, nullbooth needs {requirement.specifier}")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} is installed, nullbooth needs {requirement.specifier}")
    if wrong:
        raise ConfigError("\n".join(wrong), INSTALL)
    return versions


def config(patient: Examination) -> str:
    patient.config, source, patient.prompts = patient.configure()
    return f"{source} is valid"


def prompts(patient: Examination) -> str:
    from nullbooth_cli.settings.knowledge import knowledge_prompts

    of_store, folder = bool(patient.prompts), patient.config.collect.images
    wanted = folder or patient.config.original_knowledge_prompts
    patient.prompts = patient.prompts or knowledge_prompts(patient.config)
    place = "the store" if of_store else wanted if isinstance(wanted, str) else "the config"
    return f"{counted(len(patient.prompts), 'captioned image' if folder else 'prompt')} in {place}"


def images(patient: Examination) -> str | None:
    from nullbooth_cli.settings.images import file_of, image_files, require_readable

    folder = patient.config.collect.images
    if folder is None:
        return None
    files = image_files(folder)
    width, height = require_readable([file_of(files, prompt) for prompt in patient.prompts])
    return f"all can be read, and are {width} x {height} pixels"


def heldout(patient: Examination) -> str | None:
    from nullbooth_cli.settings.knowledge import heldout_prompts, require_disjoint

    if patient.config.heldout_prompts is None:
        return None
    patient.heldout = heldout_prompts(patient.config)
    require_disjoint(patient.heldout, patient.prompts)
    return f"{counted(len(patient.heldout), 'prompt')}, none among those to keep"


def device(patient: Examination) -> str:
    from nullbooth_cli.model.device import free_memory, pick_device

    patient.device = pick_device(patient.device_name)
    return f"{patient.device}, {size(free_memory(patient.device))} of memory free"


def store(patient: Examination) -> str:
    from nullbooth_cli.store import Store, is_url, open_backing

    config = patient.config
    if is_url(config.store):
        _require(_requirements("remote"))
    patient.backing = open_backing(config.store, config.storage_options)
    patient.store = Store.open_if_there(config.store, config.storage_options)
    return f"{patient.backing.url} is {'not there yet, and can be made' if patient.store is None else 'a store of this format'}"


def write_access(patient: Examination) -> str:
    patient.backing.check_writable()
    return "something was written there and removed"


def lock(patient: Examination) -> str:
    patient.backing.check_free()
    return "nobody else writes there"


def stages(patient: Examination) -> str:
    from nullbooth_cli.pipeline.state import stage_states, units_text

    patient.states = stage_states(patient.config, patient.prompts, patient.store)
    return ", ".join(
        f"{stage} {found.state}" + (f" ({units_text(found)})" if found.state == "partial" else "")
        for stage, found in patient.states.items()
    )


def stale(patient: Examination) -> str:
    from nullbooth_cli.pipeline.state import reasons_text

    found = [f"{stage} is stale{reasons_text(state)}" for stage, state in patient.states.items() if state.state == "stale"]
    if found:
        raise StageError("\n".join(found), "run --force replaces what is stale; or name another store with -s")
    return "nothing was made with other settings or inputs"
