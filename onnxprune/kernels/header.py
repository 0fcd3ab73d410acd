"""The headers of the C part: `_tables.h` has the numbers of tables.py, the names of operators and the types of ONNX,
`_steps_tables.h` the numbers of steps/tables.py.

`python -m onnxprune.kernels.header` writes them; a test compares the files with what would be written. A library that
was built from others is refused when it is loaded, by the stamps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from onnx import TensorProto, helper

from onnxprune.kernels import tables
from onnxprune.kernels.names import ACTIVATIONS, DOMAIN, PRODUCTS, RESULTS, STORAGES, VALUES
from onnxprune.kernels.steps.tables import numbers

PLACE = Path(__file__).parent / "_tables.h"
STEPS_PLACE = Path(__file__).parent / "_steps_tables.h"
ONNX_TYPES = ("FLOAT", "UINT8", "INT8", "UINT16", "INT32")  # that inputs have besides those of values


def stamp() -> str:
    """What tells one header from another: 16 hexadecimal digits."""
    return hashlib.sha256(_body().encode()).hexdigest()[:16]


def text() -> str:
    """The whole header."""
    return (
        "/* Written by `python -m onnxprune.kernels.header` from tables.py; edit that. */\n"
        f'#define STAMP "{stamp()}"\n{_body()}'
    )


def steps_stamp() -> str:
    """As `stamp`, of the header of the kernels of training."""
    return hashlib.sha256(_steps_body().encode()).hexdigest()[:16]


def steps_text() -> str:
    """The whole header of the kernels of training."""
    return (
        "/* Written by `python -m onnxprune.kernels.header` from steps/tables.py; edit that. */\n"
        f'#define STEPS_STAMP "{steps_stamp()}"\n{_steps_body()}'
    )


def _steps_body() -> str:
    return "".join(f"#define {name} {_number(value)}\n" for name, value in numbers().items())


def _body() -> str:
    numbers = [(name, value) for name, value in vars(tables).items() if name.isupper() and isinstance(value, int)]
    types = [(f"ONNX_{name}", int(TensorProto.DataType.Value(name))) for name in ONNX_TYPES]
    lists = {"KINDS": PRODUCTS, "FORMATS": STORAGES, "ACTIVATIONS": ACTIVATIONS, "RESULTS": tuple(RESULTS)}
    numbers += types + [(f"N_{name}", len(names)) for name, names in lists.items()] + [("N_CODES", len(VALUES))]
    lines = [f"#define {name} {_number(value)}" for name, value in numbers]
    lines += [f'#define DOMAIN_NAME "{DOMAIN}"']
    lines += [_array("const char *const", name, (f'"{n}"' for n in names)) for name, names in lists.items()]
    codes = (str(int(helper.np_dtype_to_tensor_dtype(dtype))) for dtype in VALUES.values())
    faults = (f'"{tables.FAULTS[i]}"'.replace("{}", '%" PRId64 "') for i in range(tables.FAULT_KINDS))
    lines += [_array("const int", "CODES", codes), _array("const char *const", "FAULTS", faults)]
    return "\n".join(lines) + "\n"


def _number(value: int) -> str:
    if -(2**31) <= value < 2**31:
        return str(value) if value >= 0 else f"({value})"
    return f"INT64_C({value})"


def _array(kind: str, name: str, items: Iterable[str]) -> str:
    return f"static {kind} {name}[] = {{\n" + "".join(f"    {item},\n" for item in items) + "};"


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")
    STEPS_PLACE.write_text(steps_text(), encoding="utf-8")
