"""Measurements of what nullbooth costs. Plain scripts, not tests: pytest only sees that they run (test_benchmarks.py).

    python -m tests.benchmarks.collect --model toy|sd15 --keep moments features features --tokens 0 64 0
    python -m tests.benchmarks.covariance       the reduction, beside a bare loop over the same files
    python -m tests.benchmarks.archives         storing and reducing, beside compressed npz files
    python -m tests.benchmarks.chunks           one chunk at a time, beside Zarr's own API; what its tag costs
    python -m tests.benchmarks.factors          wide moments as factors, beside whole ones
    python -m tests.benchmarks.gpu              all of it on a CUDA device (--device cpu --tiny shows that it runs)

What is compared runs in turns in one process (A B A B ...), so that a busy machine slows both. A figure is the median of the
ratios of neighbours, between the smallest and the largest of them, in wall time and in the process's CPU time. Each is shown
with its target and its floor: the same figure if nullbooth did nothing but the operations and bytes that are needed, at the
rates that the script measures on this machine. `--json` prints one document. docs/benchmarks.md holds the figures.
"""
