"""From an event to its manifest: parse, clean, chunk, extract, embed. The same for every source.

What comes out depends on the event, the source's `document` and the versions here alone; so a
manifest's id derives from the event and `Pipeline.pipeline`, and making it again gives the same one.
"""

from apex_memory.pipeline.embed import Embedder, open_embedder
from apex_memory.pipeline.extract import QueryEntities, extract_query
from apex_memory.pipeline.prepare import MAX_CHARACTERS, VERSION, Pipeline

__all__ = [
    "MAX_CHARACTERS",
    "VERSION",
    "Embedder",
    "Pipeline",
    "QueryEntities",
    "extract_query",
    "open_embedder",
]
