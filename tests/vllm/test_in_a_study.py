"""A study's own stages through vLLM: whose weights it samples, and whose log-probs train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm import tables
from llm.models.build import load_policy
from llm.models.forward import completion_logps
from llm.models.packing import collate
from llm.sampling.sample import TransformersSampler
from llm.sampling.vllm_sampler import VllmSampler

HERE = Path(__file__).parent
TEMPERATURE = 0.5  # of the preset's online samples


@pytest.fixture(scope="module")
def stages(posts, small_tokenizer_file, runtime, tmp_path_factory):
    """{stage: folder} after `train online_dpo_sft[0]`, vLLM drawing the pairs' samples."""
    out = tmp_path_factory.mktemp("study") / "out"
    command = [sys.executable, str(HERE / "small_vllm_study.py"), "train", "online_dpo_sft[0]"]
    command += ["--preset", "vllm", "--data", str(posts), "--tokenizer", str(small_tokenizer_file)]
    command += ["--out", str(out), "--vllm-python", str(runtime.vllm_python), "--jobs", "1"]
    root = str(HERE.parents[1])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    records = out.glob("**/record.json")
    return {json.loads(file.read_text())["stage"]: file.parent for file in records}


def _words(stages):
    return json.loads((stages["data"] / "vocabulary.json").read_text())


def _prompts(stages):
    return [
        row["prompt_ids"] for row in tables.read_rows(stages["online_pairs_sft"] / "pairs.parquet")
    ]


def test_pairs_carry_the_trainers_log_probs_at_the_sampling_temperature(stages):
    """vLLM's own log-probs differ from the trainer's: none of them is ever stored."""
    rows = tables.read_rows(stages["online_pairs_sft"] / "pairs.parquet")
    assert len(rows) > 10
    model = load_policy(stages["sft"])
    ids = [(row["chosen_ids"], row["rejected_ids"]) for row in rows]
    batch = collate([row["prompt_ids"] for row in rows], ids, pad=_words(stages)["pad"])
    with torch.no_grad():
        ours = completion_logps(model, batch, temperature=TEMPERATURE)
    stored = torch.tensor([[row["chosen_logp"], row["rejected_logp"]] for row in rows])
    assert (ours - stored).abs().max() < 1e-4


def test_the_record_tells_which_vllm_sampled(stages):
    record = json.loads((stages["online_pairs_sft"] / "record.json").read_text())
    assert record["sampler_versions"]["vllm"] == "0.31.0"
    assert record["sampler_versions"]["torch"].startswith("2.13.0")


def test_the_weights_of_the_stage_just_trained_are_the_ones_sampled(stages, runtime):
    """The two policies of one run say different things, each what transformers says of it."""
    words, prompts = _words(stages), _prompts(stages)[:8]
    asked = {"k": 1, "temperature": 0, "max_tokens": 12, "seed": 0}
    said = {}
    for name in ("sft", "online_dpo_sft"):
        said[name] = VllmSampler(stages[name], words["eos"], runtime).sample(prompts, **asked)
        model = load_policy(stages[name])
        plain = TransformersSampler(model, eos=words["eos"], pad=words["pad"])
        assert said[name] == plain.sample(prompts, **asked)
    assert said["sft"] != said["online_dpo_sft"]
