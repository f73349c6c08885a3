"""What a store holds: schedule, prompts, features and the records of the stages; `results` has what is made of them."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from nullbooth_cli.datatypes import HELDOUT, Prompt, Site, Step
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.attention_maps import AttentionMapStore
from nullbooth_cli.store.backing import Backing
from nullbooth_cli.store.heartbeats import HeartbeatStore
from nullbooth_cli.store.layout import STORED_DTYPES, Layout
from nullbooth_cli.store.locks import locked
from nullbooth_cli.store.open_backing import open_backing
from nullbooth_cli.store.partial_sums import PartialSums
from nullbooth_cli.store.results import Results

FORMAT = "nullbooth"
FORMAT_VERSION = 4
PACKAGES = ("nullbooth", "torch", "diffusers", "transformers", "zarr", "numpy")
RELEASED = 2  # in a cell of collect: done, but the features were removed


class Store(Results, AttentionMapStore, HeartbeatStore):
    """An open store. `Store.create` and `Store.open` make one; `lock()` guards every stage that writes."""

    _rows: tuple[Prompt | None, ...] | None = None

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
        super().reload()
        self._rows = None

    def heldout(self, *, write: bool = False) -> "Store | None":
        """The store of the held-out prompts inside this one, where nothing can mix them up; None if there is none."""
        backing = self._backing.inside(HELDOUT, read_only=not write)
        return self._found(backing, write=write) if backing.get("zarr.json") is not None else None

    def heldout_or_create(self, config: Mapping[str, Any]) -> "Store":
        """The same, open for writing; an empty one with this config if there is none."""
        return self.heldout(write=True) or self._make(self._backing.inside(HELDOUT), config)

    def free_nbytes(self) -> int | None:
        return self._backing.free_nbytes()

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the store alone for writing. Raises StoreError naming the holder; a killed holder leaves nothing behind."""
        return locked(self._backing)

    # Attributes: config, records, sites

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._attribute("config"))

    @property
    def packages(self) -> dict[str, str]:
        """The versions of the packages that made this store."""
        return dict(self._attribute("packages"))

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """What each stage that was begun depended on: {stage: {settings, upstream, fingerprint}}."""
        return dict(self._attribute("records"))

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(**{**site, "weights": tuple(site["weights"])}) for site in self._attribute("sites"))

    def write_config(self, config: Mapping[str, Any]) -> None:
        self._update(config=dict(config))

    def write_record(self, stage: str, record: Mapping[str, Any] | None) -> None:
        records = {name: value for name, value in self.records.items() if name != stage}
        self._update(records=records if record is None else {**records, stage: dict(record)})

    # Schedule and prompts

    def write_schedule(self, steps: tuple[Step, ...]) -> None:
        self.delete("schedule")
        self._write_vector("schedule/timesteps", [step.timestep for step in steps])
        self._write_vector("schedule/sigmas", [step.sigma for step in steps])
        self._write_texts("schedule/keys", 0, [step.key for step in steps])
        self._backing.sync()

    @property
    def num_steps(self) -> int:
        """How many steps the schedule has."""
        return int(self._array("schedule/timesteps").shape[0])

    def schedule(self) -> tuple[Step, ...]:
        columns = zip(
            self._read_texts("schedule/keys"),
            self._read_vector("schedule/timesteps"),
            self._read_vector("schedule/sigmas"),
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
            texts, images = map(self._read_texts, names) if self._has(names[0]) else ([], [])
            # A kill may have left images behind the last text.
            self._rows = tuple(Prompt(text, image or None) if text else None for text, image in zip(texts, images, strict=False))
        return self._rows

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the collection, in its order; none before a collection was begun."""
        return tuple(prompt for prompt in self.rows if prompt is not None)

    def write_rows(self, start: int, rows: Sequence[Prompt | None]) -> None:
        """Put prompts into rows from `start`; the text is written last."""
        self._write_texts("prompts/ids", start, [prompt.id if prompt else "" for prompt in rows])
        self._write_texts("prompts/images", start, [(prompt.image if prompt else None) or "" for prompt in rows])
        self._write_texts("prompts/text", start, [prompt.text if prompt else "" for prompt in rows])
        self._backing.sync()
        self._rows = None

    # Collection: layout, features, parts

    @property
    def layout(self) -> Layout:
        """How the collection is kept, once it was begun."""
        return Layout(**self.records["collect"]["layout"])

    def create_collection(self, sites: tuple[Site, ...], num_steps: int, num_rows: int, layout: Layout) -> None:
        """Size every array at once, before any worker starts. Cost: about 5 ms a site."""
        stored, fill = STORED_DTYPES[layout.dtype]
        for name in ("features", "parts", "prompts"):
            self.delete(name)
        self._rows = None
        for site in sites if layout.features else ():
            self._create(
                f"features/{site.name}",
                (site.num_recorded(num_steps), num_rows, site.num_tokens, site.dim),
                (len(layout.blocks(site, num_steps)[0]), layout.batch_size, site.num_tokens, site.dim),
                stored,
                fill,
                {"torch_dtype": layout.dtype},
                compressed=layout.compression is not None,
            )
        self._update(sites=[asdict(site) for site in sites])
        self.create_progress("collect", -(-num_rows // layout.batch_size))

    def extend_collection(self, num_rows: int) -> None:
        """Make room for more rows."""
        for site in self.sites if self.layout.features else ():
            self._resize(f"features/{site.name}", num_rows, axis=1)
        self.extend_progress("collect", -(-num_rows // self.layout.batch_size))

    def members(self, unit: int) -> list[tuple[int, Prompt]]:
        """(row, prompt) of each prompt in a unit."""
        batch = self.layout.batch_size
        rows = self.rows[unit * batch : (unit + 1) * batch]
        return [(unit * batch + i, prompt) for i, prompt in enumerate(rows) if prompt is not None]

    def blocks(self, site: Site) -> list[range]:
        """The recorded timesteps of a site that share a chunk."""
        return self.layout.blocks(site, self.num_steps)

    def write_features(self, site: Site, block: range, rows: Sequence[int], values: NDArray[Any]) -> None:
        """Write one chunk: `[S, b, L, D]` in the stored dtype, the rows all of one unit. What no prompt fills is NaN."""
        array = self._array(f"features/{site.name}")
        length, batch = array.chunks[:2]
        unit = rows[0] // batch
        if values.shape[:2] != (length, batch):
            whole = np.full(array.chunks, array.fill_value, array.dtype)
            whole[: len(block), [row - unit * batch for row in rows]] = values
            values = whole
        self._write_chunk(f"features/{site.name}", (block.start // length, unit, 0, 0), values)

    def read_features(self, site: Site, block: range, unit: int) -> NDArray[Any]:
        """Read the vectors of a unit's prompts, `[S, b, L, D]` in the stored dtype (bfloat16 as its uint16 bits)."""
        name = f"features/{site.name}"
        length, batch = self._array(name).chunks[:2]
        slots = [row - unit * batch for row, _ in self.members(unit)]
        values = self._read_chunk(name, (block.start // length, unit, 0, 0))[: len(block)]
        chosen: NDArray[Any] = values if len(slots) == batch else values[:, slots]
        return chosen

    def chunk_nbytes(self, site: Site) -> int:
        """Bytes of one chunk of features, without compression."""
        array = self._array(f"features/{site.name}")
        return int(np.prod(array.chunks)) * array.dtype.itemsize

    def release_features(self, units: Sequence[int]) -> None:
        """Remove the chunks of units; the cells say so first, so that a kill leaves nothing that looks whole."""
        self.mark("collect", units, RELEASED)
        for site in self.sites:
            for number in range(len(self.blocks(site))):
                for unit in units:
                    self._backing.delete(f"features/{site.name}/c.{number}.{unit}.0.0")

    def part(self, name: str) -> PartialSums:
        return PartialSums(self, name)

    def parts(self) -> list[PartialSums]:
        """The parts that some process has begun."""
        return [PartialSums(self, name) for name in sorted(self._group["parts"])] if self._has("parts") else []  # type: ignore[arg-type]  # a group
