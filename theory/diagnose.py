"""What Bradley-Terry can learn from a set of comparisons: existence, identification, label noise.

Definitions, used for every count below.
- comparison: one label; a row with count k is k comparisons. Comparisons are what `pairs` (the
  preference pairs of the data), `separable_pairs` and `pairs_without_annotator` count.
- pair: an unordered {a, b} of two completions of one prompt. Pairs are what `distinct_pairs`,
  `repeated_pairs`, `unanimous_pairs`, `two_way_pairs`, `tied_pairs` and `label_noise.pairs` count.
- repeated: compared at least twice. unanimous: repeated, and always with the same winner. two-way:
  each side won at least once (repeated and not unanimous). tied: as many wins on both sides.
- component: a weakly connected component of the comparison graph (node = completion that appears,
  edge winner -> loser, edges only inside a prompt).
- prompts_with_finite_mle: prompts whose every component is strongly connected. Exactly there a
  Bradley-Terry maximiser over all rewards is finite (Zermelo 1929, Ford 1957).
- separable comparison: its two ends lie in different strong components. The likelihood of all of
  them together rises to 1 as the rewards part, so they have no finite maximiser.
- triple: three completions of one prompt, each two of them compared with a strict majority.
  intransitive triple: its majorities form a directed cycle. majority cycle: a strong component of
  two or more completions in the graph of strict majorities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from theory.bt_floor import least_log_loss
from theory.comparisons import Clashes, Comparisons

Z95 = 1.959963984540054  # the normal's 97.5% quantile
PATHS_AT_ONCE = 2_000_000  # two-edge paths held in memory at once when triples are counted


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs {low, high}, low < high, and the wins of each side; one entry of D a pair."""

    low: Int[np.ndarray, " D"]
    high: Int[np.ndarray, " D"]
    low_wins: Int[np.ndarray, " D"]
    high_wins: Int[np.ndarray, " D"]

    @property
    def total(self) -> Int[np.ndarray, " D"]:
        """Comparisons of the pair."""
        return self.low_wins + self.high_wins

    def __getitem__(self, mask: np.ndarray) -> Pairs:
        return Pairs(self.low[mask], self.high[mask], self.low_wins[mask], self.high_wins[mask])


@dataclass(frozen=True)
class Graph:
    """The comparison graphs of all prompts."""

    weak: Int[np.ndarray, " C"]  # component of each completion
    strong: Int[np.ndarray, " C"]
    prompt: Int[np.ndarray, " C"]  # prompt of each completion
    components: int
    components_of: Int[np.ndarray, " P"]  # number of components of each prompt
    finite: np.ndarray  # (P,) bool: a finite maximiser exists


@dataclass(frozen=True)
class LabelNoise:
    """How far annotators disagree on repeated pairs; log-losses in nats a comparison.

    agreement: the chance that two annotators of one pair agree, the mean over repeated pairs of the
    share of agreeing couples of comparisons; couples by one annotator are left out, an unknown
    annotator counts as a new one. interval: 95%, Wilson's with n = the pairs in the mean; it is
    conservative if pairs are independent, since a share in [0, 1] with mean p has variance
    <= p (1 - p).
    least_log_loss: the smallest in-sample Bradley-Terry log-loss that any reward has on the
    comparisons of repeated pairs; None where it was not found, for least_log_loss_missing's reason.
    entropy_floor: the same for any model of pairs at all; the two
    are equal unless the repeated pairs form cycles.
    fresh_log_loss, best_accuracy: bounds for new labels of those pairs, each pair of equal weight.
    With p a pair's true probability, 1 - agreement is 2 p (1 - p) on average. No model's expected
    log-loss is below 2 log(2) (1 - agreement), since the entropy of p is >= 4 p (1 - p) log 2 (cut
    at log 2, which guessing has); its interval is that of the agreement, carried over. The best
    accuracy, the mean of max(p, 1 - p), lies between agreement and
    (1 + sqrt(2 agreement - 1)) / 2 (Jensen).
    """

    agreement: float
    interval: tuple[float, float]
    interval_method: str
    pairs: int  # repeated pairs with two annotators
    couples: int  # couples of comparisons of one pair by different annotators
    couples_of_one_annotator: int
    least_log_loss: float | None
    least_log_loss_missing: str | None
    entropy_floor: float
    fresh_log_loss: float
    fresh_log_loss_interval: tuple[float, float]
    best_accuracy: tuple[float, float]


@dataclass(frozen=True)
class Diagnosis:
    """Every number of the diagnosis; the definitions stand at the top of the module."""

    rows: int
    dropped: Mapping[str, int]
    clashes: Clashes | None
    pairs: int  # comparisons
    prompts: int
    completions: int
    distinct_pairs: int  # these five: pairs {a, b}
    repeated_pairs: int
    unanimous_pairs: int
    two_way_pairs: int
    tied_pairs: int
    prompts_with_finite_mle: int
    components: int
    prompts_in_one_component: int
    largest_component: int  # completions
    strong_components: int
    separable_pairs: int  # comparisons
    free_component_masses: int  # components - prompts
    dimension: int | None  # the same on prompts with a finite maximiser; None if there is none
    least_log_loss: float | None  # of all comparisons, infimum over rewards, nats a comparison
    least_log_loss_missing: str | None  # why it is None
    triples: int
    intransitive_triples: int
    majority_cycles: int
    annotators: int | None
    pairs_without_annotator: int  # comparisons
    label_noise: LabelNoise | None  # None where no pair was compared by two annotators


def diagnose(data: Comparisons) -> Diagnosis:
    """The diagnosis of a set of comparisons."""
    pairs = distinct_pairs(data)
    graph = comparison_graphs(data, pairs)
    total = pairs.total
    both = (pairs.low_wins > 0) & (pairs.high_wins > 0)
    repeated = total >= 2
    separable = graph.strong[pairs.low] != graph.strong[pairs.high]
    better = np.where(pairs.low_wins > pairs.high_wins, pairs.low, pairs.high)
    worse = pairs.low + pairs.high - better
    strict = pairs.low_wins != pairs.high_wins
    transitive, cyclic = count_triples(better[strict], worse[strict], data.n_completions)
    least, missing = _floor(pairs)
    return Diagnosis(
        rows=data.rows,
        dropped=data.dropped,
        clashes=data.clashes,
        pairs=int(total.sum()),
        prompts=data.n_prompts,
        completions=data.n_completions,
        distinct_pairs=len(total),
        repeated_pairs=int(repeated.sum()),
        unanimous_pairs=int((repeated & ~both).sum()),
        two_way_pairs=int(both.sum()),
        tied_pairs=int((~strict).sum()),
        prompts_with_finite_mle=int(graph.finite.sum()),
        components=graph.components,
        prompts_in_one_component=int((graph.components_of == 1).sum()),
        largest_component=int(np.bincount(graph.weak).max()),
        strong_components=int(graph.strong.max()) + 1,
        separable_pairs=int(total[separable].sum()),
        free_component_masses=graph.components - data.n_prompts,
        dimension=int((graph.components_of[graph.finite] - 1).sum())
        if graph.finite.any()
        else None,
        least_log_loss=least,
        least_log_loss_missing=missing,
        triples=transitive + cyclic,
        intransitive_triples=cyclic,
        majority_cycles=count_cycles(better[strict], worse[strict], data.n_completions),
        annotators=data.n_annotators or None,
        pairs_without_annotator=int(data.count[data.annotator < 0].sum()),
        label_noise=label_noise(data, pairs),
    )


def distinct_pairs(data: Comparisons) -> Pairs:
    """The distinct pairs of the data, in order of (low, high)."""
    pair, wins_of_low = _pair_of_rows(data)
    keys, pair = np.unique(pair, return_inverse=True)
    low_wins = _sum(pair, data.count * wins_of_low, len(keys))
    high_wins = _sum(pair, data.count * ~wins_of_low, len(keys))
    return Pairs(keys // data.n_completions, keys % data.n_completions, low_wins, high_wins)


def _pair_of_rows(data: Comparisons) -> tuple[Int[np.ndarray, " N"], np.ndarray]:
    """(low * completions + high, whether low won), one a row."""
    low = np.minimum(data.winner, data.loser)
    high = np.maximum(data.winner, data.loser)
    return low * data.n_completions + high, data.winner == low


def _sum(group: np.ndarray, value: np.ndarray, n: int) -> Int[np.ndarray, " n"]:
    """Integer sums of `value` by group."""
    sums = np.zeros(n, dtype=np.int64)
    np.add.at(sums, group, value)
    return sums


# --- the graph -----------------------------------------------------------------------------------


def comparison_graphs(data: Comparisons, pairs: Pairs) -> Graph:
    """Weak and strong components of all prompts at once, and where a finite maximiser exists."""
    n = data.n_completions
    prompt = np.zeros(n, dtype=np.int64)
    prompt[data.winner], prompt[data.loser] = data.prompt, data.prompt
    low, high = pairs.low_wins > 0, pairs.high_wins > 0
    edges = _edges(
        np.concatenate([pairs.low[low], pairs.high[high]]),
        np.concatenate([pairs.high[low], pairs.low[high]]),
        n,
    )
    components, weak = connected_components(edges, directed=True, connection="weak")
    _, strong = connected_components(edges, directed=True, connection="strong")
    first = np.unique(weak, return_index=True)[1]
    finite = np.ones(data.n_prompts, dtype=bool)
    finite[prompt[pairs.low[strong[pairs.low] != strong[pairs.high]]]] = False
    components_of = np.bincount(prompt[first], minlength=data.n_prompts)
    return Graph(weak, strong, prompt, int(components), components_of, finite)


def _edges(tail: Int[np.ndarray, " E"], head: Int[np.ndarray, " E"], n: int) -> csr_array:
    return csr_array((np.ones(len(tail), dtype=np.int64), (tail, head)), shape=(n, n))


def count_triples(
    better: Int[np.ndarray, " E"], worse: Int[np.ndarray, " E"], n: int
) -> tuple[int, int]:
    """(transitive, cyclic) triples of a graph with at most one edge between two of n nodes.

    A two-edge path a -> b -> c closes a transitive triple if a -> c, once for each triple, and a
    cyclic one if c -> a, three times for each. Work and memory follow the number of paths, and
    memory is held below a bound by taking the tails a in blocks.
    """
    edges = _edges(better, worse, n)
    back = csr_array(edges.T)
    reach = np.cumsum(edges @ edges.sum(axis=1))  # paths from the nodes up to here
    cuts = np.searchsorted(reach, np.arange(PATHS_AT_ONCE, int(reach[-1]), PATHS_AT_ONCE))
    bounds = np.unique(np.concatenate([[0], cuts, [n]]))
    transitive = cyclic = 0
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        paths = edges[start:stop] @ edges
        transitive += int(paths.multiply(edges[start:stop]).sum())
        cyclic += int(paths.multiply(back[start:stop]).sum())
    return transitive, cyclic // 3


def count_cycles(better: Int[np.ndarray, " E"], worse: Int[np.ndarray, " E"], n: int) -> int:
    """Strong components of two or more nodes."""
    _, strong = connected_components(_edges(better, worse, n), directed=True, connection="strong")
    return int((np.bincount(strong) > 1).sum())


# --- label noise ---------------------------------------------------------------------------------


def label_noise(data: Comparisons, pairs: Pairs) -> LabelNoise | None:
    """Disagreement on repeated pairs; None where no pair was compared by two annotators."""
    couples, agreeing = _couples(pairs.low_wins, pairs.high_wins)
    own, own_agreeing = _own_couples(data, len(pairs.low))
    couples, agreeing = couples - own, agreeing - own_agreeing
    counted = couples > 0
    if not counted.any():
        return None
    n = int(counted.sum())
    agreement = float(np.mean(agreeing[counted] / couples[counted]))
    low, high = wilson(agreement, n)
    repeated = pairs[pairs.total >= 2]
    least, missing = _floor(repeated)
    return LabelNoise(
        agreement=agreement,
        interval=(low, high),
        interval_method=f"Wilson, 95%, n = {n} repeated pairs",
        pairs=n,
        couples=int(couples.sum()),
        couples_of_one_annotator=int(own.sum()),
        least_log_loss=least,
        least_log_loss_missing=missing,
        entropy_floor=entropy_floor(repeated),
        fresh_log_loss=_fresh_log_loss(agreement),
        fresh_log_loss_interval=(_fresh_log_loss(high), _fresh_log_loss(low)),
        best_accuracy=(
            max(agreement, 0.5),
            (1.0 + math.sqrt(max(2.0 * agreement - 1.0, 0.0))) / 2.0,
        ),
    )


def _floor(pairs: Pairs) -> tuple[float | None, str | None]:
    """(least_log_loss, None), or (None, why it was not found)."""
    try:
        return least_log_loss(pairs.low, pairs.high, pairs.low_wins, pairs.high_wins), None
    except ArithmeticError as error:
        return None, str(error)


def _fresh_log_loss(agreement: float) -> float:
    return min(2.0 * (1.0 - agreement), 1.0) * math.log(2.0)


def _couples(
    a: Int[np.ndarray, " D"], b: Int[np.ndarray, " D"]
) -> tuple[Int[np.ndarray, " D"], Int[np.ndarray, " D"]]:
    """(couples of comparisons, couples that agree) for a wins of one side and b of the other."""
    agreeing = a * (a - 1) // 2 + b * (b - 1) // 2
    return agreeing + a * b, agreeing


def _own_couples(
    data: Comparisons, n_pairs: int
) -> tuple[Int[np.ndarray, " D"], Int[np.ndarray, " D"]]:
    """As `_couples`, of those couples that are by one known annotator."""
    pair, wins_of_low = _pair_of_rows(data)
    _, pair = np.unique(pair, return_inverse=True)
    known = data.annotator >= 0
    keys = pair[known] * max(data.n_annotators, 1) + data.annotator[known]
    keys, group = np.unique(keys, return_inverse=True)
    count, low_won = data.count[known], wins_of_low[known]
    won = _sum(group, count * low_won, len(keys))
    lost = _sum(group, count * ~low_won, len(keys))
    own, agreeing = _couples(won, lost)
    of = keys // max(data.n_annotators, 1)
    return _sum(of, own, n_pairs), _sum(of, agreeing, n_pairs)


def wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion p seen in n trials."""
    scale = 1.0 + Z95**2 / n
    middle = (p + Z95**2 / (2 * n)) / scale
    half = Z95 / scale * math.sqrt(p * (1.0 - p) / n + Z95**2 / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def entropy_floor(pairs: Pairs) -> float:
    """Mean log-loss a comparison if each pair's probability is its own share of wins, nats."""
    share: Float[np.ndarray, "2 D"] = np.stack([pairs.low_wins, pairs.high_wins]) / pairs.total
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    return float(np.sum(share * -logs * pairs.total) / pairs.total.sum())
