"""The encoder: configuration, attention, layers, masked-LM head and loss."""
