"""What a refused file is told: an error of one line, with what was expected, what was found, and the way out.

In go texts out of files, of any length and with any bytes in them; out comes one printable line.
"""

from __future__ import annotations

from onnx import NodeProto

from onnxprune.errors import ModelFileError

AGAIN = "download or export the model again"
REPAIR = "repair what exported it"


def one_line(error: BaseException, most: int = 300) -> str:
    """What an exception says, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def fault(where: object, expected: str, found: object, way: str) -> ModelFileError:
    """The error that a file is refused with, to be raised: what was expected, what was found, and the way out.

    where: the file, or what else the model is; found: a text, a value, or the exception that came instead.
    """
    if isinstance(found, BaseException):
        found = " ".join((getattr(found, "strerror", None) or str(found)).split())
    expected, found = (text if len(text) <= 400 else f"{text[:396]} ..." for text in (expected, str(found)))
    message = f"{where}: expected {expected}, found {found}; {way}"
    return ModelFileError("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def show(name: object) -> str:
    """A name out of a file, quoted, not too long."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def label(node: NodeProto) -> str:
    """Operator and quoted name of a node, for messages: `Conv 'stem'`."""
    return f"{show(node.op_type)[1:-1]} {show(node.name)}"
