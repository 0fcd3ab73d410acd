"""The native parts: `_entry`, whose tables onnxprune/kernels/header.py writes (without a C compiler the package
installs without it), and, for wheels, the library of kernels that are compiled ahead of time.

ONNXPRUNE_LIBRARY=1 python -m build --wheel --no-isolation makes a wheel that carries the library of this system; it
needs an installed onnxprune's dependencies, and links with zig where the package ziglang is installed.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent


class WithLibrary(build_ext):
    """Compiles the library into the package as well, where ONNXPRUNE_LIBRARY asks for it."""

    def run(self) -> None:
        super().run()
        if os.environ.get("ONNXPRUNE_LIBRARY"):
            folder = HERE if self.inplace else Path(self.build_lib).resolve()
            out = folder / "onnxprune" / "kernels" / "lib"
            words = [sys.executable, "-m", "onnxprune", "export-library", "-q", "-o", str(out)]
            subprocess.run(words, check=True, cwd=HERE)


setup(
    cmdclass={"build_ext": WithLibrary},
    ext_modules=[
        Extension(
            "onnxprune.kernels._entry",
            ["onnxprune/kernels/_entry.c"],
            depends=[f"onnxprune/kernels/{name}.h" for name in ("_ops", "_tables", "_steps", "_steps_tables")],
            optional=True,
        )
    ],
)
