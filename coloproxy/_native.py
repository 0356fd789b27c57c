# SPDX-License-Identifier: Apache-2.0
"""The one module that touches the C core's ffi and lib; everything else uses the friendly classes."""

from __future__ import annotations

import errno
import os
from typing import Any

from coloproxy import errors

try:
    from coloproxy._core import ffi, lib
except ImportError as error:  # pragma: no cover - a broken installation
    raise errors.NativeError(
        f"coloproxy's C core is not built ({error}); install the package with `pip install .`"
    ) from error

__all__ = ["check", "enum_name", "ffi", "lib"]


def enum_name(function: Any, value: int) -> str:
    """The C core's own name of an enum's value, through its naming function (``lib.colo_cause_name`` ...)."""
    return str(ffi.string(function(value)).decode())


def check(result: int, call: str) -> int:
    """Passes a count or 0 through; turns an ``enum colo_error`` into the exception that belongs to it.

    Raises:
        MisuseError: COLO_ERR_MISUSE.
        LimitError: COLO_ERR_LIMIT.
        NativeError: any other failure; a failed system call with its errno.
    """
    if result >= 0:
        return result
    text = f"{call}: {enum_name(lib.colo_error_name, result)}"
    if result == lib.COLO_ERR_MISUSE:
        raise errors.MisuseError(text)
    if result == lib.COLO_ERR_LIMIT:
        raise errors.LimitError(text)
    if result == lib.COLO_ERR_SYSTEM:
        code = ffi.errno
        text += f": {errno.errorcode.get(code, code)}: {os.strerror(code)}"
    raise errors.NativeError(text)
