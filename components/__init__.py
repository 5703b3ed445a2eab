"""The pipeline's components: one folder each, with the typed function that is its whole contract."""
