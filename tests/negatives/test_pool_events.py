"""Events of a negative pool: how errors read, and which of them end a run."""

from __future__ import annotations

import pickle

import pytest

from distkg.negatives.prefetch.pool_events import (
    BrokenDrawError,
    NegativePoolError,
    PoolEvent,
    PoolEventLog,
    describe_error,
    one_line,
)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_an_error_is_described_by_type_message_and_place_on_one_line() -> None:
    text = describe_error(raised(KeyError("a\nb")))
    assert text.startswith(r"KeyError: 'a\nb' (test_pool_events.py, line ")
    assert describe_error(RuntimeError("two\nlines\x1b[31m")) == r"RuntimeError: two lines\x1b[31m"


def test_long_texts_are_cut() -> None:
    assert one_line("x" * 700) == "x" * 600 + " …"


def test_what_raises_has_failed_and_what_differs_from_the_request_is_broken() -> None:
    failed = PoolEvent.of_error(raised(RuntimeError("no luck")), "drawing for step 3").at("negative actor 1")
    assert failed.kind == "failed"
    assert failed.text.startswith("negative actor 1: drawing for step 3: RuntimeError: no luck (test_pool_events.py")
    assert "Traceback" in failed.trace
    broken = PoolEvent.of_error(raised(BrokenDrawError("entities is a list")), "drawing for step 3")
    assert broken == PoolEvent("broken", "drawing for step 3: entities is a list")


@pytest.mark.parametrize("kind", ["failed", "broken"])
def test_a_mistake_ends_the_run_and_says_how_to_go_on_without(kind: str) -> None:
    log = PoolEventLog("fail")
    with pytest.raises(
        NegativePoolError, match=r"no luck\. To continue with .* negatives\.pool\.on_error: fallback"
    ) as ended:
        log.heed([PoolEvent(kind, "no luck", "the trace")])  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(ended.value))  # as it travels to the driver
    assert str(copy) == str(ended.value)
    assert copy.__notes__ == ["the trace"]


@pytest.mark.parametrize("on_error", ["fail", "fallback"])
def test_deaths_hangs_and_replies_that_arrive_broken_never_end_the_run(on_error: str) -> None:
    log = PoolEventLog(on_error)  # type: ignore[arg-type]
    log.heed([PoolEvent("lost", "it died"), PoolEvent("hung", "it hung")])
    log.warn(PoolEvent("broken", "shape"))
    assert [event.text for event in log.take_warnings()] == ["it died", "it hung", "shape"]


def test_of_each_kind_one_warning_is_given_in_a_run() -> None:
    log = PoolEventLog("fallback")
    for number in range(3):
        log.heed([PoolEvent("failed", f"failure {number}"), PoolEvent("lost", f"loss {number}")])
    assert [event.text for event in log.take_warnings()] == ["failure 0", "loss 0"]
    log.heed([PoolEvent("failed", "failure 3")])
    assert log.take_warnings() == []
    log.heed([PoolEvent("hung", "it hung"), PoolEvent("broken", "shape")])
    log.mark_said(["hung"])  # by another rank
    assert [event.kind for event in log.take_warnings()] == ["broken"]
