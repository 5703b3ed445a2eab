"""The component `tokenizer`: see README.md, which is made from its entry function."""
