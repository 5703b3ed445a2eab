"""Constant shapes, and a compiled model that is compiled once."""

from __future__ import annotations

import copy
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from composer import Trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mmbert.errors import UserError
from mmbert.loader.batch import Batch, BatchShape, Part, fixed_shape, make_batch, microbatch_shape, split_microbatches
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.model.loss import IGNORED
from mmbert.recipe.schema import BadBatches, Training
from mmbert.tracking import ComponentRun
from mmbert.training.composer_model import ComposerEncoder, TensorBatch, data_spec, tensors_of
from mmbert.training.execution import choose_execution
from mmbert.training.guard import Guard
from mmbert.training.history import History, HistoryPoint
from mmbert.training.meter import Meter
from mmbert.training.optimizer import StableAdamW, parameter_groups
from mmbert.training.trainer import phase_device

MAX_SEQ_LEN, WORDS, PAD = 96, 120, 3
CONFIG = EncoderConfig(WORDS, 32, 48, 4, 2, sliding_window=16, attention_output_dropout=0.0, pad_token_id=PAD)


def batch_of(seed: int, rows: int, mask_probability: float = 0.3, cuts: int | None = None) -> Batch:
    """Rows of random segments, each at most MAX_SEQ_LEN tokens long: `cuts` of them, by default one to four."""
    rng = np.random.default_rng(seed)
    lengths: list[list[int]] = []
    for _ in range(rows):
        ends = np.sort(rng.choice(np.arange(1, MAX_SEQ_LEN), cuts or rng.integers(1, 5), replace=False))
        lengths.append(np.diff(np.concatenate([[0], ends])).tolist())
    row_tokens = np.array([sum(row) for row in lengths])
    masked = [np.flatnonzero(rng.random(n) < mask_probability) for n in row_tokens]
    counts = np.array([len(m) for m in masked])
    part = Part(
        tokens=rng.integers(5, WORDS, row_tokens.sum()).astype(np.uint32),
        segment_lengths=np.concatenate(lengths),
        masked=np.concatenate(masked),
        targets=rng.integers(5, WORDS, counts.sum()).astype(np.uint32),
        masked_streams=np.zeros(counts.sum(), np.int32),
        row_tokens=row_tokens,
        row_segments=np.array([len(row) for row in lengths]),
        row_masked=counts,
        stream_tokens=np.array([row_tokens.sum()]),
        states={},
    )
    return make_batch(part, MAX_SEQ_LEN, "")


def loss_and_gradients(model: MaskedLanguageModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = ComposerEncoder(model).loss(
        model(batch.input_ids, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices, batch.targets),
        tensors_of(batch),
    )
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 4),
    shape=st.builds(
        BatchShape,
        tokens=st.sampled_from([100, 4 * MAX_SEQ_LEN]),
        masked=st.sampled_from([8, 128]),
        segments=st.sampled_from([2, 32]),
        max_seq_len=st.just(MAX_SEQ_LEN),
        pad_token_id=st.just(PAD),
    ),
)
def test_a_fixed_shape_holds_the_same_batch(seed: int, rows: int, shape: BatchShape) -> None:
    batch = batch_of(seed, rows)
    with warnings.catch_warnings(record=True):
        filled = fixed_shape(batch, shape)
    for needed, capacity, got in (
        (batch.tokens, shape.tokens, len(filled.input_ids)),
        (batch.masked, shape.masked, len(filled.targets)),
        (None, shape.segments, len(filled.cu_seqlens) - 1),
    ):
        assert got >= capacity
        assert got == capacity or needed is None or capacity < needed <= got < 2 * needed
    assert torch.equal(filled.input_ids[: batch.tokens], batch.input_ids)
    assert (filled.input_ids[batch.tokens :] == PAD).all()
    lengths = filled.cu_seqlens.diff()
    assert torch.equal(filled.cu_seqlens[: len(batch.cu_seqlens)], batch.cu_seqlens)
    assert lengths.min() >= 0
    assert lengths.max() <= filled.max_seqlen == MAX_SEQ_LEN
    assert filled.cu_seqlens[-1] == len(filled.input_ids) == filled.tokens + filled.padded_tokens
    assert filled.targets[batch.masked :].tolist() == [IGNORED] * (len(filled.targets) - batch.masked)
    assert len(filled.masked_indices) == len(filled.masked_streams) == len(filled.targets)
    assert (filled.tokens, filled.masked, filled.rows) == (batch.tokens, batch.masked, batch.rows)

    model = new_model(CONFIG, 1).train()
    torch.testing.assert_close(
        loss_and_gradients(model, filled), loss_and_gradients(model, batch), atol=1e-5, rtol=1e-4
    )


def test_what_exceeds_a_shape_is_kept_and_warned_of_once() -> None:
    shape = BatchShape(64, 8, 2, MAX_SEQ_LEN, PAD)
    batches = [batch_of(seed, 4) for seed in range(6)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        filled = [fixed_shape(batch, shape) for batch in batches]
    assert [f.masked for f in filled] == [b.masked for b in batches]
    assert len({str(w.message) for w in caught}) == len(caught)
    assert any("more than 2 segments" in str(w.message) for w in caught)


def test_the_shape_of_the_published_first_phase() -> None:
    shape = microbatch_shape(48, 1024, 0.3, 0)
    assert (shape.tokens, shape.masked, shape.segments) == (49_152, 15_360, 240)


@pytest.fixture
def compiled(flex_learns_on_cpu: None) -> Iterator[MaskedLanguageModel]:
    torch._dynamo.reset()
    model = new_model(CONFIG, 1, "flex").train()
    model.compile_for_training(backend="eager")
    yield model
    torch._dynamo.reset()


def test_compiled_once_for_microbatches_of_any_segments(compiled: MaskedLanguageModel) -> None:
    plain = new_model(CONFIG, 1, "sdpa").train()
    shape = microbatch_shape(4, MAX_SEQ_LEN, 0.3, PAD)
    loss_and_gradients(compiled, fixed_shape(batch_of(0, 4), shape))
    # An error wherever dynamo would compile anew.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(1, 6):
            batch = batch_of(seed, 1 + seed % 4)
            loss, gradients = loss_and_gradients(compiled, fixed_shape(batch, shape))
            expected_loss, expected = loss_and_gradients(plain, batch)
            torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-4)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(torch._dynamo.exc.RecompileError), torch._dynamo.config.patch(error_on_recompile=True):
        loss_and_gradients(compiled, batch_of(9, 4))


def test_shapes_beyond_torchs_limit_are_compiled_too() -> None:
    """It is 8, made 1 here; past it a whole graph is an error."""
    torch._dynamo.reset()
    model = new_model(dataclasses.replace(CONFIG, num_hidden_layers=1), 1, "reference")
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        model.compile_for_training(backend="eager")
        for tokens in (20, 30):
            borders = torch.tensor([0, tokens], dtype=torch.int32)
            hidden = model.masked_hidden(torch.full((tokens,), 7), borders, MAX_SEQ_LEN, torch.arange(9))
            assert hidden.shape == (9, CONFIG.hidden_size)


def test_compiled_layers_read_sines_and_do_not_compute_them() -> None:
    """Inductor would put them into each layer's kernel, for every number of every head."""
    config = dataclasses.replace(CONFIG, global_rope_theta=160_000.0)
    called: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    torch._dynamo.reset()
    model = new_model(config, 1, "reference")
    batch = batch_of(0, 2)
    arguments = batch.input_ids, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices
    compiled = torch.compile(model._masked_hidden, backend=keep, fullgraph=True)(*arguments)
    assert sum("half_rotary" in name for name in called) == 2
    assert not {"cos", "sin", "pow"} & set(called)
    torch.testing.assert_close(compiled, new_model(config, 1).masked_hidden(*arguments), atol=1e-5, rtol=1e-5)


def test_compiled_once_under_autocast(compiled: MaskedLanguageModel) -> None:
    shape = microbatch_shape(4, MAX_SEQ_LEN, 0.3, PAD)
    plain = new_model(CONFIG, 1, "reference").train()
    with torch.autocast("cpu", torch.bfloat16):
        loss_and_gradients(compiled, fixed_shape(batch_of(0, 4), shape))
        with torch._dynamo.config.patch(error_on_recompile=True):
            loss, _ = loss_and_gradients(compiled, fixed_shape(batch_of(1, 4), shape))
        expected, _ = loss_and_gradients(plain, batch_of(1, 4))
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-2)


def test_composers_split_fills_microbatches_up_and_counts_real_tokens() -> None:
    batch = batch_of(1, 5)
    shape = microbatch_shape(2, MAX_SEQ_LEN, 0.3, PAD)
    spec = data_spec([], shape)
    parts = spec.split_batch(tensors_of(batch), 2)
    assert [len(p["input_ids"]) for p in parts] == [2 * MAX_SEQ_LEN] * 3
    assert len({tuple(v.shape for v in p.values() if isinstance(v, Tensor)) for p in parts}) == 1
    counts = [spec.get_num_tokens_in_batch(p, token_type="loss_generating") for p in parts]
    assert counts == [p.masked for p in split_microbatches(batch, 2)]
    assert sum(spec.get_num_tokens_in_batch(p, token_type="total") for p in parts) == batch.tokens
    variable = data_spec([]).split_batch(tensors_of(batch), 2)
    assert [len(p["input_ids"]) for p in variable] == [p.tokens for p in split_microbatches(batch, 2)]


@pytest.mark.filterwarnings("ignore:a microbatch has more")
def test_short_documents_grow_the_shape_a_few_times_and_it_never_shrinks() -> None:
    shape = microbatch_shape(2, MAX_SEQ_LEN, 0.3, PAD)
    assert shape.segments == 9
    spec = data_spec([], shape)
    rooms = []
    for seed, cuts in enumerate((3, 10, 3, 30, 3, 60, 3, 60, 30, 3)):
        for part in spec.split_batch(tensors_of(batch_of(seed, 4, cuts=cuts)), 2):
            rooms.append(len(part["cu_seqlens"]) - 1)
            assert (len(part["input_ids"]), len(part["targets"])) == (shape.tokens, shape.masked)
    assert rooms == sorted(rooms)
    assert set(rooms) == {9, 18, 36, 72, 144} & set(rooms)
    assert rooms[-1] >= 72


def test_composers_copies_of_a_microbatch_share_its_tensors() -> None:
    (part, *_) = data_spec([]).split_batch(tensors_of(batch_of(1, 4)), 2)
    moved = data_spec([]).microbatch_transforms(dict(part))
    assert isinstance(moved, TensorBatch)
    assert all(value is part[name] for name, value in copy.deepcopy(moved).items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_cpu_computes_in_fp32_uncompiled_and_says_so() -> None:
    chosen = choose_execution(Training(lanes=1, precision="bf16"))
    assert str(chosen) == "training on cpu in fp32, attention sdpa, not compiled"
    assert not chosen.fixed_shapes
    with pytest.raises(UserError, match=r"training\.compile: true: attention here is sdpa"):
        choose_execution(Training(lanes=1, compile=True))
    with pytest.raises(UserError, match=r"training\.attention: varlen"):
        choose_execution(Training(lanes=1, attention="varlen"))


@pytest.fixture
def bf16_parameters() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("bf16_parameters")
def test_a_step_with_a_gpu_back_end_reads_nothing_from_the_device() -> None:
    """On tensors that have shapes only, reading a value is an error; so is a repeat or a gather of unknown length."""
    shape = microbatch_shape(4, MAX_SEQ_LEN, 0.3, PAD)
    with FakeTensorMode():
        model = MaskedLanguageModel(CONFIG, "varlen").train()
        hidden = model.masked_hidden(
            torch.empty(shape.tokens, dtype=torch.long),
            torch.empty(shape.segments + 1, dtype=torch.int32),
            MAX_SEQ_LEN,
            torch.empty(shape.masked, dtype=torch.long),
        )
        hidden.sum().backward()
        assert model.bert.encoder.layers[0].attn.Wqkv.weight.grad is not None
        with pytest.raises(DataDependentOutputException):
            hidden.sum().item()


def trained(attention: str, shape: BatchShape | None, scratch: Path) -> tuple[dict[str, Tensor], list[HistoryPoint]]:
    """Weights after Composer's training on three batches of 5 rows in microbatches of 2, and a point a batch."""
    model = new_model(CONFIG, 1, attention)
    meter = Meter(model, ["high"])
    guard = Guard(BadBatches(), meter, ["web/deu_Latn"], "pretrain", str(scratch), scratch)
    history = History(ComponentRun(), 1, 0.3, [], guard, CONFIG)
    if shape is not None:
        model.compile_for_training(backend="eager")
    trainer = Trainer(
        model=ComposerEncoder(model),
        optimizers=StableAdamW(parameter_groups(model.named_parameters(), 1e-5), lr=1e-3),
        train_dataloader=data_spec([tensors_of(batch_of(seed, 5)) for seed in range(3)], shape),
        max_duration="1ep",
        device_train_microbatch_size=2,
        accumulate_train_batch_on_tokens=True,
        device="cpu",
        callbacks=[meter, guard, history],
        progress_bar=False,
        loggers=[],
    )
    trainer.fit()
    assert trainer.state.timestamp.batch == 3
    assert trainer.state.timestamp.token == sum(batch_of(seed, 5).tokens for seed in range(3))
    trainer.close()
    return model.weights(), history.points


@pytest.mark.usefixtures("flex_learns_on_cpu")
def test_training_with_constant_shapes_gives_the_same_weights_and_counts_their_padding(tmp_path: Path) -> None:
    torch._dynamo.reset()
    constant, filled = trained("flex", microbatch_shape(2, MAX_SEQ_LEN, 0.3, PAD), tmp_path)
    free, points = trained("sdpa", None, tmp_path)
    torch.testing.assert_close(constant, free, atol=1e-5, rtol=1e-4)
    # The third microbatch of a batch has one row and is computed as one of two.
    tokens = np.array([batch_of(seed, 5).tokens for seed in range(3)])
    assert [p.padding_share for p in filled] == pytest.approx((1 - tokens / (6 * MAX_SEQ_LEN)).tolist())
    assert [p.padding_share for p in points] == pytest.approx((1 - tokens / (5 * MAX_SEQ_LEN)).tolist())


def test_a_gpu_is_used_as_the_recipe_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    for asked, expected in (
        ({}, "training on gpu in bf16, attention varlen, compiled"),
        ({"compile": False}, "training on gpu in bf16, attention varlen, not compiled"),
        ({"attention": "sdpa"}, "training on gpu in bf16, attention sdpa, not compiled"),
        ({"device": "cpu"}, "training on cpu in fp32, attention sdpa, not compiled"),
    ):
        assert str(choose_execution(Training(lanes=1, **asked))) == expected
    with pytest.raises(UserError, match=r"training\.compile: true"):
        choose_execution(Training(lanes=1, attention="sdpa", compile=True))


@pytest.fixture
def tf32() -> Iterator[None]:
    # The first cannot be monkeypatched.
    kept = [(part, part.allow_tf32) for part in (torch.backends.cuda.matmul, torch.backends.cudnn)]
    for part, _ in kept:
        part.allow_tf32 = True
    yield
    for part, value in kept:
        part.allow_tf32 = value


@pytest.mark.usefixtures("tf32")
def test_fp32_is_not_tf32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    phase_device("gpu")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert phase_device("cpu") == "cpu"
