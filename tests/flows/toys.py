"""Three sources of the kinds that are fetched, over plain files instead of a vendor: what flows do with them is the subject."""

TOYS = '''
import json
from datetime import UTC, datetime
from pathlib import Path

from apex_memory.errors import RetryLater
from apex_memory.model import Document, Event, Priority
from apex_memory.sources.base import FileSource, Pattern, PulledSettings, PulledSource, Received, StreamSource
from apex_memory.sources.pages import ChangeHint, InboundFile, Page, Reading, UnpackedFile

START = datetime(2026, 11, 2, 6, tzinfo=UTC)


class FolderSettings(PulledSettings):
    folder: str = ""
    poll_seconds: float = 3600


def event(source, key, version, text):
    return Event(source=source, event_id=f"{key}:{version}", doc_key=key, version=version, occurred_at=START,
                 payload=json.dumps({"text": text}).encode(), priority=Priority.P2)


class Toy:
    """A toy."""

    Settings = FolderSettings

    @property
    def missing_settings(self):
        return "" if self.settings.folder else "folder"

    @property
    def place(self):
        return Path(self.settings.folder)

    def receive(self, request):
        return Received(change_hints=[ChangeHint("all")])

    def document(self, event):
        return Document(kind="toy", title="Toy", occurred_at=event.occurred_at, text=json.loads(event.payload)["text"])

    def samples(self):
        return []


class Polled(Toy, PulledSource):
    """Lines of a file."""

    name, title, priority, pattern, poll_seconds = "polled", "Polled", Priority.P2, Pattern.POLL, 60

    async def pull(self, context):
        lines = (self.place / "lines").read_text().splitlines()
        at = context.cursor.get("at", 0)
        if context.window:
            for n in range(at, len(lines)):
                yield Page(events=[event("polled", f"line:{n}", 1, lines[n])], cursor={"at": n + 1})
            return
        if "trouble" in lines[at:]:
            raise RetryLater("polled: the vendor is in trouble", after=0.1)
        for n in range(at, len(lines), 2):
            some = [event("polled", f"line:{m}", 1, lines[m]) for m in range(n, min(n + 2, len(lines)))]
            yield Page(events=some, cursor={"at": n + len(some)}, acknowledged=context.change_hints)
        if at == len(lines):
            yield Page(acknowledged=context.change_hints)


class Streamed(Toy, StreamSource):
    """Readings in a file: a second and a value a line. A backfill reads those of another file."""

    name, title, priority, pattern, poll_seconds = "streamed", "Streamed", Priority.P1, Pattern.STREAM, 0.05
    window_seconds = 300

    async def pull(self, context):
        file = self.place / ("history" if context.window else "readings")
        lines = file.read_text().splitlines() if file.exists() else []
        at = context.cursor.get("at", 0)
        if at < len(lines):
            pairs = [line.split() for line in lines[at:]]
            readings = [
                Reading(series="v", kind="speed", at=datetime.fromtimestamp(START.timestamp() + int(second), UTC),
                        value=int(value))
                for second, value in pairs
            ]
            yield Page(readings=readings, cursor={"at": len(lines)})

    def aggregate_window(self, series, start, readings, version):
        total = sum(one.value for one in readings)
        return event("streamed", f"window:{series}:{start.isoformat()}", version, f"{len(readings)} readings, sum {total}")


class Filed(Toy, FileSource):
    """Files of lines."""

    name, title, priority, pattern, poll_seconds = "filed", "Filed", Priority.P2, Pattern.BATCH, 60

    async def pull(self, context):
        for file in sorted((self.place / "in").iterdir()):
            yield Page(files=[InboundFile(file.name, file.read_bytes())])
            file.rename(self.place / "archive" / file.name)

    def unpack(self, file):
        lines = file.data.decode().splitlines()
        events = [event("filed", f"{file.name}:{n}", 1, line) for n, line in enumerate(lines)]
        return UnpackedFile(events=events, replies=[InboundFile(f"{file.name}.ack", f"{len(lines)}".encode())], findings=["odd"])

    async def send(self, replies, link):
        for reply in replies:
            (self.place / "out" / reply.name).write_bytes(reply.data)
'''
