# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: libFuzzer targets for the C entry points (fuzz_*.c), their seeds, and the same schedules for the model."""
