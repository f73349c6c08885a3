"""The projectors of a store that a model may use, and their origin."""

from collections.abc import Mapping
from typing import Any, Literal

from nullbooth_cli.datatypes import Site, denoiser_of_weight
from nullbooth_cli.errors import ConfigError, Rerun
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.store import Store, tasks_of

ChainPart = Literal["ends", "before the end", "all"]  # of the models of a chain


def load_projector(store: Store, site: Site, index: int = 0) -> Projector:
    """The projector of a site; `index` is 0 if projectors are pooled, else the recorded timestep. Cost: 8 D^2 bytes read."""
    return Projector.of(store.projectors.read_eigenvectors(site, index), store.projectors.read_cut(site, index).null_dim)


def usable_projectors(store: Store, tensors: Mapping[str, Any] | None = None) -> dict[str, Projector]:
    """The projector of each weight that a store protects, by the weight's name: for edits and training.

    `tensors`, the weights of a model by name (its `state_dict()`), are compared with those that the prompts were run through;
    the projectors are then those of the denoisers that `tensors` has weights of.
    Raises ConfigError for per-timestep projectors, and for another model, naming the differences. Cost: one read of the
    eigenvectors, and of the weights.
    """
    require_pooled(store)
    if tensors is not None:
        check_model(store, tensors)
    found: dict[str, Projector] = {}
    for site in store.sites:
        if tensors is not None and denoiser_of_weight(site.weights[0]) not in _denoisers(tensors):
            continue
        found |= dict.fromkeys(site.weights, load_projector(store, site))
    return found


def require_pooled(store: Store) -> None:
    """Raise ConfigError for per-timestep projectors, which serve analysis only. `project` must be complete."""
    if store.records["project"]["settings"]["project.scope"] == "timestep":
        raise ConfigError(
            "per-timestep projectors cannot constrain a weight: it is the same at every timestep, and each of them protects one",
            Rerun("project", force=True, store=store.url, settings=("project.scope=pooled",)),
        )


def check_model(store: Store, tensors: Mapping[str, Any], *, among: ChainPart = "ends") -> None:
    """Raise ConfigError if a model lacks a weight that a store protects, or has another value there.

    The model is one of the chain: that which was collected from, and that after each task that the store remembers. Of these the
    `ends` are accepted, all `before the end`, or `all`.

    `tensors` are the model's weights, by the names of its `state_dict()`; those of a second denoiser begin with its prefix. A
    denoiser without any weight in it is not compared.
    The model may have a higher precision than the one that was collected from: its weights are then rounded first. Adapters of
    PEFT that are loaded and not fused change no base weight.
    """
    from nullbooth_cli.tensors import plain_name, tensor_digest  # imports torch, which reading projectors does without

    recorded = store.records["collect"].get("tensors")
    if not recorded:
        raise ConfigError(
            f"{store.url} does not record which weights it was made from: it was imported, or made by an earlier nullbooth",
            "collect again, or ask for the projectors without a model, at your own risk",
        )
    dtype = store.config["dtype"]
    tensors = {plain_name(name): tensor for name, tensor in tensors.items()}
    named = store.records["collect"]["model"]["model"]
    recorded = {name: digest for name, digest in recorded.items() if denoiser_of_weight(name) in _denoisers(tensors)}
    found = {name: tensor_digest(tensors[name], dtype) for name in recorded if name in tensors}
    tasks = tasks_of(store)
    chain = [recorded, *({**recorded, **task.weights} for task in tasks)]
    accepted = {"ends": (chain[0], chain[-1]), "before the end": chain[:-1], "all": chain}[among]
    if any(found == {name: link[name] for name in recorded} for link in accepted):
        return
    missing = [name for name in recorded if name not in found]
    changed = [name for name in found if found[name] != chain[-1][name]]
    differences = [
        f"{len(names)} weights {problem}, such as {names[0]}"
        for names, problem in ((missing, "are missing"), (changed, "differ"))
        if names
    ]
    chained = f"{named}, run in {dtype}" + (f", after {', '.join(task.name for task in tasks)}" if tasks else "")
    raise ConfigError(
        f"these projectors belong to another model than the one at hand ({chained}): " + "; ".join(differences),
        "load the model that was collected from, without any training"
        + (", or the one after the last task" if tasks else "")
        + "; or collect from this one",
    )


def _denoisers(tensors: Mapping[str, Any]) -> set[str]:
    """The prefixes of the denoisers that weights belong to; the main one's if there are none."""
    return {denoiser_of_weight(name) for name in tensors} or {""}


def provenance(store: Store) -> dict[str, Any]:
    """The origin of a store's projectors, as a JSON document: model, weights, prompts, schedule, settings, package versions."""
    records, config, heldout = store.records, store.config, store.heldout()
    tasks = [
        {"name": task.name, "kind": task.kind, "weight": task.weight, "source": task.source, "prompts": len(task.store.prompts())}
        for task in tasks_of(store)
    ]
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
        **({"tasks": tasks} if tasks else {}),
    }
