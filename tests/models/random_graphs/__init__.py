"""Random ONNX graphs that compose what the rules know, for Hypothesis (`models`) and for `tools/fuzz.py` (`build`).

A graph is a chain of blocks. A block takes one tensor, whose first axis is always the batch, appends nodes and returns
another one; which blocks fit depends on the rank alone, so convolutions meet transposed tokens, attention runs over
rows of an image and heads are split out of channel shuffles. All choices are whole numbers from one source (`Draws`),
where the smallest is the simplest: a failing graph shrinks by making its numbers smaller and their list shorter.
"""

from models.random_graphs.graph import build, from_seed, models, optimised, simplest
from models.random_graphs.net import Draws, Net

__all__ = ["Draws", "Net", "build", "from_seed", "models", "optimised", "simplest"]
