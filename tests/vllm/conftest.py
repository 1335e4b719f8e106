"""Tests with vLLM itself; `make test-vllm` runs them, and names the python that has it.

Everything else runs in the project's own environment, as a user's study does.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

PYTHON = os.environ.get("ROADS_VLLM_PYTHON")
LLM_TESTS = Path(__file__).resolve().parents[1] / "llm"

if PYTHON is None:  # the ordinary run does not collect this folder; asked for by name, it is empty
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path[:0] = [str(Path(__file__).parent), str(LLM_TESTS)]


def _tests_of_llm() -> Any:
    spec = importlib.util.spec_from_file_location("llm_conftest", LLM_TESTS / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shared = _tests_of_llm()
small_tokenizer_file = shared.small_tokenizer_file
small_tokenizer = shared.small_tokenizer


@pytest.fixture(scope="session")
def runtime() -> Any:
    """Where vLLM is: tests here fail, and are never skipped, if it does not work."""
    from llm.runtime import Runtime

    return Runtime(vllm_python=PYTHON)


@pytest.fixture(scope="session")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 posts, 3 preferences each, as `small_tldr` of the other tests."""
    posts, preferences, comparisons = shared.make_rows(40)
    folder = tmp_path_factory.mktemp("posts") / "tldr"
    shared.write_lines(folder / "posts.jsonl", posts)
    shared.write_lines(folder / "preferences.jsonl", preferences[:60])
    shared.write_lines(folder / "comparisons" / "batch1.json", comparisons[45:])
    return folder


def noisy_policy(folder: Path, vocabulary: int, *, eos: int, pad: int, seed: int) -> Any:
    """A GPT-NeoX of head size 32 whose next tokens are neither certain nor uniform, saved."""
    import torch

    from llm.config import ModelConfig
    from llm.models.build import new_policy, save_policy

    config = ModelConfig(hidden_size=64, layers=2, heads=2, max_positions=256)
    model = new_policy(config, vocabulary=vocabulary, eos=eos, pad=pad, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    save_policy(model, folder)
    return model
