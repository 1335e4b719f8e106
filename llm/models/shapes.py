"""Sizes of models: width, layers, heads, vocabulary and parameters; `llm.study.costs` has bytes."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from llm.config import ModelConfig
from llm.errors import InputError


@dataclass(frozen=True)
class Shape:
    """A transformer decoder's shape, and its parameters (counted, not rounded)."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    parameters: int

    @property
    def layer(self) -> int:
        """Parameters of one layer, its norms and biases left out."""
        return 12 * self.hidden**2

    @property
    def embedding(self) -> int:
        """Parameters of one of the two embeddings."""
        return self.vocabulary * self.hidden

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in 16 bits."""
        return 2 * 2 * self.layers * self.hidden


def neox(hidden: int, layers: int, heads: int, vocabulary: int) -> Shape:
    """A GPT-NeoX of this shape: 12 h^2 + 13 h a layer, two embeddings, the last norm."""
    blocks = layers * (12 * hidden**2 + 13 * hidden)
    return Shape(hidden, layers, heads, vocabulary, blocks + 2 * vocabulary * hidden + 2 * hidden)


# Biderman et al. 2023. The vocabulary of 50,277 entries is padded to a multiple of 128, 256 or 512.
PYTHIA = {
    "70m": neox(512, 6, 8, 50304),
    "160m": neox(768, 12, 12, 50304),
    "410m": neox(1024, 24, 16, 50304),
    "1b": neox(2048, 16, 8, 50304),
    "1.4b": neox(2048, 24, 16, 50304),
    "2.8b": neox(2560, 32, 32, 50304),
    "6.9b": neox(4096, 32, 32, 50432),
    "12b": neox(5120, 36, 40, 50688),
}


def shape_of(model: ModelConfig, vocabulary: int | None) -> Shape | None:
    """The shape of a model from scratch, a Pythia by name, or a folder; None if it is not known.

    vocabulary: of the data's tokenizer, None if it is not known; decides a model from scratch.
    """
    if model.pretrained is None:
        words = vocabulary
        return None if words is None else neox(model.hidden_size, model.layers, model.heads, words)
    folder = Path(model.pretrained)
    if folder.is_dir():
        return _of_folder(folder)
    name = model.pretrained.rpartition("/")[2].lower()
    size = name.removeprefix("pythia-").removesuffix("-deduped")
    return PYTHIA.get(size) if name.startswith("pythia-") else None


def _of_folder(folder: Path) -> Shape:
    """From config.json and the headers of the weights: no tensor is read. Raises InputError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        counted = sum(_parameters(file) for file in sorted(folder.glob("*.safetensors")))
        return Shape(
            config["n_embd" if "n_embd" in config else "hidden_size"],  # n_: GPT-2's words
            config["n_layer" if "n_layer" in config else "num_hidden_layers"],
            config["n_head" if "n_head" in config else "num_attention_heads"],
            config["vocab_size"],
            counted,
        )
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise InputError(f"--model {folder}: its shape cannot be read: {error!r}") from error


def _parameters(file: Path) -> int:
    """Numbers in a safetensors file, by its header: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
