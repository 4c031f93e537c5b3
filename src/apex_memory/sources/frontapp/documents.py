"""Front events, read from either kind of webhook or the API, and their documents."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Turn
from apex_memory.sources.fields import RecordFields, labelled, remaining_lines
from apex_memory.sources.frontapp.fields import (
    COMMENT_FIELDS,
    CONVERSATION_FIELDS,
    MESSAGE_FIELDS,
)
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    parse_datetime,
    parse_identifier,
    plain_text,
    sequence,
)

MAX_MERGED = 100  # conversations that one event may merge

_ROLES = ("from", "to", "cc", "bcc")
_WITH_BODY = ("inbound", "outbound", "out_reply", "comment")


@dataclass(frozen=True, slots=True)
class FrontEvent:
    """One Front event, from either kind of webhook or the API. Unknown types and fields are accepted.

    `about` is what it changes: a message or comment when the event has its body, else the conversation (a
    preview without the body must not replace a message that is stored in full).
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
    record: Mapping[str, Any]
    """The event as it came."""
    thin: bool = False
    """Whether it is a preview: about a message or comment whose body must be fetched."""
    fetch: tuple[Literal["messages", "comments"], str] | None = None
    """Collection and id of the body of a preview, when the event names them."""
    merged: tuple[str, ...] = ()
    """Ids of the conversations that were merged into this one."""

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
    def read(cls, body: Mapping[str, Any]) -> FrontEvent:
        """Return the event in a body. Raises `Rejected` for a body that is no Front event."""
        event = body.get("payload", body)
        if not isinstance(event, dict):
            raise Rejected(
                "payload: expected an object", remedy="check that the request comes from Front"
            )
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
            record=event,
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
    if kind == "message":
        return "message"
    if kind == "comment":
        return "comment"
    return "conversation"


def _fetch(meta: str, held: object) -> tuple[Literal["messages", "comments"], str] | None:
    """Return collection and id of the body of a preview. Ids become part of a path, so only Front's form is accepted."""
    id = as_string(held)
    if not re.fullmatch(r"[a-z]{2,5}_[a-z0-9]{1,60}", id):
        return None
    return ("comments" if meta == "comment" else "messages", id)


def _merged(target: Mapping[str, Any]) -> tuple[str, ...]:
    held = target.get("data")
    listed = sequence(held) or sequence(as_mapping(held).get("ids"))
    ids = (as_string(as_mapping(item).get("id")) or as_string(item) for item in listed[:MAX_MERGED])
    return tuple(dict.fromkeys(id for id in ids if re.fullmatch(r"cnv_[a-z0-9]{1,60}", id)))


def merged_document(event: FrontEvent, merged: str) -> Document:
    """A conversation that went up in another one: what is known of it is known of that."""
    lines = {
        "Conversation": event.subject,
        "Merged into": event.conversation_id or "",
        "Date": f"{event.at:%Y-%m-%d %H:%M} UTC",
    }
    same = (
        [Assertion(subject=f"conversation:{merged}", predicate="same_as", object=event.parent)]
        if event.parent
        else []
    )
    return Document(
        kind="conversation",
        title=event.subject or "(no subject)",
        occurred_at=event.at,
        text=labelled(lines),
        assertions=tuple(same),
        metadata={
            "event": event.type,
            "conversation_id": merged,
            "merged_into": event.conversation_id,
        },
    )


def message_document(event: FrontEvent) -> Document:
    data = event.target
    recipients = [item for item in sequence(data.get("recipients")) if as_mapping(item)]
    by_role: dict[str, list[Any]] = {role: [] for role in _ROLES}
    for recipient in recipients:
        by_role.setdefault(as_string(recipient.get("role")), []).append(recipient)
    sent = _time(data.get("created_at"), event.at)
    author = as_mapping(data.get("author"))
    lines = {
        "Subject": event.subject,
        "Conversation": _other_subject(event),
        **{
            role.capitalize() or "Recipient": ", ".join(_label(item) for item in items)
            for role, items in by_role.items()
        },
        "Date": f"{sent:%Y-%m-%d %H:%M} UTC",
        "Author": _label(author),
        "Attachments": _attachments(data),
        "Not delivered": as_string(data.get("error_type")).replace("_", " "),
        **_conversation_lines(event),
        "Message id": event.about_id,
    }
    text = as_string(data.get("text")).strip() or plain_text(as_string(data.get("body")))
    assertions: list[Assertion] = []
    for role, items in by_role.items():
        predicate = role if role in _ROLES else "recipient"
        refs = [_ref(item) for item in items]
        assertions += [Assertion(predicate=predicate, object=ref) for ref in refs if ref]
    if ref := _ref(author):
        assertions.append(Assertion(predicate="author", object=ref))
    body = text or as_string(data.get("blurb")).strip()
    text = _text(event, lines, MESSAGE_FIELDS, body)
    sender = _label(author) or next(map(_label, by_role["from"]), "")
    return Document(
        kind="email" if data.get("type") == "email" else "message",
        title=event.subject or "(no subject)",
        occurred_at=sent,
        text=text,
        assertions=_assertions(event, assertions, [*recipients, author]),
        metadata=_metadata(
            event,
            message_type=as_string(data.get("type")),
            direction="inbound" if data.get("is_inbound") else "outbound",
            error=as_string(data.get("error_type")),
        ),
        parent=event.parent,
        turns=_turns(text, sender, sent),
        link=_link(event.about_id),
    )


def comment_document(event: FrontEvent) -> Document:
    data = event.target
    author = as_mapping(data.get("author")) or as_mapping(event.source.get("data"))
    written = _time(data.get("posted_at"), event.at)
    lines = {
        "Comment on": event.subject,
        "From": _label(author),
        "Date": f"{written:%Y-%m-%d %H:%M} UTC",
        "Attachments": _attachments(data),
        **_conversation_lines(event),
        "Comment id": event.about_id,
    }
    assertions = [Assertion(predicate="from", object=ref)] if (ref := _ref(author)) else []
    # Comments are plain text: what looks like a tag was typed so.
    body = (as_string(data.get("body")) or as_string(data.get("text"))).strip()
    text = _text(event, lines, COMMENT_FIELDS, body)
    return Document(
        kind="comment",
        title=f"Comment on {event.subject or 'a conversation'}",
        occurred_at=written,
        text=text,
        assertions=_assertions(event, assertions, [author]),
        metadata=_metadata(event),
        parent=event.parent,
        turns=_turns(text, _label(author), written),
        link=_link(event.about_id),
    )


def conversation_document(event: FrontEvent) -> Document:
    about = event.conversation
    assignee, contact = as_mapping(about.get("assignee")), as_mapping(about.get("recipient"))
    actor = as_mapping(event.source.get("data"))
    links = [as_string(as_mapping(link).get("name")) for link in sequence(about.get("links"))]
    begun = _time(about.get("created_at"), None)
    lines = {
        "Conversation": event.subject,
        "Last change": " by ".join(filter(None, [event.type, _label(actor)])),
        "Status": as_string(about.get("status")),
        "Assigned to": _label(assignee),
        "With": _label(contact),
        "Tags": ", ".join(_tags(event)),
        "Links": ", ".join(filter(None, links)),
        "Begun": f"{begun:%Y-%m-%d %H:%M} UTC" if begun else "",
        "Conversation id": event.conversation_id or "",
    }
    entity = event.parent
    assertions = [
        Assertion(subject=entity or "", predicate=predicate, object=ref)
        for predicate, person in (("assigned_to", assignee), ("with", contact))
        if (ref := _ref(person))
    ]
    return Document(
        kind="conversation",
        title=event.subject or "(no subject)",
        occurred_at=event.at,
        text=_text(event, lines, CONVERSATION_FIELDS),
        assertions=_assertions(event, assertions, [assignee, contact]),
        metadata=_metadata(event),
        link=_link(event.conversation_id or ""),
    )


def _turns(text: str, speaker: str, at: datetime) -> tuple[Turn, ...]:
    """Return a message as the one turn that it is in its conversation."""
    return (Turn(0, len(text), speaker, at),) if text and speaker else ()


def _link(id: str) -> str:
    """Return the address that opens a message, comment or conversation in Front."""
    return f"https://app.frontapp.com/open/{quote(id, safe='')}" if id else ""


def _text(event: FrontEvent, lines: Mapping[str, str], fields: RecordFields, body: str = "") -> str:
    """Return the first lines, a line for each further field, and the body after a blank line."""
    custom_fields = _custom_fields(event)
    shown = {*fields.shown, *(f"conversation.custom_fields.{name}" for name in custom_fields)}
    others = remaining_lines(event.record, shown=shown, left_out=fields.left_out, false_flags=False)
    head = "\n".join([labelled({**lines, **custom_fields}), *others])
    return f"{head}\n\n{body}" if body else head


def _conversation_lines(event: FrontEvent) -> dict[str, str]:
    """Return the lines of a message or comment about its conversation."""
    return {
        "Assigned to": _label(as_mapping(event.conversation.get("assignee"))),
        "Tags": ", ".join(_tags(event)),
        "Conversation id": event.conversation_id or "",
    }


def _custom_fields(event: FrontEvent) -> dict[str, str]:
    """Return the conversation's custom fields that have a plain value, by their own names."""
    fields = as_mapping(event.conversation.get("custom_fields"))
    return {
        name: str(value)
        for name, value in fields.items()
        if isinstance(value, str | int | float) and value != ""
    }


def _other_subject(event: FrontEvent) -> str:
    """Return the conversation's subject, empty where it is the message's too."""
    subject = as_string(event.conversation.get("subject"))
    return subject if subject != event.subject else ""


def _attachments(data: Mapping[str, Any]) -> str:
    names = (
        as_string(as_mapping(item).get("filename")) for item in sequence(data.get("attachments"))
    )
    return ", ".join(filter(None, names))


def _assertions(
    event: FrontEvent, assertions: Sequence[Assertion], people: Sequence[Mapping[str, Any]]
) -> tuple[Assertion, ...]:
    names = [
        Assertion(subject=ref, predicate="name", value=name)
        for person in people
        if (ref := _ref(person)) and (name := _name(person))
    ]
    place = [Assertion(predicate="in", object=event.parent)] if event.parent else []
    return tuple(dict.fromkeys([*assertions, *place, *names]))


def _metadata(event: FrontEvent, **more: str) -> dict[str, Any]:
    inboxes = event.source.get("data")
    known = {
        "event": event.type,
        "conversation_id": event.conversation_id,
        f"{event.about}_id": event.about_id,
        "status": as_string(event.conversation.get("status")),
        "assignee": _handle(as_mapping(event.conversation.get("assignee"))),
        "tags": _tags(event),
        "inboxes": list(filter(None, (_name(as_mapping(item)) for item in sequence(inboxes)))),
        **more,
    }
    return {name: value for name, value in known.items() if value}


def _tags(event: FrontEvent) -> list[str]:
    tags: Iterator[str] = (
        as_string(as_mapping(tag).get("name")) for tag in sequence(event.conversation.get("tags"))
    )
    return list(dict.fromkeys(filter(None, tags)))


Otherwise = TypeVar("Otherwise", datetime, None)


def _time(value: object, otherwise: Otherwise) -> datetime | Otherwise:
    # A time that cannot be read must not lose the mail: it is one field among many.
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
    """Return the entity of a person: `email:`, `phone:` or, for other channels, `contact:` with the handle."""
    handle = _handle(person).lower()
    if not handle or len(handle) > 320:
        return None
    if "@" in handle.strip("@"):
        return f"email:{handle}"
    if re.fullmatch(r"\+?[\d ().-]{5,20}", handle, re.ASCII):
        return "phone:" + re.sub(r"[^\d+]", "", handle)
    return f"contact:{handle}"
