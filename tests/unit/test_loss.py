"""The loss without logits against torch's plain cross-entropy: values, gradients, rows that count nothing, memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmbert.model.config import EncoderConfig
from mmbert.model.initialization import new_model
from mmbert.model.loss import IGNORED, chunked, linear_cross_entropy

ON_CPU = ["auto", "blocked", "chunked", "plain"]


def inputs(rows: int, words: int, width: int = 16, sharpness: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + words)
    hidden, weight = (torch.randn(n, width, generator=generator) * sharpness for n in (rows, words))
    bias = torch.randn(words, generator=generator)
    # Few different words, so that some are the target of several rows.
    targets = torch.randint(0, min(words, 7), (rows,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


def assert_is_plain(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, implementation: str, tolerance: float = 1e-5
) -> None:
    plain = F.cross_entropy(hidden @ weight.T + bias, targets, ignore_index=IGNORED, reduction="none")
    ours = linear_cross_entropy(hidden, weight, bias, targets, implementation)  # type: ignore[arg-type]
    torch.testing.assert_close(ours.rows, plain.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.total, plain.sum(), rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        without = linear_cross_entropy(hidden, weight, bias, targets, implementation)  # type: ignore[arg-type]
    torch.testing.assert_close(without.rows, ours.rows, rtol=tolerance, atol=tolerance)
    leaves = (hidden, weight, bias)
    expected = torch.autograd.grad(plain.sum() / 3, leaves)
    for found, wanted in zip(torch.autograd.grad(ours.total / 3, leaves), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", ON_CPU)
@pytest.mark.parametrize(("rows", "words"), [(0, 5), (1, 2), (3, 1), (300, 50), (70, 5000), (257, 2049), (600, 4100)])
def test_losses_and_gradients_are_plain_cross_entropys(implementation: str, rows: int, words: int) -> None:
    assert_is_plain(*inputs(rows, words), implementation)


@pytest.mark.parametrize("implementation", ON_CPU)
def test_rows_that_count_nothing_change_nothing(implementation: str) -> None:
    hidden, weight, bias, targets = inputs(90, 70)
    targets[::3] = IGNORED
    assert_is_plain(hidden, weight, bias, targets, implementation)
    alone = linear_cross_entropy(hidden, weight, bias, torch.full_like(targets, IGNORED), implementation)  # type: ignore[arg-type]
    assert alone.total == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(alone.total, (hidden, weight, bias)))


@pytest.mark.parametrize("implementation", ON_CPU)
def test_far_apart_logits_neither_overflow_nor_lose_the_loss(implementation: str) -> None:
    """Sure predictions, right and wrong: logits hundreds apart, the highest of them in the last block."""
    hidden, weight, bias, targets = inputs(40, 5000, sharpness=6.0)
    with torch.no_grad():
        weight[-1] *= 3
    targets[:20] = (hidden[:20] @ weight.T + bias).argmax(1)
    assert_is_plain(hidden, weight, bias, targets, implementation, tolerance=1e-4)
    ours = linear_cross_entropy(hidden, weight, bias, targets, implementation).rows  # type: ignore[arg-type]
    assert (ours >= 0).all()
    assert ours[:20].min() == 0


@pytest.mark.parametrize("implementation", ["auto", "chunked", "plain"])
def test_autocast_is_as_close_as_plain_bf16(implementation: str) -> None:
    hidden, weight, bias, targets = inputs(64, 300)
    exact = F.cross_entropy(hidden @ weight.T + bias, targets, reduction="none")
    wanted = torch.autograd.grad(exact.sum(), (hidden, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, bias, targets, implementation)  # type: ignore[arg-type]
    assert ours.total.dtype == ours.rows.dtype == torch.float32
    torch.testing.assert_close(ours.rows, exact.detach(), rtol=0.02, atol=0.1)
    for found, expected in zip(torch.autograd.grad(ours.total, (hidden, weight, bias)), wanted, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_same_bits_every_time() -> None:
    hidden, weight, bias, targets = inputs(600, 4100)
    first, second = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, bias, targets).total, (hidden, weight, bias))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, bias, targets = inputs(5, 9)
    total = linear_cross_entropy(hidden, weight, bias, targets).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        total.backward()


def test_memory_does_not_grow_with_the_rows() -> None:
    """No tensor of the step is larger than a chunk of 256 rows' logits, with eight times as many rows."""
    rows, words = 2048, 3000
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.numel() if isinstance(result, Tensor) else 0)
            return result

    hidden, weight, bias, targets = inputs(rows, words)
    with Watch():
        linear_cross_entropy(hidden, weight, bias, targets).total.backward()
    assert largest <= rows * words / 8


def test_the_tied_embeddings_gradient_is_dense_and_adds_up() -> None:
    """Decoder and lookup give one gradient; two microbatches give the sum of theirs; nothing is counted twice."""
    config = EncoderConfig(50, 16, 24, 4, 2, attention_output_dropout=0.0)
    model = new_model(config, 3).train()
    embedding = model.decoder.weight
    ids, cu_seqlens = torch.tensor([9, 9, 9, 12, 31, 12, 9, 40]), torch.tensor([0, 5, 8], dtype=torch.int32)
    masked = torch.tensor([0, 2, 3, 6])

    def gradient(implementation: str, which: slice) -> Tensor:
        hidden = model.head(model.bert(ids, cu_seqlens, 5, masked[which]))
        targets = ids[masked[which]]
        total = linear_cross_entropy(hidden, model.decoder.weight, model.decoder.bias, targets, implementation).total  # type: ignore[arg-type]
        return torch.autograd.grad(total, embedding)[0].to_dense()

    parts = [slice(0, 2), slice(2, 4)]
    for part in parts:
        model(ids, cu_seqlens, 5, masked[part], ids[masked[part]]).total.backward()
    assert embedding.grad is not None
    assert embedding.grad.layout == torch.strided
    expected = torch.stack([gradient("plain", part) for part in parts]).sum(0)
    torch.testing.assert_close(embedding.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_weights_gradient_is_made_once_on_a_gpu() -> None:
    """Three chunks of rows on a device of shapes only: no further matrix of the weight's size is made."""
    rows, words, width = 9000, 300, 16
    made: dict[int, Tensor] = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.shape == (words, width):
                made[result.untyped_storage()._cdata] = result
            return result

    with FakeTensorMode(), torch.device("cuda"):
        hidden, weight = (torch.empty(n, width, dtype=torch.bfloat16) for n in (rows, words))
        with Watch():
            _, gradients = chunked.linear_cross_entropy(
                hidden, weight, torch.empty(words), torch.empty(rows, dtype=torch.long), True
            )
    assert gradients is not None
    assert list(made) == [gradients[1].untyped_storage()._cdata]


KERNEL_AGAINST_PLAIN = """
import torch
from mmbert.model.loss import IGNORED, chunked
from mmbert.model.loss.fused import softmax_gradient_
for dtype, words in ((torch.float32, 5000), (torch.float32, 4096), (torch.float32, 7), (torch.bfloat16, 5000)):
    generator = torch.Generator().manual_seed(words)
    logits = (torch.randn(5, words, generator=generator) * 20).to(dtype)
    bias = torch.randn(words, generator=generator)
    targets = torch.tensor([0, words - 1, IGNORED, 3, 3])
    for gradients in (False, True):
        ours, plain = logits.clone(), logits.clone()
        losses = softmax_gradient_(ours, bias, targets, gradients)
        expected = chunked.softmax_gradient_(plain, bias, targets, gradients)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-4)
        if gradients:
            torch.testing.assert_close(ours, plain)
            assert not ours[2].any()
        else:
            assert torch.equal(ours, logits)
    for wrong in (words, -1, words + 10**9):
        losses = softmax_gradient_(logits.clone(), bias, torch.tensor([0, wrong, IGNORED, 3, 3]), True)
        assert losses.isnan().tolist() == [False, True, False, False, False]
print("equal")
"""


def test_the_gpu_kernel_computes_what_torch_does() -> None:
    """In Triton's interpreter, which is chosen when Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", KERNEL_AGAINST_PLAIN]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout == "equal\n", result.stderr
