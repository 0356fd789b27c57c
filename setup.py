# SPDX-License-Identifier: Apache-2.0
"""Builds the native parts; all metadata is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    cffi_modules=[
        "coloproxy/_cffi_build.py:ffibuilder",
        "coloproxy/_path_build.py:ffibuilder",
        "coloproxy/_traffic_build.py:ffibuilder",
    ],
    ext_modules=[
        # Not a Python module: a preload library for test beds without KVM (coloproxy/testbed/tcg.py). Built here
        # so that it lies in the package, for the interpreter's own platform.
        Extension(
            "coloproxy._tcg_colo_shim",
            sources=["csrc/tcg_colo_shim.c"],
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
            libraries=["dl", "pthread"],
        ),
    ],
)
