"""Making up, without training, for what a cut has lost."""

from onnxprune.recovery.bias import bias_shifts

__all__ = ["bias_shifts"]
