# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node`: takes a VM from an image on disk to a protected pair, and keeps it so. docs/node.md.

facts      what a node knows when it decides
machine    the table: in this state, on this event, if that holds; nothing else decides
node       plays it
work       its long actions: QEMU, disks
plane      the data path, in the role of the moment; planes: tap_plane, filter_plane
setting    the pair's file, as one of the two nodes needs it
record     what is on disk
adverts    what the heartbeat carries
told, view what a node tells, and how it is shown
"""
