"""How rows get on, told to the HTTP side: from the model's thread into the server's loop, and on as server-sent events.

worker's thread: Row.tell -> queue of the loop -> `follow` -> `at_once` (waits for the end) or `streamed` (each piece)
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from fastapi import Request
from fastapi.responses import StreamingResponse

from launcher.serving import answers
from launcher.serving.answers import Answer, Form
from launcher.serving.requests import WritingRequest
from launcher.serving.worker import Ending, Worker
from launcher.serving.writing import Row


class Event(NamedTuple):
    """More of a row."""

    row: int
    text: str
    ended: str | None
    error: Exception | None


def follow(worker: Worker, rows: Sequence[Row]) -> AsyncIterator[Event]:
    """Queues rows now, or raises Busy; gives how they get on. Who stops listening cancels them."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
    places = {row: index for index, row in enumerate(rows)}

    def tell(row: Row) -> None:
        piece = row.text.take(row.is_done)
        if piece or row.is_done:
            loop.call_soon_threadsafe(events.put_nowait, Event(places[row], piece, row.ended, row.error))

    for row in rows:
        row.tell = tell
    worker.write(rows)
    return _told(rows, events)


async def _told(rows: Sequence[Row], events: asyncio.Queue[Event]) -> AsyncIterator[Event]:
    going_on = len(rows)
    try:
        while going_on:
            event = await events.get()
            if isinstance(event.error, Ending):
                raise event.error
            if event.error is not None:
                raise RuntimeError("the model broke; the server's own words say how") from event.error
            going_on -= event.ended is not None
            yield event
    finally:
        for row in rows:
            row.cancelled = row.ended is None


async def at_once(request: Request, worker: Worker, rows: Sequence[Row]) -> None:
    """Has rows written to their ends, or to where nobody listens any more."""
    async for _ in follow(worker, rows):
        if await request.is_disconnected():
            return


def streamed(
    worker: Worker, rows: Sequence[Row], form: Form, body: WritingRequest, starts: Sequence[str] = ()
) -> StreamingResponse:
    """Rows as server-sent events; `starts` come before their own texts."""
    return StreamingResponse(_lines(follow(worker, rows), rows, form, body, starts), media_type="text/event-stream")


async def _lines(
    events: AsyncIterator[Event], rows: Sequence[Row], form: Form, body: WritingRequest, starts: Sequence[str]
) -> AsyncIterator[str]:
    for index, start in enumerate(starts):
        if start:
            yield _sent(form.chunk(index, start, None))
    try:
        async for event in events:
            yield _sent(form.chunk(event.row, event.text, event.ended))
    except (RuntimeError, Ending) as error:  # the status is sent already
        yield _sent(answers.error(str(error), kind="server_error"))
        return
    if body.stream_options is not None and body.stream_options.include_usage:
        yield _sent(form.last_chunk(answers.usage(rows, body.n or 1)))
    yield "data: [DONE]\n\n"


def _sent(value: Answer) -> str:
    return f"data: {json.dumps(value)}\n\n"
