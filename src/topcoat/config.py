"""Config, the base of every settings type: frozen, unknown keys refused, the prose under each field kept.

The docstring under a field becomes its description: `--help`, the reference page and the JSON Schema all read it there.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings of one choice. Values never change after construction; `model_copy(update=...)` makes another."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
