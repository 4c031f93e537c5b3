"""What each page takes for granted, or says in its text only: a running stack, sources that are connected, an event's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CLONED = (
    'git clone --quiet "$REPOSITORY" apex-memory',
    "cd apex-memory",
    "python3 -m venv --without-pip .venv",
    ". .venv/bin/activate",
    "pip install '.[embedded]'",
)
"""What the quickstart types at its beginning; the other pages begin where Apex is installed."""
UP = ("apex up --detach",)
FILLED = (*UP, "apex ingest examples/documents")
AN_EVENT = """EVENT=$(apex events --json | python -c 'import json, sys; print(json.load(sys.stdin)["events"][0]["id"])')"""
VENDORS = (
    "apex simulate --settings simulated.toml --shipments 4",
    "export APEX_SETTINGS_FILE=$PWD/simulated.toml",
    *UP,
)
CANDIDATE = "python -m apex_memory.flows"
"""Typed in a second terminal, whose settings are those of the stack's worker, with the build of the page."""
READY = "timeout 300 bash -c 'until apex doctor > /dev/null; do sleep 1; done'"


@dataclass(frozen=True, slots=True)
class Given:
    """What is typed before the first command of a page, before others of it, and in the place of what stands there."""

    before: Sequence[str] = UP
    before_command: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By the beginning of the command."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """Texts for those of the page: ids that exist here."""
    cloned: bool = True
    """Whether Apex is installed already."""
    build: str = ""
    """The build of the workers that are typed as `python -m apex_memory.flows`."""


GIVEN = {
    "README.md": Given(before=()),
    "docs/quickstart.md": Given(before=(), cloned=False),
    "docs/howto/backup.md": Given(
        before=(*FILLED, "echo a-key | apex secrets set frontapp signing_keys --list"),
        before_command={
            "cp /safe/secret.key": ("cp .apex/secret.key /safe/",),
            "apex rebuild graph": (READY,),
        },
    ),
    "docs/howto/deploy.md": Given(before=(*VENDORS, CANDIDATE), build="0.3.0-5f1c09aa2b"),
    "docs/howto/graph-in-postgresql.md": Given(before=()),
    "docs/howto/migrate.md": Given(
        before=(*VENDORS, CANDIDATE),
        # By then the sources' rollouts have ended.
        before_command={
            "apex rollout start build": (
                "apex rollout stop turvo --keep --reason done",
                "apex rollout stop plaid --keep --reason done",
            )
        },
        build="0.3.0-new",
        instead={"--build NEW": "--build 0.3.0-new"},
    ),
    "docs/howto/mirror.md": Given(before=VENDORS),
    "docs/howto/rollout.md": Given(before=VENDORS),
    "docs/howto/shadow.md": Given(before=VENDORS, build="0.2.0-3fa2c91d07"),
    "docs/howto/slos.md": Given(before=()),
    "docs/howto/temporal-away.md": Given(
        before=(*FILLED, AN_EVENT, "export APEX_API_KEY=$(cat .apex/admin.key)"),
        instead={"0b6c3a7e": '"$EVENT"'},
    ),
    "docs/howto/tls.md": Given(before=()),
    "docs/howto/tracing.md": Given(
        before=(),
        before_command={"apex logs  ": ("apex ingest examples/documents", AN_EVENT)},
        instead={"0b6c3a7e": '"$EVENT"'},
    ),
    "docs/howto/sources/README.md": Given(
        before=(*VENDORS, "echo secret > plaid-secret.txt"),
        before_command={"apex simulate": ("apex stop", "unset APEX_SETTINGS_FILE")},
    ),
    "docs/howto/sources/sonar.md": Given(before=()),
    "docs/runbooks": Given(before=VENDORS),
}


def given_for(page: str) -> Given:
    """Return what a page takes for granted: a running stack where nothing else is noted."""
    return GIVEN.get(page, Given())
