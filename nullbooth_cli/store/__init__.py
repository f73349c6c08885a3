"""The store: one Zarr v3 group that all stages share. Nothing outside this package touches Zarr.

    run.zarr/                  attributes: format version, config, records of the stages, sites, package versions
    ├── schedule/              timesteps [T], sigmas [T], keys [T]
    ├── prompts/               text [N], ids [N]; "" in a row that holds no prompt
    ├── features/<site>        [T, N, L, D], chunks (S, B, L, D); a site that no timestep changes has T = 1
    ├── parts/<name>/<site>    [2, T, F + 2, D] float64, the partial sums that one process folds while the model runs
    ├── moments/<site>         sum_xxT [T, D, D] float64, sum_x [T, D] float64, count [T] int64, chunks of S timesteps; or factor
    │                          [T, F, D], sum_x, count, trace [T], delta [T]; F is D unless moments are kept as factors
    ├── staged/<site>          [T, F + 2, D] float64, only while prompts are added to moments
    ├── projectors/<site>      eigenvalues [R, D], eigenvectors [R, D, F], energies [R, 2, D], noise_floor [R], null_dim [R],
    │                          leakage [R, 2]; R = 1 pooled; with n hard tasks, tasks [R, n, 5, D]
    ├── heldout/               a store of its own with the moments of the held-out prompts
    ├── tasks/<name>/          a store of its own with the moments of what the model was taught since, see `tasks`
    ├── attention/<prompt id>  where the words of some prompts attend: <layer> [A, H, W, K] float16, image [h, w, 3]
    ├── activity/<worker>      attributes: the progress of a process at work; removed when it is done
    └── progress/<stage>       one cell per unit, one chunk per cell, written last; `decomposition` is the first half of project

Invariants:

- A chunk is written whole by one writer, to a temporary file that is flushed and renamed: a kill leaves the old or the new one.
- `commit()` makes everything written so far durable and only then marks the unit. A chunk that is there proves nothing; only
  `progress` does. So no interruption can leave a mark beside data that the unit has not finished writing.
- Sums that grow are never written over the sums in force: `partial_sums` and `moment_arrays` (staged) say how.
- A missing, empty or altered chunk never reads as data, and neither does one of another place or run. It is an error that names
  the array, the chunk and the stage that writes it again. The same holds of every `zarr.json`.

From below: `backing` is a place with bytes (`local`; or `remote`, with its `object_store` and `lease`), `chunks` is one chunk as
bytes, `metadata` is one `zarr.json`, `format` that of the store itself, `arrays` reads and writes arrays and attributes without
knowing what they mean. `*_arrays`, `progress_cells`, `heartbeats` and `partial_sums` know one group each. `store` puts them
together; `collection` and `verify` work on several of them.
"""

from nullbooth_cli.datatypes import FEATURES, Site, Sums, choose_sites
from nullbooth_cli.store.attention_maps import AttentionMaps
from nullbooth_cli.store.backing import Backing
from nullbooth_cli.store.collection import create_collection, extend_collection, release_units
from nullbooth_cli.store.heartbeats import Heartbeat
from nullbooth_cli.store.layout import STORED_DTYPES, Layout
from nullbooth_cli.store.locks import is_held, locked, shard_locked
from nullbooth_cli.store.missing import no_store, stores_beside
from nullbooth_cli.store.moment_arrays import STAGED
from nullbooth_cli.store.open_backing import is_url, open_backing
from nullbooth_cli.store.partial_sums import PartialSums, pack_sums
from nullbooth_cli.store.progress_cells import RELEASED
from nullbooth_cli.store.projector_arrays import Cut, Decomposition, TaskSpectrum
from nullbooth_cli.store.store import Store
from nullbooth_cli.store.tasks import (
    Kind,
    Task,
    leftovers,
    list_task,
    listed_tasks,
    name_for,
    open_task,
    remembered,
    tasks_of,
    unlist_task,
)

__all__ = [
    "FEATURES",
    "RELEASED",
    "STAGED",
    "STORED_DTYPES",
    "AttentionMaps",
    "Backing",
    "Cut",
    "Decomposition",
    "Heartbeat",
    "Kind",
    "Layout",
    "PartialSums",
    "Site",
    "Store",
    "Sums",
    "Task",
    "TaskSpectrum",
    "choose_sites",
    "create_collection",
    "extend_collection",
    "is_held",
    "is_url",
    "leftovers",
    "list_task",
    "listed_tasks",
    "locked",
    "name_for",
    "no_store",
    "open_backing",
    "open_task",
    "pack_sums",
    "release_units",
    "remembered",
    "shard_locked",
    "stores_beside",
    "tasks_of",
    "unlist_task",
]
