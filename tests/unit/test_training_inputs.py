"""What training refuses before it begins."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from mmbert.errors import UserError
from mmbert.recipe import load_recipe
from mmbert.training.data import check_tokenizer


def test_a_tokenizer_with_ids_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    model = load_recipe("tiny").model
    words = {f"w{i}": i for i in range(model.vocab_size)}
    Tokenizer(WordLevel(words, unk_token="w3")).save(str(tmp_path / "tokenizer.json"))
    check_tokenizer(tmp_path, model)
    larger = Tokenizer(WordLevel(words, unk_token="w3"))
    larger.add_tokens(["<added>"])
    larger.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"largest id is 8192, but model\.vocab_size is 8192") as error:
        check_tokenizer(tmp_path, model)
    assert "8193 or more" in str(error.value)
