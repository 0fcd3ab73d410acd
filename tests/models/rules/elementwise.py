"""Rows of elementwise operators."""

from __future__ import annotations

from models.rules.row import conv, gemm

# fmt: off

for _op in (
    "Abs Acos:s Acosh:e Asin:s Asinh Atan Atanh:s Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "Identity LeakyRelu Log:e Mish Neg Reciprocal:e Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt:e Tan:s Tanh ThresholdedRelu"
).split():  # `s`: of values in (0, 1), `e`: of values above 1
    _op, _, _domain = _op.partition(":")
    _source = {"s": "p = Sigmoid(h)", "e": "a = Abs(h) p = Exp(a)", "": "p = Identity(h)"}[_domain]
    conv(_op, f"{_source} k = {_op}(p)", opset=22)
conv("Swish", "k = Swish<alpha = 1.5>(h)", opset=24)
conv("BitCast", "i = BitCast<to = 6>(h) k = BitCast<to = 1>(i)", opset=26)
conv("com.microsoft::Gelu", "k = com.microsoft.Gelu(h)")
conv("com.microsoft::QuickGelu", "k = com.microsoft.QuickGelu<alpha = 1.7>(h)")
conv("Cast", "i = Cast<to = 6>(h) k = Cast<to = 1>(i)", form="to integers and back")
conv("Cast", "i = Cast<to = 10>(h) k = Cast<to = 1>(i)", form="to float16 and back")
conv("CastLike", "i = CastLike(h, like) k = CastLike(i, h)", also="int32 like = {1}")
conv("Dropout", "k = Dropout(h)", form="one input")
conv("Dropout", "k = Dropout<ratio = 0.3>(h)", form="ratio as attribute", opset=7)
conv("Dropout", "k, mask = Dropout(h, r, t)", "w1:0 pinned: axis of the graph output mask", form="mask as output",
     also="float r = {0.5}, bool t = {0}", outputs="float[] y, bool[] mask")
conv("IsNaN", "n = Sqrt(h) i = IsNaN(n) k = Cast<to = 1>(i)")
conv("IsInf", "r = Relu(h) n = Reciprocal(r) i = IsInf(n) k = Cast<to = 1>(i)")
conv("Not", "r = Relu(h) b = Cast<to = 9>(r) i = Not(b) k = Cast<to = 1>(i)")
conv("BitwiseNot", "m = Mul(h, ten) b = Cast<to = 6>(m) i = BitwiseNot(b) k = Cast<to = 1>(i)", also="float ten = {10}")
conv("ImageScaler", "k = ImageScaler<scale = 2.0, bias = [1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]>(h)", opset=7)
conv("Affine", "k = Affine<alpha = 2.0, beta = 0.5>(h)", opset=7)

# elementwise with several inputs

_P = "8 channels: b1:0 p:0 w1:0 w2:1"
for _op in ("Add", "Mul"):
    conv(_op, f"k = {_op}(h, p)", form="constant scalar", also="float p = {0.7}")
    conv(_op, f"k = {_op}(p, h)", form="constant of one element", also="float[1] p")
    conv(_op, f"k = {_op}(h, p)", _P, form="constant per channel", also="float[8,1,1] p")
    conv(_op, f"k = {_op}(p, h)", "8 channels: b1:0 p:1 w1:0 w2:1", form="constant per channel, full rank",
         also="float[1,8,1,1] p")
    conv(_op, f"k = {_op}(h, p)", _P, form="full constant", also="float[8,6,6] p")
    conv(_op, f"k = {_op}(h, p)", form="constant along the width", also="float[6] p")
    conv(_op, f"i = {_op}(h, p) k = Squeeze(i, a)", "8 channels: b1:0 p:2 w1:0 w2:1", form="constant of higher rank",
         also="float[1,2,8,6,6] p, int64[1] a = {0}")
    gemm(_op, f"k = {_op}(h, p)", "8 channels: b1:0 p:0 w1:1 w2:0", form="constant along the last axis",
         also="float[8] p")
    conv(_op, f"g = Conv(x, w3) k = {_op}(h, g)", "8 channels: b1:0 w1:0 w2:1 w3:0", form="two producers",
         also="float[8,3,1,1] w3")
    conv(_op, f"g = Conv(x, w3) k = {_op}(h, g)", form="with one channel", also="float[1,3,1,1] w3")
    conv(_op, f"g = GlobalAveragePool(h) s = Sigmoid(g) k = {_op}(h, s)", form="with its own average")
for _op in ("Add", "Mul", "Sub", "Div"):
    conv(_op, f"k = {_op}<axis = 1, broadcast = 1>(h, p)", _P, form="aligned at an axis, opset 6", opset=6,
         also="float[8] p", law="shapes", why="onnxruntime starts at opset 7")
for _op in "Sub Div Min Max Mean Sum Pow Mod".split():
    _name = "Mod<fmod = 1>" if _op == "Mod" else _op
    conv(_op, f"a = Abs(h) s = Add(a, vp) t = Add(a, vq) k = {_name}(s, t)", "8 channels: b1:0 vp:0 vq:0 w1:0 w2:1",
         form="activations", also="float[8,1,1] vp, float[8,1,1] vq")
    conv(_op, f"a = Abs(h) k = {_name}(a, vp)", "8 channels: b1:0 vp:0 w1:0 w2:1", form="constant per channel",
         also="float[8,1,1] vp")
for _op in "Max Min Mean Sum".split():
    conv(_op, f"g = Neg(h) i = Relu(h) k = {_op}(h, g, i)", form="three inputs")
conv("PRelu", "k = PRelu(h, p)", _P, form="slope per channel", also="float[8,1,1] p")
conv("PRelu", "k = PRelu(h, p)", form="slope of one element", also="float[1] p")
conv("Clip", "k = Clip(h, lo, hi)", form="inputs", also="float lo = {-0.5}, float hi = {0.5}")
conv("Clip", "k = Clip(h, , hi)", form="no minimum", also="float hi = {0.5}")
conv("Clip", "k = Clip<min = -0.5, max = 0.5>(h)", form="attributes", opset=10)
for _op in "Equal Greater GreaterOrEqual Less LessOrEqual".split():
    conv(_op, f"c = Ceil(h) i = {_op}(c, p) k = Cast<to = 1>(i)", _P, also="float[8,1,1] p = {0,1,0,1,0,1,0,1}")
for _op in "And Or Xor".split():
    conv(_op, f"r = Relu(h) c = Cast<to = 9>(r) s = Greater(h, p) i = {_op}(c, s) k = Cast<to = 1>(i)", _P,
         also="float[8,1,1] p")
for _op in "BitwiseAnd BitwiseOr BitwiseXor".split():
    conv(_op, f"t = Mul(h, ten) c = Cast<to = 6>(t) i = {_op}(c, p) k = Cast<to = 1>(i)", _P,
         also="float ten = {10}, int32[8,1,1] p = {1,2,3,4,5,6,7,8}")
conv("BitShift", 't = Mul(h, ten) a = Abs(t) c = Cast<to = 12>(a) i = BitShift<direction = "LEFT">(c, p) '
     "k = Cast<to = 1>(i)", _P, also="float ten = {10}, uint32[8,1,1] p = {1,2,3,4,5,6,7,8}")
conv("Where", "c = Greater(h, zero) g = Mul(h, p) k = Where(c, h, g)", _P, form="three activations",
     also="float zero = {0}, float[8,1,1] p")
conv("Where", "k = Where(c, h, p)", "8 channels: b1:0 c:0 p:1 w1:0 w2:1", form="constant condition",
     also="bool[8,1,1] c = {1,0,1,0,1,0,0,1}, float[1,8,1,1] p")
conv("Where", "k = Where(c, h, p)", form="mask along the width", also="bool[6] c = {1,0,1,0,1,0}, float p = {-5}")
gemm("com.microsoft::BiasGelu", "k = com.microsoft.BiasGelu(h, p)", "8 channels: b1:0 p:0 w1:1 w2:0", also="float[8] p")
gemm("com.microsoft::FastGelu", "k = com.microsoft.FastGelu(h)", form="one input")
gemm("com.microsoft::FastGelu", "k = com.microsoft.FastGelu(h, p)", "8 channels: b1:0 p:0 w1:1 w2:0", form="bias",
     also="float[8] p")
