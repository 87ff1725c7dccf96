"""The types of settings, with their bounds.

Values come from TOML or, as text, from the command line.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

LOWEST_TEMPERATURE = 0.01  # below it, probabilities may overflow; 0, where it is allowed, is greedy
SMALLEST_VOCABULARY = 261  # 256 bytes and the embedded base's 5 special tokens

# Pydantic would also read true as 1.
NO_SWITCH = BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)
AUTO = BeforeValidator(lambda value: None if str(value).lower() == "auto" else value)
NONE = BeforeValidator(lambda value: None if str(value).lower() == "none" else value)
TRUE_OR_FALSE = BeforeValidator(lambda value: {"true": True, "false": False}.get(str(value).lower(), value))
Switch = Annotated[bool, Field(strict=True), TRUE_OR_FALSE]
MOST = 2**31 - 1  # what a C integer in any library holds
Whole = Annotated[int, NO_SWITCH]
Count = Annotated[Whole, Field(gt=0, le=MOST)]
CountOrZero = Annotated[Whole, Field(ge=0, le=MOST)]
Number = Annotated[float, NO_SWITCH, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
ZeroOrMore = Annotated[Number, Field(ge=0)]
Share = Annotated[Positive, Field(le=1)]
Rate = Annotated[Positive, Field(le=1000)]  # far above any use; optimizers overflow at 1e38

SFT, BASE = "sft", "base"  # where a policy's training may begin, beside a folder

LIST = BeforeValidator(lambda value: ",".join(map(str, value)) if isinstance(value, list) else value)
Names = Annotated[str, LIST]  # a list in TOML, or names separated by commas

CONFIG = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # `card = 24` is a text without quotes
