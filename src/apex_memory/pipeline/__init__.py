"""Turns an event into its manifest: parse, clean, chunk, extract, embed. The same for every source.

The result depends only on the event, the source's `document` and the versions here. So a manifest's id
derives from the event and `Pipeline.pipeline`, and preparing an event again gives the same manifest.
"""

from apex_memory.pipeline.embedders.base import Embedder
from apex_memory.pipeline.embedders.selection import open_embedder
from apex_memory.pipeline.entities import canonical
from apex_memory.pipeline.extract import QueryEntities, QueryReader, extract_query
from apex_memory.pipeline.file_limits import MAX_CHARACTERS, ReaderLimits
from apex_memory.pipeline.prepare import VERSION, Pipeline, open_pipeline
from apex_memory.pipeline.reuse import embedded_text

__all__ = [
    "MAX_CHARACTERS",
    "VERSION",
    "Embedder",
    "Pipeline",
    "QueryEntities",
    "QueryReader",
    "ReaderLimits",
    "canonical",
    "embedded_text",
    "extract_query",
    "open_embedder",
    "open_pipeline",
]
