"""Real posts and the real tokenizer: a planted preference is learned; held-out posts show it."""

import gzip
import json
from dataclasses import asdict, replace

import pytest

from llm import tables
from llm.__main__ import main
from llm.config import OnlineConfig
from llm.data.config import DataConfig
from llm.data.tokenize import load_tokenizer
from llm.protocol import presets
from llm.protocol.presets import preset
from llm.stages import pairs
from tests.llm.small_stages import data_stage, random_policy, work_of

CLEARLY = 1.3  # the longer text has at least this many times the letters


def _planted(source, folder):
    """The real texts, relabelled: of two clearly different lengths the shorter summary wins."""
    folder.mkdir()
    (folder / "posts.jsonl").write_bytes((source / "posts.jsonl").read_bytes())
    with (
        gzip.open(source / "preferences_10k.jsonl.gz", "rt", encoding="utf-8") as rows,
        (folder / "preferences.jsonl").open("w", encoding="utf-8") as out,
    ):
        for line in rows:
            row = json.loads(line)
            shorter, longer = sorted((row["chosen"], row["rejected"]), key=len)
            if len(longer) > CLEARLY * len(shorter):
                out.write(json.dumps({**row, "chosen": shorter, "rejected": longer}) + "\n")
    return folder


@pytest.mark.usefixtures("pythia_tokenizer")
def test_a_planted_preference_is_learned(tldr_dir, tmp_path, monkeypatch):
    def planted(kind):
        tiny = preset("tiny", kind)
        data = replace(tiny.data, n_sft=64, n_pairs=3600, n_validation_pairs=300, n_test=10)
        return replace(tiny, preset="planted", data=data)

    monkeypatch.setitem(presets.PRESETS, "planted", planted)
    out = tmp_path / "out"
    tokenizer = tldr_dir.parent / "tokenizer" / "20B_tokenizer.json"
    line = ["--preset", "planted", "--data", str(_planted(tldr_dir, tmp_path / "data"))]
    line += ["--tokenizer", str(tokenizer), "--out", str(out), "--jobs", "1"]
    assert main(["train", "eval_global_rm[0]", *line]) == 0
    (record,) = out.glob("stages/eval_global_rm-0-*/record.json")
    metrics = json.loads(record.read_text())["metrics"]
    assert metrics["pairs"] == 300
    assert metrics["val_accuracy"] >= 0.9


def test_pairs_ranked_on_real_posts(tldr_dir, tmp_path):
    """Fig. 6: samples of a policy that writes any bytes; their texts stay as they were ranked."""
    tokenizer = tldr_dir.parent / "tokenizer" / "20B_tokenizer.json"
    limits = DataConfig(n_sft=10, n_pairs=60, n_validation_pairs=20, n_test=5)
    data = data_stage(tmp_path / "data", tldr_dir, limits, tokenizer)
    words = json.loads((data / "vocabulary.json").read_text())
    inputs = {"data": data, "policy": random_policy(tmp_path / "policy", words)}
    online = asdict(OnlineConfig(samples=3, temperature=1.0, pool="prompt"))
    work = work_of(tmp_path, inputs, None, how="ranked", samples=3, tokens=12, online=online)
    metrics = pairs.make(work)
    rows = {row.example_id: row for row in work.examples("pairs")}
    found = tables.read_examples(work.folder / "pairs.parquet")
    assert metrics["pairs"] == len(found) > 50
    assert metrics["pools"] == len({row.prompt_ids for row in rows.values()}) < 60
    decode = load_tokenizer(data / "tokenizer").decode
    for pair in found:
        assert pair.prompt_ids == rows[pair.example_id].prompt_ids
        for ids, text in zip(pair.completion_ids, pair.completions, strict=True):
            assert ids[-1] == words["eos"]
            assert decode(ids[:-1]).strip() == text
