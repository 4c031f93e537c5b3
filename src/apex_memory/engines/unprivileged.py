"""A place and a user id for PostgreSQL when Apex runs as root, which PostgreSQL refuses to.

The user id belongs to nobody else: no account has it. So no other process can read the cluster or signal the server.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import random
import shutil
import stat
import subprocess
from pathlib import Path

from apex_memory.errors import Misconfigured

# Not below /var/tmp: systems clean that, file by file, after 30 days.
OUTSIDE = Path("/var/lib/apex-memory")

UIDS = range(60_706, 61_184)
"""User ids for PostgreSQL; each is a group id too.

No distribution assigns them, systemd's list of ids (UIDS-GIDS) calls them unused, and they are below 65,536, so that a
container with a user namespace has them.
"""

LEVELS = 16  # of folders in a cluster, which PostgreSQL makes four of
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def claim_user(place: Path) -> int:
    """Return the user id of the cluster in `place`, and give it all of the cluster that does not belong to it yet.

    The owner of the cluster is the record of the user id. A new one is drawn for a new cluster, for that of an older
    release, which belongs to `nobody`, for one that was restored as root, and when an account has the id meanwhile.
    `place` becomes root's: only processes of the new group pass through it.
    """
    os.chown(place, 0, 0, follow_symlinks=False)  # from here on nobody else changes what is in it
    cluster = place / "data"
    owner = _owner_of_folder(cluster)
    if owner is not None and _is_free(owner):
        user = owner
    else:
        user = _draw_user()
        if owner is not None:
            give_folder(cluster, user)
    os.chown(place, 0, user)
    place.chmod(0o710)
    return user


def initdb_user() -> int:
    """Return the user id for `initdb`, which demands that an account has it: `nobody`, or another one but root."""
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        accounts = [account.pw_uid for account in pwd.getpwall() if account.pw_uid]
    return accounts[0] if accounts else 65534


def give_folder(folder: Path, user: int) -> None:
    """Change the owner of a cluster to `user`, as user and group, without following links.

    Only what belongs to `initdb_user`, to a user id of `UIDS`, or to root alone changes: a hard link that another user
    put there to a file of root stays root's. Each folder is closed to its former owner before its content is read.
    When this is interrupted, `folder` belongs to root, and the next start begins again.
    """
    descriptor = os.open(folder, FOLDER)
    try:
        os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, 0o700)
        _give_content(descriptor, user, initdb_user(), levels=LEVELS)
        os.fchown(descriptor, user, user)
    finally:
        os.close(descriptor)


def _give_content(folder: int, user: int, former: int, *, levels: int) -> None:
    """Change the owner of everything in an open folder that is closed to its former owner."""
    if not levels:
        raise Misconfigured(
            f"documents: PostgreSQL's data have more than {LEVELS} levels of folders",
            remedy="remove the folders that PostgreSQL did not make, or restore the data from a backup",
        )
    for name in os.listdir(folder):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not _may_give(status, former):
            continue
        if stat.S_ISDIR(status.st_mode):
            inner = os.open(name, FOLDER, dir_fd=folder)
            try:
                os.fchown(inner, user, user)
                os.fchmod(inner, stat.S_IMODE(status.st_mode) & 0o750)
                _give_content(inner, user, former, levels=levels - 1)
            finally:
                os.close(inner)
        else:
            os.chown(name, user, user, dir_fd=folder, follow_symlinks=False)


def _may_give(status: os.stat_result, former: int) -> bool:
    """Return whether a file or folder of a cluster may change its owner."""
    if status.st_uid == 0:
        return stat.S_ISDIR(status.st_mode) or status.st_nlink == 1
    return status.st_uid == former or status.st_uid in UIDS


def _owner_of_folder(folder: Path) -> int | None:
    """Return the user id that owns a folder; None if there is no such folder. Raises `Misconfigured` for a link."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        raise Misconfigured(
            f"documents: {folder} is not a folder",
            remedy=f"move the data back there; to keep them elsewhere, make {folder.parent} a link to their parent folder",
        )
    return status.st_uid


def _draw_user() -> int:
    """Return a user id of `UIDS` that no account, group or process has."""
    # Drawn at random, so that two data folders of one machine hardly ever have the same.
    used = _running_users()
    for user in random.SystemRandom().sample(UIDS, len(UIDS)):
        if user not in used and _is_free(user):
            return user
    raise Misconfigured(
        f"documents: every user id from {UIDS.start} to {UIDS.stop - 1} has an account or a process",
        remedy="run Apex as an ordinary user, or set APEX_DOCUMENTS to a PostgreSQL server",
    )


def _is_free(user: int) -> bool:
    """Return whether a user id is one of `UIDS` that no account and no group has."""
    if user not in UIDS:
        return False
    try:
        pwd.getpwuid(user)
    except KeyError:
        pass
    else:
        return False
    try:
        grp.getgrgid(user)
    except KeyError:
        return True
    return False


def _running_users() -> set[int]:
    """Return the user ids of all processes; empty on a system without /proc."""
    users = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            users.add(process.stat().st_uid)
        except OSError:
            continue  # it ended meanwhile
    return users


def reachable(folder: Path) -> bool:
    """Return whether every user may pass through all existing folders above `folder` and into it."""
    ancestors = [folder, *folder.parents]
    return all(path.stat().st_mode & 0o001 for path in ancestors if path.exists())


def claim_folder(folder: Path) -> Path:
    """Make `folder` a folder that every user id can be let into. Return its real path.

    When a folder above it is closed to others (a home folder, a private temporary folder), the data goes
    below `/var/lib/apex-memory` and `folder` becomes a link to it, which the next start follows.
    """
    if not folder.is_symlink() and reachable(folder.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    elif folder.is_dir() and not folder.is_symlink():
        raise Misconfigured(
            f"documents: PostgreSQL, which does not run as root, can no longer reach {folder}",
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
            timeout=60,
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
