"""Random instances of the claims. Few distinct shapes, so that little is compiled."""

from __future__ import annotations

import numpy as np

from theory.preferences import PairData
from theory.soft import Policy, policy_from_leaves
from theory.tree import TokenTree

# (prompts, tokens, horizon): for identities, and for claims that need a fit
SHAPES = ((1, 2, 4), (2, 3, 3), (3, 2, 3))
FIT_SHAPES = ((2, 2, 3), (2, 3, 2))


def random_tree(rng: np.random.Generator, shape: tuple[int, int, int]) -> TokenTree:
    """A tree of that shape with random prompt weights; often with EOS, a forbidden token, or both.

    It has at least four completions a prompt (a draw with fewer is drawn again).
    """
    n_prompts, vocab, horizon = shape
    tokens = tuple("abcdef"[:vocab])
    prompts = tuple(f"x{i}" for i in range(n_prompts))
    weights = np.maximum(rng.dirichlet(np.full(n_prompts, 3.0)), 0.02)
    rho0 = tuple((weights / weights.sum()).tolist())
    while True:
        eos = tokens[-1] if rng.random() < 0.5 else None
        forbidden: tuple[tuple[str, ...], ...] = ()
        if rng.random() < 0.5:
            prefix = rng.choice(tokens[: vocab - 1], size=rng.integers(0, horizon)).tolist()
            forbidden = ((*prefix, str(rng.choice(tokens))),)
        tree = TokenTree(tokens, horizon, prompts, rho0, eos, forbidden)
        if len(tree.leaves) >= 4:
            return tree


def one_step_tree(*completions: str, prompts: int = 1) -> TokenTree:
    """The smallest tree: horizon 1, one completion a token, prompts of equal weight."""
    names = tuple(f"x{i}" for i in range(prompts))
    return TokenTree(completions, 1, names, (1.0 / prompts,) * prompts)


def random_reward(rng: np.random.Generator, tree: TokenTree, scale: float) -> np.ndarray:
    """(P, L) normal rewards of standard deviation `scale`."""
    return scale * rng.normal(size=(tree.n_prompts, tree.n_leaves))


def random_beta(rng: np.random.Generator) -> float:
    """Between 0.1 and 10, uniform in the logarithm."""
    return float(10.0 ** rng.uniform(-1.0, 1.0))


def random_policy(rng: np.random.Generator, tree: TokenTree, scale: float = 1.5) -> Policy:
    """A positive policy that is drawn through its completion distribution."""
    return policy_from_leaves(tree, random_log_p(rng, tree, scale))


def random_log_p(rng: np.random.Generator, tree: TokenTree, scale: float = 1.0) -> np.ndarray:
    """(P, L) log-probabilities of a positive completion distribution, nats."""
    score = np.where(tree.leaf_mask, random_reward(rng, tree, scale), -np.inf)
    return score - np.log(np.exp(score).sum(axis=1, keepdims=True))


def two_way_pairs(rng: np.random.Generator, tree: TokenTree, *, connected: bool) -> PairData:
    """Pairs planted in both directions, so that a finite maximiser exists.

    connected: one component a prompt. Otherwise the completions of each prompt are split at random
    into chains, and at least two of the first prompt are left uncompared.
    """
    rows = []
    for prompt in range(tree.n_prompts):
        order = rng.permutation(tree.leaves)
        cut = np.zeros(len(order), dtype=bool)
        if not connected:
            cut[1:] = rng.random(len(order) - 1) < 0.3
            if prompt == 0:
                order = order[2:]
        for k in range(1, len(order)):
            if not cut[k]:
                wins = rng.integers(1, 6, size=2).astype(float)
                rows.append((prompt, int(order[k - 1]), int(order[k]), wins[0]))
                rows.append((prompt, int(order[k]), int(order[k - 1]), wins[1]))
    if not rows:  # every chain was cut: compare two completions after all
        a, b = (int(leaf) for leaf in tree.leaves[:2])
        rows = [(tree.n_prompts - 1, a, b, 1.0), (tree.n_prompts - 1, b, a, 2.0)]
    return PairData.of(tree, rows)
