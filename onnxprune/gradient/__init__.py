"""The graph differentiates itself: gradients and Hessian-vector products of any ONNX model as an ONNX model."""
