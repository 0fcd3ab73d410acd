"""Recurrent operators: 2 inputs, 3 hidden units, 4 steps, 2 samples."""

from models.gradients.row import row

LENGTHS = "int32[2] l = {4,2}"


def rows(op: str, gates: int, form: str, how: str = "", *, directions: int = 1, given: str = "", bias: bool = True,
         weights: str = "", more: str = "", step: float = 0.02, **options: object) -> None:  # fmt: skip
    """given: names of further inputs in order, "" where one is left out."""
    d, width = directions, gates * 3
    inputs = f"double[4,2,2] x, double[{d},{width},2] w, double[{d},{width},3] r"
    inputs += f", double[{d},{2 * width}] b" if bias else ""
    attributes = f"hidden_size = 3{', ' + how if how else ''}"
    outputs = "y, h, c" if op == "LSTM" else "y, h"
    row(op, form, inputs + more, f"{outputs} = {op}<{attributes}>(x, w, r, {'b' if bias else ''}{given})", weights,
        outputs=", ".join(f"double[] {o}" for o in outputs.split(", ")), runtime="float32", low=-0.5, high=0.6,
        step=step, single=False, checked=False, **options)  # fmt: skip


for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
    state = ", double[1,2,3] i"
    rows(op, gates, "plain", bias=False)
    rows(op, gates, "state", given=", , i", more=state)
    rows(op, gates, "reverse", 'direction = "reverse"')
    rows(op, gates, "both-lengths", 'direction = "bidirectional"', directions=2, given=", l", weights=LENGTHS)

rows(
    "RNN",
    1,
    "clip",
    step=0.002,
    how='activations = ["Affine"], activation_alpha = [0.7], activation_beta = [0.1], clip = 0.8',
    second=False,
)
rows("GRU", 3, "linear-before-reset", "linear_before_reset = 1")
rows("LSTM", 4, "peepholes", given=", , i, j, p", more=", double[1,2,3] i, double[1,2,3] j, double[1,9] p")
rows("LSTM", 4, "input-forget", 'input_forget = 1, activations = ["HardSigmoid", "ScaledTanh", "Softsign"], '
     "activation_alpha = [0.25, 0.8], activation_beta = [0.45, 1.1]")  # fmt: skip
