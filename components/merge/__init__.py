"""The component `merge`: see README.md, which is made from its entry function."""
