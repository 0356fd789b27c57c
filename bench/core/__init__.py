# SPDX-License-Identifier: Apache-2.0
"""The comparator alone, in memory: workload.c and the core compiled together, and what Python does with them."""
