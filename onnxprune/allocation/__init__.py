"""Which units stay: scores and ratios, or a target, become a plan."""

from onnxprune.allocation.select import (
    ALLOCATORS,
    MAX_RATIO,
    ROUND_TO,
    Keeps,
    matches,
    ratios,
    rounded,
    search,
    select,
)

__all__ = ["ALLOCATORS", "MAX_RATIO", "ROUND_TO", "Keeps", "matches", "ratios", "rounded", "search", "select"]
