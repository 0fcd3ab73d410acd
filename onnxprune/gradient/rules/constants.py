"""Operators through which nothing flows back, each with its reason."""

from onnxprune.gradient.registry import no_gradient

no_gradient("it gives sizes, which no value changes", "Shape", "Size", "ConstantOfShape")
no_gradient("it holds its value, or makes it up", "Constant", "EyeLike", "Range")
no_gradient("its result changes in steps", "Floor", "Ceil", "Round", "Sign")
no_gradient("it gives indices", "ArgMax", "ArgMin", "NonZero")
no_gradient(
    "it compares", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN",
    "IsInf",
)  # fmt: skip
