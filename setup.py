"""The one native file; without a C compiler the package installs without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "onnxprune.kernels._entry",
            ["onnxprune/kernels/_entry.c"],
            depends=["onnxprune/kernels/_tables.h"],  # which onnxprune/kernels/header.py writes
            optional=True,
        )
    ]
)
