"""The store: one Zarr v3 group that all stages share. Nothing outside this package touches Zarr.

    run.zarr/                  attributes: format version, config, records of the stages, sites, package versions
    ├── schedule/              timesteps [T], sigmas [T], keys [T]
    ├── prompts/               text [N], ids [N]
    ├── features/<site>        [T, N, L, D], chunks (1, B, L, D); a site that no timestep changes has T = 1
    ├── moments/<site>         sum_xxT [T, D, D] float64, sum_x [T, D] float64, count [T] int64
    ├── projectors/<site>      eigenvalues [S, D], eigenvectors [S, D, D], null_dim [S], leakage [S]; S = 1 pooled
    └── progress/<stage>       one cell per unit, one chunk per cell, written last; `decomposition` is the first half of project

What must stay true:

- A chunk is written whole by one writer, to a temporary file that is renamed: a kill leaves the old or the new one.
- `commit()` makes everything written so far durable and only then marks the unit. A chunk that is there proves nothing; only
  `progress` does. So no interruption can leave a mark beside data that the unit has not finished writing.
- A missing, empty or altered chunk never reads as data: it is an error that names the array and the chunk.

`files` makes writes durable, `arrays` reads and writes arrays and progress, `store` knows what they mean.
"""

from nullbooth_cli.store.files import DurableLocalStore
from nullbooth_cli.store.store import STORED_DTYPES, Site, Store

__all__ = ["STORED_DTYPES", "DurableLocalStore", "Site", "Store"]
