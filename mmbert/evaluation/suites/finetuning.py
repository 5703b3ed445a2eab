"""One fine-tuning loop for all tasks that train a head: transformers' own models, AdamW, linear warm-up and decay.

The defaults are those of the evaluation code that mmBERT's scores come from (its README names izhx/nlu-evals; there
below `scripts/`): learning rate 2e-5, batches of 32, linear decay after a warm-up, gradients clipped at 1, no weight
decay. Epochs, lengths and warm-up differ by task and stand with it. `SWEEP` is ModernBERT's (arXiv 2412.13663,
appendix E.1).

The loop is our own and not transformers' Trainer: what is asked for is one run from a seed that gives the same weights
again, and no checkpoints, logs or callbacks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mmbert import progress

Head = Literal["sequence", "choice", "span", "tokens"]
Feature = Mapping[str, Any]
"""One input. `input_ids`: token ids, one after the other ([choices] of them for the head `choice`).

What is learnt, by head: `labels`, a class or a number (sequence), the right choice (choice), a class a token and -100
where none counts (tokens); `start_positions` and `end_positions` (span). Not needed to predict.
"""
Array = npt.NDArray[Any]

SWEEP = (1e-5, 3e-5, 5e-5, 8e-5)
PREDICTION_TOKENS = 16_384
_IGNORED = -100
_AUTO_CLASS = {
    "sequence": "AutoModelForSequenceClassification",
    "choice": "AutoModelForMultipleChoice",
    "span": "AutoModelForQuestionAnswering",
    "tokens": "AutoModelForTokenClassification",
}
_TARGETS = ("labels", "start_positions", "end_positions")


@dataclass(frozen=True)
class FineTuning:
    """Settings of one fine-tuning. `warmup` is the share of the steps over which the learning rate rises."""

    learning_rate: float = 2e-5
    epochs: int = 3
    batch_size: int = 32
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_length: int = 128

    @classmethod
    def of(cls, settings: Mapping[str, Any], **changes: Any) -> FineTuning:
        """From a task's settings, other keys left aside."""
        known = {field.name for field in fields(cls)}
        return cls(**{**{key: value for key, value in settings.items() if key in known}, **changes})


def load_tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)


def fine_tune(
    model: Path,
    head: Head,
    features: Sequence[Feature],
    settings: FineTuning,
    *,
    seed: int,
    device: str,
    labels: int = 2,
) -> Any:
    """The model of the folder `model` with a head, trained on `features`: a transformers model in eval mode.

    `labels`: classes of a head `sequence` or `tokens`; 1 for a number (mean squared error). A head that the folder has
    already is taken over where its shape fits. Equal arguments give equal weights on a CPU.
    """
    import torch

    with _seeded(seed, device):
        network = load_head(model, head, labels).to(device).train()
        pad = _pad_id(network)
        optimizer = torch.optim.AdamW(_groups(network, settings.weight_decay), lr=settings.learning_rate)
        steps = settings.epochs * math.ceil(len(features) / settings.batch_size)
        warmup = math.ceil(settings.warmup * steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup if warmup else 1.0, (steps - step) / max(1, steps - warmup))
        )
        order = np.random.default_rng(seed)
        with progress.shown(f"fine-tuning, seed {seed}", steps, "steps") as advance:
            for _ in range(settings.epochs):
                shuffled = order.permutation(len(features))
                for start in range(0, len(features), settings.batch_size):
                    rows = [features[int(i)] for i in shuffled[start : start + settings.batch_size]]
                    with _precision(device):
                        loss = network(**_batch(rows, head, pad, device, targets=True)).loss
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    advance(1)
    return network.eval()


def predict(network: Any, head: Head, features: Sequence[Feature], *, device: str) -> list[Array]:
    """A trained model's outputs (fp32), one an input in their order.

    Shapes: [labels] (sequence), [choices] (choice), [tokens, labels] (tokens), [tokens, 2] of start and end (span).
    Inputs of like length share a batch, so next to nothing is computed on padding.
    """
    import torch

    found: list[Array] = [np.empty(0)] * len(features)
    pad = _pad_id(network)
    counting = progress.shown("prediction", len(features), "inputs")
    with torch.inference_mode(), _precision(device), counting as advance:
        for indices in _alike(features, head):
            rows = [features[i] for i in indices]
            outputs = network(**_batch(rows, head, pad, device, targets=False))
            logits = torch.stack([outputs.start_logits, outputs.end_logits], -1) if head == "span" else outputs.logits
            for index, row, values in zip(indices, rows, logits.float().cpu().numpy(), strict=True):
                found[index] = values[: len(row["input_ids"])] if head in ("span", "tokens") else values
            advance(len(indices))
    return found


def load_head(model: Path, head: Head, labels: int) -> Any:
    """A folder's model with a head, in fp32; what the folder lacks has random weights from torch's own generator."""
    import transformers

    kinds: dict[str, Any] = {}
    if head in ("sequence", "tokens"):
        kinds = {"num_labels": labels}
    if head == "sequence":
        kinds["problem_type"] = "regression" if labels == 1 else "single_label_classification"
    with _quiet():
        return getattr(transformers, _AUTO_CLASS[head]).from_pretrained(
            str(model), dtype="float32", ignore_mismatched_sizes=True, trust_remote_code=False, **kinds
        )


def save_head(network: Any, tokenizer: Any, folder: Path) -> None:
    """A trained model as a folder that another fine-tuning can start from."""
    with _quiet():
        network.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def encode(tokenizer: Any, first: Sequence[str], second: Sequence[str] | None, max_length: int) -> list[Array]:
    """Token ids of texts or pairs, the longer of a pair cut first where both exceed `max_length`; int32 to be small."""
    columns = [list(first)] if second is None else [list(first), list(second)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length, return_attention_mask=False)
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def _batch(rows: Sequence[Feature], head: Head, pad: int, device: str, *, targets: bool) -> dict[str, Any]:
    """Padded to the longest of these inputs: [inputs, tokens], or [inputs, choices, tokens]."""
    import torch

    texts = [ids for row in rows for ids in (row["input_ids"] if head == "choice" else [row["input_ids"]])]
    shape = (len(texts), max(len(ids) for ids in texts))
    input_ids = np.full(shape, pad, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for index, ids in enumerate(texts):
        input_ids[index, : len(ids)], attention_mask[index, : len(ids)] = ids, 1
    arrays: dict[str, Array] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if head == "choice":
        arrays = {name: array.reshape(len(rows), -1, shape[1]) for name, array in arrays.items()}
    for name in _TARGETS if targets else ():
        if name in rows[0]:
            arrays[name] = _targets([row[name] for row in rows], shape[1])
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _targets(values: Sequence[Any], length: int) -> Array:
    if np.ndim(values[0]) == 0:
        number = isinstance(values[0], float)
        return np.asarray(values, dtype=np.float32 if number else np.int64)
    padded = np.full((len(values), length), _IGNORED, dtype=np.int64)
    for index, row in enumerate(values):
        padded[index, : len(row)] = row
    return padded


def _alike(features: Sequence[Feature], head: Head) -> Iterator[list[int]]:
    """Indices in batches of at most PREDICTION_TOKENS padded tokens, sorted by length."""

    def size(index: int) -> tuple[int, int]:
        ids = features[index]["input_ids"]
        return (max(len(i) for i in ids), len(ids)) if head == "choice" else (len(ids), 1)

    batch: list[int] = []
    texts = 0
    for index in sorted(range(len(features)), key=lambda i: (size(i), i)):
        longest, own = size(index)
        # Inputs with other numbers of choices cannot share a batch.
        if batch and ((texts + own) * longest > PREDICTION_TOKENS or size(batch[0])[1] != own):
            yield batch
            batch, texts = [], 0
        batch.append(index)
        texts += own
    if batch:
        yield batch


def _groups(network: Any, weight_decay: float) -> list[dict[str, Any]]:
    """No decay on biases and norms."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _pad_id(network: Any) -> int:
    return int(network.config.pad_token_id or 0)


@contextlib.contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """torch's random numbers from `seed` on; afterwards they go on as if nothing had been drawn."""
    import torch

    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield


def _precision(device: str) -> Any:
    import torch

    if not device.startswith("cuda"):
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, and its warning that the head is new."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
