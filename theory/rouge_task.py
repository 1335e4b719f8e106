"""A task with ROUGE-L as its gold reward, for Fig. 6: a hidden reference for each prompt."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from theory.errors import InputError, require_positive
from theory.tasks import task_body

if TYPE_CHECKING:
    from theory.families import Rouge

OWN_SEED = 1_000_000  # added to the seed for the reference policy's own term
MAX_LEAVES = 2**20  # over all prompts; the file names every completion of every prompt twice


@dataclass(frozen=True)
class RougeTask:
    """Parameters of a ROUGE-L task; the defaults make the shipped one.

    The gold reward is a factor times the ROUGE-L F1 (Lin 2004) of a completion with its prompt's
    hidden reference; the file's parameters give the factor as `rouge_scale`, so that F1 = reward /
    rouge_scale. The reference policy is proportional to exp((reference_share reward + another such
    reward, of other hidden references) / beta). A prompt is one token, which says nothing of its
    reference; a completion is up to `horizon` words, EOS may end it earlier.
    """

    words: int = 3
    """Tokens besides EOS."""
    reference: int = 3
    """Words of each hidden reference."""
    prompts: int = 16
    """Equally likely."""
    horizon: int = 4
    """H."""
    sharpness: float = 2.0
    """Standard deviation of the gold reward over completions, mean over prompts, reward units."""
    reference_share: float = 0.5
    """How much of the gold reward the reference policy already follows."""
    reference_sharpness: float = 1.0
    """Sharpness of the reference policy's own term, reward units."""
    beta: float = 1.0
    """Reward units a nat."""
    seed: int = 0
    """Of the hidden references."""

    def __post_init__(self) -> None:
        require_positive(self, "beta", "reference_sharpness")
        if not (math.isfinite(self.reference_share) and self.reference_share >= 0):
            raise InputError(f"reference_share must be >= 0, got {self.reference_share!r}")

    def family(self, **changes: Any) -> Rouge:
        """The gold reward's family; raises InputError for a setting out of its range."""
        from theory.families import Rouge

        names = ("words", "reference", "prompts", "horizon", "sharpness", "seed")
        return Rouge(**{name: getattr(self, name) for name in names} | changes)

    def own(self) -> Rouge:
        """The family of the reference policy's own term."""
        return self.family(seed=self.seed + OWN_SEED, sharpness=self.reference_sharpness)


def make_rouge_task(spec: RougeTask) -> dict[str, Any]:
    """The JSON object of a ROUGE-L task. Raises InputError for settings that make none."""
    family = spec.family()
    leaves = family.prompts * (family.words + 1) ** family.horizon
    if leaves > MAX_LEAVES:
        raise InputError(
            f"{family.prompts} prompts of {family.words} words and EOS at horizon "
            f"{family.horizon} make {leaves:,} leaves; a task file holds at most {MAX_LEAVES:,}"
        )
    truth = family.draw()
    tree, live = truth.tree, truth.tree.leaf_mask
    gold = truth.reward[:, live]
    score = (spec.reference_share * gold + spec.own().draw().reward[:, live]) / spec.beta
    unscaled = np.exp(score - score.max(axis=1, keepdims=True))
    completions = [" ".join(tree.leaf_tokens(int(leaf))) for leaf in tree.leaves]
    best = [completions[int(row.argmax())] for row in gold]  # F1 is 1 at the reference alone
    hidden = [words.removesuffix(f" {tree.eos}") for words in best]
    return task_body(
        family="rouge",
        parameters={
            **asdict(spec),
            "rouge_scale": round(float(gold.max()), 10),
            "references": dict(zip(tree.prompts, hidden, strict=True)),
        },
        tree=tree,
        beta=spec.beta,
        prompt_tokens=[[name] for name in tree.prompts],
        completions=completions,
        reward=gold,
        reference=unscaled / unscaled.sum(axis=1, keepdims=True),
    )
