"""The cells of a sweep as Ray tasks: on this machine, or on a cluster that is already there.

A task fits one cell and gives the bytes of its file back; the driver alone writes, so no disk need
be shared. Workers have the driver's settings of threads, and nothing in a cell depends on who runs
it: files are equal, bit for bit, to those of a sweep without Ray. Ray itself runs a cell again when
its worker dies. Ray is optional: the extra `ray`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from theory.errors import InputError
from theory.sweep.cells import Cell

PATIENCE = 5.0  # seconds for an address to answer
RETRIES = 3  # times that a cell whose worker died is run again
THREADS = {"OPENBLAS_NUM_THREADS": "1"}  # as `python -m theory` sets them; an explicit value stands
PASSED_ON = ("OPENBLAS_NUM_THREADS", "XLA_FLAGS", "JAX_PLATFORMS")


class ClusterError(RuntimeError):
    """A cell that the cluster could not run."""


def run_cells(
    cells: list[Cell], address: str, *, workers: int | None = None
) -> Iterator[tuple[Cell, bytes | Exception]]:
    """(cell, the bytes of its file or why there are none), in the order in which they end.

    address: of a running cluster (host:port, or auto), or local for one that is started here and
    stopped at the end. workers: cells at a time; the cluster's processors if left out. Raises
    InputError if Ray is not installed or nothing answers at the address.
    """
    ray = _connect(address, workers)
    try:
        limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        task = ray.remote(_cell_bytes).options(max_retries=RETRIES, num_cpus=1)
        waiting, running = list(reversed(cells)), {}
        while waiting or running:
            while waiting and len(running) < limit:
                cell = waiting.pop()
                running[task.remote(cell)] = cell
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                yield running.pop(reference), _result(ray, reference)
    finally:
        ray.shutdown()


def check_cluster(address: str) -> None:
    """Raise InputError if Ray is not installed or nothing answers; starts nothing."""
    _ray()
    if address != "local":
        _check_address(address)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--cluster needs Ray, which is not installed: pip install 'all-roads[ray]'"
        ) from error
    return ray


def _connect(address: str, workers: int | None) -> Any:
    """Ray, connected. Raises InputError."""
    ray = _ray()
    variables = {**THREADS, **{k: os.environ[k] for k in PASSED_ON if k in os.environ}}
    options: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "log_to_driver": False}
    options["logging_level"] = logging.WARNING
    if address == "local":
        here = {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
        ray.init("local", **options, **here)
        return ray
    _check_address(address)
    try:
        ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--cluster {address}: {str(error).splitlines()[0]}") from error
    return ray


def _check_address(address: str) -> None:
    """Raise InputError unless something listens there: Ray itself would wait for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--cluster {address!r} is none of local, auto, host:port")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--cluster {address}: nothing answers: {error}") from error


def _cell_bytes(cell: Cell) -> bytes:
    """The file of one cell; what a worker runs."""
    from theory.sweep.files import to_bytes
    from theory.sweep.run import run_cell

    return to_bytes(run_cell(cell))


def _result(ray: Any, reference: Any) -> bytes | Exception:
    """What a task gave back, or its own error without Ray's."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except ray.exceptions.RayError as error:
        return ClusterError(f"its worker died {1 + RETRIES} times: {str(error).splitlines()[0]}")
