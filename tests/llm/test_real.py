"""Real posts and the real tokenizer: a planted preference is learned; held-out posts show it."""

import gzip
import json
from dataclasses import replace

import pytest

from llm import presets
from llm.__main__ import main
from llm.presets import preset

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
