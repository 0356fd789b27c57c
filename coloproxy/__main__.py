# SPDX-License-Identifier: Apache-2.0
"""`python -m coloproxy` is the `coloproxy` command."""

from __future__ import annotations

from coloproxy.cli import main

if __name__ == "__main__":
    main()
