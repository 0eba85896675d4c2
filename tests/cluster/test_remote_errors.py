"""Errors of Ray calls: which are losses, how mistakes read, and what a process raises in their place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions as errors

from distkg.cluster.sampling import negative_pool
from distkg.cluster.sampling.negative_pool import BLEND_EVERY, NegativeActor
from distkg.cluster.session import remote_errors
from distkg.cluster.session.remote_errors import (
    RemoteTaskError,
    describe_remote_error,
    get_or_explain,
    is_loss,
    mistake_of,
)
from distkg.data.errors import StoreError
from distkg.negatives.prefetch.pool_events import PoolEvent


def task_error(cause: Exception) -> errors.RayTaskError:
    text = f"Traceback (most recent call last):\n  frames\n{type(cause).__name__}: {cause}\n"
    return errors.RayTaskError("make", text, cause)


LOST = errors.ActorUnavailableError("RPC error", b"1" * 16)
CASES: list[tuple[Exception, bool, str | None]] = [
    (LOST, True, None),
    (errors.WorkerCrashedError(), True, None),
    (errors.OutOfMemoryError("full"), True, None),
    (task_error(errors.OwnerDiedError("1" * 56, None, "")), True, None),
    (task_error(LOST), True, None),
    (errors.ActorDiedError(task_error(KeyError("k"))), False, "KeyError: 'k'"),
    (task_error(KeyError("k")), False, "KeyError: 'k'"),
    (task_error(errors.RaySystemError(ValueError("unreadable"), "frames")), False, "ValueError: unreadable"),
    (errors.RaySystemError(ValueError("unreadable"), "frames"), False, "ValueError: unreadable"),
    (errors.RuntimeEnvSetupError("no such folder"), False, None),
]


@pytest.mark.parametrize(("error", "loss", "text"), CASES, ids=[str(place) for place in range(len(CASES))])
def test_losses_and_mistakes_are_told_apart(error: Exception, loss: bool, text: str | None) -> None:
    assert is_loss(error) is loss
    if text is not None:
        assert describe_remote_error(error) == text
    assert "\n" not in describe_remote_error(error)


def test_what_a_user_can_mend_is_raised_as_it_was_and_the_rest_is_described() -> None:
    mendable = StoreError("no such store")
    assert mistake_of(task_error(mendable), "making graphs") is mendable
    for cause, text in (
        (
            ValueError("max() arg is an empty sequence"),
            "making graphs failed: ValueError: max() arg is an empty sequence",
        ),
        (RuntimeError("a\nb"), "making graphs failed: RuntimeError: a b"),
    ):
        found = mistake_of(task_error(cause), "making graphs")
        assert isinstance(found, RemoteTaskError)
        assert str(found) == text
    lost = mistake_of(errors.WorkerCrashedError(), "making graphs")
    assert str(lost).startswith("making graphs failed: its process died at every attempt (killed, out of memory")


def test_every_outcome_of_a_task_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(ref: Any) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return ref

    monkeypatch.setattr(remote_errors, "ray", SimpleNamespace(get=get))
    assert get_or_explain(7, "counting") == 7  # type: ignore[arg-type]
    with pytest.raises(RemoteTaskError, match="counting failed: KeyError: 'k'"):
        get_or_explain(task_error(KeyError("k")), "counting")  # type: ignore[arg-type]


class Host:
    def answer(self, request: Any, incarnation: str) -> str:
        return "reply"

    def weights(self) -> dict[str, Any]:
        return {"w": 1}


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ((None, None), False),
        ((None, PoolEvent("failed", "taking over what another actor has learned: KeyError: 'w'")), True),
        (LOST, False),
        (errors.ActorDiedError(), False),
        (task_error(KeyError("w")), True),
    ],
)
def test_what_a_peer_raises_while_it_takes_over_weights_is_told_with_the_next_draw(
    monkeypatch: pytest.MonkeyPatch, outcome: Any, told: bool
) -> None:
    sent: list[str] = []

    def get(ref: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    peer = SimpleNamespace(blend=SimpleNamespace(remote=lambda key, weights, graphs: sent.append(key) or "ref"))
    context = SimpleNamespace(get_node_id=lambda: "node")
    fake = SimpleNamespace(
        get=get,
        wait=lambda refs, timeout: (refs, []),
        get_actor=lambda name: peer,
        get_runtime_context=lambda: context,
        exceptions=errors,
    )
    monkeypatch.setattr(negative_pool, "ray", fake)
    actor = NegativeActor({}, "peer", 0)
    actor.__dict__["_servers"] = {"0": Host()}
    _, replies = actor.draw("0", "group", [object()] * BLEND_EVERY, {})  # type: ignore[list-item]
    assert replies == ["reply"] * BLEND_EVERY
    assert sent == ["0"]
    _, replies = actor.draw("0", "group", [object()] * BLEND_EVERY, {})  # type: ignore[list-item]
    if not told:
        assert replies == ["reply"] * BLEND_EVERY
        assert sent == ["0", "0"]
    else:
        assert isinstance(replies, PoolEvent)
        assert "KeyError: 'w'" in replies.text
