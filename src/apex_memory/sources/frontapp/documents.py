"""What a Front event says: read from either kind of webhook, and told as a document."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    parse_datetime,
    parse_identifier,
    plain_text,
    sequence,
)

MOST_MERGED = 100  # conversations that one event may merge

_ROLES = ("from", "to", "cc", "bcc")
_WITH_BODY = ("inbound", "outbound", "out_reply", "comment")


@dataclass(frozen=True, slots=True)
class Notice:
    """One Front event, from either kind of webhook. Unknown types and fields pass.

    `about` is what it changes: a message or comment when the event carries its body, else the
    conversation (a preview without the body must not replace a message that is there in full).
    """

    id: str
    type: str
    at: datetime
    about: Literal["message", "comment", "conversation"]
    about_id: str
    deleted: bool
    conversation_id: str | None
    conversation: Mapping[str, Any]
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    thin: bool = False
    """A preview: it tells of a message or comment without its body, which is to be fetched."""
    fetch: tuple[Literal["messages", "comments"], str] | None = None
    """Where the body of a preview is, when the event names it."""
    merged: tuple[str, ...] = ()
    """Conversations that went up in this one."""

    @property
    def key(self) -> str:
        return f"{self.about}:{self.about_id}"

    @property
    def parent(self) -> str | None:
        return f"conversation:{self.conversation_id}" if self.conversation_id else None

    @property
    def subject(self) -> str:
        return as_string(self.target.get("subject")) or as_string(self.conversation.get("subject"))

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Notice:
        event = body.get("payload", body)
        if not isinstance(event, dict):
            raise Rejected("payload: expected an object", remedy="is this a Front event?")
        conversation = as_mapping(event.get("conversation"))
        held = conversation.get("id")
        conversation_id = parse_identifier(held, "conversation.id") if held is not None else None
        kind, outer = as_string(event.get("type")), as_string(body.get("type"))
        deleted = conversation_id is not None and (
            kind == "trash"
            or outer == "conversation_deleted"
            or conversation.get("status") == "deleted"
        )
        target = as_mapping(event.get("target"))
        data = as_mapping(target.get("data"))
        about = "conversation" if deleted else _about(target)
        meta = as_string(as_mapping(target.get("_meta")).get("type"))
        thin = (
            about == "conversation"
            and not deleted
            and (meta in ("message", "comment") or (not data and kind in _WITH_BODY))
        )
        return cls(
            id=parse_identifier(event.get("id"), "id"),
            type=kind or outer,
            at=parse_datetime(event.get("emitted_at"), "emitted_at"),
            about=about,
            about_id=parse_identifier(
                conversation_id if about == "conversation" else data.get("id"),
                "conversation.id" if about == "conversation" else "target.data.id",
            ),
            deleted=deleted,
            conversation_id=conversation_id,
            conversation=conversation,
            source=as_mapping(event.get("source")),
            target={} if about == "conversation" else data,
            thin=thin,
            fetch=_fetch(meta, data.get("id")) if thin else None,
            merged=_merged(target) if meta == "deleted_conversation_ids" else (),
        )


def _about(target: Mapping[str, Any]) -> Literal["message", "comment", "conversation"]:
    data = as_mapping(target.get("data"))
    has_body = isinstance(data.get("text"), str) or isinstance(data.get("body"), str)
    kind = as_mapping(target.get("_meta")).get("type")
    if not (has_body and data.get("id")):
        return "conversation"
    return "message" if kind == "message" else "comment" if kind == "comment" else "conversation"


def _fetch(meta: str, held: object) -> tuple[Literal["messages", "comments"], str] | None:
    """The collection and id of what a preview tells of. Ids become part of a path, so only Front's kind will do."""
    id = as_string(held)
    if not re.fullmatch(r"[a-z]{2,5}_[a-z0-9]{1,60}", id):
        return None
    return ("comments" if meta == "comment" else "messages", id)


def _merged(target: Mapping[str, Any]) -> tuple[str, ...]:
    held = target.get("data")
    listed = sequence(held) or sequence(as_mapping(held).get("ids"))
    ids = (
        as_string(as_mapping(item).get("id")) or as_string(item) for item in listed[:MOST_MERGED]
    )
    return tuple(dict.fromkeys(id for id in ids if re.fullmatch(r"cnv_[a-z0-9]{1,60}", id)))


def merged_document(notice: Notice, merged: str) -> Document:
    """A conversation that went up in another one: what is known of it is known of that."""
    lines = {
        "Conversation": notice.subject,
        "Merged into": notice.conversation_id or "",
        "Date": f"{notice.at:%Y-%m-%d %H:%M} UTC",
    }
    same = (
        [Assertion(subject=f"conversation:{merged}", predicate="same_as", object=notice.parent)]
        if notice.parent
        else []
    )
    return Document(
        kind="conversation",
        title=notice.subject or "(no subject)",
        occurred_at=notice.at,
        text=_text(lines),
        assertions=tuple(same),
        metadata={
            "event": notice.type,
            "conversation_id": merged,
            "merged_into": notice.conversation_id,
        },
    )


def message_document(notice: Notice) -> Document:
    data = notice.target
    recipients = [item for item in sequence(data.get("recipients")) if as_mapping(item)]
    by_role = {role: [r for r in recipients if r.get("role") == role] for role in _ROLES}
    sent = _time(data.get("created_at"), notice.at)
    files = [
        as_string(as_mapping(item).get("filename")) for item in sequence(data.get("attachments"))
    ]
    lines = {
        "Subject": notice.subject,
        **{
            role.capitalize(): ", ".join(_label(item) for item in items)
            for role, items in by_role.items()
        },
        "Date": f"{sent:%Y-%m-%d %H:%M} UTC",
        "Attachments": ", ".join(filter(None, files)),
    }
    text = as_string(data.get("text")).strip() or plain_text(as_string(data.get("body")))
    said = [
        Assertion(predicate=role, object=ref)
        for role, items in by_role.items()
        for item in items
        if (ref := _ref(item))
    ]
    author = as_mapping(data.get("author"))
    if ref := _ref(author):
        said.append(Assertion(predicate="author", object=ref))
    return Document(
        kind="email" if data.get("type") == "email" else "message",
        title=notice.subject or "(no subject)",
        occurred_at=sent,
        text=_text(lines, text or as_string(data.get("blurb")).strip()),
        assertions=_assertions(notice, said, [*recipients, author]),
        metadata=_metadata(
            notice,
            message_type=as_string(data.get("type")),
            direction="inbound" if data.get("is_inbound") else "outbound",
            error=as_string(data.get("error_type")),
        ),
        parent=notice.parent,
    )


def comment_document(notice: Notice) -> Document:
    data = notice.target
    author = as_mapping(data.get("author")) or as_mapping(notice.source.get("data"))
    written = _time(data.get("posted_at"), notice.at)
    lines = {
        "Comment on": notice.subject,
        "From": _label(author),
        "Date": f"{written:%Y-%m-%d %H:%M} UTC",
    }
    said = [Assertion(predicate="from", object=ref)] if (ref := _ref(author)) else []
    return Document(
        kind="comment",
        title=f"Comment on {notice.subject or 'a conversation'}",
        occurred_at=written,
        text=_text(lines, plain_text(as_string(data.get("body")) or as_string(data.get("text")))),
        assertions=_assertions(notice, said, [author]),
        metadata=_metadata(notice),
        parent=notice.parent,
    )


def conversation_document(notice: Notice) -> Document:
    about = notice.conversation
    assignee, contact = as_mapping(about.get("assignee")), as_mapping(about.get("recipient"))
    actor = as_mapping(notice.source.get("data"))
    links = [as_string(as_mapping(link).get("name")) for link in sequence(about.get("links"))]
    lines = {
        "Conversation": notice.subject,
        "Last change": " by ".join(filter(None, [notice.type, _label(actor)])),
        "Status": as_string(about.get("status")),
        "Assigned to": _label(assignee),
        "With": _label(contact),
        "Tags": ", ".join(_tags(notice)),
        "Links": ", ".join(filter(None, links)),
        **{
            name: str(value)
            for name, value in as_mapping(about.get("custom_fields")).items()
            if isinstance(value, str | int | float) and value != ""
        },
    }
    entity = notice.parent
    said = [
        Assertion(subject=entity or "", predicate=predicate, object=ref)
        for predicate, person in (("assigned_to", assignee), ("with", contact))
        if (ref := _ref(person))
    ]
    return Document(
        kind="conversation",
        title=notice.subject or "(no subject)",
        occurred_at=notice.at,
        text=_text(lines),
        assertions=_assertions(notice, said, [assignee, contact]),
        metadata=_metadata(notice),
    )


def _text(lines: Mapping[str, str], body: str = "") -> str:
    head = "\n".join(f"{name}: {value}" for name, value in lines.items() if value)
    return f"{head}\n\n{body}" if body else head


def _assertions(
    notice: Notice, said: Sequence[Assertion], people: Sequence[Mapping[str, Any]]
) -> tuple[Assertion, ...]:
    names = [
        Assertion(subject=ref, predicate="name", value=name)
        for person in people
        if (ref := _ref(person)) and (name := _name(person))
    ]
    place = [Assertion(predicate="in", object=notice.parent)] if notice.parent else []
    return tuple(dict.fromkeys([*said, *place, *names]))


def _metadata(notice: Notice, **more: str) -> dict[str, Any]:
    inboxes = notice.source.get("data")
    known = {
        "event": notice.type,
        "conversation_id": notice.conversation_id,
        "status": as_string(notice.conversation.get("status")),
        "assignee": _handle(as_mapping(notice.conversation.get("assignee"))),
        "tags": _tags(notice),
        "inboxes": list(filter(None, (_name(as_mapping(item)) for item in sequence(inboxes)))),
        **more,
    }
    return {name: value for name, value in known.items() if value}


def _tags(notice: Notice) -> list[str]:
    tags: Iterator[str] = (
        as_string(as_mapping(tag).get("name")) for tag in sequence(notice.conversation.get("tags"))
    )
    return list(dict.fromkeys(filter(None, tags)))


def _time(value: object, otherwise: datetime) -> datetime:
    # A time that makes no sense is one field among many, no reason to lose the mail.
    with contextlib.suppress(Rejected):
        return parse_datetime(value, "created_at") if value else otherwise
    return otherwise


def _handle(person: Mapping[str, Any]) -> str:
    return " ".join((as_string(person.get("handle")) or as_string(person.get("email"))).split())


def _name(person: Mapping[str, Any]) -> str:
    full = f"{as_string(person.get('first_name'))} {as_string(person.get('last_name'))}".strip()
    return as_string(person.get("name")).strip() or full


def _label(person: Mapping[str, Any]) -> str:
    name, handle = _name(person), _handle(person)
    return f"{name} <{handle}>" if name and handle else name or handle


def _ref(person: Mapping[str, Any]) -> str | None:
    """`email:`, `phone:` or, for other channels, `contact:` with the handle."""
    handle = _handle(person).lower()
    if not handle or len(handle) > 320:
        return None
    if "@" in handle.strip("@"):
        return f"email:{handle}"
    if re.fullmatch(r"\+?[\d ().-]{5,20}", handle, re.ASCII):
        return "phone:" + re.sub(r"[^\d+]", "", handle)
    return f"contact:{handle}"
