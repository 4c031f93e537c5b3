"""The read path: questions, documents, entities, from one snapshot of PostgreSQL and what the other stores add.

The snapshot comes first. Every hit of the graph and the vectors is dropped whose document does not
point at its stage there, so a reader never sees part of a version, nor a mix of two.
"""

from apex_memory.search.answers import (
    Answer,
    DocumentRow,
    DocumentView,
    EntityView,
    Hit,
    Page,
    Provenance,
    QueryEntities,
    Recognised,
    Relation,
    Said,
    Version,
)
from apex_memory.search.fusion import Weights
from apex_memory.search.service import Search

__all__ = [
    "Answer",
    "DocumentRow",
    "DocumentView",
    "EntityView",
    "Hit",
    "Page",
    "Provenance",
    "QueryEntities",
    "Recognised",
    "Relation",
    "Said",
    "Search",
    "Version",
    "Weights",
]
