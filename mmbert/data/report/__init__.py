"""The data report: one page about the text of a run, by language and source, from its artifacts' counts."""
