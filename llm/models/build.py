"""Policies and reward models: made from a configuration, or loaded; safetensors only."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)

from llm.config import ModelConfig
from llm.data.hub import require_hub
from llm.errors import InputError

WEIGHTS = "model.safetensors"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """The precision of every forward: "fp32" as it stands, "bf16" by autocast over fp32 weights.

    Training, references, scores and samples take the same one: bf16 log-probabilities of one text
    differ from fp32 ones by tenths of a nat, so that a reference from another precision (or from
    another batch shape) would start DPO away from ln 2. Raises ValueError for another name.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r} is neither fp32 nor bf16")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def device() -> str:
    """Where models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    """A hub model or folder: safetensors weights in fp32, dropout off, no code from the hub.

    Raises InputError for files that cannot be read, lack weights, or hold some that are not finite,
    and for a model whose output layer is not one matrix.
    """
    shape = pretrained_shape(config)
    for name, value in shape.to_dict().items():
        if "drop" in name and type(value) in (int, float):  # dropout, embd_pdrop, layerdrop, ...
            setattr(shape, name, 0.0)
    place = f"--model {config.pretrained}"
    model = _opened(
        place,
        str(config.pretrained),
        revision=config.revision,
        config=shape,
    )
    return _plain_head(place, model)


@torch.no_grad()
def _plain_head(place: str, model: Any) -> Any:
    """The model, if its logits are its last hidden states times its output matrix; InputError.

    Log-probabilities are computed so (`llm.models.forward`): a bias, a scale or a cap would be left
    out.
    """
    words = int(model.config.vocab_size)
    ids = torch.arange(min(8, words))[None]
    weight = model.get_output_embeddings().weight
    states = backbone(model.eval())(input_ids=ids).last_hidden_state
    logits = model(input_ids=ids).logits
    error = (states @ weight.T - logits).abs().max()
    if not error <= 1e-4 * (1.0 + logits.abs().max()):
        raise InputError(
            f"{place}: its logits are not its hidden states times its output matrix "
            "(a bias, a scale or a cap?): such a model is not supported"
        )
    return model


def _opened(place: str, name: str | Path, **settings: Any) -> PreTrainedModel:
    """A causal LM in fp32 whose every weight was in its files and is finite; else InputError."""
    with _readable(place):
        opened: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **settings,
        )
    model, found = opened
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise InputError(
            f"{place}: the files lack {len(missing)} weights, {missing[0]} first: "
            "of another architecture?"
        )
    return _finite(place, model)


@contextmanager
def _readable(place: str) -> Iterator[None]:
    """What files that are cut short, missing or another model's raise, as one InputError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise InputError(f"{place}: cannot be loaded: {' '.join(lines[:2])}") from error


def _finite(place: str, model: Any) -> Any:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{place}: weight {name} is not finite")
    return model


def pretrained_shape(config: ModelConfig) -> Any:
    """A pretrained model's configuration, without its weights. Raises InputError, soon."""
    name = str(config.pretrained)
    if Path(name).is_dir():
        if not list(Path(name).glob("*.safetensors")):
            raise InputError(
                f"--model {name}: holds no *.safetensors (pickled weights are refused)"
            )
    elif HUB_NAME.fullmatch(name):
        require_hub(name, "model")
    else:
        raise InputError(f"--model {name}: no such folder, and no name of a hub model")
    try:
        return AutoConfig.from_pretrained(name, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"--model {name}: cannot be loaded: {first}") from error


def save_policy(
    model: PreTrainedModel, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Weights as safetensors and the configuration, readable by `load_policy` and transformers.

    The weights stay fp32, so that a stage starts from exactly what the one before ended with.
    state: `whole_state` of a model that is split over processes.
    """
    model.save_pretrained(folder, state_dict=None if state is None else dict(state))


def load_policy(folder: Path) -> Any:
    """A policy that `save_policy` wrote, in fp32. Raises InputError for files that are no such."""
    return _opened(str(folder), folder, local_files_only=True)


def whole_state(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """All weights on the CPU, gathered where they are split over processes; every process calls.

    keep: whether this process wants them; without, it only takes part.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.detach().cpu().contiguous()
    return found


def backbone(model: nn.Module) -> nn.Module:
    """The transformer under the output head (gpt_neox for GPT-NeoX, model for Llama, ...)."""
    return getattr(model, model.base_model_prefix)  # type: ignore[arg-type]


def layer_classes(model: nn.Module) -> list[str]:
    """Class names of a policy's or reward model's layers: what FSDP splits one at a time."""
    trunk = model.trunk if isinstance(model, RewardModel) else model
    return sorted(getattr(trunk, "_no_split_modules", None) or [])


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
            # on the CPU, wherever the model is made: the same numbers, and the generator is there
            drawn = torch.empty(self.head.weight.shape, device="cpu")
            drawn.normal_(0.0, 1.0 / math.sqrt(width + 1), generator=generator)
            self.head.weight.copy_(drawn)
            self.head.bias.zero_()

    def reward(self, hidden: Tensor) -> Tensor:
        """hidden: (rows, width) -> (rows,) reward, in fp32: bf16 would tie samples that differ."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)


def save_reward_model(
    model: RewardModel, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """All weights in one safetensors file, beside the trunk's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(whole_state(model) if state is None else state)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    model.config.save_pretrained(folder)


def load_reward_model(folder: Path) -> RewardModel:
    """A reward model that `save_reward_model` wrote, in fp32. Raises InputError."""
    with _readable(str(folder)):
        shape = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = RewardModel(AutoModelForCausalLM.from_config(shape, dtype=torch.float32), seed=0)
        model.load_state_dict(load_file(folder / WEIGHTS))
    return _finite(str(folder), model)


def weights_digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes of all parameters: equal weights, equal digest."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    summary = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        header = json.dumps([name, list(tensor.shape), str(tensor.dtype)])
        summary.update(header.encode())
        summary.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return summary.hexdigest()
