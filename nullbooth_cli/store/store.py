"""What a store holds: schedule, prompts, features and the records of the stages; `results` has what is made of them."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zarr

from nullbooth_cli.datatypes import HELDOUT, Prompt, Site, Step
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.attention_maps import AttentionMapArrays
from nullbooth_cli.store.backing import Backing
from nullbooth_cli.store.cells import ProgressCells
from nullbooth_cli.store.feature_arrays import FeatureArrays
from nullbooth_cli.store.heartbeats import HeartbeatNotes
from nullbooth_cli.store.layout import Layout, covariance_units
from nullbooth_cli.store.locks import locked
from nullbooth_cli.store.moment_arrays import MomentArrays
from nullbooth_cli.store.open_backing import open_backing
from nullbooth_cli.store.projector_arrays import ProjectorArrays

FORMAT = "nullbooth"
FORMAT_VERSION = 4
PACKAGES = ("nullbooth", "torch", "diffusers", "transformers", "zarr", "numpy")
RELEASED = 2  # in a cell of collect: done, but the features were removed


class Store:
    """An open store. `Store.create` and `Store.open` make one; `lock()` guards every stage that writes.

    `arrays` is the Zarr group; `progress`, `features`, `moments`, `projectors`, `attention` and `heartbeats` know what is in it.
    """

    def __init__(self, group: zarr.Group, backing: Backing) -> None:
        self.url = backing.url
        self.arrays = ArrayGroup(group, backing)
        self.progress = ProgressCells(self.arrays)
        self.features = FeatureArrays(self.arrays, self.members)
        self.moments = MomentArrays(self.arrays)
        self.projectors = ProjectorArrays(self.arrays)
        self.attention = AttentionMapArrays(self.arrays)
        self.heartbeats = HeartbeatNotes(self.arrays)
        self._rows: tuple[Prompt | None, ...] | None = None

    @classmethod
    def create(cls, place: str | Path, config: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> "Store":
        """Make an empty store. Raises StoreError if something else is there."""
        return cls._make(open_backing(place, options), config)

    @classmethod
    def _make(cls, backing: Backing, config: Mapping[str, Any]) -> "Store":
        cls._require_empty(backing)
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": dict(config),
            "packages": {name: version(name) for name in PACKAGES},
            "records": {},
            "sites": [],
        }
        try:
            group = zarr.create_group(backing.zarr, attributes=attributes)
        except OSError as error:
            raise backing.failure(error) from error
        return cls(group, backing)

    @staticmethod
    def _require_empty(backing: Backing) -> None:
        if backing.is_foreign():
            raise StoreError(
                f"{backing.url} exists and is not a nullbooth store", "name another place with -s; nothing was changed"
            )

    @classmethod
    def open_if_there(cls, place: str | Path, options: Mapping[str, Any] | None = None) -> "Store | None":
        """The store at a place, None where one can be made. Raises StoreError as `open` and `create` do; writes nothing."""
        if cls.exists(place, options):
            return cls.open(place, options=options)
        cls._require_empty(open_backing(place, options, read_only=True))
        return None

    @classmethod
    def open(cls, place: str | Path, *, write: bool = False, options: Mapping[str, Any] | None = None) -> "Store":
        """Open an existing store. Raises StoreError if there is none, or it is foreign or of a newer format."""
        return cls._found(open_backing(place, options, read_only=not write), write=write)

    @classmethod
    def _found(cls, backing: Backing, *, write: bool) -> "Store":
        place = backing.url
        if not backing.exists():
            raise StoreError(f"no store at {place}", "nullbooth collect makes one, from a config (-c)")
        try:
            group = zarr.open_group(backing.zarr, mode="r+" if write else "r", use_consolidated=False, zarr_format=3)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{place} is not a Zarr v3 group", "a store is the folder that nullbooth collect made") from error
        if group.attrs.get("format") != FORMAT:
            raise StoreError(
                f"{place} is a Zarr group, but not a nullbooth store", "name another place with -s; nothing was changed"
            )
        found = group.attrs.get("format_version")
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise StoreError(
                f"{place} has store format {found}; this nullbooth reads {FORMAT_VERSION}",
                "pip install --upgrade nullbooth",
            )
        if found < FORMAT_VERSION:
            raise StoreError(
                f"{place} has store format {found}, of an earlier nullbooth; this one reads {FORMAT_VERSION}",
                "collect into another place with -s, or remove it",
            )
        return cls(group, backing)

    @staticmethod
    def exists(place: str | Path, options: Mapping[str, Any] | None = None) -> bool:
        return open_backing(place, options, read_only=True).get("zarr.json") is not None

    @classmethod
    def open_or_create(cls, place: str | Path, config: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> "Store":
        """The store at a place, open for writing; an empty one with this config if there is none."""
        return cls.open(place, write=True, options=options) if cls.exists(place, options) else cls.create(place, config, options)

    @property
    def path(self) -> Path:
        """The folder of a local store."""
        return Path(self.url)

    def reload(self) -> None:
        """Forget what was read of attributes, shapes and rows: another process may have changed them."""
        self.arrays.reload()
        self._rows = None

    def delete(self, name: str) -> None:
        """Remove an array or a group and all below it, if it is there."""
        self.arrays.delete(name)

    def nbytes(self, name: str) -> int:
        """Bytes on disk below a group of the store."""
        return self.arrays.nbytes(name)

    def heldout(self, *, write: bool = False) -> "Store | None":
        """The store of the held-out prompts inside this one, where nothing can mix them up; None if there is none."""
        backing = self.arrays.backing.inside(HELDOUT, read_only=not write)
        return self._found(backing, write=write) if backing.get("zarr.json") is not None else None

    def heldout_or_create(self, config: Mapping[str, Any]) -> "Store":
        """The same, open for writing; an empty one with this config if there is none."""
        return self.heldout(write=True) or self._make(self.arrays.backing.inside(HELDOUT), config)

    def free_nbytes(self) -> int | None:
        return self.arrays.backing.free_nbytes()

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the store alone for writing. Raises StoreError naming the holder; a killed holder leaves nothing behind."""
        return locked(self.arrays.backing)

    # Attributes: config, records, sites

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.arrays.attribute("config"))

    @property
    def packages(self) -> dict[str, str]:
        """The versions of the packages that made this store."""
        return dict(self.arrays.attribute("packages"))

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """What each stage that was begun depended on: {stage: {settings, upstream, fingerprint}}."""
        return dict(self.arrays.attribute("records"))

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(**{**site, "weights": tuple(site["weights"])}) for site in self.arrays.attribute("sites"))

    def write_config(self, config: Mapping[str, Any]) -> None:
        self.arrays.update_attributes(config=dict(config))

    def write_record(self, stage: str, record: Mapping[str, Any] | None) -> None:
        records = {name: value for name, value in self.records.items() if name != stage}
        self.arrays.update_attributes(records=records if record is None else {**records, stage: dict(record)})

    # Schedule and prompts

    def write_schedule(self, steps: tuple[Step, ...]) -> None:
        self.delete("schedule")
        self.arrays.write_vector("schedule/timesteps", [step.timestep for step in steps])
        self.arrays.write_vector("schedule/sigmas", [step.sigma for step in steps])
        self.arrays.write_texts("schedule/keys", 0, [step.key for step in steps])
        self.arrays.backing.sync()

    @property
    def num_steps(self) -> int:
        """How many steps the schedule has."""
        return int(self.arrays.array("schedule/timesteps").shape[0])

    def schedule(self) -> tuple[Step, ...]:
        columns = zip(
            self.arrays.read_texts("schedule/keys"),
            self.arrays.read_vector("schedule/timesteps"),
            self.arrays.read_vector("schedule/sigmas"),
            strict=True,
        )
        return tuple(Step(i, key, float(t), float(s)) for i, (key, t, s) in enumerate(columns))

    @property
    def rows(self) -> tuple[Prompt | None, ...]:
        """The prompt in each row of the features; None where one was taken out, or where a unit was filled up.

        A prompt keeps its row, and with it the noise it starts from, whatever is added or taken out later.
        """
        if self._rows is None:
            names = ("prompts/text", "prompts/images")
            texts, images = map(self.arrays.read_texts, names) if self.arrays.has(names[0]) else ([], [])
            # A kill may have left images behind the last text.
            self._rows = tuple(Prompt(text, image or None) if text else None for text, image in zip(texts, images, strict=False))
        return self._rows

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the collection, in its order; none before a collection was begun."""
        return tuple(prompt for prompt in self.rows if prompt is not None)

    def write_rows(self, start: int, rows: Sequence[Prompt | None]) -> None:
        """Put prompts into rows from `start`; the text is written last."""
        self.arrays.write_texts("prompts/ids", start, [prompt.id if prompt else "" for prompt in rows])
        self.arrays.write_texts("prompts/images", start, [(prompt.image if prompt else None) or "" for prompt in rows])
        self.arrays.write_texts("prompts/text", start, [prompt.text if prompt else "" for prompt in rows])
        self.arrays.backing.sync()
        self._rows = None

    # Collection: layout, features, parts

    @property
    def layout(self) -> Layout:
        """How the collection is kept, once it was begun."""
        return Layout(**self.records["collect"]["layout"])

    def create_collection(self, sites: tuple[Site, ...], num_steps: int, num_rows: int, layout: Layout) -> None:
        """Empty what was collected, and make room for this many rows."""
        for name in ("parts", "prompts"):
            self.arrays.delete(name)
        self._rows = None
        self.features.create(sites, num_steps, num_rows, layout)
        self.arrays.update_attributes(sites=[asdict(site) for site in sites])
        self.progress.create("collect", layout.num_units(num_rows))

    def extend_collection(self, num_rows: int) -> None:
        """Make room for more rows."""
        layout = self.layout
        if layout.features:
            self.features.extend(self.sites, num_rows)
        self.progress.extend("collect", layout.num_units(num_rows))

    def create_moments(self, sites: tuple[Site, ...], num_steps: int, layout: Layout) -> None:
        """Empty the moments, and make room for those of every site and timestep."""
        self.moments.create(sites, num_steps, layout)
        self.progress.create("covariance", len(covariance_units(sites, num_steps, layout)))

    def create_projectors(self, sites: tuple[Site, ...], num_decompositions: Mapping[str, int]) -> None:
        """Empty the projectors, and make room for this many decompositions of each site, by its name."""
        self.projectors.create(sites, num_decompositions)
        self.progress.create("decomposition", sum(num_decompositions[site.name] for site in sites))

    def members(self, unit: int) -> list[tuple[int, Prompt]]:
        """(row, prompt) of each prompt in a unit."""
        batch = self.layout.batch_size
        rows = self.rows[unit * batch : (unit + 1) * batch]
        return [(unit * batch + i, prompt) for i, prompt in enumerate(rows) if prompt is not None]

    def blocks(self, site: Site) -> list[range]:
        """The recorded timesteps of a site that share a chunk."""
        return self.layout.blocks(site, self.num_steps)

    def release_features(self, units: Sequence[int]) -> None:
        """Remove the chunks of units; the cells say so first, so that a kill leaves nothing that looks whole."""
        self.progress.mark("collect", units, RELEASED)
        for site in self.sites:
            for number in range(len(self.blocks(site))):
                self.features.remove(site, number, units)
