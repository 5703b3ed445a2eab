"""What takes space in a store of artifacts, what of it is needed, and deleting the rest (docs/storage.md)."""
