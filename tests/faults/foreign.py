"""Foreign inputs, whole and broken, made from a seed: documents, mails, chats, EDI, webhooks."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests import documents as files
from tests.e2e import front
from tests.unit import x12_files

KEYS = ("a", "b", "c")
REUSED_KEY = 0.2  # share of requests with an Idempotency-Key that other requests have, too
TIMES = ("2026-03-03T15:15:00Z", "2026-03-03T15:15:00Z", "2026-03-01T00:00:00Z")
JSON = {"content-type": "application/json"}
NASTY: Sequence[Any] = (
    None,
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud83d",
    "\udfff\ud800",
    "\u202e\u2066\ufeff",
    "9999-99-99T99:99:99Z",
    "0001-01-01T00:00:00+23:59",
    10**30,
    -(2**63) - 1,
    2**63,
    1e308,
    True,
    [],
    {},
    [[[]]],
    {"": {"": ""}},
    "x" * 3_000,
    "é" * 600,
    -1,
    0,
)


@dataclass(frozen=True, slots=True)
class Input:
    """A request to one of the API's routes."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: dict(JSON))
    query: Mapping[str, str] = field(default_factory=dict)
    words: Sequence[str] = ()
    """What a version of it must contain; empty for broken inputs."""
    name: str = ""


def nasty_text(chance: random.Random) -> str:
    """Some of what texts contain that stores mishandle."""
    parts = (
        "\x00",
        "\ud83d",
        "\u2028",
        "\u202e",
        "e\u0301",
        "ﬀ",
        "\r\n",
        "\t",
        "𝔘",
        "'",
        "\\",
        "$$",
        "{}",
        "%s",
    )
    return "".join(chance.choices(parts, k=chance.randrange(0, 5)))


def _text(word: str, chance: random.Random) -> str:
    return (
        f"{word} SHP-{chance.randrange(100_000, 100_009)} waits at door 4. "
        f"{nasty_text(chance)} " + "It has pallets. " * chance.choice((0, 1, 40))
    )


def _fields(chance: random.Random) -> dict[str, Any]:
    """Fields of a document that say which it is, and when: few values, so that documents meet."""
    fields: dict[str, Any] = {"key": chance.choice(KEYS)}
    order = chance.randrange(4)
    if order == 0:
        fields["version"] = chance.randrange(1, 5)
    elif order == 1:
        fields["occurred_at"] = chance.choice(TIMES)
    elif order == 2:
        del fields["key"]
    return fields


def _headers(chance: random.Random, **headers: str) -> dict[str, str]:
    """Headers, now and then with a key of an earlier request for other content."""
    if chance.random() < REUSED_KEY:
        headers["idempotency-key"] = f"request-{chance.randrange(3)}"
    return headers


def document(word: str, chance: random.Random) -> Input:
    body = {**_fields(chance), "text": _text(word, chance), "title": f"Note {nasty_text(chance)}"}
    if chance.random() < 0.3:
        body["metadata"] = {"weight": chance.choice((1, 1.5, None, "x" * 20_000, {"a": [{}] * 50}))}
    if chance.random() < 0.3:
        body["entities"] = chance.sample(["shipment:SHP-1", "a:b:c", "ü:ß", "lot:\u202ex"], 2)
    headers = _headers(chance, **{"content-type": "application/json"})
    return Input("/v1/documents", json.dumps(body).encode(), headers, words=[word], name="document")


def file(word: str, chance: random.Random) -> Input:
    """A whole file of a kind that the parser reads."""
    name, kind, data = chance.choice(_FILES)(word, chance)
    query = {name: str(value) for name, value in _fields(chance).items()} | {"name": name}
    headers = _headers(chance, **{"content-type": kind})
    return Input("/v1/documents", data, headers, query, [word], f"file {name}")


_File = tuple[str, str, bytes]
_FILES: Sequence[Callable[[str, random.Random], _File]] = (
    lambda word, chance: ("a.pdf", files.PDF, files.pdf(f"Pages\n{word}")),
    lambda word, chance: ("a.docx", files.DOCX, files.docx("# Load", word)),
    lambda word, chance: ("a.xlsx", files.XLSX, files.xlsx([["lot", word], ["weight", 18.5]])),
    lambda word, chance: ("a.html", "text/html", f"<h1>Load</h1><p>{word}</p>".encode()),
    lambda word, chance: ("a.csv", "text/csv", f"lot;weight\r\n{word};18,5\r\n".encode()),
    lambda word, chance: ("a.txt", "text/plain", f"\ufeff{word} ü\r\n".encode("utf-16")),
    lambda word, chance: ("a.md", "text/markdown", f"# {word}\n\n- a\n".encode()),
    lambda word, chance: ("a.xml", "text/xml", f"<a><b>{word}</b></a>".encode()),
    lambda word, chance: ("a.json", "application/json", json.dumps({"lot": word}).encode()),
    lambda word, chance: ("a.eml", "message/rfc822", _mail(word, chance)),
)


def _mail(word: str, chance: random.Random) -> bytes:
    attached = [("lot.csv", "text/csv", b"lot;weight\r\n1;2\r\n")] if chance.random() < 0.5 else []
    html = f"<p>{word}</p>" if chance.random() < 0.3 else ""
    return files.mail(word, subject=f"Load {word}", html=html, attachments=attached)


def _zeros(word: str) -> bytes:
    return files.archive({"zeros.txt": word.encode() + bytes(30_000_000)})


def _nested_zip(depth: int) -> bytes:
    data = b"deep"
    for _ in range(depth):
        data = files.archive({"next.zip": data})
    return data


def _nested_mail(depth: int) -> bytes:
    head = b"Content-Type: message/rfc822\r\n\r\n"
    return head * depth + b"Subject: deep\r\n\r\nat the bottom\r\n"


def _entities(count: int) -> bytes:
    """XML whose entities expand to a billion letters."""
    lines = "".join(
        f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' if n else '<!ENTITY e0 "ha">' for n in range(count)
    )
    return f"<?xml version='1.0'?><!DOCTYPE a [{lines}]><a>&e{count - 1};</a>".encode()


_BROKEN_FILES: Mapping[str, Callable[[random.Random], bytes]] = {
    "whole.zip": lambda chance: files.archive({"a.txt": b"an archive is not read"}),
    "zeros.zip": lambda chance: _zeros("zeros"),
    "nested.zip": lambda chance: _nested_zip(40),
    "entities.xml": lambda chance: _entities(12),
    "deep.json": lambda chance: b"[" * 5_000 + b"]" * 5_000,
    "deep.html": lambda chance: b"<div>" * 20_000,
    "deep.eml": lambda chance: _nested_mail(300),
    "headers.eml": lambda chance: b"X: y\r\n" * 20_000 + b"\r\n\x00",
    "encoding.eml": lambda chance: (
        b"Subject: =?utf-9?X?=FF?=\r\nContent-Transfer-Encoding: base65 \r\n"
        b"Content-Type: text/plain; charset=\x00\r\nDate: 99 Foo 99999999999 25:61\r\n\r\n=\xff\x00"
    ),
    "boundary.eml": lambda chance: (
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n--b\r\n\r\n--b--\r\n--b\r\n'
    ),
    "nothing.eml": lambda chance: b"",
    "nothing.pdf": lambda chance: b"%PDF-1.7\n",
    "bytes.bin": lambda chance: chance.randbytes(2_000),
    "ole.xls": lambda chance: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + chance.randbytes(500),
    "bomb.gz": lambda chance: gzip.compress(bytes(20_000_000)),
    "quotes.csv": lambda chance: b'a;"b\r\n' * 2_000 + b'"' * 9_999,
    "nul.txt": lambda chance: b"\x00" * 500 + b"text",
}
BROKEN_FILES = tuple(_BROKEN_FILES)


def broken_file(name: str, chance: random.Random) -> Input:
    """A file that is a bomb, or no file of its kind."""
    query = {"name": name, "key": chance.choice(KEYS)}
    headers = {"content-type": "application/octet-stream"}
    data = _BROKEN_FILES[name](chance)
    return Input("/v1/documents", data, headers, query, name=f"broken {name}")


def damaged(whole: Input, chance: random.Random) -> Input:
    """A whole input of which some bytes are cut off, doubled or replaced."""
    data = bytearray(whole.body)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        change = chance.randrange(4)
        if change == 0:
            del data[at:]
        elif change == 1:
            data[at:at] = data[at : at + 40]
        elif change == 2:
            data[at : at + 1] = chance.randbytes(1)
        else:
            data[at:at] = b"\x00"
    headers = dict(whole.headers)
    return Input(whole.path, bytes(data), headers, whole.query, name=f"damaged {whole.name}")


def two_files(word: str, chance: random.Random) -> Input:
    """Two files in one form, of which the second may be broken."""
    parts = [("a.txt", f"{word} first".encode()), ("b.csv", f"lot;{word}".encode())]
    if chance.random() < 0.3:
        parts[1] = ("b.pdf", b"%PDF-1.4 broken")
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in parts
    )
    headers = _headers(chance, **{"content-type": "multipart/form-data; boundary=x"})
    return Input("/v1/documents", body + b"--x--\r\n", headers, words=[word], name="two files")


def metadata_bomb(word: str, chance: random.Random) -> Input:
    """Fields that are far larger, or far deeper, than anybody reads."""
    huge = chance.choice(
        (
            {f"k{n}": n for n in range(20_000)},
            {"k": "x" * 2_000_000},
            json.loads("[" * 90 + "]" * 90),
            {"\x00": "\ud800"},
            {"n": 10**400},
        )
    )
    body = {
        "key": chance.choice(KEYS),
        "text": word,
        "metadata": huge if isinstance(huge, dict) else {"deep": huge},
        "entities": [f"lot:{n}" for n in range(chance.choice((0, 3_000)))],
    }
    data = json.dumps(body).encode()
    return Input("/v1/documents", data, words=[word], name="metadata bomb")


def nasty_fields(word: str, chance: random.Random) -> Input:
    """A document one of whose fields is of a kind that nobody expects."""
    body: dict[str, Any] = {"key": "a", "version": 3, "text": word, "title": "t", "kind": "note"}
    names = (*body, "occurred_at", "metadata", "entities", "name", "content_base64", "content_type")
    body[chance.choice(names)] = chance.choice(NASTY)
    return Input("/v1/documents", json.dumps(body).encode(), name="nasty fields")


def _turn(word: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Where is SHP-100045?"},
        {"role": "assistant", "content": f"It is at {word}."},
    ]


def _chat_openai(word: str, chance: random.Random) -> Any:
    return {"conversation_id": chance.choice(KEYS), "messages": _turn(word)}


def _chat_anthropic(word: str, chance: random.Random) -> Any:
    blocks = [{"type": "text", "text": f"It is at {word}."}, {"type": "token_budget", "n": 1}]
    turns = [*_turn("x")[:1], {"role": "assistant", "content": blocks}]
    updated = chance.choice(TIMES)
    return {
        "format": "anthropic.messages",
        "conversation_id": chance.choice(KEYS),
        "updated_at": updated,
        "messages": turns,
    }


def _chat_claude(word: str, chance: random.Random) -> Any:
    at = chance.choice(TIMES)
    turns = [
        {"uuid": f"{n}", "sender": sender, "text": text, "created_at": at}
        for n, (sender, text) in enumerate((("human", "Where is it?"), ("assistant", word)))
    ]
    return {
        "uuid": chance.choice(KEYS),
        "name": "ETA",
        "created_at": at,
        "updated_at": at,
        "chat_messages": turns,
    }


def _chat_chatgpt(word: str, chance: random.Random) -> Any:
    at = 1_772_550_900 + chance.randrange(2)

    def node(id: str, parent: str | None, role: str, text: str) -> dict[str, Any]:
        message = {
            "id": id,
            "author": {"role": role},
            "create_time": at,
            "content": {"content_type": "text", "parts": [text]},
        }
        return {"id": id, "parent": parent, "children": [], "message": message}

    nodes = {"1": node("1", None, "user", "Where?"), "2": node("2", "1", "assistant", word)}
    nodes["1"]["children"] = ["2"]
    return {
        "id": chance.choice(KEYS),
        "title": "ETA",
        "create_time": at,
        "update_time": at,
        "current_node": "2",
        "mapping": nodes,
    }


_CHATS = (_chat_openai, _chat_anthropic, _chat_claude, _chat_chatgpt)


def chat(word: str, chance: random.Random) -> Input:
    """A conversation in one of the formats; few ids and times, so that states of one conversation meet."""
    body = chance.choice(_CHATS)(word, chance)
    headers = _headers(chance, **{"content-type": "application/json"})
    data = json.dumps(body).encode()
    return Input("/v1/conversations", data, headers, words=[word], name="chat")


def chats(word: str, chance: random.Random) -> Input:
    """Several conversations in a body, perhaps states of one; in lines or in an array."""
    made = [chance.choice(_CHATS)(f"{word}n{n}", chance) for n in range(3)]
    words = [f"{word}n{n}" for n in range(3)]
    if chance.random() < 0.5:
        lines = b"\n".join(json.dumps(item).encode() for item in made)
        headers = {"content-type": "application/x-ndjson"}
        return Input("/v1/conversations", lines, headers, words=words, name="lines of chats")
    data = json.dumps(made).encode()
    return Input("/v1/conversations", data, words=words, name="chats")


def nasty_chat(word: str, chance: random.Random) -> Input:
    body = chance.choice(_CHATS)(word, chance)
    data = mangled_json(json.dumps(body).encode(), chance)
    return Input("/v1/conversations", data, name="nasty chat")


def edi(word: str, chance: random.Random) -> Input:
    """A status, tender, response or invoice; the same control numbers come again with other content."""
    lot = word.upper()
    sets = [
        ("QM", x12_files.STATUS.replace("PRO778812", lot)),
        ("SM", x12_files.TENDER.replace("7781", lot)),
        ("GF", x12_files.RESPONSE.replace("PRO778812", lot)),
        ("IM", x12_files.INVOICE.replace("INV-55012", lot)),
    ]
    function, body = chance.choice(sets)
    number = chance.randrange(1, 4)
    sent = chance.choice(("20251101*0830", "20251101*0930"))
    data = x12_files.file(function, body, number=number, sent=sent).encode()
    headers = {"content-type": "application/edi-x12"}
    return Input("/v1/edi", data, headers, words=[lot], name=f"EDI {function}")


def broken_edi(word: str, chance: random.Random) -> Input:
    """A file with wrong counts, a missing trailer, an unknown set, or other damage."""
    whole = edi(word, chance)
    text = whole.body.decode()
    change = chance.randrange(6)
    if change == 0:
        text = text.replace("SE*", "SE*9", 1)
    elif change == 1:
        text = text.partition("GE*")[0]
    elif change == 2:
        text = text.replace("ST*2", "ST*8", 1)
    elif change == 3:
        text = text.replace("~", "~\x00", 3)
    elif change == 4:
        text = text[: chance.randrange(len(text))]
    else:
        return damaged(whole, chance)
    headers = dict(whole.headers)
    return Input("/v1/edi", text.encode(), headers, name="broken EDI")


MakeInput = Callable[[str, random.Random], Input]


def damaging(make: MakeInput) -> MakeInput:
    """Return a maker of the same inputs, each damaged."""

    def made(word: str, chance: random.Random) -> Input:
        return damaged(make(word, chance), chance)

    return made


WHOLE: Mapping[str, MakeInput] = {
    "document": document,
    "file": file,
    "two files": two_files,
    "chat": chat,
    "chats": chats,
    "edi": edi,
}
BROKEN: Mapping[str, MakeInput] = {
    "metadata": metadata_bomb,
    "fields": nasty_fields,
    "chat": nasty_chat,
    "edi": broken_edi,
    **{f"damaged {name}": damaging(make) for name, make in WHOLE.items()},
}


def front_webhook(word: str, chance: random.Random) -> tuple[bytes, Sequence[str]]:
    """A webhook of Front: a message, or what becomes of a conversation. Few of them, with equal times."""
    conversation, at = f"cnv_{chance.choice(KEYS)}", chance.randrange(4)
    kind = chance.choice(("message", "message", "archive", "trash", "restore"))
    if kind == "message":
        text = f"{word} {nasty_text(chance)}"
        return front.message(f"msg_{word}", conversation, at=at, text=text), [word]
    return front.conversation(conversation, kind, at=at), []


def mangled_json(body: bytes, chance: random.Random) -> bytes:
    """JSON of which some values are replaced by what nobody expects, or taken out."""
    try:
        value = json.loads(body)
    except ValueError:
        return body
    for _ in range(chance.randrange(1, 4)):
        value = _mangled(value, chance)
    return json.dumps(value).encode()


def _mangled(value: Any, chance: random.Random) -> Any:
    """Return the value with one place in it changed."""
    if isinstance(value, dict) and value and chance.random() < 0.93:
        name = chance.choice(sorted(value))
        changed = {key: item for key, item in value.items() if key != name}
        if chance.random() < 0.1:
            return changed
        return value | {name: _mangled(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.93:
        at = chance.randrange(len(value))
        return [*value[:at], _mangled(value[at], chance), *value[at + 1 :]]
    return chance.choice(NASTY)


TEXTS = (
    "name",
    "text",
    "title",
    "description",
    "body",
    "subject",
    "dealname",
    "lastname",
    "memo",
    "Memo",
    "DisplayName",
    "PrivateNote",
    "company",
    "city",
    "note",
    "notes",
    "merchant_name",
)


def edited_json(body: bytes, chance: random.Random) -> bytes:
    """JSON in which texts that people write are other ones; ids and times stay."""
    try:
        value = json.loads(body)
    except ValueError:
        return body
    return json.dumps(_edited(value, f" edited{chance.randrange(1000)}")).encode()


def _edited(value: Any, mark: str) -> Any:
    if isinstance(value, list):
        return [_edited(item, mark) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {}
    for name, item in value.items():
        if name in TEXTS and isinstance(item, str):
            changed[name] = item + mark
        else:
            changed[name] = _edited(item, mark)
    return changed
