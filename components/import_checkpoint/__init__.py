"""The component `import_checkpoint`: see README.md, which is made from its entry function."""
