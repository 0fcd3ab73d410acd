"""Models in onnxruntime: sessions, inputs, timing, profiles, values inside of a graph."""
