"""The usage examples of mmBERT's model card on a released folder, with whatever transformers runs this.

    python usage_examples.py MODEL_FOLDER REFERENCE.safetensors

The reference holds `input_ids` [rows, tokens], `attention_mask`, and `hidden` and `logits` of the real tokens, row by
row. Prints the largest differences and what each example gave, as JSON.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

TEXTS = ["This is a positive review.", "Ceci est un avis négatif.", "这是一个中性评价。"]
DOCUMENTS = ["Artificial intelligence changes medicine.", "L'intelligence artificielle.", "Climate change."]


class Classifier(nn.Module):
    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.classifier(self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])


def differences(folder: str, path: str) -> dict[str, float]:
    reference = load_file(path)
    inputs = {key: reference[key] for key in ("input_ids", "attention_mask")}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[real]
        logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(**inputs).logits[real]
    found = {"hidden": hidden - reference["hidden"], "logits": logits - reference["logits"]}
    return {name: value.abs().max().item() for name, value in found.items()}


def main(folder: str, path: str) -> None:
    said: dict[str, object] = {"version": transformers.__version__, "differences": differences(folder, path)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = ("pad", "eos", "bos", "unk", "mask", "cls", "sep")
    said["special"] = {name: getattr(tokenizer, f"{name}_token_id") for name in names}
    said["length"] = tokenizer.model_max_length
    said["inputs"] = sorted(tokenizer("a"))
    said["pair"] = tokenizer("a", "b")["input_ids"]
    model = AutoModel.from_pretrained(folder).eval()

    inputs = tokenizer("Hello world! 你好世界! Bonjour le monde!", return_tensors="pt")
    said["embedding"] = list(model(**inputs).last_hidden_state.mean(dim=1).shape)

    filler = AutoModelForMaskedLM.from_pretrained(folder).eval()
    for mask in ("[MASK]", tokenizer.mask_token):
        inputs = tokenizer(f"The capital of {mask} is Paris.", return_tensors="pt")
        with torch.no_grad():
            places = torch.where(inputs["input_ids"] == tokenizer.mask_token_id)
            top = torch.topk(filler(**inputs).logits[places], 5, dim=-1)
        said[f"filled {mask}"] = [tokenizer.decode(token) for token in top.indices[0]]

    classifier = Classifier(AutoModel.from_pretrained(folder), 3)
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(classifier(**inputs), torch.arange(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    said["losses"] = losses
    head = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    with torch.no_grad():
        said["classes"] = list(head(**inputs).logits.shape)

    def embeddings(texts: list[str]) -> np.ndarray:
        batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            return model(**batch).last_hidden_state.mean(dim=1).numpy()

    similarities = np.dot(embeddings(DOCUMENTS), embeddings([DOCUMENTS[1]]).T).flatten()
    said["ranked"] = np.argsort(similarities)[::-1].tolist()

    text = "A very long document. Ceci est un très long document. 这是一个非常长的文档。\n" * 1000
    inputs = tokenizer(text, return_tensors="pt", max_length=8192, truncation=True)
    with torch.no_grad():
        long = model(**inputs).last_hidden_state
    said["long"] = [*long.shape, bool(long.isfinite().all())]
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
