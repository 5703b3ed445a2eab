"""The canonical state of a trained model: what an artifact's content digest covers and the next phase starts from.

`weights.safetensors`, `optimizer.safetensors` and `training_state.json`. No clocks, no host names, no random state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmbert.errors import UserError
from mmbert.model.head import MaskedLanguageModel
from mmbert.release import checkpoints, names

WEIGHTS, OPTIMIZER, STATE = names.WEIGHTS, names.OPTIMIZER, names.STATE


def save_weights(path: Path, model: MaskedLanguageModel) -> None:
    checkpoints.save_weights({name: value.float().cpu() for name, value in model.weights().items()}, path)


def load_weights(path: Path, model: MaskedLanguageModel) -> None:
    """Raises UserError naming the first weight that does not fit the model."""
    weights = checkpoints.load_weights(path)
    checkpoints.check_weights(weights, model.config, path.name)
    model.load_weights(weights)


def save_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every tensor of the optimiser's state as `<parameter>.<slot>`, and the groups' step counts."""
    named = {id(p): n for n, p in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if torch.is_tensor(value):
                tensors[f"{named[id(parameter)]}.{slot}"] = value.detach().contiguous().cpu()
    steps = [int(group.get("step", 0)) for group in optimizer.param_groups]
    save_file(tensors, path, metadata={"steps": json.dumps(steps)})


def load_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore moments and step counts, not the learning rate: a phase's rate is its recipe's.

    Raises UserError, naming the entry, where the file is damaged or not the whole state of this model's optimiser.
    """
    moments, steps = checkpoints.load_moments(path)
    parameters = dict(model.named_parameters())
    checkpoints.check_moments(moments, {name: p.detach() for name, p in parameters.items()}, path.name)
    for key, value in moments.items():
        name, _, slot = key.rpartition(".")
        optimizer.state[parameters[name]][slot] = value.to(parameters[name].device)
    if len(steps) != len(optimizer.param_groups):
        raise UserError(
            f"{path.name}: step counts of {len(steps)} groups, the optimiser has {len(optimizer.param_groups)}"
        )
    for group, step in zip(optimizer.param_groups, steps, strict=True):
        group["step"] = step


def save_moments(path: Path, moments: dict[str, torch.Tensor], steps: int) -> None:
    """An optimiser's state that is not in an optimiser: `<parameter>.<slot>`, both groups after `steps` steps."""
    save_file({k: v.contiguous() for k, v in moments.items()}, path, metadata={"steps": json.dumps([steps, steps])})


def save_state(path: Path, state: dict[str, Any]) -> None:
    """`training_state.json`.

    Keys: `phase` and `variant`; `batches`, `rows` (of `max_seq_len` tokens, padding counted) and `tokens` since the
    phase's start; `finished`, false where the phase is to be gone on with; `model`, the recipe's section, and
    `rope_theta` and `max_seq_len` of the phase.
    """
    path.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", "utf-8")
