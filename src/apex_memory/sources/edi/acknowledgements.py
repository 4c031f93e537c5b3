"""Partners' functional acknowledgements (997) of what we sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apex_memory.model import Document
from apex_memory.sources.edi.document_builder import DocumentBuilder, add_remaining
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.fields import first_segment, split_loops
from apex_memory.sources.edi.x12.segments import Segment, element


def acknowledgement_document(builder: DocumentBuilder) -> Document:
    """Return the `acknowledgement` of a 997."""
    group, summary = first_segment(builder.segments, "AK1"), first_segment(builder.segments, "AK9")
    function, control = element(group, 1), element(group, 2)
    outcome = codes.describe(codes.OUTCOMES, element(summary, 1)) or "no answer"
    accepted, included = element(summary, 4) or "?", element(summary, 2) or "?"
    builder.lines.append(f"Functional acknowledgement: group {function} {control} {outcome}")
    builder.add_line("From", builder.sender)
    builder.add_line("Sets", f"{accepted} of {included} accepted")
    rejected = []
    _, responses = split_loops(builder.segments, "AK2")
    for response in responses:
        name = f"{element(response[0], 1)} {element(response[0], 2)}"
        builder.lines += _set_lines(name, response)
        if element(first_segment(response, "AK5"), 1) not in ("A", "E"):
            rejected.append(name)
    add_remaining(builder, builder.segments)
    builder.metadata |= {
        "function": function,
        "group": control,
        "answer": element(summary, 1),
        "rejected": rejected,
    }
    return builder.document("acknowledgement", f"997: group {function} {control} {outcome}")


def _set_lines(name: str, response: Sequence[Segment]) -> Iterator[str]:
    """Yield the outcome of a set, and a line for each AK3 and AK4."""
    result = first_segment(response, "AK5")
    outcome = codes.describe(codes.OUTCOMES, element(result, 1)) or "no answer"
    errors = [codes.describe(codes.SET_ERRORS, element(result, n)) for n in range(2, 7)]
    yield f"Set {name}: {'; '.join(filter(None, [outcome, *errors]))}"
    for segment in response:
        if segment[0] == "AK3":
            yield f"  segment {element(segment, 1)} at {element(segment, 2)}: error {element(segment, 4)}"
        elif segment[0] == "AK4":
            error = f"  element {element(segment, 1)}: error {element(segment, 3)} {element(segment, 4)}"
            yield error.rstrip()
