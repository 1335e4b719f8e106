"""Prompts that are run once, against TRL and against one row a completion.

Random weights at a Pythia's shape, TL;DR's real texts of distinct posts (or, --lengths drawn,
random ones of such lengths). Every peer's values are compared with ours before anything is timed.
Floor: operations of one pass over the distinct tokens at the rate of one large matrix product.

    python benchmarks/llm_sharing.py --json sharing.json                       # two CPU cores
    python benchmarks/llm_sharing.py --shape 1.4b --device cuda --precision bf16 --pairs 64 \\
        --prompts 16 --json sharing.json                                       # one GPU
    python benchmarks/llm_sharing.py --shape tiny --lengths drawn --repeats 1  # to see that it runs
"""

from __future__ import annotations

import copy
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from llm_gpu import EOS, PAD, SHAPES, random_rows
from llm_peers import (
    full_logps,
    optimizer_of,
    plain_dpo,
    plain_logps,
    plain_rewards,
    plain_scores,
    step,
    trl_dpo,
    trl_reward,
)
from timing import INSTALL, finish, row, version

from llm.errors import InputError
from llm.models.build import RewardModel, new_policy
from llm.models.forward import completion_logps, completion_rewards
from llm.models.shapes import Shape, neox
from llm.training.objectives import Objective, PolicyObjective, RewardObjective, Row
from llm.training.order import Collator, cuts
from llm.training.train import score

BETA = 0.05
EACH = 25  # completions a prompt that are scored
PAIRS_A_POST = 20  # that are read to find one of each post
PACKAGES = ("torch", "transformers", "trl", "accelerate")
TARGETS = {  # (on a CPU, on a GPU): ours / peer at most; None: a share of the ceiling
    "DPO step": (1 / 6, None),
    "reward step": (1 / 1.6, 1 / 1.6),
    "score by reward": (1 / 7.5, 1 / 6),
    "score by log-prob": (1 / 11, 1 / 6),
}
MEMORY_TARGET = 0.4
CEILING_TARGET = 0.85
FLOOR_TARGET = {(True, "DPO step"): 1 / 0.45}  # (on a GPU, what): 45% of the matrix peak
Run = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    shape: Literal["70m", "1.4b", "2.8b", "6.9b", "tiny"] = "70m"
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    lengths: Literal["real", "drawn"] = "real"
    """Texts of $ROADS_TLDR_DIR (../shared/data/tldr), or random ones of TL;DR's lengths."""
    pairs: int = 4
    """Pairs of an optimizer step."""
    prompts: int = 4
    """Prompts scored, 25 completions each."""
    passes: tuple[int, ...] = (2**11, 2**12, 2**13)
    """Tokens a pass of ours; the fastest counts, as of the peers' rows a pass."""
    repeats: int = 3
    """Timed runs of each side, in turn, after one that is not."""
    parts: tuple[Literal["time", "memory", "curve"], ...] = ("time", "memory", "curve")
    """curve: the cost against the prompt's length and the number of completions."""
    memory_of: str | None = None
    """Used by the script itself: run this one thing and print the most memory it took."""
    json: Path | None = None


# --- the work ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Models and texts; everything is made when it is first used."""

    options: Options

    @property
    def device(self) -> str:
        return self.options.device

    @cached_property
    def shape(self) -> Shape:
        config, vocabulary = SHAPES[self.options.shape]
        return neox(config.hidden_size, config.layers, config.heads, vocabulary)

    @cached_property
    def texts(self) -> list[Row]:
        """Pairs, each of another post."""
        if self.options.lengths == "drawn":
            return random_rows(64, self.shape.vocabulary, 2)
        return real_rows(64, self.shape.vocabulary)

    @cached_property
    def policy(self) -> Any:
        config, vocabulary = SHAPES[self.options.shape]
        with torch.device(self.device):
            model = new_policy(config, vocabulary=vocabulary, eos=EOS, pad=PAD, seed=0)
        return model.to(self.device)

    @cached_property
    def reward(self) -> RewardModel:
        return RewardModel(self.policy, seed=0).to(self.device)

    @cached_property
    def pairs(self) -> list[Row]:
        """One step's rows with their references."""
        taken = spread(self.texts, self.options.pairs)
        found = self.scored(partial(completion_logps, self.policy), taken, self.options.passes[0])
        shifted = [(a - 3.0, b + 5.0) for a, b in found]  # the loss then tells log-probs apart
        return [replace(r, reference=v) for r, v in zip(taken, shifted, strict=True)]

    @cached_property
    def pools(self) -> list[Row]:
        """Prompts with 25 completions each, of the data's lengths."""
        draw = random.Random(0)
        lengths = [len(ids) for text in self.texts for ids in text.completions]

        def ids() -> tuple[int, ...]:
            body = draw.choice(lengths) - 1
            return (*(draw.randrange(2, self.shape.vocabulary) for _ in range(body)), EOS)

        taken = spread(self.texts, self.options.prompts)
        return [Row(text.prompt, tuple(ids() for _ in range(EACH))) for text in taken]

    def scored(self, measure: Any, rows: Sequence[Row], tokens: int) -> list[tuple[float, ...]]:
        """By the study's own function, so many tokens a pass."""
        return score(
            measure,
            [(r.prompt, r.completions) for r in rows],
            pad=PAD,
            tokens=tokens,
            device=self.device,
            precision=self.options.precision,
        )


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows at even steps of length."""
    order = sorted(rows, key=lambda r: r.tokens)
    return [order[int((i + 0.5) * len(order) / count)] for i in range(count)]


def real_rows(count: int, vocabulary: int) -> list[Row]:
    """Real TL;DR pairs as the study reads them. Raises InputError where they are not there."""
    from llm.data.config import DataConfig
    from llm.data.source import load
    from llm.data.tokenize import load_tokenizer

    folder = Path(os.environ.get("ROADS_TLDR_DIR", "../shared/data/tldr"))
    words = folder.parent / "tokenizer" / "20B_tokenizer.json"
    if not folder.is_dir() or not words.is_file():
        raise InputError(f"--lengths real: {folder} and {words} are needed; or --lengths drawn")
    limits = DataConfig(n_sft=8, n_pairs=PAIRS_A_POST * count, n_validation_pairs=8, n_test=8)
    data = load(folder, tokenizer=load_tokenizer(str(words)), limits=limits, seed=0)
    of_post = {e.prompt_ids: Row(e.prompt_ids, e.completion_ids) for e in data.pairs}
    rows = list(of_post.values())[:count]
    if len(rows) < count:
        raise InputError(f"--lengths real: {folder} has pairs of {len(rows)} posts, not of {count}")
    if vocabulary >= 50277:
        return rows
    return [  # a smaller model for a test: the lengths alone
        Row(tuple(2 + i % (vocabulary - 2) for i in r.prompt),
            tuple((*(2 + i % (vocabulary - 2) for i in c[:-1]), EOS) for c in r.completions))
        for r in rows
    ]  # fmt: skip


def our_step(work: Work, objective: Objective, rows: Sequence[Row], tokens: int) -> Run:
    """A step as `llm.training.train` takes it: packed passes of at most so many tokens."""
    objective.to(work.device).train()
    order = sorted(rows, key=lambda r: r.tokens)
    collate = Collator(PAD)
    parts = cuts([r.tokens for r in order], tokens)
    inputs = [collate([(order[i], len(part) / len(rows)) for i in part]) for part in parts]
    moved = [
        {k: v.to(work.device) if isinstance(v, torch.Tensor) else v for k, v in i.items()}
        for i in inputs
    ]
    optimizer = optimizer_of(objective)
    calls = [lambda i=i: objective(**i)["loss"] for i in moved]
    return lambda: step(calls, objective, optimizer)


def our_dpo(work: Work, tokens: int) -> Run:
    model = copy.deepcopy(work.policy)
    objective = PolicyObjective(model, beta=BETA, precision=work.options.precision)
    return our_step(work, objective, work.pairs, tokens)


def our_reward(work: Work, tokens: int) -> Run:
    model = RewardModel(copy.deepcopy(work.policy), seed=0)
    objective = RewardObjective(model, precision=work.options.precision)
    return our_step(work, objective, work.pairs, tokens)


def _setting(work: Work) -> dict[str, Any]:
    return {"precision": work.options.precision, "device": work.device}


def _lines(rows: Sequence[Row]) -> list[tuple[Sequence[int], Sequence[int]]]:
    return [(row.prompt, ids) for row in rows for ids in row.completions]


def _one_a_row(measure: Any, model: Callable[[Work], Any], work: Work, size: int) -> Run:
    call = partial(plain_scores, measure, model(work), _lines(work.pools), size=size)
    return partial(call, **_setting(work))


def _flat(found: Sequence[Sequence[float]]) -> list[float]:
    return [value for values in found for value in values]


# What is measured. Each is made with a number a pass (ours: tokens; peers: rows or pairs), and the
# fastest of several counts: (those to try, and those to try on a GPU as well).
Make = Callable[[Work, int], Run]
OURS: dict[str, Make] = {
    "DPO step": our_dpo,
    "reward step": our_reward,
    "score by reward": lambda w, n: (
        lambda: _flat(w.scored(partial(completion_rewards, w.reward), w.pools, n))
    ),
    "score by log-prob": lambda w, n: (
        lambda: _flat(w.scored(partial(completion_logps, w.policy), w.pools, n))
    ),
}
Peer = tuple[Make, tuple[int, ...], tuple[int, ...]]
PEERS: dict[tuple[str, str], Peer] = {
    ("DPO step", "TRL DPOTrainer"): (
        lambda w, n: trl_dpo(w.policy, w.pairs, micro=n, beta=BETA, **_setting(w)),
        (1, 2, 4),
        (16,),
    ),
    ("DPO step", "one row a completion"): (
        lambda w, n: plain_dpo(w.policy, w.pairs, micro=n, beta=BETA, **_setting(w)),
        (1, 2, 4),
        (16,),
    ),
    ("reward step", "TRL RewardTrainer"): (
        lambda w, n: trl_reward(w.reward, w.pairs, micro=n, **_setting(w)),
        (1, 2, 4),
        (16,),
    ),
    ("score by reward", "one row a completion"): (
        partial(_one_a_row, plain_rewards, lambda w: w.reward),
        (1, 5, 25),
        (100, 400),
    ),
    ("score by log-prob", "one row a completion, all logits"): (
        partial(_one_a_row, full_logps, lambda w: w.policy),
        (1, 5),
        (25, 100),
    ),
    ("score by log-prob", "one row a completion"): (
        partial(_one_a_row, plain_logps, lambda w: w.policy),
        (1, 5, 25),
        (100, 400),
    ),
}
PLAIN = "one row a completion"  # our own path without sharing
ALL_LOGITS = "one row a completion, all logits"
CEILED = {  # whose target is a share of the ceiling; on a GPU TRL scores completions only
    False: {("DPO step", PLAIN), ("score by log-prob", PLAIN)},
    True: {("DPO step", PLAIN), ("score by log-prob", PLAIN), ("DPO step", "TRL DPOTrainer")},
}
TOLERANCE = {"fp32": 1e-4, "bf16": 2.0**-4}


# --- what it should take -------------------------------------------------------------------------


def operations(shape: Shape, prompts: Sequence[int], completions: Sequence[Sequence[int]], *,
               shared: bool) -> tuple[float, float]:  # fmt: skip
    """Floating-point operations of one forward: of the layers, of the logits; matrix products.

    A token takes 24 h^2 a layer, a query and the key it sees 4 h a layer, a logit 2 h.
    """
    h, layers = shape.hidden, shape.layers
    tokens = seen = scored = 0.0
    for p, group in zip(prompts, completions, strict=True):
        times = 1 if shared else len(group)
        tokens += times * p + sum(group)
        seen += times * p * (p + 1) / 2 + sum(c * p + c * (c + 1) / 2 for c in group)
        scored += sum(group)
    return layers * (24 * h**2 * tokens + 4 * h * seen), 2 * h * shape.vocabulary * scored


def floor_and_ceilings(
    work: Work, what: str, texts: Sequence[Row]
) -> tuple[float, dict[str, float]]:
    """Operations of what cannot be left out, and the gain that they allow over each plain path.

    A backward takes twice the forward. Ours and the plain path compute the logits once more for it:
    that counts on both sides of the ceiling, and not in the floor.
    """
    prompts = [len(r.prompt) for r in texts]
    if len({r.prompt for r in texts}) < len(texts):
        raise AssertionError("texts of one prompt: more is shared than is counted here")
    lengths = [[len(c) for c in r.completions] for r in texts]
    count = partial(operations, work.shape, prompts, lengths)
    (body, head), (every_body, _) = count(shared=True), count(shared=False)
    scored = sum(map(sum, lengths))
    every = scored + sum(p * len(group) for p, group in zip(prompts, lengths, strict=True))
    if "reward" in what:
        head = 0.0
    layers, once, again = (3, 3, 4) if what.endswith("step") else (1, 1, 1)
    ours = layers * body + again * head
    ceilings = {
        PLAIN: (layers * every_body + again * head) / ours,
        ALL_LOGITS: (layers * every_body + again * head * every / scored) / ours,
    }
    return layers * body + once * head, ceilings


def rate(device: str, precision: str) -> float:
    """Operations a second of one large matrix product, the best of several."""
    size, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    if device == "cuda" and precision == "fp32":
        kind = torch.float32
    a = torch.randn(size, size, device=device, dtype=kind)
    b = torch.randn(size, size, device=device, dtype=kind)
    best = min(_seconds(lambda: a @ b, device) for _ in range(10))
    return 2 * size**3 / best


def _seconds(run: Run, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


# --- measuring -----------------------------------------------------------------------------------


def best(
    work: Work, name: str, make: Make, sizes: Sequence[int], expected: Any
) -> tuple[Run, int, Any]:
    """The fastest number a pass by its second call, and its values; all values are compared."""
    found: dict[int, tuple[float, Run]] = {}
    for size in sizes:
        run = make(work, size)
        values = run()
        expected = values if expected is None else expected
        agree(values, expected, work.options.precision)
        seconds = _seconds(run, work.device)
        found[size] = seconds, run
        print(f"  {name}, {size} a pass: {seconds:.2f} s", file=sys.stderr, flush=True)
    size = min(found, key=lambda size: found[size][0])
    return found[size][1], size, expected


def agree(theirs: Any, ours: Any, precision: str) -> None:
    """A peer that computes something else ends the run."""
    a, b = torch.tensor(theirs, dtype=torch.float64), torch.tensor(ours, dtype=torch.float64)
    error = float(((a - b).abs() / (1 + b.abs())).max())
    if not error <= TOLERANCE[precision]:
        raise AssertionError(f"a peer's values are {error:.1e} from ours")


def timed(runs: dict[str, Run], repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds of each, {"min", "median"}; in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(1e3 * _seconds(run, device))
            print(f"  {name}: {times[name][-1] / 1e3:.2f} s", file=sys.stderr, flush=True)
    return {n: {"min": min(t), "median": statistics.median(t)} for n, t in times.items()}


def rows_of(work: Work, what: str, peak: float) -> list[dict]:
    """The lines of one kind of work."""
    train, cuda = what.endswith("step"), work.device == "cuda"
    texts = work.pairs if train else work.pools
    case = f"{what}, {len(texts)} pairs" if train else f"{what}, {len(texts)} x {EACH}"
    print(case, file=sys.stderr, flush=True)
    ours, tokens, expected = best(work, "ours", OURS[what], work.options.passes, None)
    runs, sizes, absent = {"ours": ours}, {}, []
    for name in [name for kind, name in PEERS if kind == what]:
        make, few, many = PEERS[what, name]
        try:
            found = best(work, name, make, few + many if cuda else few, expected)
            runs[name], sizes[name] = found[:2]
        except ModuleNotFoundError:
            absent.append(row(case, name, None, "", INSTALL))
    costs = timed(runs, work.options.repeats, work.device)
    floor, ceilings = floor_and_ceilings(work, what, texts)
    least = 1e3 * floor / peak
    speed = sum(r.tokens for r in texts) / (costs["ours"]["median"] / 1e3)
    note = f"{speed:,.0f} useful tokens/s, {tokens} tokens a pass, "
    note += f"{waste(texts, tokens):.1%} padding; x floor"
    lines = [
        row(case, "ours", costs["ours"], "floor", note, target=FLOOR_TARGET.get((cuda, what))),
        row(case, "floor", {"min": least, "median": least}, "", f"{peak / 1e9:,.0f} GFLOP/s"),
    ]
    for name, size in sizes.items():
        ratio = costs[name]["median"] / costs["ours"]["median"]
        note = f"{ratio:.2f}x ours; {size} {'pairs' if train else 'rows'} a pass"
        target, value = TARGETS[what][cuda], 1 / ratio
        ceiling = ceilings.get(name, ceilings[PLAIN])
        if (what, name) in CEILED[cuda] or name in ceilings:
            note += f"; ceiling {ceiling:.2f}x, {ratio / ceiling:.0%} of it"
        if (what, name) in CEILED[cuda]:
            target, value = 1 / CEILING_TARGET, ceiling / ratio
        target = None if target is None else round(target, 3)
        lines.append(row(case, name, costs[name], "ours", note, target=target, value=value))
    return lines + absent


def waste(rows: Sequence[Row], tokens: int) -> float:
    """The share of the places in ours that hold no token."""
    order = sorted(rows, key=lambda r: r.tokens)
    parts = cuts([r.tokens for r in order], tokens)
    batches = [Collator(PAD)([(order[i], 1.0) for i in part]) for part in parts]
    places = sum(b["segment"].numel() for b in batches)
    return 1.0 - sum(r.tokens for r in order) / places


# --- memory --------------------------------------------------------------------------------------

MEMORY: dict[str, Callable[[Work], Run]] = {
    "ours, all pairs a pass": lambda w: our_dpo(w, 2**20),
    "TRL DPOTrainer, all pairs a pass": lambda w: PEERS["DPO step", "TRL DPOTrainer"][0](
        w, w.options.pairs
    ),
    "ours, 1 pair a pass": lambda w: our_dpo(w, 1),
    "TRL DPOTrainer, 1 pair a pass": lambda w: PEERS["DPO step", "TRL DPOTrainer"][0](w, 1),
}


def memory_rows(options: Options) -> list[dict]:
    """The most memory of a process that takes DPO steps, each side in a process of its own."""
    case = f"DPO step, {options.pairs} pairs, memory"
    if version("trl") is None:
        return [row(case, "TRL DPOTrainer", None, "", INSTALL)]
    found = {}
    for name in MEMORY:
        given = [f"--{k.replace('_', '-')}={v}" for k, v in _given(options).items()]
        command = [sys.executable, __file__, *given, "--memory-of", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the memory of {name}: {done.stderr[-2000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1])["bytes"]
    lines = []
    for name, value in found.items():
        ours = found[name.replace("TRL DPOTrainer", "ours")]
        note, ratio = f"{value / 2**30:.2f} GiB", ours / value
        if "TRL" not in name:
            lines.append(row(case, name, None, "", note))
            continue
        target = MEMORY_TARGET if options.device == "cpu" else None
        note += f"; ours / TRL {ratio:.2f}"
        lines.append(row(case, name, None, "", note, target=target, value=ratio))
    return lines


def _given(options: Options) -> dict[str, Any]:
    names = ("shape", "device", "precision", "lengths", "pairs", "prompts")
    return {name: getattr(options, name) for name in names}


def memory_of(options: Options, name: str) -> None:
    """Print the most bytes that this process took: of the GPU, or in all."""
    run = MEMORY[name](Work(options))
    run()
    run()
    if options.device == "cuda":
        most = torch.cuda.max_memory_allocated()
    else:  # not ru_maxrss: a child's starts at what its parent had
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        most = int(status["VmHWM"].split()[0]) * 1024
    print(json.dumps({"bytes": most}))


# --- cost against length and number --------------------------------------------------------------

PROMPTS, COUNTS, BETWEEN = (128, 256, 512, 1024), (2, 4, 8, 16, 32, 64), (400, 8)
COMPLETION = 35


def curve(work: Work) -> list[dict[str, float]]:
    """Seconds of scoring K completions of one prompt of P tokens by log-prob, both ways."""
    prompt, count = BETWEEN
    points = [(p, count) for p in PROMPTS] + [(prompt, k) for k in COUNTS]
    draw = random.Random(0)
    found = []
    for p, k in points:
        ids = [draw.randrange(2, work.shape.vocabulary) for _ in range(p + k * COMPLETION)]
        ends = [p + i * COMPLETION for i in range(k + 1)]
        text = Row(tuple(ids[:p]), tuple(tuple(ids[a : a + COMPLETION]) for a in ends[:-1]))
        measure, most = partial(completion_logps, work.policy), max(work.options.passes)
        ours = partial(work.scored, measure, [text], most)
        peer = partial(plain_scores, full_logps, work.policy, _lines([text]), size=8)
        runs = {"ours": ours, "peer": partial(peer, **_setting(work))}
        agree(runs["peer"](), _flat(ours()), work.options.precision)
        costs = timed(runs, work.options.repeats, work.device)
        point = {name: cost["median"] / 1e3 for name, cost in costs.items()}
        found.append({"prompt": p, "completions": k, **point})
    return found


def main(options: Options) -> int:
    """Print and write every line; 2 for what cannot be run here."""
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: there is no GPU here", file=sys.stderr)
        return 2
    if options.memory_of is not None:
        memory_of(options, options.memory_of)
        return 0
    work = Work(options)
    try:
        longest = max(len(r.prompt) for r in work.texts)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = []
    if "time" in options.parts:
        peak = rate(options.device, options.precision)
        lines = [line for what in OURS for line in rows_of(work, what, peak)]
    if "memory" in options.parts:
        lines += memory_rows(options)
    points = curve(work) if "curve" in options.parts else []
    figures = {"curve": points, "longest_prompt": longest, "completion": COMPLETION}
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    finish("llm_sharing", lines, PACKAGES, options.json, {**figures, "gpu": gpu})
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
