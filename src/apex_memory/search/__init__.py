"""The read path: search, single documents, entities and lists of documents.

Each call reads one snapshot of PostgreSQL first. A hit of the graph or the vector store is kept only
if its document points at the hit's stage in that snapshot, so a reader never sees a part of a version
or a mix of two.
"""

from apex_memory.search.answers import AnswerCache
from apex_memory.search.fusion import Weights
from apex_memory.search.results import (
    AttributeValue,
    Citation,
    Context,
    DocumentPage,
    DocumentSummary,
    DocumentVersion,
    DocumentView,
    EntityView,
    Hit,
    Provenance,
    QueryEntities,
    RecognisedEntity,
    Relation,
    SearchResult,
    SpokenTurn,
)
from apex_memory.search.scope import Scope
from apex_memory.search.service import Search

__all__ = [
    "AnswerCache",
    "AttributeValue",
    "Citation",
    "Context",
    "DocumentPage",
    "DocumentSummary",
    "DocumentVersion",
    "DocumentView",
    "EntityView",
    "Hit",
    "Provenance",
    "QueryEntities",
    "RecognisedEntity",
    "Relation",
    "Scope",
    "Search",
    "SearchResult",
    "SpokenTurn",
    "Weights",
]
