"""Policies and reward models: made from a configuration, or loaded; safetensors only."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from llm.config import ModelConfig
from llm.errors import InputError

WEIGHTS = "model.safetensors"


def new_policy(config: ModelConfig, *, vocabulary: int, eos: int, pad: int, seed: int) -> Any:
    """A causal LM: pretrained by name or folder, or a GPT-NeoX with weights drawn from `seed`."""
    if config.pretrained is not None:
        return load_pretrained(config)
    shape = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.max_positions,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(shape)


def load_pretrained(config: ModelConfig) -> PreTrainedModel:
    """A hub model or folder, safetensors weights, no code from the hub. Raises InputError."""
    assert config.pretrained is not None
    try:
        return AutoModelForCausalLM.from_pretrained(
            config.pretrained,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"--model {config.pretrained}: cannot be loaded: {first}") from error


def save_policy(model: PreTrainedModel, folder: Path) -> None:
    """Weights as safetensors and the configuration, readable by `load_policy` and transformers."""
    model.save_pretrained(folder)


def load_policy(folder: Path, *, dtype: str = "float32") -> Any:
    """A policy that `save_policy` wrote."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
    )


def backbone(model: nn.Module) -> nn.Module:
    """The transformer under the output head (gpt_neox for GPT-NeoX, model for Llama, ...)."""
    return getattr(model, model.base_model_prefix)  # type: ignore[arg-type]


class RewardModel(nn.Module):
    """A trunk and one linear layer on the last hidden state at EOS: one number a completion.

    The head is drawn from N(0, 1/sqrt(h+1)) by a seed of its own (Stiennon et al. 2020).
    """

    def __init__(self, policy: PreTrainedModel, *, seed: int) -> None:
        super().__init__()
        self.trunk = backbone(policy)
        self.config = policy.config
        width = int(policy.config.hidden_size)
        self.head = nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 1.0 / math.sqrt(width + 1), generator=generator)
            self.head.bias.zero_()
        self.head.to(dtype=torch.float32)

    def reward(self, hidden: Tensor) -> Tensor:
        """hidden: (rows, width) -> (rows,) reward, in fp32."""
        return self.head(hidden.float()).squeeze(-1)


def save_reward_model(model: RewardModel, folder: Path) -> None:
    """All weights in one safetensors file, beside the trunk's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    model.config.save_pretrained(folder)


def load_reward_model(folder: Path, *, dtype: str = "float32") -> RewardModel:
    """A reward model that `save_reward_model` wrote."""
    shape = AutoModelForCausalLM.from_config(_config(folder), dtype=getattr(torch, dtype))
    model = RewardModel(shape, seed=0)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def weights_digest(model: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all parameters: equal weights, equal digest."""
    summary = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        header = json.dumps([name, list(tensor.shape), str(tensor.dtype)])
        summary.update(header.encode())
        summary.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return summary.hexdigest()
