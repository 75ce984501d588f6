"""A decorator-driven micro-framework for JSON APIs over WebSockets.

    from wsappy import App

    app = App()
    items = [{"id": 42, "name": "a"}, {"id": 15, "name": "b"}, {"id": 30, "name": "c"}]

    @app.client("/api")
    async def api(client):
        \"\"\"Everyone may come in.\"\"\"

    @app.module("entity")
    @app.method("get")
    def get(request, item_id: int):
        return {"items": [item for item in items if item["id"] == item_id]}

    if __name__ == "__main__":
        app.run("localhost", 8008)

A client sends calls, the server answers them with events; both are JSON objects:

    {"module": "entity", "method": "get", "data": {"item_id": 42}, "request_id": 1}
    {"request_id": 1, "module": "entity", "method": "get",
     "event": "result", "data": {"items": [{"id": 42, "name": "a"}]}}

One message's way, from bytes in to bytes out:

    socket -> Lane.read -> Calls.receive -> Calls.begin -> Method.bind -> the handler
    socket <- ServerWire.flush <- .post <- Answers.emit <- Answers.conclude <-------'

The story follows it, section by section; the appendices use it, and hand to it what
it needs of theirs:

    1. Errors          what a handler may raise, and how users' code is run
    2. Messages        decode and encode the two shapes
    3. Routes          paths, parameters, the checks at registration, the one table
    4. Wires           what a connection is to everything above it; bytes and frames
    5. Calls           find, check, run, answer; calls to the other side
    6. Clients         one object for each connection, from its request to its goodbye
    7. Groups          who is in which group, and pushes to all of them
    8. App             what users decorate with, and the server's life

    9. connect         the Python client, and the one for tests
    10. The classic API  the class-based server of wsappy 0.1.3
    11. Buses and workers  groups over several processes
    12. For people     AsyncAPI, the page, the browser's client, files
    13. ASGI           in another server, beside FastAPI, Starlette or Django
    14. The command line  `wsappy run` and `call`, say
"""

from __future__ import annotations

import abc
import argparse
import asyncio
import base64
import collections
import contextlib
import contextvars
import dataclasses
import datetime
import decimal
import difflib
import enum
import errno
import functools
import hashlib
import http
import importlib
import inspect
import ipaddress
import itertools
import json
import logging
import math
import operator
import os
import pathlib
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import types
import typing
import urllib.parse
import uuid
import warnings
import weakref
from collections.abc import (
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, Self, TypeVar

# The one place where the oldest versions stand, beside `install_requires`.
REQUIREMENTS = "python -m pip install 'orjson>=3.11.7' 'websockets>=17.4,<18'"


def check_versions() -> None:
    """Raise ImportError where a package is older than `REQUIREMENTS` says."""
    for name, floor in re.findall(r"(\w+)>=([\d.]+)", REQUIREMENTS):
        version = sys.modules[name].__version__
        found, least = (map(int, re.findall(r"\d+", each)) for each in (version, floor))
        if list(found) < list(least):
            raise ImportError(f"{name} {version} is too old")


try:
    import orjson
    import websockets
    from websockets import ConnectionClosed, Headers
    from websockets.asyncio.connection import Connection as LibraryConnection
    from websockets.exceptions import RequestLineTooLong, SecurityError
    from websockets.frames import Close, CloseCode, Frame, Opcode, apply_mask  # type: ignore[attr-defined]
    from websockets.http11 import SERVER, parse_headers, parse_line
    from websockets.protocol import Event, Protocol, Side, State
    from websockets.streams import StreamReader
    from websockets.uri import parse_uri

    check_versions()
except ImportError as exc:
    needs = f"wsappy needs orjson and websockets ({exc})"
    raise ImportError(f"{needs}; write: {REQUIREMENTS}") from exc

__version__ = "0.2.0"
__all__ = ["App", "Client", "ConnectionClosed", "Error", "Module", "Refused", "Request"]

LOGGER = logging.getLogger("wsappy")

# Seconds that one turn of the loop may take for dispatch or a stream.
TURN = 0.005
# Seconds: without a turn until who holds the loop is named; between two looks at it;
# between two lines in the log about one place.
BLOCKING, BLOCKING_LOOK, BLOCKING_SILENCE = 0.25, 0.05, 60.0
# Lines of one place in the log that a second may have, and places that are told apart.
MAX_LINES, MAX_PLACES = 5, 100
# Characters of a name or a text of a client's that an answer repeats.
MAX_TEXT = 200
# Levels of lists and objects in a message: what orjson writes, though it reads 1,024.
MAX_DEPTH = 254
# Faults that an answer lists, and that pydantic may have found to be looked at at all.
MAX_FAULTS, MAX_FOUND = 16, 1000
# Bad messages in a row that close a connection with 4400 (protocol, section 1).
MAX_BAD_MESSAGES = 16
# Refused origins that are logged, one line for each.
MAX_LOGGED_ORIGINS = 100
# Seconds that a cancelled call gets to end, and the hook that says goodbye.
CANCEL_GRACE, GOODBYE_GRACE = 1.0, 2.0
# Seconds that the closing handshake gets when the server stops, or drops a slow client.
CLOSE_GRACE = SLOW_GRACE = 1.0
# Bytes of a connection's answers that are joined before they are written.
WRITE_SIZE = 2**16
# Bytes that may wait for a client before it counts as behind; the default of
# `websockets`.
WRITE_LIMIT = 2**15
# Seconds that what follows the `yield` of a lifespan gets.
LIFESPAN_GRACE = 10.0
# How many times `max_backlog` may be pushed to one client in one turn of the loop.
MAX_BURST = 8
# Bytes that may arrive after the handshake's request (RFC 6455, section 4.1: none).
MAX_EARLY = 2**16
# Bytes of a request's body that are read, and the seconds until its connection is
# closed, so that the answer arrives: unread bytes would reset the connection.
MAX_BODY, BODY_GRACE = 2**20, 1.0
# Pages and files that are under way at once; one more is 503.
MAX_ANSWERS = 64
# Groups of one client, and bytes of a group's name (protocol, section 6).
MAX_GROUPS, MAX_GROUP_NAME = 128, 255
# A frame of up to so many bytes waits in the lane until all of it is here; a longer one
# goes to the library in the parts in which it comes.
SHORT_FRAME = 2**16
# Fragments of one message: what `websockets` allows by default.
MAX_FRAGMENTS = 4096
# Workers that run `thread=True` handlers: the number that the standard library takes.
MAX_THREADS = min(32, (os.cpu_count() or 1) + 4)

# Eager tasks came with Python 3.12; without them a task waits for the loop's next turn.
HAS_EAGER_TASKS = sys.version_info >= (3, 12)
TASK_OPTIONS: dict[str, Any] = {"eager_start": True} if HAS_EAGER_TASKS else {}
LAZY_TASKS = int(not HAS_EAGER_TASKS)
# Python 3.14 evaluates annotations when they are asked for, and a name that is imported
# for type checkers only isn't there; as a ForwardRef it is, for `resolve`.
LATE = importlib.import_module("annotationlib") if sys.version_info >= (3, 14) else None
SIGNATURE_OPTIONS = {"annotation_format": LATE.Format.FORWARDREF} if LATE else {}
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]

monotonic = time.monotonic
Target = TypeVar("Target")
if TYPE_CHECKING:
    # With a default: `Request` alone is `Request[Client]`.
    from typing_extensions import TypeVar as DefaultTypeVar

    ClientT = DefaultTypeVar("ClientT", bound="Client", default="Client")
else:
    ClientT = TypeVar("ClientT")
Function = TypeVar("Function", bound=Callable[..., Any])
JSON = Any
# None means every route.
Paths = Sequence[str] | None

# --- 1. Errors ---------------------------------------------------------------


def check_string(what: str, value: object, example: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string: got {value!r}; write {example}")


class Error(Exception):
    """An answer that says what went wrong; raise it in a handler.

    Args:
        code: What a program reads: `not_found`, `forbidden`, or any string of yours.
        message: What a person reads.
        details: Any JSON, or None for none.
        retry: Whether the same call may succeed later.

    Raises:
        TypeError: If *code* or *message* is no string.
    """

    def __init__(
        self, code: str, message: str = "", *, details: JSON = None, retry: bool = False
    ) -> None:
        check_string("code of an Error", code, "Error('not_found', 'no item 7')")
        check_string("message of an Error", message, "Error('not_found', 'no item 7')")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details
        self.retry = retry

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code

    def as_data(self) -> dict[str, JSON]:
        """Return the `data` of the `error` event (protocol, section 3)."""
        options = {"details": self.details, "retry": bool(self.retry) or None}
        given = {key: value for key, value in options.items() if value is not None}
        return {"code": self.code, "message": self.message, **given}

    @classmethod
    def from_data(cls, data: JSON) -> Self:
        """Make the error that an `error` event from the other side tells of."""
        data = data if isinstance(data, dict) else {"message": str(data)}
        code, message = str(data.get("code", "internal")), str(data.get("message", ""))
        retry = data.get("retry") is True
        return cls(code, message, details=data.get("details"), retry=retry)


class Refused(Exception):  # noqa: N818
    """A connection that isn't let in; raise it in `on_connecting`.

    Args:
        status: HTTP status, 401 to 499 or 500 to 507, as `http.HTTPStatus` has it.
        message: Text for the client; cut at 123 bytes where it becomes a close reason.

    Raises:
        TypeError: If *message* is no string.
        ValueError: If *status* is not one of these.
    """

    def __init__(self, status: int, message: str = "") -> None:
        example = "Refused(403, 'members only')"
        if status not in set(http.HTTPStatus) or not 401 <= status <= 507:
            must = "status of Refused must be one of HTTP in 401 to 499 or 500 to 507"
            raise ValueError(f"{must}: got {status!r}; write {example}")
        check_string("message of Refused", message, example)
        super().__init__(status, message)
        self.status = int(status)
        self.message = message

    def __str__(self) -> str:
        return f"{self.status} {self.message}".rstrip()

    @property
    def close_code(self) -> int:
        """The close code for the status (protocol, section 8)."""
        return 4000 + self.status


def cut_reason(text: str) -> str:
    """Cut *text* at 123 bytes, the room in a close frame (RFC 6455, section 5.5)."""
    return text.encode(errors="replace")[:123].decode(errors="ignore")


# What a client hears of a bug in a hook; its close code is 1011.
FAILED = Refused(500, "internal error")
UNKNOWN_METHOD = Error("unknown_method", "no such module or method")
INTERNAL = Error("internal", "internal error")
TIMEOUT = Error("timeout", "the call took too long", retry=True)
CANCELLED = Error("cancelled", "the caller cancelled the call")
OVERLOADED = Error("overloaded", "too many unfinished calls", retry=True)
STOPPING = Error("overloaded", "the server is stopping", retry=True)

# These stop the server in an orderly way, wherever users' code raises them.
STOPS = (SystemExit, KeyboardInterrupt)


@dataclass(slots=True)
class Failure:
    """What `run` and `run_to_end` return for users' code that raised."""

    exc: BaseException


def run(function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    """Run users' code of any kind: codecs, validators, error functions.

    Returns:
        What it returned, a coroutine for an `async def`; or a `Failure`.
    """
    try:
        return function(*arguments, **keywords)
    except STOPS:
        raise
    except BaseException as exc:  # noqa: BLE001
        return Failure(exc)


def stop_loop(exc: BaseException) -> Failure:
    """Let *exc* end the loop in its next turn; the call that raised it is answered."""

    def leave() -> None:
        raise exc

    asyncio.get_running_loop().call_soon(leave)
    return Failure(exc)


async def run_to_end(function: Callable[..., Any], /, *arguments: Any) -> Any:
    """Run users' code, and await what it returns where that can be awaited.

    Returns:
        Its result, or a `Failure`: for a cancellation that it raised by itself, too.
        One that came to this task from outside passes through.
    """
    task: Any = asyncio.current_task()
    cancelled = task.cancelling()
    try:
        result = function(*arguments)
        return await result if inspect.isawaitable(result) else result
    except STOPS as exc:
        return stop_loop(exc)
    except BaseException as exc:
        if isinstance(exc, asyncio.CancelledError) and task.cancelling() > cancelled:
            raise
        return Failure(exc)


# Tasks that the framework has cancelled: what they raise then is no bug.
CUT_TASKS: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def cut_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task in which users' code runs."""
    CUT_TASKS.add(task)
    task.cancel()


def log_failure(what: str, exc: BaseException, hint: str = "") -> None:
    # What stops the server is no failure.
    if not isinstance(exc, STOPS):
        LOGGER.error("%s failed%s", what, hint, exc_info=exc)


class Moderator(logging.Filter):
    """Lets a place log 5 lines a second, at WARNING and above, and then their count.

    A place is a line of code and the first argument of its text, such as a handler.
    What was left out is counted, and logged before the first line of a later second.
    """

    def __init__(self) -> None:
        super().__init__()
        self.second = 0
        self.counts = collections.Counter[Any]()
        self.silenced: dict[Any, logging.LogRecord] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is logged."""
        if record.levelno < logging.WARNING:
            return True
        if self.second != int(monotonic()):
            self._begin_second()
        # No more than the first: the others may come from a client.
        first = record.args[:1] if isinstance(record.args, tuple) else ()
        place = record.pathname, record.lineno, str(first)
        if place not in self.counts and len(self.counts) >= MAX_PLACES:
            place = (*place[:2], "")
        self.counts[place] += 1
        if self.counts[place] > MAX_LINES:
            self.silenced[place] = record
        return self.counts[place] <= MAX_LINES

    def _begin_second(self) -> None:
        silenced, self.silenced = self.silenced, {}
        counts, self.counts = self.counts, collections.Counter()
        self.second = int(monotonic())
        for place, record in silenced.items():
            record.args = (counts[place] - MAX_LINES, record.getMessage())
            record.msg, record.exc_info = "%d more lines like this one: %s", None
            LOGGER.callHandlers(record)


LOGGER.addFilter(Moderator())


# --- 2. Messages -------------------------------------------------------------

MIN_REQUEST_ID, MAX_REQUEST_ID = -(2**63), 2**63 - 1
MAX_REQUEST_ID_LENGTH = 128
UNREADABLE = "a message must be at most 254 deep, and hold no half of a surrogate pair"
BAD_ID = "request_id must be a string of at most 128 characters or a 64 bit integer"
TERMINAL = frozenset({"result", "error"})
# The keys of an event, in the order of the protocol.
EVENT_KEYS = ("request_id", "module", "method", "event", "data")


def is_request_id(value: object) -> bool:
    """Tell whether *value* may be a `request_id` (protocol, section 1)."""
    if type(value) is int:
        return MIN_REQUEST_ID <= value <= MAX_REQUEST_ID
    if type(value) is str:
        return len(value) <= MAX_REQUEST_ID_LENGTH
    return value is None


class Reading(NamedTuple):
    """What a message is: `call`, `event`, `push`, or `bad` for the reason *why*."""

    kind: str
    request_id: str | int | None
    why: str = ""


def classify(message: JSON) -> Reading:
    """Read a message by the table of the protocol, section 1, from the top."""
    if not isinstance(message, dict):
        return Reading("bad", None, "a message must be a JSON object")
    request_id, items = message.get("request_id"), message.get("items")
    if not is_request_id(request_id):
        return Reading("bad", None, BAD_ID)
    if not isinstance(message.get("event", ""), str):
        return Reading("bad", None, "event must be a string")
    if items is not None and (type(items) is not int or items < 1):
        return Reading("bad", request_id, "items must be an integer of at least 1")
    if "event" in message:
        return Reading("push" if request_id is None else "event", request_id)
    return classify_call(message, request_id)


def classify_call(message: dict[str, JSON], request_id: str | int | None) -> Reading:
    for key in ("module", "method"):
        if not isinstance(message.get(key), str):
            return Reading("bad", request_id, f"{key} must be a string")
    if not isinstance(message.get("data"), dict | None):
        return Reading("bad", request_id, "data must be an object")
    return Reading("call", request_id)


def text_of(message: JSON, key: str) -> str | None:
    """Return the string under *key*, or None."""
    value = message.get(key) if isinstance(message, dict) else None
    return value if isinstance(value, str) else None


def name_of(message: JSON, key: str) -> str | None:
    """Return the string under *key*, or None; for the answer to a bad message."""
    value = text_of(message, key)
    return None if value is None else shorten(value)


def shorten(text: str) -> str:
    """Cut a client's text, or one about it, to what an answer may repeat."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


# Runs of brackets, and strings, which may hold some; an unfinished one ends the text.
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]+|[\]}]+', re.DOTALL)


def flatten(text: str) -> str:
    """Write null for each list and object inside of an object."""
    depth, start, kept = 0, 0, list[str]()
    for match in BRACKETS.finditer(text):
        was, first, size = depth, match[0][0], match.end() - match.start()
        depth += size if first in "[{" else -size if first in "]}" else 0
        if was <= 1 < depth:
            kept += text[start : match.start()], "null"
        elif depth <= 1 < was:
            # The bracket that ends the object is the last one of its run.
            start = match.end() - 1 + depth
    return "".join([*kept, text[start:]])


def skim(payload: bytes) -> JSON:
    """Return what an answer needs of a message that orjson doesn't read.

    Returns:
        Its keys with what can be written of their values, for an object that is JSON
        but for its depth and halves of surrogate pairs; None for anything else.
    """
    # The standard library takes NaN, unless it is told not to.
    loads = functools.partial(json.loads, parse_constant=int)
    message = run(lambda: loads(payload.decode()))
    if type(message) is Failure and isinstance(message.exc, RecursionError):
        message = run(lambda: loads(flatten(payload.decode())))
    if not isinstance(message, dict):
        return None
    is_written = {key: type(run(orjson.dumps, message[key])) for key in message}
    return {key: message[key] for key in message if is_written[key] is bytes}


def message_of(*values: JSON) -> dict[str, JSON]:
    """Return an event of its `request_id`, `module`, `method`, `event` and `data`."""
    return dict(zip(EVENT_KEYS, values, strict=True))


def merge(data: JSON, fields: dict[str, JSON]) -> JSON:
    """Return `dict(data, **fields)`; without fields *data* as it is, `{}` for None.

    Raises:
        TypeError: If there are fields and *data* is no mapping.
    """
    data = {} if data is None else data
    if fields and not isinstance(data, Mapping):
        raise TypeError(f"data with fields must be a dict: got {data!r}; write {{...}}")
    return {**data, **fields} if fields else data


def duration_of(value: datetime.timedelta) -> str:
    """Return a duration in ISO 8601, as pydantic writes it: `P1DT2H`."""
    (years, days), rest = divmod(abs(value).days, 365), abs(value).seconds
    seconds = f"{rest % 60}.{abs(value).microseconds:06}".rstrip("0").rstrip(".")
    parts: list[tuple[Any, str]] = [(years, "Y"), (days, "D"), ("", "T")]
    parts += [(rest // 3600, "H"), (rest // 60 % 60, "M"), (seconds, "S")]
    text = "".join(f"{n}{unit}" for n, unit in parts if str(n) != "0").rstrip("T")
    return f"{'-' * (value.days < 0)}P{text or 'T0S'}"


# What is written for an object that orjson doesn't know.
PLAIN_FORMS: dict[type, Callable[[Any], JSON]] = {
    decimal.Decimal: str,
    pathlib.PurePath: str,
    datetime.timedelta: duration_of,
    # A named tuple: orjson writes no subclasses of tuple.
    **dict.fromkeys((set, frozenset, collections.deque, tuple), list),
}


def plain_of(value: Any) -> JSON:
    """Return what orjson can write for an object that it doesn't know."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    # Arrays that aren't contiguous, or hold strings, say.
    if hasattr(value, "tolist"):
        return value.tolist()
    for kind in type(value).__mro__:
        if kind in PLAIN_FORMS:
            return PLAIN_FORMS[kind](value)
    raise TypeError


def parts_of(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return what a value is made of, each with its name or its position."""
    if isinstance(value, Mapping):
        return list(value.items())
    if hasattr(value, "model_dump"):
        return list(vars(value).items())
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names]
    return enumerate(value if isinstance(value, SEQUENCES) else ())


SEQUENCES = (list, tuple, set, frozenset, collections.deque)


def find_unwritable(encode: Callable[[JSON], Any], value: JSON) -> tuple[str, JSON]:
    """Return path and value of the innermost part that can't be written."""
    path: list[str] = []
    # No deeper: a list may hold itself.
    while len(path) < MAX_DEPTH:
        is_bad = (type(run(encode, part)) is Failure for _, part in parts_of(value))
        found = next(itertools.compress(parts_of(value), is_bad), None)
        if found is None:
            break
        path.append(str(found[0]))
        value = found[1]
    return shorten(".".join(path)), value


ALL = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
# Tried only where plain `orjson.dumps` refuses: it costs two thirds more.
dumps_all = functools.partial(orjson.dumps, default=plain_of, option=ALL)


class Codec:
    """The JSON codec of an application.

    `decode` raises ValueError for what it can't read. `encode` is tried first, then
    `encode_all`.

    Args:
        loads: Reads bytes; those that aren't JSON never reach it.
        dumps: Returns bytes or str; None is orjson, with numpy and pydantic models.
    """

    def __init__(self, loads: Any, dumps: Any) -> None:
        self.loads: Callable[[bytes], JSON] = loads
        self.dumps = dumps or dumps_all
        self.decode = loads if loads is orjson.loads else self._decode_checked
        self.encode = orjson.dumps if dumps is None else self.encode_all

    def _decode_checked(self, payload: bytes) -> JSON:
        # The standard library takes UTF-16, NaN and halves of surrogate pairs, too.
        orjson.loads(payload)
        message = run(self.loads, payload)
        if type(message) is Failure:
            raise ValueError("not readable") from message.exc
        return message

    def check_depth(self, payload: bytes, message: JSON) -> None:
        """Raise ValueError for a message that is nested more than 254 deep."""
        if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH:
            level = [message if self.loads is orjson.loads else orjson.loads(payload)]
            # Not by writing it: some versions of orjson end the process over it.
            for _ in range(MAX_DEPTH):
                wholes = [
                    each.values() if type(each) is dict else each for each in level
                ]
                parts = itertools.chain.from_iterable(wholes)
                level = [part for part in parts if type(part) in (dict, list)]
            if level:
                raise ValueError("nested too deeply")

    def encode_all(self, value: JSON) -> bytes:
        """Encode whatever can be written; raises TypeError for the rest."""
        payload = run(self.dumps, value)
        if isinstance(payload, str):
            payload = run(str.encode, payload)
        if type(payload) is Failure:
            path, part = find_unwritable(self.dumps, value)
            must = f"{path or 'message'} must be JSON: got {type(part).__name__}"
            is_raw = isinstance(part, bytes | bytearray | memoryview)
            remedy = "; decode it, or write base64" if is_raw else ""
            raise TypeError(f"{must}: {payload.exc}{remedy}") from payload.exc
        if not isinstance(payload, bytes):
            raise TypeError(f"dumps must return bytes or str: got {payload!r}")
        return payload

    def write(self, message: dict[str, JSON]) -> bytes:
        """Encode a message; raises TypeError for what can't be written."""
        try:
            return self.encode(message)
        except TypeError:
            return self.encode_all(message)


# --- 3. Routes ---------------------------------------------------------------


class Converter(NamedTuple):
    """What a parameter of a path matches: a text of that *pattern*, given to *type*."""

    type: type
    pattern: str


NUMBER = "-?[0-9]{1,18}"
UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
CONVERTERS = {
    "str": Converter(str, "/([^/]+)"),
    "int": Converter(int, f"/({NUMBER})"),
    "float": Converter(float, rf"/({NUMBER}(?:\.[0-9]{{1,18}})?)"),
    "uuid": Converter(uuid.UUID, f"/({UUID})"),
    "path": Converter(str, "(?:/(.*))?"),
}
# In the name of a group a parameter matches neither `:` nor `/`.
GROUP_CONVERTERS = {
    name: Converter(each.type, each.pattern.removeprefix("/").replace("^/", "^:/"))
    for name, each in CONVERTERS.items()
    if name != "path"
}
PARAMETER = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")
# A slash between segments once they are decoded, since "%2F" is a slash inside of one;
# nothing that arrives can hold this half of a surrogate pair.
SLASH = "\ud800"


@dataclass(frozen=True, slots=True)
class Path:
    """A path with its parameters: `/rooms/{room}`, `/files/{rest:path}`.

    Attributes:
        text: As it was registered.
        shape: What two paths that can't be told apart have in common: the pattern.
        converters: The parameters by name, with their converters.
    """

    text: str
    shape: str
    converters: dict[str, str]

    def match(self, path: str) -> dict[str, Any] | None:
        """Return the parameters' values for a decoded path; None for another path."""
        found = re.fullmatch(self.shape, path, re.DOTALL)
        if found is None:
            return None
        texts = [text.replace(SLASH, "/") for text in found.groups("")]
        pairs = zip(self.converters.items(), texts, strict=True)
        return {name: CONVERTERS[each].type(text) for (name, each), text in pairs}


def decode_path(path: str) -> str:
    """Return a path from outside, with `SLASH` for its slashes."""
    try:
        slashed = path.partition("?")[0].replace("/", SLASH)
        return urllib.parse.unquote(slashed, errors="strict")
    except UnicodeDecodeError:
        # No path has a question mark.
        return "?"


def split_query(target: str) -> tuple[str, dict[str, str]]:
    """Cut what a client asks for into the path and the last value of each name."""
    path, _, query = target.partition("?")
    return path, dict(urllib.parse.parse_qsl(query, keep_blank_values=True))


def parse_path(text: str) -> Path:
    """Read a path as users write it; raises ValueError for what can't be one."""
    if not isinstance(text, str) or not text.startswith("/"):
        raise ValueError(f"path must start with '/': got {text!r}; write '/api'")
    pattern, converters = "", dict[str, str]()
    for segment in text.removesuffix("/").split("/")[1:]:
        if "path" in converters.values():
            raise ValueError(f"path {text!r} must end with its path parameter")
        if set(segment).isdisjoint("{}?#"):
            pattern += "/" + re.escape(segment)
        else:
            where = f"path {text!r}"
            pattern += parse_parameter(where, segment, converters, CONVERTERS)
    # One trailing slash more or less is the same path.
    return Path(text, f"{pattern}/?".replace("/", SLASH), converters)


def parse_group(text: str) -> Path:
    """Read a pattern of groups' names; raises ValueError for what can't be one."""
    if not isinstance(text, str) or not text:
        must = f"group must be a name with parameters: got {text!r}"
        raise ValueError(f"{must}; write 'room:{{id}}'")
    shape, converters = "", dict[str, str]()
    for piece in re.split(r"(\{[^{}]*\})", text):
        if set(piece).isdisjoint("{}"):
            shape += re.escape(piece)
        else:
            where = f"group {text!r}"
            shape += parse_parameter(where, piece, converters, GROUP_CONVERTERS)
    return Path(text, shape, converters)


def parse_parameter(
    where: str, piece: str, names: dict[str, str], converters: dict[str, Converter]
) -> str:
    """Read a piece such as `{id:int}` into *names*; return what it matches."""
    parameter = PARAMETER.fullmatch(piece)
    name, converter = parameter.groups("str") if parameter else ("", "")
    # `on_connecting` gets the parameters by name, after its own `self`.
    if not name.isidentifier() or name == "self":
        who = f"segment {piece!r} of {where}"
        raise ValueError(f"{who} must be a text or one parameter; write '{{room}}'")
    if converter not in converters:
        must = f"converter of {where} must be one of {', '.join(converters)}"
        raise ValueError(f"{must}: got {converter!r}; write '{{{name}}}'")
    if name in names:
        raise ValueError(f"{where} names a parameter twice; rename one")
    names[name] = converter
    return converters[converter].pattern


def layers_of(function: Any) -> list[Any]:
    """Return a function and all that it wraps; the last one is the plain function."""
    for name in ("__func__", "__wrapped__", "func"):
        if hasattr(function, name):
            return [function, *layers_of(getattr(function, name))]
    is_plain = inspect.isroutine(function) or not callable(function)
    return [function] if is_plain else [function, type(function).__call__]


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the parameters; their annotations may be strings or ForwardRefs."""
    signature = inspect.signature(function, **SIGNATURE_OPTIONS)
    return signature.replace(return_annotation=signature.empty)


def describe(function: object) -> str:
    """Name a function for an error text: `get` at `app.py`, line 12."""
    inner = layers_of(function)[-1]
    code = getattr(inner, "__code__", None)
    file = code and os.path.basename(code.co_filename)
    name = getattr(inner, "__qualname__", inner)
    return f"{name!r} ({file}:{code.co_firstlineno})" if code else repr(name)


TYPE_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    types.NoneType: "null",
    list: "a list",
    dict: "an object",
}
# All of these, and what else a codec may make of JSON.
ANYTHING = frozenset[type]({object, *TYPE_NAMES})
PLAIN_TYPES: dict[Any, frozenset[type]] = {
    **{kind: frozenset({kind}) for kind in TYPE_NAMES},
    # An integer will do for a float, and is passed as it came.
    float: frozenset({float, int}),
    list[Any]: frozenset({list}),
    dict[str, Any]: frozenset({dict}),
    **dict.fromkeys((Any, object, inspect.Parameter.empty), ANYTHING),
}


def plain_types(annotation: object) -> frozenset[type]:
    """Return the exact JSON types that *annotation* allows; none for pydantic's."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [plain_types(each) for each in typing.get_args(annotation)]
        return frozenset().union(*members) if all(members) else frozenset()
    # Compared and not looked up: some can't be hashed, such as Literal[[]].
    found = (kinds for plain, kinds in PLAIN_TYPES.items() if plain == annotation)
    return next(found, frozenset())


def resolve(function: object, name: str, annotation: object) -> Any:
    """Return an annotation as an object, reading a string in the function's module.

    One at a time: the annotation of the request, or of the return, may name what is
    imported for type checkers only.

    Raises:
        TypeError: If a name in it can't be found.
    """
    # Names are looked up in the module of what is wrapped.
    plain = layers_of(function)[-1]
    owner = types.SimpleNamespace(__annotations__={name: annotation}, __wrapped__=plain)
    hints = run(typing.get_type_hints, owner, include_extras=True)
    return checked(hints, function, name, annotation)[name]


def checked(outcome: Any, function: object, name: str, annotation: object) -> Any:
    """Return what came of an annotation; raises TypeError for a `Failure`."""
    if type(outcome) is not Failure:
        return outcome
    is_missing = isinstance(outcome.exc, ImportError)
    remedy = "python -m pip install pydantic" if is_missing else "a type of its module"
    why = str(outcome.exc).partition("\n")[0]
    who = f"annotation {annotation!r} of parameter {name!r} of {describe(function)}"
    raise TypeError(f"{who} can't be checked: {why}; write {remedy}") from outcome.exc


# Which arguments are wrong, by their dotted paths, and how.
Faults = list[tuple[str, str]]


def bad_data(faults: Faults) -> Error:
    """Return the error that lists faults, the first one in its message too.

    The message ends with how many more there are than those in its `details`.
    """
    details = [
        {"argument": shorten(path), "message": shorten(message)}
        for path, message in faults[:MAX_FAULTS]
    ]
    text, more = ": ".join(details[0].values()), len(faults) - len(details)
    text += f"; {more} more faults are not listed" if more else ""
    return Error("bad_data", text, details=details)


# Takes a value and its path; adds what is wrong with it to the faults.
Validator = Callable[..., Any]
# What holds no schema of pydantic's, though it may look like one.
NO_SCHEMAS = frozenset({"default", "metadata", "serialization"})


def fail_fast(schema: Any) -> Any:
    """Return a pydantic schema that finds one fault in each list or dict.

    Without it, bad data of 1 MiB makes 350,000 faults, ten times as many with models.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(map(fail_fast, schema))
    if not isinstance(schema, Mapping):
        return schema
    # Where its type is no string these are names of fields, say.
    left = NO_SCHEMAS if isinstance(schema.get("type"), str) else ()
    parts = schema.items()
    made = {key: part if key in left else fail_fast(part) for key, part in parts}
    # What isn't a list or a dict ignores it.
    return {**made, "fail_fast": True} if left else made


def validator_of(annotation: Any) -> Validator:
    """Return what converts an argument with pydantic, as strictly as JSON allows.

    It raises `Error`, `internal`, if a validator of the application's fails.

    Raises:
        ImportError: If pydantic isn't installed.
        Exception: Whatever, if it can't check the annotation.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415
    from pydantic_core import SchemaValidator  # noqa: PLC0415

    # The look-up raises where pydantic has put off a type that it can't resolve.
    schema = fail_fast(TypeAdapter(annotation).core_schema)
    # Or models would use the validators they were built with, which don't fail fast.
    # pydantic before 2.13 lacks the option, and always uses them.
    made = run(SchemaValidator, schema, _use_prebuilt=False)
    made = SchemaValidator(schema) if type(made) is Failure else made

    def convert(value: JSON, faults: Faults, *path: str) -> Any:
        # Strictness in JSON differs from that in Python: a date is a string there.
        payload, name = run(orjson.dumps, value, default=str), "".join(path)
        if type(payload) is Failure:
            return faults.append((name, str(payload.exc)))
        outcome = run(made.validate_json, payload, strict=True)
        if type(outcome) is not Failure:
            return outcome
        if not isinstance(outcome.exc, ValidationError):
            log_failure(f"check of argument {name or '**'!r}", outcome.exc)
            raise Error(*INTERNAL.args)
        if (count := outcome.exc.error_count()) > MAX_FOUND:
            return faults.append((name, f"{count} faults"))
        for fault in outcome.exc.errors(include_url=False, include_input=False):
            faults.append((".".join(map(str, (*path, *fault["loc"]))), fault["msg"]))
        return None

    return convert


@functools.cache
def expected(accepted: frozenset[type]) -> str:
    """Say in words which types an argument may have."""
    hidden = {int} if float in accepted else set()
    names = [text for kind, text in TYPE_NAMES.items() if kind in accepted - hidden]
    return "expected " + " or ".join(names)


def misfit(function: Any, *arguments: Any, **keywords: Any) -> BaseException | None:
    """Return why a function can't be called with these; None where it can."""
    outcome = run(lambda: signature_of(function).bind(*arguments, **keywords))
    return outcome.exc if type(outcome) is Failure else None


Guards = tuple[Callable[..., Any], ...]


def guards_of(allow: Any) -> Guards:
    """Return the guards of an option `allow`: None, a function, or several in a list.

    Raises:
        TypeError: If one of them can't be called with a request.
    """
    allow = () if allow is None else allow
    guards = tuple(allow) if isinstance(allow, list | tuple) else (allow,)
    for guard in guards:
        if misfit(guard, None) is not None:
            must = f"allow must be a function of the request: got {describe(guard)}"
            raise TypeError(f"{must}; write def may(request): return True")
    return guards


def judge(guard: Callable[..., Any], verdict: Any) -> None:
    """Let a call in where its guard said True.

    Raises:
        Error: `forbidden` for False; what the guard raised; `internal` for all else.
    """
    if verdict is True:
        return
    if verdict is False:
        raise Error("forbidden", "not allowed")
    exc = verdict.exc if type(verdict) is Failure else None
    if isinstance(exc, Error):
        raise exc
    if exc is None:
        must = "guard %s must return True or False: got %r"
        LOGGER.error(must, describe(guard), verdict)
    else:
        log_failure(f"guard {describe(guard)}", exc)
    raise Error(*INTERNAL.args)


@dataclass(slots=True)
class Mark:
    """What `@app.method` leaves on a function.

    Attributes:
        answers_itself: Whether only what it sends itself is an answer.
        guards: What decides whether a call may run.
        is_owned: Whether it belongs to a module.
    """

    name: str
    timeout: float | types.EllipsisType | None = ...
    in_thread: bool = False
    answers_itself: bool = False
    guards: Guards = ()
    is_owned: bool = False


class Kind(enum.Enum):
    """How a handler runs."""

    INLINE = "a `def`, in the step that reads the call"
    TASK = "an `async def`"
    STREAM = "a `def` or an `async def` with `yield`"
    THREAD = "a `def` in a worker thread"


# At hand by name: looking a member up in its class takes 90 ns on 3.11.
INLINE, TASK, STREAM, THREAD = Kind


# What the code of a function says; `types.coroutine` marks generators as awaited.
AWAITED = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE
YIELDS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def kind_of(function: Callable[..., Any], mark: Mark) -> Kind:
    """Return how a handler runs."""
    for layer in layers_of(function):
        flags = getattr(getattr(layer, "__code__", None), "co_flags", 0)
        if flags & AWAITED or inspect.iscoroutinefunction(layer):
            return TASK
        if flags & YIELDS:
            return STREAM
    return THREAD if mark.in_thread else INLINE


def is_async_generator(function: Callable[..., Any]) -> bool:
    """Tell whether it is an `async def` with `yield`, maybe wrapped in others."""
    return any(map(inspect.isasyncgenfunction, layers_of(function)))


class Method:
    """One row of the table: a handler, how it runs and what it takes.

    Everything that can be known at registration is worked out here, so that a call
    costs one look-up for each argument, and a comparison of sets where one is missing.

    Attributes:
        names: The module's name and the method's.
        parameters: Those of the handler; the first one is the request.
        required: Those without a default.
        reserved: Keys of data that would end up in `self`, or in the request.
        types: The exact JSON types of each argument; none where pydantic decides.
        module_guards: Those of its module, which every method of that name has.
        guards: What decides whether a call may run, in order.
        validators: How pydantic checks arguments; filled by `prepare`.
        rest_types: The exact JSON types of what `**kwargs` takes, all as `types`.
        check_rest: How pydantic checks all of them together.
        paths: The routes it is limited to, by their shapes; None for every one.
    """

    def __init__(
        self,
        module: str,
        function: Any,
        mark: Mark,
        clients: Paths = None,
        module_guards: Guards = (),
    ) -> None:
        self.module_guards, self.guards = module_guards, module_guards + mark.guards
        self.names = (module, mark.name)
        self.function = function
        self.kind = kind_of(function, mark)
        self.answers_itself = mark.answers_itself
        is_endless = self.kind is STREAM and mark.timeout is ...
        self.timeout = None if is_endless else mark.timeout
        self.parameters = list(signature_of(function).parameters.values())
        self._check(mark)
        named = [each for each in self.parameters[1:] if not takes_rest(each)]
        self.types = {each.name: ANYTHING for each in named}
        self.required = {each.name for each in named if each.default is each.empty}
        by_position = map(names_by_position, layers_of(function))
        self.reserved = frozenset[str]().union(*by_position) - self.types.keys()
        self.hints: dict[str, Any] = {}
        self.rest_hint: Any = None
        self.validators: dict[str, Validator] = {}
        self.rest_types = ANYTHING if any(map(takes_rest, self.parameters)) else None
        self.check_rest: Validator | None = None
        self.paths: dict[str, str] | None = None
        if clients is not None:
            self.paths = {parse_path(each).shape: each for each in clients}

    def _check(self, mark: Mark) -> None:
        """Refuse a handler that can't run as it is marked, or be called by names."""
        who = f"handler {describe(self.function)}"
        if mark.in_thread and self.kind is not THREAD:
            raise TypeError(f"{who} has thread=True, but is no plain def; leave it out")
        if mark.timeout is not ... and self.kind is INLINE:
            raise TypeError(f"{who} is a def with a timeout; add async or thread=True")
        by_position = inspect.Parameter.POSITIONAL_OR_KEYWORD
        first = [each.name for each in self.parameters[:1] if each.kind <= by_position]
        plain = names_by_position(layers_of(self.function)[-1])
        # `self` that is left over, or was left out: the object came as the request.
        is_odd = inspect.ismethod(self.function) and plain[:1] == ("request",)
        if is_odd or first in ([], ["self"]):
            raise self._no_request()
        for each in self.parameters[1:]:
            if each.kind in (each.VAR_POSITIONAL, each.POSITIONAL_ONLY):
                must = f"{who} must take {each.name!r} by name"
                raise TypeError(f"{must}; write it after the /, without a *")

    def _no_request(self) -> TypeError:
        name = getattr(layers_of(self.function)[-1], "__name__", "get")
        first = "self, " if inspect.ismethod(self.function) else ""
        remedy = f"def {name}({first}request, ...)"
        if self.parameters and self.parameters[0].name == "self":
            remedy += ", or @app.module above its class"
        must = f"handler {describe(self.function)} must take the request first"
        return TypeError(f"{must}: got {signature_of(self.function)}; write {remedy}")

    def __repr__(self) -> str:
        return ".".join(self.names)

    def clashes(self, other: Method) -> bool:
        """Tell whether both would have one name at some route."""
        if self.names != other.names:
            return False
        if self.paths is None or other.paths is None:
            return True
        return not self.paths.keys().isdisjoint(other.paths)

    def prepare(self) -> None:
        """Resolve the annotations; raises TypeError for one that can't be checked."""
        request, *named = self.parameters
        found = run(resolve, self.function, request.name, request.annotation)
        # One that is imported for type checkers only can't be found, and is fine.
        if type(found) is not Failure and not is_request(found):
            raise self._no_request()
        for each in named:
            check_default(self.function, each)
            resolved = resolve(self.function, each.name, each.annotation)
            if not takes_rest(each):
                self._accept(each.name, resolved)
            elif word_of(resolved) == "Unpack":
                self._accept_keys(each.name, typing.get_args(resolved)[0])
            else:
                self._accept_rest(each.name, resolved)

    def _accept(self, name: str, resolved: Any) -> None:
        self.hints[name] = resolved
        self.types[name] = plain_types(resolved)
        if not self.types[name]:
            made = run(validator_of, resolved)
            self.validators[name] = checked(made, self.function, name, resolved)

    def _accept_rest(self, name: str, resolved: Any) -> None:
        """Make the annotation of `**kwargs` a contract for each of its values."""
        self.rest_hint = resolved
        self.rest_types = plain_types(resolved) or ANYTHING
        if not plain_types(resolved):
            made = run(validator_of, types.GenericAlias(dict, (str, resolved)))
            self.check_rest = checked(made, self.function, name, resolved)

    def _accept_keys(self, name: str, kind: Any) -> None:
        """Accept the keys of a TypedDict, which `**kwargs` unpacks, as arguments."""
        self.rest_types = None
        hints = run(typing.get_type_hints, kind, include_extras=True)
        for key, hint in checked(hints, self.function, name, kind).items():
            is_required, inner = key in kind.__required_keys__, hint
            while (word := word_of(inner)) in ("Required", "NotRequired", "ReadOnly"):
                is_required = word == "Required" or (is_required and word == "ReadOnly")
                inner = typing.get_args(inner)[0]
            self._accept(key, inner)
            if is_required:
                self.required.add(key)

    def bind(self, data: dict[str, JSON]) -> dict[str, Any]:
        """Return the handler's arguments for *data*, or raise `Error("bad_data")`."""
        accepted = self.types
        try:
            for name, value in data.items():
                if type(value) not in accepted[name]:
                    break
            else:
                if len(data) == len(accepted) or self.required <= data.keys():
                    return data
        except KeyError:
            pass
        return self._bind_slowly(data)

    def _bind_slowly(self, data: dict[str, JSON]) -> dict[str, Any]:
        faults = [(name, "missing") for name in sorted(self.required - data.keys())]
        arguments, rest = dict(data), dict[str, JSON]()
        for name, value in data.items():
            accepted = self.types.get(name, self.rest_types)
            if name in self.validators:
                arguments[name] = self.validators[name](value, faults, name)
            elif name in self.reserved or accepted is None:
                faults.append((name, "unknown"))
            elif accepted.isdisjoint((object, type(value))):
                faults.append((name, expected(accepted)))
            elif name not in self.types:
                rest[name] = value
        if self.check_rest is not None:
            # All of them in one step, which ends at the first fault.
            arguments.update(self.check_rest(rest, faults) or {})
        if faults:
            raise bad_data(faults)
        return arguments


def takes_rest(parameter: inspect.Parameter) -> bool:
    """Tell whether a parameter takes what is left: `**kwargs`."""
    return parameter.kind is parameter.VAR_KEYWORD


def word_of(annotation: Any) -> str:
    """Return `Unpack` for `Unpack[...]`, of typing or of typing_extensions."""
    return str(typing.get_origin(annotation)).rpartition(".")[2]


def is_request(annotation: Any) -> bool:
    """Tell whether the annotation of a handler's first parameter fits a request."""
    kind = typing.get_origin(annotation) or annotation
    is_open = kind in (typing.Union, types.UnionType) or plain_types(kind) == ANYTHING
    if is_open or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    return issubclass(kind, Request)


def check_default(function: object, parameter: inspect.Parameter) -> None:
    """Raise TypeError for a pydantic `Field(...)`, which would be the default."""
    if type(parameter.default).__module__ == "pydantic.fields":
        who = f"default of parameter {parameter.name!r} of {describe(function)}"
        hint = parameter.annotation
        hint = hint if isinstance(hint, str) else inspect.formatannotation(hint)
        remedy = f"{parameter.name}: Annotated[{hint}, Field(...)]"
        must = f"{who} must be a value: got {parameter.default!r}"
        raise TypeError(f"{must}; write {remedy}")


def names_by_position(function: Any) -> tuple[str, ...]:
    """Return the parameters that a function takes by position, and by name as well."""
    code = getattr(function, "__code__", None)
    return code.co_varnames[code.co_posonlyargcount : code.co_argcount] if code else ()


def check_name(kind: str, name: object) -> None:
    check_string(f"name of a {kind}", name, f"@app.{kind}('name')")
    if len(str(name)) > MAX_TEXT:
        must = f"name of a {kind} must have at most {MAX_TEXT} characters"
        raise ValueError(f"{must}: got {len(str(name))}; write a shorter one")
    if str(name).startswith("$"):
        must = f"name of a {kind} must not start with '$'"
        raise ValueError(f"{must}: got {name!r}; write it without")


@dataclass(eq=False, slots=True)
class Route:
    """A path, what makes its clients, and the methods that can be called there.

    Attributes:
        path: Where clients connect.
        factory: Makes the client of a wire.
        origins: Which origins browsers may come from; see `App`.
        is_ordered: Whether it runs one call at a time.
        overrides: What sends for classes that send in their own way.
        kind: The class of its clients.
        methods: The methods by `(module, method)`.
        elsewhere: Those of other routes only, until the log has named them.
    """

    path: Path
    factory: Callable[[Any], Client]
    origins: str | Sequence[str] | None
    is_ordered: bool = False
    overrides: Overrides | None = None
    kind: Any = None
    methods: dict[tuple[str, str], Method] = field(default_factory=dict)
    elsewhere: dict[tuple[str, str], Method] = field(default_factory=dict)

    def offer(self, method: Method) -> None:
        """Add a method, unless it is limited to other routes."""
        is_here = method.paths is None or self.path.shape in method.paths
        (self.methods if is_here else self.elsewhere)[method.names] = method

    def note_unknown(self, names: tuple[str, str]) -> None:
        """Log once that a method was called which is there, but for other routes."""
        if method := self.elsewhere.pop(names, None):
            text = "%r was called at %r, but handler %s is for clients=%r"
            who, paths = describe(method.function), [*(method.paths or {}).values()]
            LOGGER.info(text, str(method), self.path.text, who, paths)


def has_parameters(route: Route) -> bool:
    """Tell whether the path of a route is a pattern."""
    return bool(route.path.converters)


class Table:
    """The one table: every (path, module, method) with its handler.

    Attributes:
        routes: The routes by the shapes of their paths.
        methods: All methods, in the order of registration.
        guards: Those of each module.
    """

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.methods: list[Method] = []
        self.guards: dict[str, Guards] = {}

    def add_route(self, route: Route) -> None:
        """Add a route; raises ValueError for a path that can't be told from another."""
        other = self.routes.setdefault(route.path.shape, route)
        if other is not route:
            texts = f"{route.path.text!r} clashes with {other.path.text!r}"
            raise ValueError(f"path {texts}; write another")
        for method in (*CONTROLS.values(), *self.methods):
            route.offer(method)

    def add_method(self, method: Method) -> None:
        """Add a method; raises ValueError where a route would have two of its name."""
        for other in self.methods:
            if method.clashes(other):
                new, old = describe(method.function), describe(other.function)
                must = f"handler {new} clashes with {old}: both are {str(method)!r}"
                remedy = "another name, or clients=[...] for both"
                raise ValueError(f"{must}; write {remedy}")
        name, guards = method.names[0], method.module_guards
        if self.guards.setdefault(name, guards) != guards:
            both = [[*map(describe, each)] for each in (guards, self.guards[name])]
            must = f"module {name!r} must have one allow: got {both[0]} and {both[1]}"
            raise ValueError(f"{must}; write the same for both")
        self.methods.append(method)
        for route in self.routes.values():
            route.offer(method)

    def find(self, path: str) -> tuple[Route, dict[str, Any]] | None:
        """Return the route of a path from outside with its parameters' values."""
        decoded = decode_path(path)
        # A literal path wins; patterns are tried in the order of registration.
        for route in sorted(self.routes.values(), key=has_parameters):
            if (params := route.path.match(decoded)) is not None:
                return route, params
        return None

    def prepare(self) -> None:
        """Check what only the whole can show; raises TypeError or ValueError."""
        if not self.routes:
            raise ValueError("no route is registered; write @app.client('/api')")
        for method in self.methods:
            method.prepare()
            for shape, path in (method.paths or {}).items():
                if shape not in self.routes:
                    who = f"route {path!r} of handler {describe(method.function)}"
                    raise ValueError(f"{who} isn't there; write @app.client({path!r})")

    def rows(self) -> dict[tuple[str, str, str], Callable[..., Any]]:
        """Return every (path, module, method) with its handler."""
        return {
            (route.path.text, *names): method.function
            for route in self.routes.values()
            for names, method in route.methods.items()
            if names not in CONTROLS
        }


# --- 4. Wires ----------------------------------------------------------------


class Threads(ThreadPoolExecutor):
    """Workers for `thread=True` handlers, and for `asyncio.to_thread` under `App.run`.

    They are daemons: a handler that never returns can't keep the process from ending,
    which the standard library's pool would.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit
        self.jobs = collections.OrderedDict[Future[Any], Callable[[], None]]()
        self.idle = self.count = 0
        self.changed = threading.Condition()

    def submit(self, function: Any, /, *given: Any, **named: Any) -> Future[Any]:
        """Run a function in a worker; its outcome is the future's."""
        future: Future[Any] = Future()
        with self.changed:
            if not self.limit:
                raise RuntimeError("the server that owns these threads has stopped")
            if len(self.jobs) >= self.idle and self.count < self.limit:
                # It raises RuntimeError where the system has no thread to give.
                threading.Thread(target=self._run, name="wsappy", daemon=True).start()
                self.count += 1
            job = functools.partial(function, *given, **named)
            self.jobs[future] = functools.partial(run_job, future, job)
            self.changed.notify()
        # One that is cancelled before its turn goes at once, with all that it holds.
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: Future[Any]) -> None:
        with self.changed:
            self.jobs.pop(future, None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers end once they have nothing left to do; waits for none."""
        with self.changed:
            self.limit = 0
            self.changed.notify_all()

    def _run(self) -> None:
        while job := self._next():
            job()

    def _next(self) -> Callable[[], None] | None:
        with self.changed:
            self.idle += 1
            self.changed.wait_for(lambda: self.jobs or not self.limit)
            self.idle -= 1
            return self.jobs.popitem(last=False)[1] if self.jobs else None


def run_job(future: Future[Any], job: Callable[[], Any]) -> None:
    """Run a function, unless it was cancelled; its outcome is the future's."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(job())
        except BaseException as exc:  # noqa: BLE001
            # SystemExit, say: it mustn't take the worker with it.
            future.set_exception(exc)


class Runtime:
    """The loop in which a server or a client lives: its turns, writes and threads.

    A turn is one round of the loop. Calls, streams and reads of all connections
    together may use it for `TURN` seconds; what has to wait then stands in one queue.

    Attributes:
        loop: The loop.
        thread: The number of its thread.
        threads: Workers for `thread=True` handlers.
        waiting: What goes on in a later turn, each for its share of it.
    """

    def __init__(self, threads: Threads) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.threads = threads
        self.waiting: collections.deque[Callable[[], object]] = collections.deque()
        self.deadline = 0.0
        self.elsewhere: collections.deque[Callable[[], object]] = collections.deque()
        self.has_pushed = self.is_sharing = False

    def call(self, action: Callable[..., object], *arguments: Any) -> None:
        """Call *action* now; from another thread, in the loop and in order."""
        if threading.get_ident() == self.thread:
            self.catch_up()
            action(*arguments)
        else:
            self.elsewhere.append(functools.partial(action, *arguments))
            # A loop that is closed has nobody left to hear of it.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.catch_up)

    def catch_up(self) -> None:
        """Do what other threads have asked for by now.

        Not only in `call_soon`: a handler that awaited a thread may resume before that
        callback runs, and what the thread sent has to go out before what it sends.
        """
        # No more than those: a thread that never stops asking mustn't hold the loop.
        for action in [self.elsewhere.popleft() for _ in range(len(self.elsewhere))]:
            # One that fails takes nothing from those after it, nor from who calls this.
            outcome = run(action)
            if type(outcome) is Failure:
                log_failure("what a thread asked for", outcome.exc)

    def begin_turn(self) -> float:
        """Return when this turn of the loop is over, in the seconds of `monotonic`."""
        if not self.deadline:
            self.deadline = monotonic() + TURN
            self.loop.call_soon(self._end_turn)
        return self.deadline

    def is_turn_over(self) -> bool:
        """Tell whether all that may be done in this turn is done."""
        return monotonic() >= (self.deadline or self.begin_turn())

    def _end_turn(self) -> None:
        self.deadline = 0.0
        self.has_pushed = False

    async def next_turn(self) -> None:
        """Let a task wait, in the queue, for a turn that it may go on in."""
        future = self.loop.create_future()
        self.wait(functools.partial(hand_over, future))
        await future

    def wait(self, go_on: Callable[[], object], *, is_urgent: bool = False) -> None:
        """Go on with something in a later turn, after all that has begun by now.

        Args:
            go_on: Returns True where it woke a task: the others wait for the next turn.
            is_urgent: Whether it goes before all others.
        """
        if not self.is_sharing:
            self.is_sharing = True
            self.loop.call_soon(self._share_turn)
        queue = self.waiting.appendleft if is_urgent else self.waiting.append
        queue(go_on)

    def _share_turn(self) -> None:
        end, share = self.begin_turn(), TURN / min(len(self.waiting), 16)
        # Round robin: each goes on for its share, and may queue up again for more.
        for _ in range(len(self.waiting)):
            self.deadline = monotonic() + share
            if self.waiting.popleft()() or monotonic() >= end:
                break
        self.deadline = end
        self.is_sharing = bool(self.waiting)
        if self.is_sharing:
            self.loop.call_soon(self._share_turn)

    def is_first_push(self) -> bool:
        """Tell whether no other push to a group came in this turn of the loop."""
        self.begin_turn()
        is_first, self.has_pushed = not self.has_pushed, True
        return is_first


def hand_over(future: asyncio.Future[Any], result: Any = None) -> bool:
    """Let a task go on; tell whether it does, since it may have been cancelled."""
    is_waiting = not future.done()
    if is_waiting:
        future.set_result(result)
    return is_waiting


class Phase(enum.Enum):
    """Where the life of a wire stands; it goes one way."""

    OPENING = "the handshake is under way"
    OPEN = "messages go both ways"
    CLOSING = "the closing handshake is under way: nothing more is sent"
    CLOSED = "the connection is gone"


# At hand by name: looking a member up in its class takes 90 ns on 3.11.
OPENING, OPEN, CLOSING, CLOSED = Phase


class Opening(NamedTuple):
    """What a client asked for when it connected.

    Attributes:
        target: The path, with the query.
        headers: Of the request.
        remote: `(host, port)` of the peer, None on a Unix socket.
        id: Distinct for each connection.
        scope: What a host's server says of it, if there is one.
    """

    target: str
    headers: Headers
    remote: tuple[str, int] | None
    id: str
    scope: dict[str, Any] | None = None


class Wire(abc.ABC):
    """What a connection is to everything above it: whole messages, both ways, in order.

    It is free of any library. Whoever makes a wire gives it `receive` and `calls`, and
    hands over its messages until the end. All of it is for the thread of the loop, but
    for `queue`.

    Attributes:
        runtime: The loop that it lives in.
        phase: Where its life stands.
        paused: Whether the other side is behind with reading.
        receive: Gets each whole message, and whether it came as text.
        calls: The calls of the other side, and those to it.
        session: The life of the client on it; None at the client's own end.
        opening: What the client asked for.
        max_size: Bytes of the largest message that it receives; None for no limit.
    """

    paused: bool
    # None while the client is being made.
    calls: Calls = None  # type: ignore[assignment]
    opening: Opening
    max_size: int | None

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.phase = OPENING
        self.receive: Callable[[bytes, bool], None] = ignore_message
        self.session: Session | None = None

    @abc.abstractmethod
    def post(self, payload: bytes) -> None:
        """Send an answer; nothing happens unless the wire is open.

        Check `paused` before running anything that makes more answers.
        """

    @abc.abstractmethod
    def push(self, payload: bytes) -> None:
        """Send what no flow control holds back: a client that is too slow is closed."""

    def deliver(self, payload: bytes, frame: bytes | None) -> None:
        """Send a push to a group.

        Args:
            payload: The message.
            frame: The same as a text frame, where it may be written at once.
        """
        self.push(payload)

    def queue(self, payload: bytes) -> Sent:
        """Send a push, from whichever thread."""
        if threading.get_ident() != self.runtime.thread:
            self.runtime.call(self.push, payload)
            return Sent(None)
        self.runtime.catch_up()
        self.push(payload)
        return Sent(self)

    @abc.abstractmethod
    async def writable(self) -> None:
        """Wait while the other side is behind; return at once when it is gone."""

    async def reachable(self) -> None:
        """Wait while the other side is behind; ConnectionClosed if it is gone."""
        await self.writable()
        if self.phase is not OPEN:
            await self.wait_closed()
            raise self.close_exc

    @abc.abstractmethod
    async def written(self) -> None:
        """Wait until all that was sent has left this process, or the peer is gone."""

    @abc.abstractmethod
    def halt(self) -> None:
        """Read no further in this turn of the loop."""

    @abc.abstractmethod
    def shut(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; what was posted goes out before it."""

    @abc.abstractmethod
    def fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455, section 7.1.7)."""

    @abc.abstractmethod
    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""

    @property
    @abc.abstractmethod
    def close_exc(self) -> ConnectionClosed:
        """How the connection ended, once it is gone."""

    def read_text(self, payload: bytes) -> str | None:
        """Decode a text message; None for one that ended the connection: no UTF-8."""
        try:
            return payload.decode()
        except UnicodeDecodeError as exc:
            self.fail(1007, f"{exc.reason} at position {exc.start}")
            return None


def ignore_message(payload: bytes, is_text: bool) -> None:
    """Ignore a message: nobody is listening."""


class Sent:
    """What `push` and `response` return: awaiting it waits while the client is behind.

    The message was queued already. Works with `await` and with `yield from`; raises
    `ConnectionClosed` where the client is gone.
    """

    __slots__ = ("wire",)

    def __init__(self, wire: Wire | None) -> None:
        self.wire = wire

    def __await__(self) -> Generator[Any, Any, None]:
        wire = self.wire
        if wire is not None and (wire.paused or wire.phase is not OPEN):
            yield from wire.reachable().__await__()

    __iter__ = __await__


# The first byte of a whole text or binary frame (RFC 6455, section 5.2), and whether
# it is text.
WHOLE_FRAMES = {0x81: True, 0x82: False}
NO_FRAMES: dict[int, bool] = {}


def head_of(size: int, mask: int = 0) -> bytes:
    """Return what stands before the payload, or its key, in a whole text frame."""
    if size < 126:
        return bytes((0x81, mask | size))
    if size < 65536:
        return bytes((0x81, mask | 126)) + size.to_bytes(2, "big")
    return bytes((0x81, mask | 127)) + size.to_bytes(8, "big")


SHORT_HEADERS = [head_of(size) for size in range(126)]


def frame_of(payload: bytes) -> bytes:
    """Return *payload* as one unmasked text frame (RFC 6455, section 5.2)."""
    size = len(payload)
    return (SHORT_HEADERS[size] if size < 126 else head_of(size)) + payload


def measure(data: bytes, position: int) -> tuple[int, int]:
    """Return where a frame's header ends, before the key, and the payload's length.

    It may end after *data* does; then the length isn't known yet.
    """
    head = data[position : position + 10].ljust(2, b"\0")
    size = head[1] & 0x7F
    end = 2 + {126: 2, 127: 8}.get(size, 0)
    return position + end, int.from_bytes(head[2:end]) if end > 2 else size


class Lane:
    """The fast lane from bytes to messages, beside the library's parser.

    While the connection is open and no fragmented message is under way, the lane reads
    whole, final, masked text and binary frames itself: it unmasks them with the
    library's C function and hands them over at once. Every other frame goes to the
    library, one at a time and byte for byte as it comes, so that its parser stands at
    the start of a frame when the lane reads on: control frames, fragments, compressed
    frames, those that come in parts, what is too large or invalid, and all that follows
    once the closing handshake has begun. What the library makes of data frames comes
    back through `process_event`, so messages stay in order.

    Attributes:
        rest: Bytes that wait: the start of a header, or what may not be read yet.
        owed: How many of the bytes to come are the library's, unread.
        limit: Bytes of the largest frame.
        whole_frames: What it reads itself now: `WHOLE_FRAMES` or nothing.
        is_halted: Whether bytes wait until it goes on.
        halts: How often it stopped reading.
        is_held: Whether it stays halted until `release`.
    """

    def __init__(self, wire: ServerWire) -> None:
        self.wire = wire
        self.runtime = wire.runtime
        self.rest = bytearray()
        self.owed = self.halts = 0
        limits = wire.protocol.max_message_size, wire.protocol.max_fragment_size
        self.limit = min(sys.maxsize if each is None else each for each in limits)
        self.whole_frames = NO_FRAMES
        self.is_halted = self.is_held = False

    def feed(self, data: bytes) -> None:
        """Read bytes of the socket, or let them wait."""
        if self.rest or self.is_halted:
            self.rest += data
            self.read_rest()
        elif self.runtime.deadline and self.runtime.is_turn_over():
            self.halt(data)
        else:
            self.read(data)

    def read_rest(self) -> None:
        """Read what waits, unless reading is halted."""
        if self.rest and not self.is_halted:
            data = bytes(self.rest)
            self.rest.clear()
            self.read(data)

    def read(self, data: bytes) -> None:
        """Read frames until *data* ends, or has to wait."""
        runtime, wire = self.runtime, self.wire
        receive = wire.receive
        wire.is_collecting = True
        position, size = 0, len(data)
        while True:
            start = position + 6
            is_text = self.whole_frames.get(data[position])
            if (
                is_text is not None
                and start <= size
                and 128 <= (second := data[position + 1]) < 254
                and (end := start + second - 128) <= size
            ):
                receive(apply_mask(data[start:end], data[start - 4 : start]), is_text)
            else:
                end = self._read_other(data, position)
            if end == size:
                break
            position = end
            # After every message: one read may hold 2,300 calls.
            if self.is_halted or runtime.is_turn_over():
                self.halt(data[position:])
                break
        wire.is_collecting = False
        if wire.out:
            wire.flush()

    def _read_other(self, data: bytes, position: int) -> int:
        """Read a frame that needs a closer look, or a part; return where that ends."""
        size, first, protocol = len(data), data[position], self.wire.protocol
        if not self.owed:
            key, length = measure(data, position)
            start, end = key + 4, key + 4 + length
            is_masked = key <= size and data[position + 1] >= 128
            is_fast = first in self.whole_frames and is_masked and length <= self.limit
            if is_fast and end <= size:
                payload = apply_mask(data[start:end], data[key:start])
                self.wire.receive(payload, WHOLE_FRAMES[first])
                return end
            if key > size or (is_fast and length <= SHORT_FRAME):
                self.rest += data[position:]
                return size
            # What follows a failure, or the client's close, is no frame.
            self.owed = sys.maxsize if protocol.eof_sent else end - position
            if not first & 0x08 and protocol.extensions and self.wire.phase is not OPEN:
                # As if it weren't compressed: nobody listens, and it could be a bomb.
                self.wire.give(bytes((first & 0xBF,)))
                position, self.owed = position + 1, self.owed - 1
        end = min(position + self.owed, size)
        self.owed -= end - position
        self.wire.give(data[position:end])
        return end

    def halt(self, rest: bytes = b"") -> None:
        """Let the rest of a read wait for a later turn of the loop."""
        self.rest += rest
        if not self.is_halted:
            # Else the socket would be read on, and the rest grow, with each turn.
            self.stop()
            self.runtime.wait(self.go_on)

    def stop(self) -> None:
        """Read nothing until `go_on`; what comes before the opening is no frame."""
        if self.wire.phase is not OPENING:
            self.is_halted = True
            self.halts += 1
            self.wire.transport.pause_reading()

    def go_on(self) -> None:
        """Read on, unless the client is behind, or the lane is held."""
        if self.is_halted and not (self.wire.paused or self.is_held):
            self.is_halted = False
            self.wire.transport.resume_reading()
            self.read_rest()

    def set_frames(self, is_plain: bool) -> None:
        """Work out again what is read here, after anything that the library did."""
        is_between = self.wire.protocol.current_size is None and not self.owed
        # Frames of up to 125 bytes aren't measured.
        is_fast = is_plain and is_between and self.limit >= 125
        self.whole_frames = WHOLE_FRAMES if is_fast else NO_FRAMES


def unacknowledged(transport: asyncio.Transport) -> int:
    """Return how many bytes the kernel holds for a peer; 0 where it doesn't tell.

    It accepts them, and says that there is room, in lumps of a MiB and more.
    """
    # Windows has neither module.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import fcntl  # noqa: PLC0415
        import termios  # noqa: PLC0415

        number = transport.get_extra_info("socket").fileno()
        held = fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(held, sys.byteorder)
    return 0


class LibraryWire(LibraryConnection, Wire):
    """What the wires of both ends have in common, on a connection of `websockets`.

    Messages to the other side wait in `out` until the read, or the loop's turn, has
    ended, and are written together, always before anything that the library writes.

    Attributes:
        fragments: The frames of a message whose last one is to come.
        out: Messages that wait to be written together.
        out_size: Their bytes.
        is_collecting: Whether somebody will flush what is posted.
        is_fragmenting: Whether the application sends a message in several frames.
    """

    def __init__(self, runtime: Runtime, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        Wire.__init__(self, runtime)
        self.max_size = self.protocol.max_message_size
        self.fragments: list[Frame] = []
        self.out: list[bytes] = []
        self.out_size = self.bytes_out = 0
        self.is_collecting = self.is_fragmenting = False

    def process_event(self, event: Event) -> None:
        """Handle what the library read; fragments are joined."""
        if not isinstance(event, Frame) or event.opcode & 0x08:
            super().process_event(event)
            return
        self.fragments.append(event)
        if len(self.fragments) > MAX_FRAGMENTS:
            self.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
        elif event.fin:
            frames, self.fragments = self.fragments, []
            is_text = frames[0].opcode is Opcode.TEXT
            self.receive(b"".join(frame.data for frame in frames), is_text)

    def post(self, payload: bytes) -> None:
        """Let a message wait for the end of this read, or of this turn of the loop."""
        if self.phase is OPEN:
            if not (self.out or self.is_collecting):
                self.loop.call_soon(self.flush)
            self.out.append(payload)
            self.out_size += len(payload)
            if self.out_size >= WRITE_SIZE:
                # Only once the transport has the bytes it says who is behind.
                self.flush()

    def flush(self) -> None:
        """Write what waits, unless the application sends a fragmented message."""
        if self.out and not self.is_fragmenting:
            out, self.out, self.out_size = self.out, [], 0
            data = self.frames_of(out)
            self.bytes_out += len(data)
            self.transport.write(data)

    def frames_of(self, payloads: list[bytes]) -> bytes:
        """Return messages as text frames."""
        extensions = self.protocol.extensions
        if extensions:
            options: Any = {"mask": self.protocol.side is Side.CLIENT}
            frames = [Frame(Opcode.TEXT, payload) for payload in payloads]
            made = [each.serialize(extensions=extensions, **options) for each in frames]
            return b"".join(made)
        # One alone, the most frequent case, costs less.
        is_one = len(payloads) == 1
        return frame_of(payloads[0]) if is_one else b"".join(map(frame_of, payloads))

    def send_data(self) -> None:
        """Write what waits, and then what the library has to say."""
        protocol = self.protocol
        # An extension must encode messages in the order in which they are written.
        if not protocol.extensions or protocol.state is not State.OPEN:
            self.flush()
        self.bytes_out += sum(map(len, protocol.writes))
        super().send_data()
        self.is_fragmenting = protocol.expect_continuation_frame
        self.follow()
        self.flush()

    def follow(self) -> None:
        """Follow the library's state, after anything that it did."""
        if self.phase is OPEN and self.protocol.state is not State.OPEN:
            self.phase = CLOSING
        if self.protocol.close_expected() and self.close_deadline is None:
            # Nobody else ends a connection whose peer never answers the close.
            self.close_deadline = self.loop.time() + (self.close_timeout or math.inf)

    async def writable(self) -> None:
        """Wait while the other side is behind; return at once when it is gone."""
        with contextlib.suppress(OSError):
            while self.paused:
                await self.drain()

    async def written(self) -> None:
        """Wait until all that was sent has left this process, or the peer is gone."""
        self.flush()
        # With a limit of 0 the wire counts as paused until nothing waits.
        self.transport.set_write_buffer_limits(0)
        try:
            await self.writable()
        finally:
            limits = self.write_limit_high, self.write_limit_low
            self.transport.set_write_buffer_limits(*limits)

    def shut(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; what was posted goes out before it."""
        if self.protocol.state is State.OPEN:
            if self.protocol.expect_continuation_frame:
                # A user's own message of several frames is under way.
                self.fail(CloseCode.INTERNAL_ERROR, "close during fragmented message")
            else:
                self.protocol.send_close(code, reason)
                self.send_data()

    def fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455, section 7.1.7)."""
        self.protocol.fail(code, reason)
        self.send_data()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all that waits for this connection."""
        super().connection_lost(exc)
        self.phase = CLOSED
        self.out.clear()


# A target that is a whole URL: its authority, and the rest (RFC 9112, section 3.2.2).
ABSOLUTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://([^/?#]+)/?(.*)")
NO_REQUEST, ONLY_HTTP_1 = "this is no HTTP request", "this server speaks HTTP/1.1"


def read_request(reader: StreamReader) -> Generator[None, None, Any]:
    """Read the head of a request, as the library does.

    Returns:
        The request; or the answer to one that can't be read, which the library
        would drop.
    """
    try:
        line = yield from parse_line(reader.read_line, RequestLineTooLong)
        method, target, version = line.decode("ascii").split(" ", 2)
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            is_http = re.fullmatch(r"HTTP/\d(\.\d)?", version)
            return Answer(505, ONLY_HTTP_1) if is_http else Answer(400, NO_REQUEST)
        headers = yield from parse_headers(reader.read_line)
    except SecurityError as exc:
        status = 414 if isinstance(exc, RequestLineTooLong) else 431
        return Answer(status, "the request's head is too large")
    except (EOFError, ValueError):
        # EOFError: a line without CR, too.
        return Answer(400, NO_REQUEST)
    return websockets.Request(target, headers, method, version)


def fault_of(request: websockets.Request, is_upgrade: bool) -> Answer | None:
    """Return the answer to a request that can't be understood, or None."""
    headers = request.headers
    if any(len(headers.get_all(name)) > 1 for name in ("Host", "Origin")):
        return Answer(400, "one Host and one Origin at most")
    if not request.path.startswith("/") and not ABSOLUTE.fullmatch(request.path):
        return Answer(400, "the target must be a path or a URL")
    if "Transfer-Encoding" in headers:
        return Answer(501, "transfer codings are not supported")
    sizes = set(headers.get_all("Content-Length"))
    if len(sizes) > 1 or not all(re.fullmatch("[0-9]+", each) for each in sizes):
        return Answer(400, "Content-Length must be one number")
    if is_upgrade and any(each.strip("0") for each in sizes):
        return Answer(400, "a WebSocket handshake has no body")
    return None


def simplify(request: websockets.Request) -> None:
    """Rewrite what has several forms, so that everything after it knows only one."""
    headers = request.headers
    # HTTP/2 splits it (RFC 9113, section 8.2.3).
    cookies = headers.get_all("Cookie")
    if len(cookies) > 1:
        del headers["Cookie"]
        headers["Cookie"] = "; ".join(cookies)
    for name in ("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"):
        if name in headers and not "".join(headers.get_all(name)).strip(", \t"):
            del headers[name]
    if absolute := ABSOLUTE.fullmatch(request.path):
        request.path = f"/{absolute[2]}"
        headers.pop("Host", None)
        headers["Host"] = absolute[1]


class Exchange:
    """The request of a connection and its answer, up to the first frame.

    It reads the request in the library's place, which closes without an answer where
    it can't read one, and where there is a body. What follows a handshake waits for its
    answer: the library would parse frames before the 101, and answer a ping. What
    follows any other request is dropped.

    Attributes:
        is_upgrade: Whether it asks for a WebSocket, which it may still become.
        has_body: Whether more may follow that is no frame.
        reader: The bytes that wait, which are the lane's later.
        parser: What reads them.
    """

    def __init__(self, wire: ServerWire) -> None:
        self.wire, self.protocol = wire, wire.protocol
        self.is_upgrade, self.has_body = False, True
        self.reader = StreamReader()
        self.reader.buffer = wire.lane.rest
        self.parser = self._read()
        self.protocol.parser = Protocol.parse(self.protocol)

    def feed(self, data: bytes) -> None:
        """Read bytes that come while the connection isn't open."""
        self.reader.feed_data(data)
        next(self.parser)

    def _read(self) -> Generator[None, None, NoReturn]:
        """Read the request, keep what follows a handshake, and drop everything else."""
        request = yield from read_request(self.reader)
        if isinstance(request, Answer):
            self._refuse(request, "GET")
        else:
            self._accept(request)
        rest, dropped = self.reader.buffer, 0
        while True:
            if self.is_upgrade and len(rest) > MAX_EARLY:
                self.wire.transport.abort()
            elif not self.is_upgrade:
                dropped += len(rest)
                rest.clear()
                if dropped > MAX_BODY:
                    self.wire.transport.pause_reading()
            yield

    def _refuse(self, answer: Answer, method: str) -> None:
        """Answer what can't be understood."""
        self.send(self._response_of(answer, method))
        self.wire.serving.app.labels["refused"][str(answer.status)] += 1
        LOGGER.info("refused a client from %s: %d", remote_of(self.wire), answer.status)

    def _accept(self, request: websockets.Request) -> None:
        headers = request.headers
        upgrade = ",".join(headers.get_all("Upgrade")).lower()
        # HTTP/1.0 has no upgrades (RFC 9110, section 7.8).
        self.is_upgrade = "websocket" in upgrade and request.protocol != "HTTP/1.0"
        self.has_body = "Content-Length" in headers or "Transfer-Encoding" in headers
        if (fault := fault_of(request, self.is_upgrade)) is not None:
            self._refuse(fault, request.method)
            return
        simplify(request)
        self.wire.begin_with(request)

    async def decide(self, session: Session) -> websockets.Response:
        """Return the response, in the order of the protocol, section 8."""
        request: Any = self.wire.request
        if not self.is_upgrade:
            page = await session.find_page(request.method)
            return self._response_of(page, request.method)
        response = self.protocol.accept(request)
        answer = await session.enter() if response.status_code == 101 else None
        return response if answer is None else self._response_of(answer, "GET")

    def _response_of(self, answer: Answer, method: str) -> websockets.Response:
        response = self.protocol.reject(answer.status, "")
        for name in ("Content-Length", "Content-Type", *answer.headers):
            response.headers.pop(name, None)
        response.headers.update(answer.headers)
        response.body = b"" if method == "HEAD" else answer.body
        return response

    def send(self, response: websockets.Response) -> bool:
        """Answer the request; tell whether the connection is open now."""
        wire, protocol = self.wire, self.protocol
        if protocol.state is not State.CONNECTING:
            return False
        wire.response, wire.status = response, response.status_code
        is_opened = wire.status == 101
        if wire.serving.server_header is not None and "Server" not in response.headers:
            response.headers["Server"] = wire.serving.server_header
        protocol.send_response(response)
        if not is_opened:
            self.is_upgrade = False
            wire.close_deadline = wire.loop.time() + BODY_GRACE
            # Only the transport keeps what a slow reader has yet to read.
            response.body = b""
            if self.has_body and not wire.transport.can_write_eof():
                # TLS: the library would close at once, and the rest would reset it.
                protocol.writes.pop()
        wire.send_data()
        # A peer that has reset isn't greeted.
        return is_opened and not wire.transport.is_closing()


class Backlog:
    """What waits for a client that has fallen behind, and how long it has waited.

    Attributes:
        aged: Bytes that wait since an earlier turn of the loop, at most.
    """

    def __init__(self, wire: ServedWire) -> None:
        self.wire = wire
        self.aged = 0
        self.is_aging = False
        self._age()

    def is_too_large(self) -> bool:
        """Tell whether so much waits that the client isn't pushed to any more.

        What waits since an earlier turn counts; of this turn's, more is allowed.
        """
        self._age()
        limit, size = self.wire.serving.app.max_backlog, self.wire.waiting()
        return min(self.aged, size) > limit or size > MAX_BURST * limit

    def _age(self) -> None:
        """Find out, in the turns that follow, how much waits since an earlier one."""
        if not self.is_aging:
            self.is_aging = True
            call_soon = self.wire.runtime.loop.call_soon
            # What is pushed in this round of the loop, before or after, is not old yet.
            call_soon(lambda: call_soon(self._end_age, self.wire.waiting()))

    def _end_age(self, size: int) -> None:
        self.aged, self.is_aging = size, False


# Codes that RFC 6455 and IANA's registry name, and 1005 and 1006 for none.
CLOSE_LABELS = frozenset(range(1000, 1016))


class ServedWire(Wire):
    """A wire that a serving looks after, from the request to the goodbye.

    Attributes:
        serving: What accepted it.
        backlog: What waits for its client.
        life: The task from the request to the goodbye.
        status: The HTTP status that the request was answered with.
    """

    def __init__(self, serving: Serving) -> None:
        Wire.__init__(self, serving.runtime)
        self.serving = serving
        self.bytes_in = self.bytes_out = 0
        self.backlog: Backlog
        self.life: asyncio.Task[None] | None = None
        self.status: int | None = None

    # From the request to the goodbye

    def begin(self, opening: Opening) -> None:
        """Answer the request, in a task that lives until the goodbye."""
        self.opening = opening
        self.session = Session(self.serving, self)
        loop, context = self.runtime.loop, self.session.context
        self.life = asyncio.Task(self._live(), loop=loop, context=context)

    async def _live(self) -> None:
        """Answer the request; then be open until the connection ends."""
        session: Any = self.session
        try:
            await self.answer(session)
            await self.wait_closed()
        finally:
            self.abort()
            session.note_end(self.status, self._describe_end()[1])
            try:
                await session.depart()
            finally:
                self.life = None
                self.serving.discard(self)

    @abc.abstractmethod
    async def answer(self, session: Session) -> None:
        """Answer the request, and greet the client where it is let in."""

    @abc.abstractmethod
    def end(self) -> tuple[int, bool | None]:
        """Return the close code, and whether the client closed; None for a loss."""

    def _describe_end(self) -> tuple[str, str]:
        """Return a label for the end, "other" for what a peer makes up, and a text."""
        code, by_client = self.end()
        who = {True: "by the client", False: "by the server", None: "by nobody"}
        is_made_up = by_client and code not in CLOSE_LABELS
        label = "other" if is_made_up else str(code)
        return label, f"closed {who[by_client]} with {code}"

    def count_end(self, *, was_open: bool) -> None:
        """Count how it ended, in the step in which it is closed."""
        counts, labels = self.serving.app.counts, self.serving.app.labels
        counts.update(self.traffic())
        if was_open:
            labels["closed"][self._describe_end()[0]] += 1
        elif self.status is None:
            counts["handshakes_dropped"] += 1

    def traffic(self) -> dict[str, int]:
        """Return what this connection counts by itself, because it is cheaper."""
        calls = self.session and self.session.calls
        count = calls.received if calls else 0
        return {"calls": count, "bytes_in": self.bytes_in, "bytes_out": self.bytes_out}

    # What must not take too long

    @abc.abstractmethod
    def waiting(self) -> int:
        """Return how many bytes wait for the client."""

    def push(self, payload: bytes) -> None:
        """Send a push, unless the client is too far behind: then close it."""
        if not (self.paused and self.backlog.is_too_large()):
            self.post(payload)
        elif self.phase is OPEN:
            self.serving.app.counts["slow_clients_dropped"] += 1
            self.shut(4508, "it reads too slowly")
            self.runtime.loop.call_later(SLOW_GRACE, self.abort)

    @abc.abstractmethod
    def check(self, now: float) -> None:
        """Look whether what has to happen by now has happened; the timer calls it."""

    @abc.abstractmethod
    def abort(self) -> None:
        """End the connection at once."""

    def give_up(self) -> None:
        """End a handshake that takes too long."""
        self.abort()
        if self.life is not None:
            cut_task(self.life)


class ServerWire(LibraryWire, websockets.ServerConnection, ServedWire):
    """The server's wire: a connection of `websockets`, with a lane beside it.

    Attributes:
        exchange: The request and its answer.
        lane: What reads its bytes.
        is_clear: Whether a frame may be written at once.
        due: When the handshake, or a ping's answer, must have come.
    """

    def __init__(self, serving: Serving, *given: Any, **options: Any) -> None:
        super().__init__(serving.runtime, *given, **options)
        ServedWire.__init__(self, serving)
        self.lane = Lane(self)
        self.exchange = Exchange(self)
        self.is_clear = False
        self.taken = -1
        self.due, self.taken_at = math.inf, 0.0
        self.awaited: tuple[int, ...] | None = None

    # From the first byte to the goodbye

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the request."""
        # Not the server's own: its task would only wait for the request.
        LibraryConnection.connection_made(self, transport)
        self.due = self.loop.time() + (self.serving.open_timeout or math.inf)
        self.serving.add(self)

    def begin_with(self, request: websockets.Request) -> None:
        """Find out from the request who asks, and begin to answer it."""
        headers, self.request = request.headers, request
        remote = forwarded_for(headers, self.serving.app.proxies) or remote_of(self)
        self.begin(Opening(request.path, headers, remote, self.id.hex))

    async def answer(self, session: Session) -> None:
        """Answer the request, and greet the client where it is let in."""
        if self.exchange.send(await self.exchange.decide(session)):
            self.phase = OPEN
            self.due = self.loop.time() + (self.ping_interval or math.inf)
            self.follow()
            session.greet()
            self.lane.read_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count how it ended, and let its client go."""
        was_open = self.phase is not OPENING
        super().connection_lost(exc)
        # Nothing is left to abort; its goodbye may take as long as it needs.
        self.close_deadline = math.inf
        self.follow()
        self.lane.rest.clear()
        self.count_end(was_open=was_open)
        self.serving.discard(self)

    def end(self) -> tuple[int, bool | None]:
        """Return the close code, and whether the client closed; None for a loss."""
        protocol = self.protocol
        close = protocol.close_sent or protocol.close_rcvd
        code = close.code if close else CloseCode.ABNORMAL_CLOSURE
        return int(code), protocol.close_rcvd_then_sent

    # From bytes to messages

    def data_received(self, data: bytes) -> None:
        """Hand bytes of the socket to the lane."""
        self.bytes_in += len(data)
        reader = self.exchange if self.phase is OPENING else self.lane
        reader.feed(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """End the connection, unless the client may still read a page."""
        is_asking = self.request is not None and self.response is None
        is_plain = is_asking and not self.exchange.is_upgrade
        # TLS has no half of a connection.
        if is_plain and self.transport.can_write_eof():
            return True
        return super().eof_received()

    def give(self, data: bytes) -> None:
        """Let the library read, after everything that waits was written."""
        self.flush()
        super().data_received(data)

    def halt(self) -> None:
        """Read no further in this turn of the loop."""
        self.lane.halt()

    def hold(self) -> None:
        """Read nothing until `release`."""
        self.lane.is_held = True
        self.serving.app.counts["pauses"] += 1
        self.lane.stop()

    def release(self) -> None:
        """Read again what was held."""
        self.lane.is_held = False
        self.lane.go_on()

    # From messages to bytes

    def waiting(self) -> int:
        """Return how many bytes wait for the client."""
        return self.transport.get_write_buffer_size() + self.out_size

    def deliver(self, payload: bytes, frame: bytes | None) -> None:
        """Send a push to a group; where nothing waits its frame is written at once."""
        if frame is not None and self.is_clear and not (self.out or self.paused):
            self.bytes_out += len(frame)
            self.transport.write(frame)
        else:
            self.push(payload)

    def follow(self) -> None:
        """Follow the library's state, after anything that it did."""
        super().follow()
        if self.phase is CLOSING:
            # What still comes is dropped.
            self.receive = ignore_message
        is_plain = self.phase is OPEN and not self.protocol.extensions
        self.is_clear = is_plain and not self.is_fragmenting
        self.lane.set_frames(is_plain)

    def pause_writing(self) -> None:
        """Stop reading from a client that doesn't read."""
        super().pause_writing()
        self.serving.app.counts["pauses"] += 1
        self.lane.stop()
        self.backlog = Backlog(self)

    def resume_writing(self) -> None:
        """Go on with what waited for a client that was behind."""
        super().resume_writing()
        if self.phase is OPEN and self.session is not None:
            self.session.go_on()
        self.lane.go_on()

    async def send(self, message: Any, *, text: bool | None = None) -> None:
        """Send a message of the application's own, in an `on_message` route.

        Raises:
            UnicodeEncodeError: For half of a surrogate pair, for which the library
                would end the connection.
        """
        if isinstance(message, str):
            message, text = message.encode(), text is not False
        await super().send(message, text=text)

    async def recv(self, decode: bool | None = None) -> NoReturn:
        """Refuse: the framework reads this connection.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "recv must not be called: wsappy reads this connection; write on_message"
        )

    # What must not take too long

    def check(self, now: float) -> None:
        """Look whether what has to happen by now has happened; the timer calls it."""
        if self.response is None:
            if now >= self.due:
                self.due = math.inf
                self.give_up()
            return
        # Part of the answer isn't in the kernel yet, which sends what it has even after
        # a close.
        waiting = self.transport.get_write_buffer_size()
        is_answering = self.phase is OPENING and waiting > 0
        if is_answering:
            self.close_deadline = now + BODY_GRACE
        is_behind = is_answering or (self.paused and self.phase is OPEN)
        if is_behind and self.ping_timeout:
            self._check_stall(now, self.ping_timeout)
        elif self.close_deadline is None:
            self._check_ping(now)
        elif now >= self.close_deadline:
            self.transport.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def _check_stall(self, now: float, limit: float) -> None:
        """Abort a client that accepts no byte for *limit* seconds.

        What counts is what it accepts, not how much waits: one that reads slowly stays.
        """
        waiting = self.transport.get_write_buffer_size()
        taken = self.bytes_out - waiting - unacknowledged(self.transport)
        if taken != self.taken:
            self.taken, self.taken_at = taken, now
        elif now - self.taken_at >= limit:
            self.serving.app.counts["stalled_clients_dropped"] += 1
            self.transport.abort()

    def _check_ping(self, now: float) -> None:
        """Ping a client at intervals, and end one that doesn't answer.

        Any byte is a sign of life: the pong may be stuck behind a large message. While
        reading is halted none can arrive, so that their absence says nothing. A client
        that accepts nothing then is found by `_check_stall`; for one that waits for
        `on_message` the ping itself tells whether it is gone: it is refused.
        """
        heard = self.lane.halts, self.bytes_in
        if self.awaited not in (None, heard):
            self.awaited, self.due = None, now + (self.ping_interval or math.inf)
        elif self.awaited is not None and now >= self.due:
            self.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
            self.loop.call_later(SLOW_GRACE, self.transport.abort)
        elif self.ping_interval is not None and now >= self.due:
            self.awaited = () if self.lane.is_halted else heard
            self.due = now + (self.ping_timeout or math.inf)
            # As the library's own pings, whose pongs tell the latency.
            data, pong = os.urandom(4), self.loop.create_future()
            self.pending_pings[data] = pong, self.loop.time()
            self.protocol.send_ping(data)
            self.send_data()


def remote_of(connection: LibraryConnection) -> tuple[str, int] | None:
    """Return host and port of the peer; None on a Unix socket."""
    address = connection.remote_address
    return address[:2] if isinstance(address, tuple) else None


FORWARDED = re.compile(r"\[([^\]]*)\](?::[0-9]+)?|([^:]*)(?::[0-9]+)?|(.*)")


def forwarded_for(headers: Headers, proxies: int) -> tuple[str, int] | None:
    """Return the address that the outermost of one's own proxies saw; None for none."""
    addresses = ",".join(headers.get_all("X-Forwarded-For")).split(",")
    if not 0 < proxies <= len(addresses):
        return None
    found: Any = FORWARDED.fullmatch(addresses[-proxies].strip())
    text = "".join(found.groups(""))
    is_address = type(run(ipaddress.ip_address, text)) is not Failure
    return (text, 0) if is_address else None


# --- 5. Calls ----------------------------------------------------------------


class Stage(enum.Enum):
    """Where a call stands; only the loop's thread moves it on."""

    PENDING = "it has had no terminal event"
    ANSWERED = "its terminal event was sent"
    CUT = "the framework ended it: what its handler still says is dropped"


# At hand by name: looking a member up in its class takes 90 ns on 3.11.
PENDING, ANSWERED, CUT = Stage


@dataclass(slots=True, eq=False, repr=False)
class Request(typing.Generic[ClientT]):
    """One call, as its handler gets it.

    Attributes:
        client: The client that called; a `User` for a `Request[User]`.
        module: Name of the module.
        method: Name of the method.
        data: The arguments as they came, a dict.
        id: The caller's `request_id`: a string, an integer, or None.
    """

    module: str
    method: str
    data: dict[str, JSON]
    client: ClientT
    id: str | int | None
    _stage: Stage = field(init=False, default=PENDING)
    # A worker thread knows it at once, before the loop hears of it.
    _has_answered: bool = field(init=False, default=False)
    # The framework's own `result` or `error` while an override of `response` sends it:
    # the stage says already that the call has ended.
    _last_word: str | None = field(init=False, default=None)
    _size: int = field(init=False, default=0)
    _method: Method | None = field(init=False, default=None)
    _task: asyncio.Task[None] | None = field(init=False, default=None)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)
    _credit: int | None = field(init=False, default=None)
    _more: asyncio.Future[None] | None = field(init=False, default=None)

    def __repr__(self) -> str:
        # Quoted: the names come from outside, and this stands in logs.
        return repr(f"{self.module}.{self.method}")

    def response(self, event: str, data: JSON = None, /, **fields: JSON) -> Sent:
        """Queue an event of this call; `result` and `error` end it.

        Args:
            event: Name of the event.
            data: Any JSON, or a mapping that *fields* are added to.
            **fields: Keys of the event's data.

        Returns:
            An awaitable that waits while the client is behind.

        Raises:
            RuntimeError: If the call has ended.
            ValueError: If *event* is `error` and `code` or `message` is missing.
            TypeError: If the data can't be written as JSON.
        """
        data = merge(data, fields)
        is_free = self._last_word == event
        if not is_free and (self._stage is ANSWERED or self._has_answered):
            raise RuntimeError(
                f"call {self!r} has ended, but {event!r} is sent; send nothing after "
                f"'result' or 'error'"
            )
        keys = data.keys() if isinstance(data, Mapping) else set()
        if event == "error" and not {"code", "message"} <= keys:
            raise ValueError(
                f"data of an error must have code and message: got {data!r}; raise "
                f"Error('not_found', 'no item 7')"
            )
        if self._stage is CUT and not is_free:
            return Sent(None)
        calls: Calls = self.client.connection.calls
        answer: Sent = calls.answers.respond(self, event, data)
        return answer

    async def ready(self) -> None:
        """Wait, in a stream, until the caller wants another item and has the last one.

        It waits for credit (protocol, section 4), and until the transport has written
        what was sent: what is computed after it is as fresh as can be.
        """
        await self._credited()
        await self.client.connection.written()

    async def _credited(self) -> None:
        """Wait for the credit of an item, where the caller gives any."""
        while self._credit == 0:
            self._more = asyncio.get_running_loop().create_future()
            await self._more

    def _earn(self, items: int) -> None:
        if self._credit is not None:
            self._credit += items
            if self._more is not None and not self._more.done():
                self._more.set_result(None)


# Requests of this class are made without running any of its code.
new_request = functools.partial(object.__new__, Request)


class Overrides(NamedTuple):
    """What makes requests and sends events for classes that do it in their own way.

    Attributes:
        request: Makes a request of module, method, data, client and id.
        emit: Sends an event of the framework's, in a task; None for the plain way.
        tell: Sends an event of the application's; None for the plain way.
    """

    request: Callable[..., Request] = Request
    emit: Callable[[Request, str, JSON], Coroutine[Any, Any, None]] | None = None
    tell: Callable[..., Any] | None = None


class Calls:
    """The calls of one connection: reads messages, runs handlers, sends their answers.

    It does no I/O. The wire gives it whole messages, and sends what it is told. A call
    passes `receive`, maybe `dispatch` and `_hold`, then `begin`, `run` and `conclude`;
    `cut` ends one from outside.

    Attributes:
        received: How many calls came.
        unfinished: Calls that are tasks; a thread counts until it returns.
        load: Bytes of the messages of calls that are held or unfinished.
        held: Calls that haven't begun: `on_connected` runs, or the route is ordered.
        beginning: Tasks that have yet to begin, before Python 3.12.
        starting: Those of them that wait for a turn, in order.
        answers: What sends their answers.
        asked: The calls to the other side.
        is_greeting: Whether `on_connected` runs.
        is_gated: Whether a call may have to wait; then `dispatch` decides.
    """

    def __init__(
        self,
        app: App,
        route: Route,
        wire: Wire,
        client: Client,
        context: contextvars.Context,
    ) -> None:
        self.app = app
        self.route = route
        self.wire = wire
        self.client = client
        self.runtime = wire.runtime
        self.loop = wire.runtime.loop
        self.overrides = route.overrides or Overrides()
        self.wraps = has_own(client, "process_message")
        self.decode = app.codec.decode
        self.methods = route.methods
        self.answers = Answers(app, wire, self.overrides)
        self.asked = Asked(wire, app.codec)
        self.context = context
        self.bad_messages = self.received = self.beginning = 0
        self.unfinished: dict[asyncio.Task[None], Request] = {}
        self.starting: collections.deque[asyncio.Future[None]] = collections.deque()
        self.held: collections.deque[Request] = collections.deque()
        self.held_size = self.load = 0
        self.is_greeting, self.is_stopping, self.is_gated = True, False, True

    # From a message to a call

    def receive(self, payload: bytes, is_text: bool) -> None:
        """Read one whole message: a plain call here, the others in `_receive_other`."""
        data, size = None, len(payload)
        try:
            message = self.decode(payload)
            # Each level needs two bytes.
            if size > 2 * MAX_DEPTH:
                self.app.codec.check_depth(payload, message)
            # The four keys of most calls, by index: it's the quickest look at them.
            module, name = message["module"], message["method"]
            request_id = message["request_id"]
            method = self.methods[module, name]
            data = message["data"]
        except ValueError:
            self._receive_unreadable(payload, is_text)
            return
        except (LookupError, TypeError):
            pass
        if (
            type(data) is not dict
            or len(message) != 4
            or self.is_gated
            or not (
                MIN_REQUEST_ID <= request_id <= MAX_REQUEST_ID
                if type(request_id) is int
                else is_request_id(request_id)
            )
        ):
            self._receive_other(message, size)
            return
        request = new_request()
        request.client, request.module, request.method = self.client, module, name
        request.data, request.id = data, request_id
        request._stage, request._has_answered = PENDING, False
        request._last_word = None
        request._credit = request._task = request._timer = None
        request._size = size
        self.bad_messages = 0
        self.received += 1
        self.begin(request, method)

    def _receive_unreadable(self, payload: bytes, is_text: bool) -> None:
        """Answer what isn't JSON; text that isn't UTF-8 ends the connection."""
        if not is_text or self.wire.read_text(payload) is not None:
            message = skim(payload)
            reading = classify(message)
            if message is not None:
                request_id = message.get("request_id")
                request_id = request_id if is_request_id(request_id) else None
                reading = Reading("bad", request_id, UNREADABLE)
            self._receive_bad(message, reading)

    def _receive_other(self, message: JSON, size: int) -> None:
        """Read a message by the whole table: bad ones, events, calls behind a gate."""
        reading = classify(message)
        if reading.kind == "bad":
            self._receive_bad(message, reading)
        elif reading.kind == "call":
            self.bad_messages = 0
            self.received += 1
            self.dispatch(self._request_of(message, size))
        elif reading.kind == "push":
            self.hear(message)
        elif reading.request_id in self.asked.handlers:
            self.asked.receive(message)
        else:
            self.app.counts["dropped_event"] += 1

    def _request_of(self, message: dict[str, JSON], size: int) -> Request:
        data, request_id = message.get("data") or {}, message.get("request_id")
        names = shorten(message["module"]), shorten(message["method"])
        request = self.overrides.request(*names, data, self.client, request_id)
        request._credit, request._size = message.get("items"), size
        return request

    def _receive_bad(self, message: JSON, reading: Reading) -> None:
        module: Any = name_of(message, "module")
        method: Any = name_of(message, "method")
        request = Request(module, method, {}, self.client, reading.request_id)
        self.answers.send_error(request, Error("bad_message", reading.why))
        self.bad_messages += 1
        self.app.counts["bad_messages"] += 1
        if self.bad_messages == MAX_BAD_MESSAGES:
            self.wire.shut(4400, f"{MAX_BAD_MESSAGES} bad messages in a row")

    def hear(self, message: dict[str, JSON]) -> None:
        """Drop a push, which a server doesn't expect."""
        self.app.counts["dropped_push"] += 1

    # From a call to its handler

    def dispatch(self, request: Request) -> None:
        """Begin a call, hold it, or refuse it."""
        if is_control(request):
            self._begin(request)
        elif self.is_stopping:
            self.answers.send_error(request, STOPPING)
        elif self.held or not self._is_free():
            self._hold(request)
        else:
            self._begin(request)

    def _is_free(self) -> bool:
        """Tell whether a call may begin as far as those before it are concerned."""
        is_behind = self.route.is_ordered and self.unfinished
        return not (is_behind or self.is_greeting or self.wire.phase is not OPEN)

    def _hold(self, request: Request) -> None:
        limit, size = self.wire.max_size, self.held_size + request._size
        if self._is_full(request) or (limit is not None and size > limit):
            self.answers.send_error(request, OVERLOADED)
            return
        self.held_size = size
        self.load += request._size
        self.held.append(request)
        self.is_gated = True

    def _is_full(self, request: Request) -> bool:
        """Tell whether one more call is too much; one always may run."""
        count, load = len(self.unfinished) + len(self.held), self.load + request._size
        return count >= self.app.max_in_flight or (
            count > 0 and load > self.app.max_in_flight_bytes
        )

    def release(self) -> None:
        """Begin the held calls that need wait no longer, as far as the turn allows."""
        while self.held and self._is_free() and not self.wire.paused:
            if self.runtime.is_turn_over():
                self.runtime.wait(self.release)
                return
            self._begin(self._unhold(self.held[0]))
        self.set_gate()

    def _unhold(self, request: Request) -> Request:
        self.held.remove(request)
        self.held_size -= request._size
        self.load -= request._size
        return request

    def set_gate(self) -> None:
        """Work out again whether a plain call may begin at once."""
        self.is_gated = bool(
            self.is_greeting
            or self.is_stopping
            or self.held
            or self.wraps
            or self.route.overrides
            or self.route.is_ordered
        )

    def _begin(self, request: Request) -> None:
        self.begin(request, self.methods.get((request.module, request.method)))

    def begin(self, request: Request, method: Method | None) -> None:
        """Begin a call: a `def` in this very step, everything else as a task."""
        request._method = method
        if self.unfinished and not is_control(request) and self._is_full(request):
            self.answers.send_error(request, OVERLOADED)
        elif self.wraps and request.module != "$":
            self._start(request, self.client.process_message, self.context.copy())
        elif method is None:
            self.answers.send_error(request, self._unknown(request))
        elif method.kind is not INLINE:
            self._start(request, self.run, self.context.copy())
        elif self.beginning:
            # After the tasks of the same read, which have yet to begin.
            if is_control(request):
                self.loop.call_soon(self._run_inline, request, method)
            else:
                self._start(request, self.run, self.context.copy())
            self.wire.halt()
        else:
            self._run_inline(request, method)

    def _unknown(self, request: Request) -> Error:
        self.route.note_unknown((request.module, request.method))
        return Error(*UNKNOWN_METHOD.args)

    def _run_inline(self, request: Request, method: Method) -> None:
        context = self.context.copy()
        outcome: Any
        try:
            if method.guards or method.validators:
                outcome = context.run(self.run, request)
            else:
                arguments = method.bind(request.data)
                outcome = context.run(method.function, request, **arguments)
        except STOPS as exc:
            outcome = stop_loop(exc)
        except BaseException as exc:  # noqa: BLE001
            outcome = Failure(exc)
        if type(outcome) in PLAIN_RESULTS:
            self.answers.conclude(request, outcome)
        elif not inspect.isawaitable(outcome):
            context.run(self.answers.conclude, request, outcome)
        else:
            self._start(request, lambda _: outcome, context)

    def _start(
        self,
        request: Request,
        function: Callable[[Request], Any],
        context: contextvars.Context,
    ) -> None:
        """Begin a call as a task."""
        self.beginning += LAZY_TASKS
        self.load += request._size
        work = self._perform(request, function)
        task = asyncio.Task(work, loop=self.loop, context=context, **TASK_OPTIONS)
        request._task = task
        # An eager task may have ended already.
        self.unfinished.update({} if task.done() else {task: request})
        timeout = request._method.timeout if request._method else ...
        timeout = self.app.timeout if timeout is ... else timeout
        if timeout is not None and task in self.unfinished:
            request._timer = self.loop.call_later(timeout, self.cut, request, TIMEOUT)

    async def _perform(
        self, request: Request, function: Callable[[Request], Any]
    ) -> None:
        """Run a call that is a task, from its first step to its terminal event."""
        try:
            if LAZY_TASKS:
                await self._begin_task()
            outcome = await run_to_end(function, request)
            disarm(request)
            if self.wire.paused and request._stage is not CUT:
                # Unfinished until the client has read some, as its answer is.
                await self.wire.writable()
            self.answers.conclude(request, outcome)
        except asyncio.CancelledError as exc:
            self.answers.conclude(request, Failure(exc))
            raise
        finally:
            self._finish(request)

    async def _begin_task(self) -> None:
        """Wait, before Python 3.12, for those that came before, and for a turn."""
        try:
            if self.starting or self.runtime.is_turn_over():
                future = self.loop.create_future()
                if not self.starting:
                    self.runtime.wait(self._start_next, is_urgent=True)
                self.starting.append(future)
                await future
        finally:
            self.beginning -= 1

    def _start_next(self) -> bool:
        is_handed_over = hand_over(self.starting.popleft())
        if self.starting:
            self.runtime.wait(self._start_next, is_urgent=True)
        return is_handed_over

    def _finish(self, request: Request) -> None:
        disarm(request)
        self.load -= request._size
        self.unfinished.pop(request._task, None)  # type: ignore[arg-type]
        if self.held:
            self.runtime.wait(self.release)

    def run(self, request: Request) -> Any:
        """Find a call's handler, check its arguments and run it.

        Returns:
            What the handler returned; for all but a `def` it has to be awaited.

        Raises:
            Error: If there is no such method, the data is bad, or the handler says so.
        """
        method = self.methods.get((request.module, request.method))
        if method is None:
            raise self._unknown(request)
        request._method = method
        return self._run_guarded(request, method, method.guards)

    def _run_guarded(self, request: Request, method: Method, guards: Guards) -> Any:
        """Run a handler if the guards that are left let the call in."""
        for place, guard in enumerate(guards):
            verdict = run(guard, request)
            if inspect.isawaitable(verdict):
                return self._run_later(request, method, guards[place:], verdict)
            judge(guard, verdict)
        arguments = method.bind(request.data)
        if method.kind is STREAM:
            return self._send_items(request, method, arguments)
        if method.kind is THREAD:
            return self._run_in_thread(request, method, arguments)
        return method.function(request, **arguments)

    async def _run_later(
        self, request: Request, method: Method, guards: Guards, verdict: Any
    ) -> Any:
        """Run a handler after a guard that has to be awaited."""
        judge(guards[0], await run_to_end(lambda: verdict))
        result = self._run_guarded(request, method, guards[1:])
        return await result if inspect.isawaitable(result) else result

    async def _send_items(
        self, request: Request, method: Method, arguments: dict[str, Any]
    ) -> None:
        """Send what a stream yields; its `finally` blocks run however it ends."""
        if self.is_stopping:
            raise Error(*STOPPING.args, retry=True)
        self.runtime.begin_turn()
        items = method.function(request, **arguments)
        if not inspect.isasyncgen(items):
            items = as_async(items)
        async with contextlib.aclosing(items):
            async for item in items:
                if request._credit is not None:
                    await request._credited()
                    request._credit -= 1
                if request._stage is not PENDING:
                    return
                sender = self.answers.emit(request, "item", item)
                if request._stage is not PENDING:
                    # It can't be written, which has ended the call.
                    return
                await self._go_on(sender)

    async def _go_on(self, sender: asyncio.Task[None] | None) -> None:
        """Wait until the last item is on its way, and the stream may go on."""
        if sender is not None:
            await asyncio.wait([sender])
        while self.wire.paused or self.runtime.is_turn_over():
            await (self.wire.writable if self.wire.paused else self.runtime.next_turn)()

    async def _run_in_thread(
        self, request: Request, method: Method, arguments: dict[str, Any]
    ) -> JSON:
        """Run a handler in a worker thread; the call is unfinished until it returns."""
        context = contextvars.copy_context()
        job = self.runtime.threads.submit(
            context.run, run, method.function, request, **arguments
        )
        future = asyncio.wrap_future(job)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            if job.cancel():
                raise
            # A thread can't be stopped; a second cancellation leaves it behind.
            await asyncio.wait([future])
        try:
            outcome = future.result()
        except STOPS as exc:
            # It would end a thread, and ends this call.
            raise RuntimeError("a thread must not end the server") from exc
        if type(outcome) is Failure:
            raise outcome.exc
        return outcome

    # The end of calls from outside

    def cut(self, request: Request, error: Error | None) -> None:
        """End an unfinished call: answer it at once, and cancel its task."""
        if request._stage is PENDING and error is not None:
            self.answers.send_error(request, error)
        was_cut, request._stage = request._stage is CUT, CUT
        method, task = request._method, request._task
        if was_cut and method is not None and method.kind is THREAD:
            # A thread can't be stopped; a second cancel() would end the wait for it.
            return
        task.cancel()  # type: ignore[union-attr]
        if inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_CREATED:  # type: ignore[arg-type,union-attr]
            # It has run no line, and never will.
            self.beginning -= LAZY_TASKS
            self._finish(request)

    def cancel(self, is_meant: Callable[[Request], bool]) -> bool:
        """Cut the unfinished calls that fit; tell whether there was one."""
        held = list(filter(is_meant, self.held))
        for request in held:
            self.answers.send_error(self._unhold(request), CANCELLED)
        unfinished = filter(is_meant, self.unfinished.values())
        begun = [each for each in unfinished if each._stage is PENDING]
        for request in begun:
            self.cut(request, CANCELLED)
        return bool(held or begun)

    def stop(self) -> None:
        """Refuse new calls from now on, and end the streams."""
        self.is_stopping = True
        self.set_gate()
        for request in list(self.unfinished.values()):
            if request._method is not None and request._method.kind is STREAM:
                self.cut(request, STOPPING)

    def cut_off(self) -> None:
        """Answer every call that is left, now that the server's grace has ended."""
        while self.held:
            self.answers.send_error(self._unhold(self.held[0]), STOPPING)
        for request in list(self.unfinished.values()):
            self.cut(request, STOPPING)

    def abandon(self) -> list[asyncio.Task[None]]:
        """Cancel everything, now that the client is gone; return what must end."""
        self.held.clear()
        for request in list(self.unfinished.values()):
            self.cut(request, None)
        for sender in self.answers.senders:
            sender.cancel()
        self.asked.end()
        return [*self.unfinished, *self.answers.senders]


class Answers:
    """From the outcome of a handler to its answer, for the calls of one connection.

    `conclude` sends the terminal event that an outcome asks for; `emit` sends the
    framework's events, `respond` those of handlers.

    Attributes:
        senders: Tasks in which an override sends an event.
    """

    def __init__(self, app: App, wire: Wire, overrides: Overrides) -> None:
        self.app = app
        self.wire = wire
        self.runtime = wire.runtime
        self.overrides = overrides
        self.encode = app.codec.encode
        self.senders: set[asyncio.Task[None]] = set()

    def conclude(self, request: Request, outcome: Any) -> None:
        """End a call: send the terminal event that its outcome asks for."""
        if self.runtime.elsewhere:
            self.runtime.catch_up()
        if type(outcome) is Failure:
            self._conclude_failure(request, outcome.exc)
        elif request._stage is ANSWERED:
            if outcome is not None:
                text = "what handler %r returned after it had answered is dropped"
                LOGGER.warning(text, request)
        elif request._stage is CUT or (
            request._method is not None and request._method.answers_itself
        ):
            return
        elif outcome is not None or request.id is not None:
            self.emit(request, "result", {} if outcome is None else outcome)

    def _conclude_failure(self, request: Request, exc: BaseException) -> None:
        if request._stage is not CUT:
            error = self.error_of(request, exc)
            if request._stage is PENDING:
                self.send_error(request, error)
            else:
                text = "handler %r raised after it had answered: %r"
                LOGGER.warning(text, request, error)
        elif not isinstance(exc, asyncio.CancelledError):
            log_failure(f"handler {request!r}, which was cut off,", exc)

    def error_of(self, request: Request, exc: BaseException) -> Error:
        """Turn what a handler raised into an `Error`; what isn't expected is logged."""
        exc = unwrap(exc)
        if isinstance(exc, Error):
            return exc
        for kind in type(exc).__mro__:
            if kind in self.app.errors:
                outcome = run(self.app.errors[kind], request, exc)
                if isinstance(outcome, Error):
                    return outcome
                name = describe(self.app.errors[kind])
                LOGGER.error("%s for @app.error returned no Error: %r", name, outcome)
                break
        hint = "; Refused is for on_connecting, write raise Error('forbidden')"
        log_failure(f"handler {request!r}", exc, hint * isinstance(exc, Refused))
        return INTERNAL

    def send_error(self, request: Request, error: Error) -> None:
        """End a call with an error."""
        self.app.labels["errors"][error.code] += 1
        self.emit(request, "error", error.as_data())

    def emit(
        self, request: Request, event: str, data: JSON
    ) -> asyncio.Task[None] | None:
        """Send an event of the framework's; what JSON can't hold becomes `internal`.

        Returns:
            The task in which an override sends it; None where it is sent.
        """
        # What `$ subscribe` answers goes out in this very step, not in a task.
        emit = self.overrides.emit
        if emit is not None and names_of(request)[1:] != ("$", "subscribe"):
            if event in TERMINAL:
                request._last_word = event
                request._stage = CUT if request._stage is CUT else ANSWERED
            return self._spawn(emit(request, event, data))
        message = {
            "request_id": request.id,
            "module": request.module,
            "method": request.method,
            "event": event,
            "data": data,
        }
        try:
            payload = self.encode(message)
        except TypeError:
            try:
                payload = self.app.codec.encode_all(message)
            except TypeError as exc:
                self.send_internal(request, data, exc)
                return None
        if event in TERMINAL:
            request._stage = ANSWERED
        self.wire.post(payload)
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what sends an event, in a task that ends with the connection."""
        sender = asyncio.Task(work, loop=self.runtime.loop, **TASK_OPTIONS)
        self.senders.add(sender)
        sender.add_done_callback(self.senders.discard)
        return sender

    def send_internal(self, request: Request, data: JSON, exc: BaseException) -> None:
        """End a call whose data can't be written."""
        LOGGER.error("what handler %r sends can't be written: %s", request, exc)
        request._stage = ANSWERED
        self.app.labels["errors"][INTERNAL.code] += 1
        error = message_of(*names_of(request), "error", INTERNAL.as_data())
        # The standard library writes every name and id that a client can send.
        self.wire.post(json.dumps(error).encode())

    def respond(self, request: Request[Any], event: str, data: JSON) -> Any:
        """Queue an event that a handler sends; from a worker thread, in the loop.

        Whether the call has ended meanwhile is decided there, in `_say` and `_tell`.
        """
        is_here = threading.get_ident() == self.runtime.thread
        if is_here:
            self.runtime.catch_up()
        has_own_way = self.overrides.tell is not None
        if has_own_way and is_here:
            return self._tell(request, event, data)
        message = message_of(*names_of(request), event, data)
        payload = self.app.codec.write(message)
        if is_here:
            self._say(request, event, payload)
            return Sent(self.wire)
        request._has_answered |= event in TERMINAL
        if has_own_way:
            self.runtime.call(self._tell_later, request, event, data)
        else:
            self.runtime.call(self._say, request, event, payload)
        return Sent(None)

    def _say(self, request: Request, event: str, payload: bytes) -> None:
        if request._stage is PENDING or request._last_word == event:
            if event in TERMINAL and request._stage is PENDING:
                request._stage = ANSWERED
            self.wire.push(payload)

    def _tell(self, request: Request, event: str, data: JSON) -> Any:
        stage, tell = request._stage, typing.cast("Any", self.overrides.tell)
        if stage is not PENDING and request._last_word != event:
            return Sent(None)
        if event in TERMINAL and stage is PENDING:
            request._stage = ANSWERED
        try:
            sent = tell(request.client, *names_of(request), event, data)
        except BaseException:
            request._stage = stage
            raise
        is_plain = type(sent) is Sent or not inspect.isawaitable(sent)
        return sent if is_plain else self._await_telling(request, stage, sent)

    async def _await_telling(self, request: Request, stage: Stage, sent: Any) -> Any:
        """Await the sending of an event; the call goes on where a last one fails."""
        try:
            return await sent
        except BaseException:
            request._stage = CUT if request._stage is CUT else stage
            raise

    def _tell_later(self, request: Request, event: str, data: JSON) -> None:
        async def tell() -> None:
            outcome = await run_to_end(self._tell, request, event, data)
            if type(outcome) is Failure:
                self.conclude(request, outcome)

        self._spawn(tell())


class Asked:
    """The calls to the other side of a connection.

    Attributes:
        handlers: What gets the events of the unfinished ones, by id.
        cancels: Whether the other side understands `$ cancel`: a server of wsappy does.
    """

    def __init__(self, wire: Wire, codec: Codec, *, cancels: bool = False) -> None:
        self.wire = wire
        self.codec = codec
        self.cancels = cancels
        self.handlers: dict[JSON, Callable[[str, Any], None]] = {}
        self.last_id = 0

    def receive(self, message: dict[str, JSON]) -> None:
        """Hand an event of a call to the other side to who asked."""
        request_id, event = message["request_id"], message["event"]
        handle = self.handlers[request_id]
        if event in TERMINAL:
            del self.handlers[request_id]
        data = message.get("data")
        handle(event, Error.from_data(data) if event == "error" else data)

    def begin(
        self,
        handle: Callable[[str, Any], None],
        *names: str,
        data: JSON,
        **options: Any,
    ) -> int:
        """Queue a call to the other side; *handle* gets its events, or how it ended.

        Returns:
            Its `request_id`, for `forget`.
        """
        self.last_id += 1
        self.handlers[self.last_id] = handle
        try:
            self.send(*names, data=data, request_id=self.last_id, **options)
        except TypeError:
            del self.handlers[self.last_id]
            raise
        return self.last_id

    def send(self, module: str, method: str, **rest: JSON) -> None:
        """Queue a call to the other side; raises TypeError for unwritable data."""
        message = {"module": module, "method": method, **rest}
        self.wire.queue(self.codec.write(message))

    async def ask(
        self,
        module: str,
        method: str,
        data: JSON,
        timeout: float | None,  # noqa: ASYNC109
        note: Callable[[str, JSON], object] | None = None,
    ) -> JSON:
        """Call the other side and return its result; `Client.call` does it.

        Args:
            module: Name of the module.
            method: Name of the method.
            data: The arguments.
            timeout: Seconds; None for no limit.
            note: Gets each event but an error before the next message of the same read
                is read; what it raises ends the call. By default it refuses items.
        """
        answer = self.wire.runtime.loop.create_future()
        note = note or functools.partial(refuse_item, f"{module}.{method}")
        handle = functools.partial(settle_answer, answer, note)
        request_id = self.begin(handle, module, method, data=data)
        # A timer of its own: `asyncio.timeout` for each call takes twice as long.
        seconds = math.inf if timeout is None else timeout
        late = TimeoutError(f"no answer to {module}.{method} in time; it was sent")
        timer = self.wire.runtime.loop.call_later(seconds, handle, "error", late)
        try:
            return await answer
        finally:
            timer.cancel()
            self.forget(request_id)

    def forget(self, request_id: int) -> None:
        """Stop waiting for a call to the other side, and cancel it there."""
        if self.handlers.pop(request_id, None) is not None and self.cancels:
            # Only an error would be answered.
            self.send("$", "cancel", data={"request_id": request_id})

    def end(self) -> None:
        """End all of them, now that the other side is gone."""
        handlers, self.handlers = self.handlers, {}
        for handle in handlers.values():
            handle("error", self.wire.close_exc)


def unwrap(exc: BaseException) -> BaseException:
    """Return the exception inside an ExceptionGroup of one, as TaskGroups raise it."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


# What a handler returns that is its result as it is.
PLAIN_RESULTS = frozenset({dict, list, str, int, float, bool})


def names_of(request: Request) -> tuple[str | int | None, str, str]:
    """Return what every event of a call begins with."""
    return request.id, request.module, request.method


def disarm(request: Request) -> None:
    """End the time limit of a call."""
    if request._timer is not None:
        request._timer.cancel()
        request._timer = None


async def as_async(items: Generator[Any, Any, Any]) -> typing.AsyncIterator[Any]:
    """Make an asynchronous generator of a plain one."""
    with contextlib.closing(items):
        for item in items:
            yield item


def settle_answer(
    answer: asyncio.Future[JSON],
    note: Callable[[str, JSON], object],
    event: str,
    value: Any,
) -> None:
    """Handle an event of a call to the other side that has one answer."""
    if answer.done():
        return
    outcome = Failure(value) if event == "error" else run(note, event, value)
    if type(outcome) is Failure:
        answer.set_exception(outcome.exc)
    elif event == "result":
        answer.set_result(value)


def refuse_item(
    name: str, event: str, value: JSON, remedy: str = "return instead of yield there"
) -> None:
    """Raise TypeError where a call turns out to be that of a stream."""
    if event == "item":
        must = f"call of {name!r} must have one result: got an item"
        raise TypeError(f"{must}; write {remedy}")


# What every route has beside the application's methods.
CONTROLS: dict[tuple[str, str], Method] = {}


def control(name: str) -> Callable[[Function], Function]:
    """Register a handler of the module `$` (protocol, section 5)."""

    def register(function: Function) -> Function:
        CONTROLS["$", name] = Method("$", function, Mark(name))
        CONTROLS["$", name].prepare()
        return function

    return register


def is_control(request: Request) -> bool:
    """Tell whether a call never waits: those of `$`, but for one that runs a guard."""
    return request.module == "$" and request.method != "subscribe"


@control("cancel")
def cancel_call(request: Request, request_id: str | int) -> JSON:
    """End an unfinished call of the client's."""
    calls: Calls = request.client.connection.calls
    is_cancelled = calls.cancel(lambda each: each.id == request_id)
    return None if request.id is None else {"cancelled": is_cancelled}


@control("more")
def give_credit(request: Request, request_id: str | int, items: int) -> None:
    """Let a stream send that many items more; an unknown id is no error."""
    if items < 1:
        raise bad_data([("items", "expected an integer of at least 1")])
    calls: Calls = request.client.connection.calls
    for each in (*calls.held, *calls.unfinished.values()):
        if each.id == request_id:
            each._earn(items)


@control("ping")
def answer_ping(request: Request) -> None:
    """Answer: browsers can't see WebSocket pings."""


# --- 6. Clients --------------------------------------------------------------

# Codes that a close frame may have (RFC 6455, section 7.4, and IANA's registry).
CLOSE_CODES = {1000, 1001, *range(1007, 1015), *range(3000, 5000)}
DEFAULT_PORTS = {"http": 80, "https": 443}
# The id of the client whose hook or handler this is, also in tasks that they started.
# No more than the id: a timer that was cancelled keeps its context until it is due.
CURRENT = contextvars.ContextVar("CURRENT", default="")


class Client:
    """One connection, for the application; subclass it to override its hooks.

    Attributes:
        app: The `App`.
        server: The same, or the `Server` of the classic API.
        id: Distinct for each connection.
        path: As the client asked for it, without the query.
        params: The path's parameters, converted.
        query: The query, by name; the last value of a repeated name.
        headers: The handshake's headers.
        remote: `(host, port)` of the peer, None on a Unix socket.
        scope: The ASGI scope in another server, else None.
        groups: Names of the groups it is in; in `on_disconnected`, that it was in.
        connection: That of `websockets`: for attributes, `ping`, and `send` in an
            `on_message` route. In another server it has `send` alone.
        handlers: What the classic API gives its clients, else None.
    """

    def __new__(cls, server: Any, connection: Any, handlers: Any) -> Self:
        """Make a client with all its attributes, before its `__init__` runs."""
        client = super().__new__(cls)
        client._attach(server, connection, handlers)
        return client

    def __init__(self, server: Any, connection: Any, handlers: Any) -> None:
        pass

    def _attach(self, server: Any, connection: Any, handlers: Any) -> None:
        opening: Opening = connection.opening
        self.app: App = connection.app
        self.server = server
        self.id = opening.id
        self.path, self.query = split_query(opening.target)
        self.params: dict[str, Any] = connection.params
        self.headers = opening.headers
        self.remote = opening.remote
        self.scope = opening.scope
        self.groups: set[str] = set()
        self.connection = connection
        self.handlers = handlers

    async def on_connecting(self, *args: Any, **params: Any) -> None:
        """Let the client in, or raise `Refused`; runs inside the handshake.

        Args:
            *args: Always empty; it lets an override name the parameters.
            **params: The path's parameters.
        """

    async def on_connected(self) -> None:
        """Greet the client, which is connected; its calls wait until this returns."""

    async def process_message(self, request: Request) -> JSON:
        """Run a call; override it to check rights, and return `await super()...`.

        Returns:
            What the handler returned; None for a stream, after its last item.

        Raises:
            Error: What the handler raised, and `unknown_method` and `bad_data`.
        """
        result = self.connection.calls.run(request)
        return await result if inspect.isawaitable(result) else result

    async def on_message(self, message: str | bytes) -> None:
        """Handle a raw message, where the route speaks another protocol."""

    async def on_disconnected(self) -> None:
        """Clean up: runs once, after the client's calls have ended."""

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent to it."""
        wire: Wire = self.connection
        return wire.phase is OPEN

    def __repr__(self) -> str:
        address = self.remote and "{}:{}".format(*self.remote)
        return f"<{type(self).__name__} {self.id} at {self.path!r} from {address}>"

    def send_message(
        self,
        request_id: str | int | None,
        module: str,
        method: str | None,
        event: str,
        /,
        **data: JSON,
    ) -> Any:
        """Queue an event; an override gets every one whose data is an object."""
        return self._say(request_id, module, method, event, data)

    def push(
        self, module: str, event: str, data: JSON = None, /, **fields: JSON
    ) -> Sent:
        """Queue an event that answers no call.

        Args:
            module: Name of the module.
            event: Name of the event.
            data: Any JSON, or a mapping that *fields* are added to.
            **fields: Keys of the event's data.

        Returns:
            An awaitable that waits while the client is behind.

        Raises:
            TypeError: If the data can't be written as JSON.
        """
        data = merge(data, fields)
        self.app.counts["pushes"] += 1
        calls: Calls | None = self.connection.calls
        tell = (calls and calls.overrides.tell) or type(self)._say
        sent: Sent = tell(self, None, module, None, event, data)
        return sent

    def _say(self, *parts: Any) -> Sent:
        """Queue an event; before the connection is open, at its opening, in order."""
        payload = self.app.codec.write(message_of(*parts))
        wire: Wire = self.connection
        if wire.phase is OPENING and wire.session is not None:
            wire.session.when_open(functools.partial(wire.push, payload))
            return Sent(None)
        return wire.queue(payload)

    async def call(
        self,
        module: str,
        method: str,
        data: JSON = None,
        /,
        *,
        timeout: float | None = 10.0,  # noqa: ASYNC109
        **fields: JSON,
    ) -> JSON:
        """Call the client.

        Args:
            module: Name of the client's module.
            method: Name of its method.
            data: A mapping that *fields* are added to.
            timeout: Seconds; None for no limit.
            **fields: The arguments.

        Returns:
            The `data` of the result.

        Raises:
            Error: What the client answers.
            TimeoutError: If it doesn't answer in time.
            ConnectionClosed: If it goes, at once.
            RuntimeError: If the connection isn't open yet.
            TypeError: If the data can't be written as JSON, or the method streams.
        """
        self._check_open("called", "call it in on_connected")
        wire: Wire = self.connection
        if wire.phase is not OPEN:
            await wire.reachable()
        return await wire.calls.asked.ask(module, method, merge(data, fields), timeout)

    def join(self, group: str) -> None:
        """Put the client into a group; in `on_connecting`, when it is connected."""
        self._when_open(self.app.groups.add, group)

    def leave(self, group: str) -> None:
        """Remove the client from a group; nothing happens if it isn't in it."""
        self._when_open(self.app.groups.discard, group)

    def _when_open(self, action: Callable[[Client, str], None], group: str) -> None:
        check_string("name of a group", group, "client.join('room:42')")
        session: Session = self.connection.session
        session.when_open(functools.partial(action, self, group))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and wait for its end; a no-op once it is closed.

        From a handler or a hook of the same client, and from a task that one of them
        started, it returns once the close is under way.

        Args:
            code: 1000, 1001, 1007 to 1014, or 3000 to 4999.
            reason: Text for the client, at most 123 bytes in UTF-8.

        Raises:
            ValueError: If *code* or *reason* is out of range.

        Source:
            RFC 6455, section 7.4.
        """
        size = len(reason.encode())
        if code not in CLOSE_CODES or size > 123:
            raise ValueError(
                f"code and reason of a close must be what RFC 6455 allows: got {code!r}"
                f" and {size} bytes; write 1000 or 4000 to 4999, and at most 123 bytes"
            )
        self._check_open("closed", "raise Refused(403) in on_connecting")
        self.connection.shut(code, reason)
        if CURRENT.get() != self.id:
            await self.connection.wait_closed()

    def _check_open(self, what: str, remedy: str) -> None:
        if self.connection.phase is OPENING:
            raise RuntimeError(f"client must be open to be {what}; {remedy}")


def has_own(client: Client, hook: str) -> bool:
    """Tell whether the class of *client* has a *hook* of its own."""
    return getattr(type(client), hook) is not getattr(Client, hook)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The request that a page of `@app.http` gets.

    Attributes:
        path: Without the query.
        query: By name; the last value of a repeated name.
        headers: Of the request.
        scope: The ASGI scope in another server, else None.
    """

    path: str
    query: dict[str, str]
    headers: Headers
    scope: dict[str, Any] | None = None


# Headers that the server writes itself; a page must not.
FRAMING = frozenset({"connection", "content-length", "transfer-encoding"})
HEADER = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+: [\t\x20-\x7e\x80-\xff]*")
NO_BODY = (204, 304)


class Answer:
    """An HTTP answer: of a page, or for a client that isn't let in.

    Args:
        status: HTTP status.
        body: Text or bytes.
        headers: Those beside the server's own.
    """

    def __init__(
        self, status: int, body: str | bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        kind = "application/octet-stream"
        if isinstance(body, str):
            body, kind = body.encode(errors="replace"), "text/plain; charset=utf-8"
        self.status = status
        self.body = b"" if status in NO_BODY else body
        self.headers = dict(headers or {})
        if status not in NO_BODY:
            self.headers["Content-Length"] = str(len(body))
            if "content-type" not in map(str.lower, self.headers):
                self.headers["Content-Type"] = kind


def answer_of(refused: Refused) -> Answer:
    """Refuse by an HTTP status, with the reason as its text."""
    phrase = http.HTTPStatus(refused.status).phrase
    return Answer(refused.status, refused.message or phrase)


PAGE_RETURNS = (
    "%s must return str, bytes, (body, content type), (body, {header: value}) or "
    "(status, body, {header: value}): got %r"
)
PAGE_HEADERS = (
    "%s must return headers of one line each, in Latin-1, that don't frame the answer: "
    "got %r"
)


def answer_of_page(name: str, outcome: Any) -> Answer:
    """Turn what a page returned, or how it failed, into an answer."""
    parts: tuple[int, str | bytes, Mapping[Any, Any]]
    match outcome:
        case Refused():
            return answer_of(outcome)
        case str() | bytes():
            parts = 200, outcome, {}
        case (str() | bytes() as body, str() as content_type):
            parts = 200, body, {"Content-Type": content_type}
        case (str() | bytes() as body, Mapping() as headers):
            parts = 200, body, headers
        case (int() as status, str() | bytes() as body, Mapping() as headers) if (
            status in set(http.HTTPStatus) and status >= 200
        ):
            parts = status, body, headers
        case _:
            LOGGER.error(PAGE_RETURNS, name, outcome)
            return answer_of(FAILED)
    bad = {key: value for key, value in parts[2].items() if not is_header(key, value)}
    if bad:
        LOGGER.error(PAGE_HEADERS, name, bad)
        return answer_of(FAILED)
    return Answer(*parts)


def is_header(name: object, value: object) -> bool:
    """Tell whether a page may send a header."""
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    is_one_line = HEADER.fullmatch(f"{name}: {value}") is not None
    return is_one_line and name.lower() not in FRAMING


def address_of(text: str, scheme: str) -> tuple[str, int | None] | None:
    """Return host and port of an origin or a `Host`; None where there is no host."""
    try:
        parts = urllib.parse.urlsplit(text if "//" in text else f"//{text}")
        port = DEFAULT_PORTS.get(scheme) if parts.port is None else parts.port
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname else None


def allows_origin(headers: Headers, origins: str | Sequence[str] | None) -> bool:
    """Tell whether the `Origin` of a request may come in."""
    origin, host = headers.get("Origin"), headers.get("Host", "")
    if origin is None or (origins == "*" and origin != "null"):
        return True
    scheme = origin.partition(":")[0].lower()
    address = address_of(origin, scheme)
    # `null`, which every sandboxed page has, or `file://`: it passes only if listed.
    if address is None or origin == "null":
        return origin.lower() in map(str.lower, origins or ())
    allowed: Iterable[str] = [host] if origins is None else origins
    return address in [address_of(each, scheme) for each in allowed]


class Life(enum.Enum):
    """Where the life of a client stands; it goes one way."""

    ASKING = "its handshake is being decided"
    HERE = "`on_connecting` has let it in: it gets its goodbye"
    GONE = "it is leaving, or was never let in"


class Session:
    """The life of one client, from its request to its goodbye, on whatever wire.

    Who makes a wire for a client calls `enter`, or `find_page`, and answers with what
    they return; then `greet` where the connection is open; and `depart` at the end,
    always, all in one task that runs in `context`.

    Attributes:
        life: Where it stands.
        client: The client, once it was made.
        calls: Its calls.
        context: What its hooks set for later ones; calls run in copies of it.
        refused: Why a browser that was let in is closed at once.
        at_open: What waits for the opening of the connection, in order.
        hooks: Tasks of `on_connected` and `on_message`.
        counted: The groups whose messages the client counts, since it has subscribed to
            them, with the epoch that it knows; also some that it was removed from.
    """

    def __init__(self, serving: Serving, wire: Wire) -> None:
        self.serving = serving
        self.app = serving.app
        self.wire = wire
        self.life = Life.ASKING
        self.client: Client | None = None
        self.calls: Calls | None = None
        self.raw: RawMessages | None = None
        self.refused: Refused | None = None
        self.at_open: list[Callable[[], object]] = []
        self.hooks: list[asyncio.Task[None]] = []
        # One guard of a group at a time.
        self.joining = asyncio.Lock()
        self.counted: dict[str, str] = {}
        self.context = contextvars.copy_context()
        self.context.run(CURRENT.set, wire.opening.id)

    def count(self, group: str, epoch: str) -> None:
        """Note that the client counts a group's messages from now on."""
        client: Any = self.client
        self.counted[group] = epoch
        removed = self.counted.keys() - client.groups
        if len(removed) > MAX_GROUPS:
            del self.counted[removed.pop()]

    # The handshake

    async def find_page(self, method: str) -> Answer:
        """Answer a request that is no WebSocket handshake."""
        opening = self.wire.opening
        page = self.app.find_page(opening.target)
        if page is None and self.app.table.find(opening.target) is None:
            return Answer(404, "not found")
        if method not in ("GET", "HEAD"):
            return Answer(405, "method not allowed", {"Allow": "GET, HEAD"})
        if page is None:
            text = "this address is for WebSocket clients"
            return Answer(426, text, {"Upgrade": "websocket"})
        if len(self.serving.answers) >= MAX_ANSWERS:
            return Answer(503, "too many pages are under way")
        self.serving.answers.add(self)
        asked = *split_query(opening.target), opening.headers, opening.scope
        request = PageRequest(*asked)
        name = f"page {describe(page)}"
        return answer_of_page(name, await self.attempt(name, page, request))

    async def enter(self) -> Answer | None:
        """Decide who may come in, in the order of the protocol, section 8.

        Returns:
            None to let the client in, even if only to tell a browser why not.
        """
        opening = self.wire.opening
        found = self.app.table.find(opening.target)
        origins = found[0].origins if found else self.app.origins
        if not allows_origin(opening.headers, origins):
            self.app.log_origin(opening.headers)
            return Answer(403, "this origin is not allowed")
        if found is None:
            return self._refuse(Refused(404, "no such path"))
        refused = self.serving.refusal()
        if refused is not None:
            return answer_of(refused)
        refused = await self.attempt("on_connecting", self._connect, *found)
        if refused is not None:
            return self._refuse(refused)
        # The hook may have taken longer than the server had left.
        is_late = self.serving.is_stopping
        return Answer(503, STOPPING.message) if is_late else None

    async def _connect(self, route: Route, params: dict[str, Any]) -> None:
        """Make the client and run its `on_connecting`; either may raise."""
        wire: Any = self.wire
        wire.app, wire.params = self.app, params
        client = self.client = route.factory(wire)
        self.calls = wire.calls = Calls(self.app, route, wire, client, self.context)
        self.serving.sessions.add(self)
        try:
            if has_own(client, "on_connecting"):
                coming = client.on_connecting(**params)
                if inspect.isawaitable(coming):
                    await coming
            self.life = Life.HERE
        finally:
            if self.life is not Life.HERE:
                self.serving.sessions.discard(self)

    def _refuse(self, refused: Refused) -> Answer | None:
        """Refuse; a browser is let in and closed, since it can't read a status."""
        self.refused = refused
        has_origin = "Origin" in self.wire.opening.headers
        return None if has_origin else answer_of(refused)

    def note_end(self, status: int | None, end: str) -> None:
        """Count and log the end of a client, or the HTTP status that refused it."""
        if self.refused is not None and status == 101:
            status = self.refused.status
        if self.life is Life.HERE and status in (None, 101):
            LOGGER.info("%r went: %s", self.client, end)
        elif status is not None and status >= 400:
            self.app.labels["refused"][str(status)] += 1
            opening = self.wire.opening
            path, address = split_query(opening.target)[0], opening.remote
            LOGGER.info("refused a client at %r from %s: %d", path, address, status)

    # From the opening to the goodbye

    def greet(self) -> None:
        """Run `on_connected`; calls that arrive meanwhile are held.

        What `on_connecting` queued goes out first.
        """
        if self.life is not Life.HERE:
            self._shut_out(self.refused or FAILED)
            return
        client: Any = self.client
        LOGGER.info("%r came", client)
        self.wire.receive = self.calls.receive  # type: ignore[union-attr]
        if has_own(client, "on_message"):
            self.raw = RawMessages(self, client)
            self.wire.receive = self.raw.receive
        for action in self.at_open:
            action()
        self.at_open.clear()
        if has_own(client, "on_connected"):
            self._start_hook("on_connected", self._welcome(client))
        else:
            self._begin_calls()

    def _start_hook(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self.hooks.append(asyncio.Task(work, name=name, context=self.context))

    async def _welcome(self, client: Client) -> None:
        refused: Any = FAILED
        try:
            refused = await self.attempt("on_connected", client.on_connected)
        finally:
            if isinstance(refused, Refused):
                self._shut_out(refused)
            else:
                self._begin_calls()

    def _begin_calls(self) -> None:
        """Begin the calls that were held."""
        self.calls.is_greeting = False  # type: ignore[union-attr]
        self.go_on()
        if self.raw is not None:
            self._start_hook("on_message", self.raw.run())

    def go_on(self) -> None:
        """Begin what waited for a client that was behind."""
        if self.calls is not None and not self.calls.is_greeting:
            self.calls.release()

    def _shut_out(self, refused: Refused) -> None:
        """Close the connection of a client that is refused after it was let in."""
        code = 1011 if refused is FAILED else refused.close_code
        self.wire.shut(code, cut_reason(refused.message))

    def when_open(self, action: Callable[[], object]) -> None:
        """Call *action* now, or when the connection opens, in order."""
        if self.wire.phase is OPENING or self.at_open:
            self.at_open.append(action)
        else:
            self.wire.runtime.call(action)

    async def attempt(
        self, what: str, function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Run a hook or a page to its end, and log how it failed.

        Returns:
            Its result, or the `Refused` that it raised; `FAILED` for anything else.
        """
        try:
            outcome = await run_to_end(function, *arguments)
        except asyncio.CancelledError as exc:
            is_cut = asyncio.current_task() in CUT_TASKS
            if is_cut or self.serving.is_stopping:
                raise
            # It has cancelled its own task.
            outcome = Failure(exc)
        if type(outcome) is not Failure:
            return outcome
        error, phase = outcome.exc, self.wire.phase
        is_gone = phase in (CLOSING, CLOSED)
        if isinstance(error, Refused) or (
            isinstance(error, ConnectionClosed) and is_gone
        ):
            LOGGER.info("%s raised %r", what, error)
        else:
            hint = "; Error is for handlers, write raise Refused(403)"
            log_failure(what, error, hint * isinstance(error, Error))
        return error if isinstance(error, Refused) else FAILED

    async def depart(self) -> None:
        """End the calls, leave the groups, run `on_disconnected`; once."""
        was, self.life = self.life, Life.GONE
        self.serving.answers.discard(self)
        client: Any = self.client
        if was is not Life.HERE:
            return
        self.at_open.clear()
        self.app.groups.remove(client)
        for hook in self.hooks:
            cut_task(hook)
        calls: Any = self.calls
        work = [*calls.abandon(), *self.hooks]
        try:
            await wait_at_most(CANCEL_GRACE, work)
        finally:
            # A goodbye that hangs doesn't keep the place of another client.
            self.serving.sessions.discard(self)
        for task in [each for each in work if not each.done()]:
            request = calls.unfinished.get(task)
            who = task if request is None else f"handler {request!r}"
            text = "%s did not end when it was cancelled; it is left behind"
            LOGGER.warning(text, who)
        limit = GOODBYE_GRACE if self.serving.is_stopping else None
        try:
            async with asyncio.timeout(limit):
                await self.attempt("on_disconnected", client.on_disconnected)
        except TimeoutError as exc:
            log_failure("on_disconnected", exc)


async def wait_at_most(seconds: float, work: Iterable[asyncio.Future[Any]]) -> None:
    """Wait for *work* to end, but no longer than that."""
    tasks = list(work)
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


# Bytes of raw messages that may wait before reading stops; what each message costs
# besides its payload.
MAX_RAW, RAW_OVERHEAD = 2**16, 128


class RawMessages:
    """The messages of a route with its own `on_message`: one at a time, in order."""

    def __init__(self, session: Session, client: Client) -> None:
        self.session = session
        self.wire: Any = session.wire
        self.client = client
        self.messages: asyncio.Queue[tuple[str | bytes, int]] = asyncio.Queue()
        self.size = 0

    def receive(self, payload: bytes, is_text: bool) -> None:
        """Queue a message; text that isn't UTF-8 ends the connection."""
        message = self.wire.read_text(payload) if is_text else payload
        if message is None:
            return
        size = len(payload) + RAW_OVERHEAD
        self.messages.put_nowait((message, size))
        self.size += size
        if self.size > MAX_RAW:
            self.wire.hold()

    async def run(self) -> None:
        """Give each message to `on_message`, until one fails."""
        outcome: Any = None
        while not isinstance(outcome, Refused):
            message, size = await self.messages.get()
            while self.wire.runtime.is_turn_over():
                await self.wire.runtime.next_turn()
            outcome = await self.session.attempt(
                "on_message", self.client.on_message, message
            )
            self.size -= size
            if self.size <= MAX_RAW:
                self.wire.release()
        self.wire.shut(1011, INTERNAL.message)
        # The answer to the close has to be read, though nobody listens any more.
        self.size = 0
        self.wire.release()


# --- 7. Groups ---------------------------------------------------------------


class Log:
    """The history of a group: its newest messages, numbered from 1.

    Attributes:
        pattern: What declares how many there are, and how long they are kept.
        epoch: Distinct for each life of a history.
        offset: The number of the newest message.
        messages: Those that are kept, as they were sent.
        newest: When the newest one came.
    """

    __slots__ = ("epoch", "messages", "newest", "offset", "pattern")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.epoch = secrets.token_urlsafe(6)
        self.offset = 0
        self.messages = collections.deque[bytes](maxlen=pattern.history)
        self.newest = 0.0

    def append(self, payload: bytes) -> bytes:
        """Number a message and keep it; return it as it is sent."""
        self.offset += 1
        message = b'%b,"offset":%d}' % (payload.rstrip()[:-1], self.offset)
        self.keep(message)
        return message

    def keep(self, message: bytes) -> None:
        """Keep a message as the newest."""
        self.messages.append(message)
        self.newest = monotonic()

    @property
    def place(self) -> dict[str, JSON]:
        """Where it stands, for a client."""
        return {"offset": self.offset, "epoch": self.epoch}

    def since(self, offset: int, epoch: str) -> list[bytes] | None:
        """Return what came after *offset*; None where not all of it is kept."""
        kept, missed = len(self.messages), self.offset - offset
        if epoch != self.epoch or not 0 <= missed <= kept:
            return None
        return list(itertools.islice(self.messages, kept - missed, None))


@dataclass(eq=False, slots=True)
class Pattern:
    """Groups that clients may ask to join; `App.group` declares it.

    Attributes:
        path: What their names look like.
        guard: Decides who may join: gets the client and the parameters that it names.
        names: Those parameters.
        history: How many messages of each group are kept.
        ttl: Seconds after the newest of them until all are forgotten.
        kept: The groups that keep messages; the one whose newest is oldest comes first.
    """

    path: Path
    guard: Callable[..., Any]
    names: list[str]
    history: int
    ttl: float
    kept: collections.OrderedDict[str, Feed] = field(
        default_factory=collections.OrderedDict
    )

    async def admit(self, client: Client, params: dict[str, Any]) -> None:
        """Let a client in where the guard says True; raises `Error` elsewhere."""
        arguments = {name: params[name] for name in self.names}
        ask = functools.partial(self.guard, client, **arguments)
        judge(self.guard, await run_to_end(ask))


@dataclass(eq=False, slots=True)
class Feed:
    """One group, as long as somebody is in it, or a message of it is kept.

    Attributes:
        name: Its name.
        log: Its history, None where it keeps none.
        members: Its members, in the order in which they joined.
    """

    name: str
    log: Log | None
    members: dict[Client, None] = field(default_factory=dict)

    def is_known(self) -> bool:
        """Tell whether it is known where it stands: always, in one process."""
        return True

    def is_needed(self) -> bool:
        """Tell whether somebody is in it, or a message of it is kept."""
        return bool(self.members or (self.log and self.log.messages))


class Groups:
    """The groups of an application in one process: who is in which, and their pushes.

    Attributes:
        patterns: What clients may join; those without parameters come first.
        feeds: The groups that somebody is in, or that keep messages, by name.
        runtime: The loop in which the application is served, None before.
    """

    def __init__(self, counts: collections.Counter[str]) -> None:
        self.patterns: list[Pattern] = []
        self.feeds: dict[str, Feed] = {}
        self.runtime: Runtime | None = None
        self.counts = counts

    async def start(self, runtime: Runtime) -> None:
        """Remember the loop in which the application is served."""
        self.runtime = runtime

    async def stop(self) -> None:
        """Stop, when the application is no longer served."""

    def declare(self, pattern: Pattern) -> None:
        """Add a pattern; raises ValueError for one that can't be told from another."""
        for other in self.patterns:
            if other.path.shape == pattern.path.shape:
                both = f"{pattern.path.text!r} clashes with {other.path.text!r}"
                raise ValueError(f"group {both}; write another")
        self.patterns.append(pattern)
        self.patterns.sort(key=lambda each: bool(each.path.converters))

    def find(self, name: str) -> tuple[Pattern, dict[str, Any]] | None:
        """Return the pattern of a group with its parameters' values."""
        for pattern in self.patterns:
            params = pattern.path.match(name)
            if params is not None:
                return pattern, params
        return None

    def keeps_history(self, name: str) -> bool:
        """Tell whether a group keeps messages."""
        found = self.find(name)
        return found is not None and found[0].history > 0

    # Who is in it

    def open(self, name: str) -> Feed:
        """Return a group as it stands, a new one where it is forgotten."""
        feed = self.feeds.get(name)
        if feed is not None and feed.log is not None:
            self._expire(feed.log.pattern)
            feed = self.feeds.get(name)
        return feed or self.make(name)

    def make(self, name: str) -> Feed:
        """Make a group that isn't there yet."""
        found = self.find(name)
        log = Log(found[0]) if found and found[0].history else None
        feed = self.feeds[name] = Feed(name, log)
        return feed

    def close(self, feed: Feed) -> None:
        """Forget a group that nobody is in, and that keeps nothing."""
        if not feed.is_needed():
            self.feeds.pop(feed.name, None)

    def _expire(self, pattern: Pattern) -> None:
        """Forget all messages of the groups whose newest is older than `ttl`."""
        oldest = monotonic() - pattern.ttl
        while pattern.kept:
            feed: Any = next(iter(pattern.kept.values()))
            if feed.log.newest > oldest:
                return
            feed.log.messages.clear()
            del pattern.kept[feed.name]
            self.close(feed)

    def expire(self) -> None:
        """Forget the messages whose time is over."""
        for pattern in self.patterns:
            self._expire(pattern)

    def add(self, client: Client, name: str) -> None:
        """Put a client into a group, unless it is gone."""
        if client.connection.session.life is Life.HERE:
            client.groups.add(name)
            feed: Any = self.open(name)
            feed.members[client] = None
            counted = client.connection.session.counted.get(name)
            if counted and feed.is_known() and counted != feed.log.epoch:
                # Its offsets begin anew: else new messages would be dropped as seen.
                self.tell_gap(feed, client)

    def tell_gap(self, feed: Any, *clients: Client) -> None:
        """Tell those who count a group's messages that some are lost.

        They have subscribed to it (protocol, section 6).
        """
        data = {"group": feed.name, **feed.log.place}
        payload = orjson.dumps(message_of(None, "$", None, "gap", data))
        for client in clients:
            counted = client.connection.session.counted
            if feed.name in counted:
                counted[feed.name] = feed.log.epoch
                client.connection.push(payload)

    def discard(self, client: Client, name: str) -> None:
        """Remove a client from a group, unless it is gone."""
        if client.connection.session.life is Life.HERE:
            client.groups.discard(name)
            self.remove(client, name)

    def remove(self, client: Client, *names: str) -> None:
        """Remove a client from groups, or from all its own, whose names it keeps."""
        for name in names or client.groups:
            if feed := self.feeds.get(name):
                feed.members.pop(client, None)
                self.close(feed)

    # What is pushed to it

    def push(
        self, name: str, payload: bytes, without: frozenset[str]
    ) -> typing.Awaitable[None]:
        """Queue a message to every member of a group, from whichever thread."""
        if self.runtime is None:
            # There is nobody to push to, only a history to keep.
            self._push(name, payload, without)
        else:
            self.runtime.call(self._push, name, payload, without)
        return Sent(None)

    def _push(self, name: str, payload: bytes, without: frozenset[str]) -> None:
        feed = self.open(name)
        self.deliver(feed, self.number(feed, payload), without)
        self.close(feed)

    def number(self, feed: Feed, payload: bytes) -> bytes:
        """Number and keep a message, where the group keeps any; return it as sent."""
        if feed.log is not None:
            payload = feed.log.append(payload)
            self.keep(feed)
        return payload

    def keep(self, feed: Any) -> None:
        """Note that the group's history was added to: it is the last to expire."""
        kept = feed.log.pattern.kept
        kept[feed.name] = feed
        kept.move_to_end(feed.name)

    def deliver(
        self, feed: Feed, payload: bytes, without: frozenset[str] = frozenset()
    ) -> None:
        """Send a message to the members that are in this process."""
        others = list(feed.members)
        if without:
            others = [client for client in others if client.id not in without]
        self.counts["pushes"] += 1
        self.counts["deliveries"] += len(others)
        # The first push of a turn is written at once, which costs less; those that
        # follow it are written together.
        is_first = others and self.runtime and self.runtime.is_first_push()
        frame = frame_of(payload) if is_first else None
        for client in others:
            client.connection.deliver(payload, frame)

    def standing(self, name: str, since: Since | None) -> Any:
        """Wait, with `async with`, until it is known where a group stands."""
        return contextlib.nullcontext()

    def count_here(self, name: str) -> int:
        """Return how many members a group has in this process."""
        return len(self.feeds[name].members) if name in self.feeds else 0

    async def count(self, name: str) -> int:
        """Return how many members a group has in all processes."""
        return self.count_here(name)

    def enroll(self, request: Request, name: str, since: Since | None) -> None:
        """Put a client into a group that it may join, and answer its call.

        What it missed comes first. Nothing may come between any of these.

        Raises:
            Error: `overloaded`, if it is in too many groups.
        """
        client = request.client
        calls: Calls = client.connection.calls
        if request._stage is not PENDING:
            # It has left the group again, or is gone, while the guard ran.
            return
        if len(client.groups) >= MAX_GROUPS and name not in client.groups:
            raise Error("overloaded", f"more than {MAX_GROUPS} groups")
        session: Session = client.connection.session
        session.counted.pop(name, None)
        self.add(client, name)
        log = self.open(name).log
        if log is not None:
            session.count(name, log.epoch)
        missed = log.since(*since) if log and since else None
        if missed and sum(map(len, missed)) > client.app.max_backlog:
            missed = None
        for message in missed or ():
            client.connection.push(message)
        data: dict[str, JSON] = {"group": name, **(log.place if log else {})}
        if since is not None:
            data["recovered"] = missed is not None
        if request.id is not None:
            calls.answers.emit(request, "result", data)


class Since(NamedTuple):
    """The last message of a group that a client saw."""

    offset: int
    epoch: str


def read_since(since: dict[str, Any] | None) -> Since | None:
    """Read where a client wants to go on; raises `Error` for what says nothing."""
    if since is None:
        return None
    offset, epoch = since.get("offset"), since.get("epoch")
    if type(offset) is int and type(epoch) is str:
        return Since(offset, epoch)
    raise bad_data([("since", "expected an integer offset and a string epoch")])


@control("subscribe")
async def subscribe(
    request: Request, group: str, since: dict[str, Any] | None = None
) -> None:
    """Let a client join a group, if its guard does (protocol, section 6)."""
    client = request.client
    groups, wire, last = client.app.groups, client.connection, read_since(since)
    found = groups.find(group) if len(group.encode()) <= MAX_GROUP_NAME else None
    if found is None:
        raise Error("forbidden", "not allowed")
    async with wire.session.joining:
        await found[0].admit(client, found[1])
        # Up to `max_backlog` may be replayed, so everything else has to go out first.
        await wire.writable()
        async with groups.standing(group, last):
            groups.enroll(request, group, last)


@control("unsubscribe")
def unsubscribe(request: Request, group: str) -> None:
    """Let a client leave a group, also one that it has yet to join."""
    name = "$", "subscribe", group
    request.client.connection.calls.cancel(
        lambda each: (each.module, each.method, each.data.get("group")) == name
    )
    request.client.connection.session.counted.pop(group, None)
    if group in request.client.groups:
        request.client.leave(group)


@dataclass(frozen=True, slots=True)
class Group:
    """The clients that joined under one name; `App.to` returns it.

    Attributes:
        name: Its name.
    """

    _app: Any
    name: str
    _without: frozenset[str]

    def __post_init__(self) -> None:
        check_string("name of a group", self.name, "app.to('room:42')")

    def without(self, client: Client) -> Group:
        """Return the group less one client: the one that spoke, say.

        Raises:
            ValueError: If the group keeps history, whose offsets all members count.
        """
        if self._app.groups.keeps_history(self.name):
            must = f"group {self.name!r} keeps history and must reach all its members"
            raise ValueError(f"{must}; write in the data who spoke")
        return Group(self._app, self.name, self._without | {client.id})

    @property
    def members(self) -> frozenset[Client]:
        """The clients of this process that are in the group."""
        feed = self._app.groups.feeds.get(self.name)
        members = list(feed.members) if feed else ()
        return frozenset(each for each in members if each.id not in self._without)

    async def count(self) -> int:
        """Return how many members it has in all processes."""
        count: int = await self._app.groups.count(self.name)
        return count

    def push(
        self, module: str, event: str, data: JSON = None, /, **fields: JSON
    ) -> typing.Awaitable[None]:
        """Queue an event to every member; it is encoded once, and waits for nobody.

        Args:
            module: Name of the module.
            event: Name of the event.
            data: Any JSON, or a mapping that *fields* are added to.
            **fields: Keys of the event's data.

        Raises:
            TypeError: If the data can't be written as JSON.
        """
        message = message_of(None, module, None, event, merge(data, fields))
        message["group"] = self.name
        payload = self._app.codec.write(message)
        pushed: typing.Awaitable[None] = self._app.groups.push(
            self.name, payload, self._without
        )
        return pushed


# --- 8. App ------------------------------------------------------------------

# Options of `websockets.serve` that wsappy needs itself, and what to write instead.
RESERVED_OPTIONS = {
    "handler": "@app.module and @app.method",
    "process_request": "@app.client and @app.http",
    "process_response": "@app.client and @app.http",
    "create_connection": "a subclass of Client",
    "origins": "App(origins=[...])",
    "max_queue": "App(max_in_flight=...)",
    "start_serving": "app.serve",
}
# The time limits of `websockets.serve`, in seconds, and their defaults there.
TIMEOUTS = {"open_timeout": 10, "ping_interval": 20, "ping_timeout": 20}
TIMEOUTS |= {"close_timeout": 10}
# The least value of an option that is a number, where it isn't 0.
LEAST = {
    "timeout": 0.001,
    "max_in_flight": 1,
    "max_clients": 1,
    "ttl": 0.001,
    "workers": 1,
}
# Options that are whole numbers.
WHOLE = ("proxies", "history", "workers")
# The options of `App` that are numbers.
NUMBERS = ["proxies", "timeout", "max_in_flight", "max_in_flight_bytes"]
NUMBERS += ["max_backlog", "max_clients", "grace"]
# How often a port that is free at one address is tried at all of a host's addresses.
PORT_ATTEMPTS = 20
# Seconds for each small step of a stop; all but the lifespan's fits into 4 s after the
# grace.
LAST_GRACE = 0.1
# Seconds between two looks whether the last call has ended, when the server stops.
STOP_LOOK = 0.02

# The dots stand for the app's own value.
Timeout = float | types.EllipsisType | None
Origins = str | Sequence[str] | types.EllipsisType | None
Allow = Callable[..., Any] | Sequence[Callable[..., Any]] | None


def check_number(name: str, value: Any) -> None:
    if value is None and name in ("timeout", "max_clients"):
        return
    least, kind = LEAST.get(name, 0), int if name in WHOLE else int | float
    if not isinstance(value, kind) or not value >= least:
        number = "a whole number" if name in WHOLE else "a number"
        raise ValueError(f"{name} must be {number} of at least {least}: got {value!r}")


# The dicts of `App.stats`, and its counters that are there before anything was counted.
LABELLED = ("closed", "errors", "refused")
COUNTERS = ["calls", "pushes", "deliveries", "bytes_in", "bytes_out", "bad_messages"]
COUNTERS += ["dropped_event", "dropped_push", "handshakes_dropped", "pauses"]
COUNTERS += ["slow_clients_dropped", "stalled_clients_dropped"]


def inner_of(function: Any) -> Any:
    """Return the function of a bound, static or class method."""
    return getattr(function, "__func__", function)


def mark_of(function: Any) -> Any:
    """Return the `Mark` of a function, or None."""
    return getattr(inner_of(function), "__wsappy_mark__", None)


def mark_method(function: Any, name: Any, **options: Any) -> Mark:
    """Leave a `Mark` on a function, which then goes to the modules below it."""
    inner = inner_of(function)
    if not inspect.isroutine(inner):
        raise TypeError(f"method must stand above a def: got {function!r}; write one")
    mark = Mark(inner.__name__ if name is None else name, **options)
    check_name("method", mark.name)
    check_number("timeout", None if mark.timeout is ... else mark.timeout)
    vars(inner)["__wsappy_mark__"] = mark
    for module in vars(inner).pop("__wsappy_modules__", ()):
        module(function)
    return mark


def check_whole(function: Any) -> None:
    """Refuse a handler that is marked but in no module, or the other way round."""
    who, mark = f"handler {describe(function)}", mark_of(function)
    if mark is None:
        raise TypeError(f"{who} is no method; write @app.method below @app.module")
    if not mark.is_owned:
        remedy = "write @app.module('name') above it or its class"
        raise TypeError(f"{who} belongs to no module; {remedy}")


class Marking:
    """What `App` and `Module` have in common: the decorator `method`.

    Attributes:
        checks: What only the whole can show, to be called at start-up.
    """

    checks: list[Callable[[], None]]

    @typing.overload
    def method(self, name: Function) -> Function: ...

    @typing.overload
    def method(
        self,
        name: str | None = None,
        *,
        timeout: Timeout = ...,
        thread: bool = False,
        allow: Allow = None,
    ) -> Callable[[Function], Function]: ...

    def method(
        self,
        name: Any = None,
        *,
        timeout: Any = ...,
        thread: bool = False,
        allow: Allow = None,
    ) -> Any:
        """Mark a function as a handler; a `Module` registers it, too.

        Args:
            name: Name of the method; the default is the function's.
            timeout: Seconds for one call, None for no limit; the default is the app's.
            thread: Whether a `def` runs in a worker thread.
            allow: A guard, `def` or `async def may(request) -> bool`, or several.

        Raises:
            TypeError: If it isn't a function, or a guard isn't one.
            ValueError: If the name starts with `$`, or the timeout isn't positive.
        """
        is_name, guards = name is None or isinstance(name, str), guards_of(allow)

        def register(function: Any) -> Any:
            options = {"timeout": timeout, "in_thread": thread, "guards": guards}
            mark = mark_method(function, name if is_name else None, **options)
            self._add(function, mark)
            return function

        return register if is_name else register(name)

    def _add(self, function: Any, mark: Mark) -> None:
        """Note a function that was marked; a `Module` registers it."""
        self.checks.append(functools.partial(check_whole, function))


class Module(Marking):
    """Methods under one name, made in a file of their own: `entity = Module("entity")`.

    `App.module` returns one that belongs to the app already; others get there by
    `app.include(entity)`.

    Args:
        name: Name of the module; None means that of the class it decorates.
        clients: Paths of the routes where it can be called; None for every route.
        allow: A guard, `def` or `async def may(request) -> bool`, or several in a list;
            it decides when a call starts, before those of the method.

    Raises:
        TypeError: If *name* is no string, *clients* a single path, *allow* no guard.
        ValueError: If *name* starts with `$`.
    """

    def __init__(
        self, name: str | None, *, clients: Paths = None, allow: Allow = None
    ) -> None:
        if name is not None:
            check_name("module", name)
        if isinstance(clients, str):
            must = f"clients must be a list of paths: got {clients!r}"
            raise TypeError(f"{must}; write [{clients!r}]")
        self.name, self.clients, self.guards = name, clients, guards_of(allow)
        self.methods: list[Method] = []
        self.apps: list[App] = []
        self.checks = []

    def __call__(self, target: Target) -> Target:
        """Register a class, an instance, or a function marked as a method."""
        if not inspect.isroutine(target):
            self._add_object(target)
        elif mark := mark_of(target):
            self._add(target, mark)
        else:
            # @app.method is above it, and follows.
            self.checks.append(functools.partial(check_whole, target))
            vars(inner_of(target)).setdefault("__wsappy_modules__", []).append(self)
        return target

    def _add(self, function: Any, mark: Mark, name: str | None = None) -> None:
        name = name or self.name
        if name is None:
            who = f"module of handler {describe(function)}"
            raise TypeError(f"{who} must have a name; write @app.module('name')")
        method = Method(name, function, mark, self.clients, self.guards)
        for app in self.apps:
            app.table.add_method(method)
        self.methods.append(method)
        mark.is_owned = True

    def _add_object(self, target: object) -> None:
        kind = target if isinstance(target, type) else type(target)
        instance = target() if isinstance(target, type) else target
        members = inspect.getmembers_static(kind, mark_of)
        if not members:
            who = f"module of {kind.__qualname__!r}"
            raise TypeError(f"{who} must have a method; mark one with @app.method")
        name = self.name or module_name_of(kind)
        for attribute, value in members:
            self._add(getattr(instance, attribute), mark_of(value), name)
        # Methods that a subclass overrides belong to it, too.
        for base in kind.__mro__:
            for _, value in inspect.getmembers_static(base, mark_of):
                mark_of(value).is_owned = True


def module_name_of(kind: type) -> str:
    """Return the default name of a class's module: `EntityHandler` is `entity`."""
    return kind.__name__.removesuffix("Handler").lower()


class FunctionClient(Client):
    """The client of a function; `client_of` makes a subclass for each one."""

    _function: Callable[..., Any]
    _names: list[str]

    async def on_connecting(self, **params: Any) -> None:
        arguments = {name: params[name] for name in self._names}
        result = self._function(self, **arguments)
        result = await result if inspect.isawaitable(result) else result
        if result is not None:
            must = f"client function {describe(self._function)} must return None"
            raise TypeError(f"{must}: got {result!r}; raise Refused(403) to refuse")


class VisitClient(FunctionClient):
    """The client of an async generator function."""

    async def on_connecting(self, **params: Any) -> None:
        arguments = {name: params[name] for name in self._names}
        self._visit = contextlib.asynccontextmanager(self._function)(self, **arguments)
        await self._visit.__aenter__()

    async def on_disconnected(self) -> None:
        await self._visit.__aexit__(None, None, None)


def client_of(path: Path, function: Any) -> type[Client]:
    """Make a class of clients from a function or an async generator function.

    Raises:
        TypeError: If it doesn't take the client, or more than the path has.
    """
    who = f"client function {describe(function)}"
    names = check_parameters(who, path, function, "api")
    base = VisitClient if is_async_generator(function) else FunctionClient
    attributes = {"_function": staticmethod(function), "_names": names}
    attributes["__doc__"] = function.__doc__
    return type(function.__name__, (base,), attributes)


def check_parameters(who: str, path: Path, function: Any, name: str) -> list[str]:
    """Return which parameters of a path a function takes, after the client.

    Raises:
        TypeError: If it doesn't take the client, or more than the path has.
    """
    parameters = signature_of(function).parameters
    names = [each for each in path.converters if each in parameters]
    if exc := misfit(function, None, **dict.fromkeys(names)):
        arguments = ", ".join(["client", *path.converters])
        must = f"{who} must fit {path.text!r}: {exc}"
        raise TypeError(f"{must}; write def {name}({arguments})") from exc
    return names


def check_types(who: str, path: Path, function: Any) -> None:
    """Refuse a parameter that isn't of its converter's type."""
    parameters = signature_of(function).parameters
    for name in [each for each in path.converters if each in parameters]:
        wanted = CONVERTERS[path.converters[name]].type
        annotation = resolve(function, name, parameters[name].annotation)
        if annotation not in (wanted, Any, object, inspect.Parameter.empty):
            must = f"parameter {name!r} of {who} must fit {path.text!r}"
            instead = f"{name}: {wanted.__name__}"
            raise TypeError(f"{must}: got {annotation!r}; write {instead}")


def check_takes(who: str, function: Callable[..., Any], *names: str) -> None:
    """Refuse a function that can't be called with these, by position."""
    if exc := misfit(function, *names):
        name = getattr(layers_of(function)[-1], "__name__", "f")
        takes = f"({', '.join(names)})"
        must = f"{who} must take {takes}: got {signature_of(function)}"
        raise TypeError(f"{must}; write def {name}{takes}") from exc


# What other frameworks call their hooks, beside what is merely misspelt.
HOOKS = [name for name in vars(Client) if name.startswith("on_")]
OTHER_HOOKS = {"on_connect": "on_connecting or on_connected"}
OTHER_HOOKS |= {"on_open": "on_connected", "on_close": "on_disconnected"}
OTHER_HOOKS |= {"on_receive": "on_message", "on_disconnecting": "on_disconnected"}


def check_class(kind: type[Client]) -> None:
    """Refuse a class whose objects can't be made, or with a hook that isn't one."""
    who = f"class {kind.__qualname__!r}"
    if dataclasses.is_dataclass(kind):
        must = f"{who} must be no dataclass: its fields would be what a connection is"
        raise TypeError(f"{must}; write self.name = ... in on_connecting")
    names = ("self", "server", "connection", "handlers")
    check_takes(f"__init__ of {who}", kind.__init__, *names)
    for name in set(dir(kind)) - {*dir(Client)}:
        close = difflib.get_close_matches(name, HOOKS, 1, 0.8)
        if instead := OTHER_HOOKS.get(name, "".join(close)):
            must = f"hook of {who} must be one that is called"
            raise TypeError(f"{must}: got {name!r}; write {instead}")


def check_options(options: Iterable[str]) -> None:
    """Refuse options that nobody knows, or that wsappy needs itself."""
    loop = asyncio.AbstractEventLoop
    takers = (websockets.serve, loop.create_server, loop.create_unix_server)
    known = {"unix"}.union(*(inspect.signature(each).parameters for each in takers))
    for name in options:
        if name in RESERVED_OPTIONS:
            instead = RESERVED_OPTIONS[name]
            raise TypeError(f"option {name!r} is wsappy's own; write {instead}")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1) or ["help(websockets)"]
            close = [f"App({name}=...)"] if name in App.__dataclass_fields__ else close
            must = f"option {name!r} must be one of app.serve or websockets.serve"
            raise TypeError(f"{must}; write {close[0]}")


def check_origins(origins: Any) -> None:
    """Raise TypeError for a single origin where a list is meant."""
    if isinstance(origins, str) and origins != "*":
        must = "origins must be None for the same host, a list, or '*'"
        raise TypeError(f"{must}: got {origins!r}; write [{origins!r}]")


@dataclass(eq=False, repr=False, kw_only=True)
class App(Marking):
    """An application: its routes, its modules and their methods, and its options.

    Args:
        title: Name of the application, for its documentation.
        version: Version of the application, for its documentation.
        origins: Where browsers may come from: None for pages of the same host only, a
            list such as `["https://example.org"]`, or "*" for everywhere. Host and port
            are compared, and the scheme isn't: a proxy may have changed it.
        proxies: How many proxies of your own stand in front. With n of them
            `client.remote` is the n-th address from the right of `X-Forwarded-For`,
            with port 0; with 0 nothing is read from it.
        timeout: Seconds for one call, streams excepted; None for no limit.
        max_in_flight: Unfinished calls of one client; one more is `overloaded`.
        max_in_flight_bytes: Bytes of the messages of one client whose calls are held or
            unfinished; one more is `overloaded`, but one call always runs.
        max_backlog: Bytes that may wait for one client from one turn of the loop to the
            next when it is pushed to; with more it is closed with 4508.
        max_clients: Clients at a time; one more gets HTTP 503. None for no limit.
        grace: Seconds that unfinished calls get when the server stops.
        loads: Reads JSON from bytes.
        dumps: Writes JSON as bytes or str; None is orjson, with numpy, pydantic models
            and non-string keys. NaN becomes null.
        docs: Path of the page where people see and try every method. None turns it off,
            and `/asyncapi.json` too.
        bus: What carries pushes to the members in other processes: the URL of a Redis,
            or a function that returns a client of `redis.asyncio`.
        namespace: What the app's names on the bus begin with; apps that have the same
            one hear each other.

    Raises:
        ImportError: If *bus* is a URL and `redis` isn't installed.
        TypeError: If *origins* is a string other than "*", or *bus* neither of these.
        ValueError: If a number is out of range, *docs* is no path, or there is a bus
            without a namespace.
    """

    title: str = "wsappy"
    version: str = "0.1.0"
    origins: str | Sequence[str] | None = None
    proxies: int = 0
    timeout: float | None = None
    max_in_flight: int = 100
    max_in_flight_bytes: int = 2**23
    max_backlog: int = 2**20
    max_clients: int | None = None
    grace: float = 10.0
    loads: Callable[[bytes], JSON] = orjson.loads
    dumps: Callable[[JSON], bytes | str] | None = None
    docs: str | None = "/docs"
    bus: str | Callable[[], Any] | None = None
    namespace: str | None = None

    # The number of this process, with several workers.
    worker: ClassVar[int] = 0
    # Makes the groups, and what pushes to them from outside.
    groups_of: ClassVar[Callable[[Any], Groups]]
    publisher_of: ClassVar[Callable[[Any], Any]]
    # Serves in several processes.
    run_workers: ClassVar[Callable[..., None]]
    run_reloading: ClassVar[Callable[..., None]]
    # What sends for a class of clients that sends in its own way.
    overrides_of: ClassVar[Callable[[Any], Overrides | None]]
    # Pages that every application has, where it has none of its own.
    pages_of: ClassVar[Callable[[Any], dict[str, Callable[..., Any]]]]

    def __post_init__(self) -> None:
        check_origins(self.origins)
        for name in NUMBERS:
            check_number(name, getattr(self, name))
        self.codec = Codec(self.loads, self.dumps)
        self.table = Table()
        self.modules: list[Module] = []
        self.checks = []
        self.errors: dict[type[BaseException], Callable[..., Any]] = {}
        self.pages: dict[str, Callable[..., Any]] = {}
        # Pages for all that is below a path.
        self.trees: dict[str, Callable[..., Any]] = {}
        common = type(self).pages_of(self)
        self.common_pages = {place_of("page", path): common[path] for path in common}
        self.life: Callable[..., Any] | None = None
        self.counts = collections.Counter(dict.fromkeys(COUNTERS, 0))
        self.labels = {each: collections.Counter[str]() for each in LABELLED}
        self.groups = type(self).groups_of(self)
        self.logged_origins: set[str] = set()
        self.servings: set[Serving] = set()

    # What users decorate with

    def client(
        self, path: str, *, origins: Origins = ..., ordered: bool = False
    ) -> Callable[[Target], Target]:
        """Register a route: a `Client` subclass, or a function for each client.

        Args:
            path: Where clients connect: `/api`, `/rooms/{room}`, `/items/{id:int}`.
            origins: Other than the app's.
            ordered: One call at a time, in order.

        Raises:
            TypeError: If it is something else, a function's parameters aren't the
                path's, or a class is a dataclass, has an `__init__` that doesn't take
                three arguments, or a method that merely looks like a hook.
            ValueError: If the path is taken, or can't be read.
        """
        parsed = parse_path(path)
        allowed = self.origins if origins is ... else origins
        check_origins(allowed)

        def register(target: Target) -> Target:
            factory: Any = target
            is_generator = any(map(inspect.isgeneratorfunction, layers_of(target)))
            if inspect.isroutine(target) and not is_generator:
                factory = client_of(parsed, target)
                who = f"client function {describe(target)}"
                self.checks.append(functools.partial(check_types, who, parsed, target))
            elif not isinstance(target, type) or not issubclass(target, Client):
                must = f"client of {path!r} must be a subclass of Client or a function"
                raise TypeError(f"{must}: got {target!r}; write async def api(client)")
            else:
                check_class(target)
            route = Route(parsed, lambda wire: factory(self, wire, None), allowed)
            route.overrides = type(self).overrides_of(factory)
            route.is_ordered, route.kind = ordered, factory
            self.table.add_route(route)
            return target

        return register

    @typing.overload
    def module(
        self, name: str | None = None, *, clients: Paths = None, allow: Allow = None
    ) -> Module: ...

    @typing.overload
    def module(
        self, name: Target, *, clients: Paths = None, allow: Allow = None
    ) -> Target: ...

    def module(
        self, name: Any = None, *, clients: Paths = None, allow: Allow = None
    ) -> Any:
        """Register a class, an instance or a marked function as a module.

        Args:
            name: Name of the module; the default is the class's, less `Handler`, in
                lower case.
            clients: Paths of the routes where it can be called; None for every route.
            allow: A guard, `def` or `async def may(request) -> bool`, or several in a
                list: True lets a call in, False is `forbidden`, an `Error` that it
                raises is the answer. It belongs to the name: all registrations of one
                module have the same.

        Returns:
            A `Module`, which decorates; or whose `method` does.

        Raises:
            TypeError: If the class has no marked method, or a function no name.
            ValueError: If one of its methods is registered already, or its name with
                another *allow*.
        """
        is_name = name is None or isinstance(name, str)
        module = Module(name if is_name else None, clients=clients, allow=allow)
        self.include(module)
        return module if is_name else module(name)

    def include(self, module: Module) -> None:
        """Register a `Module` that was made in another file.

        Raises:
            TypeError: If it is no `Module`.
            ValueError: If one of its methods is registered already.
        """
        if not isinstance(module, Module):
            text = f"include needs a Module: got {module!r}; write Module('x')"
            raise TypeError(text)
        for method in module.methods:
            self.table.add_method(method)
        module.apps.append(self)
        self.modules.append(module)

    def error(self, kind: type[BaseException]) -> Callable[[Function], Function]:
        """Register a function that turns an exception of a handler into an `Error`.

        Args:
            kind: The exception's class; the most specific one wins.

        Raises:
            TypeError: If *kind* is no class of exceptions, or the function is async or
                doesn't take the request and the exception.
            ValueError: If it has a function already.
        """
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            text = f"error needs an exception: got {kind!r}; write KeyError, say"
            raise TypeError(text)

        def register(function: Function) -> Function:
            who = f"error function {describe(function)}"
            if inspect.iscoroutinefunction(function):
                raise TypeError(f"{who} must not be async")
            check_takes(who, function, "request", "exc")
            check_free("error function", kind.__name__, function, self.errors.get(kind))
            self.errors[kind] = function
            return function

        return register

    def lifespan(self, function: Function) -> Function:
        """Register an async generator function: start, `yield`, stop.

        It runs in a task of its own. What follows its `yield` has 10 s.

        Raises:
            TypeError: If it is no async generator function, or doesn't take the app.
            ValueError: If there is one already.
        """
        who = f"lifespan {describe(function)}"
        if not is_async_generator(function):
            raise TypeError(f"{who} must be async def with yield")
        check_takes(who, function, "app")
        check_free("lifespan", "the app", function, self.life)
        self.life = function
        return function

    def http(self, path: str) -> Callable[[Function], Function]:
        """Register a page: what a plain GET on the same port is answered.

        It gets a `PageRequest` and returns str, bytes, `(body, content_type)`,
        `(body, {header: value})` or `(status, body, {header: value})`, or raises
        `Refused`. At most 64 pages and files are under way at once.

        Args:
            path: Without parameters.

        Raises:
            TypeError: If the page doesn't take the request.
            ValueError: If the path has parameters, or is taken by another page.
        """
        place = place_of("page", path)

        def register(function: Function) -> Function:
            check_takes(f"page {describe(function)}", function, "request")
            check_free("page", repr(path), function, self.pages.get(place))
            self.pages[place] = function
            return function

        return register

    def static(self, path: str, folder: str | os.PathLike[str]) -> None:
        """Answer GET and HEAD with the files of a folder; for small sites.

        A file has at most 4 MiB. What leads out of the folder, or begins with a dot,
        isn't there. Pages and routes win over files, the longest path over others.

        Args:
            path: What stands before the names of the files.
            folder: Relative to the current directory at the start.

        Raises:
            ValueError: If the path has parameters, or is taken by another folder; at
                the start, if there is no such folder.
        """
        add_folder(self, path, folder)

    def group(
        self, name: str, *, history: int = 0, ttl: float = 300.0
    ) -> Callable[[Function], Function]:
        """Declare groups that clients may ask to join, with the guard that decides.

        The guard is `def` or `async def may_join(client, id) -> bool`, with those of
        the name's parameters that it wants. True lets the client in, False is
        `forbidden`, an `Error` that it raises is the answer. Clients that the server
        joins pass no guard.

        Args:
            name: Such as `room:{id}`, with converters as in paths; a parameter matches
                no `:` and no `/`.
            history: How many messages of each group are kept for clients that come
                back.
            ttl: Seconds after the newest of them until all are forgotten.

        Raises:
            TypeError: If the guard doesn't fit the name, or yields.
            ValueError: If the name is declared already, or can't be read; if a number
                is out of range.
        """
        path = parse_group(name)
        check_number("history", history)
        check_number("ttl", ttl)

        def register(function: Function) -> Function:
            who = f"guard {describe(function)}"
            if kind_of(function, Mark(name)) is STREAM:
                raise TypeError(f"{who} of groups must not yield; write return")
            names = check_parameters(who, path, function, "may_join")
            self.checks.append(functools.partial(check_types, who, path, function))
            self.groups.declare(Pattern(path, function, names, history, ttl))
            return function

        return register

    # What users call

    def to(self, name: str) -> Group:
        """Return the group of that name, to push to."""
        return Group(self, name, frozenset())

    def publisher(self) -> Any:
        """Push from outside a server's process: a cron job, a task queue.

        `async with app.publisher() as bus: await bus.to("room:42").push(...)`

        Raises:
            RuntimeError: If the app has no bus.
        """
        return type(self).publisher_of(self)

    @property
    def routes(self) -> dict[tuple[str, str, str], Callable[..., Any]]:
        """The one table: every (path, module, method) with its handler."""
        return self.table.rows()

    def serve(
        self,
        host: str = "localhost",
        port: int = 8008,
        *,
        unix: str | None = None,
        **options: Any,
    ) -> Serving:
        """Serve inside a running loop: `async with app.serve() as serving:`.

        Args:
            host: Where to listen.
            port: Where to listen; 0 for any free one.
            unix: Path of a Unix socket, instead.
            **options: Those of `websockets.serve`, under their own names.

        Raises:
            TypeError: If *host* is a port, or an option is unknown, or one that wsappy
                itself needs.
            ValueError: On entry, if there is no route.
            OSError: On entry, if the port can't be opened.
        """
        if isinstance(host, int):
            text = f"host must be a name or an address: got {host!r}"
            raise TypeError(f"{text}; write port={host!r}")
        check_options(options)
        place = {"unix": True, "path": unix} if unix else {}
        if type(port) is int and not 0 <= port <= 65535:
            raise ValueError(f"port must be 0 to 65535: got {port!r}; write port=8008")
        return Serving(self, host, port, {**place, **options})

    def run(
        self,
        host: str = "localhost",
        port: int = 8008,
        *,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        workers: int = 1,
        reload: bool = False,
        **options: Any,
    ) -> None:
        """Serve until SIGINT or SIGTERM; a second signal leaves at once with 130.

        Args:
            host: Where to listen.
            port: Where to listen; 0 for any free one.
            loop_factory: Makes the loop: `uvloop.new_event_loop`, say.
            workers: Processes that share the port, each with a loop of its own; pushes
                to groups reach the members in all of them. A lifespan runs in each;
                `worker` tells them apart. For POSIX.
            reload: Whether to start anew when a file of Python changes below the
                current folder; for development. It needs `watchfiles`.
            **options: Those of `serve`.

        Raises:
            RuntimeError: If a loop runs already, or this isn't the main thread.
            SystemExit: With 1, if the port can't be opened, a worker can't begin, or
                `watchfiles` is missing.
            TypeError: If *host* is a port, or an option is unknown, or one that wsappy
                itself needs.
            ValueError: If there is no route; if *workers* is no number of at least 1,
                or greater than 1 with *reload*.
        """
        check_number("workers", workers)
        if reload and workers > 1:
            raise ValueError(f"reload must have one worker: got {workers}; write one")
        is_main = threading.current_thread() is threading.main_thread()
        if asyncio._get_running_loop() is not None or not is_main:
            must = "run must be called in the main thread and outside of a loop"
            raise RuntimeError(f"{must}; write async with app.serve(host, port)")
        make_loop = loop_factory or asyncio.new_event_loop
        serving = self.serve(host, port, **options)
        if reload:
            self.run_reloading(serving, make_loop)
        elif workers == 1:
            run_serving(serving, make_loop())
        else:
            self.run_workers(serving, make_loop, workers)

    # What the sections above ask

    def prepare(self) -> None:
        """Check what only the whole can show; raises TypeError or ValueError."""
        for each in (self, *self.modules):
            for check in each.checks:
                check()
        self.table.prepare()

    def find_page(self, path: str) -> Callable[..., Any] | None:
        """Return the page at a path from outside, or None; the longest tree wins."""
        decoded = decode_path(path)
        place = decoded.removesuffix(SLASH)
        # No route is hidden: a handshake asks for no page.
        page = self.pages.get(place) or self.common_pages.get(place)
        if page is not None or self.table.find(path) is not None:
            return page
        below = f"{decoded}{SLASH}"
        places = [each for each in self.trees if below.startswith(f"{each}{SLASH}")]
        return self.trees[max(places, key=len)] if places else None

    def log_origin(self, headers: Headers) -> None:
        """Say once how an origin that was refused could be allowed."""
        origin, seen = headers["Origin"], self.logged_origins
        if origin not in seen and len(seen) < MAX_LOGGED_ORIGINS:
            seen.add(origin)
            text = "refused origin %r at host %r; to allow it write App(origins=[%r])"
            LOGGER.warning(text, origin, headers.get("Host", ""), origin)

    def stats(self) -> dict[str, Any]:
        """Return counters since the start, and gauges of this moment.

        Returns:
            Gauges: `clients`, `unfinished` (calls), `stopping`. Counters: `calls`,
            `errors` (a dict by code), `refused` (by HTTP status), `closed` (by close
            code; 1006 for none, "other" for what clients make up), `pushes`,
            `deliveries` (of pushes to groups),
            `bytes_in`, `bytes_out`, `bad_messages`, `dropped_event` and `dropped_push`
            (that nobody waited for), `slow_clients_dropped` (4508),
            `stalled_clients_dropped` (accepted no byte), `handshakes_dropped` (no
            answer),
            `pauses` (of reading, since a client or its `on_message` was behind).
        """
        # Copies that are made in one step: another thread may ask.
        servings = list(self.servings)
        wires = [wire for each in servings for wire in list(each.wires)]
        calls = [calls for each in servings for calls in each.calls()]
        counts = collections.Counter(dict(self.counts))
        for wire in wires:
            if wire.phase is not CLOSED:
                counts.update(wire.traffic())
        return {
            "clients": sum(len(each.sessions) for each in servings),
            "unfinished": sum(len(each.unfinished) for each in calls),
            "stopping": any(each.is_stopping for each in servings),
            **counts,
            **{name: dict(self.labels[name]) for name in LABELLED},
        }

    def asyncapi(self) -> dict[str, Any]:
        """Return the AsyncAPI 3.1 document of the table; `/asyncapi.json` is the same.

        What can't be described is {} in it, and one warning in the log.

        Raises:
            TypeError: If an annotation can't be checked, as at the start.
            ValueError: If there is no route.
        """
        self.prepare()
        document: dict[str, Any] = json.loads(document_of(self))
        return document

    def asgi(self) -> Asgi:
        """Return an ASGI application, for another server or to be mounted in one.

        Raises:
            ValueError: If the app has `proxies`, which the other server knows.
        """
        return Asgi(self)

    def test_client(self, path: str = "/", **options: Any) -> TestedPeer:
        """Start the app on a free loopback port and connect to it, for a test.

        The first client starts it, the last one stops it, without grace.

        Args:
            path: Path of the route.
            **options: Those of `connect`; `reconnect` is False, `proxy` None and
                `timeout` 2.0 (seconds) by default.
        """
        return TestedPeer(self, path, options)


def place_of(what: str, path: str) -> str:
    """Return the decoded path of a page; raises ValueError for one with parameters."""
    if parse_path(path).converters:
        raise ValueError(f"{what} {path!r} must have no parameters; use the query")
    return path.removesuffix("/").replace("/", SLASH)


def check_free(what: str, place: str, new: object, old: object) -> None:
    """Refuse a second function where there can be one only."""
    if old is not None:
        both = f"{what} {describe(new)} clashes with {describe(old)}"
        raise ValueError(f"{both}: both are for {place}; write one for both")


class ListenError(OSError):
    """The port can't be opened."""


@contextlib.asynccontextmanager
async def living(app: App, function: Callable[..., Any]) -> typing.AsyncIterator[None]:
    """Enter a lifespan, and leave it, in one task of its own.

    What follows its `yield` has 10 s; then it is cancelled, named and left behind.
    """
    started, stopping = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def live() -> None:
        async with contextlib.asynccontextmanager(function)(app):
            started.set_result(None)
            await stopping.wait()

    task = asyncio.Task(live())
    try:
        await asyncio.wait([started, task], return_when="FIRST_COMPLETED")
        if not task.done():
            yield
    finally:
        if not (started.done() or task.done()):
            # Nobody waits for its start any longer.
            cut_task(task)
        stopping.set()
        await wait_at_most(LIFESPAN_GRACE, [task])
        if not task.done():
            cut_task(task)
            await wait_at_most(LAST_GRACE, [task])
            end = "was cancelled" if task.done() else "is left behind"
            name = f"lifespan {describe(function)}"
            LOGGER.warning("%s did not end in time; it %s", name, end)
        if task.done() and task not in CUT_TASKS:
            task.result()


# Where code begins that isn't the user's: this module's too, and `<frozen ...>`.
LIBRARIES = *map(sysconfig.get_path, ("stdlib", "purelib")), __file__, "<"
INSTALLED = frozenset({"site-packages", "dist-packages"})
IDLE = ["selectors", "asyncio.base_events"]
DEBUGGERS = frozenset({"bdb", "pdb", "pydevd", "_pydevd_bundle", "debugpy"})
# The frames of a loop; those outside of them started it, and don't hold it.
LOOPS = frozenset({("asyncio.base_events", "_run_once"), ("asyncio.runners", "run")})


def runs_loop(frame: types.FrameType) -> bool:
    """Tell whether a frame is that of a loop, be it of asyncio or of uvloop."""
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) in LOOPS


def is_users(code: types.CodeType) -> bool:
    """Tell whether code is the user's: no library's, and not this module's."""
    path = code.co_filename
    is_apart = INSTALLED.isdisjoint(path.split(os.sep))
    return is_apart and not path.startswith(LIBRARIES)


class Watchdog(threading.Thread):
    """Names who holds the loop: a thread beside it that notices when it doesn't turn.

    It looks at the loop's thread a few times a second. Where that isn't waiting for
    something to happen, it asks the loop to answer in its next turn.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(name="wsappy watchdog", daemon=True)
        self.runtime = runtime
        self.stopped = threading.Event()
        self.asked_at: float | None = None
        self.silent_until: dict[object, float] = {}

    def run(self) -> None:
        """Look until the server has stopped."""
        looked_at, used = monotonic(), time.process_time()
        while not self.stopped.wait(BLOCKING_LOOK):
            now, cpu = monotonic(), time.process_time()
            # Nobody ran, or C code held the interpreter, which uses the processor.
            is_late = now - looked_at >= BLOCKING
            was_suspended = is_late and cpu - used < (now - looked_at) / 10
            self.look(now, is_late, was_suspended)
            looked_at, used = now, cpu

    def look(self, now: float, is_late: bool, was_suspended: bool) -> None:
        """Ask the loop for an answer, or say who keeps it from answering."""
        frame = sys._current_frames().get(self.runtime.thread)
        asked_at = math.inf if self.asked_at is None else self.asked_at
        is_overdue = is_late or now - asked_at >= BLOCKING
        # All of it only where it matters: the loop goes on while it is walked.
        frames = list(itertools.islice(stack_of(frame), None if is_overdue else 2))
        modules = [each.f_globals.get("__name__", "") for each in frames]
        if modules[:2] == IDLE or not DEBUGGERS.isdisjoint(modules):
            self.asked_at = None
        elif self.asked_at is None or was_suspended:
            self.asked_at = now
            # In its next turn, whatever is asked of it before; never, if it is closed.
            with contextlib.suppress(RuntimeError):
                self.runtime.loop.call_soon_threadsafe(self.answer)
            if is_late and not was_suspended:
                self.report(frames, now)
        elif now - self.asked_at >= BLOCKING:
            # One line for one hold: what goes on before the loop turns isn't named.
            # Set before the line is written: the loop may turn meanwhile.
            self.asked_at = math.inf
            self.report(frames, now)

    def answer(self) -> None:
        """Tell, from the loop, that it turns."""
        self.asked_at = None

    def report(self, frames: list[types.FrameType], now: float) -> None:
        """Name who holds the loop, once a minute for each place."""
        frames = list(itertools.takewhile(lambda each: not runs_loop(each), frames))
        requests = [each.f_locals.get("request") for each in frames]
        names = [f"handler {each!r}" for each in requests if isinstance(each, Request)]
        users = [each for each in frames if is_users(each.f_code)]
        where = next(iter(names), "")
        place: object = where
        if users:
            place, line = users[0].f_code, users[0].f_lineno
            where = f"{place.co_qualname!r} ({place.co_filename}:{line})"
        if where and now >= self.silent_until.get(place, 0.0):
            self.silent_until[place] = now + BLOCKING_SILENCE
            LOGGER.warning(BLOCKED, where, BLOCKING)


def stack_of(frame: Any) -> Generator[types.FrameType]:
    """Walk the stack of another thread, innermost frame first."""
    # Python 3.11 may give something else for a frame that was left meanwhile.
    while isinstance(frame, types.FrameType):
        yield frame
        frame = frame.f_back


BLOCKED = "%s held the loop for over %g s; await what it waits for, or add thread=True"


class Service(enum.Enum):
    """Where the life of a serving stands; it goes one way."""

    NEW = "it waits to be entered"
    RUNNING = "clients come in"
    STOPPING = "nobody new comes in, and calls get their grace"
    OVER = "all that it opened is closed"


class Serving:
    """An app that is being served; `App.serve` returns it, to be entered once.

    Attributes:
        grace: Seconds that unfinished calls get at the end.
        runtime: The loop that it lives in.
        wires: Of the connections that the sockets have accepted, until the goodbye.
        sessions: Of the clients that are let in, or being asked.
        answers: Those that are answered with a page.
        service: Where its life stands.
    """

    def __init__(self, app: App, host: str, port: int, options: dict[str, Any]) -> None:
        self.app = app
        self.host = host
        self.requested_port = port
        self.unix: str | None = options.get("path")
        self.options = {"compression": None, "logger": LOGGER, **options}
        # `push` checks the backlog of paused clients only, who have to be paused before
        # it is full.
        self.options.setdefault("write_limit", min(WRITE_LIMIT, app.max_backlog))
        limits = {name: self.options.get(name, TIMEOUTS[name]) for name in TIMEOUTS}
        self.open_timeout: float | None = limits["open_timeout"]
        # All connections are looked at each eighth of the shortest of their limits.
        self.look_every = min([each for each in limits.values() if each] or [10.0]) / 8
        self.server_header: str | None = self.options.get("server_header", SERVER)
        self.threads = Threads(MAX_THREADS)
        self.grace = app.grace
        self.server: websockets.Server | None = None
        self.runtime: Runtime
        self.timer: asyncio.TimerHandle
        self.wires: set[ServedWire] = set()
        self.sessions: set[Session] = set()
        self.answers: set[Session] = set()
        self.service = Service.NEW
        self.stack = contextlib.AsyncExitStack()
        # What `App.run` does once it is open.
        self.on_ready: Callable[[], object] = self.say_urls

    def __await__(self) -> NoReturn:
        text = "app.serve() must be entered, not awaited; write async with app.serve():"
        raise TypeError(text)

    async def __aenter__(self) -> Self:
        if self.service is not Service.NEW:
            raise RuntimeError("serving must be entered once; write app.serve() again")
        self.service = Service.RUNNING
        app = self.app
        app.prepare()
        async with contextlib.AsyncExitStack() as stack:
            self.runtime = Runtime(self.threads)
            stack.callback(self.threads.shutdown)
            await app.groups.start(self.runtime)
            stack.push_async_callback(app.groups.stop)
            watchdog = Watchdog(self.runtime)
            watchdog.start()
            stack.callback(watchdog.stopped.set)
            if app.life is not None:
                await stack.enter_async_context(living(app, app.life))
            self.server = await self.listen()
            self._look()
            app.servings.add(self)
            stack.callback(app.servings.discard, self)
            # The last one runs first, and each one whatever becomes of those before it.
            stack.push_async_callback(self.close_sockets, self.server)
            for step in (self.close_clients, self.cut_calls, self.end_calls):
                stack.push_async_callback(step)
            self.stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    @property
    def is_stopping(self) -> bool:
        """Whether the end has begun."""
        return self.service in (Service.STOPPING, Service.OVER)

    @property
    def port(self) -> int:
        """The port that is open; 0 on a Unix socket."""
        return 0 if self.unix else int(self.address[1])

    @property
    def address(self) -> Any:
        """What the first socket is bound to."""
        if self.server is None:
            raise RuntimeError("serving must be entered; write async with")
        return self.server.sockets[0].getsockname()

    def url(self, path: str = "/", host: str | None = None) -> str:
        """Return the URL of a path, with the literal address, or with *host*."""
        scheme = "wss" if self.options.get("ssl") else "ws"
        if self.unix:
            return f"{scheme}+unix://{self.unix}:{path}"
        host = host or str(self.address[0])
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self.port}{path}"

    def say_urls(self) -> None:
        """Print where clients connect."""
        for route in self.app.table.routes.values():
            say(self.url(route.path.text, self.host))
        if self.app.docs is not None:
            say(self.url(self.app.docs, self.host).replace("ws", "http", 1))

    async def listen(self, attempts: int = PORT_ATTEMPTS) -> websockets.Server:
        """Open the port, the Unix socket, or the socket that was handed in."""
        port, wire = self.requested_port, functools.partial(ServerWire, self)
        # The library's handler never runs: a wire answers its request by itself.
        options = {"handler": bool, **self.options, "create_connection": wire}
        try:
            if {"sock", "unix"}.isdisjoint(options):
                options["host"], options["port"] = await find_free(self.host, port)
            return await websockets.serve(**options)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE and not port and attempts > 1:
                return await self.listen(attempts - 1)
            raise self.blame(exc) from exc

    def blame(self, exc: OSError) -> ListenError:
        """Say where it can't be served, and why."""
        reason = os.strerror(code) if (code := exc.errno or 0) > 0 else exc
        place = self.unix or f"{self.host}:{self.requested_port}"
        return ListenError(exc.errno, f"cannot listen on {place}: {reason}")

    # What wires and sessions ask

    def refusal(self) -> Refused | None:
        """Say why nobody is let in at all, or None."""
        if self.is_stopping:
            return Refused(503, STOPPING.message)
        is_full = len(self.sessions) >= (self.app.max_clients or math.inf)
        return Refused(503, "too many clients") if is_full else None

    def add(self, wire: ServedWire) -> None:
        """Look after a connection from now on, until its end and its goodbye."""
        if self.service is Service.OVER:
            # It was accepted in the last turn.
            wire.abort()
        else:
            self.wires.add(wire)

    def discard(self, wire: ServedWire) -> None:
        """Look no longer after a connection that is lost, and whose task has ended."""
        if wire.phase is CLOSED and (wire.life is None or wire.life.done()):
            self.wires.discard(wire)

    def _look(self) -> None:
        """Look now, and from time to time, at all that has a time limit."""
        loop = self.runtime.loop
        self.timer = loop.call_later(self.look_every, self._look)
        for wire in list(self.wires):
            wire.check(loop.time())
        self.app.groups.expire()

    # The end: bounded by the grace and 14 s, whatever anybody does

    async def end_calls(self) -> None:
        """Refuse what is new, end the streams, and give the other calls their grace."""
        self.service = Service.STOPPING
        for calls in self.calls():
            calls.stop()
        # Without eager tasks a call of the last read may have yet to begin.
        await asyncio.sleep(0)
        deadline = monotonic() + self.grace
        # Calls begin and end in many places: no one thing tells of the last of them.
        while self._is_busy() and monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(STOP_LOOK)

    def calls(self) -> list[Calls]:
        """Return the calls of all clients, in one step: another thread may ask."""
        sessions = list(self.sessions)
        return [each.calls for each in sessions if each.calls is not None]

    def _is_busy(self) -> bool:
        """Tell whether a call has yet to get its terminal event."""
        calls = self.calls()
        return any(
            each.held or each.unfinished or each.answers.senders for each in calls
        )

    async def cut_calls(self) -> None:
        """Answer the calls that are left, and cut them off."""
        calls = self.calls()
        for each in calls:
            each.cut_off()
        senders = [sender for each in calls for sender in each.answers.senders]
        await wait_at_most(LAST_GRACE, senders)

    async def close_clients(self) -> None:
        """Close every connection, and wait for the goodbyes."""
        for wire in list(self.wires):
            # Half a request; or an `on_connecting` that doesn't know its peer is gone.
            is_vain = wire.life is None or wire.phase is CLOSED
            if is_vain and wire.status is None:
                wire.give_up()
            wire.shut(CloseCode.GOING_AWAY, STOPPING.message)
        for is_last in (False, True):
            limit = GOODBYE_GRACE + LAST_GRACE if is_last else CLOSE_GRACE
            await wait_at_most(limit, self._lives())
            for wire in list(self.wires):
                wire.abort()
                if wire.life is not None and (is_last or wire.status is None):
                    cut_task(wire.life)
        await wait_at_most(LAST_GRACE, self._lives())
        for wire in [each for each in self.wires if each.life is not None]:
            path = wire.opening.target.partition("?")[0]
            text = "a hook of a client at %r did not end in time; it is left behind"
            LOGGER.warning(text, path)

    def _lives(self) -> list[asyncio.Future[Any]]:
        return [wire.life for wire in self.wires if wire.life is not None]

    def finish(self) -> None:
        """Accept nothing more; what came in meanwhile is aborted."""
        self.service = Service.OVER
        for wire in list(self.wires):
            wire.abort()
        self.timer.cancel()

    async def close_sockets(self, server: websockets.Server) -> None:
        """Close the sockets."""
        self.finish()
        # The library counts the first call only, and waits without a limit.
        server.close(close_connections=False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), LAST_GRACE)


async def find_free(host: str | list[str], port: int) -> tuple[str | list[str], int]:
    """Return a host and a port; for port 0 one that is free at its first address.

    Where the machine lacks some of the host's addresses, it returns the others:
    `localhost` has two, of which a container may have one only.

    Raises:
        OSError: If it has none of them, or the host isn't found.
    """
    loop, refused, there = asyncio.get_running_loop(), None, list[str]()
    options: Any = {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}
    for each in [host] if isinstance(host, str) else host:
        for found in await loop.getaddrinfo(each or None, 0, **options):
            try:
                with socket.socket(*found[:3]) as probe:
                    probe.bind(found[4])
                    port = port or probe.getsockname()[1]
                there.append(str(found[4][0]))
            except OSError as exc:
                refused = exc
    if refused is not None and not there:
        raise refused
    return there if refused is not None else host, port


def run_serving(
    serving: Serving,
    loop: asyncio.AbstractEventLoop,
    signals: Sequence[signal.Signals] = STOP_SIGNALS,
    *,
    leaves: bool = True,
) -> None:
    """Serve in a loop of its own until a signal; tasks that won't end can't hold it."""
    # For `asyncio.to_thread`.
    loop.set_default_executor(serving.threads)
    main = loop.create_task(serve_until_cancelled(serving))

    def on_signal(*_: object) -> None:
        for each in STOP_SIGNALS if leaves else signals:
            signal.signal(each, lambda *_: os._exit(130) if leaves else None)
        loop.call_soon_threadsafe(main.cancel)

    previous = {each: signal.signal(each, on_signal) for each in signals}
    try:
        run_main(loop, main)
    except ListenError as exc:
        sys.exit(exc.strerror)
    except STOPS:
        # Raised by users' code, wherever that runs: the stop is in order all the same.
        main.cancel()
        run_main(loop, main)
        raise
    finally:
        end_loop(loop)
        for each, handler in previous.items():
            signal.signal(each, handler)


def run_main(loop: asyncio.AbstractEventLoop, main: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(main)


def say(text: str) -> None:
    """Print a line, as far as that is possible: a server runs without it, too."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError, ValueError):
        # A code page may lack some of its characters.
        line = text.encode(encoding, "backslashreplace").decode(encoding)
        print(line, flush=True)  # noqa: T201


async def serve_until_cancelled(serving: Serving) -> None:
    async with serving:
        serving.on_ready()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if count := serving.app.stats()["unfinished"]:
            text = "unfinished calls: %d, for %g s; a second signal leaves at once"
            LOGGER.warning(text, count, serving.grace)


def end_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop; what can't be cancelled is named and left behind."""
    # Those that were cancelled before have been named.
    tasks = [task for task in asyncio.all_tasks(loop) if not task.cancelling()]
    for task in tasks:
        task.cancel()
    loop.run_until_complete(wait_at_most(LAST_GRACE, tasks))
    for task in [each for each in tasks if not each.done()]:
        LOGGER.warning("%r did not end in time; it is left behind", task)
    generators = loop.create_task(loop.shutdown_asyncgens())
    loop.run_until_complete(wait_at_most(LAST_GRACE, [generators]))
    loop.close()


# --- 9. connect --------------------------------------------------------------

__all__ += ["Peer", "Push", "connect"]

# Seconds before the first try to reconnect, and before a later one, at most.
FIRST_WAIT, MAX_WAIT = 0.25, 15.0
# Pushes that may wait for their reader.
MAX_UNREAD = 10_000
# Groups that are joined again at once: a server allows 100 calls by default.
REJOIN_CHUNK = 32
# What others call an option of `connect`, or what the library alone uses; and what to
# write instead.
INSTEAD = {
    **dict.fromkeys(("headers", "extra_headers"), "additional_headers={'X-Key': '1'}"),
    "cookies": "additional_headers={'Cookie': 'session=1'}",
    "auth": "additional_headers={'Authorization': 'Bearer 1'}",
    "create_connection": "@api.on and @api.method",
    "max_queue": "api.stream(..., window=1)",
    **dict.fromkeys(("process_exception", "reconnect_delays"), "reconnect=False"),
}


def check_connect_options(options: Iterable[str]) -> None:
    """Raise TypeError for an option that neither the library nor the loop knows."""
    loop = asyncio.BaseEventLoop
    sources = websockets.connect, loop.create_connection, loop.create_unix_connection
    known = {name for each in sources for name in inspect.signature(each).parameters}
    for name in options:
        if name in INSTEAD or name.removeprefix("proxy_") not in known | {"unix"}:
            instead = INSTEAD.get(name, "one of those of websockets.connect")
            raise TypeError(f"connect has no option {name!r}; write {instead}")


def public_url(url: str) -> str:
    """Return a URL without what is secret: the password and the query."""
    return re.sub(r"(?<=://)[^/?]*@|\?.*", "", url)


def checked_url(url: Any) -> str:
    """Return *url*; raises TypeError or ValueError for what can't be one."""
    right = "ws://localhost:8008/api"
    check_string("url", url, repr(right))
    outcome, place = run(parse_uri, url), public_url(url)
    if type(outcome) is Failure:
        reason = getattr(outcome.exc, "msg", outcome.exc)
        must = f"url must be that of a WebSocket: got {place!r}, {reason}"
        right = "ws" + place[4:] if re.match("https?://", place) else right
        raise ValueError(f"{must}; write {right!r}")
    return typing.cast(str, url)


async def value_of(value: Any) -> Any:
    """Return a value; a function is called, and awaited if need be, to get it."""
    value = value() if callable(value) else value
    return await value if inspect.isawaitable(value) else value


def masked_frames(payloads: list[bytes]) -> bytes:
    """Return messages as text frames; the library's own way takes twice as long."""
    # One system call for the keys of them all.
    keys, masked = os.urandom(4 * len(payloads)), list[bytes]()
    for index, payload in enumerate(payloads):
        key = keys[4 * index : 4 * index + 4]
        masked += head_of(len(payload), 0x80), key, apply_mask(payload, key)
    return b"".join(masked)


def is_final(exc: Exception) -> bool:
    """Tell whether a client stays away for that reason (protocol, section 8)."""
    if not isinstance(exc, ConnectionClosed):
        return isinstance(exc, Refused) and exc.status in (401, 403)
    close = exc.rcvd or exc.sent
    code = close.code if close else CloseCode.ABNORMAL_CLOSURE
    return code in (1000, 1007, 1009) or (4400 <= code <= 4499 and code != 4429)


def refused_by(exc: websockets.InvalidStatus) -> Refused:
    """Make a `Refused` of any status: servers have some that applications may not."""
    status, body = exc.response.status_code, bytes(exc.response.body)
    message = cut_reason(body.decode(errors="replace").strip())
    refused = Refused.__new__(Refused, status, message)
    refused.status, refused.message = status, message
    return refused


async def run_hook(what: str, hook: Callable[..., Any], *arguments: Any) -> None:
    """Run users' code to its end; what it raises is logged."""
    outcome = await run_to_end(hook, *arguments)
    if type(outcome) is Failure:
        log_failure(what, outcome.exc)


class Inbox(asyncio.Queue[Any]):
    """What has come and waits to be looped over; an exception is how it ended.

    Attributes:
        limit: Bounds each wait, in tests.
    """

    def __init__(self, limit: Callable[[], Any] = contextlib.nullcontext) -> None:
        super().__init__()
        self.limit = limit

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        async with self.limit():
            item = await self.get()
        if isinstance(item, Exception):
            # The next wait raises the same.
            self.put_nowait(item)
            raise item
        return item


def receive_item(
    inbox: Inbox, names: tuple[str, str], window: int, event: str, value: Any
) -> None:
    """Handle an event of a stream; at most *window* items wait."""
    if event == "item" and inbox.qsize() >= window:
        value = Error("bad_message", "more items than were asked for")
    elif event == "result" and value in (None, {}):
        value = StopAsyncIteration()
    elif event == "result":
        must = f"stream of {'.'.join(names)!r} must have items: got a result"
        value = TypeError(f"{must}; write await api.call{names}")
    if event == "item" or event in TERMINAL:
        inbox.put_nowait(value)


class Backoff:
    """Random waits before what failed is tried again; their limit doubles.

    Attributes:
        bound: Seconds that a wait has at most.
    """

    def __init__(self) -> None:
        self.attempts, self.tried_at = 0, -math.inf
        self.bound = MAX_WAIT

    async def wait(self) -> None:
        """Wait; what lasted longer than any wait starts the bound again."""
        if monotonic() - self.tried_at > self.bound:
            self.attempts = 0
        limit = min(self.bound, FIRST_WAIT * 2 ** min(self.attempts, 6))
        self.attempts += 1
        # Full jitter, so that clients don't come back to a server all at once.
        await asyncio.sleep(random.uniform(0, limit))  # noqa: S311
        self.tried_at = monotonic()


class PeerCalls(Calls):
    """The calls of a client's connection."""

    def hear(self, message: dict[str, JSON]) -> None:
        """Hand a push to the peer."""
        wire: Any = self.wire
        wire.peer.hear(wire, message)


class PeerWire(LibraryWire, websockets.ClientConnection):
    """One connection of a `Peer`, without the library's queue and its tasks.

    Messages of one turn of the loop are written together. What the library reads is
    handled at once; calls of the server are run by `Calls`, as on a server, which is
    trusted not to flood its clients.

    Attributes:
        is_overrun: Whether pushes are dropped, because a reader has too many.
    """

    def __init__(self, peer: Peer, *given: Any, **options: Any) -> None:
        super().__init__(peer.runtime, *given, **options)
        self.peer = peer
        self.app = peer.app
        self.params: dict[str, Any] = {}
        self.is_overrun = False
        self.close_timer: asyncio.TimerHandle | None = None

    def process_event(self, event: Event) -> None:
        """Handle what the library read: the handshake's response, then frames."""
        super().process_event(event)
        if not isinstance(event, Frame):
            self._open()

    def _open(self) -> None:
        request: Any = self.request
        ends = remote_of(self), self.id.hex
        self.opening = Opening(request.path, request.headers, *ends)
        client, context = Client(self.app, self, None), contextvars.copy_context()
        context.run(CURRENT.set, client.id)
        self.calls = PeerCalls(self.app, self.peer.route, self, client, context)
        self.calls.asked.cancels = True
        self.calls.is_greeting = False
        self.calls.set_gate()
        self.receive = self.calls.receive
        self.phase = OPEN if self.protocol.state is State.OPEN else self.phase

    def halt(self) -> None:
        """Read on: the server is trusted."""

    # The server is trusted to read.
    push = LibraryWire.post

    def frames_of(self, payloads: list[bytes]) -> bytes:
        """Return messages as masked text frames."""
        is_plain = not self.protocol.extensions
        return masked_frames(payloads) if is_plain else super().frames_of(payloads)

    def follow(self) -> None:
        """Follow the library's state, after anything that it did."""
        was_open = self.phase is OPEN
        super().follow()
        if was_open and self.phase is not OPEN:
            self.peer.hold_calls(self)
        if self.close_deadline is not None and self.close_timer is None:
            when = self.close_deadline
            self.close_timer = self.loop.call_at(when, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """End all that waits for this connection."""
        super().connection_lost(exc)
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.peer.hold_calls(self)


class Push(NamedTuple):
    """An event that answers no call.

    Attributes:
        module: Name of the module, None where it has none.
        event: Name of the event.
        data: Any JSON.
        group: The group it was pushed to, None for this client alone.
        offset: Its place in the history of the group, None where that keeps none.
    """

    module: str | None
    event: str
    data: JSON
    group: str | None = None
    offset: int | None = None


def offset_of(message: JSON) -> int | None:
    offset = message.get("offset") if isinstance(message, dict) else None
    return offset if type(offset) is int else None


def push_of(message: dict[str, JSON]) -> Push:
    parts = text_of(message, "module"), message["event"], message.get("data")
    return Push(*parts, text_of(message, "group"), offset_of(message))


@dataclass(slots=True)
class Position:
    """Where a group stands: its last message that was seen, where it keeps history."""

    offset: int | None = None
    epoch: str | None = None
    is_joined: bool = False
    is_joining: bool = False
    backoff: Backoff = field(default_factory=Backoff)

    def move(self, data: JSON) -> None:
        """Count on from where the server says that the group stands."""
        self.offset, self.epoch = offset_of(data), text_of(data, "epoch")


@dataclass(eq=False, slots=True)
class RemoteCall(Coroutine[Any, Any, JSON]):
    """A call to be awaited, which says how to loop over a stream instead."""

    names: tuple[str, str]
    work: Coroutine[Any, Any, JSON]

    def __await__(self) -> Generator[Any, Any, JSON]:
        return self.work.__await__()

    def __aiter__(self) -> NoReturn:
        self.close()
        must = f"call of {'.'.join(self.names)!r} must be awaited: got async for"
        raise TypeError(f"{must}; write async for item in api.stream{self.names}")

    def send(self, value: Any) -> Any:
        """Go on, for the task that awaits it."""
        return self.work.send(value)

    def throw(self, *exc: Any) -> Any:
        """Go on with an exception."""
        return self.work.throw(*exc)

    def close(self) -> None:
        """Give it up."""
        self.work.close()


class RemoteModule:
    """A module of the server: `await entity.get(item_id=42)` calls its `get`."""

    def __init__(self, peer: Peer, name: str) -> None:
        self._peer = peer
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., RemoteCall]:
        if method.startswith("__"):
            raise AttributeError(method)
        names = self._name, method

        def call(data: JSON = None, /, **fields: JSON) -> RemoteCall:
            return RemoteCall(names, self._peer.call(*names, merge(data, fields)))

        return call


def listener(module: str, event: str, function: Any) -> Callable[[JSON], Any]:
    """Return what checks a push's data and runs *function*, which gets no request.

    Raises:
        TypeError: If the arguments can't come by name, or it yields.
    """
    if kind_of(function, Mark(event)) is STREAM:
        who = f"handler {describe(function)} of pushes"
        raise TypeError(f"{who} must not yield; write return")
    signature = signature_of(function)
    request = inspect.Parameter("_request", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [request, *signature.parameters.values()]
    checked: Any = functools.update_wrapper(lambda _: None, function)
    checked.__signature__ = signature.replace(parameters=parameters)
    method = Method(module, checked, Mark(event))
    method.prepare()

    def hear(data: JSON) -> Any:
        if not isinstance(data, dict | None):
            must = "data must be an object, whose keys are the arguments"
            raise Error("bad_data", f"{must}; use api.pushes() for any other")
        return function(**method.bind(data or {}))

    return hear


class Subscriptions:
    """The groups of a peer: where each stands, and how it is joined again.

    Attributes:
        positions: Where the groups stand that it has joined, or is joining.
        gap_hooks: What hears of a group whose missed messages are lost.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.positions: dict[str, Position] = {}
        self.gap_hooks: list[Callable[[str], Any]] = []

    async def join(self, group: str) -> None:
        """Join a group, from where it was seen last."""
        position = self.positions.setdefault(group, Position())
        position.is_joining = True
        data: dict[str, JSON] = {"group": group}
        if position.offset is not None:
            data["since"] = {"offset": position.offset, "epoch": position.epoch}
        # At once: pushes behind it in the same read are counted from where it stands.
        note = functools.partial(self._note, group, position)
        try:
            await self.peer.ask("$", "subscribe", data, self.peer.timeout, note)
        except BaseException:
            position.is_joining = False
            if not position.is_joined:
                self._forget(group, position)
            raise

    def _forget(self, group: str, position: Position) -> None:
        """Forget where a group stands, unless it was left and is being joined again."""
        if self.positions.get(group) is position:
            del self.positions[group]

    def _note(self, group: str, position: Position, event: str, data: JSON) -> None:
        """Keep where a group stands, from the answer to `$ subscribe`."""
        if event == "result":
            position.is_joined, position.is_joining = True, False
            recovered = data.get("recovered") if isinstance(data, dict) else None
            # The replay has moved it, unless some of it was dropped: then it stays.
            if recovered is not True:
                position.move(data)
            if recovered is False:
                self._tell_gap(group)

    def hear(self, push: Push) -> None:
        """Count a group on from where the server says, which has missed messages."""
        group = text_of(push.data, "group") or ""
        if push.event == "gap" and (position := self.positions.get(group)):
            position.move(push.data)
            self._tell_gap(group)
        else:
            self.peer.counts["dropped_push"] += 1

    def _tell_gap(self, group: str) -> None:
        for hook in self.gap_hooks:
            self.peer.spawn(run_hook("on_gap", hook, group))

    def is_new(self, push: Push) -> bool:
        """Tell whether a push is its group's next; ask again where one is missing."""
        position = self.positions.get(push.group or "")
        if position is None or position.offset is None or push.offset is None:
            return True
        is_next = push.offset == position.offset + 1
        if is_next:
            position.offset = push.offset
        elif push.offset > position.offset and not position.is_joining:
            self._rejoin_later(push.group or "", position)
        return is_next

    async def resume(self) -> None:
        """Join the groups again, some at once, now that there is a connection."""
        joined = [each for each in self.positions.items() if each[1].is_joined]
        for first in range(0, len(joined), REJOIN_CHUNK):
            chunk = joined[first : first + REJOIN_CHUNK]
            await asyncio.gather(*itertools.starmap(self._rejoin, chunk))

    async def _rejoin(self, group: str, position: Position) -> None:
        """Join a group again, unless it was left meanwhile."""
        if self.positions.get(group) is not position:
            return
        try:
            await self.join(group)
        except (Error, TimeoutError, ConnectionClosed, Refused) as exc:
            LOGGER.warning("group %r can't be joined again: %r", group, exc)
            if isinstance(exc, Error) and not exc.retry:
                self._forget(group, position)
            elif isinstance(exc, Error | TimeoutError):
                self._rejoin_later(group, position)

    def _rejoin_later(self, group: str, position: Position) -> None:
        """Join a group again after a wait, unless it was joined meanwhile."""

        async def rejoin() -> None:
            await position.backoff.wait()
            if position.is_joining:
                await self._rejoin(group, position)

        position.is_joining = True
        self.peer.spawn(rejoin())


# The connection whose `on_connected` this task runs: its calls go through at once.
GREETED: contextvars.ContextVar[Any] = contextvars.ContextVar("GREETED", default=None)


class Peer:
    """The client of a server, to be entered with `async with`; `connect` is its name.

    Once the connection has been open it is opened again whenever it ends, after a
    random wait of up to 0.25 s at first and 15 s at last, except where the protocol,
    section 8, says to stay away. What is registered before the first `await` after the
    entry misses nothing.

    Args:
        url: The address, `ws` or `wss`; or a function that returns it, `def` or `async
            def`, which is asked before each attempt.
        reconnect: Whether to connect again.
        timeout: Seconds that a call may take; None for no limit.
        **options: Those of `websockets.connect`, under their own names; `max_size` and
            `compression` are None by default. `additional_headers` may be a function,
            too: fresh tokens.

    Attributes:
        url: Where it connects.
        timeout: Seconds that a call may take; None for no limit.
        counts: How much was dropped: `dropped_event`, `dropped_push`.

    Raises:
        TypeError: If an option isn't there; if *url* is neither text nor a function.
        ValueError: If *url* is no address of a WebSocket, or an option is wrong.
        OSError: On entry, if the connection can't be opened, for whatever reason.
        Refused: On entry, if the server refuses, with its HTTP status.
    """

    def __init__(
        self,
        url: str | Callable[[], Any],
        *,
        reconnect: bool = True,
        timeout: float | None = 10.0,
        **options: Any,
    ) -> None:
        check_connect_options(options)
        self.url: Any = url
        self.timeout = timeout
        self.app = App()
        self.counts = self.app.counts
        self.route = Route(parse_path("/"), bool, None)  # type: ignore[arg-type]
        self.app.table.add_route(self.route)
        self.runtime: Runtime
        defaults = {"max_size": None, "compression": None, "logger": LOGGER}
        self._options: dict[str, Any] = {**defaults, **options}
        # Where it connects, for logs and errors.
        self._place = describe(url)
        if not callable(url):
            self._place = public_url(checked_url(url))
            # Nothing is opened: the library checks the values of its options.
            websockets.connect(url, **self._options)
        # A socket of the user's can be used once.
        self._reconnects = reconnect and "sock" not in options
        self._backoff = Backoff()
        self._connection: PeerWire | None = None
        self._ready: PeerWire | None = None
        self._changed = asyncio.Event()
        self._end: Exception | None = None
        self._life: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        # By the name of a hook, or by module and event of a push.
        self._hooks: dict[Any, list[Any]] = collections.defaultdict(list)
        self._readers: weakref.WeakSet[Inbox] = weakref.WeakSet()
        self._early: list[Any] | None = []
        self._subscriptions = Subscriptions(self)

    async def __aenter__(self) -> Self:
        if self._life is not None:
            raise RuntimeError("peer must be entered once; write connect(...) again")
        self.runtime = Runtime(Threads(MAX_THREADS))
        self._life = self.spawn(self._live(await self._open()))
        self.spawn(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task until `close`; none of them raises, so that a bug ends it all."""
        task = asyncio.Task(work)
        self._tasks.add(task)
        task.add_done_callback(self._settle)
        return task

    def _settle(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        exc = None if task.cancelled() else task.exception()
        if exc is not None:
            log_failure(f"client of {self._place}", exc)
            self._leave(CloseCode.INTERNAL_ERROR, "the client failed")

    # Calls

    async def call(
        self,
        module: str,
        method: str,
        data: JSON = None,
        /,
        *,
        timeout: float | types.EllipsisType | None = ...,  # noqa: ASYNC109
        on_event: Callable[[str, JSON], object] | None = None,
        **fields: JSON,
    ) -> JSON:
        """Call the server; while the connection is away the call waits for it.

        A call whose task is cancelled, or that takes too long, is cancelled on the
        server too. A call that was sent is never sent again.

        Args:
            module: Name of the module.
            method: Name of the method.
            data: A mapping that *fields* are added to.
            timeout: Seconds, the wait for the connection included; None for no limit;
                the default is the peer's.
            on_event: A function, `def` or `async def`, that gets name and data of each
                event before the result. What it raises is logged.
            **fields: The arguments.

        Returns:
            The `data` of the result.

        Raises:
            Error: What the server answers.
            TimeoutError: If there is no answer in time; it says whether the call was
                sent.
            ConnectionClosed: If the connection ends before the answer, or for good.
            Refused: If the server refused to let the peer in again.
            RuntimeError: If the peer isn't entered, or was in another loop.
            TypeError: If the data can't be written as JSON, or the method streams.
        """
        name, limit = f"{module}.{method}", self.timeout if timeout is ... else timeout

        def note(event: str, value: JSON) -> None:
            if event == "item":
                remedy = f"async for item in api.stream{module, method}"
                refuse_item(name, event, value, remedy)
            elif on_event is not None and event != "result":
                self.spawn(run_hook(f"on_event of {name}", on_event, event, value))

        return await self.ask(module, method, merge(data, fields), limit, note)

    async def ask(
        self, module: str, method: str, data: JSON, limit: float | None, note: Any
    ) -> JSON:
        """Call the server within *limit* seconds; *note* gets each event at once."""
        began, connection = monotonic(), self._usable()
        if connection is None:
            connection = await self._connected(f"{module}.{method}", limit)
        left = None if limit is None else limit - (monotonic() - began)
        return await connection.calls.asked.ask(module, method, data, left, note)

    def _usable(self) -> PeerWire | None:
        """Return the connection that this task may call on now, if there is one."""
        if self._life is None:
            raise RuntimeError("peer must be entered; write async with connect(...)")
        if asyncio.get_running_loop() is not self.runtime.loop:
            must = "peer must be used in the loop in which it was entered"
            remedy = "asyncio.run_coroutine_threadsafe(api.call(...), loop)"
            raise RuntimeError(f"{must}; write {remedy}")
        greeted: Any = GREETED.get()
        is_here = greeted is not None and greeted is self._connection
        return greeted if is_here and greeted.phase is OPEN else self._ready

    async def _connected(self, name: str, limit: float | None) -> PeerWire:
        """Wait for a connection that calls may be sent on."""
        try:
            async with asyncio.timeout(limit):
                while (connection := self._usable()) is None:
                    if self._end is not None:
                        raise self._end.with_traceback(None)
                    await self._changed.wait()
                return connection
        except TimeoutError:
            late = f"no connection for {name} in time; it was not sent"
            raise TimeoutError(late) from None

    def module(self, name: str) -> RemoteModule:
        """Return a module of the server: `await entity.get(item_id=42)`."""
        return RemoteModule(self, name)

    async def stream(
        self,
        module: str,
        method: str,
        data: JSON = None,
        /,
        *,
        window: int = 100,
        **fields: JSON,
    ) -> typing.AsyncGenerator[JSON, None]:
        """Call the server and loop over the items: `async for item in api.stream(...)`.

        Leaving the loop cancels the call; where that must have happened before the next
        line, wrap the stream in `contextlib.aclosing`.

        Args:
            module: Name of the module.
            method: Name of the method.
            data: A mapping that *fields* are added to.
            window: How many items the server may send ahead of the loop.
            **fields: The arguments.

        Raises:
            Error: After the last item, what the server answers.
            TimeoutError: If there is no connection within the peer's timeout.
            ConnectionClosed: After the last item, if the connection ends.
            Refused: If the server refused to let the peer in again.
            RuntimeError: If the peer isn't entered, or was in another loop.
            TypeError: If the data can't be written as JSON, or the method has a result.
            ValueError: If *window* is no integer of at least 1.
        """
        if type(window) is not int or window < 1:
            must = f"window must be an integer of at least 1: got {window!r}"
            raise ValueError(f"{must}; write window=1")
        name, half = f"{module}.{method}", (window + 1) // 2
        connection = self._usable() or await self._connected(name, self.timeout)
        calls, names, data = connection.calls, (module, method), merge(data, fields)
        limit = functools.partial(self.limit, f"an item of {name}", self.timeout)
        items = Inbox(limit)
        handle = functools.partial(receive_item, items, names, window)
        number = calls.asked.begin(handle, *names, data=data, items=window)
        more: JSON = {"request_id": number, "items": half}
        taken = 0
        try:
            async for item in items:
                yield item
                taken += 1
                if taken % half == 0:
                    calls.asked.send("$", "more", data=more)
        finally:
            calls.asked.forget(number)

    # Pushes

    def on(self, module: str, event: str) -> Callable[[Function], Function]:
        """Register a handler of pushes, `def` or `async def`; arguments come by name.

        Handlers run one at a time, in order of arrival; several of one event in order
        of registration. What one raises is logged.

        Args:
            module: Name of the module.
            event: Name of the event.

        Raises:
            TypeError: If its arguments can't come by name, or be checked; if it yields.
        """

        def register(function: Function) -> Function:
            self._hooks[module, event].append(listener(module, event, function))
            return function

        return register

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed, Refused):
            async for push in self._reader():
                what = f"handler of push {push.module}.{push.event}"
                for hook in self._hooks.get(push[:2], ()):
                    await run_hook(what, hook, push.data)

    def pushes(self) -> typing.AsyncIterator[Push]:
        """Loop over all pushes from now on: `async for push in api.pushes()`.

        10,000 unread ones close the connection, which is then resumed.

        Raises:
            ConnectionClosed: If the peer stays away, and not because all is done.
            Refused: If the server refused to let the peer in again.
        """
        return self._reader(functools.partial(self.limit, "a push", self.timeout))

    def _reader(self, *limit: Any) -> Inbox:
        inbox = Inbox(*limit)
        self._readers.add(inbox)
        if self._end is not None:
            inbox.put_nowait(self._end_of_pushes())
        return inbox

    def limit(self, what: str, seconds: float | None) -> Any:
        """Bound a wait for *what*; tests do."""
        return contextlib.nullcontext()

    def _end_of_pushes(self) -> Any:
        is_done = isinstance(self._end, websockets.ConnectionClosedOK)
        return StopAsyncIteration() if is_done else self._end

    def hear(self, connection: Any, message: dict[str, JSON]) -> None:
        """Handle a push; what comes before handlers can be registered waits."""
        push = push_of(message)
        if self._early is not None:
            self._early.append((connection, message))
        elif push.module == "$":
            self._subscriptions.hear(push)
        elif connection.is_overrun or not self._subscriptions.is_new(push):
            self.counts["dropped_push"] += 1
        else:
            for reader in self._readers:
                reader.put_nowait(push)
            if any(reader.qsize() >= MAX_UNREAD for reader in self._readers):
                connection.is_overrun = True
                connection.shut(4508, "too many unread pushes")

    # Groups

    async def subscribe(self, group: str) -> None:
        """Join a group; after a reconnect join it again and resume.

        Raises:
            Error: What the server answers.
            TimeoutError: If there is no answer in time.
            ConnectionClosed: If the connection ends before the answer, or for good.
            Refused: If the server refused to let the peer in again.
        """
        await self._subscriptions.join(group)

    async def unsubscribe(self, group: str) -> None:
        """Leave a group; nothing happens if it isn't in it.

        Raises:
            Error: What the server answers.
            TimeoutError: If there is no answer in time.
            ConnectionClosed: If the connection ends before the answer, or for good.
            Refused: If the server refused to let the peer in again.
        """
        self._subscriptions.positions.pop(group, None)
        await self.call("$", "unsubscribe", group=group)

    def on_gap(self, function: Function) -> Function:
        """Register what hears the name of a group whose missed messages are lost.

        It is told when a group is joined again and its history doesn't reach back, and
        when the server itself has missed some: the time to reload. What it raises is
        logged.
        """
        self._subscriptions.gap_hooks.append(function)
        return function

    # Calls from the server

    def method(self, module: str, method: str) -> Callable[[Function], Function]:
        """Register a handler of the server's calls, like those of an `App`.

        Its first parameter is the `Request`, whose `client` is this connection.

        Args:
            module: Name of the module.
            method: Name of the method.

        Raises:
            TypeError: If its arguments can't come by name, or be checked.
            ValueError: If the names are taken, or start with `$`.
        """

        def register(function: Function) -> Function:
            self.app.module(module).method(method)(function)
            self.route.methods[module, method].prepare()
            return function

        return register

    # Connecting

    def on_connected(self, function: Function) -> Function:
        """Register what runs after each connect, before other calls are sent.

        Its own calls go through at once: the place to log in. What it raises is logged,
        and the calls that wait are sent.
        """
        self._hooks["on_connected"].append(function)
        return function

    async def _open(self) -> PeerWire:
        """Connect once; raises OSError or Refused, whatever went wrong."""
        outcome = await run_to_end(self._attempt)
        if type(outcome) is not Failure:
            return outcome  # type: ignore[no-any-return]
        exc = outcome.exc
        if isinstance(exc, websockets.InvalidStatus):
            exc = refused_by(exc)
        if isinstance(exc, OSError | Refused):
            exc.add_note(f"while connecting to {self._place}")
            raise exc
        raise ConnectionError(f"can't connect to {self._place}: {exc!r}") from exc

    async def _attempt(self) -> Any:
        options: Any = {"additional_headers": None, **self._options}
        url, headers = await value_of(self.url), options["additional_headers"]
        self._place = public_url(checked_url(url))
        options["additional_headers"] = await value_of(headers)
        options["create_connection"] = functools.partial(PeerWire, self)
        self._connection = await websockets.connect(url, **options)  # type: ignore[assignment]
        return self._connection

    async def _live(self, connection: PeerWire) -> None:
        """Keep the peer connected until it has to stay away."""
        closed: Exception = websockets.ConnectionClosedError(None, None)
        why = closed
        try:
            why = closed = await self._stay(connection)
            while self._reconnects and not is_final(why):
                # What is neither the server's doing nor the network's may be a mistake.
                is_odd = type(why) is ConnectionError
                level = logging.WARNING if is_odd else logging.INFO
                LOGGER.log(level, "no connection to %s: %r", self._place, why)
                await self._backoff.wait()
                try:
                    why = closed = await self._stay(await self._open())
                except (OSError, Refused) as exc:
                    why = exc
        finally:
            self._end = why if is_final(why) else closed
            self._changed.set()
            for reader in self._readers:
                reader.put_nowait(self._end_of_pushes())

    async def _stay(self, connection: PeerWire) -> ConnectionClosed:
        """Be connected until the connection ends, and all that ran on it."""
        greeting = self.spawn(self._greet(connection))
        await connection.wait_closed()
        greeting.cancel()
        await wait_at_most(CANCEL_GRACE, [greeting, *connection.calls.abandon()])
        self._connection = None
        return connection.close_exc

    async def _greet(self, connection: PeerWire) -> None:
        """Log in and join the groups again, then let the calls go."""
        GREETED.set(connection)
        early, self._early = self._early or (), None
        for each in early:
            self.hear(*each)
        for hook in self._hooks["on_connected"]:
            await run_hook("on_connected", hook)
        await self._subscriptions.resume()
        if connection.phase is OPEN:
            self._ready = connection
            self._changed.set()

    def hold_calls(self, connection: PeerWire) -> None:
        """Let calls wait, now that their connection is ending."""
        if self._ready is connection:
            self._ready = None
            self._changed.clear()

    async def close(self) -> None:
        """Close the connection for good, and wait for the end of all that runs on it.

        Waiting calls raise ConnectionClosed. From a handler of pushes it doesn't wait
        for that handler.

        Raises:
            RuntimeError: If the peer was entered in another loop.
        """
        if self._life is None:
            return
        self._usable()
        self._leave(CloseCode.NORMAL_CLOSURE)
        await asyncio.wait([self._life])
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await wait_at_most(CANCEL_GRACE, tasks)
        self.runtime.threads.shutdown()

    def _leave(self, code: int, reason: str = "") -> None:
        """Begin to close the connection for good."""
        self._reconnects = False
        if self._connection is not None:
            self._connection.shut(code, reason)
        else:
            self._life.cancel()  # type: ignore[union-attr]


connect = Peer

# What serves apps to their test clients, in each loop.
SHARED: weakref.WeakKeyDictionary[Any, dict[App, SharedServing]]
SHARED = weakref.WeakKeyDictionary()


class SharedServing:
    """What serves an app to its test clients in one loop.

    Attributes:
        count: How many clients there are.
        serving: What the first of them started, for the last one to stop.
    """

    def __init__(self) -> None:
        self.count = 0
        self.serving: Serving | None = None
        self.lock = asyncio.Lock()


async def stop_shared(
    app: App, here: dict[App, SharedServing], shared: SharedServing
) -> None:
    """Stop the serving of test clients, unless another one has come meanwhile."""
    async with shared.lock:
        serving = shared.serving
        if not shared.count and serving is not None:
            shared.serving = None
            await serving.__aexit__()
        if not shared.count:
            # Else an app that was served in it would keep the loop for ever.
            here.pop(app, None)


@contextlib.asynccontextmanager
async def shared_serving(app: App) -> typing.AsyncIterator[Serving]:
    """Serve an app in this loop: the first client starts it, the last one stops it."""
    here = SHARED.setdefault(asyncio.get_running_loop(), {})
    shared = here.setdefault(app, SharedServing())
    shared.count += 1
    try:
        async with shared.lock:
            if shared.serving is None:
                serving = app.serve("127.0.0.1", 0)
                serving.grace = 0
                shared.serving = await serving.__aenter__()
        yield shared.serving
    finally:
        shared.count -= 1
        if not shared.count:
            await stop_shared(app, here, shared)


class TestedPeer(Peer):
    """The client of `App.test_client`: a `Peer` whose every wait has a limit.

    Attributes:
        unread: The pushes that `push_received` has not returned.
    """

    __test__ = False

    def __init__(self, app: App, path: str, options: dict[str, Any]) -> None:
        if not path.startswith("/"):
            raise ValueError(f"path must start with '/': got {path!r}; write '/api'")
        options = {"reconnect": False, "proxy": None, "timeout": 2.0, **options}
        super().__init__(f"ws://127.0.0.1{path}", **options)
        self.tested = app
        self.path = path
        self.unread: list[Push] = []
        self._came = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            serving = await stack.enter_async_context(shared_serving(self.tested))
            self.url = serving.url(self.path)
            async with self.limit(f"the connection to {self.path}", self.timeout):
                await super().__aenter__()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._stack:
            await self.close()

    def hear(self, connection: Any, message: dict[str, JSON]) -> None:
        """Keep a push for `push_received`."""
        if self._early is None:
            self.unread.append(push_of(message))
            self._came.set()
        super().hear(connection, message)

    @contextlib.asynccontextmanager
    async def limit(
        self, what: str, seconds: float | None
    ) -> typing.AsyncIterator[None]:
        """Raise a TimeoutError that says what came instead."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            if seconds is None:
                raise
            came = ", ".join(f"{each.module}.{each.event}" for each in self.unread)
            must = f"{what} must come within {seconds:g} s"
            came = f"the push {came}" if came else "nothing"
            raise TimeoutError(f"{must}: got {came} instead") from None

    async def ask(
        self, module: str, method: str, data: JSON, limit: float | None, note: Any
    ) -> JSON:
        """Call the server within the limit of a test."""
        async with self.limit(f"the answer to {module}.{method}", limit):
            return await super().ask(module, method, data, None, note)

    async def push_received(self, module: str, event: str) -> Push:
        """Wait for a push and return it; others stay.

        Raises:
            TimeoutError: If it doesn't come in time.
        """
        async with self.limit(f"push {module}.{event}", self.timeout):
            while True:
                for push in self.unread:
                    if (push.module, push.event) == (module, event):
                        self.unread.remove(push)
                        return push
                self._came.clear()
                await self._came.wait()

    async def nothing_received(self) -> None:
        """Prove that nothing came before the answer to a `$ ping`.

        Raises:
            AssertionError: If a push came that `push_received` has not returned, or a
                call or a stream of this client is unfinished.
        """
        await self.call("$", "ping")
        connection = self._connection
        calls = list(connection.calls.asked.handlers) if connection else []
        if self.unread or calls:
            must = f"nothing must have come: got the pushes {self.unread!r}"
            raise AssertionError(f"{must}, and the calls {calls!r} are unfinished")


# --- 10. The classic API -----------------------------------------------------

__all__ += ["Handler", "Server", "handler_method"]
# Names of the parameters of a `send_message` written for wsappy 0.1.3.
SEND_PARAMETERS = frozenset({"self", "request_id", "module", "method", "event"})


def adopt_generators(owner: object) -> None:
    """Let the methods that are plain generators be awaited, as in wsappy 0.1.3."""
    for _, function in inspect.getmembers(owner, inspect.isgeneratorfunction):
        types.coroutine(function)


def overrides_of(clients: Any, requests: type[Request] = Request) -> Overrides | None:
    """Return what sends for classes of clients and of requests; None for the plain way.

    Their methods that are plain generators can be awaited from now on.
    """
    adopt_generators(clients)
    adopt_generators(requests)
    own = getattr(clients, "send_message", Client.send_message)
    tells, responds = own is not Client.send_message, requests.response
    if not tells and requests is Request:
        return None
    is_plain = not tells and responds is Request.response
    make, emit = functools.partial(make_request, requests), emit_by_response
    tell = tell_by_override if tells else None
    return Overrides(make, None if is_plain else emit, tell)


def make_request(kind: type[Request], *parts: Any) -> Request:
    """Make a request; its attributes are set before its `__init__` runs."""
    request = kind.__new__(kind)
    Request.__init__(request, *parts)
    outcome = run(kind.__init__, request, *parts)
    if type(outcome) is Failure:
        log_failure(f"{kind.__name__}.__init__", outcome.exc)
    return request


def tell_by_override(client: Client, *parts: Any) -> Any:
    """Queue an event through an override of `send_message`, where it fits."""
    data = parts[-1]
    # The override may be of 2018, and have named parameters only.
    if isinstance(data, dict) and not data.keys() & SEND_PARAMETERS:
        return client.send_message(*parts[:-1], **data)
    return client._say(*parts)


async def emit_by_response(request: Request, event: str, data: JSON) -> None:
    """Send an event of the framework's through an own `response` or `send_message`."""
    if isinstance(data, dict) and all(type(key) is str for key in data):
        respond = functools.partial(request.response, event, **data)
    else:
        respond = functools.partial(request.response, event, data)
    outcome = await run_to_end(respond)
    if event in TERMINAL:
        request._last_word = None
    if type(outcome) is Failure:
        answers: Answers = request.client.connection.calls.answers
        answers.send_internal(request, data, outcome.exc)


App.overrides_of = staticmethod(overrides_of)


def handler_method(function: Function) -> Function:
    """Mark a method of a classic handler: `async def`, a plain generator, or `def`.

    It answers only what it sends itself; an exception adds `error`.
    """
    if inspect.isgeneratorfunction(function):
        types.coroutine(function)
    mark_method(function, None, answers_itself=True)
    return function


class Handler:
    """The methods of one module, as wsappy 0.1.3 had them."""

    def get_module_name(self) -> str:
        """Return the name of the class in lower case, less `Handler`."""
        return module_name_of(type(self))

    def send_message(
        self, client: Client, request_id: str | int | None, event: str, /, **data: JSON
    ) -> Any:
        """Queue an event of this module, with `method` null."""
        module = self.get_module_name()
        return client.send_message(request_id, module, None, event, **data)


@dataclass(eq=False, repr=False)
class Server:
    """The server of wsappy 0.1.3, on the same table as `App`.

    Args:
        request_factory: `Request`, or a subclass.
        client_factories: A class of clients for each path; or, for each path, the class
            with the handlers of that path.
        handlers: Handlers for all the paths, by the name of their module.
        json_encoder: A subclass of `json.JSONEncoder`.
        json_decoder: A subclass of `json.JSONDecoder`.

    Attributes:
        app: The `App` underneath.
        serving: What `run` started, None before.
    """

    request_factory: type[Request]
    client_factories: Mapping[str, Any]
    handlers: Mapping[str, Any] | None = None
    _: KW_ONLY
    json_encoder: type[json.JSONEncoder] = json.JSONEncoder
    json_decoder: type[json.JSONDecoder] = json.JSONDecoder

    def __post_init__(self) -> None:
        loads = functools.partial(json.loads, cls=self.json_decoder)
        dumps = functools.partial(json.dumps, cls=self.json_encoder)
        self.app = App(
            loads=orjson.loads if self.json_decoder is json.JSONDecoder else loads,
            dumps=None if self.json_encoder is json.JSONEncoder else dumps,
        )
        self.serving: Serving | None = None
        for name, entry in self.client_factories.items():
            factory, own = entry if isinstance(entry, tuple) else (entry, self.handlers)
            self._add_route("/" + name.strip("/"), factory, own or {})
        set_loop_of_main_thread()

    def _add_route(self, text: str, factory: Any, handlers: Mapping[str, Any]) -> None:
        path = parse_path(text)
        route = Route(path, lambda wire: factory(self, wire, handlers), None)
        route.overrides = overrides_of(factory, self.request_factory)
        route.kind = factory
        self.app.table.add_route(route)
        for name, handler in handlers.items():
            adopt_generators(type(handler))
            self.app.module(name, clients=[text])(handler)

    async def run(self, host: str, port: int, **options: Any) -> None:
        """Start listening and return; the loop's owner runs it on.

        Args:
            host: Where to listen.
            port: Where to listen; 0 for any free one.
            **options: Those of `websockets.serve`.

        Raises:
            OSError: If the port can't be opened.
        """
        self.serving = self.app.serve(host, port, **options)
        await self.serving.__aenter__()


def set_loop_of_main_thread() -> None:
    """Set an event loop where the main thread has none, as Python once did."""
    if threading.current_thread() is not threading.main_thread():
        return
    with warnings.catch_warnings(action="error", category=DeprecationWarning):
        try:
            asyncio.get_event_loop()
        except (DeprecationWarning, RuntimeError):
            asyncio.set_event_loop(asyncio.new_event_loop())


# --- 11. Buses and workers ---------------------------------------------------

# Pushes, and their bytes, that may wait in a process for the bus.
MAX_WAITING, MAX_WAITING_SIZE = 10_000, 2**26
# Pushes that may wait for the answer of a bus that is there.
MAX_SENT = 100_000
# Groups whose place is asked for at once, so that calls get their turns meanwhile; and
# seconds until one that was refused is asked for again.
MAX_FOLLOWS, FOLLOW_WAIT = 100, 2.0
# Seconds in which it must be known where a group stands (protocol, section 6).
STANDING_TIMEOUT = 5.0
# Seconds between two lines in the log about pushes that failed.
FAILURE_SILENCE = 60.0


class Standing(NamedTuple):
    """Where a group stands on the bus: the answer to `follow`.

    Attributes:
        epoch: That of its history, None where it keeps none.
        offset: The number of its newest message.
        messages: Those that came after the asker's position; without one, all that are
            kept.
        is_whole: Whether none that came after the position is lost.
        age: Seconds since the newest.
    """

    epoch: str | None = None
    offset: int = 0
    messages: Sequence[bytes] = ()
    is_whole: bool = True
    age: float = 0.0


class Heard(NamedTuple):
    """A message of a group, as it came over the bus.

    Attributes:
        payload: What the members get.
        epoch: That of the group's history, None where it keeps none.
        offset: Its number there.
        without: Ids of the clients that don't get it.
        origin: The process whose members had it before the bus did, or None.
    """

    payload: bytes
    epoch: str | None = None
    offset: int | None = None
    without: frozenset[str] = frozenset()
    origin: str | None = None


class Pushed:
    """A push on its way over the bus; awaiting it waits for the bus's answer.

    It is never sent twice. Awaiting it raises `ConnectionError` where the bus was lost
    meanwhile: perhaps it wasn't pushed.

    Attributes:
        origin: The id of this process's bus, if its members here have it already.
        is_waiting: Whether it counts as one that waits.
    """

    __slots__ = (
        "groups",
        "has_history",
        "is_awaited",
        "is_waiting",
        "name",
        "origin",
        "outcome",
        "payload",
        "without",
    )

    def __init__(
        self,
        groups: SharedGroups,
        name: str,
        payload: bytes,
        without: frozenset[str],
        outcome: asyncio.Future[None],
    ) -> None:
        self.groups = groups
        self.name = name
        self.payload = payload
        self.without = without
        self.outcome = outcome
        self.has_history = groups.keeps_history(name)
        self.origin: str | None = None
        self.is_awaited = self.is_waiting = False

    def __await__(self) -> Generator[Any, Any, None]:
        self.is_awaited = True
        return asyncio.shield(self.outcome).__await__()

    def note_waiting(self, *, is_waiting: bool) -> None:
        """Count it among those that wait for the bus, or no longer."""
        change = is_waiting - self.is_waiting
        self.is_waiting = is_waiting
        self.groups.waiting_count += change
        self.groups.waiting_size += change * len(self.payload)

    def settle(self, why: str | None = None) -> None:
        """Tell that the bus has it, or why that isn't known."""
        self.note_waiting(is_waiting=False)
        if why is None:
            self.outcome.set_result(None)
            return
        self.outcome.set_exception(ConnectionError(f"perhaps not pushed: {why}"))
        # Else asyncio complains that nobody has asked.
        exc = self.outcome.exception()
        if not self.is_awaited:
            self.groups.note_failure(self.name, exc)


class Bus(abc.ABC):
    """What carries pushes to all processes, in one order for each group.

    It tells `groups` of what it hears, of each start of its life (`begin`) and each end
    (`lose`). Whatever goes wrong ends its life, and it begins another.

    Attributes:
        groups: Those of this process.
        up: Set while it lives.
        id: Distinct for each process.
    """

    groups: SharedGroups
    id: str

    def __init__(self) -> None:
        self.up = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether it lives."""
        return self.up.is_set()

    @abc.abstractmethod
    async def start(self) -> None:
        """Begin to connect, without waiting for it."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """Settle what is on its way, and disconnect."""

    @abc.abstractmethod
    def publish(self, pushed: Pushed) -> None:
        """Send a push while it lives, after all before it; `settle` it once."""

    @abc.abstractmethod
    async def follow(
        self, name: str, pattern: Pattern | None, since: Since | None
    ) -> Standing:
        """Hear a group from now on, and then read what was missed before.

        Raises:
            ConnectionError: If its life ends meanwhile.
        """

    @abc.abstractmethod
    def unfollow(self, name: str) -> None:
        """Hear a group no longer."""

    @abc.abstractmethod
    async def count(self, name: str) -> int:
        """Return how many members a group has in all processes."""


def has_seen_more(since: Since | None, log: Log | None) -> bool:
    """Tell whether a client has seen more of a group than its process."""
    is_same = log is not None and since is not None and log.epoch == since.epoch
    return is_same and since.offset > log.offset  # type: ignore[union-attr]


@dataclass(eq=False, slots=True)
class FollowedFeed(Feed):
    """One group, as a process follows it over the bus; its log is a copy.

    Attributes:
        known: Set while it is known where the group stands.
        has_place: Whether it was ever known: only then can messages have been missed.
        early: What came over the bus while it isn't known.
        follower: The task that finds it out.
        guests: Clients that wait until it is known.
    """

    known: asyncio.Event = field(default_factory=asyncio.Event)
    has_place: bool = False
    early: list[Heard] = field(default_factory=list)
    follower: asyncio.Task[None] | None = None
    guests: int = 0

    def is_known(self) -> bool:
        """Tell whether the bus has said where it stands."""
        return self.known.is_set()

    def is_needed(self) -> bool:
        """Tell whether it has to be followed."""
        return bool(self.members or self.guests)

    def unsettle(self) -> None:
        """Know no longer where the group stands."""
        self.known.clear()
        if self.follower is not None:
            self.follower.cancel()
            self.follower = None


class SharedGroups(Groups):
    """The groups of an application in one of several processes with one bus.

    A process is a client of the bus: it follows the groups that its clients are in,
    counts their messages, and resumes by its position as a client does.

    Attributes:
        bus: What carries the pushes.
        held: Pushes that wait for the bus, or until it is known where their group
            stands, by group and in order.
        users: How many servings and publishers need it.
    """

    feeds: dict[str, Any]
    follows: asyncio.Semaphore

    def __init__(self, counts: collections.Counter[str], bus: Bus) -> None:
        super().__init__(counts)
        self.bus = bus
        self.bus.groups = self
        self.held: dict[str, list[Pushed]] = {}
        self.waiting_count = self.waiting_size = self.users = 0
        self.told_at = -math.inf

    async def start(self, runtime: Runtime) -> None:
        """Live in a loop from now on, and connect to the bus."""
        await super().start(runtime)
        self.users += 1
        if self.users == 1:
            # Not before: a fork would share the one, another loop couldn't wait.
            self.bus.id, self.bus.up = uuid.uuid4().hex, asyncio.Event()
            self.follows = asyncio.Semaphore(MAX_FOLLOWS)
            await self.bus.start()

    async def stop(self) -> None:
        """Leave the bus, once nobody needs it."""
        self.users -= 1
        if not self.users:
            await self.bus.stop()
            self.lose()
            for pushed in [each for held in self.held.values() for each in held]:
                pushed.settle("the process has stopped")
            self.held.clear()

    # Pushes to the bus

    def push(
        self, name: str, payload: bytes, without: frozenset[str]
    ) -> typing.Awaitable[None]:
        """Queue a message to every member of a group, from whichever thread.

        Raises:
            Error: `overloaded`, if too many wait and the group keeps history.
            RuntimeError: If the application isn't being served.
        """
        if self.runtime is None or not self.users:
            must = "app must be served to push over its bus"
            raise RuntimeError(f"{must}; write async with app.publisher() as bus")
        outcome: asyncio.Future[None] = self.runtime.loop.create_future()
        pushed = Pushed(self, name, payload, without, outcome)
        if pushed.has_history and self._is_full(pushed):
            raise Error("overloaded", "too many pushes wait for the bus", retry=True)
        self.runtime.call(self._send, pushed)
        return pushed

    def _is_full(self, pushed: Pushed) -> bool:
        # A bus that is there answers what was pushed to it in one go, sooner or later.
        most = MAX_SENT if self.bus.is_up else MAX_WAITING
        size = self.waiting_size + len(pushed.payload)
        return self.waiting_count >= most or size > MAX_WAITING_SIZE

    def _send(self, pushed: Pushed) -> None:
        feed, is_full = self.feeds.get(pushed.name), self._is_full(pushed)
        if not pushed.has_history and (is_full or not self.bus.is_up):
            pushed.origin = self.bus.id
            if feed is not None:
                self.deliver(feed, pushed.payload, pushed.without)
            if is_full:
                self.counts["pushes_lost"] += 1
                pushed.settle("too many pushes wait for the bus")
                return
        pushed.note_waiting(is_waiting=True)
        if self._may_send(pushed.name):
            self.bus.publish(pushed)
        else:
            self.held.setdefault(pushed.name, []).append(pushed)

    def _may_send(self, name: str) -> bool:
        """Tell whether pushes to a group need not wait."""
        feed = self.feeds.get(name)
        return self.bus.is_up and (feed is None or feed.known.is_set())

    def _release(self, name: str) -> None:
        """Send what waited for a group, now that it may."""
        if self._may_send(name):
            for pushed in self.held.pop(name, ()):
                self.bus.publish(pushed)

    def note_failure(self, name: str, exc: BaseException | None) -> None:
        """Count and log, once a minute, a push that failed while nobody awaits it."""
        self.counts["pushes_failed"] += 1
        if monotonic() >= self.told_at + FAILURE_SILENCE:
            self.told_at = monotonic()
            LOGGER.warning("push to group %r failed: %s", name, exc)

    # The life of the bus

    def begin(self) -> None:
        """Follow all groups again, now that the bus is there."""
        self.bus.up.set()
        for feed in list(self.feeds.values()):
            self.follow(feed)
        for name in [each for each in self.held if each not in self.feeds]:
            self._release(name)

    def lose(self) -> None:
        """Forget where the groups stand: the bus is away."""
        self.bus.up.clear()
        for feed in self.feeds.values():
            feed.unsettle()
            feed.early.clear()

    # Where groups stand

    def make(self, name: str) -> Feed:
        """Make a group that isn't there, and follow it."""
        log = Log(self.find(name)[0]) if self.keeps_history(name) else None  # type: ignore[index]
        feed = self.feeds[name] = FollowedFeed(name, log)
        self.follow(feed)
        return feed

    def close(self, feed: Any) -> None:
        """Follow a group no longer that nobody is in."""
        is_followed = self.feeds.get(feed.name) is feed
        if is_followed and not feed.is_needed():
            del self.feeds[feed.name]
            feed.unsettle()
            if feed.log is not None:
                feed.log.pattern.kept.pop(feed.name, None)
            if self.bus.is_up:
                self.bus.unfollow(feed.name)
            self._release(feed.name)

    def follow(self, feed: FollowedFeed) -> None:
        """Find out where a group stands, and what was missed."""
        feed.known.clear()
        if self.bus.is_up and feed.follower is None:
            feed.follower = asyncio.ensure_future(self._catch_up(feed))

    async def _catch_up(self, feed: FollowedFeed) -> None:
        log = feed.log
        since = Since(log.offset, log.epoch) if log and feed.has_place else None
        pattern = log.pattern if log else None
        while True:
            try:
                async with self.follows:
                    standing = await self.bus.follow(feed.name, pattern, since)
                break
            except ConnectionError:
                # All are followed again when the bus is back.
                return
            except Exception as exc:  # noqa: BLE001
                LOGGER.warning("group %r can't be followed: %r", feed.name, exc)
            # What came meanwhile is read then, or missing.
            feed.early.clear()
            await asyncio.sleep(FOLLOW_WAIT)
        feed.follower = None
        self._settle(feed, standing)

    def _settle(self, feed: FollowedFeed, standing: Standing) -> None:
        """Count on from where a group stands, and go on with what waited for it."""
        early, feed.early = feed.early, []
        if feed.log is not None:
            self._copy(feed, feed.log, standing, early)
            # Those without a number came before the bus knew of a history.
            early = [each for each in early if each.offset is not None]
        feed.has_place = True
        feed.known.set()
        for heard in early:
            self.hear(feed.name, heard)
        self._release(feed.name)

    def _copy(
        self, feed: FollowedFeed, log: Log, standing: Standing, early: list[Heard]
    ) -> None:
        """Let a log stand where its group does; the members get what was missed."""
        missed: Sequence[bytes] = standing.messages
        is_next = feed.has_place and standing.is_whole
        if not is_next:
            log.messages.clear()
            # At the first follow only clients that the server put in are members: they
            # get what came while the bus was asked.
            end = 0 if feed.has_place else standing.offset
            missed = [each.payload for each in early if (each.offset or 0) <= end]
        log.messages.extend(standing.messages)
        log.epoch, log.offset = standing.epoch or "", standing.offset
        log.newest = monotonic() - standing.age
        self.keep(feed)
        # Before the messages: a gap tells members from which offset to count on.
        if not is_next:
            self.tell_gap(feed, *feed.members)
        for payload in missed:
            self.deliver(feed, payload)

    def hear(self, name: str, heard: Heard) -> None:
        """Hand a message of the bus to the members, if it is the group's next."""
        feed = self.feeds.get(name)
        if feed is None:
            return
        log = feed.log
        if not feed.known.is_set():
            feed.early.append(heard)
        elif log is None:
            if heard.origin != self.bus.id:
                self.deliver(feed, heard.payload, heard.without)
        elif heard.offset is None:
            # The bus has forgotten that the group keeps history.
            self.follow(feed)
            feed.early.append(heard)
        elif heard.epoch == log.epoch and heard.offset == log.offset + 1:
            log.offset = heard.offset
            log.keep(heard.payload)
            self.keep(feed)
            self.deliver(feed, heard.payload)
        elif heard.epoch != log.epoch or heard.offset > log.offset:
            self.follow(feed)

    @contextlib.asynccontextmanager
    async def standing(
        self, name: str, since: Since | None
    ) -> typing.AsyncIterator[None]:
        """Wait until it is known where a group stands; `overloaded` after 5 s."""
        feed: Any = self.open(name)
        feed.guests += 1
        try:
            try:
                async with asyncio.timeout(STANDING_TIMEOUT):
                    await feed.known.wait()
                    if has_seen_more(since, feed.log):
                        # The client comes from a process that has heard more.
                        self.follow(feed)
                        await feed.known.wait()
            except TimeoutError:
                raise Error("overloaded", "the bus is away", retry=True) from None
            yield
        finally:
            feed.guests -= 1
            self.close(feed)

    async def count(self, name: str) -> int:
        """Return how many members a group has in all processes."""
        return await self.bus.count(name)


# Seconds between two tries to reach the relay, at most.
RELAY_WAIT = 0.5


def position_in(log: Log | None, since: list[Any] | None) -> JSON:
    """Return where a group stands, and what a worker has missed, as a `Standing`."""
    if log is None:
        return None
    missed = log.since(*since) if since else None
    messages = log.messages if missed is None else missed
    return {
        **log.place,
        "messages": [each.decode() for each in messages],
        "is_whole": missed is not None or since is None,
        "age": monotonic() - log.newest,
    }


# The group of the workers at the relay; none of an application's is called so.
ALL_WORKERS = "\0workers"


# A worker's calls to the relay are those of all its clients.
UNLIMITED: Any = dict.fromkeys(("max_in_flight", "max_in_flight_bytes"), sys.maxsize)


def relay_of(app: App) -> App:
    """Make the application that relays the pushes between the workers of another one.

    It has the same groups; its clients are the workers, and since its handlers are
    `def`, there is one order for all.
    """
    relay = App(max_backlog=MAX_WAITING_SIZE, grace=0, **UNLIMITED)
    groups, bus = relay.groups, relay.module("bus")
    for pattern in app.groups.patterns:
        groups.declare(dataclasses.replace(pattern, kept=collections.OrderedDict()))

    @relay.client("/")
    def worker(client: Client) -> None:
        """Every worker may come in: the socket is in a folder of the user's own."""
        client.join(ALL_WORKERS)

    @bus.method
    def publish(
        request: Request, group: str, payload: str, without: list[Any], origin: Any
    ) -> None:
        feed = groups.open(group)
        payload = groups.number(feed, payload.encode()).decode()
        data = {
            "group": group,
            "payload": payload,
            "without": without,
            "origin": origin,
        }
        data |= feed.log.place if feed.log else {}
        heard = message_of(None, "bus", None, "heard", data)
        groups.deliver(feed, relay.codec.write(heard))
        groups.close(feed)

    @bus.method
    def follow(request: Request, group: str, since: list[Any] | None) -> JSON:
        request.client.join(group)
        return position_in(groups.open(group).log, since)

    @bus.method
    def unfollow(request: Request, group: str) -> None:
        request.client.leave(group)

    @bus.method
    async def count(request: Request, group: str) -> int:
        # Of all, since one that follows the group only now has members already.
        workers = relay.to(ALL_WORKERS).members
        calls = [each.call("bus", "count", group=group) for each in workers]
        counts = await asyncio.gather(*calls, return_exceptions=True)
        return sum(each for each in counts if isinstance(each, int))

    return relay


class RelayBus(Bus):
    """The bus of one machine: a client of the relay, over its Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.link: RelayLink
        self.wire: PeerWire

    async def start(self) -> None:
        """Connect; the relay's socket is there before any worker is."""
        self.link = RelayLink(self)
        self.link.method("bus", "count")(self._count)
        await self.link.__aenter__()

    async def stop(self) -> None:
        """Wait until what is on its way has arrived, and disconnect."""
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            await self.link.call("$", "ping", timeout=LAST_GRACE)
        await self.link.close()

    def begin(self, wire: PeerWire) -> None:
        """Live on a connection, until it ends."""
        self.wire = wire
        self.groups.begin()

    def publish(self, pushed: Pushed) -> None:
        """Send a push; the relay's answer settles it."""

        def settle(event: str, value: Any) -> None:
            pushed.settle(str(value) if event == "error" else None)

        data = {
            "group": pushed.name,
            "payload": pushed.payload.decode(),
            "without": list(pushed.without),
            "origin": pushed.origin,
        }
        self.wire.calls.asked.begin(settle, "bus", "publish", data=data)

    async def follow(
        self, name: str, pattern: Pattern | None, since: Since | None
    ) -> Standing:
        """Join the group at the relay, which answers in the same step."""
        data = {"group": name, "since": since}
        try:
            found: Any = await self.wire.calls.asked.ask("bus", "follow", data, None)
        except ConnectionClosed as exc:
            raise ConnectionError(str(exc)) from exc
        messages = [each.encode() for each in found.pop("messages", ())]
        return Standing(messages=messages, **found)

    def unfollow(self, name: str) -> None:
        """Leave the group at the relay."""
        self.wire.calls.asked.send("bus", "unfollow", data={"group": name})

    async def count(self, name: str) -> int:
        """Ask the relay, which asks all workers that follow the group."""
        count: Any = await self.link.call("bus", "count", group=name)
        return int(count)

    def _count(self, request: Request, group: str) -> int:
        return self.groups.count_here(group)


class RelayLink(Peer):
    """A worker's connection to the relay; hands over what it hears at once."""

    def __init__(self, bus: RelayBus) -> None:
        # No `max_size` is given: a large push must not end the connection.
        super().__init__("ws://localhost/", unix=True, path=bus.path, proxy=None)
        self.bus = bus
        self._backoff.bound = RELAY_WAIT
        self.on_connected(self._begin)

    def _begin(self) -> None:
        # Lost in the turn in which it was opened, it would never be lost again.
        if self._connection is not None and self._connection.phase is OPEN:
            self.bus.begin(self._connection)

    def hear(self, connection: Any, message: dict[str, JSON]) -> None:
        """Hand a message over before the next one is read."""
        data: Any = message["data"]
        heard = Heard(
            data["payload"].encode(),
            data.get("epoch"),
            data.get("offset"),
            frozenset(data["without"]),
            data["origin"],
        )
        self.bus.groups.hear(data["group"], heard)

    def hold_calls(self, connection: PeerWire) -> None:
        """Lose the bus, now that the connection is ending."""
        super().hold_calls(connection)
        self.bus.groups.lose()


# Seconds between two starts of a process that keeps dying; for a worker to end after
# its grace; for the relay to end. Its own signal: a service's others are for all of it.
RESTART_WAIT, STOP_LIMIT, RELAY_LIMIT = 1.0, 14.0, 2.0
RELAY_STOP = getattr(signal, "SIGUSR1", signal.SIGTERM)


@dataclass(eq=False, slots=True)
class Child:
    """A process of a server: a worker, or the relay.

    Attributes:
        name: For the log.
        main: What it runs; gets a function to call once it serves.
        pid: Its number; 0 while it isn't there.
        begun: A pipe on which it sends one byte once it serves.
        count: How often it was started.
        starts_at: When it may be started again, in the seconds of `monotonic`.
    """

    name: str
    main: Callable[[Callable[[], object]], None]
    pid: int = 0
    begun: int = -1
    count: int = 0
    starts_at: float = 0.0
    stop: int = signal.SIGTERM

    def start(self, alive: tuple[int, int], limit: float) -> None:
        """Fork it; it ends when *alive*, a pipe of the parent's, does."""
        self.begun, begun = os.pipe()
        # At once the first time that it died, then at most once a second.
        self.starts_at = monotonic() + RESTART_WAIT if self.count else 0.0
        self.count += 1
        signals = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
        # Else a signal could meet the parent's handlers in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self.pid = os.fork()
        if not self.pid:
            os.close(alive[1])
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # SIGINT keeps the parent's handler, which does nothing: Ctrl+C is for the
            # parent. Blocked, it would be so in every program that a worker starts.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            threading.Thread(
                target=die_with, args=(alive[0], limit, self.stop), daemon=True
            ).start()
            run_child(
                functools.partial(self.main, functools.partial(os.write, begun, b"."))
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        os.close(begun)

    def reap(self) -> int | None:
        """Return the exit code of a process that has ended; None for all others."""
        if not self.pid:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def was_there(self) -> bool:
        """Tell, after its end, whether it had begun."""
        with open(self.begun, "rb") as begun:
            return bool(begun.read(1))

    def kill(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.pid:
            os.kill(self.pid, number)


def die_with(parent: int, limit: float, number: int) -> None:
    """Stop this process once its parent is gone, whatever it does."""
    os.read(parent, 1)
    os.kill(os.getpid(), number)
    time.sleep(limit)
    os._exit(1)


def run_child(main: Callable[[], None]) -> NoReturn:
    """Run a process to its end; an error is printed as Python does at the top."""
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as exc:
        code = exc.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)  # noqa: T201
            code = 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        # Whatever they raise: the parent's frames are below this one.
        with contextlib.suppress(BaseException):
            logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code)


class Workers:
    """The processes of one server: workers that share its port, and their relay.

    The parent forks them, replaces those that die, and stops them; it has no loop. The
    relay, whose socket the parent keeps, stops last.

    Attributes:
        code: The exit code of one that couldn't begin, after which all stop, or of one
            that failed at the stop.
    """

    def __init__(
        self,
        serving: Serving,
        make_loop: Callable[[], asyncio.AbstractEventLoop],
        count: int,
    ) -> None:
        self.serving = serving
        self.app = serving.app
        self.make_loop = make_loop
        self.relay: list[Child] = []
        self.workers = [
            Child(f"worker {number}", functools.partial(self._work, number))
            for number in range(count)
        ]
        self.folder = ""
        self.code = 0
        self.is_stopping = False
        self.stack = contextlib.ExitStack()

    def run(self) -> None:
        """Serve until a signal; a second one leaves at once with 130.

        Raises:
            SystemExit: If the port can't be opened, or a process can't begin.
        """
        self.app.prepare()
        with self.stack:
            self._open_port()
            if not isinstance(self.app.groups, SharedGroups):
                self._open_relay()
            self._hear_signals()
            alive = os.pipe()
            for end in alive:
                self.stack.callback(os.close, end)
            while not self.is_stopping:
                for child in [*self.relay, *self.workers]:
                    self._look_after(child, alive)
                self._wait(RESTART_WAIT)
            self._stop(self.workers, self.serving.grace + STOP_LIMIT)
            self._stop(self.relay, RELAY_LIMIT)
        if self.code:
            sys.exit(self.code)

    # What the processes share

    def _open_port(self) -> None:
        """Keep the port for this server, which no other one may share."""
        serving = self.serving
        try:
            if serving.unix is not None:
                sock = self.stack.enter_context(listen_unix(serving.unix))
                self.stack.callback(run, os.unlink, serving.unix)
                del serving.options["path"]
                serving.options["sock"] = sock
            elif "sock" not in serving.options:
                found = asyncio.run(find_free(serving.host, serving.requested_port))
                serving.requested_port = found[1]
                for address in found[0] if isinstance(found[0], list) else [found[0]]:
                    for each in bind_shared(address, found[1]):
                        self.stack.enter_context(each)
                serving.options["reuse_port"] = True
        except OSError as exc:
            sys.exit(serving.blame(exc).strerror)

    def _open_relay(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="wsappy-")
        self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        sock = listen_unix(self._path())
        self.stack.enter_context(sock)
        self.relay = [
            Child("relay", functools.partial(self._relay, sock), stop=RELAY_STOP)
        ]

    def _path(self) -> str:
        return os.path.join(self.folder, "relay")

    # What they run

    def _relay(self, sock: socket.socket, tell: Callable[[], object]) -> None:
        serving = relay_of(self.app).serve(sock=sock, max_size=None)
        serving.options["unix"] = True
        serving.on_ready = tell
        signal.signal(signal.SIGTERM, lambda *_: None)
        run_serving(serving, asyncio.new_event_loop(), [RELAY_STOP], leaves=False)
        # The parent, whose folder it is, may be gone.
        shutil.rmtree(self.folder, ignore_errors=True)

    def _work(self, number: int, tell: Callable[[], object]) -> None:
        app = self.app
        type(app).worker = number
        if self.relay:
            patterns = app.groups.patterns
            app.groups = SharedGroups(app.counts, RelayBus(self._path()))
            app.groups.patterns = patterns
        # One line for each route, and not again for a worker that replaces another.
        is_first = number == 0 and self.workers[0].count == 1
        say_urls = self.serving.on_ready

        def on_ready() -> None:
            tell()
            if is_first:
                say_urls()

        self.serving.on_ready = on_ready
        run_serving(self.serving, self.make_loop(), [signal.SIGTERM], leaves=False)

    # What the parent does

    def _hear_signals(self) -> None:
        self.told, tell = socket.socketpair()
        tell.setblocking(False)
        previous = signal.set_wakeup_fd(tell.fileno())
        for end in (self.told, tell):
            self.stack.enter_context(end)
        self.stack.callback(signal.set_wakeup_fd, previous)
        for each in (signal.SIGCHLD, *STOP_SIGNALS):
            handler = signal.signal(each, lambda *_: None)
            self.stack.callback(signal.signal, each, handler)

    def _wait(self, seconds: float) -> None:
        """Wait for a signal, but no longer than that."""
        self.told.settimeout(max(seconds, 0.001))
        numbers = b""
        with contextlib.suppress(TimeoutError):
            numbers = self.told.recv(64)
        if not set(numbers).isdisjoint(STOP_SIGNALS):
            if self.is_stopping:
                for child in [*self.relay, *self.workers]:
                    child.kill(signal.SIGKILL)
                self.stack.close()
                os._exit(130)
            self.is_stopping = True

    def _look_after(self, child: Child, alive: tuple[int, int]) -> None:
        """Start a process that isn't there, unless it couldn't begin."""
        code = child.reap()
        if code is not None and not child.was_there() and child.count == 1:
            self.code, self.is_stopping = code if code > 0 else 1, True
        elif code is not None:
            text = "%s ended with exit code %d; it is replaced"
            LOGGER.warning(text, child.name, code)
        is_due = monotonic() >= child.starts_at
        if not child.pid and is_due and not self.is_stopping:
            child.start(alive, self.serving.grace + STOP_LIMIT)

    def _stop(self, children: list[Child], limit: float) -> None:
        for child in children:
            child.kill(child.stop)
        deadline = monotonic() + limit
        while any(child.pid for child in children):
            for child in children:
                self.code = max(self.code, child.reap() or 0)
                if monotonic() > deadline:
                    child.kill(signal.SIGKILL)
            if any(child.pid for child in children):
                self._wait(min(RESTART_WAIT, deadline - monotonic()))


def listen_unix(path: str) -> socket.socket:
    """Open a Unix socket, in place of one that a server has left behind."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    # Bound by another name: since 3.13 a loop that ends removes the name that it knows.
    first = f"{path}.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(first)
    sock.listen()
    os.rename(first, path)
    return sock


def bind_shared(host: str, port: int) -> list[socket.socket]:
    """Bind the sockets that keep a port for workers, who may bind it, too.

    Raises:
        OSError: If somebody else has it, be it one who would share it.
    """
    sockets = []
    options: Any = {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}
    for family, kind, number, _, address in socket.getaddrinfo(
        host or None, port, **options
    ):
        for is_shared in (0, 1):
            sock = socket.socket(family, kind, number)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, is_shared)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            with contextlib.ExitStack() as stack:
                stack.callback(sock.close)
                sock.bind(address)
                if is_shared:
                    stack.pop_all()
                    sockets.append(sock)
    return sockets


def run_workers(
    serving: Serving, make_loop: Callable[[], asyncio.AbstractEventLoop], count: int
) -> None:
    """Serve in several processes.

    Raises:
        RuntimeError: If the system has no `fork`.
    """
    if not hasattr(os, "fork"):
        must = "workers need a system with fork, which this one isn't"
        raise RuntimeError(f"{must}; write workers=1")
    Workers(serving, make_loop, count).run()


App.run_workers = staticmethod(run_workers)

# Seconds, at most, before Redis is tried again; of silence before it is pinged, and as
# many again before it counts as dead; for all processes to answer a count.
REDIS_WAIT, REDIS_SILENCE, REDIS_COUNT = 2.0, 2.0, 1.0
# Seconds that a history's place outlives its messages, and between two renewals.
PLACE_TTL, PLACE_RENEWAL = 86400, 3600.0

# What concerns one command alone: keys of another type, say, or no rights to a channel.
# Any other answer that is an error is the connection's: "read only", say.
REDIS_REFUSALS = frozenset({"ResponseError", "NoPermissionError"})

# Offsets come from what Redis has stored. If Redis was restarted since the last one
# (another run_id), it may have come back with older data than members have seen, so a
# new epoch begins.
PUBLISH_SCRIPT = r"""
local place = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'history', 'ttl', 'run')
if not place[1] then
  redis.call('PUBLISH', ARGV[1], '[null,null,' .. ARGV[3] .. ']\n' .. ARGV[2] .. '}')
  return
end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local epoch, offset = place[1], tonumber(place[2]) + 1
if place[5] ~= run then
  epoch, offset = ARGV[4], 1
end
local number = string.format('%d', offset)
local message = ARGV[2] .. ',"offset":' .. number .. '}'
local done = redis.pcall('HSET', KEYS[1], 'epoch', epoch, 'offset', number, 'run', run)
if type(done) == 'table' then
  -- Out of memory: only this push fails.
  return string.find(done.err, '^OOM') and done.err or done
end
if offset == 1 then
  redis.call('DEL', KEYS[2])
end
redis.call('RPUSH', KEYS[2], message)
redis.call('LTRIM', KEYS[2], -tonumber(place[3]), -1)
redis.call('PEXPIRE', KEYS[2], place[4])
redis.call('PEXPIRE', KEYS[1], place[4] + ARGV[5])
local head = '["' .. epoch .. '",' .. number .. ',' .. ARGV[3] .. ']\n'
redis.call('PUBLISH', ARGV[1], head .. message)
"""
FOLLOW_SCRIPT = r"""#!lua flags=allow-oom
local place = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'run')
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local epoch, offset = place[1], tonumber(place[2])
if place[3] ~= run then
  epoch, offset = ARGV[1], 0
  redis.call('DEL', KEYS[2])
end
redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', string.format('%d', offset),
  'history', ARGV[2], 'ttl', ARGV[3], 'run', run)
redis.call('PEXPIRE', KEYS[1], ARGV[3] + ARGV[4])
local kept, first, whole = redis.call('LLEN', KEYS[2]), 0, 1
if ARGV[5] then
  local missed = offset - tonumber(ARGV[6])
  if ARGV[5] == epoch and missed >= 0 and missed <= kept then
    first = kept - missed
  else
    whole = 0
  end
end
local left = redis.call('PTTL', KEYS[2])
return {epoch, offset, redis.call('LRANGE', KEYS[2], first, -1), whole, left}
"""


async def end_tasks(tasks: list[asyncio.Task[None]]) -> list[BaseException]:
    """Cancel tasks until they have ended; return what they raised.

    `redis-py` loses a cancellation where its connection ends at the same time.
    """
    while running := [each for each in tasks if not each.done()]:
        for task in running:
            task.cancel()
        await wait_at_most(LAST_GRACE, running)
    ended = [each.exception() for each in tasks if not each.cancelled()]
    return [exc for exc in ended if exc is not None]


class RedisBus(Bus):
    """The bus of any number of machines: Redis or Valkey, through `redis-py`.

    Each life has one connection that hears and one for commands, which go out in
    batches, one after the other. Whatever fails ends it.

    Args:
        make_client: Makes a client of `redis.asyncio`.
        namespace: What all its names in Redis begin with.
    """

    def __init__(self, make_client: Callable[[], Any], namespace: str) -> None:
        super().__init__()
        self.make_client = make_client
        # Without a colon, so that it ends where the name of a group begins.
        self.namespace = urllib.parse.quote(namespace, safe="")
        self.life: asyncio.Task[None]
        self.works: list[asyncio.Task[None]] = []
        # What waits to be sent, and who waits for an answer, or to hear a channel.
        self.commands: list[tuple[asyncio.Future[Any], tuple[Any, ...]]] = []
        self.channels: list[tuple[str, str]] = []
        self.confirmations: dict[str, list[asyncio.Future[None]]] = {}
        self.answers: dict[str, asyncio.Queue[int]] = {}
        self.is_wanted: asyncio.Event

    async def start(self) -> None:
        """Begin to connect, without waiting for it."""
        # Not before: another loop couldn't wait for it.
        self.is_wanted = asyncio.Event()
        self.life = asyncio.ensure_future(self._live())

    async def stop(self) -> None:
        """Wait until what is on its way has arrived, and disconnect."""
        await wait_at_most(LAST_GRACE, [future for future, _ in self.commands])
        await end_tasks([self.life])
        # It may have been cancelled twice, and have left them.
        await end_tasks(self.works)

    async def _live(self) -> None:
        """Begin one life after the other."""
        backoff, level = Backoff(), logging.WARNING
        backoff.bound = REDIS_WAIT
        while True:
            try:
                outcome = await run_to_end(self._live_once)
            finally:
                # One line for each time that it goes, and not for each try.
                level = logging.WARNING if self.is_up else level
                self._die()
            LOGGER.log(level, "the bus is away: %r", unwrap(outcome.exc))
            level = logging.INFO
            await backoff.wait()

    async def _live_once(self) -> None:
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415

        client = await value_of(self.make_client)
        if client.get_encoder().decode_responses:
            must = "bus must be a function whose client gives bytes"
            raise TypeError(f"{must}; write decode_responses=False")
        # What is sent again could count twice.
        client.set_retry(Retry(NoBackoff(), 0))
        async with client, client.pubsub() as pubsub:
            await pubsub.subscribe(self._own("count"), self._own(self.id))
            self.groups.begin()
            works = self._listen(pubsub), self._send(client, pubsub), self._renew()
            self.works = [asyncio.ensure_future(each) for each in works]
            try:
                await asyncio.wait(self.works, return_when=asyncio.FIRST_COMPLETED)
            finally:
                failures = await end_tasks(self.works)
            raise failures[0]

    def _die(self) -> None:
        """Tell all who wait that the bus was lost."""
        self.groups.lose()
        confirmations = itertools.chain(*self.confirmations.values())
        for future in [*confirmations, *(future for future, _ in self.commands)]:
            if not future.done():
                future.set_exception(ConnectionError("the bus was lost"))
                future.exception()
        self.commands, self.channels, self.confirmations = [], [], {}

    # What it sends

    def _command(self, *words: Any) -> asyncio.Future[Any]:
        """Send a command, after all before it; its answer is the future's."""
        future = self.life.get_loop().create_future()
        self.commands.append((future, words))
        self.is_wanted.set()
        return future

    async def _send(self, client: Any, pubsub: Any) -> None:
        """Send what waits, in batches."""
        while True:
            await self.is_wanted.wait()
            self.is_wanted.clear()
            channels, self.channels = self.channels, []
            for verb, some in itertools.groupby(channels, operator.itemgetter(0)):
                await getattr(pubsub, verb)(*(channel for _, channel in some))
            # They stay there until they are answered, in case that this life ends.
            batch = list(self.commands)
            if batch:
                pipe = client.pipeline(transaction=False)
                for _, words in batch:
                    pipe.execute_command(*words)
                self._settle(batch, await pipe.execute(raise_on_error=False))
                del self.commands[: len(batch)]

    def _settle(self, batch: list[Any], results: list[Any]) -> None:
        for (future, _), result in zip(batch, results, strict=True):
            if type(result).__name__ in REDIS_REFUSALS:
                # Who asked may be gone.
                if not future.done():
                    future.set_exception(result)
                    # Not everybody awaits it.
                    future.exception()
            elif isinstance(result, Exception):
                raise result
            else:
                hand_over(future, result)

    async def _renew(self) -> None:
        """Keep the places of groups that nobody pushes to."""
        while True:
            await asyncio.sleep(PLACE_RENEWAL)
            for feed in [each for each in self.groups.feeds.values() if each.log]:
                self.groups.follow(feed)

    def _own(self, name: str) -> str:
        return f"{self.namespace}${name}"

    def _names(self, group: str) -> tuple[str, str, str]:
        """Return the channel of a group, and its two keys, which one node has."""
        key = f"{{{self.namespace}:{group}}}"
        return f"{self.namespace}:{group}", f"{key}:place", f"{key}:messages"

    def publish(self, pushed: Pushed) -> None:
        """Send a push; the answer of Redis settles it."""

        def settle(answer: asyncio.Future[Any]) -> None:
            exc = answer.exception()
            # Redis answers with words only where it refuses.
            why = str(exc) if exc else (answer.result() or b"").decode()
            pushed.settle(why or None)
            if exc and self.is_up and (feed := self.groups.feeds.get(pushed.name)):
                # What Redis knows of the group is wrong: that writes it anew.
                self.groups.follow(feed)

        channel, *keys = self._names(pushed.name)
        marks = orjson.dumps([list(pushed.without), pushed.origin])[1:-1]
        # The script writes the brace at the end, after the number.
        body, epoch = pushed.payload.rstrip()[:-1], secrets.token_urlsafe(6)
        words = [*keys, channel, body, marks, epoch, PLACE_TTL * 1000]
        answer = self._command("EVAL", PUBLISH_SCRIPT, 2, *words)
        answer.add_done_callback(settle)

    async def follow(
        self, name: str, pattern: Pattern | None, since: Since | None
    ) -> Standing:
        """Subscribe to a channel, and once that is confirmed read what is kept."""
        channel, *keys = self._names(name)
        heard = self.life.get_loop().create_future()
        self.confirmations.setdefault(channel, []).append(heard)
        self._want("subscribe", channel)
        await heard
        if pattern is None:
            return Standing()
        # As long as Redis can count.
        ttl = int(min(pattern.ttl * 1000, 2**53))
        last = (since.epoch, since.offset) if since else ()
        epoch = secrets.token_urlsafe(6)
        words = [*keys, epoch, pattern.history, ttl, PLACE_TTL * 1000, *last]
        found = await self._command("EVAL", FOLLOW_SCRIPT, 2, *words)
        epoch, offset, messages, is_whole, left = found
        age = (ttl - left) / 1000
        return Standing(epoch.decode(), offset, messages, bool(is_whole), age)

    def unfollow(self, name: str) -> None:
        """Leave a channel."""
        self._want("unsubscribe", self._names(name)[0])

    def _want(self, verb: str, channel: str) -> None:
        self.channels.append((verb, channel))
        self.is_wanted.set()

    async def count(self, name: str) -> int:
        """Ask all processes, by their common channel.

        Raises:
            ConnectionError: If the bus is away.
            TimeoutError: If one of them doesn't answer within a second.
        """
        if not self.is_up:
            raise ConnectionError("the bus is away")
        number, channel = uuid.uuid4().hex, self._own("count")
        counts = self.answers[number] = asyncio.Queue()
        try:
            found = await self._command("PUBSUB", "NUMSUB", channel)
            question = orjson.dumps([self.id, number, name])
            await self._command("PUBLISH", channel, question)
            async with asyncio.timeout(REDIS_COUNT):
                return sum([await counts.get() for _ in range(found[1])])
        finally:
            del self.answers[number]

    # What it hears

    async def _listen(self, pubsub: Any) -> None:
        """Hear the channels, until Redis says nothing though it is asked."""
        runtime: Any = self.groups.runtime
        is_asked = False
        while True:
            message = await pubsub.get_message(timeout=REDIS_SILENCE)
            if message is not None:
                self._hear(message["type"], message["channel"], message["data"])
                # Where much has come it doesn't wait by itself.
                if runtime.is_turn_over():
                    await runtime.next_turn()
            elif is_asked:
                raise ConnectionError("Redis is silent")
            else:
                await pubsub.ping()
            is_asked = message is None

    def _hear(self, kind: str, channel: bytes, data: Any) -> None:
        if kind == "subscribe":
            self._confirm(channel.decode())
        elif kind == "message" and channel.startswith(f"{self.namespace}$".encode()):
            self._hear_count(*orjson.loads(data))
        elif kind == "message":
            head, _, payload = data.partition(b"\n")
            epoch, offset, without, origin = orjson.loads(head)
            heard = Heard(payload, epoch, offset, frozenset(without), origin)
            self.groups.hear(channel.decode()[len(self.namespace) + 1 :], heard)

    def _confirm(self, channel: str) -> None:
        """Wake the first task that waits to hear a channel, which is confirmed."""
        waiting = self.confirmations.get(channel)
        if waiting:
            hand_over(waiting.pop(0))
            if not waiting:
                del self.confirmations[channel]

    def _hear_count(self, *parts: Any) -> None:
        """Answer the question for a count, or note an answer to one's own."""
        if len(parts) == 3:
            asker, number, name = parts
            answer = orjson.dumps([number, self.groups.count_here(name)])
            self._command("PUBLISH", self._own(asker), answer)
        elif parts[0] in self.answers:
            self.answers[parts[0]].put_nowait(parts[1])


def redis_client(bus: Any) -> Callable[[], Any]:
    """Return what makes clients of Redis.

    Raises:
        ImportError: If `redis` isn't installed.
        TypeError: If *bus* is neither the URL of a Redis nor a function.
    """
    if callable(bus):
        return typing.cast("Callable[[], Any]", bus)
    schemes = ("redis://", "rediss://", "unix://")
    if not isinstance(bus, str) or not bus.startswith(schemes):
        must = f"bus must be the URL of a Redis, or a function: got {bus!r}"
        raise TypeError(f"{must}; write 'redis://localhost:6379'")
    try:
        from redis.asyncio import from_url  # noqa: PLC0415
    except ImportError as exc:
        must = f"bus needs redis ({exc})"
        raise ImportError(f"{must}; write python -m pip install redis") from exc
    return functools.partial(from_url, bus, socket_timeout=STANDING_TIMEOUT)


def groups_of(app: App) -> Groups:
    """Make the groups of an application, on its bus if it has one.

    Raises:
        ValueError: If there is a bus and no namespace.
    """
    if app.bus is None:
        return Groups(app.counts)
    if not app.namespace:
        must = "namespace must be given with a bus, on which all applications that have"
        must += " the same one hear each other"
        raise ValueError(
            f"{must}: got {app.namespace!r}; write namespace='chat-staging'"
        )
    return SharedGroups(app.counts, RedisBus(redis_client(app.bus), app.namespace))


App.groups_of = staticmethod(groups_of)


class Publisher:
    """Pushes from outside a server's process; `App.publisher` makes it.

    `async with app.publisher() as bus: await bus.to("room:42").push(...)`.
    """

    def __init__(self, app: App) -> None:
        if app.bus is None:
            must = "publisher needs a bus that is there without the server"
            raise RuntimeError(f"{must}; write App(bus='redis://localhost:6379')")
        self.codec = app.codec
        self.groups: Any = groups_of(app)
        self.groups.patterns = app.groups.patterns

    async def __aenter__(self) -> Self:
        await self.groups.start(Runtime(Threads(1)))
        try:
            async with asyncio.timeout(STANDING_TIMEOUT):
                await self.groups.bus.up.wait()
        except TimeoutError as exc:
            raise ConnectionError("the bus is away") from exc
        finally:
            if not self.groups.bus.is_up:
                await self.groups.stop()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.groups.stop()

    def to(self, name: str) -> Group:
        """Return the group of that name, to push to."""
        return Group(self, name, frozenset())


App.publisher_of = Publisher


# --- 12. For people ----------------------------------------------------------

# What every document has (AsyncAPI 3.1). An event is described by exactly one message:
# an `error` that has a code, whatever else it says; else a push where it has no method;
# else the `result`, or the `item`, of one method; or else it is an event of its own.
DOCUMENT = """{
  "asyncapi": "3.1.0",
  "info": {},
  "defaultContentType": "application/json",
  "channels": {},
  "operations": {},
  "components": {
    "correlationIds": {
      "request_id": {
        "description": "Of the call, unchanged.",
        "location": "$message.payload#/request_id"
      }
    },
    "schemas": {},
    "messages": {
      "error": {
        "description": "How a call failed.",
        "correlationId": {"$ref": "#/components/correlationIds/request_id"},
        "payload": {
          "type": "object",
          "required": ["request_id", "module", "method", "event", "data"],
          "properties": {
            "event": {"const": "error"},
            "data": {
              "type": "object",
              "required": ["code", "message"],
              "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "details": {},
                "retry": {"const": true}
              }
            }
          }
        }
      },
      "event": {
        "description": "What a handler says while it runs.",
        "correlationId": {"$ref": "#/components/correlationIds/request_id"},
        "payload": {
          "type": "object",
          "required": ["request_id", "module", "method", "event", "data"],
          "properties": {
            "module": {"type": "string"},
            "method": {"type": "string"},
            "event": {"type": "string", "not": {"enum": ["result", "item", "error"]}}
          }
        }
      },
      "push": {
        "description": "What the server says unasked, to one client or to a group.",
        "payload": {
          "type": "object",
          "required": ["request_id", "module", "method", "event", "data"],
          "properties": {
            "module": {"type": "string"},
            "method": {"type": "null"},
            "event": {"type": "string"},
            "group": {"type": "string"},
            "offset": {"type": "integer"}
          },
          "not": {"$ref": "#/components/messages/error/payload"}
        }
      }
    }
  }
}"""
SHARED_MESSAGES = ["error", "event", "push"]
SCHEMA_NAMES = ("string", "integer", "number", "boolean", "null", "array", "object")
SCHEMA_TYPES = dict(zip(TYPE_NAMES, SCHEMA_NAMES, strict=True))
REQUEST_ID: JSON = {"type": ["string", "integer", "null"]}
# What None becomes in a result.
NOTHING: JSON = {"type": "object", "maxProperties": 0}
UNDESCRIBED = "the AsyncAPI document has {} for what can't be described: %s"


def ref(*path: str) -> dict[str, str]:
    """Return a reference to what is at that path of the document."""
    parts = (each.replace("~", "~0").replace("/", "~1") for each in path)
    return {"$ref": "#/" + "/".join(map(urllib.parse.quote, parts))}


def unique(taken: Iterable[str], *texts: str) -> str:
    """Return a key that is free, made of one of the texts, the last one numbered."""
    keys = [re.sub(r"[^\w.-]", "_", text, flags=re.ASCII) for text in texts]
    numbered = (f"{keys[-1]}_{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain(keys, numbered) if each not in taken)


def documentation_of(documented: object) -> dict[str, str]:
    """Return a docstring as a description, where there is one."""
    text = inspect.cleandoc(documented.__doc__ or "")
    return {"description": text} if text else {}


def as_json(value: Any) -> JSON:
    """Return a value as a client would see it; raises TypeError for what is no JSON."""
    return orjson.loads(dumps_all(value))


def return_of(method: Method) -> Any:
    """Return the annotation of what a handler returns, or yields.

    Raises:
        TypeError: If it can't be resolved.
    """
    function = method.function
    annotation = inspect.signature(function, **SIGNATURE_OPTIONS).return_annotation
    found = resolve(function, "return", annotation)
    kind, parts = typing.get_origin(found), typing.get_args(found)
    if method.kind is STREAM:
        return parts[0] if parts else Any
    is_awaited = isinstance(kind, type) and hasattr(kind, "__await__")
    return parts[-1] if is_awaited else found


def adapter_of(annotation: Any) -> Any:
    """Return what pydantic describes a type with; raises whatever where it can't."""
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(annotation)


def generator_of(unknown: list[str]) -> Any:
    """Return what makes JSON Schemas of pydantic's; it notes what has none."""
    from pydantic.json_schema import GenerateJsonSchema  # noqa: PLC0415

    class Generator(GenerateJsonSchema):
        # A model is read by the aliases of its fields, and written by their names.
        by_alias: Any = property(lambda me: me.mode == "validation", lambda *_: None)

        def handle_invalid_for_json_schema(self, _: Any, error_info: str) -> Any:
            unknown.append(error_info)
            return {}

        def tagged_union_schema(self, schema: Any) -> Any:
            made = super().tagged_union_schema(schema)
            # AsyncAPI has another one of that name.
            made.pop("discriminator", None)
            return made

        def emit_warning(self, *_: Any) -> None:
            """Leave out a default that is no JSON."""

    return Generator


class Document:
    """The AsyncAPI document of an application, while it is made.

    Attributes:
        whole: All of it.
        messages: Its messages by their keys, once for each method.
        keys: Those of each method: of the call, then of the answers.
        adapters: Schemas that pydantic is going to fill, with their modes and types.
        unknown: What can't be described.
    """

    def __init__(self, app: App) -> None:
        self.whole: dict[str, Any] = orjson.loads(DOCUMENT)
        self.whole["info"] = {"title": app.title, "version": app.version}
        self.messages: dict[str, Any] = self.whole["components"]["messages"]
        self.keys: dict[Method, list[str]] = {}
        self.adapters: list[tuple[dict[str, JSON], str, Any]] = []
        self.unknown: list[str] = []

    def make(self, app: App) -> dict[str, Any]:
        """Describe the table; what can't be described is {}, and one warning."""
        for method in app.table.methods:
            self._add_messages(method)
        for route in app.table.routes.values():
            self._add_channel(route)
        self.whole["x-wsappy-groups"] = {
            each.path.text: {"history": each.history, **documentation_of(each.guard)}
            for each in app.groups.patterns
        }
        if self.adapters:
            self._fill()
        if self.unknown:
            LOGGER.warning(UNDESCRIBED, "; ".join(dict.fromkeys(self.unknown)))
        return self.whole

    # Messages

    def _add_messages(self, method: Method) -> None:
        """Add the call of a method, and its answers."""
        annotation = run(return_of, method)
        if type(annotation) is Failure:
            self.unknown.append(str(annotation.exc))
        if type(annotation) is Failure or method.answers_itself:
            annotation = Any
        parts = {"": self._arguments_of(method), "result": NOTHING}
        if method.kind is STREAM:
            parts["item"] = self._schema_of(annotation, "serialization")
        else:
            parts["result"] = self._result_of(annotation)
        added = [self._add_message(method, *each) for each in parts.items()]
        self.keys[method] = [*added, "event", "error"]

    def _add_message(self, method: Method, event: str, data: dict[str, JSON]) -> str:
        module, name = method.names
        properties = {"request_id": REQUEST_ID, "module": {"const": module}}
        properties |= {"method": {"const": name}, "data": data}
        properties["event"] = {"const": event} if event else False
        call = ["module", "method", *["data"] * bool(method.required)]
        required = list(properties) if event else call
        payload = {"type": "object", "required": required, "properties": properties}
        key = unique(self.messages, ".".join([module, name, event]).rstrip("."))
        correlation = ref("components", "correlationIds", "request_id")
        self.messages[key] = {"correlationId": correlation, "payload": payload}
        return key

    def _arguments_of(self, method: Method) -> dict[str, JSON]:
        """Describe the data of a call."""
        properties = dict[str, Any]()
        defaults = {each.name: each.default for each in method.parameters}
        for name, hint in method.hints.items():
            properties[name] = self._schema_of(hint, "validation")
            default = run(as_json, defaults.get(name, inspect.Parameter.empty))
            if type(default) is not Failure:
                properties[name]["default"] = default
        rest = method.rest_hint
        more = rest is not None and self._schema_of(rest, "validation")
        return {
            "type": "object" if method.required else ["object", "null"],
            "properties": properties,
            "required": [name for name in properties if name in method.required],
            "additionalProperties": more,
        }

    def _result_of(self, annotation: Any) -> dict[str, JSON]:
        """Describe what a handler returns; None becomes {}."""
        is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        members = typing.get_args(annotation) if is_union else (annotation,)
        left = tuple(each for each in members if each is not types.NoneType)
        if not left:
            # It may send a result of its own.
            return {"default": {}}
        schema = self._schema_of(typing.Union[left], "serialization")  # noqa: UP007
        return schema if left == members else {"anyOf": [schema, NOTHING]}

    def _schema_of(self, annotation: Any, mode: str) -> dict[str, JSON]:
        """Return the JSON Schema of a type, be it that pydantic has yet to fill it."""
        accepted = plain_types(annotation)
        schema: dict[str, JSON] = {}
        if accepted and object not in accepted:
            left = accepted - {int} if float in accepted else accepted
            names = [name for kind, name in SCHEMA_TYPES.items() if kind in left]
            schema["type"] = names[0] if len(names) == 1 else names
        elif not accepted:
            adapter = run(adapter_of, annotation)
            if type(adapter) is Failure:
                self.unknown.append(str(adapter.exc).partition("\n")[0])
            else:
                self.adapters.append((schema, mode, adapter))
        return schema

    def _fill(self) -> None:
        """Let pydantic describe all types together: it tells input from output."""
        describe = functools.partial(
            type(self.adapters[0][2]).json_schemas,
            ref_template="#/components/schemas/{model}",
            schema_generator=generator_of(self.unknown),
        )
        rows = [(number, *each[1:]) for number, each in enumerate(self.adapters)]
        for row in rows if type(run(describe, rows)) is Failure else ():
            alone = run(describe, [row])
            if type(alone) is Failure:
                self.unknown.append(str(alone.exc))
                rows = [each for each in rows if each is not row]
        schemas, more = describe(rows)
        self.whole["components"]["schemas"] = more.get("$defs", {})
        for (number, _), schema in schemas.items():
            self.adapters[number][0].update(schema)

    # Channels

    def _add_channel(self, route: Route) -> None:
        """Add a route, and an operation for each of its methods."""
        path = route.path.text
        methods = [each for each in route.methods.values() if each in self.keys]
        keys = [key for each in methods for key in self.keys[each]] + SHARED_MESSAGES
        own = getattr(route.kind, "on_message", Client.on_message)
        if own is not Client.on_message:
            # Raw messages are of another protocol.
            methods, keys = [], []
        converters = route.path.converters.items()
        self.whole["channels"][path] = {
            "address": PARAMETER.sub(r"{\1}", path),
            "parameters": {name: {"description": each} for name, each in converters},
            "messages": {key: ref("components", "messages", key) for key in keys},
            **({} if route.kind is Client else documentation_of(route.kind)),
        }
        for method in methods:
            self._add_operation(path, method)

    def _add_operation(self, path: str, method: Method) -> None:
        channel, keys = ref("channels", path), self.keys[method]
        call, *answers = [ref("channels", path, "messages", each) for each in keys]
        owner = getattr(method.function, "__self__", None)
        module = {} if owner is None else documentation_of(type(owner))
        guards = [layers_of(each)[-1].__qualname__ for each in method.guards]
        operations, name = self.whole["operations"], "_".join(method.names)
        operations[unique(operations, name, name + path)] = {
            "action": "receive",
            "channel": channel,
            "messages": [call],
            "reply": {"channel": channel, "messages": answers},
            "tags": [{"name": method.names[0], **module}],
            **documentation_of(layers_of(method.function)[-1]),
            **({"x-wsappy-stream": True} if method.kind is STREAM else {}),
            **({"x-wsappy-allow": guards} if guards else {}),
        }


DOCUMENTS: weakref.WeakKeyDictionary[App, tuple[Any, bytes]] = (
    weakref.WeakKeyDictionary()
)
DOCUMENT_LOCK = threading.Lock()


def document_of(app: App) -> bytes:
    """Return the AsyncAPI document as JSON; it is made again if the table has grown."""
    rows = app.table.routes, app.table.methods, app.groups.patterns
    size = [len(each) for each in rows]
    with DOCUMENT_LOCK:
        made_of, payload = DOCUMENTS.get(app, (None, b""))
        if made_of != size:
            payload = json.dumps(Document(app).make(app)).encode()
            DOCUMENTS[app] = size, payload
    return payload


CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
# Bytes of the largest file that is sent.
MAX_FILE = 2**22


class Folder:
    """The files of a folder, as a page for all that is below a path.

    Attributes:
        place: The path, decoded.
        root: The folder.
    """

    def __init__(self, path: str, folder: str | os.PathLike[str]) -> None:
        self.path = path
        self.place = place_of("folder", path)
        self.root = os.fspath(folder)

    def check(self) -> None:
        """Find the folder; raises ValueError if it isn't there."""
        self.root = os.path.abspath(self.root)
        if not os.path.isdir(self.root):
            who = f"folder of app.static({self.path!r}, ...)"
            raise ValueError(f"{who} must be there: got {self.root!r}; make it")

    async def answer(self, request: PageRequest) -> Any:
        """Answer a request with a file, read in a thread; or with 304, 308 or 404."""
        below = decode_path(request.path).removeprefix(self.place)
        return await asyncio.to_thread(self._find, below.split(SLASH)[1:], request)

    def _find(self, names: list[str], request: PageRequest) -> Any:
        has_slash = names[-1:] == [""]
        names = [*names[:-1], "index.html"] if has_slash else names
        if any(map(is_forbidden, names)):
            return MISSING
        try:
            path = self._resolve(names)
            if os.path.isdir(path) and not has_slash:
                return redirect_of(request)
            body = read_file(path)
        except (OSError, ValueError):
            return MISSING
        if body is None:
            LOGGER.error("%r has over %d bytes; use a web server", path, MAX_FILE)
            return 500, "internal error", SAFE
        return answer_of_file(path, body, request)

    def _resolve(self, names: list[str]) -> str:
        """Return the path of a file, without links.

        Raises:
            OSError: If it isn't there, or outside of the folder.
            ValueError: If no file can have that name.
        """
        root = os.path.realpath(self.root)
        path = os.path.realpath(os.path.join(root, *names), strict=True)
        if path != root and not path.startswith(os.path.join(root, "")):
            raise FileNotFoundError
        return path


SAFE = {"X-Content-Type-Options": "nosniff"}
MISSING = (404, "not found", SAFE)


def is_forbidden(name: str) -> bool:
    """Tell whether a name in a path is empty, hidden, or may lead out of the folder."""
    return name[:1] in ("", ".") or not set(name).isdisjoint("/\\:\0")


def redirect_of(request: PageRequest) -> Any:
    """Send a client to the same path with a slash at its end."""
    name = decode_path(request.path).rpartition(SLASH)[2]
    query = urllib.parse.urlencode(request.query)
    # Relative: a proxy may have cut the path.
    target = urllib.parse.quote(name) + (f"/?{query}" if query else "/")
    return 308, "", {"Location": target, **SAFE}


def read_file(path: str) -> bytes | None:
    """Read a file; None for one that is too large, OSError for what is no file."""
    # A pipe, say, would never end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileNotFoundError
    with open(path, "rb") as file:
        body = file.read(MAX_FILE + 1)
    return body if len(body) <= MAX_FILE else None


def answer_of_file(path: str, body: bytes, request: PageRequest) -> Any:
    """Answer with a file, unless the client has it."""
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", **SAFE}
    known = ",".join(request.headers.get_all("If-None-Match"))
    if tag in re.findall('"[^"]*"', known) or known.strip() == "*":
        return 304, "", headers
    suffix = os.path.splitext(path)[1].lower()
    kind = CONTENT_TYPES.get(suffix, "application/octet-stream")
    return 200, body, {"Content-Type": kind, **headers}


def add_folder(app: App, path: str, folder: str | os.PathLike[str]) -> None:
    """Register a folder; `App.static` does it."""
    made = Folder(path, folder)
    if made.place in app.trees:
        raise ValueError(f"folder {path!r} must be the only one there; write another")
    app.trees[made.place] = made.answer
    app.checks.append(made.check)


# The browser's client, an ES module.
CLIENT_SCRIPT = r"""// The browser's client of wsappy. All times are milliseconds.
//
//     import { connect } from "/wsappy.js";
//     const api = connect("/api");
//     console.log(await api.call("entity", "get", { item_id: 42 }));

const FIRST_WAIT = 250, MAX_WAIT = 15000; // Before what failed is tried again, at most.
const BEAT = 5000, PING_AT = 4, DEAD_AT = 6; // Beats without a word of the server.
const CHUNK = 50; // Groups joined again at a time: the server takes 100 calls at once.

/** How a call failed. The code is the server's, or "timeout", or "closed". */
export class ApiError extends Error {
  /** @param {{code: string, message?: string, details?: any, retry?: boolean}} data */
  constructor({ code, message, details, retry }) {
    super(message);
    this.name = "ApiError";
    this.code = code;
    this.details = details;
    this.retry = retry; // True where the same call may succeed later.
  }
}

const closedBy = (details) => new ApiError(
  { code: "closed", message: details.reason || `code ${details.code}`, details });
const isFinal = (code) => /^(1000|1007|1009|44(?!29)\d\d)$/.test(code);
const valueOf = (value) => (typeof value === "function" ? value() : value);
const waitOf = (tries) => Math.random() * Math.min(MAX_WAIT, FIRST_WAIT * 2 ** tries);

/** Connect, and again until it is closed or refused for good; calls wait meanwhile.
 * @param {string | URL | (() => any)} url Or a function, asked before each attempt.
 * @param {{token?: string | (() => any), timeout?: number}} [options] `token` goes into
 *   the query, and may be a function; `timeout` is that of calls, null for none. */
export function connect(url, { token, timeout: limit = 10000 } = {}) {
  const calls = new Map(), groups = new Map(); // Unfinished ones; those it is in.
  const hooks = new Set(), methods = new Map(), gone = new AbortController();
  let socket = null, ready = null, end = null; // `ready` is one that calls may use.
  let state = "connecting", lastId = 0, silent = 0, tries = 0;
  let goOn = (/** @type {any} */ why) => {}; // Ends a connection, or a wait for one.

  const control = (method, data, request_id = undefined) =>
    socket.send(JSON.stringify({ module: "$", method, data, request_id }));
  const emit = (module, event, ...all) => Promise.all([...hooks].map(async (hook) => {
    if (hook[0] !== module || hook[1] !== event) return;
    try { await hook[2](...all); } catch (error) { console.error(error); }
  }));
  const ask = (method, data, note, via = undefined) =>
    call("$", method, data, /** @type {any} */ ({ note, via }));
  const become = (next, why) => emit("$", "state", { state: (state = next), ...why });

  /** Make a call and yield its events; leaving that loop early cancels it. */
  async function* converse(module, method, data, /** @type {any} */ options) {
    const { timeout, signal, window, note, via = ready } = options;
    signal?.throwIfAborted();
    if (end) throw closedBy(end);
    const request_id = ++lastId, half = Math.ceil(window / 2), events = [];
    const text = JSON.stringify({ module, method, data, request_id, items: window });
    let taken = 0, arrived = (_ = undefined) => {};
    const put = (...event) => (note?.(...event), events.push(event), arrived());
    const send = (ws) => (call.via = ws).send(text);
    const call = { put, send, via: null }; // `via` is the socket that it was sent on.
    const abort = () => (events.length = 0, put("fail", signal.reason));
    const timer = timeout && timeout < 2 ** 31 && setTimeout(() => {
      if (window && call.via) return; // A stream may take as long as it likes.
      const message = call.via ? "no answer in time" : "no connection: it was not sent";
      put("fail", new ApiError({ code: "timeout", message, retry: true }));
    }, timeout);
    signal?.addEventListener("abort", abort);
    calls.set(request_id, call);
    try {
      if (via) send(via);
      for (let event, value; event !== "result";) {
        while (!events.length) await new Promise((resolve) => (arrived = resolve));
        [event, value] = events.shift();
        if (event === "fail") throw value;
        if (event === "error") throw new ApiError(value);
        yield [event, value];
        if (event === "item" && ++taken % half === 0 && calls.has(request_id))
          control("more", { request_id, items: half });
      }
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      if (calls.delete(request_id) && call.via) control("cancel", { request_id });
    }
  }

  /** Call the server and return the data of its result; throws ApiError.
   * @param {string} module @param {string} method @param {any} [data]
   * @param {{timeout?: number, signal?: AbortSignal,
   *   onEvent?: (event: string, data: any) => any}} [options] */
  async function call(module, method, data, options) {
    const all = { timeout: limit, ...options };
    for await (const [event, value] of converse(module, method, data, all)) {
      if (event === "result") return value;
      if (event === "item") throw new TypeError(`${module}.${method}: use api.stream`);
      all.onEvent?.(event, value);
    }
  }

  /** Call the server and loop over the items; at most `window` of them wait.
   * @param {string} module @param {string} method @param {any} [data]
   * @param {{signal?: AbortSignal, window?: number}} [options] */
  async function* stream(module, method, data, { signal, window = 100 } = {}) {
    const all = { timeout: limit, signal, window };
    for await (const [event, value] of converse(module, method, data, all)) {
      if (event === "item") yield value;
      if (event === "result" && JSON.stringify(value) !== "{}")
        throw new TypeError(`${module}.${method}: use api.call`);
    }
  }

  /** Handle a call of the server, an event of one of ours, or a push. */
  function receive(ws, message) {
    const { module, event, data, request_id: id, group, offset } = message;
    const call = calls.get(id), place = groups.get(group), next = place?.offset + 1;
    silent = 0;
    if (event === undefined) return answer(ws, message);
    if (event === "result" || event === "error") calls.delete(id);
    if (id !== null) return call?.put(event, data);
    if (module === "$") Object.assign(groups.get(data.group) ?? {}, data); // A gap.
    if (offset > next) return place.isJoining || rejoin(group, place);
    if (offset < next) return; // It was here already.
    if (offset === next) Object.assign(place, { offset, tries: 0 });
    emit(module, event, data, message);
  }

  async function answer(ws, { module, method, data, request_id }) {
    const say = (event, data) =>
      ws.send(JSON.stringify({ request_id, module, method, event, data }));
    try {
      const handler = methods.get(`${module}\n${method}`), code = "unknown_method";
      if (!handler) throw new ApiError({ code, message: "no such module or method" });
      say("result", (await handler(data ?? {})) ?? {});
    } catch (error) {
      const { code, message, details, retry } = error;
      const isMeant = error instanceof ApiError;
      if (isMeant) return say("error", { code, message, details, retry });
      console.error(error);
      say("error", { code: "internal", message: "internal error" });
    }
  }

  /** Join a group from where it was left; pushes right after the answer count on. */
  async function join(group, place, via) {
    const { offset, epoch } = place, since = epoch && { offset, epoch };
    const note = (event, data) => {
      place.isJoining = false;
      if (event !== "result") return;
      groups.set(group, Object.assign(place, data));
      if (data.recovered === false) emit("$", "gap", data);
    };
    place.isJoining = true;
    await ask("subscribe", { group, since }, note, via);
  }

  /** Join a group again until it works or is refused; at once if the socket is new. */
  async function rejoin(group, place, via) {
    place.isJoining = true;
    try {
      if (!via) await new Promise((go) => setTimeout(go, waitOf(place.tries++)));
      if (place.isJoining && groups.get(group) === place) await join(group, place, via);
    } catch (error) {
      if (error.retry) rejoin(group, place);
      else if (error.code !== "closed" && groups.delete(group))
        console.warn(`wsappy: group ${group} can't be joined again:`, error);
    }
  }

  /** Log in and join the groups again; then the calls that wait go out. */
  async function greet(ws) {
    await emit("$", "connected", (module, method, data, options) =>
      call(module, method, data, { ...options, via: ws }));
    for (const all = [...groups]; all.length && ws === socket;)
      await Promise.all(all.splice(0, CHUNK).map((each) => rejoin(...each, ws)));
    if (ws !== socket) return;
    ready = ws;
    for (const call of calls.values()) if (!call.via) call.send(ws);
    become("connected");
  }

  /** Connect once, and return why that ended. */
  async function attempt() {
    become("connecting");
    const place = new URL(await valueOf(url), globalThis.location?.href);
    const secret = await valueOf(token);
    if (secret) place.searchParams.set("token", secret);
    place.protocol = place.protocol.replace("http", "ws");
    if (end) return end;
    const ws = (socket = new WebSocket(place));
    silent = 0;
    const beat = setInterval(() => {
      tries = 0;
      if (++silent === PING_AT && ws.readyState === 1) control("ping", {}, ++lastId);
      if (silent >= DEAD_AT) goOn({ code: 1006, reason: "no answer" });
    }, BEAT);
    const why = await new Promise((resolve) => {
      goOn = ws.onclose = resolve;
      ws.onopen = () => greet(ws);
      ws.onmessage = ({ data }) => receive(ws, JSON.parse(data));
      ws.onerror = () => {}; // The `ws` of npm wants one.
    });
    clearInterval(beat);
    ws.onopen = ws.onmessage = ws.onclose = null;
    ws.close(1000); // Nobody waits for the answer: the server may be gone.
    return { code: why.code, reason: why.reason };
  }

  async function live() {
    while (state !== "closed") {
      const failed = (error) => ({ code: 1006, reason: `${error}` });
      const why = end ?? (await attempt().catch(failed));
      socket = ready = null;
      if (isFinal(why.code)) end ??= why;
      for (const [id, call] of calls)
        if ((end || call.via) && calls.delete(id)) call.put("fail", closedBy(why));
      become(end ? "closed" : "waiting", why);
      const pause = (resolve) => setTimeout((goOn = resolve), waitOf(tries++));
      if (!end) await new Promise(pause);
    }
    gone.abort();
  }

  for (const event of ["online", "pageshow", "visibilitychange"])
    globalThis.addEventListener?.(event, () => {
      if (globalThis.document?.hidden) return;
      if (!socket) goOn(null);
      if (!ready || silent >= PING_AT) return;
      silent = PING_AT;
      control("ping", {}, ++lastId);
    }, { signal: gone.signal });
  live();
  return {
    call, stream,
    /** @param {string} name @returns {any} */
    module: (name) => new Proxy({}, { get: (_, method) =>
      method !== "then" && ((...rest) => call(name, String(method), ...rest)) }),
    /** Hear pushes as `(data, push)`; of "$" there are "state", "gap" and "connected".
     * @param {[module: string, event: string, hear: (...all: any) => any]} hook */
    on(...hook) {
      hooks.add(hook);
      return () => void hooks.delete(hook);
    },
    /** Answer the server's calls.
     * @param {string} module @param {string} method @param {(data: any) => any} give */
    method(module, method, give) { methods.set(`${module}\n${method}`, give); },
    /** @param {string} group */
    subscribe: (group) => join(group, groups.get(group) ?? { tries: 0 }),
    /** @param {string} group */
    unsubscribe: (group) => ask("unsubscribe", { group }, () => groups.delete(group)),
    close() { goOn((end ??= { code: 1000, reason: "" })); },
    get state() { return state; },
  };
}
"""


def answer_script(request: PageRequest) -> Any:
    """Answer with the browser's client, which pages of any origin may import."""
    answer = answer_of_file("wsappy.js", CLIENT_SCRIPT.encode(), request)
    return *answer[:2], {**answer[2], "Access-Control-Allow-Origin": "*"}


async def answer_document(app: App, request: PageRequest) -> Any:
    """Answer with the AsyncAPI document, which may take a second to make."""
    body = await asyncio.to_thread(document_of, app)
    scope = request.scope or {}
    if prefix := scope.get("root_path"):
        scheme = "wss" if scope.get("scheme") == "https" else "ws"
        server = {"host": request.headers.get("Host", ""), "protocol": scheme}
        servers = {"mounted": {**server, "pathname": prefix}}
        body = json.dumps({**json.loads(body), "servers": servers}).encode()
    return answer_of_file("asyncapi.json", body, request)


# What the page may do, with the hashes of its style and its script.
PAGE_POLICY = (
    "default-src 'none'; style-src {0}; script-src 'self' {1}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The page where people see and try every method.
PAGE = r"""<!doctype html>
<html lang="en" data-depth="1">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>API</title><link rel="icon" href="data:,">
<style>
:root {
  color-scheme: light dark; accent-color: var(--accent);
  --page: light-dark(#f5f6f8, #14171c); --card: light-dark(#fff, #1c2027);
  --line: light-dark(#d5d9e0, #343b47); --quiet: light-dark(#5c6470, #9aa4b2);
  --accent: light-dark(#0b6b63, #4fd1c0); --ink: light-dark(#fff, #0f1418);
  --bad: light-dark(#b3261e, #ff8a80); --good: light-dark(#1a7f37, #6fdd8b);
  --code: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); font: 15px/1.5 system-ui, sans-serif; }
header { position: sticky; top: 0; z-index: 1; padding: .6rem 1.2rem; display: flex;
  flex-wrap: wrap; gap: .3rem 2rem; align-items: center; background: var(--card);
  border-bottom: 1px solid var(--line); }
h1 { font-size: 1.2rem; margin: 0; } h2 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
h3 { font: 600 .95rem var(--code); display: inline; }
p { margin: .3rem 0; white-space: pre-line; }
small, .quiet { color: var(--quiet); font-size: .85rem; font-weight: normal; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
#state::before { content: "● "; color: var(--quiet); }
#state[data-state=connected]::before { color: var(--good); }
#state[data-state=closed]::before, .fault, .error > b { color: var(--bad); }
#layout { display: grid; grid-template-columns: minmax(0, 1fr) minmax(20rem, 28rem);
  gap: 0 2rem; max-width: 90rem; margin: auto; padding: 1rem 1.2rem 4rem; }
input, select, textarea, button { font: inherit; color: inherit; max-width: 100%;
  padding: .3rem .5rem; border: 1px solid var(--line); border-radius: 6px;
  background: var(--page); }
textarea { font: .85rem/1.4 var(--code); width: 100%; field-sizing: content; }
textarea { max-height: 22rem; } [aria-invalid=true] { border-color: var(--bad); }
button { padding: .3rem .9rem; border-color: var(--accent); color: var(--accent); }
button.main { background: var(--accent); color: var(--ink); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#filter { width: 100%; background: var(--card); }
article, .card { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; margin: 0 0 .6rem; }
article { content-visibility: auto; contain-intrinsic-size: auto 2.9rem; }
summary { padding: .6rem .9rem; cursor: pointer; overflow-wrap: anywhere; }
summary code { font: .85rem var(--code); color: var(--quiet); }
.badge { font-size: .75rem; padding: .05rem .5rem; border: 1px solid var(--line);
  border-radius: 1rem; margin-left: .5rem; color: var(--quiet); white-space: nowrap; }
.body { padding: 0 .9rem .9rem; }
.field { display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: .1rem .8rem;
  margin: .7rem 0; align-items: baseline; }
.field > :is(small, .fault) { grid-column: -2; }
.field > label, .entry > b { font: 600 .85rem var(--code); overflow-wrap: anywhere; }
[role=log] { max-height: min(24rem, 34vh); overflow: auto; }
aside [role=log]:empty::before { content: "Nothing yet."; color: var(--quiet); }
.entry { border-top: 1px solid var(--line); padding: .25rem 0; }
.entry > small { float: right; } .entry > pre { display: inline; }
pre { font: .82rem/1.45 var(--code); white-space: pre-wrap; overflow-wrap: anywhere; }
.out > b, .badge.stream { color: var(--accent); } .in, .out { word-break: break-all; }
aside { position: sticky; top: 4.2rem; align-self: start; overflow: auto;
  max-height: calc(100vh - 5rem); }
.card { padding: .6rem .9rem; } .card h2 { margin: 0 0 .3rem; }
#asked .card { border: 2px solid var(--accent); }
section:not(:has(article:not([hidden]))) { display: none; }
@media (max-width: 60rem) {
  header, aside { position: static; max-height: none; }
  #layout, .field { grid-template-columns: minmax(0, 1fr); }
}
</style>
<header>
  <h1></h1>
  <form id="connection" class="row" aria-label="Connection">
    <label>Route <select id="route"></select></label>
    <span id="params" class="row"></span>
    <label>Query <input id="query" size="14" placeholder="token=…"></label>
    <button id="toggle">Connect</button>
    <output id="state">not connected</output>
  </form>
</header>
<div id="layout"><main>
    <input id="filter" type="search" aria-label="Filter" placeholder="Filter methods">
    <p id="about" class="quiet"></p>
    <div id="methods"><noscript>This page needs JavaScript.</noscript></div>
  </main><aside>
    <div id="asked" aria-live="polite"></div>
    <form id="join" class="card">
      <h2>Groups</h2>
      <input id="group" aria-label="Group" list="patterns" size="16">
      <datalist id="patterns"></datalist> <button>Join</button>
      <p id="fault" class="fault" role="status"></p>
      <div id="joined" class="row"></div>
    </form>
    <div class="card"><h2>Pushes</h2>
      <div id="pushes" role="log" tabindex="0" aria-label="Pushes"></div>
    </div>
    <div class="card"><h2>On the wire</h2>
      <div id="wire" role="log" tabindex="0" aria-live="off" aria-label="Wire"></div>
    </div>
</aside></div>
<script type="module">
const $ = (id) => document.getElementById(id);
/** Make an element. What comes from the server goes in as text, never as markup. */
function make(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {}))
    name in node ? (node[name] = value) : node.setAttribute(name, value);
  node.append(...children.filter((each) => each));
  return node;
}
const onSubmit = (form, act) =>
  (form.onsubmit = (event) => (event.preventDefault(), act()));

// The page may be behind a prefix, and have a slash at its end.
const parts = location.pathname.replace(/\/$/, "").split("/");
const base = parts.slice(0, parts.length - document.documentElement.dataset.depth);
const { connect, ApiError } = await import([...base, "wsappy.js"].join("/"));
const spec = await (await fetch([...base, "asyncapi.json"].join("/"))).json();

/** Follow references to what they mean. */
function follow(schema) {
  const find = (node, key) =>
    node[decodeURIComponent(key).replaceAll("~1", "/").replaceAll("~0", "~")];
  while (schema.$ref) schema = schema.$ref.slice(2).split("/").reduce(find, spec);
  return schema;
}
const choicesOf = ({ anyOf, oneOf, allOf }) => anyOf ?? oneOf ?? allOf;

/** Write a type in a few words; models by their names, below the second level. */
function shape(schema, level = 0) {
  const name = schema.$ref?.split("/").at(-1), found = follow(schema);
  const { type = "any", items, properties, required = [], format } = found;
  const values = "const" in found ? [found.const] : found.enum;
  if (name && level > 1) return name;
  if (values) return values.map((each) => JSON.stringify(each)).join(" | ");
  const choices = choicesOf(found)?.map((each) => shape(each, level));
  if (choices) return choices.join(" | ");
  if (found.maxProperties === 0 || (type === "any" && found.default)) return "nothing";
  if (items) return `${shape(items, level + 1)}[]`;
  const inner = properties && Object.entries(properties).map(([key, each]) =>
    `${key}${required.includes(key) ? "" : "?"}: ${shape(each, level + 1)}`);
  return inner ? `{${inner.join(", ")}}` : format ?? [type].flat().join(" | ");
}
function typesOf(schema) {
  const found = follow(schema), value = found.const ?? found.enum?.[0];
  if (value !== undefined) return [typeof value];
  return choicesOf(found)?.flatMap(typesOf) ?? [found.type ?? "any"].flat();
}

/** Make a value that fits, to be changed by whoever calls. */
function example(schema, level = 0) {
  const found = follow(schema), { properties = {}, items } = found;
  const known = found.default ?? found.const ?? found.enum?.[0];
  if (known !== undefined || level > 4) return known ?? null;
  if (choicesOf(found)) return example(choicesOf(found)[0], level);
  if (items) return [example(items, level + 1)];
  const pairs = Object.entries(properties).map(([key, each]) =>
    [key, example(each, level + 1)]);
  const object = Object.fromEntries(pairs);
  const all = { string: "", integer: 0, number: 0, boolean: false, array: [], object };
  return all[typesOf(found)[0]] ?? null;
}

/** Read JSON; what is none goes as a string: the server says what is wrong with it. */
function parse(text) { try { return JSON.parse(text); } catch { return text; } }
const pretty = (value, text = JSON.stringify(value) ?? "") =>
  (text.length > 60 ? JSON.stringify(value, null, 2) : text);

let lastField = 0;
/** Make the field of one argument; `read` gives undefined where it is left out. */
function makeField(name, schema, isRequired) {
  const found = follow(schema), types = typesOf(schema), id = `field-${++lastField}`;
  const isText = types.every((each) => each === "string" || each === "null");
  const isBig = types.includes("object") || types.includes("array");
  const values = found.enum ?? (types.join() === "boolean" ? [true, false] : null);
  const write = (value) => (typeof value === "string" && isText ? value
    : JSON.stringify(value, null, isBig ? 2 : 0));
  const preset = schema.default ?? found.default;
  const byDefault = preset === undefined ? "" : `default: ${write(preset)}`;
  const input = make(values ? "select" : isBig ? "textarea" : "input", { id, name,
    spellcheck: false, autocomplete: "off", "aria-describedby": `${id}-fault` });
  if (values) input.append(...["", ...values.map(write)].map(
    (each) => new Option(each || byDefault, each)));
  else if (isBig && isRequired) input.value = write(example(schema));
  else input.placeholder = byDefault;
  const fault = make("div", { id: `${id}-fault`, className: "fault", role: "status" });
  const hint = [shape(schema), isRequired && "required", found.description];
  const node = make("div", { className: "field" }, make("label", { htmlFor: id }, name),
    input, make("small", null, hint.filter(Boolean).join(" · ")), fault);
  const read = () => {
    const text = input.value;
    if (!text && !(isRequired && isText && !values)) return undefined;
    return isText && text !== "null" ? text : parse(text);
  };
  const blame = (message) =>
    input.setAttribute("aria-invalid", (fault.textContent = message) !== "");
  return { name, node, read, blame };
}

/** Add an entry to a log, and forget the oldest one. */
function note(log, kind, title, text, remark) {
  const isAtEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 30;
  log.append(make("div", { className: `entry ${kind}` }, make("b", null, `${title} `),
    remark && make("small", null, remark), text && make("pre", null, text)));
  if (log.childElementCount > 200) log.firstElementChild.remove();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

/** Make what one method needs to be called; it is made when somebody opens it. */
function makeForm({ module, method, data, isStream, description, allow, answer }) {
  const { properties, required, additionalProperties: rest } = data;
  const fields = Object.entries(properties).map(([name, schema]) =>
    makeField(name, schema, required.includes(name)));
  const others = { type: "object", description: `any other: ${shape(rest || {})}` };
  if (rest) fields.push(makeField("**", others));
  const button = make("button", { className: "main" }, "Call");
  const log = make("div", { role: "log", tabIndex: 0, "aria-label": "Answers" });
  const form = make("form", null, ...fields.map(({ node }) => node), button);
  let running = null;

  async function call(signal, say) {
    const pairs = fields.map(({ name, read }) => [name, read()]);
    const { "**": more, ...named } = Object.fromEntries(pairs);
    const given = { ...named, ...more }, all = { signal, timeout: null, onEvent: say };
    let count = 0;
    if (!api) open();
    if (!isStream) return say("result", await api.call(module, method, given, all));
    for await (const item of api.stream(module, method, given, { signal })) {
      say("item", item, ++count);
      // A fast stream waits for the page, which stays usable.
      if (count % 20 === 0) await new Promise(requestAnimationFrame);
    }
    say("result", {});
  }

  function fail({ name, code = name, message, details }, say) {
    const faults = code === "bad_data" ? details : null;
    say(code, details && !faults ? { message, details } : message, "", "error");
    for (const { argument, message } of faults ?? []) {
      const [name, inner] = argument.split(/\.(.*)/), text = `${inner}: ${message}`;
      fields.find((field) => field.name === name)?.blame(inner ? text : message);
    }
    form.querySelector("[aria-invalid=true]")?.focus();
  }

  onSubmit(form, async () => {
    if (running) return running.abort();
    const { signal } = (running = new AbortController()), begun = performance.now();
    const say = (event, value, number = "", kind = event) => {
      const time = `${Math.round(performance.now() - begun)} ms`;
      note(log, kind, `${event} ${number}`, pretty(value), time);
      log.scrollIntoView({ block: "nearest" });
    };
    fields.forEach((field) => field.blame(""));
    button.textContent = "Cancel";
    await call(signal, say).catch((error) =>
      (signal.aborted ? say("cancelled", undefined) : fail(error, say)));
    running = null;
    button.textContent = "Call";
  });
  form.onkeydown = ({ key, ctrlKey, metaKey }) =>
    void (key === "Enter" && (ctrlKey || metaKey) && form.requestSubmit());
  return make("div", { className: "body" }, description && make("p", null, description),
    allow && make("p", null, `Only for whom ${allow.join(" and ")} lets in.`), form,
    make("p", { className: "quiet" }, answer), log);
}

/** Make the entry of an operation in the list. */
function makeArticle({ description, messages, reply, ...more }) {
  const { "x-wsappy-stream": isStream, "x-wsappy-allow": allow } = more;
  const [call, ...answers] = [...messages, ...reply.messages].map(
    (each) => follow(each).payload.properties);
  const module = call.module.const, method = call.method.const, { data } = call;
  const event = isStream ? "item" : "result", name = `${module}.${method}`;
  const said = answers.find((each) => each.event.const === event).data;
  const takes = shape(data, 1).slice(1, -1);
  const badge = (text, kind) => make("span", { className: `badge ${kind}` }, text);
  const summary = make("summary", null, make("h3", null, name), " ",
    make("code", null, `(${takes}) → ${shape(said, 2)}`),
    isStream && badge("stream", "stream"), allow && badge(`if ${allow.join(", ")}`));
  const details = make("details", null, summary), answer = `${event}: ${shape(said)}`;
  const all = { module, method, data, isStream, description, allow, answer };
  // On the click, and not on `toggle`, which comes too late for the next Tab.
  summary.onclick = () => void (summary.nextSibling || details.append(makeForm(all)));
  return make("article", { "aria-label": name }, details);
}

/** Show the methods of a route, by modules. */
function showRoute() {
  const channel = spec.channels[$("route").value], modules = new Map();
  for (const each of Object.values(spec.operations)) {
    const [{ name, description }] = each.tags;
    if (follow(each.channel) !== channel) continue;
    const title = make("h2", null, `${name} `, make("small", null, description ?? ""));
    if (!modules.has(name)) modules.set(name, make("section", null, title));
    modules.get(name).append(makeArticle(each));
  }
  $("methods").replaceChildren(...modules.values());
  $("about").textContent = channel.description ?? "";
  $("params").replaceChildren(...Object.entries(channel.parameters).map(
    ([name, { description: placeholder }]) => make("label", null, `${name} `,
      make("input", { name, placeholder, size: 8, required: true }))));
}

let api = null;
/** Shows what is on the wire, before the client hears it. */
globalThis.WebSocket = class extends WebSocket {
  hearing = this.addEventListener("message", ({ data }) => hear(data));
  send(text) { super.send(text), note($("wire"), "out", "→", text); }
};
function hear(text) {
  const { module, method, event, data, request_id: id, group } = JSON.parse(text);
  const isPush = event && id === null && method === null;
  note($("wire"), "in", "←", text);
  if (!event) api?.method(module, method, (data) => ask(module, method, data));
  if (isPush) note($("pushes"), "push", `${module}.${event}`, pretty(data), group);
}

/** Let whoever looks at the page answer a call of the server. */
function ask(module, method, data) {
  const name = `${module}.${method}`;
  const text = make("textarea", { value: "true", "aria-label": "Answer" });
  const refuse = make("button", { type: "button" }, "Refuse");
  const form = make("form", { className: "card", "aria-label": name },
    make("h2", null, `The server calls ${name}`), make("pre", null, pretty(data)), text,
    make("p", null, make("button", { className: "main" }, "Answer"), " ", refuse));
  $("asked").append(form);
  return new Promise((resolve, reject) => {
    onSubmit(form, () => resolve(parse(text.value)));
    const error = new ApiError({ code: "refused", message: "refused by hand" });
    refuse.onclick = () => reject(error);
  }).finally(() => form.remove());
}
function showState({ state, code, reason }) {
  $("state").textContent = [state, code, reason].filter(Boolean).join(" ");
  $("state").dataset.state = state;
  $("toggle").textContent = state === "closed" ? "Connect" : "Disconnect";
  if (state !== "closed") return;
  api = null;
  for (const id of ["joined", "asked"]) $(id).replaceChildren();
}
function open() {
  const { address } = spec.channels[$("route").value];
  const path = address.replace(/\{(\w+)\}/g, (_, name) => {
    const { value, placeholder } = $("params").querySelector(`[name="${name}"]`);
    return placeholder === "path" ? encodeURI(value) : encodeURIComponent(value);
  });
  const query = $("query").value.replace(/^\??(?=.)/, "?");
  const made = (api = connect(base.join("/") + path + query));
  made.on("$", "state", (now) => made === api && showState(now));
  showState(made);
}

onSubmit($("connection"), () => (api ? api.close() : open()));
onSubmit($("join"), async () => {
  const name = $("group").value;
  const leave = make("button", { type: "button" }, `Leave ${name}`);
  leave.onclick = () => (leave.remove(), api?.unsubscribe(name));
  $("fault").textContent = "";
  if (!api) open();
  await api.subscribe(name).then(() => $("joined").append(leave),
    ({ code, message }) => ($("fault").textContent = `${code}: ${message}`));
});
$("route").onchange = () => (api?.close(), showRoute());
$("filter").oninput = () => {
  const wanted = $("filter").value.toLowerCase();
  for (const article of document.querySelectorAll("article"))
    article.hidden = !article.textContent.toLowerCase().includes(wanted);
};

const { title, version } = spec.info;
document.title = title;
document.querySelector("h1").append(`${title} `, make("small", null, version));
$("route").append(...Object.keys(spec.channels).map((path) => new Option(path)));
for (const [name, { description = "" }] of Object.entries(spec["x-wsappy-groups"])) {
  $("patterns").append(new Option(name));
  $("join").append(make("p", { className: "quiet" }, `${name} ${description}`));
}
showRoute();
if (!$("params").childElementCount) open();
</script>
"""


def answer_docs(depth: int, request: PageRequest) -> Any:
    """Answer with the page, whose path has *depth* segments."""
    page = PAGE.replace('data-depth="1"', f'data-depth="{depth}"')
    status, body, headers = answer_of_file("docs.html", page.encode(), request)
    inline = re.findall("<(?:style|script type=.module.)>(.*?)</", PAGE, re.DOTALL)
    digests = [hashlib.sha256(each.encode()).digest() for each in inline]
    hashes = [f"'sha256-{base64.b64encode(each).decode()}'" for each in digests]
    policy = PAGE_POLICY.format(*hashes)
    return status, body, {**headers, "Content-Security-Policy": policy}


def pages_of(app: App) -> dict[str, Callable[..., Any]]:
    """Return the pages that every application has, by their path."""
    pages: dict[str, Callable[..., Any]] = {"/wsappy.js": answer_script}
    if app.docs is not None:
        pages["/asyncapi.json"] = functools.partial(answer_document, app)
        depth = place_of("page", app.docs).count(SLASH)
        pages[app.docs] = functools.partial(answer_docs, depth)
    return pages


App.pages_of = staticmethod(pages_of)


# --- 13. ASGI ----------------------------------------------------------------

# What may stand in a path as it is (RFC 3986, section 3.3).
IN_PATH = "/:@!$&'()*+,;=~"
# What hosts call the answer to a handshake that is refused; not all know it.
DENIAL = "websocket.http.response"


def request_of(scope: dict[str, Any]) -> websockets.Request:
    """Read what a host says of a request; its path begins after that of a mount."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if f"{path}/".startswith(f"{root}/"):
        path = path.removeprefix(root)
    if not scope.get("raw_path", b"/").endswith(b"/"):
        # Litestar adds one.
        path = path.removesuffix("/")
    target = urllib.parse.quote(path or "/", IN_PATH, errors="replace")
    if query := scope["query_string"].decode("latin-1"):
        target = f"{target}?{query}"
    pairs = ((a.decode("latin-1"), b.decode("latin-1")) for a, b in scope["headers"])
    return websockets.Request(target, Headers(pairs), scope.get("method", "GET"))


class AsgiWire(ServedWire):
    """A connection of a host's server, which takes and gives one message at a time.

    What is posted waits in `out`, and a task hands it over: `send` of a host may wait
    while the client is behind. The request of a page has such a wire, too.

    Attributes:
        scope: What the host says of the connection.
        request: The same, as `websockets` says it.
        out: What the host has yet to take, and how many bytes each message has.
        unsent: Bytes of all that, and of the message that it is taking.
        closed: Code and reason of the close, and whether the client closed.
        due: When the handshake, and later the close, has taken too long.
        tasks: What reads and what writes.
        ready: Set where something waits for the host, or the close does.
        moved: Set for a moment when anything changes that somebody waits for.
        lost: Set once the connection is gone.
    """

    def __init__(
        self, serving: Serving, scope: dict[str, Any], receive: Any, send: Any
    ) -> None:
        super().__init__(serving)
        self.scope, self.host_receive, self.host_send = scope, receive, send
        self.request = request_of(scope)
        simplify(self.request)
        self.max_size, self.write_limit = None, serving.options["write_limit"]
        self.paused = self.is_held = self.is_halted = False
        self.out: collections.deque[tuple[dict[str, Any], int]] = collections.deque()
        self.unsent = 0
        self.closed: tuple[int, str, bool | None] = 1006, "", None
        self.ready, self.moved, self.lost = (asyncio.Event() for _ in range(3))
        self.due = self.runtime.loop.time() + (serving.open_timeout or math.inf)
        self.tasks: list[asyncio.Task[None]] = []

    # From the request to the goodbye

    async def answer(self, session: Session) -> None:
        """Answer the request, and greet the client where it is let in."""
        await self._attempt(self._answer, session)
        if self.phase is OPEN:
            for work in (self._read, self._write):
                self.tasks.append(asyncio.Task(self._attempt(work)))
            session.greet()

    async def _attempt(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Talk to the host; the connection ends with that, or by what it raises."""
        outcome = await run_to_end(work, *arguments)
        # OSError says that the client is gone.
        if type(outcome) is Failure and not isinstance(outcome.exc, OSError):
            log_failure("the host's server", outcome.exc)
        if outcome is not OPEN:
            self.abort()

    async def _answer(self, session: Session) -> Any:
        """Answer; a host that knows no answer to a handshake makes it a 403."""
        kind, answer = DENIAL, fault_of(self.request, False)
        if self.scope["type"] == "http":
            kind = "http.response"
            answer = answer or await session.find_page(self.request.method)
        else:
            await self.host_receive()
            answer = answer or await session.enter()
        if answer is None:
            await self.host_send({"type": "websocket.accept"})
            self.status, self.phase, self.due = 101, OPEN, math.inf
            return OPEN
        self.status = answer.status
        if kind == DENIAL and DENIAL not in (self.scope.get("extensions") or ()):
            await self._close(4000 + answer.status, cut_reason(answer.body.decode()))
            return None
        pairs = answer.headers.items()
        headers = [(a.lower().encode(), b.encode("latin-1")) for a, b in pairs]
        start = {"type": f"{kind}.start", "status": answer.status, "headers": headers}
        await self.host_send(start)
        body = b"" if self.request.method == "HEAD" else answer.body
        await self.host_send({"type": f"{kind}.body", "body": body})
        return None

    async def _close(self, code: int, reason: str) -> None:
        close = {"type": "websocket.close", "code": code, "reason": reason}
        await self.host_send(close)

    def check(self, now: float) -> None:
        """Look whether the handshake or the close takes too long."""
        if now >= self.due:
            self.leave()

    def leave(self) -> None:
        """End the connection, or the handshake."""
        (self.give_up if self.phase is OPENING else self.abort)()

    def abort(self) -> None:
        """End the connection at once; the host closes it after the goodbye."""
        if self.phase is not CLOSED:
            was_open = self.phase is not OPENING
            self.phase, self.paused = CLOSED, False
            self.count_end(was_open=was_open)
            self.out.clear()
            for task in self.tasks:
                task.cancel()
            self.lost.set()
            self._wake()

    def end(self) -> tuple[int, bool | None]:
        """Return the close code, and whether the client closed; None for a loss."""
        return self.closed[0], self.closed[2]

    @property
    def close_exc(self) -> ConnectionClosed:
        """How the connection ended, once it is gone."""
        code, reason, by_client = self.closed
        frame = None if by_client is None else Close(code, reason)
        return ConnectionClosed(frame, frame, by_client)

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        await self.lost.wait()

    # From the host

    async def _read(self) -> None:
        """Hand over what comes, until the connection ends."""
        while (event := await self.host_receive())["type"] == "websocket.receive":
            text, payload = event.get("text"), event.get("bytes")
            payload = payload if text is None else text.encode(errors="surrogatepass")
            self.bytes_in += len(payload)
            if self.phase is OPEN:
                self.receive(payload, text is not None)
            while self.phase is OPEN and (self.paused or self.is_held):
                await self.moved.wait()
            if self.is_halted or self.runtime.is_turn_over():
                self.is_halted = False
                await self.runtime.next_turn()
        if self.closed[2] is None:
            code, reason = event.get("code", 1005), event.get("reason") or ""
            self.closed = code, reason, None if code == 1006 else True

    def halt(self) -> None:
        """Read no further in this turn of the loop."""
        self.is_halted = True

    def hold(self) -> None:
        """Read nothing until `release`."""
        self.is_held = True
        self.serving.app.counts["pauses"] += 1

    def release(self) -> None:
        """Read again what was held."""
        self.is_held = False
        self._wake()

    # To the host

    def post(self, payload: bytes) -> None:
        """Let a message wait until the host takes it."""
        if self.phase is OPEN:
            text = payload.decode(errors="replace")
            self._add({"type": "websocket.send", "text": text}, len(payload))

    def _add(self, message: dict[str, Any], size: int) -> None:
        self.out.append((message, size))
        self.unsent += size
        self.ready.set()
        if self.unsent > self.write_limit and not self.paused:
            self.paused = True
            self.backlog = Backlog(self)
            # The host may take it all in this turn: then nobody is behind.
            counts = self.serving.app.counts
            self.runtime.loop.call_soon(lambda: counts.update(pauses=self.paused))

    async def send(self, message: str | bytes) -> None:
        """Send a message of the application's own, in an `on_message` route."""
        await self.reachable()
        size = len(message.encode() if isinstance(message, str) else message)
        kind = "text" if isinstance(message, str) else "bytes"
        self._add({"type": "websocket.send", kind: message}, size)
        await self.writable()

    async def _write(self) -> None:
        """Let the host take what waits, and then the close."""
        try:
            await self._write_all()
            await self._close(*self.closed[:2])
        except OSError:
            # The client is gone; what is read next says how.
            self._begin_end()
        await self.wait_closed()

    async def _write_all(self) -> None:
        while self.phase is OPEN:
            await self.ready.wait()
            self.ready.clear()
            while self.out:
                message, size = self.out.popleft()
                await self.host_send(message)
                self.unsent -= size
                self.bytes_out += size
                if self.paused and 4 * self.unsent <= self.write_limit:
                    self.paused = False
                    self._wake()
                    self.session.go_on()  # type: ignore[union-attr]
                if self.runtime.is_turn_over():
                    await self.runtime.next_turn()
            self._wake()

    def _wake(self) -> None:
        """Let those look again who wait for a change."""
        self.moved.set()
        self.moved.clear()

    def waiting(self) -> int:
        """Return how many bytes wait for the client, as far as the host tells."""
        return self.unsent

    async def writable(self) -> None:
        """Wait while the other side is behind; return at once when it is gone."""
        while self.paused:
            await self.moved.wait()

    async def written(self) -> None:
        """Wait until the host has taken all that was sent, or the peer is gone."""
        while self.unsent and self.phase is not CLOSED:
            await self.moved.wait()

    def shut(self, code: int, reason: str = "") -> None:
        """Let the host close the connection; what was posted goes out before it."""
        if self.phase is OPEN:
            self.closed = code, reason, False
            self._begin_end()

    # A host knows no other way.
    fail = shut

    def _begin_end(self) -> None:
        """Send nothing more, and wait for the host to say that it is over."""
        self.phase, self.paused = CLOSING, False
        self.due = self.runtime.loop.time() + TIMEOUTS["close_timeout"]
        self.ready.set()
        self._wake()


class Hosted(Serving):
    """An app that a host's server serves: it has no port of its own."""

    def __init__(self, app: App) -> None:
        super().__init__(app, "", 0, {})

    async def listen(self, attempts: int = 1) -> Any:
        """Open nothing."""

    async def close_sockets(self, server: Any) -> None:
        """Accept nothing more."""
        self.finish()

    def is_elsewhere(self) -> bool:
        """Tell whether it serves in a loop that isn't this one."""
        loop = self.runtime.loop
        is_other = loop is not asyncio.get_running_loop() and loop.is_running()
        return is_other and not self.is_stopping


class Asgi:
    """An app as an ASGI 3 application; `App.asgi` returns it.

    Attributes:
        serving: What serves it, or did so last.
        kept: The lifespan that the first client began, where nobody else has.
    """

    def __init__(self, app: App) -> None:
        if app.proxies:
            must = f"proxies must be 0 in another server: got {app.proxies!r}"
            instead = "uvicorn --forwarded-allow-ips=..., say"
            raise ValueError(f"{must}; that one knows the client's address, {instead}")
        self.app = app
        self.serving: Hosted | None = None
        self.kept: Any = None

    @contextlib.asynccontextmanager
    async def lifespan(self) -> typing.AsyncIterator[None]:
        """Start and stop the app, inside the lifespan of what it is mounted in.

        Raises:
            RuntimeError: If it is served in another loop, too.
        """
        if self.serving is not None and self.serving.is_elsewhere():
            must = "app must be served in one loop at a time"
            instead = "with TestClient(...) as client: in a test"
            raise RuntimeError(f"{must}; write {instead}, which has one for all")
        async with Hosted(self.app) as self.serving:
            yield

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Handle a connection, a request or the lifespan of a host's server.

        Raises:
            RuntimeError: If the app has a lifespan or a bus that nobody has started.
            ValueError: If it is something else.
        """
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] in ("websocket", "http"):
            wire = AsgiWire(await self._start(), scope, receive, send)
            request, client = wire.request, tuple(scope.get("client") or ())[:2]
            parts = request.path, request.headers, client or None, uuid.uuid4().hex
            wire.begin(Opening(*parts, scope))
            wire.serving.add(wire)
            await self._outlive(wire)
        else:
            must = "scope must be of type websocket, http or lifespan"
            raise ValueError(f"{must}: got {scope['type']!r}; write an if before it")

    async def _run_lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        life = self.lifespan()
        outcome = await run_to_end(life.__aenter__)
        if type(outcome) is Failure:
            log_failure("the start", outcome.exc)
            await send(
                {"type": "lifespan.startup.failed", "message": repr(outcome.exc)}
            )
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await life.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> Hosted:
        """Return what serves the app in this loop; start it where nobody has."""
        loop = asyncio.get_running_loop()
        if self.serving is None or self.serving.runtime.loop is not loop:
            app = self.app
            if app.life is not None or app.bus is not None:
                what = f"lifespan {describe(app.life)}" if app.life else "bus"
                must = f"{what} must have started before a client comes"
                instead = "async with asgi.lifespan(): in that of the other application"
                raise RuntimeError(f"{must}; write {instead}")
            # The loop's end ends it, as all generators that are left.
            self.kept = self.lifespan()
            await self.kept.__aenter__()
        return typing.cast(Hosted, self.serving)

    async def _outlive(self, wire: AsgiWire) -> None:
        """Wait for the end of a client; it says goodbye whatever the host cancels."""
        life: Any = wire.life
        try:
            await asyncio.wait([life])
        except asyncio.CancelledError:
            wire.leave()
            end = monotonic() + CANCEL_GRACE + GOODBYE_GRACE
            # Some hosts cancel again and again, until nobody waits.
            while not life.done() and (left := end - monotonic()) > 0:
                with contextlib.suppress(asyncio.CancelledError):
                    await wait_at_most(left, [life])
            raise
        if not life.cancelled():
            life.result()


# --- 14. The command line ----------------------------------------------------

# Set in the process that serves for one that watches the files.
RELOADED = "WSAPPY_RELOADED"


def run_command(words: Sequence[str] | None = None) -> None:
    """Run the command line: `wsappy`, or `python -m wsappy`.

    Args:
        words: What follows the program's name; None for that of this process.

    Raises:
        SystemExit: With 1 and a line that says what went wrong, 2 for wrong words, 130
            for Ctrl+C.
    """
    parser = argparse.ArgumentParser("wsappy", description="JSON APIs over WebSockets")
    parser.set_defaults(function=lambda _: parser.print_help())
    verbs = parser.add_subparsers(title="verbs", metavar="")
    for verb, (function, about, names) in VERBS.items():
        verb_parser = verbs.add_parser(verb, help=about)
        verb_parser.set_defaults(function=function)
        for name in names.split():
            verb_parser.add_argument(name, **WORDS[name])
    options = parser.parse_args(words)
    try:
        options.function(options)
    except KeyboardInterrupt:
        sys.exit(130)


def load_app(place: str, name: str) -> App:
    """Import an application, and check it.

    Args:
        place: A module, or a file whose name ends in `.py`.
        name: What the application is called there; empty for its one App.

    Raises:
        SystemExit: If there is no such module, or no such App in it; or if what it
            registers doesn't fit together.
    """
    module = import_place(place)
    members = vars(module).items()
    apps = {key: each for key, each in members if isinstance(each, App)}
    chosen = {each for key, each in apps.items() if name in ("", key)}
    if len(chosen) != 1:
        must = f"{f'{place}:{name}'.rstrip(':')!r} must name one App"
        there = [f"{place}:{key}" for key in apps] or ["app = App()"]
        got = ", ".join(there) if apps else "none"
        sys.exit(f"{must}: {module.__file__} has {got}; write {there[0]}")
    (app,) = chosen
    try:
        app.prepare()
    except (TypeError, ValueError) as exc:
        sys.exit(str(exc))
    return app


def import_place(place: str) -> types.ModuleType:
    """Import a module, or a file beside which it finds its other modules."""
    folder, name = os.path.split(place) if place.endswith(".py") else ("", place)
    folder, name = os.path.abspath(folder), name.removesuffix(".py")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # What is missing inside it has another name, and a traceback.
        if not f"{name}.".startswith(f"{exc.name}."):
            raise
    sys.exit(f"no module {name!r} in {folder!r}; write module:app or path/to/file.py")


def run_app(words: argparse.Namespace) -> None:
    """Serve an application until a signal."""
    app = load_app(*words.app)
    try:
        app.run(words.host, words.port, workers=words.workers, reload=words.reload)
    except (RuntimeError, ValueError) as exc:
        sys.exit(str(exc))


def run_reloading(
    serving: Serving, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Serve in a child process, and in a new one when a file of Python changes."""
    if RELOADED not in os.environ:
        watch_files()
        return
    # The new one waits for the end of this one.
    serving.grace = 0.0
    # Ctrl+C reaches both processes; the one that watches sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_serving(serving, make_loop(), [signal.SIGTERM])


App.run_reloading = staticmethod(run_reloading)


def watch_files() -> None:
    """Run this program in a child process, and again when a file changes.

    Raises:
        SystemExit: If `watchfiles` isn't installed.
    """
    try:
        watchfiles = importlib.import_module("watchfiles")
    except ImportError as exc:
        must, remedy = f"reload needs watchfiles ({exc})", "pip install watchfiles"
        sys.exit(f"{must}; write: python -m {remedy}")
    for each in STOP_SIGNALS:
        signal.signal(each, signal.default_int_handler)
    changes = watchfiles.watch(".", watch_filter=watchfiles.PythonFilter())
    command, env = [sys.executable, *sys.orig_argv[1:]], {**os.environ, RELOADED: "1"}
    say(f"a change of a file of Python below {os.getcwd()} starts it anew")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            child = subprocess.Popen(command, env=env)  # noqa: S603
            try:
                next(changes)
            finally:
                child.terminate()
                child.wait()


def show_routes(words: argparse.Namespace) -> None:
    """Print a line for each method of each route."""
    for (path, *names), function in load_app(*words.app).routes.items():
        say(f"{path} {'.'.join(names)} {describe(function)}")


def call_method(words: argparse.Namespace) -> None:
    """Call a method of a server, and print what it answers.

    Raises:
        SystemExit: With a line that says why there is no result.
    """
    try:
        asyncio.run(call_and_print(words))
    except BrokenPipeError:
        # The reader has had enough, and Python would complain of it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Error, Refused, OSError, ConnectionClosed) as exc:
        sys.exit(" ".join(str(exc).split()))


async def call_and_print(words: argparse.Namespace) -> None:
    """Print a line of JSON for each event of a call."""
    module, method = words.method
    data = {name: read_value(text) for name, text in words.data}
    seen = set[str]()

    def note(event: str, value: JSON) -> None:
        """Print an event; a stream's result has nothing to say."""
        line = value if event in ("item", "result") else {"event": event, "data": value}
        if event != "result" or "item" not in seen:
            write_line(orjson.dumps(line))
        seen.add(event)

    headers = words.header
    async with connect(words.url, reconnect=False, additional_headers=headers) as api:
        await api.ask(module, method, data, words.timeout, note)


def write_line(line: bytes) -> None:
    """Print what is UTF-8, whatever the terminal has."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.flush()


def print_document(words: argparse.Namespace) -> None:
    """Print what describes an application to programs."""
    document = load_app(*words.app).asyncapi()
    write_line(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def print_script(_: argparse.Namespace) -> None:
    """Print the browser's client, as every application serves it."""
    page: Any = App().find_page("/wsappy.js")
    _, script, _ = page(PageRequest("/wsappy.js", {}, Headers()))
    write_line(script)


def read_value(text: str) -> JSON:
    """Read JSON; what isn't JSON is text."""
    outcome = run(orjson.loads, text)
    return text if type(outcome) is Failure else outcome


def read_url(text: str) -> Any:
    """Read an address, for a parser of arguments."""
    outcome = run(checked_url, text)
    if type(outcome) is Failure:
        raise argparse.ArgumentTypeError(str(outcome.exc))
    return outcome


def read_word(pattern: str, example: str, text: str) -> tuple[str, ...]:
    """Return the groups of a pattern, for a parser of arguments."""
    match = re.fullmatch(pattern, text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be like {example}: got {text!r}")
    return match.groups("")


def options_of_word(
    metavar: str, pattern: str, example: str, **options: Any
) -> dict[str, Any]:
    """Return the options of an argument that is read by a pattern."""
    read = functools.partial(read_word, pattern, example)
    return {"metavar": metavar, "type": read, "help": example, **options}


APP_EXAMPLE = "module:app, module (its one App), or path/to/file.py[:app]"
DATA_EXAMPLE = "item_id=42; the value is JSON, or else text"
HEADER_EXAMPLE = "'Authorization: Bearer 1'"
PORT = {"type": int, "default": 8008, "help": "default: 8008; 0 for any free one"}
RELOAD = "start anew when a file of Python below the current folder changes"
URL = {"metavar": "URL", "type": read_url, "help": "ws://localhost:8008/api"}
TIMEOUT_WORD = {"type": float, "help": "seconds for the answer; default: no limit"}
WORDS: dict[str, Any] = {
    "app": options_of_word("APP", r"(.+\.py|\w+(?:\.\w+)*)(?::(\w+))?", APP_EXAMPLE),
    "--host": {"default": "localhost", "help": "default: localhost"},
    "--port": PORT,
    "--workers": {"type": int, "default": 1, "help": "processes; default: 1"},
    "--reload": {"action": "store_true", "help": RELOAD},
    "url": URL,
    "method": options_of_word("MODULE.METHOD", r"(.+)\.([^.]+)", "entity.get"),
    "data": options_of_word(
        "NAME=VALUE", r"([^=]+)=([\s\S]*)", DATA_EXAMPLE, nargs="*"
    ),
    "--header": options_of_word(
        "HEADER", r"([^:\s]+): *(.*)", HEADER_EXAMPLE, action="append"
    ),
    "--timeout": TIMEOUT_WORD,
}
VERBS = {
    "run": (run_app, "serve an application", "app --host --port --workers --reload"),
    "routes": (show_routes, "show every path and method", "app"),
    "call": (call_method, "call a method", "url method data --header --timeout"),
    "asyncapi": (print_document, "describe an application to programs", "app"),
    "js": (print_script, "print the browser's client, for bundlers", ""),
}


if __name__ == "__main__":
    # This file now runs as another module than the one that applications import: its
    # App is another class than theirs.
    importlib.import_module("wsappy").run_command()
