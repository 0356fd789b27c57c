# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node`: takes a VM from an image on disk to a protected pair, and keeps it so. docs/node.md."""
