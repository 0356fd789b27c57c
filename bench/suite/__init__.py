# SPDX-License-Identifier: Apache-2.0
"""What the programs in bench/ share: the machine's facts, runs of `coloproxy bench`, goals, plots, tables."""
