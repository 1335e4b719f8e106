"""Exact numbers of a study: against enumeration, on a folder that is written here by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from theory.__main__ import main
from theory.errors import InputError
from theory.exact import best_accuracy, likelihoods, measured, violations
from theory.rouge_task import RougeTask, make_rouge_task
from theory.soft import log_optimal
from theory.study_files import Place, read_study
from theory.tasks import Task, WalshTask, load_task, make_task, save_task

DPO_BETA, LOCAL_BETA, DECODE = 0.05, 0.5, 0.3
Policies = dict[str, np.ndarray]  # stage id -> (P, completions), log-probabilities
PAIRS = [("0", "0 0", "0 1"), ("0", "0 1", "0 0"), ("0", "0 0", "0 1"), ("1", "1 1", "0 0")]


def write(root: Path, body: dict, policies: Policies, pairs=(), metrics=None) -> Path:
    """A study's folder: its data stage, a policy's stage and its evaluation, nothing else."""
    stages = {"data": "stages/data"}
    put(root / "stages/data", {"name": "data", "config": {}, "inputs": {}, "metrics": {}})
    save_task(root / "stages/data/task.json", body)
    words = {name: " ".join(w) for name, w in body["prompt_tokens"].items()}
    rows = [{"prompt": words[x], "completions": [won, lost]} for x, won, lost in pairs]
    pq.write_table(pa.Table.from_pylist(rows), root / "stages/data/pairs.parquet")
    for name, log_p in policies.items():
        policy, _, seed = name.removesuffix("]").partition("[")
        number = int(seed) if seed else None
        beta = LOCAL_BETA if policy == "local_rm" else DPO_BETA
        place = {"branch": "", "size": "", "seed": number}
        stages[name] = f"stages/{policy}-{seed}"
        put(root / stages[name], {"name": policy, "config": {"beta": beta}, "inputs": {}, **place})
        evaluated = "local_rm_policy" if policy == "local_rm" else policy
        stages[f"eval_{evaluated}{name[len(policy) :]}"] = place_of = f"stages/eval-{policy}-{seed}"
        config = {"evaluation": {"temperature": DECODE}}
        found = exactly(body, log_p) if metrics is None else metrics
        record = {"name": f"eval_{evaluated}", "config": config, "metrics": found, **place}
        put(root / place_of, {**record, "inputs": {"data": "x", name: "y"}})
        np.savez(
            root / place_of / "leaf_logprobs.npz",
            **dict(zip(body["prompts"], log_p, strict=True)),
        )
    (root / "study.json").write_text(json.dumps({"stages": stages}))
    return root


def put(folder: Path, record: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))


def exactly(body: dict, log_p: np.ndarray) -> dict[str, float | None]:
    """What a study records, by plain enumeration in Python."""
    names = list(body["prompts"])
    total = dict.fromkeys(
        ("kl_to_optimum", "kl_to_reference", "win_rate", "expected_reward", "mass_on_task"), 0.0
    )
    for name, row in zip(names, np.exp(log_p), strict=True):
        weight, mass = body["prompts"][name], float(row.sum())
        p = {c: float(v) / mass for c, v in zip(body["reward"][name], row, strict=True)}
        reward, reference = body["reward"][name], body["reference"][name]
        z = sum(math.exp(r / body["beta"]) for r in reward.values())
        cold = decoded(p, body["tokens"], body["horizon"], body["eos"])
        for c, chance in p.items():
            best = math.exp(reward[c] / body["beta"]) / z
            total["kl_to_optimum"] += weight * chance * math.log(chance / best)
            total["kl_to_reference"] += weight * chance * math.log(chance / reference[c])
            total["expected_reward"] += weight * chance * reward[c]
            for other, q in reference.items():
                won = (reward[c] > reward[other]) + 0.5 * (reward[c] == reward[other])
                total["win_rate"] += weight * cold[c] * q * won
        total["mass_on_task"] += weight * mass
    return dict(total)


def decoded(p: dict[str, float], tokens: list[str], horizon: int, eos: str | None):
    """Token by token at temperature DECODE, by recursion over prefixes."""
    out = {}

    def go(prefix: tuple[str, ...], chance: float) -> None:
        text = " ".join(prefix)
        if text in p and (len(prefix) == horizon or prefix[-1:] == (eos,)):
            out[text] = chance
            return
        below = {
            token: sum(v for c, v in p.items() if tuple(c.split())[: len(prefix) + 1] == way)
            for token in tokens
            for way in [(*prefix, token)]
        }
        powers = {t: v ** (1 / DECODE) for t, v in below.items() if v > 0}
        for token, power in powers.items():
            go((*prefix, token), chance * power / sum(powers.values()))

    go((), 1.0)
    return out


def random_policy(body: dict, seed: int, mass: float = 1.0) -> np.ndarray:
    shape = (len(body["prompts"]), len(next(iter(body["reward"].values()))))
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(shape[1]), shape[0]) * mass)


BODIES = {
    "bits": lambda: make_task(WalshTask(prompt_bits=1, completion_bits=2, beta=0.7)),
    "words": lambda: make_rouge_task(RougeTask(words=2, reference=2, prompts=2, horizon=2)),
}


@pytest.mark.parametrize("name", BODIES)
def test_every_number_is_that_of_enumeration(name: str, tmp_path: Path):
    body = BODIES[name]()
    write(tmp_path, body, {"sft": random_policy(body, 1, 0.9)})
    (row,) = measured(read_study(tmp_path))
    assert row.recorded_gap < 1e-9
    assert row.lemma_gap < 1e-10
    assert row.soft_regret == pytest.approx(body["beta"] * row.kl_to_optimum, abs=1e-10)
    assert row.mass_off_task == pytest.approx(0.1, abs=1e-9)
    assert row.agrees


def test_the_optimum_has_no_regret(tmp_path: Path):
    body = BODIES["bits"]()
    save_task(tmp_path / "task.json", body)
    task = load_task(tmp_path / "task.json")
    best = log_optimal(task.tree, task.reward, task.beta)
    write(tmp_path / "s", body, {"sft": best})
    (row,) = measured(read_study(tmp_path / "s"))
    assert abs(row.kl_to_optimum) < 1e-12
    assert abs(row.soft_regret) < 1e-12


def test_a_study_that_recorded_other_numbers_exits_with_1(tmp_path: Path, capsys):
    body = BODIES["bits"]()
    policy = random_policy(body, 2)
    right = exactly(body, policy)
    for name in right:
        wrong = {**right, name: right[name] + 1e-3}
        write(tmp_path / name, body, {"sft": policy}, metrics=wrong)
        assert main(["exact", str(tmp_path / name)]) == 1
        assert "sft: the study recorded other numbers (by 0.001)" in capsys.readouterr().out
    write(tmp_path / "none", body, {"sft": policy}, metrics={})
    assert main(["exact", str(tmp_path / "none")]) == 1


# --- Theorem 2.2 ---------------------------------------------------------------------------------


def isomorphic(body: dict, shift: float = 0.0) -> Policies:
    """SFT, DPO, and the local model whose reward is DPO's up to a shift a prompt."""
    sft, dpo = random_policy(body, 3), random_policy(body, 4)
    local = DPO_BETA / LOCAL_BETA * (dpo - sft)
    local[0, 0] += shift
    local -= np.log(np.exp(local).sum(axis=1, keepdims=True))
    return {"sft": sft, "dpo[0]": dpo, "dpo[1]": random_policy(body, 5), "local_rm[0]": local}


def test_equal_rewards_lead_both_roads_to_one_policy(tmp_path: Path):
    body = BODIES["words"]()
    found = violations(read_study(write(tmp_path, body, isomorphic(body))))
    by_kind = {
        kind: [row for row in found if row.kind == kind]
        for kind in ("same fit", "other class", "other seed")
    }
    assert [len(rows) for rows in by_kind.values()] == [3, 1, 2]
    for row in (*by_kind["same fit"], *by_kind["other class"]):
        assert abs(row.kl) < 1e-10
        assert abs(row.kl_back) < 1e-10
    for row in by_kind["other seed"]:  # two policies drawn apart
        assert row.kl > 0.01
        assert row.kl_back > 0.01


def test_another_reward_leads_elsewhere(tmp_path: Path):
    body = BODIES["words"]()
    study = read_study(write(tmp_path, body, isomorphic(body, shift=0.2)))
    (row,) = [row for row in violations(study) if row.kind == "other class"]
    assert row.kl > 0.01
    assert row.beta == DPO_BETA
    assert row.anchored


def test_two_seeds_are_as_far_apart_as_their_policies(tmp_path: Path):
    body = BODIES["bits"]()
    policies = isomorphic(body)
    study = read_study(write(tmp_path, body, policies))
    row = next(r for r in violations(study) if (r.reward_model, r.policy) == ("dpo[0]", "dpo[1]"))
    a, b = np.exp(policies["dpo[0]"]), np.exp(policies["dpo[1]"])
    assert row.kl == pytest.approx(0.5 * (a * np.log(a / b)).sum(), abs=1e-10)
    assert row.kl_back == pytest.approx(0.5 * (b * np.log(b / a)).sum(), abs=1e-10)
    moved = 0.5 * (b * (np.log(b) - policies["sft"])).sum()
    assert row.moved == pytest.approx(moved, abs=1e-10)


def test_the_likelihood_says_what_the_pairs_allow(tmp_path: Path):
    body = BODIES["bits"]()
    sft = random_policy(body, 6)
    at_maximum = sft.copy()
    at_maximum[0, 0] = at_maximum[0, 1] + math.log(2.0) / DPO_BETA + sft[0, 0] - sft[0, 1]
    at_maximum -= np.log(np.exp(at_maximum).sum(axis=1, keepdims=True))
    policies = {"sft": sft, "dpo[0]": at_maximum}
    (row,) = likelihoods(read_study(write(tmp_path, body, policies, PAIRS)))
    assert (row.pairs, row.prompts, row.prompts_with_maximiser) == (4, 2, 1)
    least = (2 * math.log(1.5) + math.log(3.0)) / 4  # prompt 1 is separable: its loss can be 0
    assert row.least_loss == pytest.approx(least, abs=1e-12)
    assert row.dpo_loss == pytest.approx(least + math.log(2.0) / 4, abs=1e-9)
    assert row.dpo_gradient == pytest.approx(0.125, abs=1e-9)  # of prompt 1 alone
    assert row.local_rm_loss is None


@pytest.mark.parametrize("name", BODIES)
def test_the_best_accuracy_is_that_of_enumeration(name: str, tmp_path: Path):
    body = BODIES[name]()
    save_task(tmp_path / "task.json", body)
    expected = 0.0
    for prompt, weight in body["prompts"].items():
        reward, p = body["reward"][prompt], body["reference"][prompt]
        for a in p:
            for b in set(p) - {a}:
                second = p[b] / sum(p[c] for c in p if c != a)
                right = 1.0 / (1.0 + math.exp(-abs(reward[a] - reward[b])))
                expected += weight * p[a] * second * right
    assert best_accuracy(load_task(tmp_path / "task.json")) == pytest.approx(expected, abs=1e-9)


# --- files ---------------------------------------------------------------------------------------


def test_json_holds_every_row_and_prompts_are_told_apart(tmp_path: Path, capsys):
    body = BODIES["words"]()
    write(tmp_path / "s", body, isomorphic(body), [("x0", "a b", "b"), ("x1", "", "a a")])
    assert main(["exact", str(tmp_path / "s"), "--json", str(tmp_path / "e.json")]) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert {row["policy"] for row in found["policies"]} == {"sft", "dpo", "local_rm_policy"}
    assert len(found["theorem_2_2"]) == 6
    assert [row["seed"] for row in found["likelihood"]] == [0, 1]
    assert "Theorem 2.2 says 0" in capsys.readouterr().out


def spoil(root: Path, change) -> None:
    path = root / "stages/eval-sft-" / "leaf_logprobs.npz"
    with np.load(path) as arrays:
        rows = {name: arrays[name].copy() for name in arrays.files}
    change(rows)
    np.savez(path, **rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.pop("0"), "is not one row a prompt"),
        (lambda rows: rows.update({"0": rows["0"][:2]}), "is not one row a prompt"),
        (lambda rows: rows["0"].fill(np.nan), "no log-probability"),
        (lambda rows: rows["0"].fill(0.0), "probabilities of prompt '0' sum to 4.0"),
        (lambda rows: rows["0"].fill(-np.inf), "probabilities of prompt '0' sum to 0.0"),
    ],
)
def test_wrong_leaves_are_named(change, words: str, tmp_path: Path):
    body = BODIES["bits"]()
    spoil(write(tmp_path, body, {"sft": random_policy(body, 1)}), change)
    with pytest.raises(InputError, match=words):
        read_study(tmp_path)


def test_what_is_no_study_of_a_task_is_refused(tmp_path: Path, capsys):
    assert main(["exact", str(tmp_path / "none")]) == 2
    assert "study.json: cannot be read" in capsys.readouterr().err
    body = BODIES["bits"]()
    write(tmp_path / "s", body, {})
    assert main(["exact", str(tmp_path / "s")]) == 2
    assert "only a study of a task" in capsys.readouterr().err
    assert main(["exact", str(tmp_path / "s"), "--json", str(tmp_path)]) == 2


def test_pairs_that_are_not_the_tasks_are_refused(tmp_path: Path):
    body = BODIES["bits"]()
    study = read_study(write(tmp_path, body, isomorphic(body), [("0", "0 0", "0 7")]))
    with pytest.raises(InputError, match="'0 7' is no prompt or completion"):
        likelihoods(study)


def test_pairs_with_a_sample_that_is_no_completion_are_left_out(tmp_path: Path):
    """A policy's own sample may end too early, and loses (Figs. 6 and 8): no point of the tree."""
    body = BODIES["bits"]()
    pairs = [("0", "0 0", "0 1"), ("0", "0 1", "0"), ("1", "1 1", "")]
    study = read_study(write(tmp_path, body, isomorphic(body), pairs))
    assert {(row.pairs, row.prompts) for row in likelihoods(study)} == {(1, 1)}


def test_a_shared_policy_is_found_at_every_seed(tmp_path: Path):
    body = BODIES["bits"]()
    study = read_study(write(tmp_path, body, isomorphic(body)))
    assert study.find("sft", Place("", "", 1)) is study.find("sft", Place("", "", None))
    assert study.find("dpo", Place("", "", 7)) is None
    assert isinstance(study.evaluated[0].task, Task)
