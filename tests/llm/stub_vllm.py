"""A package that has vLLM's interface and none of its models, written where a test wants it.

Its tokens follow from the seed alone; what else it does is said by the variable STUB.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

VOCABULARY, EOS = 50, 0
VERSION = "0.0.7"

PACKAGE = """
import json, os, random, signal, time
from pathlib import Path
from types import SimpleNamespace

MODE = os.environ.get("STUB", "")


class EngineArgs:
    def __init__(self, **settings):
        self.settings = settings
        file = Path(os.environ["STUB_LOG"], str(os.getpid()))
        seen = {"settings": settings, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
        file.write_text(json.dumps(seen))
        if MODE == "error":
            raise ValueError("the model does not fit\\nat all")


class SamplingParams:
    def __init__(self, **settings):
        vars(self).update(settings)


class LLMEngine:
    @classmethod
    def from_engine_args(cls, args):
        engine = cls()
        engine.waiting = []
        return engine

    def add_request(self, name, prompt, params):
        self.waiting.append((name, prompt["prompt_token_ids"], params))

    def step(self):
        if MODE == "hang":
            time.sleep(600)
        if MODE == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        name, prompt, params = self.waiting.pop()  # the last comes first
        outputs = [completion(params, i) for i in reversed(range(params.n))]
        return [SimpleNamespace(request_id=name, finished=True, outputs=outputs)]


def completion(params, i):
    (eos,) = params.stop_token_ids
    ids = stub_tokens(params.seed + i, params.max_tokens, eos)
    if MODE == "past_eos":
        ids = [eos] * params.max_tokens
    if MODE == "short":
        ids = [eos + 1]
    steps = [{token: SimpleNamespace(logprob=-token / 10)} for token in ids]
    return SimpleNamespace(index=i, token_ids=ids, logprobs=steps if params.logprobs == 0 else None)


"""


def stub_tokens(seed: int, max_tokens: int, eos: int) -> list[int]:
    """What the stub draws with a seed: up to `max_tokens` tokens, EOS with probability 1/8."""
    draw, ids = random.Random(seed), []
    while len(ids) < max_tokens and eos not in ids:
        ids.append(eos if draw.random() < 1 / 8 else draw.randrange(1, 50))
    return ids


def write_stub(folder: Path) -> Path:
    """A `python` (a shell script) that finds the stub; what its engines get lands in log/."""
    package = folder / "site" / "vllm"
    package.mkdir(parents=True)
    (folder / "log").mkdir()
    source = Path(__file__).read_text(encoding="utf-8")
    tokens = source[source.index("def stub_tokens") : source.index("def write_stub")]
    version = f"__version__ = {VERSION!r}\n"
    (package / "__init__.py").write_text(PACKAGE + tokens + version, encoding="utf-8")
    (package / "sampling_params.py").write_text("class RequestOutputKind:\n    FINAL_ONLY = 2\n")
    platform = "class current_platform:\n    is_cpu = staticmethod(lambda: True)\n"
    (package / "platforms.py").write_text(platform)
    python = folder / "python"
    python.write_text(
        f"#!/bin/sh\nPYTHONPATH={folder / 'site'} STUB_LOG={folder / 'log'} "
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return python
