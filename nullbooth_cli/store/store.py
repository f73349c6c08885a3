"""What a store holds: schedule, prompts, features, moments, projectors, and the records of the stages."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from nullbooth_cli.errors import StoreError
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.steps import Step
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.files import DurableLocalStore, resource_error

FORMAT = "nullbooth"
FORMAT_VERSION = 1
PACKAGES = ("nullbooth", "torch", "diffusers", "transformers", "zarr", "numpy")
# bfloat16 has no Zarr data type: its bits are stored, and a chunk that was never written reads as its NaN.
STORED_DTYPES: dict[str, tuple[str, Any]] = {"float16": ("f2", "NaN"), "float32": ("f4", "NaN"), "bfloat16": ("u2", 0x7FC0)}


@dataclass(frozen=True)
class Site:
    """One recording: the tensor that enters (or leaves) one projection, or several that always share it.

    `layer` and `feature` are the first of the projections that share it, `weights` the parameters of all of them.
    """

    layer: str
    feature: str
    side: str
    weights: tuple[str, ...]
    timestep_free: bool
    num_tokens: int  # per prompt, over the recorded branches of guidance
    dim: int

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.feature}"

    def num_recorded(self, num_steps: int) -> int:
        """How many timesteps are stored of a schedule of `num_steps`."""
        return 1 if self.timestep_free else num_steps


class Store(ArrayGroup):
    """An open store. `Store.create` and `Store.open` make one; `lock()` guards every stage that writes."""

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> "Store":
        """Make an empty store. Raises StoreError if something else is there."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path} exists and is not a nullbooth store", "name another place with -s; nothing was changed")
        backing = DurableLocalStore(path)
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": dict(config),
            "packages": {name: version(name) for name in PACKAGES},
            "records": {},
            "sites": [],
        }
        try:
            group = zarr.create_group(backing, attributes=attributes)
        except OSError as error:
            raise resource_error(error, path) from error
        return cls(path, group, backing)

    @classmethod
    def open(cls, path: str | Path, *, write: bool = False) -> "Store":
        """Open an existing store. Raises StoreError if there is none, or it is foreign or of a newer format."""
        path = Path(path)
        if not path.exists():
            raise StoreError(f"no store at {path}", "nullbooth collect makes one, from a config (-c)")
        backing = DurableLocalStore(path, read_only=not write)
        try:
            group = zarr.open_group(backing, mode="r+" if write else "r", use_consolidated=False)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is not a Zarr v3 group", "a store is the folder that nullbooth collect made") from error
        if group.attrs.get("format") != FORMAT:
            raise StoreError(
                f"{path} is a Zarr group, but not a nullbooth store", "name another place with -s; nothing was changed"
            )
        found = group.attrs.get("format_version")
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise StoreError(
                f"{path} has store format {found}; this nullbooth reads up to {FORMAT_VERSION}", "pip install --upgrade nullbooth"
            )
        return cls(path, group, backing)

    @staticmethod
    def exists(path: str | Path) -> bool:
        return (Path(path) / "zarr.json").exists()

    # Attributes: config, records, sites

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._attribute("config"))

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
        self._write_vector("schedule/timesteps", np.array([step.timestep for step in steps]))
        self._write_vector("schedule/sigmas", np.array([step.sigma for step in steps]))
        self._write_vector("schedule/keys", [step.key for step in steps])
        self._backing.sync()

    def schedule(self) -> tuple[Step, ...]:
        names = ("timesteps", "sigmas", "keys")
        timesteps, sigmas, keys = (self._read(self._array(f"schedule/{name}"), slice(None)) for name in names)
        columns = zip(keys, timesteps, sigmas, strict=True)
        return tuple(Step(i, str(key), float(t), float(s)) for i, (key, t, s) in enumerate(columns))

    def write_prompts(self, prompts: tuple[Prompt, ...]) -> None:
        self.delete("prompts")
        self._write_vector("prompts/text", [prompt.text for prompt in prompts])
        self._write_vector("prompts/ids", [prompt.id for prompt in prompts])
        self._backing.sync()

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the collection, in its order; none before a collection was begun."""
        if "prompts/text" not in self._group:
            return ()
        return tuple(Prompt(str(text)) for text in self._read(self._array("prompts/text"), slice(None)))

    # Features

    def create_features(
        self, sites: tuple[Site, ...], num_steps: int, num_prompts: int, batch_size: int, dtype: str, compression: str | None
    ) -> None:
        """Size every features array at once, before any worker starts. Cost: about 5 ms a site."""
        stored, fill = STORED_DTYPES[dtype]
        crc = Crc32cCodec()
        codecs = [crc] if compression is None else [BloscCodec(cname="lz4", shuffle="bitshuffle"), crc]
        self.delete("features")
        for site in sites:
            self._create(
                f"features/{site.name}",
                (site.num_recorded(num_steps), num_prompts, site.num_tokens, site.dim),
                (1, batch_size, site.num_tokens, site.dim),
                stored,
                fill,
                codecs,
                {"torch_dtype": dtype},
            )
        self._update(sites=[asdict(site) for site in sites])
        self.create_progress("collect", -(-num_prompts // batch_size))

    def feature_layout(self) -> tuple[int, str]:
        """(prompts per unit, torch dtype) of the features."""
        array = self._array(f"features/{self.sites[0].name}")
        return array.chunks[1], str(array.attrs["torch_dtype"])

    def write_features(self, site: Site, step_index: int, unit: int, values: NDArray[Any]) -> None:
        """Write one chunk, `[b, L, D]` in the stored dtype; b is a whole unit, or what the last one has."""
        array = self._array(f"features/{site.name}")
        start = unit * array.chunks[1]
        self._write(array, (step_index, slice(start, start + len(values))), values)

    def read_features(self, site: Site, step_index: int, unit: int) -> NDArray[Any]:
        """Read one chunk, `[b, L, D]` in the stored dtype (bfloat16 as its uint16 bits)."""
        array = self._array(f"features/{site.name}")
        batch = array.chunks[1]
        return self._read(array, (step_index, slice(unit * batch, (unit + 1) * batch)))

    # Moments

    def create_moments(self, sites: tuple[Site, ...], num_steps: int) -> None:
        self.delete("moments")
        for site in sites:
            t, d = site.num_recorded(num_steps), site.dim
            self._create(f"moments/{site.name}/sum_xxT", (t, d, d), (1, d, d), "f8", "NaN")
            self._create(f"moments/{site.name}/sum_x", (t, d), (1, d), "f8", "NaN")
            self._create(f"moments/{site.name}/count", (t,), (1,), "i8", 0)
        self.create_progress("covariance", sum(site.num_recorded(num_steps) for site in sites))

    def write_moment(self, site: Site, step_index: int, sum_xxt: NDArray[Any], sum_x: NDArray[Any], count: int) -> None:
        for name, value in (("sum_xxT", sum_xxt), ("sum_x", sum_x), ("count", count)):
            self._write(self._array(f"moments/{site.name}/{name}"), (step_index,), value)

    def read_moment(self, site: Site, step_index: int) -> tuple[NDArray[Any], NDArray[Any], int]:
        """(sum_xxT `[D, D]`, sum_x `[D]`, count) of one timestep."""
        parts = (self._array(f"moments/{site.name}/{name}") for name in ("sum_xxT", "sum_x", "count"))
        sum_xxt, sum_x, count = (self._read(array, (step_index,)) for array in parts)
        return sum_xxt, sum_x, int(count)

    def read_count(self, site: Site, step_index: int) -> int:
        """How many vectors are in a moment, without reading its matrix."""
        return int(self._read(self._array(f"moments/{site.name}/count"), (step_index,)))

    # Projectors

    def create_projectors(self, sites: tuple[Site, ...], num_scopes: Mapping[str, int]) -> None:
        """Arrays for `num_scopes[site.name]` decompositions a site: 1 pooled, or one per timestep."""
        self.delete("projectors")
        for site in sites:
            s, d = num_scopes[site.name], site.dim
            self._create(f"projectors/{site.name}/eigenvalues", (s, d), (1, d), "f8", "NaN")
            self._create(f"projectors/{site.name}/eigenvectors", (s, d, d), (1, d, d), "f8", "NaN")
            self._create(f"projectors/{site.name}/null_dim", (s,), (1,), "i8", 0)
            self._create(f"projectors/{site.name}/leakage", (s,), (1,), "f8", "NaN")
        self.create_progress("decomposition", sum(num_scopes[site.name] for site in sites))

    def write_decomposition(self, site: Site, index: int, eigenvalues: NDArray[Any], eigenvectors: NDArray[Any]) -> None:
        self._write(self._array(f"projectors/{site.name}/eigenvalues"), (index,), eigenvalues)
        self._write(self._array(f"projectors/{site.name}/eigenvectors"), (index,), eigenvectors)

    def read_eigenvalues(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D]`, ascending."""
        return self._read(self._array(f"projectors/{site.name}/eigenvalues"), (index,))

    def read_eigenvectors(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D, D]`, column i belongs to eigenvalue i."""
        return self._read(self._array(f"projectors/{site.name}/eigenvectors"), (index,))

    def write_cut(self, site: Site, index: int, null_dim: int, leakage: float) -> None:
        """What a threshold made of one decomposition."""
        self._write(self._array(f"projectors/{site.name}/null_dim"), (index,), null_dim)
        self._write(self._array(f"projectors/{site.name}/leakage"), (index,), leakage)

    def read_cut(self, site: Site, index: int) -> tuple[int, float]:
        """(null_dim, leakage) of one decomposition."""
        null_dim, leakage = (
            self._read(self._array(f"projectors/{site.name}/{name}"), (index,)) for name in ("null_dim", "leakage")
        )
        return int(null_dim), float(leakage)
