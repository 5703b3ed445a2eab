"""The component `tokenize`: see README.md, which is made from its entry function."""
