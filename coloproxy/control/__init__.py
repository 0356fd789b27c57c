# SPDX-License-Identifier: Apache-2.0
"""Control of a running coloproxy: the socket, and `coloproxy ctl`."""
