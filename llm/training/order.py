"""The order of the rows, the same however many processes and micro-batches share a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm.models.packing import Batch, collate
from llm.training.objectives import Row

WINDOW = 16  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class Place:
    """A row of the data set, and its micro-batch's share of the step (see `Shares`)."""

    index: int
    share: float


class Rows(torch.utils.data.Dataset):
    """Training rows by `Place`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Place) -> tuple[Row, float]:
        return self.rows[place.index], place.share


class Collator:
    """Rows of one micro-batch as the tensors of a `Batch`, its reference and its share."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, placed: Sequence[tuple[Row, float]]) -> dict[str, Any]:
        rows = [row for row, _ in placed]
        batch = collate([r.prompt for r in rows], [r.completions for r in rows], pad=self.pad)
        tensors: dict[str, Any] = {n: getattr(batch, n) for n in Batch.__dataclass_fields__}
        tensors["share"] = placed[0][1]
        if rows[0].reference is not None:
            tensors["reference"] = _reference(rows)
        return tensors


def _reference(rows: Sequence[Row]) -> Tensor:
    return torch.tensor([row.reference for row in rows], dtype=torch.float32)


def prompt_groups(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of the rows of each prompt, in order of first appearance."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row.prompt, []).append(i)
    return list(found.values())


class LengthSampler(torch.utils.data.Sampler):
    """A shuffled order in which neighbours have similar lengths, so that passes take equally long.

    groups: rows that stay together (rows of one prompt, or single rows). They are shuffled, sorted
    by length inside windows of WINDOW batches, cut into batches of exactly `batch_size` rows and
    the batches shuffled: all from (seed, epoch), so a resumed run goes on in its order.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.groups = groups or [[i] for i in range(len(lengths))]

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def passes(self, budget: int, processes: int, epochs: int) -> int:
        """Passes of a process that any step needs, so that none has more than `budget` tokens.

        A row that alone has more is a pass of its own, and the others may grow to its size.
        """
        most, before = 1, self.epoch
        for epoch in range(epochs):
            self.set_epoch(epoch)
            order = list(self)
            for start in range(0, len(order), self.batch_size):
                step = [self.lengths[i] for i in order[start : start + self.batch_size]]
                most = max(most, len(cuts(step, budget)))
        self.set_epoch(before)
        return -(-most // processes)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        shuffled = [self.groups[i] for i in rng.permutation(len(self.groups))]
        window = max(1, WINDOW * self.batch_size * len(self.groups) // len(self.lengths))
        order: list[int] = []
        for start in range(0, len(shuffled), window):
            part = shuffled[start : start + window]
            for group in sorted(part, key=lambda group: max(self.lengths[i] for i in group)):
                order += group
        whole = len(order) - len(order) % self.batch_size  # a short batch stays the last one
        starts = range(0, whole, self.batch_size)
        batches = [order[start : start + self.batch_size] for start in starts]
        for index in rng.permutation(len(batches)):
            yield from batches[index]
        yield from order[whole:]


def cuts(costs: Sequence[int], budget: int) -> list[range]:
    """Neighbours together while they cost at most `budget`; a row that costs more is alone."""
    parts, start, total = [], 0, 0
    for i, cost in enumerate(costs):
        if i > start and total + cost > budget:
            parts.append(range(start, i))
            start, total = i, 0
        total += cost
    return [*parts, range(start, len(costs))] if costs else []


def even_cuts(costs: Sequence[int], count: int) -> list[range]:
    """`count` parts of neighbours, the dearest as cheap as can be; none empty if there are rows."""
    low, high = max(max(costs), -(-sum(costs) // count)), sum(costs)
    while low < high:
        middle = (low + high) // 2
        if len(cuts(costs, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    parts = cuts(costs, low)
    while len(parts) < min(count, len(costs)):
        whole = max(parts, key=len)
        middle, at = (whole.start + whole.stop) // 2, parts.index(whole)
        parts[at : at + 1] = [range(whole.start, middle), range(middle, whole.stop)]
    return parts + [range(0)] * (count - len(parts))


class Shares(torch.utils.data.Sampler):
    """One process's micro-batches: `accumulation` of them a step, whatever the step's size.

    A step's rows are cut into processes x accumulation parts of about as many tokens. Trainer
    divides a micro-batch's loss by `accumulation`, and the processes' gradients are averaged; so a
    part of r of m rows weighs r x parts / m, and the step's loss is the mean over its m rows, the
    short last step included. A part without rows is one row that weighs nothing: every process
    takes part in every step.
    """

    def __init__(
        self, sampler: LengthSampler, *, accumulation: int, processes: int = 1, rank: int = 0
    ) -> None:
        self.sampler, self.accumulation = sampler, accumulation
        self.processes, self.rank = processes, rank

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer at the start of every epoch, on resumption too."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.sampler.batch_size) * self.accumulation

    def __iter__(self) -> Iterator[list[Place]]:
        order, size = list(self.sampler), self.sampler.batch_size
        parts = self.processes * self.accumulation
        for start in range(0, len(order), size):
            step = order[start : start + size]
            tokens = [self.sampler.lengths[i] for i in step]
            for part in even_cuts(tokens, parts)[self.rank :: self.processes]:
                share = len(part) * parts / len(step)
                yield [Place(step[i], share) for i in part] or [Place(step[0], 0.0)]


class Loader(torch.utils.data.DataLoader):
    """A loader that hands the epoch on to its batches."""

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
