"""The friendly commands: each a thin layer over one function of the library."""
