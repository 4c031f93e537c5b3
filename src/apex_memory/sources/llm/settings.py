"""The settings of the source `llm`."""

from __future__ import annotations

from pydantic import Field

from apex_memory.sources.base import SourceSettings


class LLMSettings(SourceSettings):
    """`[sources.llm]`"""

    include_thinking: bool = Field(
        default=False, description="Whether a model's thinking is part of the text."
    )
    include_system: bool = Field(
        default=False, description="Whether system prompts and hidden context are part of the text."
    )
