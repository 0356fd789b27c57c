# SPDX-License-Identifier: Apache-2.0
"""The one module that touches the data path's ffi and lib; everything else uses the friendly classes."""

from __future__ import annotations

from typing import Any

from coloproxy import errors
from coloproxy._native import check  # the error numbers are the core's
from coloproxy._native import lib as _core

try:
    from coloproxy._path import ffi, lib
except ImportError as error:  # pragma: no cover - a broken installation
    raise errors.NativeError(
        f"coloproxy's data path is not built ({error}); install the package with `pip install .`"
    ) from error

__all__ = ["check", "check_table", "ffi", "lib"]


def check_table(result: int, why: Any, call: str) -> None:
    """As check, of a call that imports connections.

    Raises:
        TableError: they make no sense, there is no room for them, or it is not the time for it.
        NativeError: any other failure.
    """
    if result in (_core.COLO_ERR_MISUSE, _core.COLO_ERR_LIMIT):
        raise errors.TableError(ffi.string(why[0]).decode())
    check(result, call)
