"""The component `convert`: see README.md, which is made from its entry function."""
