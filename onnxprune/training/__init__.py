"""Weights that are trained: one onnxruntime session per step, losses from the original's outputs, no labels."""
