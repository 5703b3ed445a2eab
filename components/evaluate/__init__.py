"""The component `evaluate`: see README.md, which is made from its entry function."""
