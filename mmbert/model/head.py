"""The masked language model: encoder, prediction head, and a tied decoder whose logits exist at masked tokens only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own spelling
from torch import Tensor, nn

from mmbert.model.config import EncoderConfig
from mmbert.model.encoder import Encoder, layer_norm
from mmbert.model.loss import MaskedLoss, linear_cross_entropy
from mmbert.model.tied import two_uses

# Shapes of batches that are compiled for, each once.
_SHAPES = 32

TIED_DECODER = "decoder.weight"
TOKEN_EMBEDDING = "bert.embeddings.tok_embeddings.weight"  # noqa: S105 -- a parameter's name


class PredictionHead(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = layer_norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return projected


class MaskedLanguageModel(nn.Module):
    """The encoder with its masked-LM head; `initialization.new_model` makes one that is ready to train.

    `attention` names the attention's back end (`mmbert.model.attention`).

    Everywhere: `input_ids` [tokens] int64, all segments in one row; `cu_seqlens` [segments + 1] int32, their borders,
    from 0 to the number of tokens; `max_seqlen` at least the longest segment. Trailing padding is a segment of its own,
    or absent.
    """

    def __init__(self, config: EncoderConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.bert = Encoder(config, attention)
        self.head = PredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = self.bert.embeddings.tok_embeddings.weight
        self._compiled: Callable[..., Tensor] | None = None

    def compile_for_training(self, backend: str = "inductor") -> None:
        """Compile encoder and head as `forward` calls them; `encode` and the names of weights stay as they are.

        Batches should have one shape (`mmbert.loader.batch.fixed_shape`): each further one is compiled anew. The loss,
        which has kernels of its own, stays outside.
        """
        # Past the limit, 8 by itself, a further shape would end the run: each batch that exceeds the shape makes one.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
        self._compiled = torch.compile(self._masked_hidden, fullgraph=True, dynamic=False, backend=backend)

    def masked_hidden(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, masked_indices: Tensor) -> Tensor:
        """What the decoder takes, [n, hidden_size], at the tokens `masked_indices` [n]."""
        return (self._compiled or self._masked_hidden)(input_ids, cu_seqlens, max_seqlen, masked_indices)

    def _masked_hidden(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, masked_indices: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.bert(input_ids, cu_seqlens, max_seqlen, masked_indices))
        return hidden

    def encode(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Hidden states [tokens, hidden_size] after the final norm."""
        hidden: Tensor = self.bert(input_ids, cu_seqlens, max_seqlen)
        return hidden

    def masked_logits(self, hidden: Tensor, indices: Tensor) -> Tensor:
        """Logits [n, vocab_size] at the tokens `indices` [n] of hidden states [tokens, hidden_size]."""
        logits: Tensor = self.decoder(self.head(hidden.index_select(0, indices)))
        return logits

    def forward(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, masked_indices: Tensor, targets: Tensor
    ) -> MaskedLoss:
        """-ln p of `targets` [n] at the tokens `masked_indices` [n], their sum and each.

        Rows whose target is IGNORED count nothing. Only masked tokens leave the last layer's attention: nothing else
        reaches the loss.
        """
        weight: Tensor = self.decoder.weight
        if self._compiled or weight.is_cuda:
            hidden = self.masked_hidden(input_ids, cu_seqlens, max_seqlen, masked_indices)
        else:
            lookup, weight = two_uses(weight)
            hidden = self.head(self.bert(input_ids, cu_seqlens, max_seqlen, masked_indices, lookup))
        return linear_cross_entropy(hidden, weight, self.decoder.bias, targets)

    def weights(self) -> dict[str, Tensor]:
        """Every weight once, by name: the state dict without the tied decoder's second entry."""
        return {name: value for name, value in self.state_dict().items() if name != TIED_DECODER}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights by name, as `weights` gives them; the tied decoder's second entry may be present."""
        self.load_state_dict({**weights, TIED_DECODER: weights[TOKEN_EMBEDDING]})
