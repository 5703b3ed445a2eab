"""The canonical state of a trained model: what an artifact's content digest covers and the next phase starts from.

`weights.safetensors`, `optimizer.safetensors` and `training_state.json`. No clocks, no host names, no random state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mmbert.errors import UserError
from mmbert.model.head import MaskedLanguageModel
from mmbert.release import checkpoints

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"


def save_weights(path: Path, model: MaskedLanguageModel) -> None:
    checkpoints.save_weights({name: value.float().cpu() for name, value in model.weights().items()}, path)


def load_weights(path: Path, model: MaskedLanguageModel) -> None:
    """Raises UserError naming the first weight that does not fit the model."""
    weights = checkpoints.load_weights(path)
    checkpoints.check_weights(weights, model.config, path.name)
    model.load_weights(weights)


def save_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every tensor of the optimiser's state as `<parameter>.<slot>`, and the groups' step counts."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if torch.is_tensor(value):
                tensors[f"{names[id(parameter)]}.{slot}"] = value.detach().contiguous().cpu()
    steps = [int(group.get("step", 0)) for group in optimizer.param_groups]
    save_file(tensors, path, metadata={"steps": json.dumps(steps)})


def load_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore moments and step counts, not the learning rate: a phase's rate is its recipe's."""
    names = dict(model.named_parameters())
    with safe_open(path, "pt") as stored:
        steps = json.loads(stored.metadata()["steps"])
        for key in stored.keys():  # noqa: SIM118 - safe_open is no mapping
            name, _, slot = key.rpartition(".")
            if name not in names:
                raise UserError(f"{path.name}: holds state for '{name}', which the recipe's model does not have")
            parameter = names[name]
            optimizer.state[parameter][slot] = stored.get_tensor(key).to(parameter.device)
    for group, step in zip(optimizer.param_groups, steps, strict=True):
        group["step"] = step


def save_state(path: Path, state: dict[str, Any]) -> None:
    path.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", "utf-8")
