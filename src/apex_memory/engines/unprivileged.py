"""A place and a user for PostgreSQL when Apex runs as root, which PostgreSQL refuses to."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from apex_memory.errors import Misconfigured

# Not below /var/tmp: systems clean that, file by file, after 30 days.
OUTSIDE = Path("/var/lib/apex-memory")


def unprivileged_user() -> int | None:
    """The user id to run as when we are root; None when we are not."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return 65534


def reachable(folder: Path) -> bool:
    """Return whether every user may pass through all existing folders above `folder` and into it."""
    ancestors = [folder, *folder.parents]
    return all(path.stat().st_mode & 0o001 for path in ancestors if path.exists())


def claim_folder(folder: Path, user: int) -> Path:
    """Make `folder` a folder that `user` owns and can reach. Return its real path.

    When a folder above it is closed to others (a home folder, a private temporary folder), the data goes
    below `/var/lib/apex-memory` and `folder` becomes a link to it, which the next start follows.
    """
    if not folder.is_symlink() and reachable(folder.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    elif folder.is_dir() and not folder.is_symlink():
        raise Misconfigured(
            f"documents: user {user}, which PostgreSQL runs as, can no longer reach {folder}",
            remedy=f"allow all users to pass through the folders above it (chmod o+x), or move it to {OUTSIDE} and leave a link",
        )
    elif not folder.is_symlink():
        key = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        place = _open_folder(OUTSIDE / key) / folder.name
        if place.exists():
            _set_aside(place)
        place.mkdir(mode=0o700)
        folder.symlink_to(place)
    place = folder.resolve()
    if not place.is_dir():
        raise Misconfigured(
            f"documents: {folder} points to {place}, which does not exist",
            remedy=f"restore {place} from its backup, or remove the link to start empty",
        )
    os.chown(place, user, user)
    return place


def runnable(binaries: Path, user: int, release: str) -> Path:
    """Return a copy of `binaries` (a `bin` folder of a `pginstall` package) that `user` can run, or `binaries` itself.

    The copy keeps the package's layout: the programs find their libraries relative to themselves.
    """
    if _runs(binaries, user):
        return binaries
    package = binaries.parent.parent
    home = _open_folder(OUTSIDE) / f"postgres-{release}"
    if not home.exists():
        draft = home.with_name(f".{home.name}-{os.getpid()}")
        shutil.copytree(package, draft / package.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, draft / libraries.name, symlinks=True)
        draft.replace(home)
    copied = home / package.name / binaries.relative_to(package)
    if not _runs(copied, user):
        raise Misconfigured(
            f"documents: user {user} can run neither {binaries} nor {copied}",
            remedy="run Apex as an ordinary user, or set APEX_DOCUMENTS to a PostgreSQL server",
        )
    return copied


def _runs(binaries: Path, user: int) -> bool:
    try:
        done = subprocess.run(
            [binaries / "postgres", "--version"],
            user=user,
            group=user,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=10,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _open_folder(folder: Path) -> Path:
    """Create a folder that other users can pass through but not list. Return it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    return folder


def _set_aside(place: Path) -> None:
    """Rename data whose data folder was deleted, replacing earlier data that was set aside."""
    former = place.with_name(f"{place.name}.old")
    if former.exists():
        shutil.rmtree(former)
    place.rename(former)
