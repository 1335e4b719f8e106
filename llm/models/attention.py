"""Attention of a packed row: a token sees its prompt and its own completion, up to itself.

`block_mask` is the one mask; `packed_attention` is registered with transformers under `NAME`, so
that any model whose layers go through its attention interface runs packed rows. On a GPU the mask
goes to FlexAttention, elsewhere each block of queries to scaled_dot_product_attention with the keys
that it sees. Any other mask (sampling, a model used by itself) is passed on to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llm.errors import InputError
from llm.models.packing import BLOCK, Batch

NAME = "all_roads_packed"
FLEX_WIDTH = 16  # of a head; FlexAttention takes no narrower ones


class PackedMask(BlockMask):
    """A BlockMask that also knows its tiles."""

    ndim = 4  # some models ask for it
    positions: Tensor  # of the row's tokens, as the model is told

    @cached_property
    def tiles(self) -> list[tuple[list[int], Tensor]]:
        """For each block of queries: the blocks of keys it sees, and who sees whom, (BLOCK, n)."""
        counts, ids = self.kv_num_blocks[0, 0].tolist(), self.kv_indices[0, 0].tolist()
        inside = torch.arange(BLOCK, device=self.kv_indices.device)
        found = []
        for i, (count, row) in enumerate(zip(counts, ids, strict=True)):
            seen = row[:count]
            keys = torch.cat([inside + BLOCK * j for j in seen])
            queries = (inside + BLOCK * i)[:, None]
            found.append((seen, self.mask_mod(0, 0, queries, keys)))  # type: ignore[arg-type]
        return found


def block_mask(batch: Batch) -> PackedMask:
    """Who sees whom in the packed row, for every head."""
    segment, prompt = batch.segment, batch.prompt

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segment[key] == segment[query]
        return (own | (segment[key] == prompt[query])) & (key <= query)

    mask = PackedMask.from_kv_blocks(
        batch.blocks[None, None], batch.block_ids[None, None], BLOCK_SIZE=BLOCK, mask_mod=visible
    )
    mask.positions = batch.positions
    return mask


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | PackedMask | None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: (1, T, heads, width of a head), and nothing.

    Raises InputError for a model whose attention is more than softmax over the keys that are seen.
    """
    if not isinstance(attention_mask, PackedMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    _check_plain(attention_mask, settings)
    if query.is_cuda and query.shape[-1] >= FLEX_WIDTH:
        query, key, value = _one_type(query, key, value)
        return flex_attention_forward(module, query, key, value, attention_mask, **settings)
    return _tiled(module, query, key, value, attention_mask, **settings), None


def _check_plain(mask: PackedMask, settings: Mapping[str, Any]) -> None:
    """Sinks, caps and windows shorter than the texts would be left out silently."""
    for name in ("s_aux", "softcap", "position_bias"):
        if settings.get(name) is not None:
            raise InputError(f"a model whose attention has {name} is not supported")
    window = settings.get("sliding_window")
    if window is not None and int(mask.positions.max()) >= window:
        raise InputError(
            f"a model that sees {window} tokens back is not supported: texts are longer"
        )


def _tiled(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any
) -> Tensor:
    """Each block of queries against the keys it sees, and no others."""
    parts = []
    keys, values = key.split(BLOCK, dim=2), value.split(BLOCK, dim=2)
    for queries, (seen, visible) in zip(query.split(BLOCK, dim=2), mask.tiles, strict=True):
        seen_keys = torch.cat([keys[j] for j in seen], dim=2)
        seen_values = torch.cat([values[j] for j in seen], dim=2)
        shown = visible[None, None]
        part = sdpa_attention_forward(module, queries, seen_keys, seen_values, shown, **settings)
        parts.append(part[0])
    return torch.cat(parts, dim=1)


def _one_type(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast would: rotary positions leave queries and keys in fp32, values in bf16."""
    if not torch.is_autocast_enabled("cuda"):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype("cuda")) for t in tensors)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
