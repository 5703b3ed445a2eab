"""Names of the suite `demo` and its tasks, as they stand in scores."""

DEMO = "demo"

BITS_PER_BYTE = "masked_bits_per_byte"
BITS_PER_BYTE_NEW = "masked_bits_per_byte_new_languages"
RETRIEVAL = "article_retrieval"
LANGUAGE_ID = "language_identification"
INTENTS = "intent_classification"
