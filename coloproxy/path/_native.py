# SPDX-License-Identifier: Apache-2.0
"""The one module that touches the data path's ffi and lib; everything else uses the friendly classes."""

from __future__ import annotations

from coloproxy import errors
from coloproxy._native import check  # the error numbers are the core's

try:
    from coloproxy._path import ffi, lib
except ImportError as error:  # pragma: no cover - a broken installation
    raise errors.NativeError(
        f"coloproxy's data path is not built ({error}); install the package with `pip install .`"
    ) from error

__all__ = ["check", "ffi", "lib"]
