"""How fast one variant of an encoder runs and how much memory it takes: measured in a process of its own.

The peak of a process's memory never falls, so that variants that share one cannot be told apart.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mmbert.errors import UserError

Ids = npt.NDArray[np.int64]

Result = TypeVar("Result")

PARITY = 1e-3
"""The largest difference of hidden states that an ONNX export may have, over the largest value if above 1."""


@dataclass(frozen=True)
class Spec:
    """What is measured. `length` is the longest document in tokens; `variable`: lengths are uniform from 1 to it.

    `tokens`: how many the documents have together, at least; `seconds`: whole passes over them are made until these are
    over, at least two.
    """

    folder: Path
    variant: str
    length: int
    variable: bool
    tokens: int
    seconds: float
    batch_tokens: int
    seed: int
    device: str
    scratch: Path


@dataclass(frozen=True)
class Measured:
    """`tokens` of the documents, padding not counted; seconds of each pass; peak memory in MB (10^6 bytes)."""

    tokens: int
    documents: int
    padding: float
    seconds: tuple[float, ...]
    peak_memory_mb: float


def measured(spec: Spec) -> Measured:
    """Measure in a fresh process. Raises UserError for a variant that the model cannot have."""
    if spec.variant == "onnx":
        # In a process of its own, for it takes more memory than the exported model does.
        _in_fresh_process(_export, spec)
    return _in_fresh_process(_measure, spec)


def _in_fresh_process(work: Callable[[Spec], Result], spec: Spec) -> Result:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(work, spec).result()


def _measure(spec: Spec) -> Measured:
    import torch

    config = json.loads((spec.folder / "config.json").read_text("utf-8"))
    rng = np.random.default_rng(spec.seed)
    documents: list[Ids] = []
    while sum(map(len, documents)) < spec.tokens:
        length = int(rng.integers(1, spec.length + 1)) if spec.variable else spec.length
        documents.append(rng.integers(5, config["vocab_size"], length))
    run, places = _VARIANTS[spec.variant](spec, config, documents)
    on_gpu = spec.device != "cpu"
    run()  # what is compiled or allocated once is not measured
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < spec.seconds:
        begin = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    # Linux counts a process's peak in KiB.
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = sum(map(len, documents))
    return Measured(tokens, len(documents), 1 - tokens / places, tuple(seconds), peak / 1e6)


Prepared = tuple[Callable[[], object], int]
"""One pass over the documents, and the places (tokens and padding) that it computes."""


def _packed(spec: Spec, config: Mapping[str, Any], documents: list[Ids]) -> Prepared:
    """This project's encoder without padding, with the attention back end that is there."""
    import torch

    from mmbert.evaluation.packing import batches, inference, packed
    from mmbert.model.attention import attention_backend
    from mmbert.model.attention.choose import choose_attention
    from mmbert.model.config import EncoderConfig
    from mmbert.release.checkpoints import load_weights
    from mmbert.release.hugging_face import described_config, from_hugging_face_names
    from mmbert.release.loading import model_of
    from mmbert.release.names import MODEL_WEIGHTS

    shape = EncoderConfig(**described_config(config, str(spec.folder)))
    model = model_of(from_hugging_face_names(load_weights(spec.folder / MODEL_WEIGHTS)), shape).to(spec.device)
    if spec.device != "cpu":
        model.bert.attention = attention_backend(choose_attention("auto", torch.device(spec.device), torch.bfloat16))
    lengths = [len(d) for d in documents]

    def run() -> None:
        with inference(model) as device, _precision(spec):
            for batch in batches(lengths, spec.batch_tokens):
                model.encode(*packed([documents[i] for i in batch], device))

    return run, sum(lengths)


def _transformers(spec: Spec, _: Mapping[str, Any], documents: list[Ids]) -> Prepared:
    """The same weights in transformers' model, padded, with SDPA."""
    from transformers import AutoModel

    return _padded(
        AutoModel.from_pretrained(spec.folder, attn_implementation="sdpa", trust_remote_code=False), spec, documents
    )


def _xlm_roberta(spec: Spec, config: Mapping[str, Any], documents: list[Ids]) -> Prepared:
    """XLM-R's architecture: learned positions, a plain MLP four times as wide as the model."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    # Positions begin after the padding token's id, 1.
    shape = XLMRobertaConfig(**_equal_size(config, 12), max_position_embeddings=spec.length + 2, type_vocab_size=1)
    return _padded(XLMRobertaModel(shape, add_pooling_layer=False), spec, documents)


def _mgte(spec: Spec, config: Mapping[str, Any], documents: list[Ids]) -> Prepared:
    """mGTE's architecture, which transformers has as GTE: rotary positions, a GLU four times as wide as the model."""
    from transformers import GteConfig, GteModel

    shape = GteConfig(**_equal_size(config, 16), max_position_embeddings=max(spec.length, 512))
    return _padded(GteModel(shape), spec, documents)


def _equal_size(config: Mapping[str, Any], parts: int) -> dict[str, Any]:
    """A peer as wide as the model, with its heads and words, and as many layers as come nearest to its size.

    Size is the parameters of the layers' matrices; a layer of the peer has `parts` times the square of the width.
    """
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    body = layers * (4 * width**2 + 3 * width * config["intermediate_size"])
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": width,
        "num_hidden_layers": max(1, round(body / (parts * width**2))),
        "num_attention_heads": config["num_attention_heads"],
        "intermediate_size": 4 * width,
        "pad_token_id": 1,
    }


def _padded(model: Any, spec: Spec, documents: list[Ids]) -> Prepared:
    import torch

    model = model.to(spec.device).eval()
    prepared = [(torch.from_numpy(ids), torch.from_numpy(mask)) for ids, mask in _padded_batches(spec, documents)]

    def run() -> None:
        with torch.inference_mode(), _precision(spec):
            for ids, mask in prepared:
                model(input_ids=ids.to(spec.device), attention_mask=mask.to(spec.device))

    return run, sum(ids.numel() for ids, _ in prepared)


def _precision(spec: Spec) -> Any:
    """fp32 on a CPU, bf16 on a GPU, for every variant."""
    import torch

    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=spec.device != "cpu")


def _padded_batches(spec: Spec, documents: list[Ids]) -> list[tuple[Ids, Ids]]:
    """Ids and mask, [documents, longest], in the order given, as many documents as fit into the batch's tokens."""
    size = max(1, spec.batch_tokens // spec.length)
    made = []
    for begin in range(0, len(documents), size):
        rows = documents[begin : begin + size]
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, document in enumerate(rows):
            ids[row, : len(document)], mask[row, : len(document)] = document, 1
        made.append((ids, mask))
    return made


def _export(spec: Spec) -> None:
    """Export the model to ONNX. Raises UserError where onnxruntime cannot run there, or what it computes differs."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(spec.folder, attn_implementation="sdpa", trust_remote_code=False).eval()
    rng = np.random.default_rng(spec.seed)
    sample = [rng.integers(5, model.config.vocab_size, n) for n in (24, 7)]
    ids, mask = _padded_batches(replace(spec, length=24, batch_tokens=48), sample)[0]
    rows, width = torch.export.Dim("rows"), torch.export.Dim("width")
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that it chooses itself
        torch.onnx.export(
            _hidden_states(model),
            (),
            str(_onnx_file(spec)),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["last_hidden_state"],
            dynamic_shapes={name: {0: rows, 1: width} for name in inputs},
            dynamo=True,
            verbose=False,
        )
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state.numpy()[mask == 1]
    (found,) = _session(spec).run(None, {"input_ids": ids, "attention_mask": mask})
    difference = float(np.abs(found[mask == 1] - expected).max() / max(1.0, np.abs(expected).max()))
    if not difference <= PARITY:
        raise UserError(f"onnx: the export of {spec.folder} differs by {difference:.3g} from it, over {PARITY:g}")


def _onnx_file(spec: Spec) -> Path:
    return spec.scratch / "model.onnx"


def _session(spec: Spec) -> Any:
    import onnxruntime

    provider = "CPUExecutionProvider" if spec.device == "cpu" else "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise UserError(f"onnx: this onnxruntime has no {provider}; leave the task out, or install onnxruntime-gpu")
    return onnxruntime.InferenceSession(str(_onnx_file(spec)), providers=[provider])


def _onnx(spec: Spec, _: Mapping[str, Any], documents: list[Ids]) -> Prepared:
    """The same weights exported to ONNX and run by onnxruntime, padded."""
    session = _session(spec)
    prepared = _padded_batches(spec, documents)

    def run() -> None:
        for tokens, real in prepared:
            session.run(None, {"input_ids": tokens, "attention_mask": real})

    return run, sum(tokens.size for tokens, _ in prepared)


def _hidden_states(model: Any) -> Any:
    """The model with hidden states as its one output."""
    import torch

    class HiddenStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return hidden

    return HiddenStates()


_VARIANTS = {
    "packed": _packed,
    "transformers": _transformers,
    "onnx": _onnx,
    "xlm-r": _xlm_roberta,
    "mgte": _mgte,
}
