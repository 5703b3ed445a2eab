"""The original's packing, masking, warm-up, learning rates and loss weights, against recordings of its own code."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmbert.original.loss import microbatch_weights
from mmbert.original.masking import IGNORED, mask, mask_generator
from mmbert.original.packing import PackedBatch, PackerSettings, pack
from mmbert.original.schedules import BatchWarmup, learning_rate_tokens
from mmbert.recipe.schema import Schedule
from mmbert.training.schedules import lr_multiplier

RECORDED = Path(__file__).parents[1] / "fixtures" / "original"
GOLDEN = json.loads((RECORDED / "golden.json").read_text("utf-8"))
TRACE = json.loads((RECORDED / "trace" / "trace.json").read_text("utf-8"))
# The recording's settings; the pad id is 0 and the mask id 4.
SETTINGS: dict[str, Any] = {
    "batch_size": 12, "microbatch_size": 4, "max_seq_len": 64, "buffer_size": 60, "source_batch_size": 12,
    "pad_token_id": 0,
}  # fmt: skip
SEED, PROBABILITY, MASK_ID, PAD_ID = 21, 0.3, 4, 0


@pytest.fixture(scope="module")
def packer() -> dict[str, np.ndarray]:
    return load_file(RECORDED / "packer.safetensors")


@pytest.fixture(scope="module")
def documents(packer: dict[str, np.ndarray]) -> list[np.ndarray]:
    return np.split(packer["tokens"], np.cumsum(packer["lengths"])[:-1])


def batches_in(packer: dict[str, np.ndarray], kind: str) -> int:
    return len({name.split(".")[1] for name in packer if name.startswith(f"{kind}.")})


def check_batches(packer: dict[str, np.ndarray], kind: str, batches: list[PackedBatch]) -> None:
    """One pass: bounds, masks, labels and attention masks of every batch."""
    assert len(batches) == batches_in(packer, kind)
    generator = mask_generator(SEED, epoch=0)
    for number, batch in enumerate(batches):
        masked, labels = mask(batch.tokens, PROBABILITY, MASK_ID, PAD_ID, generator)
        for name, values in (
            ("input_ids", masked),
            ("labels", labels),
            ("attention_mask", batch.tokens != PAD_ID),
            *((f"cu_seqlens.{row}", bounds) for row, bounds in enumerate(batch.cu_seqlens)),
        ):
            assert np.array_equal(values, packer[f"{kind}.{number}.{name}"]), f"{kind} {number} {name}"


def test_packed_batches(packer: dict[str, np.ndarray], documents: list[np.ndarray]) -> None:
    check_batches(packer, "plain", list(pack(documents, PackerSettings(**SETTINGS))))


def test_packed_batches_with_warmup(packer: dict[str, np.ndarray], documents: list[np.ndarray]) -> None:
    """The recording's warm-up: four batches of one row, four of two, then three rows."""
    settings = PackerSettings(**SETTINGS, rows_at=BatchWarmup(1, 3, 3_000))
    batches = list(pack(documents, settings))
    assert [len(b.tokens) for b in batches] == [1] * 4 + [2] * 4 + [3] * 9
    check_batches(packer, "warm", batches)


def test_packed_batches_without_masking(packer: dict[str, np.ndarray], documents: list[np.ndarray]) -> None:
    batches = list(pack(documents, PackerSettings(**SETTINGS)))
    assert len(batches) == batches_in(packer, "nomask")
    for number, batch in enumerate(batches):
        assert np.array_equal(batch.tokens, packer[f"nomask.{number}.input_ids"])


def test_the_pass_ends_with_a_batch_that_has_an_empty_row(documents: list[np.ndarray]) -> None:
    """A fault of the original's: what is left of the documents is not seen in this pass."""
    packed = list(pack(documents, PackerSettings(**SETTINGS)))
    tokens = sum(int((b.tokens != PAD_ID).sum()) for b in packed)
    assert 0 < sum(len(d) for d in documents) - tokens < 12 * 64
    assert not list(pack(documents[:2], PackerSettings(**SETTINGS)))


def test_a_batch_must_be_whole_microbatches() -> None:
    with pytest.raises(ValueError, match="not a multiple of microbatch_size"):
        PackerSettings(**{**SETTINGS, "batch_size": 10})


def test_masking() -> None:
    recorded = GOLDEN["mlm_masking"]
    generator = np.random.default_rng(recorded["numpy_seed"])
    masked, labels = mask(
        np.array(recorded["input"]), recorded["mask_prob"], recorded["mask"], recorded["pad"], generator
    )
    assert masked.tolist() == recorded["masked"]
    assert labels.tolist() == recorded["labels"]


def test_masks_are_redrawn_every_pass(documents: list[np.ndarray]) -> None:
    batch = next(pack(documents, PackerSettings(**SETTINGS)))
    first, again, second = (
        mask(batch.tokens, PROBABILITY, MASK_ID, PAD_ID, mask_generator(SEED, epoch))[1] for epoch in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert (first[batch.tokens == PAD_ID] == IGNORED).all()


@pytest.mark.parametrize("entry", [e for e in GOLDEN["batch_size_warmup"] if "at" in e])
def test_batch_warmup(entry: dict[str, Any]) -> None:
    warmup = BatchWarmup(entry["min"], entry["max"], entry["warmup_tokens"], entry["world_size"])
    assert warmup.thresholds() == entry["thresholds"]
    assert {tokens: warmup(int(tokens)) for tokens in entry["at"]} == entry["at"]


def test_a_batch_warmup_must_grow() -> None:
    failed = next(e for e in GOLDEN["batch_size_warmup"] if "error" in e)  # the original divides by zero
    with pytest.raises(ValueError, match="not from 3 to 3"):
        BatchWarmup(*failed["args"])


def test_learning_rates_of_the_trace() -> None:
    before = [0, *(step["tokens_after"] for step in TRACE)]
    tokens = learning_rate_tokens(np.diff(before).tolist())
    schedule = Schedule(warmup_tokens=5_120, final_fraction=0.02)
    rates = [8e-4 * lr_multiplier(t, schedule, 8_704) for t in tokens]
    assert rates == pytest.approx([step["lr_used"] for step in TRACE], rel=1e-12)


def test_losses_of_the_trace_are_weighted_by_segments() -> None:
    recorded = load_file(RECORDED / "trace" / "batches.safetensors")
    for number, step in enumerate(TRACE):
        parts = step["microbatches"]
        bounds = [recorded[f"b{number}.cu_seqlens.{row}"] for row in range(len(parts))]
        batch = PackedBatch(recorded[f"b{number}.input_ids"], bounds)
        assert batch.segments == [part["n_seq"] for part in parts]
        weights = microbatch_weights(batch.segments)
        total = sum(weight * part["loss"] for weight, part in zip(weights, parts, strict=True))
        assert total == pytest.approx(step["total_loss"], abs=1e-6)


def test_rows_of_the_trace_follow_the_warmup() -> None:
    """The original counts the real tokens that it has packed, not those of its schedule, which count padding."""
    recorded = load_file(RECORDED / "trace" / "batches.safetensors")
    real = [int(recorded[f"b{number}.attention_mask"].sum()) for number in range(len(TRACE))]
    before = np.cumsum([0, *real[:-1]]).tolist()
    rows_at = BatchWarmup(1, 4, 6_144)
    assert [rows_at(tokens) for tokens in before] == [len(step["microbatches"]) for step in TRACE]
    counted_with_padding = [0, *(step["tokens_after"] for step in TRACE[:-1])]
    assert [rows_at(t) for t in counted_with_padding] != [len(step["microbatches"]) for step in TRACE]


def test_one_pass_is_lazy(documents: list[np.ndarray]) -> None:
    """A batch reads no more than the buffer from its source: the data sets are larger than memory."""
    taken = 0

    def source() -> Any:
        nonlocal taken
        for document in documents:
            taken += 1
            yield document

    list(islice(pack(source(), PackerSettings(**SETTINGS)), 1))
    assert taken <= 60 + 36
