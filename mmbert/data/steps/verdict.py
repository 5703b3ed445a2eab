"""What a filter says of a document: kept, or dropped and why."""

Verdict = bool | tuple[bool, str]
