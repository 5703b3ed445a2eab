"""Bytes that a training step keeps for its backward pass, counted, against the planner's formula.

Counted are the tensors that autograd saves, each storage once, without parameters. Three ways of training: `sdpa` in
fp32, as on a CPU, and what a GPU does, bf16 autocast, `eager` and with encoder and head `compiled`. The latter two run
here without a GPU: what is kept is decided by autograd and the compiler's partitioner, and an operator that saves what
FlashAttention saves (queries, keys, values, output, log-sums) stands in for the kernel.
What a GPU really holds is measured by benchmarks/gpu_train.py.

    .venv/bin/python benchmarks/plan_memory.py
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from mmbert.model.attention import varlen
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.planning.memory import activation_bytes_a_token

SHAPES = ((128, 192, 4, 2), (128, 192, 7, 2), (256, 192, 4, 4), (128, 384, 4, 2), (384, 1152, 4, 6), (768, 1152, 4, 12))
"""Hidden size, GLU width, layers, heads."""
LENGTHS = (128, 128, 100, 156)
MASKED = 0.3


@torch.library.custom_op("bench::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of the shapes of FlashAttention's output and its log-sums; the values mean nothing."""
    return q + k + v, q.sum(dim=-1, dtype=torch.float32)


@torch.library.custom_op("bench::attend_backward", mutates_args=())
def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return grad + q, grad + k, grad + v + out + log_sums[..., None]


attend.register_fake(lambda q, *_: (torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)))
attend_backward.register_fake(lambda grad, *_: tuple(torch.empty_like(grad) for _ in range(3)))


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


attend.register_autograd(
    lambda ctx, grad, _: attend_backward(grad.contiguous(), *ctx.saved_tensors), setup_context=_save
)


def saved_bytes(model: MaskedLanguageModel, autocast: bool) -> int:
    """Of the encoder and the head, forward; without copies of weights, which do not grow with the tokens."""
    weights = {tuple(sorted(p.shape)) for p in model.parameters()}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tuple(sorted(tensor.shape)) not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    borders = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    tokens = int(borders[-1])
    masked = torch.arange(round(MASKED * tokens))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model.masked_hidden(torch.arange(tokens) % 500, borders, max(LENGTHS), masked)
    return sum(kept.values())


def main() -> None:
    varlen.varlen_attn = lambda q, k, v, *_, **__: attend(q, k, v)[0]
    worst = 0.0
    tokens = sum(LENGTHS)
    print(f"{tokens} tokens, {MASKED:.0%} masked, torch {torch.__version__}; bytes a token")
    print(f"{'way':10} {'hidden':>6} {'GLU':>6} {'layers':>6} {'counted':>9} {'planned':>9}")
    for way, (hidden, glu, layers, heads) in itertools.product(("sdpa", "eager", "compiled"), SHAPES):
        config = EncoderConfig(640, hidden, glu, layers, heads)
        model = new_model(config, 1, "sdpa" if way == "sdpa" else "varlen").train()
        if way == "compiled":
            torch._dynamo.reset()
            model.compile_for_training("aot_eager_decomp_partition")
        counted = saved_bytes(model, way != "sdpa") / tokens
        planned = activation_bytes_a_token(config, way, MASKED)
        worst = max(worst, abs(planned / counted - 1))
        print(f"{way:10} {hidden:6} {glu:6} {layers:6} {counted:9,.0f} {planned:9,.0f}", flush=True)
    print(f"figure: plan_activation_error {100 * worst:.1f} % (goal <= 15)")


if __name__ == "__main__":
    main()
