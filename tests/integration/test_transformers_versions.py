"""A released model in three versions of transformers, each in its own environment, and in sentence-transformers."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mmbert.data import eld
from mmbert.model.config import EncoderConfig
from mmbert.model.initialization import new_model
from mmbert.release.hugging_face import export
from tests.fixtures_stack import clean_environment

ROOT = Path(__file__).parents[2]
CONFIG = EncoderConfig(600, 32, 48, 4, 2, global_rope_theta=160_000, local_rope_theta=10_000)
GEMMA = ROOT / "node_modules" / "@lenml" / "tokenizer-gemma2" / "models"
INTERPRETERS = {
    "4.48": ROOT / ".venv-transformers-4.48" / "bin" / "python",
    "4.57": ROOT / ".venv-transformers-4.57" / "bin" / "python",
    "5": Path(sys.executable),
}


def sentences(count: int) -> list[str]:
    """Spread over the languages."""
    lines = [text for _, _, text in eld.read_sentences(eld.sentence_file())]
    return lines[:: len(lines) // count]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(600), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def released(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, and beside it what this project's own model gives."""
    folder = tmp_path_factory.mktemp("released") / "model"
    model = new_model(CONFIG, 7).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3)
    export(model.weights(), CONFIG, words, 8192, folder, card="# tiny\n")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [encoding.ids for encoding in tokenizer.encode_batch([*sentences(6), "[MASK]", " ".join(sentences(12))])]
    lengths = torch.tensor([len(row) for row in rows])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    packed = torch.tensor([token for row in rows for token in row])
    padded = torch.zeros(real.shape, dtype=torch.long)
    padded[real] = packed
    borders = torch.tensor([0, *itertools.accumulate(lengths.tolist())], dtype=torch.int32)
    assert int(lengths.max()) > 2 * CONFIG.sliding_window
    with torch.no_grad():
        hidden = model.encode(packed, borders, int(lengths.max()))
        logits = model.masked_logits(hidden, torch.arange(len(packed)))
    expected = {"input_ids": padded, "attention_mask": real.long(), "hidden": hidden, "logits": logits}
    save_file(expected, folder.parent / "expected.safetensors")
    return folder


@pytest.mark.parametrize("version", INTERPRETERS)
def test_every_example_of_the_card_runs_and_the_numbers_are_ours(released: Path, version: str) -> None:
    interpreter = INTERPRETERS[version]
    assert interpreter.is_file(), "run 'make setup-test'"
    command = [str(interpreter), "-P", str(ROOT / "tests" / "usage_examples.py"), str(released)]
    command.append(str(released.parent / "expected.safetensors"))
    environment = {**clean_environment(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "incorrect regex" not in ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["version"].startswith(f"{version}.")
    assert max(said["differences"].values()) < 1e-4
    assert said["special"] == {"pad": 0, "eos": 1, "bos": 2, "unk": 3, "mask": 4, "cls": 2, "sep": 1}
    assert (said["length"], said["inputs"]) == (8192, ["attention_mask", "input_ids"])
    assert [said["pair"][place] for place in (0, 2, 4)] == [2, 1, 1]
    assert said["embedding"] == [1, 32]
    assert said["filled [MASK]"] == said["filled <mask>"]
    assert len(said["filled [MASK]"]) == 5
    assert said["losses"][-1] < 0.8 * said["losses"][0]
    assert said["classes"] == [3, 3]
    assert said["ranked"][0] == 1
    assert said["long"] == [1, 8192, 32, True]


def test_sentence_transformers_load_it_and_average_over_the_real_tokens(released: Path) -> None:
    encoder = SentenceTransformer(str(released), device="cpu")
    assert encoder.max_seq_length == 8192
    alone = encoder.encode(["This is a sentence."])
    beside = encoder.encode(["This is a sentence.", " ".join(sentences(8))])
    assert alone.shape == (1, 32)
    torch.testing.assert_close(torch.tensor(alone[0]), torch.tensor(beside[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["gemma", "trained"])
def test_a_second_name_of_the_mask_token_changes_no_other_text(which: str, words: Path, tmp_path: Path) -> None:
    folder = GEMMA if which == "gemma" else words
    config = CONFIG if which == "trained" else EncoderConfig(256_000, 8, 8, 1, 2)
    export(new_model(config, 0).weights(), config, folder, 8192, tmp_path, card="")
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [*sentences(400), "  two  spaces <bos> [mask] MASK [ MASK ] <pad>", "a <mask> b", ""]
    for one, other in zip(
        plain.encode_batch(texts, add_special_tokens=False),
        ours.encode_batch(texts, add_special_tokens=False),
        strict=True,
    ):
        assert one.ids == other.ids
    assert ours.encode("日本[MASK]は").ids == ours.encode("日本<mask>は").ids
    assert 4 in ours.encode("日本[MASK]は").ids
    assert ours.get_vocab_size() == plain.get_vocab_size()
