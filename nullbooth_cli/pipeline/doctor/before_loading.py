"""Checks before the model is loaded: packages, config, prompts, device, and the place of the store."""

import platform
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nullbooth_cli.errors import ConfigError, Rerun, StageError
from nullbooth_cli.formatting import counted, size
from nullbooth_cli.pipeline.doctor.examination import Caution, Examination

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAMED_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "zarr")
INSTALL = "pip install -U nullbooth; or, in a checkout, pip install -c constraints.txt -e ."


def packages(_: Examination) -> str:
    """Whether every package that nullbooth requires is installed, in a version that fits."""
    versions = _require(_requirements(""))
    named = ", ".join(f"{name} {versions[name]}" for name in NAMED_PACKAGES)
    return f"{counted(len(versions), 'package')} fit: Python {platform.python_version()}, {named}"


def _requirements(extra: str) -> "Iterator[Requirement]":
    """The requirements of nullbooth itself, or those that one of its extras adds."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        lines = requires("nullbooth") or []
    except PackageNotFoundError:
        raise ConfigError("the package nullbooth, whose requirements are checked, is not installed", INSTALL) from None
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
            wrong.append(f"{requirement.name} is not installed; nullbooth needs {requirement.specifier}")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} is installed; nullbooth needs {requirement.specifier}")
    if wrong:
        raise ConfigError("\n".join(wrong), INSTALL)
    return versions


def config(exam: Examination) -> str:
    """Whether the config is valid."""
    exam.config, source, exam.stored_prompts = exam.configure()
    return f"{source} is valid"


def prompts(exam: Examination) -> str:
    """Whether the prompts to preserve can be read."""
    from nullbooth_cli.settings.knowledge import knowledge_prompts

    folder = exam.config.collect.images
    wanted = folder or exam.config.original_knowledge_prompts
    exam.prompts = knowledge_prompts(exam.config) if exam.stored_prompts is None else exam.stored_prompts
    place = "the store" if exam.stored_prompts is not None else wanted if isinstance(wanted, str) else "the config"
    return f"{counted(len(exam.prompts), 'captioned image' if folder else 'prompt')} in {place}"


def images(exam: Examination) -> str | None:
    """Whether all images can be read, and are of one size. Cost: decodes each."""
    from nullbooth_cli.settings.images import file_of, image_files, require_readable

    folder = exam.config.collect.images
    if folder is None:
        return None
    files = image_files(folder)
    width, height = require_readable([file_of(files, prompt) for prompt in exam.prompts])
    return f"all can be read, and are {width} x {height} pixels"


def heldout(exam: Examination) -> str | None:
    """Whether the held-out prompts can be read, and none is preserved as well."""
    from nullbooth_cli.settings.knowledge import heldout_prompts, require_disjoint

    if exam.config.heldout_prompts is None:
        return None
    exam.heldout = heldout_prompts(exam.config)
    require_disjoint(exam.heldout, exam.prompts)
    return f"{counted(len(exam.heldout), 'prompt')}, none of them preserved"


def device(exam: Examination) -> str:
    """Whether the device is there."""
    from nullbooth_cli.model.device import free_memory, pick_device

    exam.device = pick_device(exam.device_name)
    return f"{exam.device}, {size(free_memory(exam.device))} of memory free"


def store(exam: Examination) -> str:
    """Whether the place of the store is a store of this format, or empty."""
    from nullbooth_cli.store import Store, is_url, open_backing

    config = exam.config
    if is_url(config.store):
        _require(_requirements("remote"))
    exam.backing = open_backing(config.store, config.storage_options)
    exam.store = Store.open_if_there(config.store, config.storage_options)
    return f"{exam.backing.url} is {'not there yet, and can be made' if exam.store is None else 'a store of this format'}"


def write_access(exam: Examination) -> str:
    """Whether something can be written there; it is removed again."""
    exam.backing.check_writable()
    return "a file was written there and removed"


def lock(exam: Examination) -> str:
    """Whether another process holds the lock of the store."""
    exam.backing.check_free()
    return "no other process writes there"


def tasks(exam: Examination) -> str | Caution | None:
    """Whether the tasks that the store remembers can be read, and none is unfinished. Cost: one read of all of them."""
    from nullbooth_cli.store import leftovers, listed_tasks
    from nullbooth_cli.store.verify import require_tasks_whole

    if exam.store is None:
        return None
    require_tasks_whole(exam.store)
    if left := leftovers(exam.store):
        return Caution(f"{', '.join(left)} was not finished", "remember it again to resume, or forget it")
    names = [entry.name for entry in listed_tasks(exam.store)]
    return f"{', '.join(names)}: all can be read" if names else None


def stages(exam: Examination) -> str:
    """How far each stage is. Cost: one read of every progress cell."""
    from nullbooth_cli.pipeline.state import stage_states, units_text

    exam.states = stage_states(exam.config, exam.prompts, exam.store)
    return ", ".join(
        f"{stage} {found.state}" + (f" ({units_text(found)})" if found.state == "partial" else "")
        for stage, found in exam.states.items()
    )


def stale(exam: Examination) -> str:
    """Whether a stage was made with other settings or inputs."""
    from nullbooth_cli.pipeline.state import reasons_text

    found = [f"{stage} is stale{reasons_text(state)}" for stage, state in exam.states.items() if state.state == "stale"]
    if found:
        stage = next(stage for stage, state in exam.states.items() if state.state == "stale")
        raise StageError("\n".join(found), Rerun(stage, force=True, otherwise=", or set store to another place"))
    return "no stage was made with other settings or inputs"
