"""The component `report`: see README.md, which is made from its entry function."""
