"""Samples that a model is calibrated or scored on, and the moments of its activations on them."""
