"""Speakers: the refs by which the passages of a person are found, and which names in one document are one person's.

Two labels are one person's if they have the same address or user id, or if one is a short form of the other, of nobody else in
the document, and not of another address. Nobody is joined across documents here: there only an equal address counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

SPEAKER = "speaker"
"""Type of the refs by which the passages of a speaker are found. They exist in the vector store alone."""

ROLES = frozenset({"user", "assistant", "tool", "system", "thinking"})
"""First words of labels that are nobody's name."""

SHARED_MAILBOXES = frozenset(
    [
        "accounting",
        "accounts",
        "admin",
        "ap",
        "appointments",
        "ar",
        "billing",
        "bookings",
        "carriers",
        "claims",
        "contact",
        "customerservice",
        "dispatch",
        "dispatcher",
        "docs",
        "hello",
        "help",
        "info",
        "invoices",
        "mail",
        "mailer",
        "noreply",
        "office",
        "operations",
        "ops",
        "orders",
        "payables",
        "payroll",
        "pricing",
        "quotes",
        "rates",
        "receivables",
        "sales",
        "scheduling",
        "service",
        "shipping",
        "support",
        "team",
        "tracking",
        "traffic",
        "warehouse",
    ]
)
"""Names before the `@` of addresses that several people write from: an equal one says nothing about a person."""

_NAME_WORD = re.compile(r"[^\W\d_]{2,}")
_NAME_WORDS = 4  # of a name that are kept
_HANDLE = re.compile(r"[\w@][\w@.+-]{1,98}\w")
_MARK = re.compile(r"[\d@]")  # of a handle: a word without one may be anything
_SHORT_NAME = 3  # letters of a short first name
_LABELS_MAX = 100  # of one document that are compared; beyond them each has its own names only


def speaker_refs(name: str) -> list[str]:
    """Return a ref for each of the first words of a name that have two letters or more: a question names people by either."""
    return [f"{SPEAKER}:{word}" for word in _words(name)]


def handle_refs(text: str) -> list[str]:
    """Return a ref for each address or user id in a text (`kim@harbor.example`, `U04AB12`)."""
    handles = filter(_MARK.search, _HANDLE.findall(text.casefold()))
    return [f"{SPEAKER}:{handle}" for handle in dict.fromkeys(handles)]


@dataclass(frozen=True, slots=True)
class Label:
    """A speaker as a document names one: `Kim Lee <kim@harbor.example>`, `kim@harbor.example`, `Kim Lee`, `KL` or `U04AB12`."""

    words: tuple[str, ...]
    """The first words of the name; without a name those before the `@`."""
    handle: str
    """The address or user id, in small letters; empty if the label has none."""

    @classmethod
    def parse(cls, text: str) -> Label:
        name, handle = _split(text.strip())
        if not handle:
            name, handle = text, text.strip().casefold()
            if not (_HANDLE.fullmatch(handle) and _MARK.search(handle)):
                handle = ""
            if "@" in handle:
                name = ""
        return cls(_words(name) or _mailbox_words(handle), handle)

    @property
    def is_shared(self) -> bool:
        """Return whether several people may write from the address."""
        return not SHARED_MAILBOXES.isdisjoint(_mailbox_words(self.handle))

    @property
    def refs(self) -> list[str]:
        """The refs of a passage of this speaker: of the name, of an address that is one person's, and of the name in that."""
        words = dict.fromkeys(self.words)
        if self.handle and not self.is_shared:
            words |= dict.fromkeys((*_mailbox_words(self.handle), self.handle))
        return [f"{SPEAKER}:{word}" for word in words]

    def may_be(self, other: Label) -> bool:
        """Return whether the name is the other's or a shorter form of it: `kim`, `Lee`, `KL`, `klee`, `Kim Lee` of `Kimberly Lee`."""
        own, words = self.words, other.words
        if not own or len(own) > len(words):
            return False
        if set(own) <= set(words):
            return True
        if _is_short(own[0], words[0]) and own[1:] in ((), words[1:]):
            return True
        if len(own) > 1 or len(words) == 1:
            return False
        initials = "".join(word[0] for word in words)
        return own[0] in (initials, "".join(words), words[0][0] + words[-1])


def _split(label: str) -> tuple[str, str]:
    """Return name and handle of `Kim Lee <kim@harbor.example>`; no handle for any other form. Linear: names come from outside."""
    name, _, rest = label.rpartition("<")
    handle = rest.removesuffix(">").strip()
    if not rest.endswith(">") or not handle or ">" in handle or len(handle.split()) > 1:
        return label, ""
    return name.strip(), handle.casefold()


def _is_short(name: str, long: str) -> bool:
    """Return whether a first name is a short form of another: `Kim` of `Kimberly`, but not `Dan` of `Dana`."""
    return len(name) >= _SHORT_NAME and len(long) >= len(name) + 2 and long.startswith(name)


def _mailbox_words(handle: str) -> tuple[str, ...]:
    mailbox, at, _ = handle.partition("@")
    return _words(mailbox) if at else ()


@dataclass(slots=True)
class _Person:
    """Labels of one person in a document."""

    labels: list[Label] = field(default_factory=list)

    def may_have(self, label: Label) -> bool:
        """Return whether the label has no address, or the person none or the same."""
        handles = {own.handle for own in self.labels if own.handle}
        return not label.handle or not handles or label.handle in handles

    @property
    def refs(self) -> list[str]:
        refs: dict[str, None] = {}
        for label in self.labels:
            refs |= dict.fromkeys(label.refs)
        return list(refs)


def refs_by_label(texts: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """Return for each label of one document the refs of all names that this person goes by there; none for a role."""
    labels = {
        text: Label.parse(text) for text in texts if text.strip().partition(" ")[0] not in ROLES
    }
    if len(labels) > _LABELS_MAX:
        return {text: label.refs for text, label in labels.items()}
    persons: dict[Label, _Person] = {}
    # Whole names first: a short form then finds one person, not two forms of one.
    for label in sorted(
        dict.fromkeys(labels.values()), key=lambda label: (-len(label.words), not label.handle)
    ):
        person = _with_handle(label, persons) or _with_name(label, persons) or _Person()
        person.labels.append(label)
        persons[label] = person
    return {text: persons[label].refs for text, label in labels.items()}


def _with_handle(label: Label, persons: Mapping[Label, _Person]) -> _Person | None:
    if not label.handle or label.is_shared:
        return None
    return next((person for own, person in persons.items() if own.handle == label.handle), None)


def _with_name(label: Label, persons: Mapping[Label, _Person]) -> _Person | None:
    """Return the only person whose name the label may be; None if there is none, or if there are several."""
    fitting = {
        id(person): person
        for own, person in persons.items()
        if label.may_be(own) or own.may_be(label)
    }
    if len(fitting) != 1:
        return None
    [person] = fitting.values()
    return person if person.may_have(label) else None


def addresses_of(texts: Iterable[str], speakers: Sequence[str]) -> list[str]:
    """Return the refs of the addresses and user ids of those labels that hold most of the names in `speakers`, refs of a question.

    Messages of a thread are documents of their own. What a person writes there under another name has the same address.
    """
    named = set(speakers)
    best = 0
    handles: dict[str, None] = {}
    for label in map(Label.parse, texts):
        count = len(named.intersection(label.refs))
        if not label.handle or label.is_shared or not count or count < best:
            continue
        if count > best:
            best, handles = count, {}
        handles[f"{SPEAKER}:{label.handle}"] = None
    return [ref for ref in handles if ref not in named]


def _words(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_NAME_WORD.findall(name.casefold())[:_NAME_WORDS]))
