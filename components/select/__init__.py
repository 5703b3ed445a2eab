"""The component `select`: see README.md, which is made from its entry function."""
