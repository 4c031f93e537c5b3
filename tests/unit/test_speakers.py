"""Which names in one document are one person's, and which addresses a question's names lead to."""

from __future__ import annotations

from time import perf_counter

import pytest

from apex_memory.speakers import SPEAKER, Label, addresses_of, handle_refs, refs_by_label

KIM = "Kim Lee <kim@harbor.example>"


def names(*labels: str) -> list[set[str]]:
    """Return for each label the words by which its passages are found."""
    refs = refs_by_label(labels)
    return [{ref.removeprefix(f"{SPEAKER}:") for ref in refs.get(label, ())} for label in labels]


@pytest.mark.parametrize(
    "alias",
    ["kim", "Kim", "Lee", "KL", "klee", "kimlee", "Kimberly Lee", "kim lee", "kim@harbor.example"],
)
def test_names_of_one_person_are_joined(alias: str) -> None:
    own, other = names(KIM, alias)
    assert own == other
    assert {"kim", "lee", "kim@harbor.example"} <= own


def test_all_forms_at_once_are_one_person() -> None:
    labels = (KIM, "kim", "Kimberly Lee", "KL", "klee@harbor.example <kim@harbor.example>")
    first, *others = names(*labels, "Dana Ortiz")
    assert all(own == first for own in others[:-1]) and not first & others[-1]


@pytest.mark.parametrize(
    ("first", "second", "short"),
    [
        ("Kim Lee", "Kim Park", "kim"),
        ("Kim Lee", "Kimberly Park", "kim"),
        ("Kim Lee", "Karl Lopez", "KL"),
        ("Kim Lee", "Sam Lee", "lee"),
        ("Kim Lee <kim@a.example>", "Kim Lee <kim@b.example>", "Kim Lee"),
    ],
)
def test_a_name_of_two_people_joins_nobody(first: str, second: str, short: str) -> None:
    alone = names(first)[0], names(second)[0]
    one, two, both = names(first, second, short)
    assert (one, two) == alone
    assert both == names(short)[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Dan Ortiz", "Dana Ortiz"),
        ("Kim Lee <kim@a.example>", "kim <kim@b.example>"),
        ("Kim Lee <dispatch@a.example>", "Dana Ortiz <dispatch@a.example>"),
        ("Kim Lee <a.ops@a.example>", "Dana Ortiz <a.ops@a.example>"),
        ("Kim Lee", "Kim Park"),
    ],
)
def test_two_people_stay_two(first: str, second: str) -> None:
    assert names(first, second) == [names(first)[0], names(second)[0]]


def test_an_equal_user_id_is_one_person() -> None:
    own, other, by_id = names("Kim Lee <U04AB12>", "Kimmy <u04ab12>", "U04AB12")
    assert own == other == by_id and {"kim", "kimmy", "u04ab12"} <= own


@pytest.mark.parametrize("role", ["user", "assistant", "tool lookup", ""])
def test_a_role_is_nobody(role: str) -> None:
    assert names(role, "Ute Serra") == [set(), {"ute", "serra"}]


def test_many_speakers_have_their_own_names_only() -> None:
    labels = [f"Driver{n} Smith" for n in range(200)]
    assert names("Kim Lee", "kim", *labels)[1] == {"kim"}


def test_labels_are_read_with_and_without_a_handle() -> None:
    assert Label.parse('"Lee, Kim" <Kim@Harbor.example>') == Label(
        ("lee", "kim"), "kim@harbor.example"
    )
    assert Label.parse("kim.lee@harbor.example").words == ("kim", "lee")
    assert Label.parse("Kim Lee") == Label(("kim", "lee"), "")


def test_a_question_names_addresses_and_user_ids() -> None:
    question = "what did Kim@Harbor.example, U04AB12 and Dana say?"
    assert handle_refs(question) == [f"{SPEAKER}:kim@harbor.example", f"{SPEAKER}:u04ab12"]


def test_the_names_of_a_question_lead_to_the_address_that_fits_best() -> None:
    labels = (KIM, "Kim Park <kp@a.example>", "Kim <dispatch@a.example>", "Kim", "")
    kim, lee = f"{SPEAKER}:kim", f"{SPEAKER}:lee"
    assert addresses_of(labels, [kim, lee]) == [f"{SPEAKER}:kim@harbor.example"]
    assert set(addresses_of(labels, [kim])) == {
        f"{SPEAKER}:kim@harbor.example",
        f"{SPEAKER}:kp@a.example",
    }
    assert addresses_of(labels, [f"{SPEAKER}:dana"]) == []


@pytest.mark.parametrize(
    "label", [" " * 2_000 + "x", "a < " * 1_000, "<" * 2_000 + " " * 2_000, "x" * 4_000]
)
def test_a_name_of_any_form_is_read_in_a_moment(label: str) -> None:
    """Names come from outside. A pattern with three runs of blanks took half a second for 1,000 of them, and eight times that for 2,000."""
    began = perf_counter()
    Label.parse(label)
    handle_refs(label)
    assert perf_counter() - began < 0.5
