"""Who judges text: the judge that a stage's settings name, checked before anything is asked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from llm.config import JudgeConfig
from llm.errors import InputError
from llm.judge import serve
from llm.judge.ask import ModelJudge
from llm.judge.endpoint import Endpoint, check_address, read_key
from llm.judge.pace import Pace
from llm.runtime import Runtime

FOLDER = "verdicts"  # of the study


class Stage(Protocol):
    """What a stage knows (`llm.stages.work.Work`)."""

    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def study(self) -> Path: ...
    @property
    def folder(self) -> Path: ...


def open_judge(work: Stage) -> ModelJudge:
    """The judge that a stage's settings name. Raises InputError where it cannot be asked.

    settings: "judge" (JudgeConfig), and "two_word" or "how" for the prompt of two-word summaries.
    """
    config = JudgeConfig(**work.settings["judge"])
    check_judge(config, work.runtime)
    two_word = bool(work.settings.get("two_word", work.settings.get("how") == "two_word"))
    asker = work.folder.name.removeprefix(".").removesuffix(".partial")
    return ModelJudge(config, work.runtime, work.study / FOLDER, two_word=two_word, asker=asker)


def check_judge(config: JudgeConfig, runtime: Runtime) -> None:
    """Raise InputError for a judge that cannot be asked: no model, key, address or folder.

    Asks nothing of the network.
    """
    if not config.model:
        raise InputError("judge setting model is not set: nobody compares the summaries")
    folder = serve.folder_of(config.model)
    if folder is not None:
        serve.check_folder(folder)
        return
    check_address(runtime)
    read_key(runtime)


def reach_judge(config: JudgeConfig, runtime: Runtime) -> None:
    """`check_judge`, and whether the endpoint answers, takes the key and has the model.

    Costs nothing, or one short question where the endpoint does not list it (`Endpoint.reach`).
    """
    check_judge(config, runtime)
    if serve.folder_of(config.model or "") is not None:
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pace = Pace(Path(folder) / "pace", None)
        stack.callback(pace.close)
        short = replace(runtime, timeout=min(runtime.timeout, 15.0))
        endpoint = Endpoint(short, pace, served=str(config.model), asker="")
        stack.callback(endpoint.close)
        endpoint.reach()
