"""Which units stay: scores and ratios, or a target, become a plan."""

from onnxprune.allocation.select import MAX_RATIO, ROUND_TO, Keeps, allocated, matches, ratios, search, select

__all__ = ["MAX_RATIO", "ROUND_TO", "Keeps", "allocated", "matches", "ratios", "search", "select"]
