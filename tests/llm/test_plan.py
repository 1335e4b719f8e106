"""What a study would take: counted by hand on small cases, said to be unknown where it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config

from llm import __main__ as command
from llm import tables
from llm.config import FIGURES, ModelConfig
from llm.data.config import DataConfig
from llm.errors import InputError
from llm.models import build
from llm.models.build import new_policy, save_policy
from llm.models.shapes import PYTHIA, neox, shape_of
from llm.records import write_json
from llm.runtime import Runtime
from llm.study import checks, costs
from llm.study.costs import GIB, Lengths, Machine
from llm.study.plan import StagePlan, StudyPlan
from llm.study.request import Request, configure, default_seeds
from llm.study.study import planned
from tests.llm.small_stages import data_stage
from tests.llm.small_study import small

PUBLISHED = {  # the parameters of each model's card on the hub
    "70m": 70_426_624,
    "160m": 162_322_944,
    "410m": 405_334_016,
    "1b": 1_011_781_632,
    "1.4b": 1_414_647_808,
    "2.8b": 2_775_208_960,
    "6.9b": 6_857_302_016,
    "12b": 11_846_072_320,
}
SMALL = neox(64, 2, 2, 100)
PRESET = small("task").preset  # known by its module
MACHINE = Machine(peak_tflops=1.0, utilisation=0.5, bandwidth=1.0, bandwidth_use=0.5, sequences=4)


# --- shapes --------------------------------------------------------------------------------------


def test_parameters_are_those_published():
    assert {name: shape.parameters for name, shape in PYTHIA.items()} == PUBLISHED


def test_parameters_of_a_model_from_scratch_and_of_a_folder_are_counted(tmp_path):
    config = ModelConfig(hidden_size=32, layers=2, heads=2)
    model = new_policy(config, vocabulary=50, eos=0, pad=1, seed=0)
    counted = sum(p.numel() for p in model.parameters())
    found = shape_of(config, 50)
    assert found is not None
    assert found.parameters == counted
    save_policy(model, tmp_path)
    folder = shape_of(ModelConfig(pretrained=str(tmp_path)), None)
    assert folder == found
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="its shape cannot be read"):
        shape_of(ModelConfig(pretrained=str(tmp_path)), None)
    GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50).save_pretrained(tmp_path)  # its words
    assert shape_of(ModelConfig(pretrained=str(tmp_path)), None) == found


def test_what_is_not_known_is_none():
    assert shape_of(ModelConfig(), None) is None
    assert shape_of(ModelConfig(pretrained="owner/some-llama"), 100) is None
    assert (
        shape_of(ModelConfig(pretrained="EleutherAI/pythia-1.4b-deduped"), None) == PYTHIA["1.4b"]
    )


# --- formulas ------------------------------------------------------------------------------------


def test_hours_by_hand():
    """6 or 2 operations a parameter and token, at half of a TFLOP/s."""
    n = SMALL.parameters
    assert costs.train_hours(SMALL, 10, 7, MACHINE) * 3600 == pytest.approx(6 * n * 70 / 5e11)
    assert costs.score_hours(SMALL, 10, 7, MACHINE) * 3600 == pytest.approx(2 * n * 70 / 5e11)


def test_sampling_hours_by_hand():
    """Prompts once, then 8 tokens of 6 samples, 4 at a time: 12 steps that read, or compute."""
    lengths, n = Lengths(prompt=10, completion=0, generated=8), SMALL.parameters
    read = (2 * n + 4 * (10 + 4) * SMALL.cache_bytes) / 5e11
    assert SMALL.cache_bytes == 2 * 2 * 2 * 64  # keys and values, 2 bytes, 2 layers, 64 wide
    for tflops, step in ((100.0, read), (1.0, 2 * n * 4 / 5e11)):
        machine = replace(MACHINE, peak_tflops=tflops)
        prompts = 2 * n * 3 * 10 / (tflops * 5e11)
        found = costs.sample_hours(SMALL, 3, 2, lengths, machine) * 3600
        assert found == pytest.approx(prompts + 12 * step)


def test_memory_by_hand():
    n = SMALL.parameters
    found = costs.train_memory(SMALL, 60, gpus=8, half=True)  # small: copied, not sharded
    assert found * GIB == pytest.approx(22 * n + 60 * (2 * 64 * 34 + 100 * 8))
    large = PYTHIA["6.9b"]
    one, eight = (costs.train_memory(large, 0, gpus=g, half=False) for g in (1, 8))
    assert one * GIB == 16 * large.parameters
    whole = 4 * (2 * 12 * 4096**2 + 4 * 50432 * 4096)  # two layers; embeddings, their gradients
    assert eight * GIB == pytest.approx(16 / 8 * large.parameters + whole)
    both = [costs.train_memory(large, 0, gpus=8, half=half) for half in (True, False)]
    assert (both[0] - both[1]) * GIB == pytest.approx(2 * large.parameters)  # not split
    found = costs.score_memory(SMALL, 60, half=True)
    assert found * GIB == pytest.approx(6 * n + 60 * (64 * 50 + 100 * 8))
    most = costs.score_memory(large, 2**14, half=True) - costs.score_memory(large, 2**13, half=True)
    assert most * GIB == pytest.approx(2**13 * 4096 * 50)  # no more logits than a block of them


def test_every_stage_of_the_paper_fits_one_gpu_of_eight():
    runtime = Runtime(gpus=8, data_parallel=8)
    plan = _plan(preset="paper", figures=FIGURES, runtime=runtime)
    assert not plan.warnings


@given(st.integers(1, 10**6), st.integers(1, 30), st.sampled_from(sorted(PYTHIA)))
def test_twice_the_work_takes_no_less_and_no_more_than_twice_as_long(prompts, each, name):
    shape, lengths, machine = PYTHIA[name], Lengths(), Machine()
    once = costs.sample_hours(shape, prompts, each, lengths, machine)
    twice = costs.sample_hours(shape, 2 * prompts, each, lengths, machine)
    assert once < twice <= 2 * once * (1 + 1e-9)
    faster = replace(machine, peak_tflops=2 * machine.peak_tflops, bandwidth=2 * machine.bandwidth)
    halved = costs.sample_hours(shape, prompts, each, lengths, faster)
    assert halved == pytest.approx(once / 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("peak_tflops", 0), ("utilisation", 1.5), ("utilisation", float("nan")), ("memory", -1.0)],
)
def test_a_machine_that_cannot_be_is_refused(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value}"):
        Machine(**{name: value})


# --- plans ---------------------------------------------------------------------------------------


def _plan(**changes) -> StudyPlan:
    given_ = {"out": Path("/nowhere/study"), "preset": "1.4b", "figures": ("fig3",), "seeds": 1}
    return planned(Request(**{**given_, **changes}))


def _stages(plan: StudyPlan) -> dict[str, StagePlan]:
    return {stage.id: stage for stage in plan.stages}


def test_totals_are_the_sums_of_the_stages():
    plan = _plan()
    for name in ("gpu_hours", "disk_gib"):
        total = sum(getattr(stage, name) for stage in plan.stages)
        assert getattr(plan.totals, name) == pytest.approx(total, rel=1e-3)
    assert plan.totals.questions == sum(stage.questions for stage in plan.stages) == 5 * 2 * 600
    assert plan.totals.peak_gib == max(stage.peak_gib or 0.0 for stage in plan.stages)
    assert plan.totals.stages == len(plan.stages)


def test_training_costs_what_its_rows_and_epochs_say():
    stages = _stages(_plan())
    dpo, twice = stages["dpo[0]"], stages["dpo_2x[0]"]
    assert twice.gpu_hours == pytest.approx(2 * (dpo.gpu_hours or 0.0), rel=1e-3)
    n, tokens = PYTHIA["1.4b"].parameters, 346 + 2 * 35
    hours = 6 * n * 92_900 * tokens / (989e12 * 0.4) / 3600
    assert dpo.gpu_hours == pytest.approx(hours, rel=1e-3)
    assert dpo.disk_gib == pytest.approx(4 * n / GIB, rel=1e-3)


def test_what_does_not_fit_is_warned_of_and_fewer_tokens_a_pass_help():
    whole = _plan(runtime=Runtime(micro_tokens=2**16)).warnings
    assert any(line.startswith("dpo[0] takes about") for line in whole)
    assert not _plan().warnings


def test_an_unknown_model_has_no_hours_and_no_zero():
    plan = _plan(model="owner/unheard-of")
    assert _stages(plan)["sft"].gpu_hours is None
    assert plan.totals.gpu_hours is None
    assert plan.totals.disk_gib is None
    assert "model owner/unheard-of" in plan.unresolved
    assert plan.tokenizer == "owner/unheard-of"


def test_a_judge_served_here_costs_no_dollars_but_hours_that_are_not_known():
    stage = _stages(_plan(judge="local:/models/judge"))["judge_dpo[0]"]
    assert (stage.questions, stage.dollars, stage.gpu_hours, stage.gpus) == (1200, 0.0, None, 1)


def test_a_hub_model_keeps_the_revision_with_which_its_study_began(tmp_path, monkeypatch):
    """The first time the newest; later that one, though the hub has moved, and without asking."""
    asked = []

    def revision_of(name: str, kind: str) -> str:
        asked.append((name, kind))
        return f"commit {len(asked)}"

    monkeypatch.setattr("llm.study.request.revision_of", revision_of)
    request = Request(tmp_path / "out", preset="1.4b", figures=("fig3",))
    first = configure(request)
    assert asked == [("EleutherAI/pythia-1.4b-deduped", "model")]
    assert first.models["1.4b"].revision == "commit 1"
    write_json(tmp_path / "out" / "identity.json", {"config": first.to_json()})
    assert configure(request) == configure(request, ask_hub=False) == first
    assert len(asked) == 1
    other = replace(request, out=tmp_path / "other")
    assert configure(other).models["1.4b"].revision == "commit 2"
    assert configure(other, ask_hub=False).models["1.4b"].revision is None


def test_a_task_is_known_whole(shared_task_file):
    plan = _plan(preset="tiny", data=str(shared_task_file), figures=("fig3", "fig9"))
    assert plan.unresolved == []
    assert plan.counts[""]["source"] == "limits"
    assert plan.totals.questions == 0
    assert all(stage.directory for stage in plan.stages)
    assert {stage.state for stage in plan.stages} == {"waiting"}
    assert plan.totals.gpu_hours is not None


def test_json_has_stable_keys_and_is_what_the_command_prints(capsys):
    line = ["study", "fig3", "--preset", "1.4b", "--seeds", "1", "--dry-run", "--json"]
    assert command.main([*line, "--out", "/nowhere/study"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(_plan().to_json()))
    assert list(found) == [field.name for field in fields(StudyPlan)]
    assert list(found["stages"][0]) == [field.name for field in fields(StagePlan)]


def test_the_plan_can_be_read(capsys):
    line = ["study", "fig3", "--preset", "paper", "--dry-run", "--out", "/nowhere/study"]
    assert command.main([*line, "--peak-tflops", "312", "--bandwidth", "2.0"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("GPU hours:", "312 TFLOP/s", "unresolved: model EleutherAI/pythia-2.8b-deduped"):
        assert words in text


def test_json_without_a_dry_run_is_refused(capsys):
    assert command.main(["study", "fig3", "--json"]) == 2
    assert "--json is of --dry-run" in capsys.readouterr().err


def test_the_papers_presets_have_its_three_seeds():
    assert [default_seeds(name) for name in ("tiny", "small", "1.4b", "paper")] == [2, 2, 3, 3]


# --- before the first second of work -------------------------------------------------------------


def _refused(capsys, out: Path, *arguments: str) -> str:
    assert command.main(["study", *arguments, "--out", str(out)]) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ")
    assert "\n" not in errors
    assert not out.exists()
    return errors


def test_a_disk_too_small_is_refused(capsys, tmp_path, monkeypatch):
    full = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert "GiB free, the study needs about" in _refused(capsys, tmp_path / "out", "fig9")


def test_more_gpus_than_there_are_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "visible_gpus", lambda: ("0", "1"))
    errors = _refused(capsys, tmp_path / "out", "fig9", "--gpus", "3")
    assert "takes 3 GPUs" in errors
    assert errors.endswith("here are 2")


def test_a_folder_that_may_not_be_written_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "may not be written to" in _refused(capsys, tmp_path / "out", "fig9")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in _refused(capsys, tmp_path / "file" / "out", "fig9")


def test_the_longest_row_is_that_of_the_examples(tmp_path, shared_task_file):
    """Against the examples themselves; where nothing is generated, the texts alone count."""
    limits = DataConfig(n_sft=4, n_pairs=4, n_validation_pairs=4, max_completion_tokens=4)
    folder = data_stage(tmp_path / "data", shared_task_file, limits)
    parts = ("sft", "pairs", "validation_pairs", "test")
    rows = [e for p in parts for e in tables.read_examples(folder / f"{p}.parquet")]
    for generated in (2, 3, 9):
        want = max(len(e.prompt_ids) + max(generated, *map(len, e.completion_ids)) for e in rows)
        assert checks._longest(folder, generated) == want


def _text(tldr: Path, tokenizer: Path, *more: str) -> list[str]:
    return ["fig3", "--data", str(tldr), "--tokenizer", str(tokenizer), *more]


def test_a_judge_without_its_key_is_refused(
    capsys, tmp_path, monkeypatch, small_tldr, small_tokenizer_file
):
    monkeypatch.delenv("ROADS_NO_SUCH_KEY", raising=False)
    line = _text(small_tldr, small_tokenizer_file, "--judge", "gpt-4o")
    errors = _refused(capsys, tmp_path / "out", *line, "--key-name", "ROADS_NO_SUCH_KEY")
    assert "ROADS_NO_SUCH_KEY" in errors


def test_an_endpoint_that_does_not_answer_is_refused(
    capsys, tmp_path, monkeypatch, small_tldr, small_tokenizer_file
):
    monkeypatch.setenv("ROADS_KEY", "sk-not-to-be-seen")
    line = _text(small_tldr, small_tokenizer_file, "--judge", "gpt-4o", "--key-name", "ROADS_KEY")
    errors = _refused(capsys, tmp_path / "out", *line, "--base-url", "http://127.0.0.1:9/v1")
    assert "127.0.0.1:9" in errors
    assert "sk-not-to-be-seen" not in errors


def test_a_judge_folder_without_a_model_is_refused(
    capsys, tmp_path, small_tldr, small_tokenizer_file
):
    (tmp_path / "empty").mkdir()
    line = _text(small_tldr, small_tokenizer_file, "--judge", f"local:{tmp_path / 'empty'}")
    assert "empty" in _refused(capsys, tmp_path / "out", *line)


def test_what_is_on_no_hub_is_refused(capsys, tmp_path, monkeypatch):
    """No hub and no cache here: the data of the paper's presets are named in the error."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    errors = _refused(capsys, tmp_path / "out", "fig3", "--preset", "1.4b")
    assert "EleutherAI/pythia-1.4b-deduped" in errors


def test_vllm_that_is_not_there_is_refused(capsys, tmp_path, shared_task_file):
    line = ["fig3", "--preset", "1.4b", "--data", str(shared_task_file)]
    model = tmp_path / "model"
    config = ModelConfig(hidden_size=32, layers=1, heads=1)
    save_policy(new_policy(config, vocabulary=50, eos=0, pad=1, seed=0), model)
    capsys.readouterr()  # the library's progress bar
    line += ["--model", str(model), "--vllm-python", "/no/such/python"]
    assert "/no/such/python" in _refused(capsys, tmp_path / "out", *line)


def test_a_judge_served_here_needs_vllm(capsys, tmp_path, small_tldr, small_tokenizer_file):
    """Whatever samples: a server is started for it after everything has been trained."""
    judge = tmp_path / "judge"
    save_policy(new_policy(ModelConfig(), vocabulary=50, eos=0, pad=1, seed=0), judge)
    (judge / "tokenizer.json").write_text("{}")
    (judge / "chat_template.jinja").write_text("x")
    capsys.readouterr()  # the library's progress bar
    line = _text(small_tldr, small_tokenizer_file, "--judge", f"local:{judge}")
    errors = _refused(capsys, tmp_path / "out", *line, "--vllm-python", "/no/such/python")
    assert "/no/such/python" in errors


# --- a pretrained model --------------------------------------------------------------------------


def _pretrained(folder: Path, fault: str | None = None) -> Path:
    """A folder with a small model, or with what is none."""
    import transformers as tf

    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    kinds = {
        "bias": lambda: tf.PhiConfig(intermediate_size=64, **shape),
        "packing": lambda: tf.BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2),
    }
    make = kinds.get(fault or "", lambda: tf.GPTNeoXConfig(intermediate_size=64, **shape))
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(make())
    state = model.state_dict()
    with torch.no_grad():
        if fault == "bias":
            model.lm_head.bias.fill_(0.5)
        if fault == "nan":
            model.get_input_embeddings().weight[3, 4] = torch.nan
    if fault == "missing":
        state = {name: tensor for name, tensor in state.items() if "final" not in name}
    model.save_pretrained(folder, state_dict=state)
    if fault == "cut":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    return folder


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cannot be loaded"),
        ("nan", "is not finite"),
        ("missing", "lack 2 weights"),
        ("bias", "not its hidden states times its output matrix"),
        ("packing", "cannot run several completions behind one prompt"),
    ],
)
def test_a_pretrained_model_that_cannot_be_trained_is_refused(
    capsys, tmp_path, shared_task_file, fault, message
):
    model, out = _pretrained(tmp_path / "model", fault), tmp_path / "out"
    capsys.readouterr()  # the library's progress bar
    line = ["--preset", PRESET, "--data", str(shared_task_file), "--model", str(model)]
    for asked in (["train", "sft"], ["study", "fig9"]):
        assert command.main([*asked, *line, "--out", str(out)]) == 2
        errors = capsys.readouterr().err.strip()
        assert errors.startswith(f"error: --model {model}: ")
        assert message in errors
        assert "\n" not in errors
        assert not out.exists()


def test_a_pretrained_model_is_opened_only_where_it_is_to_be_trained(
    tmp_path, shared_task_file, monkeypatch
):
    model = _pretrained(tmp_path / "model")
    line = ["train", "sft", "--preset", PRESET, "--data", str(shared_task_file), "--jobs", "1"]
    line += ["--model", str(model), "--out", str(tmp_path / "out")]
    opened, load = [], build.load_pretrained
    monkeypatch.setattr(build, "load_pretrained", lambda m: opened.append(m.pretrained) or load(m))
    assert command.main(line) == 0
    assert opened == 2 * [str(model)]  # before the first second of work, and by the stage
    assert command.main(line) == 0
    assert len(opened) == 2
