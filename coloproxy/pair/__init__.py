# SPDX-License-Identifier: Apache-2.0
"""What a pair is: its TOML file, checked, and what follows from it."""
