"""What a finished study left behind, as arrays on its tasks' trees; llm itself is not needed.

Read: study.json, each stage's record.json, the data stages' task.json and pairs.parquet, and
leaf_logprobs.npz, in which an evaluated model says the log-probability of every completion.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from theory.errors import InputError
from theory.preferences import PairData
from theory.tasks import Task, load_task

LEAVES = "leaf_logprobs.npz"
MASS_ERROR = 1e-4  # nats by which a prompt may exceed probability 1: log-probs summed in float32


@dataclass(frozen=True)
class Place:
    """Where a model stands in a study: its branch of data, its size ("" = main), its seed."""

    branch: str
    size: str
    seed: int | None  # None: all seeds share it


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A policy, and how likely every completion is under it.

    log_p: (P, L), nats, given that it writes a completion of the task; -inf where none is.
    log_mass: (P,), nats: of writing one at all.
    """

    policy: str  # "dpo"
    place: Place
    task: Task
    log_p: Float[np.ndarray, "P L"]
    log_mass: Float[np.ndarray, " P"]
    temperature: float  # of the evaluation
    metrics: Mapping[str, Any]  # what the study itself recorded
    pairs: Path  # folder with the pairs that its branch trains on


@dataclass(frozen=True, eq=False)
class Study:
    """Every evaluated policy of a study, and every stage's record by its id."""

    root: Path
    evaluated: tuple[Evaluated, ...]
    records: Mapping[str, Mapping[str, Any]]  # "dpo[0]" -> {"config": {"beta": ...}, ...}

    def find(self, policy: str, place: Place) -> Evaluated | None:
        """The policy at this place; one that all seeds share is at every seed."""
        for seed in (place.seed, None):
            for one in self.evaluated:
                if (one.policy, one.place) == (policy, Place(place.branch, place.size, seed)):
                    return one
        return None


def read_study(root: Path) -> Study:
    """The study in a folder. Raises InputError naming the file that is missing or wrong."""
    study = read_json(root / "study.json")
    stages = study.get("stages") if isinstance(study, dict) else None
    if not isinstance(stages, dict) or not stages:
        raise InputError(f"{root / 'study.json'}: names no stages")
    records = {name: read_json(root / place / "record.json") for name, place in stages.items()}
    tasks: dict[Path, Task] = {}
    found = []
    for name, place in stages.items():
        if (root / place / LEAVES).exists():
            data, pairs = _sources(root, name, records[name], stages)
            if data not in tasks:
                tasks[data] = load_task(data / "task.json")
            found.append(_evaluated(root / place, records[name], tasks[data], pairs))
    if not found:
        raise InputError(f"{root}: no stage has {LEAVES}: only a study of a task has exact numbers")
    return Study(root, tuple(found), records)


def _sources(
    root: Path, name: str, record: Mapping[str, Any], stages: Mapping[str, str]
) -> tuple[Path, Path]:
    """(folder of the task, folder of the pairs) that an evaluation's branch reads."""
    inputs = [stage for stage in record["inputs"] if stage in stages]
    data = [stage for stage in inputs if stage.split(".")[0].split("@")[0] == "data"]
    made = [stage for stage in inputs if stage.split(".")[0].split("@")[0] == "pairs"]
    if not data:
        raise InputError(f"{root / 'study.json'}: {name} has no data stage among its inputs")
    return root / stages[data[0]], root / stages[(made or data)[0]]


def _evaluated(folder: Path, record: Mapping[str, Any], task: Task, pairs: Path) -> Evaluated:
    log_p = _read_leaves(folder / LEAVES, task)
    log_mass = np.asarray(logsumexp(log_p, axis=1))
    bad = ~((log_mass <= MASS_ERROR) & np.isfinite(log_mass))
    if bad.any():
        x = int(np.argmax(bad))
        raise InputError(
            f"{folder / LEAVES}: probabilities of prompt {task.tree.prompts[x]!r} sum to "
            f"{float(np.exp(log_mass[x]))!r}"
        )
    return Evaluated(
        policy=str(record["name"]).removeprefix("eval_"),
        place=Place(record["branch"], record["size"], record["seed"]),
        task=task,
        log_p=log_p - log_mass[:, None],
        log_mass=log_mass,
        temperature=float(record["config"]["evaluation"]["temperature"]),
        metrics=record["metrics"],
        pairs=pairs,
    )


def _read_leaves(path: Path, task: Task) -> Float[np.ndarray, "P L"]:
    """{prompt: (completions,)} as (P, L), -inf at slots that are no completion."""
    out = np.full((task.tree.n_prompts, task.tree.n_leaves), -np.inf)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for x, prompt in enumerate(task.tree.prompts):
                out[x, task.tree.leaves] = arrays[prompt]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is not one row a prompt of its task: {error}") from error
    if np.isnan(out).any() or np.isposinf(out).any():
        raise InputError(f"{path}: holds a number that is no log-probability")
    return out


def read_pairs(folder: Path, task: Task) -> PairData:
    """The preference pairs (chosen, rejected) that a branch trains on. Raises InputError.

    Pairs of a policy's own samples may hold words of the task that are no completion of it (it ends
    too early, say): such pairs are no point of the tree and are left out.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, tree = folder / "pairs.parquet", task.tree
    prompts = {" ".join(words): x for x, words in enumerate(task.prompt_tokens)}
    leaves = {
        " ".join(word for word in tree.leaf_tokens(int(leaf)) if word != tree.eos): int(leaf)
        for leaf in tree.leaves
    }
    known = {word for words in (*task.prompt_tokens, tree.tokens) for word in words}

    def leaf(text: str) -> int | None:
        return leaves.get(text) if known.issuperset(text.split()) else leaves[text]

    try:
        rows = pq.read_table(path, columns=["prompt", "completions"]).to_pylist()
        ends = [(prompts[row["prompt"]], *map(leaf, row["completions"])) for row in rows]
        made = [(*each, 1.0) for each in ends if None not in each]
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: {error} is no prompt or completion of the task") from error
    return PairData.of(tree, made)  # pyright: ignore[reportArgumentType]


def read_json(path: Path) -> Any:
    """A JSON file. Raises InputError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
