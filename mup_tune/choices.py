"""Words that settings files and options share, apart from all else, so that ``--help`` is cheap."""

from __future__ import annotations

from typing import Literal

DepthRule = Literal["none", "completep"]  # how residual branches follow the depth: not at all, or ∝ 1/layers
Horizon = Literal["falcon", "timescale"]  # how λ follows the length of a training: not at all, or ∝ 1/(η·steps)
