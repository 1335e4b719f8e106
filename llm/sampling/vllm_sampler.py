"""Sampling with vLLM: worker processes of its own, so that the GPU is free before and after.

Nothing of vLLM is imported here. A worker (`vllm_worker.py`) is given files and gives files; it
may run in another environment, since vLLM pins versions that the rest of the project does not.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from llm.errors import InputError
from llm.records import SAMPLER, write_json
from llm.runtime import Runtime
from llm.sampling.sampler import Sample, check_request
from llm.sampling.vllm_process import SamplerError, gpus_of_workers, require_vllm, run_workers

COLDEST = 0.01  # vLLM raises a lower temperature to this one, and says so in its log only
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Drawn:
    """A worker's answer; logprobs (of the model itself, at temperature 1) only if asked for.

    versions: package -> version, of the environment that sampled.
    """

    samples: list[list[Sample]]
    logprobs: list[list[tuple[float, ...]]] | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VllmSampler:
    """vLLM over the policy saved in `folder`; see `llm.sampling.sampler.Sampler`.

    Sample i of prompt j is drawn from a seed of its own, so that neither batches nor the number of
    workers change it. That is exact as far as the logits are: on a GPU in bf16 they depend on the
    batch's shape in the last bits, unless VLLM_BATCH_INVARIANT=1 is set and the GPU supports it.

    runtime.tensor_parallel GPUs a worker, runtime.data_parallel workers, each on a slice of the
    prompts. patience: seconds without a sign of life (loading and compiling included) after which a
    worker counts as hung. stage: the folder of the stage that samples, where the versions of what
    sampled are noted for its record.
    """

    folder: Path
    eos: int
    runtime: Runtime
    precision: str = "fp32"
    max_sequences: int = 1024
    patience: float = 1800.0
    stage: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise InputError(f"precision {self.precision!r} is neither of {', '.join(DTYPES)}")
        if not (self.folder / "config.json").is_file():
            raise InputError(f"no model to sample from: {self.folder}/config.json does not exist")
        require_vllm(self.runtime)
        gpus_of_workers(self.runtime, os.environ)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        report: Callable[[float], None] = lambda fraction: None,
    ) -> list[list[Sample]]:
        """See `llm.sampling.sampler.Sampler`; a temperature between 0 and 0.01 is refused."""
        request = {"k": k, "temperature": temperature, "max_tokens": max_tokens}
        return self.draw(prompts, **request, seed=seed, report=report).samples

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        report: Callable[[float], None] = lambda fraction: None,
        logprobs: bool = False,
    ) -> Drawn:
        """The samples, and with `logprobs` vLLM's own log-probability of each of their tokens."""
        check_request(prompts, k=k, temperature=temperature, max_tokens=max_tokens)
        if 0 < temperature < COLDEST:
            raise InputError(
                f"temperature = {temperature}: vLLM draws at {COLDEST} and above, or at 0 (greedy)"
            )
        if not prompts:
            return Drawn([], [] if logprobs else None)
        asked = k if temperature else 1  # the likeliest tokens are drawn once
        request = {
            "model": str(self.folder.resolve()),
            "dtype": DTYPES[self.precision],
            "k": asked,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "eos": self.eos,
            "max_model_len": max(map(len, prompts)) + max_tokens,
            "tensor_parallel": self.runtime.tensor_parallel,
            "max_sequences": self.max_sequences,
            "logprobs": logprobs,
        }
        seeds = prompt_seeds(seed, len(prompts), asked)
        with tempfile.TemporaryDirectory(prefix="roads-vllm-") as place:
            slices = _slices(len(prompts), self.runtime.data_parallel)
            folders = [Path(place) / str(i) for i in range(len(slices))]
            for folder, part in zip(folders, slices, strict=True):
                write_request(folder, request, prompts[part], seeds[part])
            run_workers(
                self.runtime,
                folders,
                patience=self.patience,
                report=lambda done: report(0.99 * done / len(prompts)),
            )
            answers = [
                read_answer(folder, part.stop - part.start, request)
                for folder, part in zip(folders, slices, strict=True)
            ]
        report(1.0)
        versions = answers[0].versions
        if self.stage is not None:
            write_json(self.stage / SAMPLER, versions)
        repeat = k // asked
        return Drawn(
            [repeat * samples for answer in answers for samples in answer.samples],
            [repeat * line for answer in answers for line in answer.logprobs or []]
            if logprobs
            else None,
            versions,
        )


def prompt_seeds(seed: int, prompts: int, k: int) -> np.ndarray:
    """(prompts,) seeds; vLLM draws sample i of a prompt from its seed + i, so they stand k apart.

    The first is far from that of another `seed`, but stays below 2^62.
    """
    first = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(3))
    return first + k * np.arange(prompts, dtype=np.int64)


# --- files ----------------------------------------------------------------------------------------


def write_request(
    folder: Path, request: Mapping[str, object], prompts: Sequence[Sequence[int]], seeds: np.ndarray
) -> None:
    """What `llm/sampling/vllm_worker.py` reads."""
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
    ids = np.fromiter((i for prompt in prompts for i in prompt), np.int32, int(lengths.sum()))
    np.savez(folder / "prompts.npz", ids=ids, lengths=lengths, seeds=seeds)


def read_answer(folder: Path, prompts: int, request: Mapping[str, object]) -> Drawn:
    """A worker's samples, checked against the request. Raises SamplerError."""
    try:
        with np.load(folder / "samples.npz", allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise SamplerError(f"vLLM ended without a readable answer: {error}") from error
    eos, longest = int(str(request["eos"])), int(str(request["max_tokens"]))
    lengths = arrays["lengths"]
    expected = (prompts, request["k"])
    if lengths.shape != expected or lengths.min() < 1 or lengths.max() > longest:
        raise SamplerError(f"vLLM's answer has samples of other shape than asked: {expected}")
    if lengths.sum() != len(arrays["ids"]):
        raise SamplerError("vLLM's answer is cut: lengths and token ids do not match")
    samples = []
    for line in _ragged(arrays["ids"].tolist(), lengths):
        samples.append([Sample(ids, ids[-1] == eos) for ids in line])
        if any(s.ended and eos in s.ids[:-1] for s in samples[-1]):
            raise SamplerError(f"vLLM went on after EOS = {eos}")
        if any(not s.ended and (eos in s.ids or len(s.ids) < longest) for s in samples[-1]):
            raise SamplerError("vLLM ended a sample before EOS and before its last token")
    logprobs = list(_ragged(arrays["logprobs"].tolist(), lengths)) if request["logprobs"] else None
    return Drawn(samples, logprobs, json.loads(str(arrays["versions"])))


def _ragged(flat: list, lengths: np.ndarray) -> Iterator[list[tuple]]:
    ends = [0, *np.cumsum(lengths.ravel()).tolist()]
    parts = [tuple(flat[a:b]) for a, b in pairwise(ends)]
    k = lengths.shape[1]
    return (parts[i : i + k] for i in range(0, len(parts), k))


def _slices(total: int, workers: int) -> list[slice]:
    """Neighbours stay together (rows of one prompt share its prefix); no slice is empty."""
    cuts = np.linspace(0, total, min(workers, total) + 1).round().astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(cuts)]
