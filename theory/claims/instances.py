"""Random instances of the claims. Few distinct shapes, so that little is compiled."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from theory.preferences import PairData, comparison_graph, sample_pairs
from theory.soft import Policy, policy_from_leaves
from theory.tree import TokenTree

# (prompts, tokens, horizon), for trials in turn. Identities take any size; fits are kept to 126
# policy logits, as their Hessian is dense, and to few shapes, as compiling one takes seconds.
# Five and three of them, so that in turn they meet each of the four KINDS of data.
SHAPES = (
    (1, 2, 6),
    (5, 6, 1),
    (2, 3, 4),
    (5, 2, 5),
    (4, 5, 2),
    (3, 4, 3),
    (1, 3, 6),
    (2, 6, 4),
)
FIT_SHAPES = ((5, 6, 1), (4, 4, 2), (2, 5, 2), (3, 3, 3), (1, 2, 6))
LINEAR_SHAPES = ((5, 6, 1), (3, 3, 3), (1, 2, 6))
KINDS = ("connected", "disconnected", "sampled", "separable")
LEG = 2  # longest chain of planted pairs that hangs on a hub: it bounds their curvature from below


@dataclass(frozen=True)
class Drawn:
    """What one trial drew, to be counted."""

    vocab: int
    horizon: int
    prompts: int
    eos: bool
    forbidden: bool
    data: str = ""  # "connected", "disconnected" or "separable"; "" if none was drawn

    @classmethod
    def of(
        cls, tree: TokenTree, data: PairData | None = None, *, exists: bool | None = None
    ) -> Drawn:
        """The record of a tree and, if there are any, of the comparisons on it.

        exists: whether the class has a maximiser; for all rewards if left out.
        """
        kind = ""
        if data is not None:
            graph = comparison_graph(tree, data)
            kind = "disconnected" if graph.dimension else "connected"
            kind = kind if (graph.exists if exists is None else exists) else "separable"
        return cls(
            tree.vocab,
            tree.horizon,
            tree.n_prompts,
            tree.eos is not None,
            bool(tree.forbidden),
            kind,
        )


def random_tree(rng: np.random.Generator, shape: tuple[int, int, int]) -> TokenTree:
    """A tree of that shape with random prompt weights; often with EOS, forbidden tokens, or both.

    It has at least four completions a prompt (a draw with fewer is drawn again).
    """
    n_prompts, vocab, horizon = shape
    tokens = tuple("abcdef"[:vocab])
    prompts = tuple(f"x{i}" for i in range(n_prompts))
    weights = np.maximum(rng.dirichlet(np.full(n_prompts, 3.0)), 0.02)
    rho0 = tuple((weights / weights.sum()).tolist())
    while True:
        eos = tokens[-1] if rng.random() < 0.5 else None
        forbidden: dict[tuple[str, ...], str] = {}  # at most one token a state
        for _ in range(int(rng.integers(0, 3))):
            state = rng.choice(tokens[: vocab - 1], size=rng.integers(0, horizon)).tolist()
            forbidden[tuple(state)] = str(rng.choice(tokens))
        prefixes = tuple((*state, token) for state, token in forbidden.items())
        tree = TokenTree(tokens, horizon, prompts, rho0, eos, prefixes)
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


def random_pairs(rng: np.random.Generator, tree: TokenTree, kind: str) -> PairData:
    """Comparisons of one of the KINDS: of the first two a maximiser exists.

    "sampled" are 4 to 40 draws with Bradley-Terry labels, which have a maximiser rarely;
    "separable" are planted pairs and one more between two components, so that there is none.
    """
    if kind == "sampled":
        r, n = random_reward(rng, tree, 1.0), int(rng.integers(4, 40))
        return sample_pairs(tree, r, n, seed=int(rng.integers(2**32)))
    data = two_way_pairs(rng, tree, connected=kind == "connected")
    return one_way(rng, tree, data) if kind == "separable" else data


def one_way(rng: np.random.Generator, tree: TokenTree, data: PairData) -> PairData:
    """The data and one comparison between two components of the first prompt: no maximiser."""
    label = comparison_graph(tree, data).component[0]
    winner = int(rng.choice(tree.leaves))
    loser = int(rng.choice(tree.leaves[label[tree.leaves] != label[winner]]))
    columns = (data.prompt, data.winner, data.loser, data.count)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return PairData.of(tree, [*rows, (0, winner, loser, 1.0)])


def two_way_pairs(rng: np.random.Generator, tree: TokenTree, *, connected: bool) -> PairData:
    """Pairs planted in both directions, so that a finite maximiser exists.

    Each component is a hub with chains of at most LEG pairs. connected: one component a prompt.
    Otherwise the completions of each prompt are split at random, and at least two of the first
    prompt are left uncompared.
    """
    rows = []
    for prompt in range(tree.n_prompts):
        order = rng.permutation(tree.leaves).tolist()
        if prompt == 0 and not connected:
            order = order[2:]
        hub, depth = order[0], 0
        for last, leaf in itertools.pairwise(order):
            if not connected and rng.random() < 0.3:
                hub, depth = leaf, 0
                continue
            goes_on = 0 < depth < LEG and rng.random() < 0.5
            other, depth = (last, depth + 1) if goes_on else (hub, 1)
            wins = rng.integers(1, 6, size=2).astype(float)
            rows.append((prompt, other, leaf, wins[0]))
            rows.append((prompt, leaf, other, wins[1]))
    if not rows:  # everything was split: compare two completions after all
        a, b = (int(leaf) for leaf in tree.leaves[:2])
        rows = [(tree.n_prompts - 1, a, b, 1.0), (tree.n_prompts - 1, b, a, 2.0)]
    return PairData.of(tree, rows)
