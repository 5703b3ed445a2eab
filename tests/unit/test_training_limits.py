"""Groups that signals are told apart by, and what is said where a machine cannot do what a recipe asks."""

from __future__ import annotations

import errno
import math
import os
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmbert.errors import InfrastructureError, UserError
from mmbert.loader import shards
from mmbert.loader.batch import split_microbatches
from mmbert.loader.lane import ReadRow, StreamRows
from mmbert.loader.loader import Loader, LoaderSettings, MixtureStream
from mmbert.loader.masking import MaskingRule
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.loss import IGNORED
from mmbert.recipe import load_recipe
from mmbert.training.data import loader_settings
from mmbert.training.device import composer_device
from mmbert.training.groups import language_groups, parameters_by_group
from mmbert.training.history import HistoryPoint
from mmbert.training.memory import out_of_memory_explained
from mmbert.training.meter import group_sums
from mmbert.training.phase import PhaseInputs, train_phase


def plain_loader(read: ReadRow, workers: int, cache: Path) -> Loader:
    streams = [StreamRows(f"web/{n}", 1.0, 0, 4, 400, np.array([0, 4])) for n in range(3)]
    rule = MaskingRule(0.3, 100, 4, (0, 1, 2, 3, 4))
    settings = LoaderSettings(1, 4, 64, lambda _: 8, rule, cache, buffer_tokens=500)
    return Loader(streams, read, settings, 0, 1, workers=workers)


def documents_of_one_token(stream: int, row: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    return np.full(100, 10 + stream, np.uint32), np.array([7, 30, 63])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_masked_token_knows_its_stream(workers: int, tmp_path: Path) -> None:
    for batch in islice(plain_loader(documents_of_one_token, workers, tmp_path), 3):
        assert len(batch.masked_streams) > 50
        assert torch.equal(batch.masked_streams.long(), batch.targets - 10)
        for part in split_microbatches(batch, 3):
            assert torch.equal(part.masked_streams.long(), part.targets - 10)


def die(stream: int, row: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_killed_loader_process_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"was killed .*lower training\.workers or training\.shuffle_tokens"):
        next(iter(plain_loader(die, 1, tmp_path)))


def groups(**weights: float) -> dict[str, str]:
    streams = [MixtureStream("web", language, "", weight) for language, weight in weights.items()]
    return dict(zip(weights, language_groups(streams), strict=True))


def test_languages_are_grouped_by_their_share_of_the_tokens() -> None:
    found = groups(eng_Latn=500, code=80, deu_Latn=30, fra_Latn=25, rus_Cyrl=20, ell_Grek=16, amh_Ethi=6, fao_Latn=3)
    assert found == {
        "eng_Latn": "english", "code": "code", "deu_Latn": "high", "fra_Latn": "high", "rus_Cyrl": "middle",
        "ell_Grek": "middle", "amh_Ethi": "low", "fao_Latn": "low",
    }  # fmt: skip


def test_a_language_of_several_sources_is_ranked_once() -> None:
    streams = [
        MixtureStream(source, language, "", weight)
        for source, language, weight in (("web", "deu_Latn", 3), ("web", "fra_Latn", 5), ("wiki", "deu_Latn", 4))
    ]
    assert language_groups(streams) == ["high", "middle", "high"]


def test_groups_without_streams_are_absent() -> None:
    assert groups(deu_Latn=1) == {"deu_Latn": "high"}
    assert groups(eng_Latn=1, code=1) == {"eng_Latn": "english", "code": "code"}


def test_every_parameter_has_its_group() -> None:
    model = MaskedLanguageModel(EncoderConfig(100, 32, 48, 4, 4))
    by_name = dict(
        zip(
            (name for name, _ in model.named_parameters()),
            (group for group, _ in parameters_by_group(model.named_parameters())),
            strict=True,
        )
    )
    assert {n for n, g in by_name.items() if g == "head"} == {"head.dense.weight"}
    assert {n for n, g in by_name.items() if g == "embeddings"} == {
        "bert.embeddings.tok_embeddings.weight", "decoder.bias",
    }  # fmt: skip
    assert {n.split(".")[-2] for n, g in by_name.items() if g == "norms"} == {
        "norm", "attn_norm", "mlp_norm", "final_norm",
    }  # fmt: skip
    assert sum(g == "attention" for g in by_name.values()) == sum(g == "mlp" for g in by_name.values()) == 2 * 4


def test_a_loss_that_is_no_number_stays_in_its_group() -> None:
    rows = torch.tensor([1.0, 2.0, math.nan, 4.0, 0.0])
    targets = torch.tensor([5, 5, 5, 5, IGNORED])
    losses, counts = group_sums(rows, targets, torch.tensor([0, 0, 1, 0, 0]), 3).tolist()
    assert (losses[0], losses[2]) == (7.0, 0.0)
    assert math.isnan(losses[1])
    assert counts == [3.0, 1.0, 0.0]


def test_metrics_of_a_point_are_flat_and_leave_out_what_is_not_known() -> None:
    point = HistoryPoint(
        tokens=900, batch=3, loss=2.0, learning_rate=1e-3, mask_probability=0.3, global_batch_size=8,
        tokens_per_second=100.0, padding_share=0.1, loader_wait_share=0.2, checkpoint_seconds=0.5, skipped_batches=1,
        tflops_per_second=0.1, mfu=None, gradient_norm=1.5, gradient_norms={"mlp": 1.2}, losses={"english": 1.9},
    )  # fmt: skip
    metrics = point.metrics()
    assert (metrics["loss"], metrics["loss.english"]) == (2.0, 1.9)
    assert (metrics["gradient_norm"], metrics["gradient_norm.mlp"]) == (1.5, 1.2)
    assert metrics["tokens_seen"] == 900
    assert not {"mfu", "batch", "tokens", "losses"} & metrics.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(UserError, match=r"training\.device is 'cuda', but torch .* (CUDA|CUDA device)"):
        composer_device("cuda")
    assert composer_device("auto") == composer_device("cpu") == "cpu"


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**48), lambda: np.ones(2**48)])
def test_memory_that_ran_out_says_what_to_lower(allocate: object) -> None:
    recipe = load_recipe("base")
    wanted = r"ran out of memory .*phases\.extend\.batch\.microbatch_size \(now \d+ rows of max_seq_len 8192\)"
    with pytest.raises(UserError, match=wanted), out_of_memory_explained(recipe, "extend"):
        allocate()  # type: ignore[operator]


class TooLarge:
    """A mixture that does not fit into memory."""

    uri = "mixture"

    def read_json(self, path: str) -> object:
        return torch.empty(2**48)


def test_memory_that_runs_out_outside_of_the_steps_is_explained_too(tmp_path: Path) -> None:
    inputs: Any = PhaseInputs(TooLarge(), [], tmp_path, [], None)  # type: ignore[arg-type]
    unused: Any = None
    with pytest.raises(UserError, match=r"the machine ran out of memory .* outside of the training steps") as caught:
        train_phase(
            load_recipe("tiny"), "pretrain", inputs, output=unused, run=unused, cache=tmp_path, scratch=tmp_path,
            ranks=unused,
        )  # fmt: skip
    assert "microbatch_size" not in str(caught.value)


def test_the_cache_s_limit_is_the_recipe_s(tmp_path: Path) -> None:
    limited = load_recipe("tiny", ["training.cache_gb=1.5"])
    assert loader_settings(limited, "pretrain", tmp_path).cache_limit_bytes == 1_500_000_000


def test_a_full_disk_names_the_cache_s_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "_open_shard", full)
    data_set = shards.DataSet("s3://bucket/shards", "digest", (b"{}",), np.array([0, 4]))
    with pytest.raises(InfrastructureError, match=r"the disk is full; .*lower training\.cache_gb \(now 2\.5\)"):
        shards.ShardReader([data_set], tmp_path, 100, 2_500_000_000)(0, 2)


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_explained(load_recipe("tiny"), "pretrain"):
        raise RuntimeError("shapes do not fit")
