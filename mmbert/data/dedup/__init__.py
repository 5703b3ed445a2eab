"""Near-duplicate removal with MinHash: texts to band hashes, band hashes to pairs, pairs to clusters."""
