"""Errors of Ray calls told apart: losses, which a repetition may mend, and mistakes, which it would only repeat."""

from __future__ import annotations

import ray
from ray import exceptions as errors

from distkg.negatives.prefetch.pool_events import one_line

LOSSES = (
    errors.ActorUnavailableError,
    errors.WorkerCrashedError,
    errors.NodeDiedError,
    errors.LocalRayletDiedError,
    errors.OutOfMemoryError,
    errors.ObjectLostError,
)
"""A process, a node or an object is gone. Not ``ActorDiedError``: Ray raises that of an actor that never comes back."""


class RemoteTaskError(ValueError):
    """A task away from this process failed in a way that a repetition would not mend; the message has its error."""


def is_loss(error: BaseException) -> bool:
    """Whether a call failed because a process, a node or an object was lost, its own or one that it depends on."""
    cause = error.cause if isinstance(error, errors.RayTaskError) else error
    return isinstance(cause, LOSSES)


def describe_remote_error(error: BaseException) -> str:
    """What was raised remotely, on one line: type and message, without the frames that Ray adds."""
    cause = error.cause if isinstance(error, errors.RayTaskError) and error.cause is not None else error
    if isinstance(cause, errors.RaySystemError):  # while something was serialised or deserialised
        cause = cause.client_exc
    if isinstance(cause, errors.RayError):
        return _last_line(str(cause))  # the error itself stands below its frames
    return f"{type(cause).__name__}: {one_line(str(cause))}"


def mistake_of(error: BaseException, task: str) -> ValueError:
    """What a failed task is to be answered with in this process.

    Args:
        error: raised by ``ray.get``.
        task: what the task did, such as "making the graph s3://…".

    Returns:
        The error that the task raised, where that is a mistake that its user can mend; else one that describes it.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, ValueError) and type(cause).__module__.startswith("distkg."):
        return cause
    if is_loss(error):
        return RemoteTaskError(
            f"{task} failed: its process died, again and again (killed, out of memory, or its node was lost)"
        )
    return RemoteTaskError(f"{task} failed: {describe_remote_error(error)}")


def get_or_explain(ref: ray.ObjectRef | list[ray.ObjectRef], task: str) -> object:
    """``ray.get``; what a task raised is raised as of ``mistake_of``."""
    try:
        return ray.get(ref)
    except errors.RayError as error:
        raise mistake_of(error, task) from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "without a message"
