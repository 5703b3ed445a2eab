"""The component `mixture`: see README.md, which is made from its entry function."""
