"""Names of suites that are special, and of the tasks of `demo` and their metrics, as they stand in scores."""

DEMO = "demo"
EFFICIENCY = "efficiency"

BITS_PER_BYTE = "masked_bits_per_byte"
BITS_PER_BYTE_NEW = "masked_bits_per_byte_new_languages"
RETRIEVAL = "article_retrieval"
LANGUAGE_ID = "language_identification"
INTENTS = "intent_classification"
DEMO_METRICS = {
    BITS_PER_BYTE: ("bits_per_byte",),
    BITS_PER_BYTE_NEW: ("bits_per_byte",),
    RETRIEVAL: ("accuracy",),
    LANGUAGE_ID: ("accuracy",),
    INTENTS: ("accuracy", "macro_f1"),
}
"""The metrics of its tasks, the first one foremost."""
