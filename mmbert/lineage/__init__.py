"""What was made from what: the graph of a store's artifacts, traced down to sources and up to releases."""

from mmbert.lineage.store import Input, Missing, Store, read_store

__all__ = ["Input", "Missing", "Store", "read_store"]
