"""How much every unit of a group matters."""

from onnxprune.importance.weights import CRITERIA, DEFAULT, Float, Scores, Site, Weights, score

__all__ = ["CRITERIA", "DEFAULT", "Float", "Scores", "Site", "Weights", "score"]
