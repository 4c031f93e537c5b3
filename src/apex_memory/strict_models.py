"""Models of foreign input that has no other fields than the model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class StrictModel(BaseModel):
    """Refuses the first unknown field by name: pydantic would keep an error, about 2 kB, for each of any number."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown_field(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {name: given for name, given in value.items() if name in cls.model_fields}
        first = next((name for name in value if name not in known), None)
        return known if first is None else {**known, first: value[first]}
