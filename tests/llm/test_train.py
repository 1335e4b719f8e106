"""The training loop: EOS is learned, DPO starts at ln 2, resume equals an unbroken run."""

import math

import pytest
import torch

from llm.config import ModelConfig, TrainConfig
from llm.data.example import Example
from llm.errors import InputError
from llm.models.build import RewardModel, new_policy, weights_digest
from llm.models.forward import completion_logps
from llm.models.packing import collate
from llm.stages.kinds import sft_row
from llm.training.objectives import PolicyObjective, RewardObjective, Row, SupervisedObjective
from llm.training.order import LengthSampler
from llm.training.train import _check_layout, check_tracker, score, train

PAD, EOS, VOCABULARY = 1, 0, 12
SHAPE = ModelConfig(hidden_size=32, layers=1, heads=1, max_positions=32)


def _policy(seed=0):
    return new_policy(SHAPE, vocabulary=VOCABULARY, eos=EOS, pad=PAD, seed=seed)


def _config(**changes):
    settings = {"batch_size": 8, "paper_rate": 1e-3, "paper_batch": 8, "schedule": "linear"}
    return TrainConfig(**{**settings, **changes})


def _train(
    objective, rows, folder, *, seed=0, rate=3e-3, report=lambda f: None, tokens=2**13, **changes
):
    return train(
        objective,
        rows,
        _config(**changes),
        learning_rate=rate,
        pad=PAD,
        seed=seed,
        folder=folder,
        report=report,
        micro_tokens=tokens,
    )


def _pairs(n, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())

    return [Row(ids(2, 9), ((*ids(1, 6), EOS), (*ids(1, 6), EOS))) for _ in range(n)]


def test_eos_is_learned_and_padding_is_not(tmp_path):
    """Completions are one to three times token 5, then EOS: the model must learn to end."""
    rows = [Row((*[3] * (1 + i % 7), 4), ((*[5] * (1 + i % 3), EOS),)) for i in range(210)]
    model = _policy()
    history = _train(SupervisedObjective(model), rows, tmp_path, epochs=10)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    with torch.no_grad():
        after_three = model(input_ids=torch.tensor([[3, 4, 5, 5, 5]])).logits[0, -1].softmax(-1)
        after_one = model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1].softmax(-1)
    assert after_three[EOS] > 0.9
    assert after_one[EOS] == pytest.approx(1 / 3, abs=0.1)
    assert after_one[PAD] < 0.01


def test_dpo_starts_at_ln_2(tmp_path):
    model = _policy()
    rows = _pairs(40)
    logps = score(
        lambda batch: completion_logps(model, batch),
        [(row.prompt, row.completions) for row in rows],
        pad=PAD,
        tokens=70,
    )
    anchored = [Row(r.prompt, r.completions, v) for r, v in zip(rows, logps, strict=True)]
    history = _train(PolicyObjective(model, beta=0.05), anchored, tmp_path, epochs=4)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert history[-1]["loss"] < math.log(2)
    assert {"chosen_logp", "rejected_logp", "margin", "accuracy"} <= set(history[-1])


def test_dpo_without_reference_values_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reference's log-probs"):
        _train(PolicyObjective(_policy(), beta=0.05), _pairs(8), tmp_path)


def test_score_keeps_the_rows_order():
    model = _policy().eval()
    rows = [(row.prompt, row.completions) for row in _pairs(23)]
    together = score(lambda b: completion_logps(model, b), rows, pad=PAD, tokens=60)
    with torch.no_grad():
        for row, values in zip(rows, together, strict=True):
            alone = completion_logps(model, collate([row[0]], [row[1]], pad=PAD))[0]
            assert values == pytest.approx(alone.tolist(), abs=1e-5)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: PolicyObjective(_policy(), beta=0.5, with_reference=False),
        lambda: RewardObjective(RewardModel(_policy(), seed=3)),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, make):
    """Broken inside the second epoch, after a checkpoint: order, optimizer and schedule go on."""
    rows = _pairs(64)
    whole = make()
    unbroken = _train(whole, rows, tmp_path / "whole", epochs=2, save_steps=5)

    def kill(fraction):
        if fraction >= 0.8:
            raise _KilledError

    broken = make()
    with pytest.raises(_KilledError):
        _train(broken, rows, tmp_path / "broken", epochs=2, save_steps=5, report=kill)
    assert list((tmp_path / "broken").glob("checkpoint-*"))
    resumed = make()
    history = _train(resumed, rows, tmp_path / "broken", epochs=2, save_steps=5)
    assert weights_digest(resumed.model) == weights_digest(whole.model)
    assert history == unbroken


def test_a_killed_run_may_go_on_with_other_passes(tmp_path):
    """Another number of tokens a pass, as the advice for too little memory says."""
    rows = _pairs(64)

    def kill(fraction):
        if fraction >= 0.8:
            raise _KilledError

    def run(folder, **settings):
        objective = RewardObjective(RewardModel(_policy(), seed=3))
        history = _train(objective, rows, folder, epochs=2, save_steps=5, **settings)
        return history, objective.model

    history, whole = run(tmp_path / "whole")
    with pytest.raises(_KilledError):
        run(tmp_path / "broken", report=kill)
    again, resumed = run(tmp_path / "broken", tokens=40)
    assert [entry["step"] for entry in again] == [entry["step"] for entry in history]
    assert [e["loss"] for e in again] == pytest.approx([e["loss"] for e in history], abs=1e-5)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_a_checkpoint_cut_short_by_a_kill_is_passed_over(tmp_path):
    """The newest checkpoint has weights but no state yet: the older one is resumed."""
    rows = _pairs(64)
    folder = tmp_path / "run"

    def kill(fraction):
        if fraction >= 0.8:
            raise _KilledError

    def make():
        return PolicyObjective(_policy(), beta=0.5, with_reference=False)

    with pytest.raises(_KilledError):
        _train(make(), rows, folder, epochs=2, save_steps=5, report=kill)
    (folder / "checkpoint-14").mkdir()
    (folder / "checkpoint-14" / "model.safetensors").write_bytes(b"half")
    resumed, whole = make(), make()
    _train(resumed, rows, folder, epochs=2, save_steps=5)
    _train(whole, rows, tmp_path / "whole", epochs=2, save_steps=5)
    assert weights_digest(resumed.model) == weights_digest(whole.model)


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path):
    model = _policy()
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        _train(SupervisedObjective(model), [Row((3, 4), ((5, EOS),))] * 8, tmp_path)


def test_tokens_of_a_pass_do_not_change_the_result(tmp_path):
    rows = _pairs(32)
    models = []
    for tokens in (10**6, 40):
        objective = PolicyObjective(_policy(), beta=0.5, with_reference=False)
        _train(objective, rows, tmp_path / str(tokens), tokens=tokens, rate=1e-3)
        models.append(objective.model)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_seeds_decide_the_order(tmp_path):
    digests = []
    for run, seed in enumerate((0, 0, 1)):
        objective = PolicyObjective(_policy(), beta=0.5, with_reference=False)
        _train(objective, _pairs(32), tmp_path / str(run), seed=seed)
        digests.append(weights_digest(objective.model))
    assert digests[0] == digests[1] != digests[2]


def test_length_sampler_visits_everything_once_in_similar_lengths():
    lengths = torch.randint(1, 500, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthSampler(lengths, batch_size=8, seed=1)
    first, again = list(sampler), list(sampler)
    assert sorted(first) == list(range(1003))
    assert first == again
    sampler.set_epoch(1)
    assert list(sampler) != first

    def padded(order):
        batches = [order[i : i + 8] for i in range(0, len(order), 8)]
        return sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)

    assert padded(first) < 1.15 * sum(lengths) < padded(list(range(1003)))


def test_the_learning_rate_rule():
    config = TrainConfig(128, 3e-7, 128, "linear")
    assert config.learning_rate(width=2048, examples=92_900) == pytest.approx(3e-7, rel=1e-3)
    small = TrainConfig(16, 3e-7, 128, "linear")
    rate = small.learning_rate(width=64, examples=1024)
    assert rate * 64 * 64 == pytest.approx(3e-7 * 2048 * 92_900 / 128, rel=1e-6)
    assert (
        TrainConfig(16, 3e-7, 128, "linear", fixed_rate=1e-4).learning_rate(width=64, examples=1024)
        == 1e-4
    )


def test_what_is_logged_says_what_the_model_does(tmp_path):
    """Lengths and the reference's distance are those of the rows; EOS is the arg max or is not."""
    rows = [Row(r.prompt, r.completions, (-3.0, -5.0)) for r in _pairs(8)]
    model = _policy()
    with torch.no_grad():
        batch = collate([r.prompt for r in rows], [r.completions for r in rows], pad=PAD)
        before = completion_logps(model, batch)
    history = _train(PolicyObjective(model, beta=0.1), rows, tmp_path)
    first = history[0]
    lengths = torch.tensor([[len(c) for c in r.completions] for r in rows]).double().mean(0)
    assert [first["chosen_tokens"], first["rejected_tokens"]] == lengths.tolist()
    assert first["kl_from_reference"] == pytest.approx(-4.0 - before.mean().item(), abs=1e-4)
    assert {"grad_norm", "learning_rate", "accuracy"} <= set(first)
    assert "tokens_per_second" not in first
    assert 0 <= first["chosen_eos_rate"] <= 1


@pytest.mark.parametrize(("token", "rate"), [(EOS, 1.0), (5, 0.0)])
def test_the_eos_rate_is_the_share_of_ends_that_the_model_expects(tmp_path, token, rate):
    model = _policy()
    with torch.no_grad():  # every logit but one token's is the same
        head = model.get_output_embeddings().weight
        head.zero_()
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.fill_(1.0)
        head[token] = 1.0
    rows = [Row(r.prompt, r.completions[:1]) for r in _pairs(8)]
    history = _train(SupervisedObjective(model), rows, tmp_path, rate=0.0)
    assert history[0]["eos_rate"] == rate


def test_a_tracker_that_is_not_there_is_refused():
    check_tracker("none")
    check_tracker("tensorboard")
    with pytest.raises(InputError, match="--tracker wandb-2: not installed or not known"):
        check_tracker("wandb-2")


def test_tensorboard_gets_the_history_the_speed_and_the_padding(tmp_path):
    """A step's 8 rows of 4 + 3 tokens stand in one row of 128: 72 of its places hold nothing."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(
        SupervisedObjective(_policy()),
        [Row((2 + i % 8, 2 + i // 8, 3, 4), ((5, 6, EOS),)) for i in range(16)],
        _config(),
        learning_rate=1e-3,
        pad=PAD,
        seed=0,
        folder=tmp_path / "run",
        tracker="tensorboard",
        tracker_folder=tmp_path / "tracker",
    )
    found = events.EventAccumulator(str(tmp_path / "tracker"))
    found.Reload()
    assert {"train/loss", "train/eos_rate", "train/tokens_per_second"} <= set(
        found.Tags()["scalars"]
    )
    assert [point.value for point in found.Scalars("train/padding")] == [72 / 128] * 2


def test_warm_up_and_weight_decay_are_the_settings(tmp_path):
    """Of one step: warm-up begins at rate 0; a word that no row holds is moved by decay alone."""
    rows = [Row((3, 4), ((5, EOS),))] * 8

    def trained(**changes):
        model = _policy()
        _train(SupervisedObjective(model), rows, tmp_path / str(changes), rate=0.01, **changes)
        return model

    assert weights_digest(trained(warmup_steps=9)) == weights_digest(_policy())
    before, plain = _policy().gpt_neox.embed_in.weight[11], trained()
    assert weights_digest(plain) != weights_digest(_policy())
    assert torch.equal(plain.gpt_neox.embed_in.weight[11], before)
    decayed = trained(weight_decay=0.5).gpt_neox.embed_in.weight[11]
    torch.testing.assert_close(decayed, before * (1 - 0.01 * 0.5))


def test_sft_may_learn_the_prompt_too():
    """`on_prompt`: the mean loss over every token but the first, as plain transformers has it."""
    example = Example("e", "p", "", (3, 4, 5, 6), ("",), ((7, 8, EOS),))
    model = _policy().eval()
    for on_prompt, counted in ((False, 3), (True, 6)):
        row = sft_row(example, on_prompt)
        batch = collate([row.prompt], [row.completions], pad=PAD)
        loss = float(SupervisedObjective(model).losses(batch, None)[0].detach())
        whole = torch.tensor([[3, 4, 5, 6, 7, 8, EOS]])
        logps = model(input_ids=whole).logits[0, :-1].log_softmax(-1)
        each = -logps.gather(1, whole[0, 1:, None])[:, 0]
        assert loss == pytest.approx(float(each[-counted:].mean().detach()), abs=1e-5)


def test_a_checkpoint_of_another_number_of_gpus_is_refused_with_what_helps(tmp_path):
    """Split over GPUs (FSDP) or whole: another layout."""
    split = tmp_path / "checkpoint-3"
    (split / "pytorch_model_fsdp_0").mkdir(parents=True)
    whole = tmp_path / "checkpoint-4"
    whole.mkdir()
    for checkpoint, shard in ((split, False), (whole, True)):
        with pytest.raises(InputError, match="--gpus of before, or remove the folder"):
            _check_layout(str(checkpoint), shard)
    for checkpoint, shard in ((str(split), True), (str(whole), False), (None, True)):
        _check_layout(checkpoint, shard)
