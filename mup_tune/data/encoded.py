"""What a tokenizer makes of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoded:
    """A text's ids without EOD, and the characters that no token of the vocabulary stands for."""

    ids: NDArray[Any]
    lost: str = ""
