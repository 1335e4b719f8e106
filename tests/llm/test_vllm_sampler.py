"""vLLM's worker processes, with a stub in vLLM's place: slices, seeds, failures, ends.

The engine itself is tested by `make test-vllm`.
"""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import InputError
from llm.records import StageKey, Store
from llm.runtime import Runtime
from llm.sampling import vllm_worker
from llm.sampling.sample import open_sampler
from llm.sampling.sampler import Sample
from llm.sampling.vllm_process import SamplerError, gpus_of_workers, require_vllm
from llm.sampling.vllm_sampler import VllmSampler, prompt_seeds

sys.path.insert(0, str(Path(__file__).parent))
from stub_vllm import EOS, VERSION, stub_tokens, write_stub

PROMPTS = [[5, 9], [4], [3, 3, 8, 2, 7], [6, 2, 2], [1] * 9]
ASKED = {"k": 3, "temperature": 0.1, "max_tokens": 7}


@pytest.fixture
def stub(tmp_path):
    """A sampler over the stub, and the folder in which the stub says what it was given."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    runtime = Runtime(vllm_python=str(write_stub(tmp_path)))
    return VllmSampler(tmp_path / "model", eos=EOS, runtime=runtime, patience=60), tmp_path / "log"


def _with(sampler, **settings):
    return replace(sampler, runtime=replace(sampler.runtime, **settings))


def test_every_sample_has_a_seed_of_its_own_whatever_the_workers(stub):
    sampler, log = stub
    seeds = prompt_seeds(7, len(PROMPTS), 3).tolist()
    expected = [
        [
            Sample(ids, ids[-1] == EOS)
            for i in range(3)
            for ids in [tuple(stub_tokens(s + i, 7, EOS))]
        ]
        for s in seeds
    ]
    fractions = []
    assert sampler.sample(PROMPTS, **ASKED, seed=7, report=fractions.append) == expected
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {s.ended for line in expected for s in line} == {True, False}
    assert _with(sampler, data_parallel=2).sample(PROMPTS, **ASKED, seed=7) == expected
    assert _with(sampler, data_parallel=9).sample(PROMPTS, **ASKED, seed=7) == expected
    assert len(list(log.iterdir())) == 1 + 2 + len(PROMPTS)
    assert sampler.sample(PROMPTS, **ASKED, seed=8) != expected


def test_the_engine_is_told_what_was_asked(stub, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,GPU-ab,6")
    sampler, log = stub
    two = replace(_with(sampler, data_parallel=2, tensor_parallel=2), precision="bf16")
    two.sample(PROMPTS, **ASKED, seed=0)
    seen = [json.loads(file.read_text()) for file in log.iterdir()]
    assert sorted(one["gpus"] for one in seen) == ["4,7", "GPU-ab,6"]
    for one in seen:
        settings = one["settings"]
        assert settings["model"] == str(sampler.folder)
        assert settings["dtype"] == "bfloat16"
        assert settings["tensor_parallel_size"] == 2
        assert settings["enable_prefix_caching"] is True
        assert settings["load_format"] == "safetensors"
        assert "trust_remote_code" not in settings
        assert settings["max_model_len"] == 9 + 7


def test_logprobs_come_with_the_samples_only_when_asked_for(stub):
    drawn = stub[0].draw(PROMPTS, **ASKED, seed=1, logprobs=True)
    assert drawn.logprobs == [[tuple(-i / 10 for i in s.ids) for s in x] for x in drawn.samples]
    assert stub[0].draw(PROMPTS, **ASKED, seed=1).logprobs is None


def test_the_likeliest_tokens_are_drawn_once(stub):
    one, three = (stub[0].sample(PROMPTS, k=k, temperature=0, max_tokens=5, seed=1) for k in (1, 3))
    assert three == [3 * line for line in one]


def test_no_log_probability_of_a_sampler_can_reach_training():
    """vLLM's log-probs are of other kernels and of temperature 1: the trainer computes its own."""
    assert [field.name for field in fields(Sample)] == ["ids", "ended"]


def test_the_worker_needs_nothing_but_vllm_and_numpy():
    tree = ast.parse(Path(vllm_worker.__file__).read_text(encoding="utf-8"))
    froms = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    plain = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    roots = {str(name).split(".")[0] for name in (*froms, *plain)}
    assert roots - sys.stdlib_module_names == {"vllm", "numpy"}


@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=2, max_size=2, unique=True),
    prompts=st.integers(1, 40),
    k=st.integers(1, 30),
)
def test_no_two_samples_share_a_seed(seeds, prompts, k):
    drawn = [
        s + i for seed in seeds for s in prompt_seeds(seed, prompts, k).tolist() for i in range(k)
    ]
    assert len(set(drawn)) == len(drawn)
    assert min(drawn) >= 0
    assert max(drawn) < 2**62
    # a CPU's generator reads the low 32 bits: within one call they differ as well
    assert len({s % 2**32 for s in drawn[: prompts * k]}) == prompts * k


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "named"),
    [
        ("error", "at all"),
        ("killed", r"SIGKILL \(out of memory\?\)"),
        ("past_eos", "vLLM went on after EOS"),
        ("short", "vLLM ended a sample before EOS"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_worker_is_one_clear_error(stub, monkeypatch, mode, named, workers):
    monkeypatch.setenv("STUB", mode)
    with pytest.raises(SamplerError, match=named) as caught:
        _with(stub[0], data_parallel=workers).sample(PROMPTS, **ASKED, seed=0)
    assert "\n" not in str(caught.value)


def test_a_worker_that_hangs_is_ended(stub, monkeypatch):
    monkeypatch.setenv("STUB", "hang")
    sampler, log = stub
    with pytest.raises(SamplerError, match="no sign of life for 3 seconds"):
        replace(sampler, patience=3.0).sample(PROMPTS, **ASKED, seed=0)
    (worker,) = log.iterdir()
    assert _gone(int(worker.name))


def test_workers_end_with_the_process_that_asked(stub):
    sampler, log = stub
    code = (
        "from pathlib import Path; from llm.runtime import Runtime\n"
        "from llm.sampling.vllm_sampler import VllmSampler\n"
        f"s = VllmSampler(Path({str(sampler.folder)!r}), eos=0, "
        f"runtime=Runtime(vllm_python={sampler.runtime.vllm_python!r}))\n"
        "s.sample([[5]], k=1, temperature=1, max_tokens=3, seed=0)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "STUB": "hang", "PYTHONPATH": root}
    )
    try:
        _until(lambda: list(log.iterdir()))
        (worker,) = log.iterdir()
        assert not _gone(int(worker.name), seconds=0)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert _gone(int(worker.name))


def _gone(pid, seconds=20.0):
    def ended():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state == "Z"  # nobody's child any more, or not yet waited for

    return _until(ended, seconds)


def _until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


def test_an_environment_without_vllm_says_how_to_install_it(tmp_path):
    bare = _script(tmp_path / "bare", f'exec {sys.executable} -I -S "$@"')
    with pytest.raises(InputError, match=r"no vllm; install it .*/pip install vllm==0\.31\.0"):
        require_vllm(Runtime(vllm_python=bare))
    with pytest.raises(InputError, match="cannot be run"):
        require_vllm(Runtime(vllm_python=str(tmp_path / "python")))
    broken = _script(tmp_path / "broken", "echo no such option >&2; exit 2")
    with pytest.raises(InputError, match=r"not a working python \(no such option\)"):
        require_vllm(Runtime(vllm_python=broken))


def _script(file, line):
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)
    return str(file)


def test_a_folder_without_a_model_is_refused(stub, tmp_path):
    sampling = {"sampler": "vllm", "precision": "fp32"}
    with pytest.raises(InputError, match="no model to sample from"):
        open_sampler(tmp_path, sampling=sampling, words={"eos": 0}, runtime=stub[0].runtime)


def test_open_sampler_gives_a_vllm_sampler_over_the_folder(stub):
    sampler = open_sampler(
        stub[0].folder,
        sampling={"sampler": "vllm", "precision": "bf16"},
        words={"eos": 3, "pad": 1},
        runtime=stub[0].runtime,
    )
    assert sampler == VllmSampler(stub[0].folder, 3, stub[0].runtime, "bf16")


def test_the_record_tells_the_versions_of_the_environment_that_sampled(stub, tmp_path):
    """Not this one's: only the worker knows them."""
    store, key = Store(tmp_path / "study"), StageKey("eval", 0, "0" * 64)
    store.partial(key).mkdir(parents=True)
    replace(stub[0], stage=store.partial(key)).sample(PROMPTS, **ASKED, seed=0)
    store.finish(key, {"versions": {}})
    versions = {"vllm": VERSION, "torch": metadata.version("torch")}
    assert store.record(key) == {"versions": {}, "sampler_versions": versions}
    assert [file.name for file in store.path(key).iterdir()] == ["record.json"]


@pytest.mark.parametrize("temperature", [0.005, -1.0, float("nan"), float("inf")])
def test_temperatures_that_vllm_would_change_are_refused(stub, temperature):
    with pytest.raises(ValueError, match="temperature"):
        stub[0].sample(PROMPTS, k=1, temperature=temperature, max_tokens=3, seed=0)


@pytest.mark.parametrize(("shown", "wanted"), [("0,1,2", 4), ("3", 2)])
def test_more_gpus_than_there_are_shown_are_refused(shown, wanted):
    with pytest.raises(InputError, match=f"CUDA_VISIBLE_DEVICES = {shown}"):
        gpus_of_workers(Runtime(data_parallel=wanted), {"CUDA_VISIBLE_DEVICES": shown})


def test_gpus_are_shared_out():
    four = Runtime(data_parallel=2, tensor_parallel=2)
    assert gpus_of_workers(four, {}) == ["0,1", "2,3"]
    assert gpus_of_workers(four, {"CUDA_VISIBLE_DEVICES": ""}) == [None, None]


def test_no_prompts_no_worker(stub):
    assert stub[0].sample([], **ASKED, seed=0) == []
    assert not list(stub[1].iterdir())


def test_the_answer_of_a_long_call_is_not_kept_in_small_pieces(stub):
    prompts = [[i % 40 + 1] for i in range(3000)]  # more than the engine is given at once
    drawn = stub[0].sample(prompts, k=1, temperature=1, max_tokens=2, seed=0)
    seeds = prompt_seeds(0, 3000, 1).tolist()
    assert [list(line[0].ids) for line in drawn] == [stub_tokens(s, 2, EOS) for s in seeds]
    assert np.mean([line[0].ended for line in drawn]) == pytest.approx(1 - (7 / 8) ** 2, abs=0.03)
