# SPDX-License-Identifier: Apache-2.0
"""`coloproxy run`: one process beside the VMs of one host."""
