"""The vocabulary in blocks: values and gradients are the whole softmax's, and little exists."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm.config import ModelConfig
from llm.models import target_logps
from llm.models.build import new_policy
from llm.models.forward import completion_logps
from llm.models.packing import collate
from llm.models.target_logps import TargetLogps
from tests.llm.small_training import moved

WIDTH = 16
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(
    ("rows", "vocabulary", "logits", "sizes"),
    [
        (5, 23, 40, [8, 8, 7]),  # LOGITS decide, the last block is shorter
        (30, 24, 40, [4, 4, 4, 4, 4, 4]),  # MIN_BLOCK decides
        (3, 13, 18, [6, 6, 1]),
        (3, 13, 400, [13]),
        (1, 4, 1, [4]),
    ],
)
def test_blocks_give_the_values_and_gradients_of_the_whole(
    monkeypatch, rows, vocabulary, logits, sizes
):
    monkeypatch.setattr(target_logps, "LOGITS", {"cpu": logits})
    monkeypatch.setattr(target_logps, "MIN_BLOCK", 4)
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = (
        (0.5 * torch.randn(n, WIDTH, generator=generator)).requires_grad_()
        for n in (rows, vocabulary)
    )
    target = torch.randint(vocabulary, (rows,), generator=generator)
    pulled = torch.randn(rows, generator=generator)
    assert [len(block) for _, block in target_logps._blocks(weight, rows)] == sizes
    values, top = TargetLogps.apply(hidden, weight, target, False)
    whole = (hidden @ weight.T).log_softmax(-1)
    plain = whole[torch.arange(rows), target]
    torch.testing.assert_close(values, plain, **CLOSE)
    assert torch.equal(top, whole.argmax(-1) == target)
    ours = torch.autograd.grad((values * pulled).sum(), (hidden, weight))
    exact = torch.autograd.grad((plain * pulled).sum(), (hidden, weight))
    for found, expected in zip(ours, exact, strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_a_sum_over_blocks_does_not_overflow(monkeypatch):
    """The largest logit in any block: first, in the middle, last."""
    monkeypatch.setattr(target_logps, "LOGITS", {"cpu": 1})
    monkeypatch.setattr(target_logps, "MIN_BLOCK", 2)
    for peak in (0, 3, 5):
        weight = torch.zeros(6, 1)
        weight[peak] = 1.0
        values, _ = TargetLogps.apply(
            torch.full((1, 1), 1000.0), weight, torch.tensor([peak]), False
        )
        assert values.item() == 0.0


class _Products(TorchDispatchMode):
    """Numbers in every matrix product whose columns are as many as one of `widths`."""

    def __init__(self, widths):
        super().__init__()
        self.widths, self.made = widths, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if "mm" in str(func) and found.shape[-1] in self.widths:
            self.made.append(found.numel())
        return found


def test_logits_do_not_grow_with_the_prompt(monkeypatch):
    """Forward and backward, with the same completions behind 5 and behind 500 tokens."""
    vocabulary, block = 331, 50
    shape = ModelConfig(hidden_size=64, layers=1, heads=2, max_positions=1024)
    policy = moved(new_policy(shape, vocabulary=vocabulary, eos=0, pad=1, seed=0), 0.1)
    completions = [[[7, 8, 9, 0], [5, 0]]]
    positions = 6
    monkeypatch.setattr(target_logps, "LOGITS", {"cpu": positions * block})
    monkeypatch.setattr(target_logps, "MIN_BLOCK", 4)
    made = []
    for length in (5, 500):
        batch = collate([[2 + i % 300 for i in range(length)]], completions, pad=1)
        with _Products({vocabulary, block, vocabulary % block}) as products:
            completion_logps(policy, batch).sum().backward()
        made.append(products.made)
    assert made[0] == made[1] == 2 * [*6 * [positions * block], positions * 31]
