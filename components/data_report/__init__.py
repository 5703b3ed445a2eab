"""The component `data_report`: see README.md, which is made from its entry function."""
