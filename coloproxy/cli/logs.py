# SPDX-License-Identifier: Apache-2.0
"""Logging of the commands: one line a message, never blocking the loop."""

from __future__ import annotations

import logging

from coloproxy.lines import LineHandler, LineWriter


class _Formatter(logging.Formatter):
    """`12:34:56.789 coloproxy: warning: text`; the level is left out where it says nothing."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = f"{self.formatTime(record, '%H:%M:%S')}.{int(record.msecs):03d}"
        level = f"{record.levelname.lower()}: " if record.levelno != logging.INFO else ""
        text = f"{stamp} coloproxy: {level}{record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def set_up_logging(writer: LineWriter, *, verbose: bool, quiet: bool) -> None:
    handler = LineHandler(writer)
    handler.setFormatter(_Formatter())
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # qemu.qmp logs what it raises as well; asyncio's debug lines say nothing of ours.
    logging.getLogger("qemu").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
