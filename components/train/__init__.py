"""The component `train`: see README.md, which is made from its entry function."""
