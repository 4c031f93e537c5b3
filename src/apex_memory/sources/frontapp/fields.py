"""Where each field of a Front event goes: text, metadata, assertions, or left out with a reason."""

from __future__ import annotations

from collections.abc import Mapping

from apex_memory.sources.fields import RecordFields

_LEFT_OUT: Mapping[str, str] = {
    "id": "names the change, not what changed",
    "*._links": "addresses in Front's API",
    "*._meta": "the type of what stands beside it",
    "*.metadata": "technical details of the channel",
    "*.is_admin": "the account's state in Front",
    "*.is_available": "the account's state in Front",
    "*.is_blocked": "the account's state in Front",
    "conversation.last_message": "a message has a document of its own",
    "conversation.tags.highlight": "a colour",
    "conversation.tags.created_at": "about the tag, not the conversation",
    "conversation.tags.updated_at": "about the tag, not the conversation",
    "conversation.tags.is_private": "about the tag, not the conversation",
    "conversation.tags.is_visible_in_conversation_lists": "about the tag, not the conversation",
    "source.data.is_private": "the setting of an inbox",
    "source.data.is_public": "the setting of an inbox",
    "source.data.send_as": "the setting of an inbox",
    "source.data.type": "the setting of an inbox",
}
_CONVERSATION: Mapping[str, str] = {
    "type": "metadata",
    "conversation.id": "text metadata assertion",
    "conversation.status": "metadata",
    "conversation.assignee.email": "text metadata",
    "conversation.assignee.first_name": "text",
    "conversation.assignee.last_name": "text",
    "conversation.tags.name": "text metadata",
}
_IN_MESSAGES: Mapping[str, str] = {
    **_LEFT_OUT,
    "emitted_at": "the time of the change; the message has its own",
    "conversation.created_at": "stands in the conversation's document",
    "target.data.attachments.url": "needs a login at Front",
}
_NOTE = "A flag that is false has no line."
MESSAGE_FIELDS = RecordFields(
    "email and message",
    shown={
        **_CONVERSATION,
        "conversation.subject": "text",
        "source.data.name": "metadata",
        "target.data.id": "text metadata",
        "target.data.type": "metadata",
        "target.data.is_inbound": "metadata",
        "target.data.created_at": "text time",
        "target.data.subject": "title text",
        "target.data.text": "text",
        "target.data.error_type": "text metadata",
        "target.data.recipients.handle": "text assertion",
        "target.data.recipients.name": "text assertion",
        "target.data.recipients.role": "text",
        "target.data.author.email": "text assertion",
        "target.data.author.first_name": "text assertion",
        "target.data.author.last_name": "text assertion",
        "target.data.attachments.filename": "text",
    },
    left_out={
        **_IN_MESSAGES,
        "conversation.recipient": "one of the message's recipients",
        "target.data.body": "the HTML form of the text, which stands in its place where there is none",
        "target.data.blurb": "the beginning of the text, which stands in its place where there is none",
    },
    note=_NOTE,
)
COMMENT_FIELDS = RecordFields(
    "comment",
    shown={
        **_CONVERSATION,
        "conversation.subject": "title text",
        "target.data.id": "text metadata",
        "target.data.posted_at": "text time",
        "target.data.body": "text",
        "target.data.author.email": "text assertion",
        "target.data.author.first_name": "text assertion",
        "target.data.author.last_name": "text assertion",
        "target.data.attachments.filename": "text",
    },
    left_out={
        **_IN_MESSAGES,
        "target.data.text": "the body, and stands in its place where there is none",
    },
    note=_NOTE,
)
CONVERSATION_FIELDS = RecordFields(
    "conversation",
    shown={
        **_CONVERSATION,
        "type": "text metadata",
        "emitted_at": "time",
        "conversation.created_at": "text",
        "conversation.subject": "title text",
        "conversation.status": "text metadata",
        "conversation.assignee.email": "text metadata assertion",
        "conversation.recipient.handle": "text assertion",
        "conversation.recipient.name": "text assertion",
        "conversation.links.name": "text",
        "source.data.email": "text",
        "source.data.first_name": "text",
        "source.data.last_name": "text",
    },
    left_out=_LEFT_OUT,
    note=_NOTE,
)
