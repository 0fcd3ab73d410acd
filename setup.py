"""The one native file; without a C compiler the package installs without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "onnxprune.ops._entry",
            ["onnxprune/ops/_entry.c"],
            depends=["onnxprune/ops/_tables.h"],  # which onnxprune/ops/header.py writes
            optional=True,
        )
    ]
)
