"""How good a model is: metrics, paired bounds, distance from the original, time and size."""
