"""What the sections of the recipe's schema share: their kind, and the values in them that have a form."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_TOKEN_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_tokens(value: Any) -> Any:
    """`600B` -> 600,000,000,000. Units: k, M, B, T; anything else is an error."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", value)
    if not found or found[2] not in _TOKEN_UNITS:
        raise ValueError(
            f"'{value}' is not a number of tokens; write a whole number or a unit of k, M, B or T, like 600B"
        )
    tokens = Decimal(found[1].replace("_", "")) * _TOKEN_UNITS[found[2]]
    if tokens != int(tokens):
        raise ValueError(f"'{value}' is not a whole number of tokens")
    return int(tokens)


Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(ge=0)]
PositiveTokens = Annotated[int, BeforeValidator(parse_tokens), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
VariantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
