"""The six hypotheses on why online beats offline, and what each figure can say of them.

Sections 3.1, 3.2 and A of the paper. A figure bears on a hypothesis where one of its outcomes would
speak against it; a figure that every hypothesis expects tells none of them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from theory.predictions import Verdict

Says = Literal["for", "against"]
NOT_ABOVE = ", from below: the paper's own claim is one-sided (not above), and holds"
CARRY_OVER = (
    "A toy forecast carries over to a language model in order and sign, never in size: which arm "
    "is ahead, and so on which side of 0 a difference lies, is compared; how large it is never is."
)


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis. tested: the figures made for it; contradictable: figures that could speak
    against it, and how."""

    name: str
    words: str
    tested: tuple[str, ...]
    contradictable: tuple[tuple[str, str], ...]


HYPOTHESES = (
    Hypothesis(
        "H1",
        "Samples of the policy itself are worth something that no fixed data set has (App. A.1).",
        ("fig3",),
        (
            ("fig3", "no gap there would leave nothing to explain"),
            ("fig5", "two-word policies are sampled as well, so the gap should stay"),
            ("fig6", "policies trained on ROUGE-L are sampled as well, so the gap should stay"),
        ),
    ),
    Hypothesis(
        "H2",
        "Offline training fails to stay near the reference policy where the pairs do not cover it "
        "(App. A.2).",
        ("fig3",),
        (
            (
                "fig3",
                "both roads have one regulariser there; no gap would leave nothing to explain",
            ),
            ("fig5", "the offline regulariser is the same one, so the gap should stay"),
            ("fig6", "the offline regulariser is the same one, so the gap should stay"),
        ),
    ),
    Hypothesis(
        "H3",
        "Online training is the easier optimisation: redundant samples save computation "
        "(App. A.3).",
        ("fig7",),
        (("fig7", "more prompts for online samples should raise the win rate"),),
    ),
    Hypothesis(
        "H4",
        "Global reward models can use a wider distribution of data than policies can (App. A.4).",
        ("fig8",),
        (("fig8", "with pairs of the SFT policy alone the gap should close"),),
    ),
    Hypothesis(
        "H5",
        "Global reward models generalise better out of distribution (App. A.5).",
        ("fig9", "fig10"),
        (
            ("fig9", "no better in distribution, they would have no head start"),
            ("fig10", "best-of-N by a global reward model should be the best at large N"),
        ),
    ),
    Hypothesis(
        "H6",
        "The reward is simpler than its policy, so that two stages search only the policies that "
        "are optimal for simple rewards (section 3.2).",
        ("fig4", "fig5", "fig6"),
        (
            ("fig3", "no gap at the full horizon"),
            (
                "fig4",
                "best-of-N should not gain from a larger reward model, but from a larger policy",
            ),
            ("fig5", "with two words to write the gap should all but vanish"),
            ("fig6", "a verifier as complex as its generator should leave no gap"),
            ("fig9", "the simpler object, the global reward, should fit better"),
        ),
    ),
)


@dataclass(frozen=True)
class Bearing:
    """What the outcomes of a figure's claim say: nothing where a side is left out.

    quantity: a word that the quantity must hold; None: every quantity of the figure. above: a claim
    of "no gap" speaks here only where it is contradicted from above: the first arm is ahead.
    """

    figure: str
    hypothesis: str
    supported: Says | None
    contradicted: Says | None
    quantity: str | None = None
    above: bool = False

    def says(self, verdict: Verdict) -> Says | None:
        """What a verdict says; None where it decides nothing."""
        if verdict.outcome == "supported":
            return self.supported
        if verdict.outcome != "contradicted":
            return None
        value = None if verdict.measurement is None else verdict.measurement.value
        one_sided = self.above and verdict.prediction.relation == "equal"
        return None if one_sided and (value is None or value <= 0) else self.contradicted


BEARINGS = (
    *(Bearing("fig3", name, None, "against") for name in ("H1", "H2")),
    Bearing("fig3", "H6", "for", "against"),
    Bearing("fig4", "H6", "for", "against", above=True),
    *(Bearing("fig5", name, "against", None) for name in ("H1", "H2")),
    Bearing("fig5", "H6", "for", "against", above=True),
    *(Bearing("fig6", name, "against", None, "online_dpo") for name in ("H1", "H2")),
    Bearing("fig6", "H6", "for", "against", "online_dpo", above=True),
    Bearing("fig7", "H3", "against", "for", above=True),
    Bearing("fig8", "H4", "against", "for", "online_dpo_dpo"),
    Bearing("fig9", "H5", "for", "against"),
    Bearing("fig9", "H6", "for", "against"),
    Bearing("fig10", "H5", "for", "against"),
)


@dataclass(frozen=True)
class Evidence:
    """What one verdict says of one hypothesis; None: it is open, or says nothing."""

    hypothesis: str
    figure: str
    quantity: str
    size: str | None
    outcome: str
    says: Says | None


def names(figure: str, quantity: str) -> tuple[str, ...]:
    """The hypotheses that a quantity bears on."""
    return tuple(b.hypothesis for b in BEARINGS if _about(b, figure, quantity))


def about(verdict: Verdict) -> Verdict:
    """The verdict with the hypotheses that it bears on, and what else its reason says."""
    named = names(verdict.prediction.figure, verdict.prediction.quantity)
    reason = verdict.reason + (NOT_ABOVE if _one_sided_holds(verdict) else "")
    return replace(verdict, reason=reason, hypotheses=named)


def _one_sided_holds(verdict: Verdict) -> bool:
    """Whether "no gap" is contradicted from below alone where the paper claims "not above".

    The paper's claim is that one where being above would speak against a hypothesis (Figs. 4 to 6).
    """
    prediction, measured = verdict.prediction, verdict.measurement
    if verdict.outcome != "contradicted" or prediction.relation != "equal" or measured is None:
        return False
    below = measured.value is not None and measured.value < 0
    return below and any(
        b.above and b.contradicted == "against"
        for b in BEARINGS
        if _about(b, prediction.figure, prediction.quantity)
    )


def evidence(verdicts: Sequence[Verdict]) -> tuple[Evidence, ...]:
    """What every verdict says, hypothesis by hypothesis."""
    return tuple(
        Evidence(
            hypothesis.name,
            verdict.prediction.figure,
            verdict.prediction.quantity,
            None if verdict.measurement is None else verdict.measurement.size,
            verdict.outcome,
            bearing.says(verdict),
        )
        for hypothesis in HYPOTHESES
        for verdict in verdicts
        for bearing in BEARINGS
        if bearing.hypothesis == hypothesis.name
        and _about(bearing, verdict.prediction.figure, verdict.prediction.quantity)
    )


def _about(bearing: Bearing, figure: str, quantity: str) -> bool:
    return bearing.figure == figure and (bearing.quantity or "") in quantity
