"""Operators through which nothing flows back, each with its reason; and those that are not followed yet."""

from onnxprune.gradient.registry import no_gradient, not_yet

no_gradient("it gives sizes, which no value changes", "Shape", "Size", "ConstantOfShape")
no_gradient(
    "it holds its value, or makes it up", "Constant", "EyeLike", "Range", "BlackmanWindow", "HammingWindow",
    "HannWindow", "MelWeightMatrix",
)  # fmt: skip
no_gradient(
    "it draws at random", "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
)  # fmt: skip
no_gradient("its result changes in steps", "Floor", "Ceil", "Round", "Sign", "Hardmax")
no_gradient("it gives indices", "ArgMax", "ArgMin", "NonZero", "NonMaxSuppression")
no_gradient(
    "it compares", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN",
    "IsInf",
)  # fmt: skip
no_gradient(
    "it computes with bits", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
)  # fmt: skip
no_gradient(
    "it reads text, files or counts", "ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer",
    "StringSplit", "TfIdfVectorizer",
)  # fmt: skip
no_gradient("it tells whether something is there", "OptionalHasElement", "SequenceLength")

not_yet(
    "sequences of tensors are not followed", "ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence", "Optional", "OptionalGetElement",
)  # fmt: skip
not_yet("onnx does not infer its shapes", "CausalConvWithState", "LinearAttention")
not_yet("its windows depend on the regions; RoiAlign has a gradient", "MaxRoiPool")
