"""Doing something on one rank or on all so that an error on any rank reaches every rank, and none waits for nothing."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from training.distributed import World

T = TypeVar("T")


def on_main(world: World, action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, on every rank; an error of it is raised on every rank."""
    answer: Any = None
    failure: Exception | None = None
    if world.is_main:
        answer, failure = _tried(action)
    answer, failure = world.from_main((answer, failure))
    if failure is not None:
        raise failure
    return answer


def everywhere(world: World, action: Callable[[], T]) -> T:
    """What `action` returns on this rank; an error on any rank is raised on every rank, that of the lowest one."""
    answer, failure = _tried(action)
    if world.max([failure is not None])[0]:
        failures = world.gather_to_main(failure)
        raise world.from_main(next(filter(None, failures), None) if failures else None)
    return answer


def _tried(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, _that_travels(error)


def _that_travels(error: Exception) -> Exception:
    """The error itself, or where it does not survive the way to other ranks one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
