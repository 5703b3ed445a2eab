"""The gate between a training model and its export: the two must compute the same, or nothing is released."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mmbert import progress
from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig
from mmbert.model.head import TIED_DECODER, MaskedLanguageModel
from mmbert.release.hugging_face import from_hugging_face_names
from mmbert.release.loading import model_of
from mmbert.release.names import MODEL_WEIGHTS

_MASK_EVERY = 7  # this share of each sample is masked
# Samples go through the models in groups of no more than this many padded tokens, or one by one where they are longer.
_GROUP_TOKENS = 4096
# Rows of logits compared a group; of a vocabulary of 256,000 a row is 1 MB.
_LOGIT_ROWS = 64
# Tokens of which every logit is compared, through the exported model's own forward.
_WHOLE_TOKENS = 16


@dataclass(frozen=True)
class ParityReport:
    """Largest differences between the training model and the exported one, in fp32 on the CPU (see `check_parity`).

    `longest` is the longest sample in tokens, `logit_rows` the tokens whose logits were compared.
    """

    samples: int
    tokens: int
    longest: int
    logit_rows: int
    max_hidden_difference: float
    max_logit_difference: float
    seconds: float


@dataclass(frozen=True)
class _Group:
    """Samples that run together: names, and ids with masks in place."""

    names: list[str]
    samples: list[Tensor]

    def place(self, row: int) -> str:
        """Where row `row` of the samples, put one after the other, lies."""
        for name, sample in zip(self.names, self.samples, strict=True):
            if row < len(sample):
                return f"in sample '{name}' ({len(sample)} tokens), position {row}"
            row -= len(sample)
        raise IndexError(row)

    def logit_rows(self) -> Tensor:
        """Rows spread over all tokens."""
        tokens = sum(map(len, self.samples))
        return torch.arange(0, tokens, max(1, -(-tokens // _LOGIT_ROWS)))


@torch.no_grad()
def check_parity(
    out_dir: Path, config: EncoderConfig, samples: Mapping[str, Sequence[int]], tolerance: float
) -> ParityReport:
    """Compare the folder, loaded by plain transformers and padded, with the training model, packed.

    The training model is this project's encoder of `config` around the folder's weights, which `export` compared with
    the checkpoint's; transformers must hold the same, bit by bit, so that both models can share them in memory.
    `samples` are token ids with bos and eos, by a name for messages; every seventh token is masked here. Compared are
    the hidden states of all tokens after the final norm, the logits of rows spread over each group of samples, and all
    logits of a few tokens; differences are relative where values are above 1. Raises UserError above `tolerance` (or
    for NaN), saying the first layer whose output differs, and for which token; then it must not be released.
    """
    begin = time.monotonic()
    groups = list(_groups(samples, config.mask_token_id))
    if not groups:
        raise UserError("parity: there is no sample to compare on")
    exported = _load(out_dir)
    model = model_of(_shared_weights(out_dir, exported), config)
    worst_hidden = worst_logits = 0.0
    lengths = [len(sample) for group in groups for sample in group.samples]
    with progress.shown("comparing the two models", sum(lengths), "tokens") as advance:
        for group in groups:
            hidden, logits = _compare(model, exported, group, tolerance, out_dir)
            worst_hidden, worst_logits = max(worst_hidden, hidden), max(worst_logits, logits)
            advance(sum(map(len, group.samples)))
    worst_logits = max(worst_logits, _compare_whole(model, exported, groups[0], tolerance, out_dir))
    rows = sum(len(group.logit_rows()) for group in groups)
    seconds = time.monotonic() - begin
    return ParityReport(len(lengths), sum(lengths), max(lengths), rows, worst_hidden, worst_logits, seconds)


def _load(out_dir: Path) -> Any:
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForMaskedLM.from_pretrained(
            out_dir, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        ).eval()
    finally:
        if shown:
            logging.enable_progress_bar()


def _shared_weights(out_dir: Path, exported: Any) -> dict[str, Tensor]:
    """The exported model's own tensors by the training model's names, each compared with the file."""
    loaded = {name: value for name, value in exported.state_dict().items() if name != TIED_DECODER}
    with safe_open(out_dir / MODEL_WEIGHTS, "pt") as stored:
        names = set(stored.keys())
        for name in sorted(names | set(loaded)):
            if name not in names or name not in loaded or not same_bits(stored.get_tensor(name), loaded[name]):
                raise UserError(
                    f"{out_dir}: transformers does not load '{name}' as it stands in {MODEL_WEIGHTS}; "
                    "it must not be released"
                )
    return from_hugging_face_names(loaded)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal fp32 tensors, NaN and the sign of zero included."""
    return one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))


def _groups(samples: Mapping[str, Sequence[int]], mask: int) -> Iterator[_Group]:
    """Shortest first, so that each group's padding is what a batch of mixed lengths has."""
    group = _Group([], [])
    for name in sorted((n for n in samples if samples[n]), key=lambda n: len(samples[n])):
        ids = torch.tensor(list(samples[name]))
        if group.samples and len(ids) * (len(group.samples) + 1) > _GROUP_TOKENS:
            yield group
            group = _Group([], [])
        group.names.append(name)
        group.samples.append(ids.masked_fill(torch.arange(len(ids)) % _MASK_EVERY == _MASK_EVERY // 2, mask))
    if group.samples:
        yield group


def _compare(
    model: MaskedLanguageModel, exported: Any, group: _Group, tolerance: float, out_dir: Path
) -> tuple[float, float]:
    """Largest difference of hidden states and of logits."""
    ours, theirs = _ours(model, group), _theirs(exported, group)
    by_row = _differences(ours, theirs)
    rows = group.logit_rows()
    logits_by_row = _differences(model.masked_logits(ours, rows), exported.decoder(exported.head(theirs[rows])))
    del ours, theirs
    if not (by_row <= tolerance).all():
        name, layer_by_row = _first_layer(model, exported, group, tolerance)
        _refuse(out_dir, name, group, layer_by_row, tolerance, logits_by_row.max().item())
    if not (logits_by_row <= tolerance).all():
        spread = torch.zeros(len(by_row)).index_copy(0, rows, logits_by_row)
        _refuse(out_dir, "the logits", group, spread, tolerance, logits_by_row.max().item())
    return by_row.max().item(), logits_by_row.max().item()


def _compare_whole(model: MaskedLanguageModel, exported: Any, group: _Group, tolerance: float, out_dir: Path) -> float:
    """Of all logits of the first tokens, by the exported model's own forward."""
    first = _Group(group.names[:1], [group.samples[0][:_WHOLE_TOKENS]])
    everything = torch.arange(len(first.samples[0]))
    by_row = _differences(
        model.masked_logits(_ours(model, first), everything), exported(input_ids=first.samples[0][None]).logits[0]
    )
    if not (by_row <= tolerance).all():
        _refuse(out_dir, "the whole of a sample's logits", first, by_row, tolerance, by_row.max().item())
    return by_row.max().item()


def _refuse(out_dir: Path, name: str, group: _Group, by_row: Tensor, tolerance: float, logits: float) -> None:
    row = int((~(by_row <= tolerance)).nonzero()[0])
    raise UserError(
        f"{out_dir}: the exported model differs from the training model, first at {name}, {group.place(row)}, by "
        f"{by_row[row].item():.3g} (tolerance {tolerance:.3g}; logits differ by {logits:.3g}); it must not be released"
    )


def _ours(model: MaskedLanguageModel, group: _Group) -> Tensor:
    """Hidden states [tokens, width], all samples packed into one row, with trailing padding as in training."""
    padding = torch.full((_MASK_EVERY,), model.config.pad_token_id)
    segments = [*group.samples, padding]
    cu_seqlens = torch.tensor([0, *itertools.accumulate(map(len, segments))], dtype=torch.int32)
    return model.encode(torch.cat(segments), cu_seqlens, max(map(len, segments)))[: -len(padding)]


def _theirs(exported: Any, group: _Group) -> Tensor:
    """The same of the exported model, padded."""
    real = _real(group)
    padded = torch.full(real.shape, exported.config.pad_token_id)
    padded[real] = torch.cat(group.samples)
    hidden: Tensor = exported.model(input_ids=padded, attention_mask=real.long()).last_hidden_state
    return hidden[real]


def _real(group: _Group) -> Tensor:
    """[samples, longest], true where there is a token."""
    lengths = torch.tensor([len(sample) for sample in group.samples])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def _differences(ours: Tensor, theirs: Tensor) -> Tensor:
    """Largest difference of each row, over the largest value of all where that is above 1: rounding in fp32 grows with
    the values."""
    scale = ours.abs().nan_to_num(0.0, posinf=0.0).max().clamp(min=1.0)
    return (ours - theirs).abs().amax(-1) / scale


def _first_layer(model: MaskedLanguageModel, exported: Any, group: _Group, tolerance: float) -> tuple[str, Tensor]:
    """The first module whose output differs, and its differences by row; both models run once more for that."""
    real = _real(group)
    kept: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    tokens = int(real.sum())
    with _hooked(_modules(model, "bert", "bert.encoder"), lambda name, output: kept.update({name: output[:tokens]})):
        _ours(model, group)
    with _hooked(
        _modules(exported, "model", "model"),
        lambda name, output: found.update({name: _differences(kept.pop(name), output[real])}),
    ):
        _theirs(exported, group)
    return next((name, by_row) for name, by_row in found.items() if not (by_row <= tolerance).all())


def _modules(model: nn.Module, body: str, layers: str) -> dict[str, nn.Module]:
    """The modules whose outputs are compared, in the order they run, under names that both models share."""
    stack = model.get_submodule(f"{layers}.layers")
    found = {"embeddings": model.get_submodule(f"{body}.embeddings")}
    found |= {f"layer {name}": layer for name, layer in stack.named_children()}
    return {**found, "the final norm": model.get_submodule(f"{body}.final_norm")}


@contextlib.contextmanager
def _hooked(modules: Mapping[str, nn.Module], tell: Any) -> Iterator[None]:
    """Within, `tell(name, output)` is called with what each module returns."""

    def hook(name: str) -> Any:
        return lambda _module, _inputs, output: tell(name, output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
