"""Small models and data sets of the hub's schemas in a mirror's layout, for tests of suites."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from mmbert.evaluation.suites.base import ModelFolder

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def write_data_set(root: Path, repo: str, subsets: Mapping[str, Mapping[str, Dataset]]) -> None:
    """`subsets`: subset -> split -> rows, as parquet files that the card's head names."""
    folder = root / repo
    configs = []
    for subset, splits in subsets.items():
        files = []
        for split, rows in splits.items():
            path = folder / subset / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(str(path))
            files.append({"split": split, "path": f"{subset}/{split}-*"})
        configs.append({"config_name": subset, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", "utf-8")


def tiny_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """As Gemma's: spaces are part of tokens, what is unknown becomes bytes, `<bos> text <eos>` and pairs."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    roles = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>", "mask": "<mask>"}
    roles |= {"cls": "<bos>", "sep": "<eos>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in roles.items()},
    )


def tiny_model(folder: Path, texts: Iterable[str]) -> ModelFolder:
    """An untrained ModernBERT with a tokenizer made of `texts`."""
    torch.manual_seed(5)
    config = ModernBertConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        global_attn_every_n_layers=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        cls_token_id=2,
        sep_token_id=1,
    )
    ModernBertForMaskedLM(config).save_pretrained(str(folder))
    tiny_tokenizer(texts).save_pretrained(str(folder))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return ModelFolder(folder, digest, "tiny")
