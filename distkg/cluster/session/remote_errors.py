"""Classification of errors of Ray calls: losses, which a retry may mend, and mistakes, which a retry would repeat."""

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
"""Errors of a lost process, node or object. Not ``ActorDiedError``: Ray raises it for an actor that never comes
back."""


class RemoteTaskError(ValueError):
    """Error of a remote task that a retry would not mend; the message has the error of the task."""


def is_loss(error: BaseException) -> bool:
    """Return whether a call failed because a process, a node or an object was lost, its own or one that it depends
    on."""
    cause = error.cause if isinstance(error, errors.RayTaskError) else error
    return isinstance(cause, LOSSES)


def describe_remote_error(error: BaseException) -> str:
    """Return a remote error on one line, as type and message, without the frames that Ray adds."""
    cause = error.cause if isinstance(error, errors.RayTaskError) and error.cause is not None else error
    if isinstance(cause, errors.RaySystemError):  # while something was serialised or deserialised
        cause = cause.client_exc
    if isinstance(cause, errors.RayError):
        return _last_line(str(cause))  # the error itself stands below its frames
    return f"{type(cause).__name__}: {one_line(str(cause))}"


def mistake_of(error: BaseException, task: str) -> ValueError:
    """Return the error to raise in this process for a failed task.

    Args:
        error: raised by ``ray.get``.
        task: description of the task, such as "making the graph s3://…".

    Returns:
        The error that the task raised, if the user can correct its cause; else one that describes it.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, ValueError) and type(cause).__module__.startswith("distkg."):
        return cause
    if is_loss(error):
        return RemoteTaskError(
            f"{task} failed: its process died at every attempt (killed, out of memory, or its node was lost)"
        )
    return RemoteTaskError(f"{task} failed: {describe_remote_error(error)}")


def get_or_explain(ref: ray.ObjectRef | list[ray.ObjectRef], task: str) -> object:
    """Return ``ray.get``; errors of a task are raised as of ``mistake_of``."""
    try:
        return ray.get(ref)
    except errors.RayError as error:
        raise mistake_of(error, task) from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "without a message"
