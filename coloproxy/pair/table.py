# SPDX-License-Identifier: Apache-2.0
"""What all tables of a pair's file have in common, and the marks of their keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

Problem = tuple[tuple[str | int, ...], str]
"""Where, from the model on, and what is wrong."""


@dataclass(frozen=True, slots=True)
class PerHost:
    """Marks a key whose value may be given for each host: `{ primary = ..., secondary = ... }`."""


@dataclass(frozen=True, slots=True)
class Example:
    """How a key without a default is written, in TOML. `shown`: needed in the commonest set-up."""

    text: str
    shown: bool = False


class Table(BaseModel):
    """A table of the file. Unknown keys are errors, nothing is converted, nothing changes later."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, validate_default=False)

    def problems(self) -> Iterator[Problem]:
        """What is wrong among keys that are right for themselves."""
        return iter(())

    def given(self, key: str) -> bool:
        """Whether the file has that key."""
        return key in self.model_fields_set

    def _only_with(self, keys: tuple[str, ...], condition: str) -> Iterator[Problem]:
        """A key that would have no effect. Its default may stand there: `show-defaults` writes them all."""
        for key in keys:
            if self.given(key) and getattr(self, key) != type(self).model_fields[key].default:
                yield (key,), f"is only used with {condition}"
