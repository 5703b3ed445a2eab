"""The component `curate`: see README.md, which is made from its entry function."""
