"""Steps of curation, as datatrove steps: what cleans text between a source's reader and deduplication."""
