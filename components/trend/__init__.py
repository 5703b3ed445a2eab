"""The component `trend`: see README.md, which is made from its entry function."""
