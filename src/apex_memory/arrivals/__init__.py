"""What is fetched, not sent: pulls page by page, files, readings of streams and their windows.

Everything a page brings is committed in one transaction with its cursor. `states` is what operators see and decide,
`credentials` and `tokens` what vendors are asked with.
"""

from apex_memory.arrivals.backfills import Backfills
from apex_memory.arrivals.credentials import Credentials
from apex_memory.arrivals.files import Files
from apex_memory.arrivals.pulls import Pulled, Pulls
from apex_memory.arrivals.readings import Readings
from apex_memory.arrivals.states import SourceStates
from apex_memory.arrivals.tokens import VaultTokens

__all__ = [
    "Backfills",
    "Credentials",
    "Files",
    "Pulled",
    "Pulls",
    "Readings",
    "SourceStates",
    "VaultTokens",
]
