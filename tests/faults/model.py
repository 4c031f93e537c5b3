"""The commit protocol as a model: every interleaving of its parts, explored to the end.

Worker A publishes version 2 of a document and may stop for ever, or wake late. B is its retry, C
publishes version 3. Around them: the sweeper, the collector, a reader, a step of A that is executed
again by the orchestrator, and one crash of a store, which loses what was not flushed. Each
protection can be switched off; docs/discussions/protocol-model.md has what follows then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

StageId = tuple[int, int]  # (version, attempt)
Content = tuple[int, int]  # (version, which computation of it)
Held = frozenset[tuple[StageId, Content]]  # what a store holds

AGAIN = 9  # the computation that a step executed again makes, when no manifest is kept


@dataclass(frozen=True, slots=True)
class Protections:
    """What the protocol does to keep its promise. With all of them on it is the protocol that the saga implements."""

    fresh_stage_ids: bool = True
    """Each attempt writes under an id of its own; off: derived from document and version."""
    kept_manifest: bool = True
    """The content of a version is computed once and stored; off: each execution computes it anew."""
    flush_first: bool = True
    verify: bool = True
    state_in_commit: bool = True
    """The commit requires the stage to be `staging`, and owned by this worker."""
    newest_wins: bool = True
    dead_first: bool = True
    """The sweeper marks a stage aborted before it deletes anything of it."""
    grace: bool = True
    """The collector keeps a stage that a running snapshot may still read."""
    snapshot_first: bool = True
    """A reader takes its snapshot before it reads a store; off: it looks the pointer up at each read."""


@dataclass(frozen=True, slots=True)
class Cast:
    """The parts that a run has. All together have too many states; `CASTS` cover every pair that touches the same data."""

    retry: bool = False
    newer: bool = False
    sweeper: bool = True
    collector: bool = False
    reader: bool = False
    again: bool = False
    crash: bool = True


class Stage(NamedTuple):
    id: StageId
    status: str
    owner: str


class Task(NamedTuple):
    """A deletion in progress: first in the graph, then in the vectors."""

    stage: StageId
    graph_done: bool = False


class Reading(NamedTuple):
    snapshot: StageId
    graph: Content | None = None
    vectors: Content | None = None
    reads: int = 0


class State(NamedTuple):
    workers: tuple[str, str, str]
    stages: frozenset[Stage]
    live: StageId
    graph: Held
    vectors: Held
    graph_disk: Held
    vectors_disk: Held
    again: str = "idle"
    sweeping: Task | None = None
    collecting: Task | None = None
    reading: Reading | None = None
    crashes_left: int = 1


class Violation(NamedTuple):
    what: str
    trace: list[str]


class Explored(NamedTuple):
    states: int
    violation: Violation | None


Moves = Iterator[tuple[str, State]]
NAMES = ("A", "B", "C")
VERSIONS = (2, 2, 3)
ATTEMPTS = (1, 2, 1)
FIRST: StageId = (1, 0)
ENDED = "ended"


def explore(protections: Protections, cast: Cast, *, limit: int = 1_000_000) -> Explored:
    """Visit every reachable state, nearest first; stop at the first violation, with the shortest way to it."""
    model = Model(protections, cast)
    first = model.first()
    came_from: dict[State, tuple[str, State] | None] = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        for move, following in model.moves(state):
            if following in came_from:
                continue
            came_from[following] = (move, state)
            if what := wrong(state, following):
                return Explored(len(came_from), Violation(what, _trace(came_from, following)))
            queue.append(following)
        if len(came_from) > limit:
            raise RuntimeError(f"more than {limit} states: choose a smaller cast")
    return Explored(len(came_from), None)


def _trace(came_from: dict[State, tuple[str, State] | None], state: State) -> list[str]:
    moves = []
    while step := came_from[state]:
        move, state = step
        moves.append(move)
    return moves[::-1]


def wrong(before: State, after: State) -> str | None:
    """Return how a state breaks the promise; None if it does not."""
    graph, vectors = held(after.graph, after.live), held(after.vectors, after.live)
    if graph is None or vectors is None:
        return "the live version is missing in a store"
    if graph != vectors:
        return "the live version is of two computations"
    if after.live[0] < before.live[0]:
        return "an older version took the place of a newer one"
    reading = after.reading
    if reading and reading.reads == 2:
        if reading.graph is None or reading.vectors is None:
            return "a reader saw part of a version"
        if reading.graph != reading.vectors:
            return "a reader saw a mix of two versions"
    return None


def held(store: Held, stage: StageId) -> Content | None:
    return next((content for id, content in store if id == stage), None)


def put(store: Held, stage: StageId, content: Content) -> Held:
    return without(store, stage) | {(stage, content)}


def without(store: Held, stage: StageId) -> Held:
    return frozenset(item for item in store if item[0] != stage)


def find(stages: frozenset[Stage], id: StageId) -> Stage | None:
    return next((stage for stage in stages if stage.id == id), None)


def write(stages: frozenset[Stage], stage: Stage) -> frozenset[Stage]:
    return frozenset(other for other in stages if other.id != stage.id) | {stage}


class Model:
    """The moves that are possible in a state, by the part that makes them."""

    def __init__(self, protections: Protections, cast: Cast) -> None:
        self.on = protections
        self.cast = cast
        self._steps = {
            "idle": self._begin,
            "begun": self._write_graph,
            "in graph": self._write_vectors,
            "in vectors": self._flush,
            "flushed": self._verify,
            "verified": self._commit,
        }
        self._playing = [n for n, plays in enumerate((True, cast.retry, cast.newer)) if plays]

    def first(self) -> State:
        """Return the first state: version 1 is live, complete and on the disks."""
        store: Held = frozenset({(FIRST, (1, 0))})
        return State(
            workers=("idle", "idle", "idle"),
            stages=frozenset({Stage(FIRST, "committed", "")}),
            live=FIRST,
            graph=store,
            vectors=store,
            graph_disk=store,
            vectors_disk=store,
            crashes_left=int(self.cast.crash),
        )

    def moves(self, state: State) -> Moves:
        for n in self._playing:
            if state.workers[n] != ENDED:
                yield from self._steps[state.workers[n]](state, n)
        if self.cast.sweeper:
            yield from self._sweep(state)
        if self.cast.collector:
            yield from self._collect(state)
        if self.cast.again:
            yield from self._execute_again(state)
        if self.cast.reader:
            yield from self._read(state)
        if state.crashes_left:
            yield from self._crash(state)

    # Workers

    def id_of(self, n: int) -> StageId:
        return VERSIONS[n], ATTEMPTS[n] if self.on.fresh_stage_ids else 0

    def _content(self, n: int) -> Content:
        return VERSIONS[n], 0 if self.on.kept_manifest else ATTEMPTS[n]

    @staticmethod
    def _to(state: State, n: int, step: str) -> State:
        """Return the state in which worker `n` has reached this step."""
        steps = list(state.workers)
        steps[n] = step
        first, second, third = steps
        return state._replace(workers=(first, second, third))

    def _begin(self, state: State, n: int) -> Moves:
        stages = state.stages
        if n == 1:  # the retry exists only after a first attempt, which it takes over
            former = find(stages, self.id_of(0))
            if former is None:
                return
            if former.status in ("committed", "superseded", "reaping"):
                yield "B sees that version 2 is done", self._to(state, n, ENDED)
                return
            if former.status == "staging":
                stages = write(stages, former._replace(status="aborted"))
        elif self.on.newest_wins and VERSIONS[n] <= state.live[0]:
            yield f"{NAMES[n]} is too old", self._to(state, n, ENDED)
            return
        stages = write(stages, Stage(self.id_of(n), "staging", NAMES[n]))
        yield f"{NAMES[n]} begins", self._to(state, n, "begun")._replace(stages=stages)

    def _write_graph(self, state: State, n: int) -> Moves:
        graph = put(state.graph, self.id_of(n), self._content(n))
        yield f"{NAMES[n]} writes the graph", self._to(state, n, "in graph")._replace(graph=graph)

    def _write_vectors(self, state: State, n: int) -> Moves:
        vectors = put(state.vectors, self.id_of(n), self._content(n))
        step = "in vectors" if self.on.flush_first else self._after_flush()
        yield f"{NAMES[n]} writes the vectors", self._to(state, n, step)._replace(vectors=vectors)

    def _after_flush(self) -> str:
        return "flushed" if self.on.verify else "verified"

    def _flush(self, state: State, n: int) -> Moves:
        """The items of the stage become durable, without those that a crash has lost."""
        id, graph, vectors = self.id_of(n), state.graph_disk, state.vectors_disk
        if (content := held(state.graph, id)) is not None:
            graph = put(graph, id, content)
        if (content := held(state.vectors, id)) is not None:
            vectors = put(vectors, id, content)
        flushed = self._to(state, n, self._after_flush())
        yield (
            f"{NAMES[n]} flushes",
            flushed._replace(graph_disk=graph, vectors_disk=vectors),
        )

    def _verify(self, state: State, n: int) -> Moves:
        id, wanted = self.id_of(n), self._content(n)
        if held(state.graph, id) == wanted == held(state.vectors, id):
            yield f"{NAMES[n]} verifies", self._to(state, n, "verified")
        else:
            yield f"{NAMES[n]} finds it not whole", self._to(state, n, ENDED)

    def _commit(self, state: State, n: int) -> Moves:
        id = self.id_of(n)
        stage = find(state.stages, id)
        mine = stage is not None and stage.status == "staging" and stage.owner == NAMES[n]
        newer = VERSIONS[n] > state.live[0] or not self.on.newest_wins
        if newer and (mine or not self.on.state_in_commit):
            stages = state.stages
            former = find(stages, state.live)
            if former and former.id != id:
                stages = write(stages, former._replace(status="superseded"))
            stages = write(stages, Stage(id, "committed", NAMES[n]))
            ended = self._to(state, n, ENDED)
            yield f"{NAMES[n]} COMMITS", ended._replace(stages=stages, live=id)
            return
        stages = state.stages
        if stage is not None and mine:
            stages = write(stages, stage._replace(status="aborted"))
        yield f"{NAMES[n]} is refused", self._to(state, n, ENDED)._replace(stages=stages)

    def _execute_again(self, state: State) -> Moves:
        """The orchestrator takes A's step for lost and executes it again, while A goes on."""
        id = self.id_of(0)
        content = (2, 0) if self.on.kept_manifest else (2, AGAIN)
        if state.workers[0] != "idle" and state.again == "idle":
            graph = put(state.graph, id, content)
            yield "A's step again: graph", state._replace(again="in graph", graph=graph)
        elif state.again == "in graph":
            vectors = put(state.vectors, id, content)
            yield "A's step again: vectors", state._replace(again=ENDED, vectors=vectors)

    # Deletion

    def _sweep(self, state: State) -> Moves:
        """A lease may seem to have expired at any time, because clocks and processes pause."""
        task = state.sweeping
        if task is None:
            for stage in state.stages:
                left = held(state.graph, stage.id) or held(state.vectors, stage.id)
                if stage.status == "staging" or (stage.status == "aborted" and left):
                    stages = state.stages
                    if self.on.dead_first:
                        stages = write(stages, stage._replace(status="aborted"))
                    yield (
                        f"sweeper takes {stage.id}",
                        state._replace(sweeping=Task(stage.id), stages=stages),
                    )
        elif not task.graph_done:
            yield (
                f"sweeper deletes {task.stage} in the graph",
                _without_in_graph(state, task.stage)._replace(
                    sweeping=task._replace(graph_done=True)
                ),
            )
        else:
            swept = find(state.stages, task.stage)
            stages = state.stages
            if swept and swept.status == "staging" and not self.on.dead_first:
                stages = write(stages, swept._replace(status="aborted"))
            yield (
                f"sweeper deletes {task.stage} in the vectors",
                _without_in_vectors(state, task.stage)._replace(sweeping=None, stages=stages),
            )

    def _collect(self, state: State) -> Moves:
        task = state.collecting
        if task is None:
            for stage in state.stages:
                read = self.on.grace and state.reading and state.reading.snapshot == stage.id
                if stage.status == "superseded" and not read:
                    stages = write(state.stages, stage._replace(status="reaping"))
                    yield (
                        f"collector takes {stage.id}",
                        state._replace(collecting=Task(stage.id), stages=stages),
                    )
        elif not task.graph_done:
            cleaned = _without_in_graph(state, task.stage)
            yield (
                f"collector deletes {task.stage} in the graph",
                cleaned._replace(collecting=task._replace(graph_done=True)),
            )
        else:
            cleaned = _without_in_vectors(state, task.stage)
            yield (
                f"collector deletes {task.stage} in the vectors",
                cleaned._replace(collecting=None),
            )

    # Readers and crashes

    def _read(self, state: State) -> Moves:
        reading = state.reading
        if reading is None:
            yield "reader takes its snapshot", state._replace(reading=Reading(state.live))
            return
        snapshot = reading.snapshot if self.on.snapshot_first else state.live
        if reading.reads == 0:
            read = reading._replace(snapshot=snapshot, graph=held(state.graph, snapshot), reads=1)
            yield "reader asks the graph", state._replace(reading=read)
        elif reading.reads == 1:
            read = reading._replace(
                snapshot=snapshot, vectors=held(state.vectors, snapshot), reads=2
            )
            yield "reader asks the vectors", state._replace(reading=read)
        else:
            yield "reader ends", state._replace(reading=None)

    @staticmethod
    def _crash(state: State) -> Moves:
        if state.graph != state.graph_disk:
            yield "the graph CRASHES", state._replace(graph=state.graph_disk, crashes_left=0)
        if state.vectors != state.vectors_disk:
            yield "the vectors CRASH", state._replace(vectors=state.vectors_disk, crashes_left=0)


def _without_in_graph(state: State, stage: StageId) -> State:
    return state._replace(
        graph=without(state.graph, stage), graph_disk=without(state.graph_disk, stage)
    )


def _without_in_vectors(state: State, stage: StageId) -> State:
    return state._replace(
        vectors=without(state.vectors, stage), vectors_disk=without(state.vectors_disk, stage)
    )


CASTS = {
    "attempts": Cast(retry=True, newer=True, crash=False),
    "crashes": Cast(retry=True, again=True, collector=True),
    "late": Cast(newer=True, again=True, collector=True, crash=False),
    "readers": Cast(newer=True, collector=True, reader=True),
}

ABLATIONS = {
    "fresh_stage_ids": ("attempts", "the live version is missing in a store"),
    "kept_manifest": ("crashes", "the live version is of two computations"),
    "flush_first": ("crashes", "the live version is missing in a store"),
    "verify": ("crashes", "the live version is missing in a store"),
    "state_in_commit": ("attempts", "the live version is missing in a store"),
    "newest_wins": ("attempts", "an older version took the place of a newer one"),
    "dead_first": ("attempts", "the live version is missing in a store"),
    "grace": ("readers", "a reader saw part of a version"),
    "snapshot_first": ("readers", "a reader saw a mix of two versions"),
}
"""For each protection, the cast that needs it and the violation without it."""

assert set(ABLATIONS) == {field.name for field in fields(Protections)}
