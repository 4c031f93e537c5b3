"""Backups: a consistent copy of PostgreSQL, from which an empty installation is restored.

PostgreSQL is the authority and holds all that the other stores hold, vectors included, so it is all that a backup
holds. `folder` is the form on disk, `writing` makes one and `restoring` loads one. ADR 017 says why.
"""

from apex_memory.backup.folder import Backup, TableCopy, read_backup, verify_backup
from apex_memory.backup.restoring import RestoreResult, restore
from apex_memory.backup.writing import Progress, back_up

__all__ = [
    "Backup",
    "Progress",
    "RestoreResult",
    "TableCopy",
    "back_up",
    "read_backup",
    "restore",
    "verify_backup",
]
