"""Contrastive fine-tuning on MS MARCO, after which a masked language model gives embeddings.

The settings are those of the example in mmBERT's model card (1.25M triplets of `triplet-hard`, one epoch, batches of
512 without repeated texts, warm-up over 5%, mean pooling, bf16, in-batch negatives by GradCache, arXiv 2101.06983) and
of its paper (arXiv 2509.06888, appendix B: four learning rates are swept). The paper takes the rate that scores best
on the benchmarks themselves; here it is the one that orders most held-out triplets right.

A fine-tuned model is kept in the model's shared folder, so that every suite that needs it trains it once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmbert.artifacts import digest_json
from mmbert.errors import UserError
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup
from mmbert.evaluation.suites.keeping import kept_folder, write_whole

REPO = "sentence-transformers/msmarco-co-condenser-margin-mse-sym-mnrl-mean-v1"
SUBSET = "triplet-hard"
DATA = DataSet(REPO, (SUBSET,), card=f"https://huggingface.co/datasets/{REPO}")
TEXTS = ("query", "positive", "negative")

SETTINGS: dict[str, Any] = {
    "tuning_triplets": 1_250_000,
    "tuning_held_out": 1_000,
    "tuning_batch_size": 512,
    "tuning_mini_batch_size": 16,
    "tuning_epochs": 1,
    "tuning_warmup": 0.05,
    "tuning_save_steps": 500,
    "learning_rates": [1e-4, 3e-4, 5e-4, 7e-4],
}
"""`tuning_mini_batch_size` bounds memory alone; training can go on from every `tuning_save_steps` batches."""

_SPLIT_SEED = 12  # of the held-out triplets, as published
_QUALITY = "held_out_triplets.json"


def fine_tuned(model: ModelFolder, setup: Setup, seed: int) -> tuple[Path, float]:
    """The folder of the model fine-tuned with this seed, as sentence-transformers load it, and its learning rate.

    Of several `learning_rates` the first seed's runs decide, for all seeds. Raises UserError where the data are too few
    or of another schema; as `DataAccess.load` does.
    """
    rates = [float(rate) for rate in setup.settings["learning_rates"]]
    rate = rates[0]
    if len(rates) > 1:
        rate = max(rates, key=lambda r: _quality(_tuned(model, setup, r, setup.seeds[0])))
    return _tuned(model, setup, rate, seed), rate


def _quality(folder: Path) -> float:
    found: float = json.loads((folder / _QUALITY).read_text("utf-8"))["accuracy"]
    return found


def _tuned(model: ModelFolder, setup: Setup, rate: float, seed: int) -> Path:
    covered = {key: setup.settings[key] for key in SETTINGS if key not in ("learning_rates", "tuning_save_steps")}
    key = digest_json([covered, setup.data.revision(DATA)])[:16]
    name = f"msmarco-{key}-rate-{rate:g}-seed-{seed}"
    # Hidden, like all that is in the making.
    with _alone(setup.shared / f".{name}.lock"):
        work = setup.shared / f".{name}.work"
        folder = kept_folder(setup.shared / name, lambda out: _train(model, setup, rate, seed, work, out))
        shutil.rmtree(work, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits while another process trains the same model: both would write the same checkpoints."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _train(model: ModelFolder, setup: Setup, rate: float, seed: int, work: Path, out: Path) -> None:
    """Train with checkpoints in `work`, going on from the newest one there, and save the model into `out`."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    settings, on_gpu = setup.settings, setup.device != "cpu"
    triplets, held_out = _triplets(setup)
    encoder = SentenceTransformer(str(model.path), device=setup.device, trust_remote_code=False)
    trainer = SentenceTransformerTrainer(
        model=encoder,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(work),
            num_train_epochs=settings["tuning_epochs"],
            per_device_train_batch_size=settings["tuning_batch_size"],
            learning_rate=rate,
            warmup_steps=settings["tuning_warmup"],  # a share, below 1
            bf16=on_gpu,
            use_cpu=not on_gpu,
            batch_sampler="no_duplicates",
            save_strategy="steps",
            save_steps=settings["tuning_save_steps"],
            save_total_limit=2,
            logging_steps=settings["tuning_save_steps"],
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=triplets,
        loss=CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=settings["tuning_mini_batch_size"]),
    )
    trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")))
    evaluator = TripletEvaluator(*(list(held_out[column]) for column in TEXTS), batch_size=32)
    accuracy = evaluator(encoder)[evaluator.primary_metric]
    encoder.save(str(out), create_model_card=False)
    write_whole(out / _QUALITY, json.dumps({"accuracy": float(accuracy), "n": len(held_out)}).encode())


def _triplets(setup: Setup) -> tuple[Any, Any]:
    """The triplets to train on and those held out, as published: the split comes first, then the number."""
    rows = setup.data.load(DATA, SUBSET, "train", TEXTS).select_columns(list(TEXTS))
    held_out = setup.settings["tuning_held_out"]
    if len(rows) <= held_out:
        raise UserError(
            f"{REPO}, subset {SUBSET}: {len(rows):,} triplets, and tuning_held_out is {held_out:,}: none is left to "
            "train on"
        )
    split = rows.train_test_split(test_size=held_out, seed=_SPLIT_SEED)
    return split["train"].select(range(min(setup.settings["tuning_triplets"], len(split["train"])))), split["test"]
