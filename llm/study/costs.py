"""What a stage costs on a GPU: time from counted operations and bytes, memory, disk.

An estimate for planning, by formulas that are stated here and printed with every plan; a measured
run replaces it. Attention's own operations are left out: below a tenth at these lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm.errors import InputError
from llm.models.shapes import Shape

GIB = 2**30
TRAIN_BYTES = 16  # a parameter: fp32 weight and gradient, two fp32 moments of AdamW
HALF_BYTES = 2  # a parameter: the 16-bit copy that autocast keeps, or that vLLM loads
SAVED_BYTES = 4  # a parameter kept: fp32
CHECKPOINT_BYTES = 24  # a parameter: weights and moments, twice (the new one before the old goes)
ACTIVATION_BYTES = 34  # a token, layer and hidden unit (Korthikanti et al. 2022, without scores)
PASSING_BYTES = 50  # a token and hidden unit without a backward pass: one layer's at a time
LOGIT_BYTES = 8  # a logit of the block in hand: in fp32, and as the factor of a product
SHARDED_FROM = 2e9  # parameters: more are sharded over the GPUs (FSDP), fewer are copied (DDP)
LOGITS = 2**27  # that exist at one time on a GPU (llm.models.target_logps)
SAMPLE_BYTES = 2000  # of a stored sample: prompt, text and ids, compressed


@dataclass(frozen=True)
class Machine:
    """One GPU, as an estimate sees it: an H100 SXM unless told otherwise."""

    peak_tflops: float = 989.0
    """Of one GPU, dense bf16. H100 SXM 989, A100 312."""
    utilisation: float = 0.4
    """The share of it that training and scoring reach."""
    bandwidth: float = 3.35
    """Of one GPU's memory, TB/s; decoding is bound by it. H100 SXM 3.35, A100 80 GB 2.0."""
    bandwidth_use: float = 0.6
    """The share of it that decoding reaches."""
    memory: float = 80.0
    """Of one GPU, GiB."""
    sequences: int = 256
    """Completions that one replica decodes at a time."""

    def __post_init__(self) -> None:
        for name in ("peak_tflops", "bandwidth", "memory", "sequences"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be > 0")
        for name in ("utilisation", "bandwidth_use"):
            if not 0 < getattr(self, name) <= 1:
                value = getattr(self, name)
                raise InputError(f"--{name.replace('_', '-')} {value}: must lie in (0, 1]")

    @property
    def flops(self) -> float:
        """Operations a second that training and scoring reach."""
        return self.peak_tflops * 1e12 * self.utilisation

    @property
    def bytes(self) -> float:
        """Bytes a second that decoding reaches."""
        return self.bandwidth * 1e12 * self.bandwidth_use


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt, a completion of the data, and a generated one.

    The defaults are TL;DR's under GPT-NeoX's tokenizer (11,000 comparisons of 2,300 posts).
    """

    prompt: float = 346.0
    completion: float = 35.0
    generated: float = 35.0


def train_hours(shape: Shape, rows: float, tokens: float, machine: Machine) -> float:
    """GPU hours of training: 6 operations a parameter and token. tokens: of one row."""
    return 6 * shape.parameters * rows * tokens / machine.flops / 3600


def score_hours(shape: Shape, rows: float, tokens: float, machine: Machine) -> float:
    """GPU hours of one forward: 2 operations a parameter and token."""
    return 2 * shape.parameters * rows * tokens / machine.flops / 3600


def sample_hours(
    shape: Shape, prompts: float, each: int, lengths: Lengths, machine: Machine
) -> float:
    """GPU hours of sampling `each` completions a prompt.

    Each prompt is read once (its samples share it). Then, step by step, as many sequences as fit
    are decoded together; a step reads all weights and the sequences' caches, or computes, whichever
    takes longer.
    """
    context = lengths.prompt + lengths.generated / 2
    total = prompts * each
    room = 0.9 * machine.memory * GIB - HALF_BYTES * shape.parameters
    width = min(machine.sequences, total, max(1.0, room / (shape.cache_bytes * context)))
    read = (HALF_BYTES * shape.parameters + width * context * shape.cache_bytes) / machine.bytes
    computed = 2 * shape.parameters * width / machine.flops
    decode = total * lengths.generated / width * max(read, computed) / 3600
    return score_hours(shape, prompts, lengths.prompt, machine) + decode


def train_memory(shape: Shape, tokens: float, *, gpus: int, half: bool) -> float:
    """Peak GiB a GPU. tokens: of one pass on one GPU, prompts and completions."""
    sharded = gpus if shape.parameters > SHARDED_FROM else 1
    # split: two layers' weights, and weights and gradients of the two embeddings, are whole
    whole = 2 * shape.layer + 4 * shape.embedding if sharded > 1 else 0
    buckets = SAVED_BYTES if gpus > sharded else 0  # a copy each: gradients on their way
    # autograd keeps every layer's 16-bit copy until the backward pass, of split layers too
    each = TRAIN_BYTES / sharded + buckets + (HALF_BYTES if half else 0)
    layers = shape.layers * shape.hidden * ACTIVATION_BYTES * (1 if half else 2)
    return (
        each * shape.parameters + SAVED_BYTES * whole + tokens * layers + _logits(shape, tokens)
    ) / GIB


def score_memory(shape: Shape, tokens: float, *, half: bool) -> float:
    """Peak GiB a GPU of one model's forwards alone. tokens: of one pass."""
    weights = (SAVED_BYTES + (HALF_BYTES if half else 0)) * shape.parameters
    active = tokens * shape.hidden * PASSING_BYTES
    return (weights + active + _logits(shape, tokens)) / GIB


def _logits(shape: Shape, tokens: float) -> float:
    """Bytes of the logits that exist at one time (`target_logps`), if all tokens are scored."""
    return LOGIT_BYTES * min(LOGITS, tokens * shape.vocabulary)


def sample_memory(shape: Shape, lengths: Lengths, machine: Machine, *, parallel: int) -> float:
    """Peak GiB a GPU of decoding `sequences` at a time, at most what the GPU has."""
    context = lengths.prompt + lengths.generated
    cache = machine.sequences * context * shape.cache_bytes
    needed = (HALF_BYTES * shape.parameters + cache) / parallel / GIB
    least = HALF_BYTES * shape.parameters / parallel / GIB
    return max(least, min(needed, 0.9 * machine.memory))


ASSUMPTIONS = (
    "training: 6 operations a parameter and token; scoring: 2; a pair's prompt is read once",
    "sampling: a prompt is read once, then each step reads all weights and the caches (16 bits)",
    f"memory of training: {TRAIN_BYTES} bytes a parameter, divided by the GPUs above "
    f"{SHARDED_FROM / 1e9:.0f} billion parameters (below, {SAVED_BYTES} more on several GPUs), "
    f"{HALF_BYTES} more under bf16; {ACTIVATION_BYTES} bytes a token "
    f"of a pass, layer and hidden unit; {LOGIT_BYTES} for each of at most {LOGITS:,} logits",
    f"memory of scoring: weights, {PASSING_BYTES} bytes a token of a pass and hidden unit, logits",
    f"disk: {SAVED_BYTES} bytes a parameter kept, {CHECKPOINT_BYTES} while it is trained",
)
