"""Batches whose update would spoil the weights: stopped before, or skipped, as the recipe says."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from safetensors.torch import save_file
from torch import Tensor

from mmbert import storage
from mmbert.errors import UserError
from mmbert.loader.batch import Batch
from mmbert.recipe.schema import BadBatches
from mmbert.training.meter import BatchSignals, Meter

FOLDER = "bad_batches"
_NAMED_STREAMS = 5


class Guard(Callback):
    """Judges each batch by its loss and gradients, over all processes, before the optimiser's step.

    `skipped` counts the phase's skipped batches; it and what the judgement needs are part of resume checkpoints.
    """

    def __init__(
        self, policy: BadBatches, meter: Meter, streams: Sequence[str], phase: str, place: str, scratch: Path
    ) -> None:
        """`streams`: names of the mixture's streams. `place`: where a batch that stops the phase is saved (a URI)."""
        self.policy, self.meter, self.streams, self.phase, self.place = policy, meter, streams, phase, place
        self.scratch = scratch
        self.skipped = 0
        self.skipped_this_batch = False
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=policy.spike_window)
        self._norms: deque[float] = deque(maxlen=policy.spike_window)

    def state_dict(self) -> dict[str, Any]:
        recent = {"losses": list(self._losses), "norms": list(self._norms)}
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, **recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])

    def after_train_batch(self, state: State, logger: Logger) -> None:
        signals = self.meter.batch
        key, what = self._judged(signals)
        action = getattr(self.policy, key) if key else "ignore"
        self.skipped_this_batch = action == "skip"
        if action == "stop":
            self._stop(state, signals, what, key, f"training.bad_batches.{key} is 'stop'", f"{key}: skip")
        elif action == "skip":
            self.skipped += 1
            self._in_a_row += 1
            if self._in_a_row > self.policy.max_skipped:
                limit = self.policy.max_skipped
                why = f"the {limit} batches before it were skipped too (training.bad_batches.max_skipped)"
                self._stop(state, signals, what, key, why, "a higher max_skipped")
            # Without gradients the optimiser takes no step.
            for optimizer in state.optimizers:
                optimizer.zero_grad(set_to_none=True)
            if dist.get_global_rank() == 0:
                print(f"warning: batch {_number(state):,} is skipped: {what}", flush=True)
        else:
            self._in_a_row = 0
            self._losses.append(signals.loss)
            self._norms.append(signals.gradient_norm)

    def _judged(self, signals: BatchSignals) -> tuple[str, str]:
        """The policy that a batch falls under, if any, and why."""
        loss, norm = signals.loss, signals.gradient_norm
        if not signals.finite:
            return "nan", f"the loss is {loss:.4g} and the gradient norm {norm:.4g}"
        if self.policy.spike == "ignore" or len(self._losses) < self.policy.spike_window:
            return "", ""
        for name, value, recent in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
            limit = statistics.fmean(recent) + self.policy.spike_sigmas * statistics.pstdev(recent)
            if value > limit:
                before = f"the {self.policy.spike_window} batches before allow {limit:.4g}"
                return "spike", f"the {name} is {value:.4g}, and {before}"
        return "", ""

    def _stop(self, state: State, signals: BatchSignals, what: str, key: str, why: str, goes_on: str) -> None:
        """`goes_on`: the setting of bad_batches with which the phase can go on past this batch."""
        batch: Batch = state.batch["whole"]
        number, tokens = _number(state), int(state.timestamp.token.value)
        assert batch.stream_tokens is not None  # noqa: S101 -- only microbatches have none
        counts = torch.from_numpy(batch.stream_tokens)
        saved = self._save(state, batch, signals, _by_stream(counts, self.streams), what)
        everywhere = state.device.tensor_to_device(counts.clone())
        # No process gets past this before all have saved: the first one to end would end the others.
        dist.all_reduce(everywhere, reduce_operation="SUM")
        held = _by_stream(everywhere.cpu(), self.streams)
        shown = ", ".join(f"{name} ({count:,} tokens)" for name, count in list(held.items())[:_NAMED_STREAMS])
        more = f" and {len(held) - _NAMED_STREAMS} more" if len(held) > _NAMED_STREAMS else ""
        raise UserError(
            f"batch {number:,}, {tokens:,} tokens into the phase: {what}. Its update was not made, since {why}. The "
            f"batch is saved as {saved}; it draws from {shown}{more}. Started again with {goes_on} in "
            "training.bad_batches, the phase goes on from its newest resume checkpoint, if it has one yet. Other "
            f"remedies begin it anew: a lower phases.{self.phase}.learning_rate, a longer "
            f"phases.{self.phase}.schedule.warmup_tokens"
            + (", or spike_sigmas, spike_window or spike: ignore in training.bad_batches" if key == "spike" else "")
        )

    def _save(self, state: State, batch: Batch, signals: BatchSignals, held: dict[str, int], what: str) -> str:
        """Save this process's share of the batch, and what is known of it; the URIs of all shares as one pattern."""
        of_all = f"batch-{_number(state):012d}-rank-"
        name = f"{of_all}{dist.get_global_rank():04d}"
        tensors = ("input_ids", "cu_seqlens", "masked_indices", "targets", "masked_streams")
        file = self.scratch / f"{name}.safetensors"
        save_file({key: getattr(batch, key).cpu().contiguous() for key in tensors}, file)
        uri = storage.join(self.place, FOLDER, file.name)
        storage.upload(uri, file)
        facts = {
            "batch": _number(state),
            "tokens_before": int(state.timestamp.token.value),
            "reason": what,
            "learning_rate": float(state.optimizers[0].param_groups[0]["lr"]),
            "loss": _json_number(signals.loss),
            "gradient_norm": _json_number(signals.gradient_norm),
            "loss_sums": {group: _json_number(value) for group, value in signals.loss_sums.items()},
            "masked_tokens": signals.masked,
            "tokens_by_stream": held,
            "streams": list(self.streams),
        }
        text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        storage.write_bytes(storage.join(self.place, FOLDER, f"{name}.json"), text.encode())
        return uri if dist.get_world_size() == 1 else storage.join(self.place, FOLDER, f"{of_all}*.safetensors")


def _number(state: State) -> int:
    """The current batch's, counted from 1."""
    return int(state.timestamp.batch.value) + 1


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _by_stream(tokens: Tensor, names: Sequence[str]) -> dict[str, int]:
    """Tokens of each stream that has any, the most first."""
    found = {name: count for name, count in zip(names, tokens.tolist(), strict=True) if count}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
