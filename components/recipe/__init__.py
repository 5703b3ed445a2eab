"""The component `recipe`: see README.md, which is made from its entry function."""
