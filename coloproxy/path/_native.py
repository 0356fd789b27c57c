# SPDX-License-Identifier: Apache-2.0
"""The one module that touches the ffi and lib of the data path; everything else uses the friendly classes."""

from __future__ import annotations

import errno
import os

from coloproxy import errors

try:
    from coloproxy._path import ffi, lib
except ImportError as error:  # pragma: no cover - a broken installation
    raise errors.NativeError(
        f"coloproxy's data path is not built ({error}); install the package with `pip install .`"
    ) from error

__all__ = ["check", "ffi", "lib"]

# enum colo_error of csrc/coloproxy.h, whose names belong to the core's own binding
_NOMEM, _MISUSE, _LIMIT, _SYSTEM = -1, -2, -3, -4


def check(result: int, call: str) -> int:
    """Passes a count or 0 through; turns an ``enum colo_error`` into the exception that belongs to it.

    Raises:
        MisuseError: COLO_ERR_MISUSE.
        LimitError: COLO_ERR_LIMIT.
        NativeError: any other failure; a failed system call with its errno.
    """
    if result >= 0:
        return result
    if result == _MISUSE:
        raise errors.MisuseError(f"{call}: its state or an argument does not allow it")
    if result == _LIMIT:
        raise errors.LimitError(f"{call}: a limit is reached")
    if result == _SYSTEM:
        code = ffi.errno
        raise errors.NativeError(f"{call}: {errno.errorcode.get(code, code)}: {os.strerror(code)}")
    raise errors.NativeError(f"{call}: " + ("no memory" if result == _NOMEM else f"error {result}"))
