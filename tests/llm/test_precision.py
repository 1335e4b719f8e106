"""bf16 by autocast: what it may change, what it may not; references are the trained model's own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llm import tables
from llm.config import ModelConfig, TrainConfig
from llm.data.config import DataConfig
from llm.errors import InputError
from llm.models.build import RewardModel, autocast, load_policy, new_policy, save_policy
from llm.models.forward import completion_logps, completion_rewards, token_logps
from llm.models.packing import collate
from llm.models.target_logps import TargetLogps
from llm.stages.kinds import make_eval_dpo_rm, make_reference
from llm.stages.reference import check_reference_mark, check_reference_sample, write_reference_mark
from llm.training.objectives import PolicyObjective, Row
from llm.training.train import score, train
from tests.llm.small_stages import data_stage, random_policy, work_of

sys.path.insert(0, str(Path(__file__).parent))
import small_training as small

ROUNDING = 2.0**-9  # of one bf16 number, relative: 8 significant bits, rounded to nearest
EOS, PAD = small.EOS, small.PAD


def _wide(seed=0):
    """A policy whose logits spread over a few nats, as a trained one's do."""
    shape = ModelConfig(hidden_size=64, layers=2, heads=2, max_positions=32)
    model = new_policy(shape, vocabulary=small.VOCABULARY, eos=EOS, pad=PAD, seed=seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)
    return model.eval()


def _size(model):
    """|h| |w| of a logit: layer normalisation makes |h| the root of the width."""
    weight = model.get_output_embeddings().weight.detach()
    return float(weight.norm(dim=1).max()) * math.sqrt(weight.shape[1])


def _batch(n=12):
    rows = small.pairs(n)
    return collate([r.prompt for r in rows], [r.completions for r in rows], pad=PAD)


def test_fp32_is_no_context_and_other_names_are_refused():
    assert not torch.is_autocast_enabled("cpu")
    with autocast("fp32", "cpu"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bf16", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    with pytest.raises(ValueError, match="neither fp32 nor bf16"):
        autocast("fp16", "cpu")


def test_bf16_logps_are_near_fp32_and_not_equal():
    """Each rounding moves a logit by ROUNDING of its terms: a few hundredths of a nat a token."""
    model, batch = _wide(), _batch()
    with torch.no_grad():
        exact = token_logps(model, batch)
        with autocast("bf16", "cpu"):
            rounded = token_logps(model, batch)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 16 * ROUNDING * _size(model)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40))
@hypothesis_settings(max_examples=20)
def test_rounded_logps_are_those_of_the_rounded_factors(seed, rows):
    """Against bf16 factors multiplied in float64: the sums, and what follows them, are fp32."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 16, generator=generator)
    weight = torch.randn(700, 16, generator=generator)
    target = torch.randint(700, (rows,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, top = TargetLogps.apply(hidden, weight, target, True)
    logits = hidden.bfloat16().double() @ weight.bfloat16().double().T
    exact = logits.log_softmax(-1)[torch.arange(rows), target]
    torch.testing.assert_close(values.double(), exact, atol=1e-5, rtol=1e-5)
    assert torch.equal(top, logits.argmax(-1) == target)


def test_rounded_gradients_are_near_the_exact_ones():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 16, generator=generator, requires_grad=True)
    weight = torch.randn(700, 16, generator=generator, requires_grad=True)
    target = torch.randint(700, (30,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = TargetLogps.apply(hidden, weight, target, True)[0]
    ours = torch.autograd.grad(values.sum(), (hidden, weight))
    plain = torch.log_softmax(hidden @ weight.T, -1)[torch.arange(30), target]
    exact = torch.autograd.grad(plain.sum(), (hidden, weight))
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 16 * ROUNDING * b.norm()


def test_rewards_are_not_rounded_to_bf16():
    """Two samples whose rewards differ by less than bf16 resolves keep their order."""
    model = RewardModel(small.policy(), seed=0)
    with torch.no_grad():
        model.head.bias.fill_(100.0)  # bf16 numbers near 100 are 0.5 apart
        with autocast("bf16", "cpu"):
            rewards = completion_rewards(model, _batch()).flatten()
    assert rewards.dtype == torch.float32
    assert len(set(rewards.tolist())) > 10


def _anchored(model, rows, precision, tokens=60):
    values = score(
        partial(completion_logps, model),
        [(row.prompt, row.completions) for row in rows],
        pad=PAD,
        tokens=tokens,
        precision=precision,
    )
    return [Row(r.prompt, r.completions, v) for r, v in zip(rows, values, strict=True)]


def _train(objective, rows, folder, **changes):
    config = TrainConfig(8, 1e-3, 8, "linear", **{"epochs": 1, **changes})
    return train(objective, rows, config, learning_rate=3e-3, pad=PAD, seed=0, folder=folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dpo_starts_at_ln_2_with_a_reference_of_its_own_precision(tmp_path, precision):
    """Batches of other shapes: |loss - ln 2| <= beta/2 |error of a margin|.

    A margin is two sums of T token log-probs, each off by twice the error of a logit, which is a
    few roundings of |h| |w|; in fp32 that is 1e-5.
    """
    beta, model = 0.05, _wide()
    rows = _anchored(model, small.pairs(40), precision)
    longest = max(len(ids) for row in rows for ids in row.completions)
    rounding = ROUNDING if precision == "bf16" else 2.0**-24
    logit = 4 * rounding * _size(model)
    bound = beta / 2 * 2 * longest * 2 * logit
    objective = PolicyObjective(model, beta=beta, precision=precision)
    history = _train(objective, rows, tmp_path)
    assert abs(history[0]["loss"] - math.log(2)) < max(bound, 1e-6)
    assert bound < 1e-5 or precision == "bf16"
    assert bound < 0.5
    assert history[0]["kl_from_reference"] == pytest.approx(0.0, abs=2 * longest * logit + 1e-5)


def test_bf16_trains_fp32_weights(tmp_path):
    """The loss falls as in fp32, and weights and optimizer states stay fp32."""
    losses = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        history, weights = small.run(small.Case("sft", precision=precision), folder)
        losses[precision] = [entry["loss"] for entry in history]
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        checkpoint = next(folder.glob("checkpoint-*")) / "optimizer.pt"
        states = torch.load(checkpoint, weights_only=True)["state"]
        assert {s["exp_avg"].dtype for s in states.values()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    for found in losses.values():
        assert found[-1] < 0.97 * found[0]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


@pytest.mark.parametrize(
    "case",
    [
        small.Case("dpo", accumulation=3, precision="bf16", killed=True),
        small.Case("sft", precision="bf16", order="prompt", killed=True),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(case, tmp_path):
    """In micro-batches, over two epochs, with a short last batch, in both precisions."""
    history, weights = small.run(case, tmp_path / "killed")
    expected, whole = small.run(replace(case, killed=False), tmp_path / "whole")
    assert history == expected
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("objective", ["dpo", "rm", "sft"])
def test_micro_batches_change_neither_loss_nor_update(objective, tmp_path):
    """To 1e-6 after steps of 3 rows in 1 + 1 + 1 and 11 rows; a mean of means would be off."""
    for rows, tolerance in ((3, 1e-6), (11, 1e-6)):
        pieces, alone = (
            small.run(small.Case(objective, accumulation=n, rows=rows), tmp_path / f"{rows}-{n}")
            for n in (5, 1)
        )
        for entry, other in zip(pieces[0], alone[0], strict=True):
            assert entry["loss"] == pytest.approx(other["loss"], abs=10 * tolerance)
        for name, tensor in alone[1].items():
            torch.testing.assert_close(pieces[1][name], tensor, atol=tolerance, rtol=0)


# --- the reference belongs to the model that is trained -------------------------------------------


def test_a_reference_is_known_by_its_weights_and_precision(tmp_path):
    write_reference_mark(tmp_path, small.policy(), "bf16")
    check_reference_mark(tmp_path, small.policy(), "bf16")
    with pytest.raises(InputError, match="weights_sha256"):
        check_reference_mark(tmp_path, small.policy(seed=1), "bf16")
    with pytest.raises(InputError, match="computed with precision bf16, training starts with fp32"):
        check_reference_mark(tmp_path, small.policy(), "fp32")
    with pytest.raises(InputError, match="cannot be read"):
        check_reference_mark(tmp_path / "none", small.policy(), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sample_of_the_reference_is_computed_again(precision):
    model = _wide()
    rows = _anchored(model, small.pairs(30), precision, tokens=10**6)
    check_reference_sample(model, rows, precision=precision, pad=PAD)
    with pytest.raises(InputError, match="another model or another temperature"):
        check_reference_sample(model, rows, precision=precision, pad=PAD, temperature=0.1)
    with pytest.raises(InputError, match="another model"):
        check_reference_sample(_wide(seed=1), rows, precision=precision, pad=PAD)
    broken = [replace(row, reference=(float("nan"), 0.0)) for row in rows]
    with pytest.raises(InputError, match="log-prob is nan"):
        check_reference_sample(model, broken, precision=precision, pad=PAD)


def test_a_cached_reference_that_was_changed_is_refused(tmp_path, shared_task_file):
    """One number of the validation pairs, which no trained model is compared with."""
    limits = DataConfig(n_sft=4, n_pairs=4, n_validation_pairs=4, max_completion_tokens=4)
    data = data_stage(tmp_path / "data", shared_task_file, limits)
    policy = random_policy(tmp_path / "policy", json.loads((data / "vocabulary.json").read_text()))
    inputs = {"data": data, "policy": policy}
    made = work_of(tmp_path / "reference", inputs, None, precision="fp32")
    make_reference(made)
    inputs["reference"] = made.folder
    work = work_of(tmp_path / "eval", inputs, 0, precision="fp32", beta=0.1)
    assert make_eval_dpo_rm(work).metrics["mean_margin"] == pytest.approx(0.0, abs=1e-6)
    file = made.folder / "validation_pairs.parquet"
    first, *rest = tables.read_rows(file)
    tables.write_rows(file, [{**first, "chosen": first["chosen"] + 1e-9}, *rest])
    with pytest.raises(InputError, match=r"validation_pairs\.parquet: not what was computed"):
        make_eval_dpo_rm(work)


# --- checkpoints that are none --------------------------------------------------------------------


def test_a_saved_policy_is_read_back_bit_by_bit(tmp_path):
    model = small.policy()
    save_policy(model, tmp_path)
    again = load_policy(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cannot be loaded"),
        ("nan", "weight .* is not finite"),
        ("trunk", "lack .* weights"),
        ("shape", "cannot be loaded"),
        ("config", "cannot be loaded"),
        ("none", "cannot be loaded"),
    ],
)
def test_a_wrong_checkpoint_is_one_clear_error(fault, message, tmp_path):
    model = small.policy()
    if fault == "nan":
        with torch.no_grad():
            model.get_input_embeddings().weight[3, 4] = torch.nan
    if fault == "trunk":
        state = {f"other.{name}": tensor for name, tensor in model.state_dict().items()}
        save_policy(model, tmp_path, state)
    else:
        save_policy(model, tmp_path)
    weights = tmp_path / "model.safetensors"
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    if fault == "none":
        weights.unlink()
    if fault == "shape":
        other = new_policy(
            replace(small.SHAPE, hidden_size=16), vocabulary=small.VOCABULARY, eos=0, pad=1, seed=0
        )
        other.config.save_pretrained(tmp_path)
    if fault == "config":
        (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=message) as caught:
        load_policy(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# --- the benchmark for a GPU ----------------------------------------------------------------------


def test_the_benchmark_runs_on_a_cpu(tmp_path):
    """Every kind of step, scoring and sampling, with finite numbers in its record."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "benchmarks/llm_gpu.py", "--shape", "tiny", "--device", "cpu"]
    command += ["--batch", "2", "--micro-tokens", "600", "--steps", "1", "--prompts", "1"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "gpu.json")],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "gpu.json").read_text())
    kinds = ["sft", "global_rm", "local_rm", "dpo", "score", "reward", "sample"]
    assert [line["what"] for line in record["lines"]] == kinds
    for line in record["lines"]:
        assert line["seconds"] > 0
        assert line["tokens_per_second"] > 0
        assert line["memory_gib"] is None
    assert record["lines"][0]["first_loss"] == pytest.approx(math.log(300), rel=0.05)
