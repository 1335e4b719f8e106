"""Stages as Ray tasks: on this machine, or on a cluster that is already there.

Each task asks for the GPUs that its stage takes, and for none where the cluster has none. The
study's folder, data and model folders must stand on a file system that all nodes share, at the
same paths; an endpoint's key is read from the environment in which a node was started. A task
writes its stage's folder as a worker here would: nothing in it depends on who ran it. Ray runs a
stage whose worker died once more; it goes on where it was. Ray is optional: the extra `ray`.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.errors import InputError
from llm.protocol.stage import Stage
from llm.running.execute import Plan, gpus_of, note_failure, run_stage
from llm.running.places import POLL, Ended

PATIENCE = 5.0  # seconds for an address to answer
RETRIES = 1  # times that a stage whose worker died is run again


def check_cluster(address: str) -> None:
    """Raise InputError if Ray is not installed or nothing answers; starts nothing."""
    _ray()
    if address not in ("local", "auto"):
        _check_address(address)


class Cluster:
    """Ray tasks as places for stages.

    address: of a running cluster (host:port, or auto), or local for one that is started here and
    stopped at the end. jobs: stages at a time; default: what the cluster has room for. Raises
    InputError if there is no cluster, or none of its nodes has the GPUs that a stage takes.
    """

    def __init__(self, plan: Plan, address: str, *, jobs: int | None = None) -> None:
        self.plan = replace(plan, root=plan.root.resolve())
        self.ray = connect(address, jobs)
        try:
            nodes = [node for node in self.ray.nodes() if node["Alive"]]
            self.gpus = [int(node["Resources"].get("GPU", 0)) for node in nodes]
            _check_gpus(plan, self.gpus)
            cores = int(self.ray.cluster_resources().get("CPU", 1))
        except BaseException:
            self.ray.shutdown()
            raise
        self.jobs = jobs or (len(plan.stages) if any(self.gpus) else max(1, cores))
        self.task = self.ray.remote(_stage)
        self.running: dict[Any, Stage] = {}

    def room(self, stage: Stage) -> bool:
        """What waits for a GPU waits in Ray's own queue."""
        return len(self.running) < self.jobs

    def start(self, stage: Stage) -> None:
        """As a task with the GPUs that the stage takes."""
        number = gpus_of(stage, self.plan.runtime) if any(self.gpus) else 0
        options = {"num_cpus": 1, "num_gpus": number, "max_retries": RETRIES, "name": stage.id}
        reference = self.task.options(**options).remote(self.plan, stage, str(Path.cwd()))
        self.running[reference] = stage

    def ended(self) -> Ended:
        """Those that ended, within POLL seconds."""
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL)
        found: Ended = []
        for reference in done:
            stage = self.running.pop(reference)
            try:
                error = self.ray.get(reference)
            except self.ray.exceptions.RayError as lost:
                error = f"its worker died {1 + RETRIES} times: {str(lost).splitlines()[0]}"
                note_failure(self.plan, stage, error)
            found.append((stage, error))
        return found

    def close(self) -> None:
        """Leaves the cluster; what was started here ends."""
        self.ray.shutdown()


def _stage(plan: Plan, stage: Stage, folder: str) -> str | None:
    """What a task runs; relative paths mean what they mean to who started the study."""
    os.chdir(folder)
    return run_stage(plan, stage)


def _check_gpus(plan: Plan, gpus: list[int]) -> None:
    """A task that fits no node would wait for ever."""
    if not any(gpus):
        return
    for stage in plan.stages:
        number = gpus_of(stage, plan.runtime)
        if number > max(gpus):
            raise InputError(
                f"--cluster: {stage.id} takes {number} GPUs, the cluster's nodes have {gpus}"
            )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--cluster needs Ray, which is not installed: pip install 'all-roads[ray]'"
        ) from error
    return ray


def connect(address: str, jobs: int | None) -> Any:
    """Ray, connected. Raises InputError."""
    ray = _ray()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == "local":
        cores = jobs or os.cpu_count()
        ray.init("local", num_cpus=cores, include_dashboard=False, **options)
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
