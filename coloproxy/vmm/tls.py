# SPDX-License-Identifier: Apache-2.0
"""TLS for what the two QEMUs send each other: the VM's state (migration) and the disks (NBD).

QEMU takes a pre-shared key from a directory, by an object of its own; so a QEMU that runs already can be given one.
Each side proves that it has the key. Measured with QEMU 7.2: COLO, and its failover with yank, work over it.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from pathlib import Path
from typing import Final, Literal

from coloproxy.errors import QmpError, VmmError

from .detached import Account
from .files import open_plain
from .process import QemuProcess

End = Literal["server", "client"]

USER: Final = "coloproxy"
"""TLS's name for the key; not a user of the host."""

# ffdhe2048 of RFC 7919, appendix A.1, as PKCS#3. Without a file QEMU 7.2 makes parameters of its own whenever a server
# end is made, which takes up to seconds.
_DH_PARAMETERS: Final = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


class Credentials:
    """A key for the QEMUs of one pair, in a directory that QEMU can read.

    Args:
        directory: made, if it isn't there; mode 0700.
        psk: the pair's key; QEMU's is derived from it.
        pair: the pair's name.
        user: whom QEMU runs as; None: as we do.
    """

    def __init__(self, directory: Path, psk: bytes, pair: str, user: str | None = None) -> None:
        self._directory = directory.absolute()
        self._key = hmac.digest(psk, b"coloproxy qemu 1\0" + pair.encode(), "sha256")
        self._user = user

    async def offer(self, qemu: QemuProcess, end: End) -> str:
        """Makes QEMU know the key as it is now; the object's name, for `tls-creds`. Idempotent.

        Raises QmpError, VmmError.
        """
        name = f"tls-{end}"
        self._write()
        with contextlib.suppress(QmpError):  # the operator may have changed the key since
            await qemu.execute("object-del", {"id": name})
        arguments: dict[str, object] = {
            "qom-type": "tls-creds-psk",
            "id": name,
            "dir": str(self._directory),
            "endpoint": end,
        }
        if end == "client":
            arguments["username"] = USER  # a server takes whatever name is in its file
        await qemu.execute("object-add", arguments)
        return name

    def _write(self) -> None:
        account = None if self._user is None else Account.named(self._user)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, text in (("keys.psk", f"{USER}:{self._key.hex()}\n"), ("dh-params.pem", _DH_PARAMETERS)):
                path = self._directory / name
                draft = path.with_suffix(".new")
                draft.unlink(missing_ok=True)
                with os.fdopen(open_plain(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
                    if account is not None:
                        os.fchown(file.fileno(), account.uid, account.gid)
                    file.write(text)
                draft.replace(path)
            if account is not None:
                os.chown(self._directory, account.uid, account.gid, follow_symlinks=False)
        except OSError as error:
            raise VmmError(f"{self._directory}: the key for QEMU can't be written: {error.strerror}") from error
