"""Names of suites that are special, and of the tasks of `demo`, as they stand in scores."""

DEMO = "demo"
EFFICIENCY = "efficiency"

BITS_PER_BYTE = "masked_bits_per_byte"
BITS_PER_BYTE_NEW = "masked_bits_per_byte_new_languages"
RETRIEVAL = "article_retrieval"
LANGUAGE_ID = "language_identification"
INTENTS = "intent_classification"
DEMO_TASKS = (BITS_PER_BYTE, BITS_PER_BYTE_NEW, RETRIEVAL, LANGUAGE_ID, INTENTS)
