"""Text: sources, curation, tokenizers, shards of tokens, mixtures."""
