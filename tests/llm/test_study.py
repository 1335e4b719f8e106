"""The study end to end on a small task: resume after kills, records, verdicts, bad input."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from llm import __main__ as command
from llm.data.task_file import read_task
from llm.judge.ask import Bill
from llm.protocol import presets
from llm.records import file_digest, locked
from llm.running.state import states
from llm.stages import kinds, pairs
from llm.study.plan_text import judge_words
from llm.study.study import Request, judged, prepare
from paper_figures import __main__ as figures
from tests.llm.misbehaving import KEY, Server, longer
from theory.predictions import Prediction, load_measurements, load_verdicts, save

SCRIPT = Path(__file__).with_name("small_study.py")
spec = importlib.util.spec_from_file_location("small_study", SCRIPT)
assert spec is not None
assert spec.loader is not None
spec.loader.exec_module(importlib.util.module_from_spec(spec))  # registers the preset "test"


FIGURES = ("fig3", "fig9", "fig10")


def _arguments(task: Path, out: Path, *more: str) -> list[str]:
    figures = () if any(word.startswith("fig") for word in more) else FIGURES
    line = ["study", *figures, "--preset", "test", "--data", str(task), "--out", str(out)]
    return [*line, *more]


def _predictions(path: Path, task: Path | None) -> Path:
    def of(figure, quantity):
        return Prediction(figure, quantity, "greater", 0.1, 0.01, "u", "toy", "test", (), "claim")

    rows = [
        of("fig3", "win_rate[online_dpo_sft] - win_rate[dpo]"),
        of("fig9", "val_loss[local_rm] - val_loss[global_rm]"),
        of("fig9", "val_accuracy[global_rm] - val_accuracy[local_rm]"),
    ]
    save(path, "predictions", rows, task=None if task is None else file_digest(task))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory, shared_task_file):
    """(task file, finished study of Figs. 3, 9 and 10 and two seeds, run without a break)."""
    folder = tmp_path_factory.mktemp("study")
    task = shared_task_file
    predictions = _predictions(folder / "predictions.json", task)
    arguments = _arguments(task, folder / "out", "--predictions", str(predictions), "--jobs", "1")
    assert command.main(arguments) == 0
    return task, folder / "out", predictions


def _content(out: Path) -> dict[str, object]:
    """Everything that must be the same after a resume: metrics, weights, samples, histories."""
    found: dict[str, object] = {}
    for record_file in sorted(out.glob("stages/*/record.json")):
        record = json.loads(record_file.read_text())
        name = record_file.parent.name
        found[name] = {k: record[k] for k in ("metrics", "history", "weights_sha256", "inputs")}
        for table in record_file.parent.glob("*.parquet"):
            found[f"{name}/{table.name}"] = file_digest(table)
    found["measurements"] = (out / "measurements.json").read_text()
    found["verdicts"] = (out / "verdicts.json").read_text()
    return found


def test_every_arm_is_trained_measured_and_recorded(study):
    task_file, out, _ = study
    record = json.loads((out / "study.json").read_text())
    arms = ["sft", *(f"{n}[{s}]" for s in (0, 1) for n in ("global_rm", "local_rm", "dpo"))]
    arms += [f"{n}[{s}]" for s in (0, 1) for n in ("dpo_2x", "online_dpo_sft", "online_dpo_dpo")]
    assert set(arms) <= set(record["stages"])
    for arm in arms:
        folder = out / record["stages"][arm]
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            assert weights.keys()
        stage = json.loads((folder / "record.json").read_text())
        assert len(stage["weights_sha256"]) == 64
        assert stage["metrics"]["steps"] == stage["history"][-1]["step"]
    rates = {
        json.loads((out / record["stages"][arm] / "record.json").read_text())["metrics"][
            "learning_rate"
        ]
        for arm in arms
        if "dpo" in arm or "local" in arm
    }
    assert len(rates) == 1  # one rule, the same for every DPO arm
    card = json.loads((out / "data_card.json").read_text())
    assert card["counts"]["pairs"] == 48
    task = read_task(task_file)
    leaves = np.load(out / record["stages"]["eval_dpo[0]"] / "leaf_logprobs.npz")
    assert leaves.files == list(task.prompts)
    assert all(0 < np.exp(leaves[name]).sum() <= 1 + 1e-5 for name in leaves.files)


def test_online_pairs_are_best_and_worst(study):
    _, out, _ = study
    record = json.loads((out / "study.json").read_text())
    folder = out / record["stages"]["online_pairs_sft[1]"]
    samples = pq.read_table(folder / "samples.parquet").to_pylist()
    by_pool: dict[str, list] = {}
    for row in samples:
        by_pool.setdefault(row["prompt_id"], []).append(row["score"])
    for pair in pq.read_table(folder / "pairs.parquet").to_pylist():
        assert pair["chosen_score"] == max(by_pool[pair["prompt_id"]])
        assert pair["rejected_score"] == min(by_pool[pair["prompt_id"]])
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    assert metrics["pairs"] + metrics["pools_dropped_all_identical"] == 48


def test_measurements_and_verdicts(study):
    _, out, _ = study
    measured = {(m.figure, m.quantity): m for m in load_measurements(out / "measurements.json")}
    difference = measured["fig3", "win_rate[online_dpo_sft] - win_rate[dpo]"]
    alone = [measured["fig3", f"win_rate[{n}]"] for n in ("online_dpo_sft", "dpo")]
    for i in range(2):
        gap = alone[0].per_seed[i] - alone[1].per_seed[i]
        assert difference.per_seed[i] == pytest.approx(gap)
    assert difference.low is not None
    assert difference.high is not None
    assert difference.value is not None
    assert difference.low < difference.value < difference.high
    verdicts = load_verdicts(out / "verdicts.json")
    assert verdicts[0].prediction.quantity == difference.quantity
    assert all(v.outcome in ("supported", "contradicted", "inconclusive") for v in verdicts)


def test_a_second_run_trains_nothing(study):
    task, out, predictions = study
    before = {path: path.stat().st_mtime_ns for path in out.glob("stages/*/*")}
    assert command.main(_arguments(task, out, "--predictions", str(predictions))) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("stages/*/*")} == before


def _wait_for(seen, process: subprocess.Popen, *, seconds: float = 240.0) -> None:
    """Return as soon as `seen()` holds in the running study."""
    end = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None, "the study ended before it was seen"
        assert time.monotonic() < end, "nothing to kill within the time"
        time.sleep(0.005)


def _kill_parent(seen, process: subprocess.Popen) -> None:
    """SIGKILL the parent alone: its workers must notice and end."""
    _wait_for(seen, process)
    process.kill()
    process.wait()


def _kill_all(seen, process: subprocess.Popen) -> None:
    """SIGKILL every process of the study while `seen()` holds: they stand still before we look."""
    while True:
        _wait_for(seen, process)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(0.1)  # a signal takes effect a moment after it is sent
        if seen():
            break
        os.killpg(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _states_at_rest(out: Path, *, seconds: float = 60.0) -> set[str]:
    """The states of a killed study, once its workers have noticed."""
    end = time.monotonic() + seconds
    while "running" in (found := {stage.state for stage in states(out)}):
        assert time.monotonic() < end, "a worker outlived its parent"
        time.sleep(0.05)
    return found


def test_killed_while_training_and_while_sampling_it_ends_the_same(study, tmp_path):
    task, whole, predictions = study
    out = tmp_path / "out"
    more = ("--predictions", str(predictions), "--jobs", "2")
    line = [sys.executable, str(SCRIPT), *_arguments(task, out, *more)]

    def start():
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(line, start_new_session=True, stderr=log, stdout=log)

    def inside_training():
        return list(out.glob("stages/.*.partial/checkpoints/checkpoint-*/trainer_state.json"))

    def inside_sampling():
        return list(out.glob("stages/.online_pairs_*.partial/running.json"))

    _kill_parent(inside_training, start())
    assert "failed" not in _states_at_rest(out)
    _kill_all(inside_sampling, start())
    dead = _states_at_rest(out)
    assert "died" in dead
    assert "failed" not in dead
    last = start()
    assert last.wait(timeout=400) == 0, (tmp_path / "log").read_text()
    assert _content(out) == _content(whole)
    assert not list(out.glob("stages/.*"))


def test_a_failed_stage_stops_only_what_rests_on_it(study, tmp_path, capsys, monkeypatch):
    task, *_ = study
    out = tmp_path / "out"

    def breaks(work):
        raise RuntimeError("no memory left")

    monkeypatch.setitem(kinds.KINDS, "local_rm", breaks)
    line = _arguments(task, out, "fig9", "--seeds", "1", "--jobs", "1")
    assert command.main(line) == 1
    errors = capsys.readouterr().err
    assert "failed: local_rm[0]: RuntimeError: no memory left" in errors
    assert "failed: eval_local_rm[0]: an input failed" in errors
    done = json.loads((out / "study.json").read_text())["stages"]
    assert {"eval_global_rm[0]", "eval_dpo_rm[0]"} <= set(done)
    assert command.main(["status", str(out)]) == 1
    assert "failed" in capsys.readouterr().out
    monkeypatch.undo()
    assert command.main(line) == 0


# --- bad input: one clear error, exit code 2, nothing left behind --------------------------------


def _refused(capsys, out: Path, arguments: list[str]) -> str:
    assert command.main(arguments) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ")
    assert "\n" not in errors
    assert not out.exists()
    return errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "--preset", "huge"], "unknown preset 'huge'; known: tiny"),
        (["study", "fig33"], "unknown figure 'fig33'; known: fig3, fig4"),
        (["study", "--data", "/no/such/path"], "/no/such/path: no such path"),
        (["study", "--seeds", "0"], "--seeds 0"),
        (["study", "--jobs", "0"], "--jobs 0"),
        (["study", "--predictions", "/no/predictions.json"], "/no/predictions.json"),
        (["study", "--tokenizer", "x.json"], "a task brings its own"),
        (["study", "--model", "/no/such/model"], "--model /no/such/model: no such folder"),
        (["study", "--seeds", "1000000000"], "1000000000 seeds: at most"),
        (["study", "--data", ""], "--data is empty"),
        (["study", "--model", ""], "--model is empty"),
        (["study", "--data", "x" * 300], "File name too long"),
        (["train", "dpo[7]x"], "is no number"),
        (["train", "ppo[0]"], "unknown stage 'ppo[0]'"),
    ],
)
def test_bad_arguments_are_refused(capsys, tmp_path, arguments, message):
    out = tmp_path / "out"
    assert message in _refused(capsys, out, [*arguments, "--out", str(out)])


def test_bad_data_is_refused_and_nothing_is_left(capsys, tmp_path, small_tokenizer_file):
    out = tmp_path / "out"
    data = tmp_path / "data"
    data.mkdir()
    (data / "comparisons.json").write_text('{"info": {}}\nnot json\n')
    tokenizer = ["--tokenizer", str(small_tokenizer_file)]
    line = ["study", "--data", str(data), "--out", str(out), *tokenizer]
    assert "comparisons.json" in _refused(capsys, out, line)


def test_a_task_with_bad_numbers_is_refused(capsys, tmp_path, small_task):
    out, path = tmp_path / "out", tmp_path / "bad.json"
    for change, message in (
        ({"beta": 0}, "beta"),
        ({"horizon": 400}, "horizon 400"),
        ({"horizon": 10**9}, "horizon 1000000000"),
    ):
        path.write_text(json.dumps({**small_task, **change}))
        assert message in _refused(capsys, out, _arguments(path, out))


def test_another_configuration_in_the_same_folder_is_refused(capsys, study):
    task, out, _ = study
    before = (out / "identity.json").read_text()
    line = ["study", "--preset", "tiny", "--data", str(task), "--out", str(out)]
    assert command.main(line) == 2
    errors = capsys.readouterr().err
    assert "was made by another configuration" in errors
    assert "preset" in errors
    assert (out / "identity.json").read_text() == before


def test_predictions_for_another_task_are_refused(capsys, study, tmp_path, small_eos_task_file):
    _, _, predictions = study
    out = tmp_path / "out"
    line = _arguments(small_eos_task_file, out, "--predictions", str(predictions))
    assert "was made for task" in _refused(capsys, out, line)


def test_a_folder_with_other_things_is_refused(capsys, study, tmp_path):
    task, *_ = study
    (tmp_path / "thesis.tex").write_text("precious")
    assert command.main(_arguments(task, tmp_path)) == 2
    assert "holds no study" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("name", ["identity.json", "graph.json", "study.json"])
def test_a_file_that_is_no_study_is_told_in_a_line(name, study, tmp_path, capsys):
    task, out, _ = study
    shutil.copytree(out, tmp_path / "copy", ignore=shutil.ignore_patterns("stages", "tracker"))
    (tmp_path / "copy" / name).write_text("[]")
    line = _arguments(task, tmp_path / "copy", "--dry-run")
    if name == "graph.json":
        line = ["status", str(tmp_path / "copy")]
    assert command.main(line) == 2
    assert f"{name}: not an object" in capsys.readouterr().err


def test_a_folder_that_a_kill_left_all_but_empty_is_no_other_study(tmp_path, shared_task_file):
    (tmp_path / ".lock").touch()
    (tmp_path / "identity.json.partial").write_text("{")
    assert command.main([*_arguments(shared_task_file, tmp_path, "fig9"), "--dry-run"]) == 0
    prepare(Request(out=tmp_path, preset="test", data=str(shared_task_file), figures=("fig9",)))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--key-name", KEY, "is the name of an environment variable"),
        ("--requests-per-minute", "0", "must be > 0"),
        ("--price-in", "inf", "must be finite"),
    ],
)
def test_a_bad_runtime_is_refused_and_no_key_is_repeated(capsys, option, value, message):
    with pytest.raises(SystemExit) as ended:
        command.main(["study", "--dry-run", option, value])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert message in " ".join(said.err.split())
    assert KEY not in "".join((said.out + said.err).split())


def test_figures_and_seeds_asked_for_before_stay_measured(tmp_path, shared_task_file):
    line = _arguments(shared_task_file, tmp_path / "out", "fig9", "--jobs", "1", "--seeds", "2")
    assert command.main(line) == 0
    old = json.loads((tmp_path / "out" / "measurements.json").read_text())["measurements"]
    again = _arguments(shared_task_file, tmp_path / "out", "fig3", "--jobs", "1", "--seeds", "1")
    assert command.main(again) == 0
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert (study["figures"], study["seeds"]) == (["fig3", "fig9"], [0, 1])
    assert {"eval_global_rm[1]", "eval_dpo[0]"} <= set(study["stages"])
    new = json.loads((tmp_path / "out" / "measurements.json").read_text())["measurements"]
    assert [row for row in new if row["figure"] == "fig9"] == old
    assert any(row["figure"] == "fig3" for row in new)


def test_a_killed_data_stage_is_made_again(study, tmp_path, monkeypatch):
    task, *_ = study
    out = tmp_path / "out"

    def killed(work):
        raise KeyboardInterrupt

    monkeypatch.setitem(kinds.KINDS, "data", killed)
    line = ["train", "sft", "--preset", "test", "--data", str(task), "--out", str(out)]
    assert command.main([*line, "--jobs", "1"]) == 130
    monkeypatch.undo()
    assert command.main([*line, "--jobs", "1"]) == 0


def test_a_folder_in_use_or_a_file_is_refused(capsys, study, tmp_path):
    task, out, _ = study
    with locked(out):
        assert command.main(_arguments(task, out)) == 2
    assert "in use by another study process" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert command.main(_arguments(task, tmp_path / "file")) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_pretrained_model_of_another_vocabulary_is_refused(
    capsys, study, tmp_path, small_tldr, small_tokenizer_file
):
    """A model folder is checked before any training, and the folder is free again."""
    _, whole, _ = study
    model = whole / json.loads((whole / "study.json").read_text())["stages"]["sft"]
    out = tmp_path / "out"
    line = _arguments(small_tldr, out, "--tokenizer", str(small_tokenizer_file))
    errors = _refused(capsys, out, [*line, "--model", str(model)])
    assert "the tokenizer has" in errors
    (tmp_path / "empty").mkdir()
    assert "no *.safetensors" in _refused(capsys, out, [*line, "--model", str(tmp_path / "empty")])


def test_a_pretrained_model_is_trained_further(study, tmp_path):
    task, whole, _ = study
    model = whole / json.loads((whole / "study.json").read_text())["stages"]["sft"]
    out = tmp_path / "out"
    line = ["--preset", "test", "--data", str(task), "--out", str(out), "--jobs", "1"]
    assert command.main(["train", "sft", *line, "--model", str(model)]) == 0
    (record,) = out.glob("stages/sft-*/record.json")
    config = json.loads(record.read_text())["config"]
    assert config["model"]["pretrained"] == str(model)
    assert len(config["model"]["sha256"]) == 64
    assert config["train"]["fixed_rate"] is None


# --- text ----------------------------------------------------------------------------------------


def test_text_is_trained_on_but_not_judged(capsys, tmp_path, small_tldr, small_tokenizer_file):
    """Real loading code on small files: lengths, ROUGE-L, and no verdict at this size."""
    out = tmp_path / "out"
    line = _arguments(small_tldr, out, "--tokenizer", str(small_tokenizer_file))
    assert command.main([*line, "--seeds", "1", "--jobs", "1"]) == 0
    verdicts = load_verdicts(out / "verdicts.json")
    assert verdicts
    assert {v.outcome for v in verdicts} == {"model too small to judge"}
    assert "8 posts and 30 pairs" in verdicts[0].reason
    measured = {m.quantity for m in load_measurements(out / "measurements.json")}
    assert {"rouge_l[dpo]", "mean_tokens[online_dpo_dpo]", "val_loss[dpo_rm]"} <= measured
    assert not any(quantity.startswith("win_rate") for quantity in measured)


def _said_of_the_judge(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("judge ")]


def test_what_the_judge_costs_is_said_before_and_after(
    capsys, tmp_path, monkeypatch, small_tldr, small_tokenizer_file
):
    """Each of 5 policies has 4 samples, asked in 2 orders; one answer cannot be read."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out = tmp_path / "out"
    with Server(lambda asked: longer(asked) if len(server.prompts) > 1 else "no idea") as server:
        line = _arguments(small_tldr, out, "fig3", "--tokenizer", str(small_tokenizer_file))
        line += ["--judge", "gpt-4o", "--base-url", server.url, "--seeds", "1", "--jobs", "1"]
        assert command.main(line) == 0
        before, after = _said_of_the_judge(capsys)
        asked = len(server.prompts)
        assert command.main(line) == 0  # all is done: nothing is expected
    assert before.startswith("judge gpt-4o: 40 questions at most, about 0.0")
    bill = json.loads((out / "study.json").read_text())["judge"]
    dollars = asked * (100 * 2.5 + 10 * 10) / 1e6
    assert bill["dollars"] == pytest.approx(dollars)
    assert (bill["asked"], bill["invalid"] >= 1) == (asked, True)
    said = f"asked {asked}, reused {bill['reused']}, invalid {bill['invalid']}, "
    said += f"{dollars:.2f} dollars"
    assert [after] == [f"judge gpt-4o: {said}"] == _said_of_the_judge(capsys)
    assert command.main(["status", str(out)]) == 0
    assert said in capsys.readouterr().out


def test_a_bill_that_one_stage_does_not_know_is_unknown():
    one = {"asked": 3, "reused": 1, "invalid": 0, "dollars": 0.5}
    made = {"pairs": 7, "judge_asked": 2, "judge_reused": 0, "judge_invalid": 1}
    whole = {"asked": 5, "reused": 1, "invalid": 1, "dollars": 0.75}
    assert judged([one, {**made, "judge_dollars": 0.25}, {"loss": 1.0}]) == whole
    assert judged([one, {**made, "judge_dollars": None}]) == {**whole, "dollars": None}
    assert "dollars unknown" in judge_words({**whole, "dollars": None})
    assert judged([{"loss": 1.0}]) is None


def test_rows_that_an_unreadable_answer_left_out_are_in_the_bill():
    dropped = ({pairs.UNREADABLE: 2, pairs.SPLIT: 5}, {pairs.UNWRITTEN: 1}, {})
    parts = {str(i): {"dropped": found} for i, found in enumerate(dropped)}
    asked = SimpleNamespace(bill=lambda: Bill(9, 0, 0, None, None, None, 1))
    bill = judged([pairs._bill(asked, parts)])
    assert bill == {"asked": 9, "reused": 0, "invalid": 3, "dollars": None}


def test_status_and_dry_run(capsys, study, tmp_path):
    task, out, _ = study
    assert command.main(["status", str(out)]) == 0
    assert "done" in capsys.readouterr().out
    assert command.main(_arguments(task, tmp_path / "new", "--dry-run")) == 0
    assert not (tmp_path / "new").exists()
    assert command.main(["status", str(tmp_path)]) == 2
    capsys.readouterr()
    assert command.main(_arguments(task, out, "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["totals"]["stages"] == 0
    assert plan["counts"][""]["source"] == "data card"
    assert plan["counts"][""]["pairs"] == 48


def test_compare_again_and_draw_the_report(capsys, study, tmp_path):
    """The records are what the figures read: the whole chain on a real study folder."""
    _, out, predictions = study
    before = (out / "verdicts.json").read_text()
    assert command.main(["compare", str(out), "--predictions", str(predictions)]) == 0
    assert (out / "verdicts.json").read_text() == before
    page = tmp_path / "report.html"
    assert figures.main(["report", str(out), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert 'id="verdicts"' in text
    for verdict in load_verdicts(out / "verdicts.json"):
        assert verdict.outcome in text
    assert command.main(["compare", str(tmp_path)]) == 2


def test_train_makes_one_model_and_a_study_finds_it(study, tmp_path):
    task, *_ = study
    out = tmp_path / "out"
    line = ["--preset", "test", "--data", str(task), "--out", str(out), "--jobs", "1"]
    assert command.main(["train", "global_rm[0]", *line]) == 0
    made = {path.parent.name for path in out.glob("stages/*/record.json")}
    assert {name.split("-")[0] for name in made} == {"data", "sft", "global_rm"}
    assert command.main(["study", "fig9", "--seeds", "1", *line]) == 0
    assert made <= {path.parent.name for path in out.glob("stages/*/record.json")}


def test_torchrun_trains_one_stage_whose_inputs_are_done(study, tmp_path, monkeypatch, capsys):
    """Two processes, as on two nodes: the first one writes; the losses are those of one process."""
    task, whole, _ = study
    out = tmp_path / "out"
    line = ["--preset", "test", "--data", str(task), "--out", str(out), "--jobs", "1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "data, sft, reference must be done" in _refused(capsys, out, ["train", "dpo[0]", *line])
    assert "torchrun trains one stage" in _refused(capsys, out, ["study", "fig9", *line])
    monkeypatch.undo()
    assert command.main(["train", "reference", *line]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", str(SCRIPT), "train", "dpo[0]", *line]
    ended = subprocess.run(torchrun, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    place = json.loads((whole / "study.json").read_text())["stages"]["dpo[0]"]
    alone, together = (json.loads((d / place / "record.json").read_text()) for d in (whole, out))
    for a, b in zip(alone["history"], together["history"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert len(together["weights_sha256"]) == 64
    assert not list(out.glob("stages/.*"))


def test_every_figure_runs_on_tasks(tmp_path, monkeypatch):
    """The shipped tasks, one seed, Figs. 3 to 10: no stage fails, every figure is measured.

    SFT learns more here than in the other tests: two samples that are completions make a pair.
    """
    small = presets.PRESETS["test"]("task")
    sft = replace(small.sft, save_steps=200, epochs=4)
    branches = {name: replace(limits, n_sft=512) for name, limits in small.branches.items()}
    learnt = replace(small, data=replace(small.data, n_sft=512), branches=branches, sft=sft)
    monkeypatch.setitem(presets.PRESETS, "test", lambda kind: learnt)
    out = tmp_path / "out"
    line = ["study", "--preset", "test", "--seeds", "1", "--out", str(out), "--jobs", "1"]
    assert command.main(line) == 0
    assert {stage.state for stage in states(out)} == {"done"}
    study = json.loads((out / "study.json").read_text())
    assert study["figures"] == [f"fig{i}" for i in range(3, 11)]
    measured = {m.figure for m in load_measurements(out / "measurements.json")}
    assert measured == set(study["figures"])
    assert command.main(["status", str(out)]) == 0
