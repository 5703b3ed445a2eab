"""The component `register`: see README.md, which is made from its entry function."""
