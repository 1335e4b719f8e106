"""Lemma 2.1, Lemma B.1 and Eq. 11 in exact fractions: identities that hold for every policy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from theory.claims.base import Broken, Claim, Trial
from theory.claims.rational.instances import (
    prompt_shift,
    random_distribution,
    random_table,
    random_tree,
)
from theory.claims.rational.replayed import exact
from theory.claims.rational.roads import counted, distance, optimum, same_places
from theory.claims.replay import Replay
from theory.logsum import LogSum
from theory.rational import (
    ExactTree,
    Table,
    argmax,
    expected_log,
    kl,
    nearest,
    normalised,
    partition,
    path_probabilities,
    soft_policy,
    soft_return,
    times,
)

PARTS = {"lemma-2.1": "without a reference", "lemma-b.1": "with a reference"}


def identity_gap(tree: ExactTree, p: Table, score: Table, target: Table) -> LogSum:
    """Soft return less (E_x log Z - KL(P || target)), nats; score = y or y P_ref. 0 if it holds."""
    log_z = expected_log(tree, [sum(row, start=Fraction(0)) for row in score])
    return soft_return(tree, p, score) - (log_z - kl(tree, p, target))


def _lemma_trial(name: str, rng: np.random.Generator, index: int) -> Trial:
    """The identity at random policies and at the optimum, and the chosen set of a list."""
    tree = random_tree(rng, index)
    score = random_table(rng, tree)
    if name == "lemma-b.1":
        score = times(score, random_distribution(rng, tree))
    score = tuple((row[0], row[0], *row[2:]) for row in score)  # equal on the first two
    target = normalised(score)
    listed = [random_distribution(rng, tree) for _ in range(4)]
    listed += [_swapped(table) for table in listed]  # exact ties: the first two change places
    if index % 2:
        listed.append(optimum(tree, score))
    gaps = [identity_gap(tree, p, score, target).sign() != 0 for p in listed]
    chosen = argmax([soft_return(tree, p, score) for p in listed])
    close = nearest(tree, listed, target)
    at = identity_gap(tree, target, score, optimum(tree, score)).sign()
    part = PARTS[name]
    return Trial(
        (
            counted(name, f"the identity at policies of a list, {part}", sum(gaps)),
            counted(name, f"the identity at the optimum, {part}", int(at != 0)),
            same_places(name, f"the chosen set of a list, {part}", chosen, close),
        )
    )


def _swapped(table: Table) -> Table:
    """The first two completions of every prompt change places."""
    return tuple((row[1], row[0], *row[2:]) for row in table)


def _eq_11_trial(rng: np.random.Generator, index: int) -> Trial:
    """The chain of soft-optimal tokens against y / Z over the completions at once."""
    tree = random_tree(rng, index)
    y = random_table(rng, tree)
    policy = soft_policy(tree, y)
    chain = path_probabilities(tree, policy)
    wrong = sum(
        chain[i][k] * sum(row) != value for i, row in enumerate(y) for k, value in enumerate(row)
    )
    shifted = soft_policy(tree, prompt_shift(rng, tree, y))
    kept = sum(a != b for a, b in zip(policy, shifted, strict=True))
    sums = [z[()] != sum(row) for z, row in zip(partition(tree, y), y, strict=True)]
    sums += [sum(tokens.values()) != 1 for pi in policy for tokens in pi.values()]
    return Trial(
        (
            counted("eq-11", "the chain of tokens is y / Z", wrong),
            counted("eq-11", "Z at the root, and conditionals that sum to 1", sum(sums)),
            counted("eq-11", "a shift a prompt leaves the policy alone", kept),
        )
    )


# --- broken twins --------------------------------------------------------------------------------


def _powers(table: Table, beta: int) -> Table:
    """exp(r) of y = exp(r / beta)."""
    return tuple(tuple(value**beta for value in row) for row in table)


def _entropy_dropped(replay: Replay) -> float:
    """|E[r] / beta - (E log Z - KL)|: the entropy, as P's own logarithms."""
    file = exact(replay)
    p, y = file.policies[0], file.finite_rewards[0]
    gap = identity_gap(file.tree, p, y, normalised(y))
    entropy = soft_return(file.tree, p, _ones(y))
    return abs(float(gap - entropy))


def _ones(table: Table) -> Table:
    return tuple(tuple(Fraction(1) for _ in row) for row in table)


def _beta_ignored(replay: Replay) -> float:
    """The identity where P*_r is formed with beta = 1 and the rest with the file's beta."""
    file = exact(replay)
    y = file.finite_rewards[0]
    target = normalised(_powers(y, file.beta))
    return abs(float(identity_gap(file.tree, file.policies[0], y, target)))


def _other_reward(replay: Replay) -> float:
    """The identity of one reward with P*_r of another."""
    file = exact(replay)
    y, other = file.finite_rewards[0], file.finite_rewards[-1]
    return abs(float(identity_gap(file.tree, file.policies[0], y, normalised(other))))


def _joint(replay: Replay) -> float:
    """The identity of Lemma B.1 with Eq. 12's mixture, normalised over all prompts together."""
    file = exact(replay)
    score = times(file.finite_rewards[0], file.given_reference)
    total = sum(sum(row) for row in score)
    joint = tuple(tuple(value / total for value in row) for row in score)
    return abs(float(identity_gap(file.tree, file.policies[0], score, joint)))


def _no_reference(replay: Replay) -> float:
    """The identity of Lemma B.1 with P*_r in the place of the mixture."""
    file = exact(replay)
    score = times(file.finite_rewards[0], file.given_reference)
    target = normalised(file.rewards[0])
    return abs(float(identity_gap(file.tree, file.policies[0], score, target)))


def _chain_of_other_beta(replay: Replay) -> float:
    """KL between the chain at the file's beta and exp(r) / Z at beta = 1."""
    file = exact(replay)
    y = file.finite_rewards[0]
    return distance(file.tree, [optimum(file.tree, y)], [normalised(_powers(y, file.beta))])


def _no_backup(replay: Replay) -> float:
    """KL from the chain whose tokens are weighed by the mean of y below them, not by the sum."""
    file = exact(replay)
    y, chain = file.finite_rewards[0], []
    counts = partition(file.tree, _ones(y))
    for z, number in zip(partition(file.tree, y), counts, strict=True):
        policy: dict = {}
        for words in z:
            if words:
                policy.setdefault(words[:-1], {})[words[-1]] = z[words] / number[words]
        for tokens in policy.values():
            total = sum(tokens.values())
            tokens.update({token: value / total for token, value in tokens.items()})
        chain.append(policy)
    mean = path_probabilities(file.tree, tuple(chain))
    return distance(file.tree, [optimum(file.tree, y)], [mean])


LEMMA_2_1 = Claim(
    "lemma-2.1",
    "Lemma 2.1, proof in App. B.1",
    "Lemma 2.1 in exact fractions: E_pi[r] / beta + H(pi) = E_x[log Z_r(x)] - KL(P_pi || P*_r) for "
    "every policy. Both sides are sums of logarithms of fractions; their difference is shown to "
    "be exactly 0, so the same policies of a list are chosen, planted ties included.",
    "The paper sets beta = 1. Here y = exp(r / beta) is drawn, the reward in units of beta, and "
    "the identity is divided by beta: no beta is left in it. Bradley-Terry's odds are y to the "
    "power beta; there the exact theorems draw one.",
    lambda rng, index: _lemma_trial("lemma-2.1", rng, index),
    (
        Broken(
            "exact-entropy-dropped",
            "the entropy term is dropped: E[r] alone against the same right-hand side",
            "one completion alone has entropy 0",
            _entropy_dropped,
        ),
        Broken(
            "exact-beta-ignored",
            "P*_r is formed with beta = 1 while the RL step uses beta = 2",
            "one completion alone has one policy; 2 is the smallest whole beta but 1",
            _beta_ignored,
        ),
        Broken(
            "exact-other-reward",
            "P*_r belongs to another reward than the soft return",
            "one completion alone has one policy",
            _other_reward,
        ),
    ),
    trials=40,
)
LEMMA_B_1 = Claim(
    "lemma-b.1",
    "Lemma B.1, proof in App. B.1.1",
    "Lemma B.1 in exact fractions: E_pi[r] / beta - KL(P_pi || P_ref) = E_x[log Z_{r,ref}(x)] - "
    "KL(P_pi || P*_r . P_ref) for every policy, the mixture normalised for each prompt; the "
    "difference of the two sides is exactly 0. y = exp(r / beta) is drawn, as in Lemma 2.1.",
    "Eq. 12 normalises the mixture over all prompts together; the identity then fails with several "
    "prompts, though the nearest policy stays the same.",
    lambda rng, index: _lemma_trial("lemma-b.1", rng, index),
    (
        Broken(
            "exact-joint",
            "the mixture is normalised over all prompts together, as Eq. 12 is printed",
            "one prompt alone has one normaliser",
            _joint,
        ),
        Broken(
            "exact-no-reference",
            "the projection is onto P*_r instead of the mixture with the reference",
            "one completion alone has one policy",
            _no_reference,
        ),
    ),
    trials=40,
)
EQ_11 = Claim(
    "eq-11",
    "Eq. 11 (Ziebart 2010)",
    "Eq. 11 in exact fractions: the chain of soft-optimal tokens gives each completion "
    "exp(r / beta) / Z_r(x), with residual 0, and a shift a prompt changes no token.",
    "The paper sets beta = 1. Here y = exp(r / beta) is drawn, and no beta is left in the "
    "equation. The sum runs over completions, so EOS and forbidden tokens matter.",
    _eq_11_trial,
    (
        Broken(
            "exact-beta-ignored",
            "P*_r is formed with beta = 1 while soft values use beta = 2",
            "one completion alone has one policy; 2 is the smallest whole beta but 1",
            _chain_of_other_beta,
        ),
        Broken(
            "exact-no-backup",
            "a token is weighed by the mean over the completions below it, not by their sum",
            "at horizon 1, or with equally many completions below each token, both are the same",
            _no_backup,
        ),
    ),
    trials=40,
)
