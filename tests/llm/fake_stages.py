"""A graph of stages that compute nothing, and tasks that end well, fail, or kill their process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from llm.protocol.graph import keys
from llm.protocol.stage import Stage
from llm.pulse import beating
from llm.records import Store, write_json
from llm.running.execute import Plan
from llm.runtime import Runtime


def stage(name: str, *inputs: str, kind: str = "sft", cost: float = 1.0, **does: object) -> Stage:
    """A stage that rests on others. does: what its task does ("do"), and for how long ("wait")."""
    roles = tuple((f"input{i}", stage_id) for i, stage_id in enumerate(inputs))
    return Stage(name, kind, None, roles, {"name": name, **does}, cost)


def plan(root: Path, *stages: Stage, **runtime: int) -> Plan:
    """Those stages in a folder."""
    return Plan(root, stages, keys(stages), {"": ""}, None, runtime=Runtime(**runtime))


def task(made: Plan, stage: Stage) -> str | None:
    """Note who ran it, when and where; then end as the stage's settings say."""
    store, key = Store(made.root), made.keys[stage.id]
    folder = store.partial(key)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    with beating(folder) as report:
        report(0.5)
        time.sleep(float(stage.settings.get("wait", 0.0)))
        if stage.settings.get("do") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if stage.settings.get("do") == "fail":
            return "ValueError: no"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    record = {"pid": os.getpid(), "begun": begun, "ended": time.time(), "visible": visible}
    write_json(folder / "note.json", record)
    store.finish(key, {"wall_seconds": 0.0, **record})
    return None
