"""The one native library, whose tables onnxprune/kernels/header.py writes; without a C compiler the package installs
without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "onnxprune.kernels._entry",
            ["onnxprune/kernels/_entry.c"],
            depends=[f"onnxprune/kernels/{name}.h" for name in ("_ops", "_tables", "_steps", "_steps_tables")],
            optional=True,
        )
    ]
)
