# SPDX-License-Identifier: Apache-2.0
"""The power switch of a host of the bed, for a fence agent or command of the other: `node_fence NAMESPACE MARK`.

Writes the file MARK, so that the bed's supervisor doesn't start the host's node again, and kills everything there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .node_host import HostProcesses


def main() -> None:
    """See the module."""
    namespace, mark = sys.argv[1:]
    Path(mark).touch()
    HostProcesses(namespace).kill_now()


if __name__ == "__main__":
    main()
