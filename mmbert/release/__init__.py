"""From a checkpoint to a released model: reading, merging, exporting, describing."""
