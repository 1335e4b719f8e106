"""vLLM in a process of its own: reads a request from a folder, writes the answer there, ends.

`vllm_sampler` runs this file by its path, with the python of an environment that has vLLM (and
with it numpy) and nothing of this project: it imports neither.

request.json: model, dtype, k, temperature, max_tokens, eos, max_model_len, tensor_parallel,
max_sequences, logprobs. prompts.npz: ids (all prompts' in one array), lengths, seeds (one a
prompt; its sample i is drawn with seed + i). Answer, samples.npz: ids, lengths (prompts, k),
versions (JSON: package -> version), and logprobs if they were asked for: of the model itself,
whatever the temperature. progress: how many prompts are done and how many were begun.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

AHEAD = 2048  # prompts that wait or run inside the engine
BEAT = 1.0  # seconds between two signs of life
ON_CPU = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2**30,  # VLLM_CPU_KVCACHE_SPACE (GiB) overrides it
    "block_size": 32,  # the default, 128, is longer than most of what could be shared
    # a chunk of a prompt would draw a number that is thrown away, and a CPU's generator, unlike a
    # GPU's, cannot be turned back
    "enable_chunked_prefill": False,
}


def main(folder: Path) -> None:
    """Answer the request that lies in `folder`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    with np.load(folder / "prompts.npz", allow_pickle=False) as file:
        lengths, seeds = file["lengths"], file["seeds"].tolist()
        prompts = [part.tolist() for part in np.split(file["ids"], np.cumsum(lengths)[:-1])]
    outputs = _run(_engine(request), request, prompts, seeds, _Progress(folder / "progress"))
    _write(folder / "samples.npz", outputs, request["logprobs"])


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it is gone, so is this whole group."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _engine(request: dict[str, Any]) -> Any:
    from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    args = EngineArgs(
        model=request["model"],
        load_format="safetensors",
        skip_tokenizer_init=True,  # token ids in, token ids out
        generation_config="vllm",  # nothing from a generation_config.json beside the weights
        dtype=request["dtype"],
        max_model_len=request["max_model_len"],
        max_num_seqs=request["max_sequences"],
        tensor_parallel_size=request["tensor_parallel"],
        enable_prefix_caching=True,  # a prompt's K samples share its keys and values
        disable_log_stats=True,
        **(ON_CPU if current_platform.is_cpu() else {}),
    )
    return LLMEngine.from_engine_args(args)


def _run(
    engine: Any,
    request: dict[str, Any],
    prompts: list[list[int]],
    seeds: list[int],
    progress: _Progress,
) -> list[Any]:
    """The finished output of every prompt, in order."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    outputs: list[Any] = [None] * len(prompts)
    started = finished = 0
    while finished < len(prompts):
        while started < min(finished + AHEAD, len(prompts)):
            params = SamplingParams(
                n=request["k"],
                temperature=request["temperature"],
                max_tokens=request["max_tokens"],
                seed=seeds[started],
                stop_token_ids=[request["eos"]],
                ignore_eos=True,  # the data's EOS ends a sample, whatever the model's own is
                detokenize=False,
                logprobs=0 if request["logprobs"] else None,
            )
            params.output_kind = _final_only()
            engine.add_request(str(started), {"prompt_token_ids": prompts[started]}, params)
            started += 1
        for output in engine.step():
            if output.finished:
                outputs[int(output.request_id)] = sorted(output.outputs, key=lambda c: c.index)
                finished += 1
        progress.tell(finished, started)
    return outputs


def _final_only() -> Any:
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    return RequestOutputKind.FINAL_ONLY


class _Progress:
    """A file that says how many prompts are done; written at most once a BEAT."""

    def __init__(self, file: Path) -> None:
        self.file, self.last = file, 0.0

    def tell(self, finished: int, started: int) -> None:
        if time.monotonic() - self.last >= BEAT:
            self.last = time.monotonic()
            _whole(self.file, f"{finished} {started}\n".encode())


def _write(file: Path, outputs: list[Any], with_logprobs: bool) -> None:
    samples = [sample for output in outputs for sample in output]
    lengths = np.array([[len(s.token_ids) for s in output] for output in outputs], dtype=np.int32)
    ids = [np.asarray(s.token_ids, dtype=np.int32) for s in samples]
    arrays: dict[str, Any] = {"ids": np.concatenate(ids), "lengths": lengths}
    arrays["versions"] = np.array(json.dumps(_versions()))
    if with_logprobs:
        steps = [
            step[token].logprob
            for sample in samples
            for token, step in zip(sample.token_ids, sample.logprobs, strict=True)
        ]
        arrays["logprobs"] = np.array(steps, dtype=np.float64)
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        np.savez(stream, **arrays)
    part.replace(file)


def _versions() -> dict[str, str]:
    """vLLM's by its own word: a build for another machine may be packaged under another name."""
    from vllm import __version__  # pyright: ignore[reportMissingImports]

    return {"vllm": __version__, "torch": metadata.version("torch")}


def _whole(file: Path, content: bytes) -> None:
    part = file.with_suffix(".part")
    part.write_bytes(content)
    part.replace(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
