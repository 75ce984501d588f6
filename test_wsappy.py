"""Tests of wsappy, in the order of its sections."""

from __future__ import annotations

import ast
import asyncio
import collections
import concurrent.futures
import configparser
import contextlib
import contextvars
import dataclasses
import datetime
import decimal
import enum
import errno
import functools
import gc
import http
import importlib.util
import inspect
import io
import itertools
import json
import logging
import math
import operator
import os
import pathlib
import random
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import sysconfig
import threading
import time
import tracemalloc
import types
import typing
import uuid
import venv
import warnings
import weakref
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import orjson
import pydantic
import pytest
import typing_extensions
import websockets
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.utils import apply_mask

import wsappy
from wsappy import (
    App,
    Client,
    ConnectionClosed,
    Error,
    Handler,
    Kind,
    Mark,
    Method,
    Module,
    Path,
    Peer,
    Push,
    Refused,
    Request,
    Server,
    Table,
    classify,
    connect,
    describe,
    handler_method,
    layers_of,
)

# `WSAPPY_LOOP=uvloop` runs every test on uvloop, as `.ci/run` does once.
ON_UVLOOP = os.environ.get("WSAPPY_LOOP") == "uvloop"
if ON_UVLOOP:
    import uvloop

    # Policies are deprecated from Python 3.14 on; no other way reaches every loop.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

ABSENT: Any = None  # Where no client is looked at.
LIMIT = 5.0  # Seconds that a test waits for anything before it fails.


@pytest.fixture(autouse=True)
def unmoderated() -> None:
    """Let no test be silent in the log because of the one before it."""
    for moderator in wsappy.LOGGER.filters:
        vars(moderator).update(vars(wsappy.Moderator()))


class Talk:
    """A client that writes and reads messages of the protocol, one by one."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws

    async def send(self, message: Any) -> None:
        """Send bytes and text as they are, anything else as JSON."""
        is_raw = isinstance(message, str | bytes)
        await self.ws.send(message if is_raw else json.dumps(message))

    async def receive(self) -> Any:
        """Return the next message."""
        async with asyncio.timeout(LIMIT):
            return json.loads(await self.ws.recv())

    async def call(self, name: str, request_id: Any = 1, **data: Any) -> Any:
        """Call `module.method` and return the next message that arrives."""
        module, _, method = name.partition(".")
        message = {"module": module, "method": method, "data": data}
        await self.send({**message, "request_id": request_id})
        return await self.receive()

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait for the end; return the close code and its reason."""
        async with asyncio.timeout(LIMIT):
            await self.ws.wait_closed()
        return self.ws.close_code, self.ws.close_reason


def need(is_there: object, what: str) -> None:
    """Skip a test where *what* isn't there; fail it with `WSAPPY_CI=1`, as in CI."""
    if not is_there:
        (pytest.fail if "WSAPPY_CI" in os.environ else pytest.skip)(f"needs {what}")


async def turns() -> None:
    """Let the loop turn, for what would go wrong to go wrong."""
    for _ in range(50):
        await asyncio.sleep(0)


def make_app(**options: Any) -> App:
    """Make an app with the route `/api`, where everyone may come in."""
    app = App(**options)

    @app.client("/api")
    def api(client: Client) -> None:
        pass

    return app


def clients_of(app: App, path: str = "/api") -> list[Client]:
    """Add a route where everyone may come in; return the list of who comes."""
    clients: list[Client] = []

    @app.client(path)
    def listed(client: Client) -> None:
        clients.append(client)

    return clients


@contextlib.asynccontextmanager
async def talking(
    app: App, path: str = "/api", *, serve: Any = None, **options: Any
) -> AsyncIterator[Talk]:
    """Serve an app on a free port, with the options *serve*, and connect to it."""
    async with (
        app.serve("127.0.0.1", 0, **(serve or {})) as serving,
        ws_connect(serving.url(path), proxy=None, compression=None, **options) as ws,
    ):
        yield Talk(ws)


class Hosting:
    """An app in uvicorn; it has what tests ask of `App.serve`."""

    def __init__(
        self, app: App, host: str = "127.0.0.1", port: int = 0, **options: Any
    ) -> None:
        # What uvicorn calls an option of `websockets.serve`.
        names = {"max_size": "ws_max_size", "compression": "ws_per_message_deflate"}
        options = {names[name]: value for name, value in options.items()}
        uvicorn: Any = importlib.import_module("uvicorn")
        self.config = uvicorn.Config(
            *(app.asgi(), host, port),
            **{"log_config": None, "ws": "websockets-sansio", **options},
            # Tests read a page until its connection ends.
            timeout_keep_alive=0,
        )
        self.server = uvicorn.Server(self.config)

    @staticmethod
    def of(app: App, *given: Any, **options: Any) -> Hosting:
        """Make one: as a method of `App`, which a class can't be."""
        return Hosting(app, *given, **options)

    async def __aenter__(self) -> Self:
        self.config.load()
        self.server.lifespan = self.config.lifespan_class(self.config)
        await self.server.startup()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.shutdown()

    @property
    def port(self) -> int:
        """The port that is open."""
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    def url(self, path: str = "/") -> str:
        """Return the URL of a path."""
        return f"ws://127.0.0.1:{self.port}{path}"


@pytest.fixture(params=["wsappy", "uvicorn"])
def each_server(request: pytest.FixtureRequest, monkeypatch: Any) -> None:
    """Let `App.serve` be wsappy's own server, and then another one, by ASGI."""
    if request.param == "uvicorn":
        need(importlib.util.find_spec("uvicorn"), "uvicorn")
        monkeypatch.setattr(App, "serve", Hosting.of)


def result_of(message: Any) -> Any:
    """Return the data of a `result`; fail with anything else."""
    assert message["event"] == "result", message
    return message["data"]


def error_of(message: Any) -> Any:
    """Return code and message of an `error`; fail with anything else."""
    assert message["event"] == "error", message
    return message["data"]["code"], message["data"]["message"]


# --- 1. Errors ---------------------------------------------------------------


def load_copy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Import the file once more, under another name."""
    spec = importlib.util.spec_from_file_location("wsappy_copy", wsappy.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "wsappy_copy", copy)
    # Each copy adds its own moderator to the same logger.
    monkeypatch.setattr(wsappy.LOGGER, "filters", [*wsappy.LOGGER.filters])
    spec.loader.exec_module(copy)
    return copy


INSTALL = "python -m pip install 'orjson>=3.11.7' 'websockets>=17,<18'"


class TestRequirements:
    """The file runs when it is copied alone."""

    @pytest.mark.parametrize("name", ["orjson", "websockets"])
    def test_missing_package(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Where a package is missing, importing says which line to type."""
        for each in list(sys.modules):
            if each.partition(".")[0] == name:
                monkeypatch.setitem(sys.modules, each, None)

        with pytest.raises(ImportError) as caught:
            load_copy(monkeypatch)

        assert str(caught.value).startswith("wsappy needs orjson and websockets (")
        assert str(caught.value).endswith(f"); write: {INSTALL}")

    @pytest.mark.parametrize(
        ("name", "version"), [("orjson", "3.9.15"), ("websockets", "16.0")]
    )
    def test_old_package(
        self, monkeypatch: pytest.MonkeyPatch, name: str, version: str
    ) -> None:
        """Where a package is too old, importing says which line to type."""
        monkeypatch.setattr(sys.modules[name], "__version__", version)

        with pytest.raises(ImportError) as caught:
            load_copy(monkeypatch)

        assert str(caught.value) == (
            f"wsappy needs orjson and websockets ({name} {version} is too old); "
            f"write: {INSTALL}"
        )

    @pytest.mark.parametrize(
        ("name", "version"), [("orjson", "3.11.7"), ("websockets", "17.0rc1")]
    )
    def test_oldest_package(
        self, monkeypatch: pytest.MonkeyPatch, name: str, version: str
    ) -> None:
        """The oldest versions that are asked for will do."""
        monkeypatch.setattr(sys.modules[name], "__version__", version)

        copy = load_copy(monkeypatch)

        assert copy.__version__ == wsappy.__version__

    def test_packaging(self) -> None:
        """The line to type asks for what the package requires."""
        config = configparser.ConfigParser()
        config.read(pathlib.Path(wsappy.__file__).with_name("setup.cfg"))

        required = config["options"]["install_requires"].split()

        assert re.findall("'(.*?)'", wsappy.REQUIREMENTS) == required


class TestError:
    """What a handler raises to answer with an error."""

    def test_all_options(self) -> None:
        """The data of an error has code, message, details and retry."""
        error = Error("not_found", "no item 7", details={"item_id": 7}, retry=True)

        data = error.as_data()

        assert data == {
            "code": "not_found",
            "message": "no item 7",
            "details": {"item_id": 7},
            "retry": True,
        }

    def test_code_alone(self) -> None:
        """Code and message are always there, details and retry are optional."""
        assert Error("not_found").as_data() == {"code": "not_found", "message": ""}

    @pytest.mark.parametrize(
        ("error", "text"),
        [(Error("gone"), "gone"), (Error("gone", "no item 7"), "gone: no item 7")],
    )
    def test_text(self, error: Error, text: str) -> None:
        """An error reads as its code and its message."""
        assert str(error) == text

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ((404,), "code of an Error must be a string: got 404"),
            (("gone", None), "message of an Error must be a string: got None"),
        ],
    )
    def test_no_string(self, arguments: Any, text: str) -> None:
        """Code and message are strings."""
        with pytest.raises(TypeError) as caught:
            Error(*arguments)

        assert str(caught.value) == f"{text}; write Error('not_found', 'no item 7')"

    @pytest.mark.parametrize(
        ("data", "same"),
        [
            (
                {"code": "a", "message": "b", "details": [1], "retry": True},
                {"code": "a", "message": "b", "details": [1], "retry": True},
            ),
            ({"code": 1, "retry": 1}, {"code": "1", "message": ""}),
            ("oops", {"code": "internal", "message": "oops"}),
        ],
    )
    def test_from_other_side(self, data: Any, same: Any) -> None:
        """Whatever the data of an error from the other side is, it becomes an error."""
        assert Error.from_data(data).as_data() == same


class TestRefused:
    """What keeps a connection out."""

    def test_attributes(self) -> None:
        """A refusal has a status, a message and the close code for a browser."""
        refused = Refused(403, "members only")

        attributes = (refused.status, refused.message, refused.close_code)

        assert attributes == (403, "members only", 4403)

    @pytest.mark.parametrize(
        ("refused", "text"),
        [(Refused(403), "403"), (Refused(503, "full"), "503 full")],
    )
    def test_text(self, refused: Refused, text: str) -> None:
        """A refusal reads as its status and its message."""
        assert str(refused) == text

    @pytest.mark.parametrize("status", [401, 418, 451, 500, 507])
    def test_allowed_status(self, status: int) -> None:
        """401 to 499 and 500 to 507 are taken, as far as HTTP has them."""
        assert Refused(status).status == status

    @pytest.mark.parametrize("status", [200, 400, 420, 499, 508, 511, "403", None])
    def test_other_status(self, status: Any) -> None:
        """Any other status is a ValueError."""
        with pytest.raises(ValueError, match="status of Refused") as caught:
            Refused(status)

        assert str(caught.value) == (
            f"status of Refused must be one of HTTP in 401 to 499 or 500 to 507: got "
            f"{status!r}; write Refused(403, 'members only')"
        )

    def test_no_string(self) -> None:
        """The message is a string."""
        with pytest.raises(TypeError) as caught:
            Refused(403, typing.cast(str, None))

        assert str(caught.value) == (
            "message of Refused must be a string: got None; write "
            "Refused(403, 'members only')"
        )

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("full", "full"),
            ("é" * 62, "é" * 61),
            ("a" * 123, "a" * 123),
            ("a" * 122 + "é", "a" * 122),
            ("\ud800", "?"),
        ],
    )
    def test_close_reason(self, text: str, reason: str) -> None:
        """A close reason is cut at 123 bytes, on a character's boundary."""
        assert wsappy.cut_reason(text) == reason


class TestModerator:
    """One place logs at most 5 lines a second at WARNING and above."""

    def say(self, text: str, count: int, level: int = logging.WARNING) -> None:
        """Log from one place."""
        for _ in range(count):
            wsappy.LOGGER.log(level, "%s is odd: %d", text, count)

    def test_many(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In a later second the log says how many more there were."""
        times = [1000.0]
        monkeypatch.setattr(wsappy, "monotonic", lambda: times[-1])
        self.say("a", 9)
        times.append(1000.9)
        self.say("a", 2)
        self.say("b", 5)
        times.append(1001.0)

        self.say("c", 1)
        self.say("a", 1)

        assert caplog.messages == [
            *["a is odd: 9"] * 5,
            *["b is odd: 5"] * 5,
            "6 more lines like this one: a is odd: 2",
            "c is odd: 1",
            "a is odd: 1",
        ]

    def test_information(self, caplog: pytest.LogCaptureFixture) -> None:
        """Below WARNING every line is logged."""
        caplog.set_level(logging.INFO, "wsappy")

        self.say("a", 9, logging.INFO)

        assert len(caplog.messages) == 9

    def test_many_places(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a place names can't be used to fill the log, or the memory."""
        monkeypatch.setattr(wsappy, "monotonic", lambda: 1000.0)

        for index in range(1000):
            self.say(f"{index}", 1)

        assert len(caplog.messages) == 105

    def test_without_arguments(self, caplog: pytest.LogCaptureFixture) -> None:
        """A line may name nothing, or things by their names."""
        for args in ((), ({"name": 1},)):
            wsappy.LOGGER.warning("a %(name)s" if args else "a", *args)

        assert caplog.messages == ["a", "a 1"]


# --- 2. Messages -------------------------------------------------------------

BAD_ID = "request_id must be a string of at most 128 characters or a 64 bit integer"


def _bad_of(request_id: Any, why: str) -> Any:
    return ("bad", request_id, why)


class TestReading:
    """How a peer reads a message: the table of the protocol, from the top."""

    @pytest.mark.parametrize("message", [None, 1, "a", [], True, 1.5])
    def test_no_object(self, message: Any) -> None:
        """What is no JSON object is a bad message."""
        why = "a message must be a JSON object"

        assert classify(message) == _bad_of(None, why)

    @pytest.mark.parametrize(
        "request_id", [2**63, -(2**63) - 1, 1.0, True, "x" * 129, [], {}]
    )
    def test_bad_request_id(self, request_id: Any) -> None:
        """A request_id that isn't allowed is answered with null."""
        message = {"module": "a", "method": "b", "request_id": request_id}

        assert classify(message) == _bad_of(None, BAD_ID)

    @pytest.mark.parametrize(
        "request_id", [2**63 - 1, -(2**63), 0, "", "é" * 128, None]
    )
    def test_good_request_id(self, request_id: Any) -> None:
        """A string of 128 characters, a 64 bit integer and null are allowed."""
        message = {"module": "a", "method": "b", "request_id": request_id}

        assert classify(message) == ("call", request_id, "")

    @pytest.mark.parametrize("event", [None, 1, [], False])
    def test_bad_event(self, event: Any) -> None:
        """An event that is no string is answered with null."""
        message = {"event": event, "request_id": 1}

        assert classify(message) == _bad_of(None, "event must be a string")

    @pytest.mark.parametrize("items", [0, -1, 1.0, True, "1", []])
    @pytest.mark.parametrize("rest", [{}, {"event": "result"}])
    def test_bad_items(self, items: Any, rest: Any) -> None:
        """Items that are no integer of at least 1 are answered with the request_id."""
        message = {"items": items, "request_id": 1, **rest}

        assert classify(message) == _bad_of(1, "items must be an integer of at least 1")

    @pytest.mark.parametrize(
        ("key", "value", "name"),
        [
            ("module", None, "a string"),
            ("module", 1, "a string"),
            ("method", None, "a string"),
            ("method", [], "a string"),
            ("data", [], "an object"),
            ("data", "a", "an object"),
            ("data", 0, "an object"),
        ],
    )
    def test_bad_call(self, key: str, value: Any, name: str) -> None:
        """A call that isn't one is answered with its request_id."""
        message = {"module": "a", "method": "b", "request_id": "r", key: value}

        assert classify(message) == _bad_of("r", f"{key} must be {name}")

    @pytest.mark.parametrize(
        "rest", [{}, {"data": None}, {"data": {}}, {"items": 1}, {"x": 1}]
    )
    def test_call(self, rest: Any) -> None:
        """Data may be absent or null; keys that aren't listed are ignored."""
        message = {"module": "a", "method": "b", "request_id": 1, **rest}

        assert classify(message) == ("call", 1, "")

    @pytest.mark.parametrize("rest", [{}, {"request_id": None}])
    def test_push(self, rest: Any) -> None:
        """An event without a request_id is a push."""
        assert classify({"event": "x", **rest}) == ("push", None, "")

    def test_event(self) -> None:
        """An event with a request_id belongs to a call."""
        assert classify({"event": "x", "request_id": 1}) == ("event", 1, "")

    @pytest.mark.parametrize(
        ("message", "name"),
        [({"module": "a"}, "a"), ({"module": 1}, None), ({}, None), ([], None)],
    )
    def test_name_in_answer(self, message: Any, name: str | None) -> None:
        """The answer to a bad message names its module where it has one."""
        assert wsappy.name_of(message, "module") == name


class TestMessage:
    """What is written."""

    def test_order(self) -> None:
        """The keys of an event are written in the order of the protocol."""
        message = wsappy.message_of(1, "a", "b", "result", {})

        assert orjson.dumps(message) == (
            b'{"request_id":1,"module":"a","method":"b","event":"result","data":{}}'
        )

    @pytest.mark.parametrize(
        ("data", "fields", "merged"),
        [
            (None, {}, {}),
            ([1], {}, [1]),
            (0, {}, 0),
            (None, {"a": 1}, {"a": 1}),
            ({"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}),
            (types.MappingProxyType({"self": 1}), {"a": 3}, {"self": 1, "a": 3}),
        ],
    )
    def test_merge(self, data: Any, fields: Any, merged: Any) -> None:
        """Data and fields work like dict(mapping, **fields)."""
        assert wsappy.merge(data, fields) == merged

    @pytest.mark.parametrize("data", [[], [("a", 1)], 0, "x"])
    def test_merge_no_mapping(self, data: Any) -> None:
        """Where fields are given, data is a mapping."""
        with pytest.raises(TypeError) as caught:
            wsappy.merge(data, {"a": 1})

        assert str(caught.value) == (
            f"data with fields must be a dict: got {data!r}; write {{...}}"
        )


class _CodecItem(pydantic.BaseModel):
    id: int
    when: datetime.date


CODEC_DATE = datetime.date(2026, 1, 2)


@dataclasses.dataclass
class _CodecPair:
    item: Any


class _CodecAny(pydantic.BaseModel):
    v: Any


class _CodecPoint(NamedTuple):
    x: int
    y: Any


CODEC_LOOP: list[Any] = []
CODEC_LOOP.append(CODEC_LOOP)
CODEC_PATH = "data.items.1.when must be JSON"
CODEC_HOUR = datetime.timedelta(hours=1)


class TestEncoding:
    """What a handler may return."""

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (math.nan, b"null"),
            (CODEC_DATE, b'"2026-01-02"'),
            (uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
            ({1: {None: 2}}, b'{"1":{"null":2}}'),
            (np.float64(1.5), b"1.5"),
            (np.array([1, 2]), b"[1,2]"),
            (np.array([[1, 2], [3, 4]]).T, b"[[1,3],[2,4]]"),
            (np.array(["a"]), b'["a"]'),
            (_CodecItem(id=1, when=CODEC_DATE), b'{"id":1,"when":"2026-01-02"}'),
            (
                [_CodecPair(_CodecItem(id=1, when=CODEC_DATE))],
                b'[{"item":{"id":1,"when":"2026-01-02"}}]',
            ),
            (decimal.Decimal("1.10"), b'"1.10"'),
            ([{1}, frozenset({2}), collections.deque([3])], b"[[1],[2],[3]]"),
            (_CodecPoint(1, {_CodecPoint(2, None)}), b"[1,[[2,null]]]"),
            ({"a": [CODEC_HOUR, pathlib.PurePosixPath("/b")]}, b'{"a":["PT1H","/b"]}'),
        ],
    )
    def test_default(self, value: Any, text: bytes) -> None:
        """Numpy, pydantic models, non-string keys and all of orjson's will do."""
        codec = wsappy.Codec(orjson.loads, None)

        assert codec.write(value) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (object(), "data must be JSON: got object: {}: object"),
            (
                {"items": [1, {"when": 2 + 1j}]},
                f"{CODEC_PATH}: got complex: {{}}: complex",
            ),
            (
                {"items": (0, {"when": b""})},
                f"{CODEC_PATH}: got bytes: {{}}: bytes; decode it, or write base64",
            ),
            (
                _CodecPair(_CodecAny(v=[object()])),
                "data.item.v.0 must be JSON: got object",
            ),
            ({(1,): 2}, "data must be JSON: got dict: Dict key must a type"),
            ("\ud800", "data must be JSON: got str: str is not valid UTF-8"),
            (2**64, "data must be JSON: got int: Integer exceeds 64-bit range"),
            (CODEC_LOOP, f"data{'.0' * 98} must be JSON: got list: Recursion limit"),
        ],
    )
    def test_not_writable(self, value: Any, text: str) -> None:
        """What can't be written is a TypeError, whose text has its path and type."""
        codec = wsappy.Codec(orjson.loads, None)

        with pytest.raises(TypeError) as caught:
            codec.write({"data": value})

        start = text.format("Type is not JSON serializable").replace(
            ".0" * 98, ".0" * 98 + "…"
        )
        assert str(caught.value).startswith(start)

    @given(st.timedeltas())
    def test_duration(self, value: datetime.timedelta) -> None:
        """A duration is written as pydantic writes it."""
        written = pydantic.TypeAdapter(datetime.timedelta).dump_python(
            value, mode="json"
        )

        assert wsappy.duration_of(value) == written

    @pytest.mark.parametrize("payload", [b"[1]", "[1]"])
    def test_custom(self, payload: Any) -> None:
        """A dumps of one's own returns bytes or str."""
        codec = wsappy.Codec(orjson.loads, lambda value: payload)

        assert codec.write({}) == b"[1]"

    @pytest.mark.parametrize("payload", [None, 1, bytearray(b"{}"), ["{}"]])
    def test_custom_wrong_type(self, payload: Any) -> None:
        """Anything else that it returns can't be sent."""
        codec = wsappy.Codec(orjson.loads, lambda value: payload)

        with pytest.raises(TypeError) as caught:
            codec.write({})

        assert str(caught.value) == f"dumps must return bytes or str: got {payload!r}"

    @pytest.mark.parametrize("exc", [KeyError("a"), RecursionError("a"), OSError("a")])
    def test_custom_raises(self, exc: Exception) -> None:
        """Whatever it raises, the message can't be written."""

        def dumps(value: Any) -> str:
            raise exc

        codec = wsappy.Codec(orjson.loads, dumps)

        with pytest.raises(TypeError) as caught:
            codec.write({})

        text = f"message must be JSON: got dict: {exc}"
        assert (str(caught.value), caught.value.__cause__) == (text, exc)

    def test_custom_lone_surrogate(self) -> None:
        """A string that isn't UTF-8 can't be sent."""
        codec = wsappy.Codec(
            orjson.loads, functools.partial(json.dumps, ensure_ascii=False)
        )

        with pytest.raises(TypeError) as caught:
            codec.write({"a": "\ud800"})

        assert isinstance(caught.value.__cause__, UnicodeEncodeError)

    async def test_default_over_the_wire(self) -> None:
        """What can't be written is internal; the connection lives on."""
        app = make_app(dumps=lambda message: None)

        @app.module("a")
        @app.method("b")
        def b(request: Any) -> int:
            return 1

        async with talking(app) as talk:
            answers = [await talk.call("a.b", each) for each in (1, 2)]

        assert [error_of(each) for each in answers] == [
            ("internal", "internal error")
        ] * 2


class TestDecoding:
    """What may be read."""

    NOT_JSON = (
        b"",
        b"{",
        b"NaN",
        b'{"a":1,}',
        b'"\\ud800"',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32-le"),
        b"[" * 100_000,
    )

    @pytest.mark.parametrize("loads", [orjson.loads, json.loads])
    @pytest.mark.parametrize("payload", NOT_JSON)
    def test_no_json(self, loads: Any, payload: bytes) -> None:
        """What isn't JSON in UTF-8 can't be read, whichever loads the app has."""
        codec = wsappy.Codec(loads, None)

        with pytest.raises(ValueError):  # noqa: PT011
            codec.decode(payload)

    def test_custom(self) -> None:
        """A loads of one's own makes what it likes of JSON."""
        codec = wsappy.Codec(functools.partial(json.loads, parse_int=str), None)

        assert codec.decode(b'{"a": 1}') == {"a": "1"}

    def test_custom_raises(self) -> None:
        """Whatever it raises, the message can't be read."""
        codec = wsappy.Codec(operator.attrgetter("missing"), None)

        with pytest.raises(ValueError, match=r"^not readable$") as caught:
            codec.decode(b"{}")

        assert isinstance(caught.value.__cause__, AttributeError)

    @pytest.mark.parametrize("made", [None, 1, "abc", [], object()])
    async def test_custom_wrong_type(self, made: Any) -> None:
        """A message that it makes no dict of is a bad message."""
        app = make_app(loads=lambda payload: made)

        async with talking(app) as talk:
            answer = await talk.call("a.b")

        assert error_of(answer) == ("bad_message", "a message must be a JSON object")


# --- 3. Routes ---------------------------------------------------------------


def find_in(path: str, *registered: str) -> Any:
    """Return the registered path that is found, with its parameters."""
    table = Table()
    for each in registered:
        table.add_route(wsappy.Route(wsappy.parse_path(each), lambda _: ABSENT, None))
    found = table.find(path)
    return found and (found[0].path.text, found[1])


class TestFinding:
    """Which route a path from outside belongs to."""

    @pytest.mark.parametrize(
        ("registered", "path", "params"),
        [
            ("/", "/", {}),
            ("/", "/?token=/x", {}),
            ("/api", "/api", {}),
            ("/api", "/api/", {}),
            ("/api/", "/api", {}),
            ("/api", "/%61pi", {}),
            ("/rooms/{room}", "/rooms/a", {"room": "a"}),
            ("/rooms/{room}", "/rooms/a/", {"room": "a"}),
            ("/rooms/{room}", "/rooms/a%2Fb", {"room": "a/b"}),
            ("/rooms/{room}", "/rooms/a%0Ab", {"room": "a\nb"}),
            ("/rooms/{room}", "/rooms/%C3%A9%20", {"room": "é "}),
            ("/rooms/{room}", "/rooms/{str}", {"room": "{str}"}),
            ("/rooms/{room}", "/rooms/%7Bstr%7D", {"room": "{str}"}),
            ("/{id:int}", "/-007", {"id": -7}),
            ("/{id:int}", "/" + "9" * 18, {"id": 10**18 - 1}),
            ("/{x:float}", "/-1.50", {"x": -1.5}),
            ("/{x:float}", "/3", {"x": 3.0}),
            (
                "/{key:uuid}",
                "/00000000-0000-0000-0000-00000000000A",
                {"key": uuid.UUID(int=10)},
            ),
            ("/f/{rest:path}", "/f", {"rest": ""}),
            ("/f/{rest:path}", "/f/", {"rest": ""}),
            ("/f/{rest:path}", "/f//", {"rest": "/"}),
            ("/f/{rest:path}", "/f/a/b/", {"rest": "a/b/"}),
            ("/f/{rest:path}", "/f/a%2Fb/%0A", {"rest": "a/b/\n"}),
            ("/{rest:path}", "/", {"rest": ""}),
            ("/{a}/{b:int}/{c:path}", "/x/1/y/z", {"a": "x", "b": 1, "c": "y/z"}),
        ],
    )
    def test_same_path(self, registered: str, path: str, params: Any) -> None:
        """The path is cut, split, decoded and converted."""
        assert find_in(path, registered) == (registered, params)

    @pytest.mark.parametrize(
        ("registered", "path"),
        [
            ("/api", "/"),
            ("/api", "/API"),
            ("/api", "//api"),
            ("/api", "/api//"),
            ("/api", "/api/x"),
            ("/{room}", "/"),
            ("/{room}", "//"),
            ("/{room}", "/%ff"),
            ("/{rest:path}", "/%ff"),
            ("/a/{room}/b", "/a//b"),
            ("/a/{room}/{rest:path}", "/a/"),
            ("/a/{room}/{rest:path}", "/a"),
            ("/f/{rest:path}", "/%ff/a"),
            ("/{id:int}", "/1.0"),
            ("/{id:int}", "/+1"),
            ("/{id:int}", "/1%0A"),
            ("/{id:int}", "/%D9%A1"),
            ("/{id:int}", "/" + "9" * 19),
            ("/{x:float}", "/1e5"),
            ("/{x:float}", "/1."),
            ("/{x:float}", "/nan"),
            ("/{key:uuid}", "/" + "0" * 32),
        ],
    )
    def test_other_path(self, registered: str, path: str) -> None:
        """A segment is never empty, and nothing else is guessed."""
        assert find_in(path, registered) is None

    def test_literal_wins(self) -> None:
        """A literal path wins over a pattern, whichever was registered first."""
        found = find_in("/rooms/new", "/rooms/{room}", "/rooms/new")

        assert found == ("/rooms/new", {})

    @pytest.mark.parametrize(
        ("path", "found"),
        [("/7", ("/{id:int}", {"id": 7})), ("/x", ("/{name}", {"name": "x"}))],
    )
    def test_order(self, path: str, found: Any) -> None:
        """Patterns are tried in the order of registration."""
        assert find_in(path, "/{id:int}", "/{name}", "/{rest:path}") == found

    def test_query(self) -> None:
        """A repeated name of the query has its last value; blank ones are kept."""
        split = wsappy.split_query("/api?a=1&b=&a=%C3%A9+2?&c=%ff")

        assert split == ("/api", {"a": "é 2?", "b": "", "c": "�"})


class TestPath:
    """What may be registered as a path."""

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("api", "path must start with '/': got 'api'; write '/api'"),
            ("", "path must start with '/': got ''; write '/api'"),
            (None, "path must start with '/': got None; write '/api'"),
            (
                "/{a}/{a:int}",
                "path '/{a}/{a:int}' names a parameter twice; rename one",
            ),
            (
                "/{a:path}/b",
                "path '/{a:path}/b' must end with its path parameter",
            ),
            (
                "/{a:date}",
                "converter of path '/{a:date}' must be one of str, int, float, uuid, "
                "path: got 'date'; write '{a}'",
            ),
            (
                "/{a:}",
                "converter of path '/{a:}' must be one of str, int, float, uuid, "
                "path: got ''; write '{a}'",
            ),
        ],
    )
    def test_mistake(self, path: Any, text: str) -> None:
        """What is wrong in itself raises at the decorator, and says what to write."""
        with pytest.raises(ValueError, match="path") as caught:
            App().client(path)

        assert str(caught.value) == text

    @pytest.mark.parametrize(
        "segment", ["{}", "{1}", "x{a}", "{a}{b}", "{a", "a}", "{self}", "a?b", "#"]
    )
    def test_bad_segment(self, segment: str) -> None:
        """A segment is a text or one parameter that can be passed by name."""
        with pytest.raises(ValueError, match="segment") as caught:
            wsappy.parse_path(f"/x/{segment}")

        assert str(caught.value) == (
            f"segment {segment!r} of path '/x/{segment}' must be a text or one "
            f"parameter; write '{{room}}'"
        )

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("/api", "/api"),
            ("/api", "/api/"),
            ("/a/{x}", "/a/{y}"),
            ("/a/{x:int}", "/a/{y:int}/"),
            ("/a/{x:path}", "/a/{y:path}"),
        ],
    )
    def test_clash(self, first: str, second: str) -> None:
        """Two paths that can't be told apart clash; the text names both."""
        with pytest.raises(ValueError, match="clashes") as caught:
            find_in("/", first, second)

        assert str(caught.value) == (
            f"path {second!r} clashes with {first!r}; write another"
        )

    def test_value(self) -> None:
        """A path is known by its text, its pattern and its parameters."""
        path = wsappy.parse_path("/a/{b:int}/")

        pattern = "/a/(-?[0-9]{1,18})/?".replace("/", wsappy.SLASH)
        assert path == Path("/a/{b:int}/", pattern, {"b": "int"})


def routes_method(function: Any, **options: Any) -> Method:
    """Make the row of a handler, with its annotations resolved."""
    method = Method("entity", function, Mark("get", **options))
    method.prepare()
    return method


def _routes_bind(function: Any, data: Any) -> Any:
    return routes_method(function).bind(data)


def routes_faults(function: Any, data: Any) -> Any:
    """Return what is wrong with the arguments as `argument: message`."""
    with pytest.raises(Error) as caught:
        _routes_bind(function, data)
    faults = [f"{each['argument']}: {each['message']}" for each in caught.value.details]
    assert (caught.value.code, caught.value.message) == ("bad_data", faults[0])
    return faults


def annotated_by(annotation: Any) -> Any:
    """Make a handler with one argument of that annotation, or string."""

    def get(request: Any, value: Any) -> None:
        pass

    get.__annotations__ = {"value": annotation}
    return get


def _routes_rest(annotation: Any) -> Any:
    def get(request: Any, a: Any, **rest: Any) -> None:
        pass

    get.__annotations__ = {"rest": annotation}
    return get


class _RoutesKeys(typing.TypedDict):
    x: typing.Required[int]
    tags: typing.NotRequired[list[int]]
    note: typing.NotRequired[str]
    day: typing.NotRequired[datetime.date]


class _RoutesExtended(typing_extensions.TypedDict, total=False):
    x: typing_extensions.Required[typing_extensions.ReadOnly[int]]
    y: int


class _RoutesGone(typing.TypedDict):
    x: RoutesGone  # type: ignore[name-defined] # noqa: F821


class TestBadData:
    """However much is wrong, an answer lists 16 faults, and none grows with them."""

    MANY: ClassVar = {f"k{index}": "" for index in range(95_000)}
    LISTED: ClassVar = {
        "argument": "k15",
        "message": "unknown",
    }

    @pytest.mark.parametrize(
        ("count", "more"),
        [(16, ""), (17, "; 1 more faults are not listed"), (95_000, None)],
    )
    def test_unknown_keys(self, count: int, more: str | None) -> None:
        """The message says how many more there are."""
        data = dict(itertools.islice(self.MANY.items(), count))

        error = self.error_of(lambda request: None, data)

        more = more if more is not None else "; 94984 more faults are not listed"
        assert error.message == f"k0: unknown{more}"
        assert (len(error.details), error.details[-1]) == (16, self.LISTED)

    def test_plain_rest(self) -> None:
        """So with what **kwargs takes."""
        error = self.error_of(_routes_rest(int), {"a": 1, **self.MANY})

        more = "94984 more faults are not listed"
        assert error.message == f"k0: expected an integer; {more}"
        assert len(error.details) == 16

    def test_long_name(self) -> None:
        """A name is cut at 200 characters, and so is what is said about it."""
        error = self.error_of(lambda request: None, {"k" * 2**20: 1})

        name = "k" * 200 + "…"
        assert error.details == [{"argument": name, "message": "unknown"}]

    def test_long_message(self) -> None:
        """A validator may repeat its value, of which 200 characters arrive."""

        def refuse(value: str) -> str:
            raise ValueError(value)

        annotation = typing.Annotated[str, pydantic.AfterValidator(refuse)]

        error = self.error_of(annotated_by(annotation), {"value": "x" * 2**20})

        assert error.details[0]["message"] == "Value error, " + "x" * 187 + "…"

    @pytest.mark.parametrize(
        ("annotation", "value", "faults"),
        [
            (list[int], ["a", "b"], ["0"]),
            (dict[str, int], {"x": "a", "y": "b"}, ["x"]),
            (tuple[int, ...], ["a", "b"], ["0"]),
            (set[int] | None, ["a", "b"], ["0"]),
            (list[int | bool], ["a", "b"], ["0.int", "0.bool"]),
            (list[int] | list[bool], ["a", "b"], ["list[int].0", "list[bool].0"]),
            (list[dict[str, list[int]]], [{"x": ["a"]}, {"x": ["b"]}], ["0.x.0"]),
            ("_RoutesLists", {"default": ["a", "b"], "type": ["a", "b"]}, None),
            ("list[_RoutesModel]", [{"tags": 1}] * 9, ["0.id", "0.tags"]),
        ],
    )
    def test_first_of_many(self, annotation: Any, value: Any, faults: Any) -> None:
        """Of a list or a dict the first fault is found, and no more are made."""
        error = self.error_of(annotated_by(annotation), {"value": value})

        found = [each["argument"].partition(".")[2] for each in error.details]
        assert found == (faults or ["default.0", "type.0"])

    def test_more_than_pydantic_should_find(self) -> None:
        """Where a thousand are found all the same, their number is said."""
        error = self.error_of(annotated_by(_RoutesClosed), {"value": self.MANY})

        assert error.details == [{"argument": "value", "message": "95000 faults"}]

    def test_some_that_pydantic_finds(self) -> None:
        """Up to then they are counted with the others."""
        value = dict(itertools.islice(self.MANY.items(), 20))

        error = self.error_of(annotated_by(_RoutesClosed), {"value": value})

        assert error.message.endswith("; 4 more faults are not listed")

    @pytest.mark.parametrize("annotation", ["list[int]", "list[_RoutesModel]"])
    def test_memory(self, annotation: str) -> None:
        """A call of 1 MiB makes no error of each of its values."""
        method = routes_method(annotated_by(annotation))
        data = {"value": [""] * 350_000}
        tracemalloc.start()

        with pytest.raises(Error):
            method.bind(data)

        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**27

    def error_of(self, function: Any, data: Any) -> Error:
        """Return the error for data that is bad."""
        with pytest.raises(Error) as caught:
            _routes_bind(function, data)
        assert caught.value.code == "bad_data"
        return caught.value


class TestArguments:
    """The keys of data are the handler's arguments."""

    @pytest.mark.parametrize("data", [{"a": 1}, {"a": 1, "b": 2}])
    def test_names(self, data: Any) -> None:
        """Arguments come by name; those with a default may be absent."""

        def get(request: Any, a: Any, *, b: Any = 0) -> None:
            pass

        assert _routes_bind(get, data) == data

    def test_missing(self) -> None:
        """A missing key is bad data."""

        def get(request: Any, a: Any, b: Any) -> None:
            pass

        assert routes_faults(get, {"b": 1}) == ["a: missing"]

    def test_missing_and_unknown(self) -> None:
        """Missing and unknown keys are bad data, each with its name."""

        def get(request: Any, b: Any, a: Any) -> None:
            pass

        assert routes_faults(get, {"x": 1, "request": 2}) == [
            "a: missing",
            "b: missing",
            "x: unknown",
            "request: unknown",
        ]

    def test_rest(self) -> None:
        """**kwargs takes whatever is left, also what has the name of its own."""

        def get(request: Any, a: int, **rest: Any) -> Any:
            return a, rest

        rest = {"rest": 2, "cls": 3, "self": 4, "__class__": 5, "": 6}

        arguments = _routes_bind(get, {"a": 1, **rest})

        assert get(None, **arguments) == (1, rest)

    def test_rest_wrong_type(self) -> None:
        """Beside **kwargs, annotations hold."""

        def get(request: Any, a: int, **rest: Any) -> None:
            pass

        assert routes_faults(get, {"z": 1, "a": "1"}) == ["a: expected an integer"]

    @pytest.mark.parametrize(
        ("annotation", "value", "converted"),
        [
            (int, 1, 1),
            ("float | None", None, None),
            (list[int], [1], [1]),
            ("RoutesDay", "2026-01-02", CODEC_DATE),
            (inspect.Parameter.empty, {}, {}),
        ],
    )
    def test_contract_of_rest(
        self, annotation: Any, value: Any, converted: Any
    ) -> None:
        """The annotation of **kwargs holds for each of its values."""
        get = _routes_rest(annotation)

        assert _routes_bind(get, {"a": 1, "b": value}) == {"a": 1, "b": converted}
        assert _routes_bind(get, {"a": 1}) == {"a": 1}

    @pytest.mark.parametrize(
        ("annotation", "fault"),
        [
            (int, "b: expected an integer"),
            ("float | None", "b: expected a number or null"),
            (list[int], "b: Input should be a valid array"),
            (typing.Annotated[str, pydantic.Field(max_length=1)], "b: {} 1 character"),
        ],
    )
    def test_fault_of_rest(self, annotation: Any, fault: str) -> None:
        """A value that breaks it is bad data, with its name."""
        faults = routes_faults(_routes_rest(annotation), {"a": 1, "b": "xx"})

        assert faults == [fault.format("String should have at most")]

    def test_rest_that_is_reserved(self) -> None:
        """A key that can't be passed on is unknown, whatever the contract."""

        def get(request: Any, **rest: list[int]) -> None:
            pass

        assert routes_faults(get, {"request": [1], "b": [1]}) == ["request: unknown"]

    @pytest.mark.parametrize(
        ("data", "faults"),
        [
            ({"id": 1, "x": 1}, []),
            ({"id": 1, "x": 1, "tags": [1], "note": "n", "day": "2026-01-02"}, []),
            ({}, ["id: missing", "x: missing"]),
            ({"id": 1, "x": "1", "y": 1}, ["x: expected an integer", "y: unknown"]),
            (
                {"id": 1, "x": 1, "tags": ["1"]},
                ["tags.0: Input should be a valid integer"],
            ),
        ],
    )
    def test_unpacked_rest(self, data: Any, faults: list[str]) -> None:
        """The keys of an unpacked TypedDict are arguments like others."""

        def get(request: Any, id: int, **rest: typing.Unpack[_RoutesKeys]) -> None:  # noqa: A002
            pass

        method = routes_method(get)
        method.prepare()

        if faults:
            assert routes_faults(get, data) == faults
        else:
            day = {"day": CODEC_DATE} if "day" in data else {}
            assert method.bind(data) == {**data, **day}

    def test_unpacked_rest_of_typing_extensions(self) -> None:
        """Those of typing_extensions will do."""
        get = _routes_rest(typing_extensions.Unpack[_RoutesExtended])

        assert _routes_bind(get, {"a": 1, "x": 1}) == {"a": 1, "x": 1}
        assert routes_faults(get, {"a": 1}) == ["x: missing"]

    def test_unpacked_rest_that_is_not_resolved(self) -> None:
        """What can't be resolved in it raises at start-up."""
        get = _routes_rest(typing.Unpack[_RoutesGone])

        with pytest.raises(TypeError) as caught:
            routes_method(get)

        assert str(caught.value) == (
            f"annotation {_RoutesGone!r} of parameter 'rest' of {describe(get)} can't "
            f"be checked: name 'RoutesGone' is not defined; write a type of its module"
        )

    def test_rest_of_positional_only_request(self) -> None:
        """A request that can't be named leaves its name to **kwargs."""

        def get(request: Any, /, **rest: Any) -> None:
            pass

        assert _routes_bind(get, {"request": 1}) == {"request": 1}

    @pytest.mark.parametrize(
        ("name", "keys"),
        [
            ("by_self", ["me", "request"]),
            ("by_class", ["kind", "request"]),
            ("static", ["request"]),
            ("wrapped", ["me", "request", "outer"]),
        ],
    )
    def test_rest_of_method(self, name: str, keys: list[str]) -> None:
        """Keys never reach a parameter that is not theirs."""
        handler = getattr(_RoutesHandler(), name)

        faults = routes_faults(handler, dict.fromkeys(keys, 1))

        assert faults == [f"{key}: unknown" for key in keys]

    def test_rest_of_partial(self) -> None:
        """What a partial has bound by position has no name either."""

        def get(bound: Any, request: Any, **rest: Any) -> None:
            pass

        faults = routes_faults(functools.partial(get, 1), {"bound": 2})

        assert faults == ["bound: unknown"]

    def test_callable_object(self) -> None:
        """An object that can be called is a handler, too."""
        assert routes_faults(_RoutesCallable(), {"value": "1", "own": 2}) == [
            "value: expected an integer",
            "own: unknown",
        ]


def _routes_wrapper(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(outer: Any, *args: Any, **keywords: Any) -> Any:
        return function(outer, *args, **keywords)

    return wrapper


class _RoutesHandler:
    def by_self(me, request: Any, **rest: Any) -> None:  # noqa: N805
        pass

    @classmethod
    def by_class(kind, request: Any, **rest: Any) -> None:  # noqa: N804
        pass

    @staticmethod
    def static(request: Any, **rest: Any) -> None:
        pass

    @_routes_wrapper
    def wrapped(me, request: Any, **rest: Any) -> None:  # noqa: N805
        pass


class _RoutesCallable:
    def __call__(self, own: Any, value: int, **rest: Any) -> None:
        pass


_RoutesCallable.__call__.__annotations__["value"] = "int"


class TestAnnotation:
    """A plain annotation is checked against the exact JSON type."""

    VALUES: tuple[Any, ...] = ("a", 1, 1.5, True, None, [], {})

    @pytest.mark.parametrize(
        ("annotation", "accepted", "text"),
        [
            (str, "a", "a string"),
            (int, [1], "an integer"),
            (float, [1, 1.5], "a number"),
            (bool, [True], "a boolean"),
            (None, [None], "null"),
            (list, [[]], "a list"),
            (dict, [{}], "an object"),
            (list[Any], [[]], "a list"),
            (dict[str, Any], [{}], "an object"),
            (int | None, [1, None], "an integer or null"),
            (typing.Optional[str], ["a", None], "a string or null"),  # noqa: UP045
            (typing.Union[int, str], ["a", 1], "a string or an integer"),  # noqa: UP007
            (int | float, [1, 1.5], "a number"),
            (float | bool, [1, 1.5, True], "a number or a boolean"),
            ("str | None", ["a", None], "a string or null"),
            ("list[Any] | dict[str, Any]", [[], {}], "a list or an object"),
        ],
    )
    def test_plain(self, annotation: Any, accepted: Any, text: str) -> None:
        """A true is no int; an int will do for a float, and is passed as it came."""
        get = annotated_by(annotation)

        for value in self.VALUES:
            if any(type(value) is type(each) for each in accepted):
                assert _routes_bind(get, {"value": value})["value"] is value
            else:
                faults = routes_faults(get, {"value": value})
                assert faults == [f"value: expected {text}"]

    @pytest.mark.parametrize("annotation", [Any, object, "Any", int | Any, "object"])
    @pytest.mark.parametrize("value", VALUES)
    def test_anything(self, annotation: Any, value: Any) -> None:
        """Any and object take whatever comes."""
        bound = _routes_bind(annotated_by(annotation), {"value": value})

        assert bound == {"value": value}

    def test_big_integer(self) -> None:
        """What JSON has beyond 64 bits arrives as it was read."""
        assert _routes_bind(annotated_by(int), {"value": 2**70}) == {"value": 2**70}

    def test_default_is_not_checked(self) -> None:
        """A default stands as it was written."""

        def get(request: Any, value: int = typing.cast(int, None)) -> None:
            pass

        assert _routes_bind(get, {}) == {}

    @pytest.mark.parametrize(
        ("annotation", "text"), [(int, "int"), ("list[int]", "list[int]")]
    )
    def test_default_of_pydantic(self, annotation: Any, text: str) -> None:
        """A `Field(...)` as the default is an error that shows the right form."""
        default = pydantic.Field(gt=1)

        def get(request: Any, value: Any = default) -> None:
            pass

        get.__annotations__ = {"value": annotation}

        with pytest.raises(TypeError) as caught:
            routes_method(get)

        assert str(caught.value) == (
            f"default of parameter 'value' of {describe(get)} must be a value: got "
            f"{default!r}; write value: Annotated[{text}, Field(...)]"
        )

    async def test_late_annotations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Python 3.14 is asked for annotations that it can't resolve yet."""
        asked, signature = [], inspect.signature

        def ask(function: Any, *, annotation_format: Any = None) -> Any:
            if function.__module__ == __name__:
                asked.append(annotation_format)
            return signature(function)

        monkeypatch.setattr(wsappy, "SIGNATURE_OPTIONS", {"annotation_format": 3})
        monkeypatch.setattr(inspect, "signature", ask)
        app = App()
        app.client("/{key}")(lambda client, key: None)
        app.module("m")(app.method("f")(lambda request, a: None))
        app.error(KeyError)(lambda request, exc: Error("x"))
        app.http("/")(lambda request: "")
        app.prepare()
        connect("ws://x").on("m", "e")(lambda a: None)

        assert set(asked) == {3}

    def test_reference_in_an_annotation(self) -> None:
        """What Python 3.14 gives for a name is resolved like a string."""
        get = annotated_by(typing.ForwardRef("RoutesDay"))

        bound = _routes_bind(get, {"value": "2026-01-02"})

        assert bound == {"value": CODEC_DATE}

    def test_only_needed_ones_are_resolved(self) -> None:
        """Those of the request and of the return are never needed."""

        def get(request: Any, value: Any) -> None:
            pass

        get.__annotations__ = {"request": "Gone", "value": "int", "return": "Gone"}

        assert _routes_bind(get, {"value": 1}) == {"value": 1}

    @pytest.mark.parametrize(
        ("annotation", "why"),
        [
            ("Gone", "name 'Gone' is not defined"),
            ("uuid.Gone", "module 'uuid' has no attribute 'Gone'"),
            ("Any[[][1]]", "list index out of range"),
            ("list['Gone']", "name 'Gone' is not defined"),
        ],
    )
    def test_not_resolved(self, annotation: str, why: str) -> None:
        """An annotation that can't be resolved raises at start-up."""
        get = annotated_by(annotation)

        with pytest.raises(TypeError) as caught:
            routes_method(get)

        assert str(caught.value) == (
            f"annotation {annotation!r} of parameter 'value' of {describe(get)} can't "
            f"be checked: {why}; write a type of its module"
        )


class _RoutesModel(pydantic.BaseModel):
    id: int
    tags: list[str] = []


class _RoutesLists(pydantic.BaseModel):
    default: list[int] = [1]
    type: list[int] = [1]


class _RoutesClosed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


@dataclasses.dataclass
class _RoutesPoint:
    x: float
    y: float


_RoutesBroken = pydantic.create_model(
    "_RoutesBroken", other=(typing.cast(Any, "RoutesGone"), ...)
)


def _routes_fail(value: Any) -> Any:
    raise KeyError(value)


RoutesFailing = typing.Annotated[int, pydantic.AfterValidator(_routes_fail)]
RoutesDay = typing.Annotated[datetime.date, "a day"]


class TestPydantic:
    """Any other annotation is validated and converted by pydantic."""

    @pytest.mark.parametrize(
        ("annotation", "value", "converted"),
        [
            (list[int], [1, 2], [1, 2]),
            (typing.Literal["a", "b"], "a", "a"),
            (datetime.date, "2026-01-02", CODEC_DATE),
            ("RoutesDay", "2026-01-02", CODEC_DATE),
            (typing.Annotated[int, pydantic.Field(gt=1)], 2, 2),
            (_RoutesPoint, {"x": 1, "y": 2.5}, _RoutesPoint(1.0, 2.5)),
            ("_RoutesModel | None", {"id": 1}, _RoutesModel(id=1)),
            (uuid.UUID, str(uuid.UUID(int=1)), uuid.UUID(int=1)),
            (tuple[int, str], [1, "a"], (1, "a")),
        ],
    )
    def test_converted(self, annotation: Any, value: Any, converted: Any) -> None:
        """An ISO string is a date, an object a model."""
        bound = _routes_bind(annotated_by(annotation), {"value": value})

        assert bound == {"value": converted}

    @pytest.mark.parametrize(
        ("annotation", "value", "faults"),
        [
            (list[int], ["1"], ["value.0: Input should be a valid integer"]),
            (list[int], [True], ["value.0: Input should be a valid integer"]),
            (typing.Literal["a"], "b", ["value: Input should be 'a'"]),
            (
                _RoutesModel,
                {"tags": ["a", 1]},
                [
                    "value.id: Field required",
                    "value.tags.1: Input should be a valid string",
                ],
            ),
        ],
    )
    def test_fault(self, annotation: Any, value: Any, faults: list[str]) -> None:
        """It is as strict as JSON allows, and names a nested fault by its path."""
        assert routes_faults(annotated_by(annotation), {"value": value}) == faults

    def test_deep(self) -> None:
        """What is nested too deeply to be validated is bad data."""
        deep: Any = []
        for _ in range(1000):
            deep = [deep]

        faults = routes_faults(annotated_by(list[Any] | list[int]), {"value": deep})

        assert faults == ["value: Recursion limit reached"]

    def test_custom_loads(self) -> None:
        """What a loads of one's own makes of a number is validated as a string."""
        get = annotated_by(typing.Annotated[typing.Any, pydantic.Field()])

        assert _routes_bind(get, {"value": CODEC_DATE}) == {"value": "2026-01-02"}

    def test_validator_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """A bug in a validator of the application's is internal, and logged."""
        method = routes_method(annotated_by(RoutesFailing))

        with pytest.raises(Error) as caught:
            method.bind({"value": 7})

        assert str(caught.value) == "internal: internal error"
        assert caplog.messages == ["check of argument 'value' failed"]

    def test_validator_of_rest_that_fails(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """So is one in a validator of what **kwargs takes."""
        with pytest.raises(Error) as caught:
            _routes_bind(_routes_rest(RoutesFailing), {"a": 1, "b": 7})

        assert str(caught.value) == "internal: internal error"
        assert caplog.messages == ["check of argument '**' failed"]

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where pydantic isn't installed, start-up says what to install."""
        monkeypatch.setitem(sys.modules, "pydantic", None)
        get = annotated_by(list[int])

        with pytest.raises(TypeError) as caught:
            routes_method(get)

        assert str(caught.value) == (
            f"annotation list[int] of parameter 'value' of {describe(get)} can't be "
            f"checked: import of pydantic halted; None in sys.modules; write "
            f"python -m pip install pydantic"
        )

    @pytest.mark.parametrize("annotation", [_RoutesCallable, _RoutesBroken])
    def test_not_checked(self, annotation: Any) -> None:
        """What pydantic can't check raises at start-up, never at a call."""
        get = annotated_by(annotation)

        with pytest.raises(TypeError) as caught:
            routes_method(get)

        why = str(caught.value.__cause__).splitlines()[0]
        assert str(caught.value) == (
            f"annotation {annotation!r} of parameter 'value' of {describe(get)} can't "
            f"be checked: {why}; write a type of its module"
        )

    def test_literal_that_is_not_hashable(self) -> None:
        """An annotation that can't be looked up is pydantic's."""
        get = annotated_by(typing.Annotated[int, []])

        assert _routes_bind(get, {"value": 1}) == {"value": 1}


class _RoutesKinds:
    def plain(self, request: Any) -> None:
        pass

    async def task(self, request: Any) -> None:
        pass

    def items(self, request: Any) -> Any:
        yield

    async def async_items(self, request: Any) -> AsyncIterator[None]:
        yield

    @types.coroutine
    def waiting(self, request: Any) -> Any:
        yield


class _RoutesForgot:
    def plain(self, request: Any) -> None:
        pass

    def selfless(request, item: Any) -> None:  # noqa: N805
        pass


def _routes_first(annotation: Any) -> Any:
    def get(item: Any) -> None:
        pass

    get.__annotations__ = {"item": annotation}
    return get


class _RoutesProtocol(typing.Protocol):
    data: Any


class TestRegistration:
    """What is wrong in itself raises at the decorator."""

    NO_REQUEST = "must take the request first: got {}; write def {}(request, ...)"
    BY_POSITION = "must take 'a' by name; write it after the /, without a *"
    NO_DEF = "has thread=True, but is no plain def; leave it out"
    TIMEOUT = "is a def with a timeout; add async or thread=True"
    MODULE_ABOVE = ", or @app.module above its class"

    @pytest.mark.parametrize(
        ("function", "options", "text"),
        [
            (lambda: None, {}, NO_REQUEST.format("()", "<lambda>")),
            (lambda *args: None, {}, NO_REQUEST.format("(*args)", "<lambda>")),
            (lambda *, a: None, {}, NO_REQUEST.format("(*, a)", "<lambda>")),
            (lambda **a: None, {}, NO_REQUEST.format("(**a)", "<lambda>")),
            (lambda r, *a: None, {}, BY_POSITION),
            (lambda r, a, /: None, {}, BY_POSITION),
            (_RoutesKinds().task, {"in_thread": True}, NO_DEF),
            (_RoutesKinds().items, {"in_thread": True}, NO_DEF),
            (_RoutesKinds().async_items, {"in_thread": True}, NO_DEF),
            (_RoutesKinds().plain, {"timeout": 1.0}, TIMEOUT),
            (
                _RoutesForgot.plain,
                {},
                NO_REQUEST.format("(self, request: 'Any')", "plain") + MODULE_ABOVE,
            ),
            (
                _RoutesForgot().selfless,
                {},
                NO_REQUEST.format("(item: 'Any')", "selfless").replace(
                    "(req", "(self, req"
                ),
            ),
            (_routes_first(int), {}, NO_REQUEST.format("(item: int)", "get")),
            (_routes_first("str"), {}, NO_REQUEST.format("(item: 'str')", "get")),
            (
                _routes_first(list[int]),
                {},
                NO_REQUEST.format("(item: list[int])", "get"),
            ),
            (_routes_first(None), {}, NO_REQUEST.format("(item: None)", "get")),
        ],
    )
    def test_mistake(self, function: Any, options: Any, text: str) -> None:
        """A handler takes a request, its arguments by name, and what fits its kind."""
        with pytest.raises(TypeError) as caught:
            routes_method(function, **options)

        assert str(caught.value) == f"handler {describe(function)} {text}"

    @pytest.mark.parametrize(
        "annotation",
        [
            Any,
            object,
            Request,
            "Request",
            "Gone",
            _RoutesProtocol,
            Request | None,
            typing.TypeVar("AnyRequest"),
            inspect.Parameter.empty,
        ],
    )
    def test_request(self, annotation: Any) -> None:
        """What may be a request is one, and a name for type checkers only as well."""
        assert routes_method(_routes_first(annotation)).bind({}) == {}

    @pytest.mark.parametrize(
        ("first", "second"), [(None, None), (None, ["/a"]), (["/{x}"], ["/a", "/{y}/"])]
    )
    def test_clash(self, first: Any, second: Any) -> None:
        """A second handler for one name is named with the first."""
        one, two = annotated_by(int), annotated_by(str)
        table = Table()
        table.add_method(Method("entity", one, Mark("get"), first))

        with pytest.raises(ValueError, match="clashes") as caught:
            table.add_method(Method("entity", two, Mark("get"), second))

        assert str(caught.value) == (
            f"handler {describe(two)} clashes with {describe(one)}: both are "
            f"'entity.get'; write another name, or clients=[...] for both"
        )

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (("a.b", "c", None), ("a", "b.c", None)),
            (("a", "b", "/x"), ("a", "b", "/y")),
        ],
    )
    def test_no_clash(self, first: Any, second: Any) -> None:
        """Names that differ, or routes that do, don't clash."""
        table = Table()

        for module, name, path in (first, second):
            clients = None if path is None else [path]
            method = Method(module, annotated_by(int), Mark(name), clients)
            table.add_method(method)

        assert len(table.methods) == 2

    @pytest.mark.parametrize("is_route_first", [True, False])
    def test_rows(self, is_route_first: bool) -> None:
        """The table has every path, module and method, in whichever order they came."""
        table, get, limited = Table(), annotated_by(int), annotated_by(str)
        route = wsappy.Route(wsappy.parse_path("/{x}"), lambda _: ABSENT, None)
        methods = [
            Method("a", get, Mark("b")),
            Method("a", limited, Mark("c"), ["/{y}"]),
            Method("a", limited, Mark("d"), ["/z"]),
        ]

        if is_route_first:
            table.add_route(route)
        for method in methods:
            table.add_method(method)
        if not is_route_first:
            table.add_route(route)

        assert table.rows() == {("/{x}", "a", "b"): get, ("/{x}", "a", "c"): limited}

    def test_no_route(self) -> None:
        """A table without a route raises at start-up."""
        with pytest.raises(ValueError, match="no route") as caught:
            Table().prepare()

        assert str(caught.value) == "no route is registered; write @app.client('/api')"

    def test_limited_to_unknown_route(self) -> None:
        """A handler that is limited to a route that isn't there raises at start-up."""
        table, get = Table(), annotated_by(int)
        table.add_route(wsappy.Route(wsappy.parse_path("/api"), lambda _: ABSENT, None))
        table.add_method(Method("a", get, Mark("b"), ["/api", "/{x:int}"]))

        with pytest.raises(ValueError, match="isn't there") as caught:
            table.prepare()

        assert str(caught.value) == (
            f"route '/{{x:int}}' of handler {describe(get)} isn't there; write "
            f"@app.client('/{{x:int}}')"
        )


def _routes_wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    return wrapper


class TestKind:
    """How a handler runs."""

    @pytest.mark.parametrize("name", ["items", "async_items"])
    def test_wrapped_generator(self, name: str) -> None:
        """A generator that is wrapped is a stream all the same."""
        handler = _routes_wrapped(getattr(_RoutesKinds(), name))

        assert routes_method(handler).kind is Kind.STREAM

    def test_wrapped_coroutine(self) -> None:
        """An `async def` that is wrapped in a `def` is a task, and has its timeout."""
        handler = _routes_wrapped(_RoutesKinds().task)

        assert routes_method(handler, timeout=1.0).kind is Kind.TASK

    @pytest.mark.parametrize(
        ("name", "options", "kind"),
        [
            ("plain", {}, Kind.INLINE),
            ("plain", {"in_thread": True}, Kind.THREAD),
            ("task", {}, Kind.TASK),
            ("items", {}, Kind.STREAM),
            ("async_items", {}, Kind.STREAM),
            ("waiting", {}, Kind.TASK),
        ],
    )
    @pytest.mark.parametrize("is_partial", [True, False])
    def test_kind(self, name: str, options: Any, kind: Kind, is_partial: bool) -> None:
        """Bound methods and partials run as what they are made of."""
        function = getattr(_RoutesKinds(), name)

        method = routes_method(
            functools.partial(function) if is_partial else function, **options
        )

        assert (method.kind, repr(method)) == (kind, "entity.get")


class TestDescribing:
    """How an error text names a function."""

    @pytest.mark.parametrize(
        "function",
        [
            _RoutesKinds().plain,
            _RoutesKinds.plain,
            functools.partial(_RoutesKinds().plain, 1),
            _routes_wrapper(_RoutesKinds.plain),
        ],
    )
    def test_function(self, function: Any) -> None:
        """The text has the name, the file and the line of what it is made of."""
        line = inspect.getsourcelines(_RoutesKinds.plain)[1]

        assert describe(function) == (
            f"'_RoutesKinds.plain' ({pathlib.Path(__file__).name}:{line})"
        )

    @pytest.mark.parametrize(("thing", "text"), [(len, "'len'"), (5, "5")])
    def test_other_thing(self, thing: Any, text: str) -> None:
        """What has no line is named without."""
        assert describe(thing) == text

    def test_layers(self) -> None:
        """An object that can be called is named by its method."""
        thing = _RoutesCallable()

        assert layers_of(thing) == [thing, _RoutesCallable.__call__]


# --- 4. Wires ----------------------------------------------------------------

FIN, TEXT, BINARY, CONT, CLOSE, PING, PONG = 0x80, 1, 2, 0, 8, 9, 10
RSV1 = 0x40
MASK = b"\x11\x22\x33\x44"


def wire_frame(payload: bytes = b"", first: int = FIN | TEXT) -> bytes:
    """Return a masked frame; *first* is its first byte."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0xFE)) + struct.pack("!H", size)
    else:
        head = bytes((first, 0xFF)) + struct.pack("!Q", size)
    return head + MASK + apply_mask(payload, MASK)


def wire_json(name: str = "echo", request_id: Any = 1, **data: Any) -> bytes:
    """Return a call of the module `e` as JSON."""
    call = {"module": "e", "method": name, "data": data, "request_id": request_id}
    return json.dumps(call).encode()


def wire_call(name: str = "echo", request_id: Any = 1, **data: Any) -> bytes:
    """Return a call of the module `e` as a whole text frame."""
    return wire_frame(wire_json(name, request_id, **data))


def wire_close(code: int = 1000, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return wire_frame(struct.pack("!H", code) + reason, FIN | CLOSE)


def wire_deflated(payload: bytes, first: int = FIN | TEXT) -> bytes:
    """Return a frame whose message is compressed on its own."""
    deflate = zlib.compressobj(wbits=-15)
    data = deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return wire_frame(data[:-4], first | RSV1)


class Wire:
    """A client that writes and reads bytes, and sees what the server's end does."""

    def __init__(self, serving: Any, ends: Any) -> None:
        self.serving = serving
        self.reader, self.writer = ends
        self.closings: list[asyncio.Task[None]] = []
        self.inflate = zlib.decompressobj(wbits=-15)
        self.is_deflated = False

    def send(self, *frames: bytes) -> None:
        """Write frames at once, without waiting for a server that doesn't read."""
        self.writer.write(b"".join(frames))

    async def trickle(self, *pieces: bytes) -> None:
        """Write pieces; after each the server gets the turn in which it reads it."""
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Return the status and the headers of the response that comes next."""
        async with asyncio.timeout(LIMIT):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        pairs = [line.decode().split(": ", 1) for line in lines if line]
        return int(first.split()[1]), dict(pairs)

    async def frame(self) -> tuple[int, bytes]:
        """Return the first byte, less the compression bit, and the payload."""
        async with asyncio.timeout(LIMIT):
            first, size = await self.reader.readexactly(2)
            if size > 125:
                extended = await self.reader.readexactly(2 if size == 126 else 8)
                size = int.from_bytes(extended, "big")
            payload = await self.reader.readexactly(size)
        if not first & 8:
            is_next = first & 15 == CONT
            self.is_deflated = bool(first & RSV1) or (is_next and self.is_deflated)
        if self.is_deflated and not first & 8:
            tail = b"\x00\x00\xff\xff" if first & FIN else b""
            payload = self.inflate.decompress(payload + tail)
        return first & ~RSV1, payload

    async def answer(self) -> Any:
        """Return the next message, decoded."""
        first, payload = await self.frame()
        assert first == FIN | TEXT, (first, payload)
        return json.loads(payload)

    async def closed(self) -> tuple[int, str]:
        """Return code and reason of the close frame that comes next."""
        first, payload = await self.frame()
        assert first == FIN | CLOSE, (first, payload)
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    async def ended(self) -> bytes:
        """Wait for the end; return what came before it, b"" for a reset."""
        async with asyncio.timeout(LIMIT):
            try:
                return bytes(await self.reader.read())
            except ConnectionResetError:
                return b""

    # The name that other chapters use.
    rest = ended

    def reset(self) -> None:
        """End the connection as a crash does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, *bytes(7))))
        self.writer.transport.abort()

    def stop_reading(self) -> None:
        """Take no byte from now on; the kernel's buffers are small."""
        self.writer.transport.pause_reading()
        self.narrow()

    def narrow(self) -> None:
        """Make the kernel's buffers of the server's ends small."""
        for connection in self.serving.wires:
            server_end = connection.transport.get_extra_info("socket")
            server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def read_on(self) -> None:
        """Take what has come meanwhile, and what comes."""
        self.writer.transport.resume_reading()

    @property
    def client(self) -> Client:
        """The server's object for the client."""
        client: Client
        (session,) = self.serving.sessions
        client = session.client
        return client

    @property
    def connection(self) -> Any:
        """The server's end, as `websockets` documents it."""
        (connection,) = self.serving.wires
        return connection

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left of any connection's transport."""
        return not self.serving.wires

    @property
    def is_behind(self) -> bool:
        """Whether so much waits for a client that writing is paused."""
        return any(each.paused for each in self.serving.wires)

    @property
    def is_read(self) -> bool:
        """Whether the server reads from the client."""
        return bool(self.connection.transport.is_reading())

    @property
    def is_pinged(self) -> bool:
        """Whether the server goes on to ping the client."""
        return self.connection.awaited is not None

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait for the client."""
        return int(self.connection.transport.get_write_buffer_size())

    def close(self, code: int = 1000, reason: str = "") -> asyncio.Task[None]:
        """Let the server close the connection."""
        closing = asyncio.create_task(self.client.close(code, reason))
        self.closings.append(closing)
        return closing


KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request_by_hand(path: str = "/api", method: str = "GET", **headers: Any) -> bytes:
    """Make a request; a header that is a list stands there several times."""
    head = [f"{method} {path} {headers.pop('protocol', 'HTTP/1.1')}"]
    for name, values in ({"Host": "localhost"} | headers).items():
        each = values if isinstance(values, list) else [values]
        head += [f"{name}: {value}" for value in each]
    return "\r\n".join([*head, "", ""]).encode()


def wire_request(path: str = "/api", extensions: str = "") -> bytes:
    """Return a handshake's request."""
    offer = {"Sec-WebSocket-Extensions": extensions} if extensions else {}
    return request_by_hand(path, **UPGRADE, **offer)


async def wire_dial(serving: Any) -> Any:
    """Connect to a server, with a small buffer of the kernel's; return both ends."""
    # With its number asyncio sends each write at once.
    sock = socket.socket(proto=socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", serving.port))
    return await asyncio.open_connection(sock=sock, limit=2048)


@contextlib.asynccontextmanager
async def dialled(
    serving: Any, request: bytes = b"", *, is_small: bool = False
) -> AsyncIterator[Wire]:
    """Connect to a server, with small buffers or others, and send a request."""
    dial = (
        wire_dial(serving)
        if is_small
        else asyncio.open_connection("127.0.0.1", serving.port)
    )
    wire = Wire(serving, await dial)
    wire.send(request)
    try:
        yield wire
    finally:
        wire.writer.transport.abort()
        with contextlib.suppress(OSError):
            await wire.writer.wait_closed()
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(*wire.closings)


# The name that other chapters use.
Hand = dialled


@contextlib.asynccontextmanager
async def wired(
    app: App,
    *,
    behind: bytes = b"",
    extensions: str = "",
    serve: Any = None,
    path: str = "/api",
) -> AsyncIterator[Wire]:
    """Serve an app and shake hands; *behind* stands behind the request."""
    options = {"compression": "deflate" if extensions else None, **(serve or {})}
    request = wire_request(path, extensions) + behind
    async with (
        app.serve("127.0.0.1", 0, **options) as serving,
        dialled(serving, request, is_small=True) as wire,
    ):
        assert (await wire.head())[0] == 101
        yield wire


async def wire_until(condition: Callable[[], Any]) -> None:
    """Give the loop its turns until something is so."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def wire_app(**options: Any) -> App:
    """Make an app with the module `e`, and with `/raw`, which echoes messages."""
    app = make_app(grace=0, **options)

    @app.client("/raw")
    class Raw(Client):
        async def on_message(self, message: str | bytes) -> None:
            await self.connection.send(message)

    module = app.module("e")

    @module.method
    def echo(request: wsappy.Request, **data: Any) -> Any:
        return data

    @module.method
    def fill(request: wsappy.Request, size: int) -> str:
        return "x" * size

    return app


def wire_result(request_id: Any, data: Any, name: str = "echo") -> dict[str, Any]:
    """Return the `result` of a call of the module `e`."""
    head = {"request_id": request_id, "module": "e", "method": name}
    return {**head, "event": "result", "data": data}


DEFLATE = "permessage-deflate"
BOTH = pytest.mark.parametrize("extensions", ["", DEFLATE], ids=["plain", "deflate"])


# -- Frames -------------------------------------------------------------------


class TestFrameOf:
    """One unmasked text frame is made of a payload."""

    @pytest.mark.parametrize(
        ("size", "head"),
        [
            (0, "8100"),
            (125, "817d"),
            (126, "817e007e"),
            (65535, "817effff"),
            (65536, "817f0000000000010000"),
        ],
    )
    def test_length_class(self, size: int, head: str) -> None:
        """The shortest of the three forms of a length is written."""
        payload = b"x" * size

        frame = wsappy.frame_of(payload)

        assert frame == bytes.fromhex(head) + payload


class TestReadingFrames:
    """Frames are read however they are cut and joined."""

    @BOTH
    @pytest.mark.parametrize("size", [125, 126, 65535, 65536])
    async def test_length_class(self, size: int, extensions: str) -> None:
        """A message of each form of length is taken."""
        call = wire_json().ljust(size)

        async with wired(wire_app(), extensions=extensions) as wire:
            wire.send(wire_frame(call))

            assert await wire.answer() == wire_result(1, {})

    @BOTH
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
    async def test_length_class_of_answer(self, size: int, extensions: str) -> None:
        """A message of each form of length is sent."""
        async with wired(wire_app(), extensions=extensions) as wire:
            wire.send(wire_call("fill", size=size))

            assert await wire.answer() == wire_result(1, "x" * size, "fill")

    async def test_empty(self) -> None:
        """An empty message is no JSON object."""
        async with wired(wire_app()) as wire:
            wire.send(wire_frame())

            assert error_of(await wire.answer()) == (
                "bad_message",
                "a message must be a JSON object",
            )

    async def test_length_longer_than_needed(self) -> None:
        """A short payload may have a long form of length."""
        call = wire_frame(wire_json())
        head = bytes((call[0], 0xFF)) + struct.pack("!Q", call[1] & 0x7F)

        async with wired(wire_app()) as wire:
            wire.send(head, call[2:])

            assert await wire.answer() == wire_result(1, {})

    @BOTH
    async def test_one_byte_at_a_time(self, extensions: str) -> None:
        """Frames of every kind may come byte by byte."""
        frames = wire_call(), wire_frame(b"hi", FIN | PING), wire_call(request_id=2)
        long = wire_frame(wire_json(request_id=3).ljust(130))

        async with wired(wire_app(), extensions=extensions) as wire:
            await wire.trickle(*(bytes((each,)) for each in b"".join((*frames, long))))

            assert await wire.answer() == wire_result(1, {})
            assert await wire.frame() == (FIN | PONG, b"hi")
            assert await wire.answer() == wire_result(2, {})
            assert await wire.answer() == wire_result(3, {})

    async def test_large_frame_in_small_reads(self) -> None:
        """What has come of a large frame is kept once, and not copied for each read."""
        app, frame = wire_app(), wire_frame(bytes(2**22))
        pieces = [frame[start : start + 2**16] for start in range(0, 2**22, 2**16)]

        def has_come(size: int) -> bool:
            return bool(app.stats()["bytes_in"] == size)

        async with wired(app, serve={"max_size": None}) as wire:
            tracemalloc.start()
            for piece in pieces:
                size = app.stats()["bytes_in"] + len(piece)
                wire.send(piece)
                await wire_until(functools.partial(has_come, size))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            wire.send(frame[2**22 :])

            assert error_of(await wire.answer())[0] == "bad_message"
        assert peak < 1.5 * 2**22

    @BOTH
    async def test_many_frames_in_one_read(self, extensions: str) -> None:
        """A thousand calls in one read are answered in order."""
        calls = [wire_call(request_id=each) for each in range(1000)]

        async with wired(wire_app(), extensions=extensions) as wire:
            wire.send(*calls)

            for each in range(1000):
                assert await wire.answer() == wire_result(each, {})

    async def test_binary(self) -> None:
        """A binary frame that holds JSON is a message too."""
        async with wired(wire_app()) as wire:
            wire.send(wire_frame(wire_json(), FIN | BINARY))

            assert await wire.answer() == wire_result(1, {})

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    async def test_raw_message(self, opcode: int) -> None:
        """Text reaches `on_message` as str, binary as bytes."""
        async with wired(wire_app(), path="/raw") as wire:
            wire.send(wire_frame(b"hi", FIN | opcode))

            assert await wire.frame() == (FIN | opcode, b"hi")

    async def test_recv(self) -> None:
        """`recv` of the connection raises, since wsappy reads it."""
        async with wired(wire_app()) as wire:
            with pytest.raises(RuntimeError) as caught:
                await wire.connection.recv()

        assert str(caught.value) == (
            "recv must not be called: wsappy reads this connection; write on_message"
        )


class TestEarlyBytes:
    """What stands behind the handshake's request waits for the handshake's end."""

    async def test_behind_request(self) -> None:
        """Frames that came with the request are read once the connection is open."""
        frames = wire_call() + wire_frame(b"hi", FIN | PING) + wire_call(request_id=2)

        async with wired(wire_app(), behind=frames) as wire:
            assert await wire.answer() == wire_result(1, {})
            assert await wire.frame() == (FIN | PONG, b"hi")
            assert await wire.answer() == wire_result(2, {})

    async def test_while_on_connecting_runs(self) -> None:
        """Frames that arrive during `on_connecting` wait for its end."""
        app, go_on, began = App(grace=0), asyncio.Event(), asyncio.Event()

        @app.client("/api")
        async def api(client: Client) -> None:
            began.set()
            await go_on.wait()

        request, pings = (
            wire_request(),
            [wire_frame(each, FIN | PING) for each in (b"a", b"b")],
        )
        size = len(request + b"".join(pings))

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request) as wire,
        ):
            await happens(began)
            await wire.trickle(*pings)
            await wire_until(lambda: app.stats()["bytes_in"] == size)
            go_on.set()
            await wire.head()

            assert await wire.frame() == (FIN | PONG, b"a")
            assert await wire.frame() == (FIN | PONG, b"b")

    async def test_request_byte_by_byte(self) -> None:
        """A request may come byte by byte, with frames behind it."""
        request = wire_request() + wire_call()

        async with (
            wire_app().serve("127.0.0.1", 0) as serving,
            dialled(serving, is_small=True) as wire,
        ):
            await wire.trickle(*(bytes((each,)) for each in request))
            await wire.head()

            assert await wire.answer() == wire_result(1, {})

    async def test_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """More than 64 KiB in front of the handshake's end abort the connection."""
        app, go_on, began = App(grace=0), asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(wsappy, "MAX_EARLY", 100)

        @app.client("/api")
        async def api(client: Client) -> None:
            began.set()
            await go_on.wait()

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, wire_request()) as wire,
        ):
            await happens(began)
            wire.send(bytes(101))

            assert await wire.ended() == b""
            go_on.set()


class TestFragments:
    """Fragments are joined, whoever sends something in between."""

    @BOTH
    async def test_ping_between(self, extensions: str) -> None:
        """A ping between two fragments is answered before the message."""
        call = wire_json()
        frames = [
            wire_frame(call[:5], TEXT),
            wire_frame(b"hi", FIN | PING),
            wire_frame(b"", CONT),
            wire_frame(call[5:], FIN | CONT),
        ]

        async with wired(wire_app(), extensions=extensions) as wire:
            wire.send(*frames, wire_call(request_id=2))

            assert await wire.frame() == (FIN | PONG, b"hi")
            assert await wire.answer() == wire_result(1, {})
            assert await wire.answer() == wire_result(2, {})

    async def test_binary(self) -> None:
        """Fragments of a binary message reach `on_message` as bytes."""
        async with wired(wire_app(), path="/raw") as wire:
            wire.send(wire_frame(b"a", BINARY), wire_frame(b"b", FIN | CONT))

            assert await wire.frame() == (FIN | BINARY, b"ab")

    async def test_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Too many fragments, even empty ones, close with 1009."""
        monkeypatch.setattr(wsappy, "MAX_FRAGMENTS", 3)

        async with wired(wire_app()) as wire:
            wire.send(wire_frame(b"", TEXT), *[wire_frame(b"", CONT)] * 3)

            assert await wire.closed() == (1009, "too many fragments")

    async def test_as_many_as_allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each message may have that many fragments."""
        monkeypatch.setattr(wsappy, "MAX_FRAGMENTS", 3)
        parts = [wire_frame(b"", TEXT), wire_frame(b"", CONT)]

        async with wired(wire_app()) as wire:
            wire.send(*parts, wire_frame(wire_json(), FIN | CONT))
            wire.send(*parts, wire_frame(wire_json(request_id=2), FIN | CONT))

            assert await wire.answer() == wire_result(1, {})
            assert await wire.answer() == wire_result(2, {})


class TestFailing:
    """A frame that RFC 6455 forbids ends the connection."""

    @pytest.mark.parametrize(
        ("frames", "reason"),
        [
            (wire_frame(b"", 0x83), "invalid opcode"),
            (wire_frame(b"", 0xC1), "reserved bits must be 0"),
            (wire_frame(b"", 0x91), "reserved bits must be 0"),
            (b"\x81\x02hi", "incorrect masking"),
            (wire_frame(b"", FIN | CONT), "unexpected continuation frame"),
            (
                wire_frame(b"", TEXT) + wire_frame(),
                "expected a continuation frame",
            ),
            (
                wire_frame(b"", TEXT) + wire_close(),
                "incomplete fragmented message",
            ),
            (wire_frame(b"", PING), "fragmented control frame"),
            (wire_frame(bytes(126), FIN | PING), "control frame too long"),
            (wire_frame(b"\x03", FIN | CLOSE), "close frame too short"),
            (wire_close(1005), "invalid status code"),
        ],
    )
    @BOTH
    async def test_protocol_error(
        self, frames: bytes, reason: str, extensions: str
    ) -> None:
        """What came before it is answered; it closes with 1002."""
        if extensions and frames[:1] == b"\xc1":
            reason = "decompression failed"
            frames = wire_frame(b"\xff", 0xC1)

        async with wired(wire_app(), extensions=extensions) as wire:
            wire.send(wire_call(), frames, wire_call())

            assert await wire.answer() == wire_result(1, {})
            assert await wire.closed() == (1002, reason)
            assert await wire.ended() == b""

    async def test_not_yet_whole(self) -> None:
        """A frame that is forbidden needs no payload to end the connection."""
        async with wired(wire_app()) as wire:
            await wire.trickle(b"\x83\xff", bytes(12), wire_call())

            assert await wire.closed() == (1002, "invalid opcode")
            assert await wire.ended() == b""

    async def test_more_behind(self) -> None:
        """What comes behind it is thrown away."""
        app = wire_app()

        async with wired(app) as wire:
            wire.send(wire_frame(b"", 0x83))
            assert await wire.closed() == (1002, "invalid opcode")
            wire.send(wire_call() * 1000)
            wire.writer.close()
            await wire_until(lambda: wire.is_gone)

        assert app.stats()["calls"] == 0

    @pytest.mark.parametrize(
        ("size", "frames", "reason"),
        [
            (
                200,
                [wire_frame(bytes(201))[:8]],
                "frame with 201 bytes exceeds limit of 200 bytes",
            ),
            (
                200,
                [wire_frame(bytes(101), TEXT), wire_frame(bytes(100), FIN | CONT)[:8]],
                "frame with 100 bytes after reading 101 bytes exceeds limit of "
                "200 bytes",
            ),
            (
                (None, 100),
                [wire_frame(bytes(101))[:8]],
                "frame with 101 bytes exceeds limit of 100 bytes",
            ),
        ],
        ids=["message", "fragments in all", "each frame"],
    )
    @BOTH
    async def test_too_large(
        self, size: Any, frames: list[bytes], reason: str, extensions: str
    ) -> None:
        """What is over `max_size`, or its second number, is 1009 at its header."""
        call = wire_frame(wire_json().ljust(100))

        async with wired(
            wire_app(), serve={"max_size": size}, extensions=extensions
        ) as wire:
            wire.send(call, *frames)

            assert await wire.answer() == wire_result(1, {})
            assert await wire.closed() == (1009, reason)

    @pytest.mark.parametrize("path", ["/api", "/raw"])
    @pytest.mark.parametrize(
        "frames",
        [
            wire_frame(b"ab\xff"),
            wire_frame(b"ab", TEXT) + wire_frame(b"\xff", FIN | CONT),
            wire_frame(struct.pack("!H", 1000) + b"ab\xff", FIN | CLOSE),
        ],
        ids=["whole", "fragments", "close reason"],
    )
    async def test_not_utf8(self, frames: bytes, path: str) -> None:
        """Text that isn't UTF-8 closes with 1007."""
        async with wired(wire_app(), path=path) as wire:
            wire.send(frames, wire_frame(b"hi", FIN | PING))

            assert await wire.closed() == (1007, "invalid start byte at position 2")
            assert await wire.ended() == b""


class TestOrder:
    """What the server says keeps its order."""

    @BOTH
    async def test_close_behind_calls(self, extensions: str) -> None:
        """Calls in front of a close, in one read, are answered in front of its echo."""
        calls = wire_call(), wire_call(request_id=2)

        async with wired(wire_app(), extensions=extensions) as wire:
            wire.send(*calls, wire_close(3000, b"bye"), wire_call(request_id=3))

            assert await wire.answer() == wire_result(1, {})
            assert await wire.answer() == wire_result(2, {})
            assert await wire.closed() == (3000, "bye")
            assert await wire.ended() == b""

    @BOTH
    async def test_pongs_between_answers(self, extensions: str) -> None:
        """A pong comes behind the answers of the calls in front of its ping."""
        ping = wire_frame(b"hi", FIN | PING)

        async with wired(wire_app(), extensions=extensions) as wire:
            wire.send(wire_call(), ping, wire_call(request_id=2), ping)

            assert await wire.answer() == wire_result(1, {})
            assert await wire.frame() == (FIN | PONG, b"hi")
            assert await wire.answer() == wire_result(2, {})
            assert await wire.frame() == (FIN | PONG, b"hi")

    @BOTH
    async def test_server_closes(self, extensions: str) -> None:
        """Behind the server's close no call starts, and pings are still answered."""
        app = wire_app()

        @app.module("e")
        @app.method
        async def leave(request: wsappy.Request) -> None:
            await request.client.close(4000, "done")

        calls = wire_call(), wire_call("leave", 2), wire_call(request_id=3)

        async with wired(app, extensions=extensions) as wire:
            wire.send(*calls, wire_frame(b"hi", FIN | PING), wire_close())

            assert await wire.answer() == wire_result(1, {})
            assert await wire.closed() == (4000, "done")
            assert await wire.frame() == (FIN | PONG, b"hi")
            assert await wire.ended() == b""

    @BOTH
    async def test_own_fragments_under_way(self, extensions: str) -> None:
        """Answers wait for the end of a fragmented message of the application's."""
        go_on = asyncio.Event()

        async def parts() -> AsyncIterator[str]:
            yield "a"
            await go_on.wait()
            yield "b"

        async with wired(wire_app(), extensions=extensions) as wire:
            sending = asyncio.create_task(wire.connection.send(parts()))
            assert await wire.frame() == (TEXT, b"a")
            wire.send(wire_call(), wire_frame(b"hi", FIN | PING))
            assert await wire.frame() == (FIN | PONG, b"hi")
            go_on.set()

            assert await wire.frame() == (CONT, b"b")
            assert await wire.frame() == (FIN | CONT, b"")
            assert await wire.answer() == wire_result(1, {})
            await sending

    @BOTH
    async def test_close_within_own_fragments(self, extensions: str) -> None:
        """A close inside a fragmented message of the application's fails with 1011."""
        ended = asyncio.Event()

        async def parts() -> AsyncIterator[str]:
            yield "a"
            await ended.wait()

        async with wired(wire_app(), extensions=extensions) as wire:
            sending = asyncio.create_task(wire.connection.send(parts()))
            assert await wire.frame() == (TEXT, b"a")
            wire.send(wire_call(), wire_frame(b"hi", FIN | PING))
            assert await wire.frame() == (FIN | PONG, b"hi")
            wire.close()

            assert await wire.closed() == (1011, "close during fragmented message")
            assert await wire.ended() == b""
            wire.writer.close()
            ended.set()
            with pytest.raises(wsappy.ConnectionClosed):
                await sending

    @BOTH
    async def test_library_closes_behind_push(
        self, extensions: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A push that waits when the library closes goes out in front of the close."""
        async with wired(wire_app(), extensions=extensions) as wire:
            client = wire.client
            closing = asyncio.create_task(client.connection.close(1000))
            client.push("e", "hello")
            await asyncio.sleep(0)
            client.push("e", "too late")

            assert (await wire.answer())["event"] == "hello"
            assert await wire.closed() == (1000, "")
            wire.send(wire_close())
            assert await wire.ended() == b""
            wire.writer.close()
            await closing
        assert caplog.record_tuples == []

    @BOTH
    async def test_push_from_thread(self, extensions: str) -> None:
        """A message from another thread is sent in the loop."""
        async with wired(wire_app(), extensions=extensions) as wire:
            client = wire.client
            await asyncio.to_thread(client.push, "e", "hello", {"n": 1})

            assert (await wire.answer())["data"] == {"n": 1}

    async def test_push_in_on_connecting(self) -> None:
        """A push of `on_connecting` is the first message, in front of early answers."""
        app = App(grace=0)

        @app.client("/api")
        async def api(client: Client) -> None:
            client.push("e", "hello")

        async with wired(app, behind=wire_call("none")) as wire:
            assert (await wire.answer())["event"] == "hello"
            assert (await wire.answer())["event"] == "error"

    async def test_push_to_closing_member(self) -> None:
        """A push to a group passes over a member that is being closed."""
        app = wire_app()

        async with wired(app) as wire:
            client = wire.client
            client.join("room")
            wire.close()
            assert await wire.closed() == (1000, "")
            app.to("room").push("e", "hello")
            wire.send(wire_close())

            assert await wire.ended() == b""

    @pytest.mark.parametrize("is_first_step", [True, False])
    async def test_close_in_handler(self, is_first_step: bool) -> None:
        """A handler that closes its client doesn't wait for its own end."""
        app, ended = make_app(grace=0), asyncio.Event()

        @app.module("e")
        @app.method
        async def leave(request: wsappy.Request) -> None:
            if not is_first_step:
                await asyncio.sleep(0)
            await request.client.close(4000, "done")
            ended.set()

        async with wired(app) as wire:
            wire.send(wire_call("leave"))

            assert await wire.closed() == (4000, "done")
            assert ended.is_set()

    async def test_close_after_a_handler_was_started(self) -> None:
        """From outside a handler `close` waits for the end, also while one runs."""
        app, began = make_app(grace=0), asyncio.Event()

        @app.module("e")
        @app.method
        async def wait(request: wsappy.Request) -> None:
            began.set()
            await asyncio.Event().wait()

        async with wired(app) as wire:
            wire.send(wire_call("wait"))
            await happens(began)
            closing = wire.close(4000, "done")
            assert await wire.closed() == (4000, "done")
            await turns()
            is_early = closing.done()
            wire.send(wire_close(4000))
            assert await wire.ended() == b""
            wire.writer.close()
            async with asyncio.timeout(LIMIT):
                await closing

            assert not is_early

    async def test_push_of_a_client(self) -> None:
        """A push is nothing for a server: it is dropped and counted."""
        app = wire_app()

        async with wired(app) as wire:
            wire.send(wire_frame(b'{"event": "x"}'), wire_call())
            assert await wire.answer() == wire_result(1, {})

        assert app.stats()["dropped_push"] == 1


# -- Flow ---------------------------------------------------------------------


class TestTurns:
    """One client can't keep the loop, nor the memory, for itself."""

    async def test_huge_read(self) -> None:
        """The loop gets a turn after 5 ms of the calls of one read."""
        app, order = make_app(grace=0), list[str]()

        @app.module("e")
        @app.method
        def work(request: wsappy.Request) -> None:
            if not order:
                asyncio.get_running_loop().call_soon(order.append, "turn")
            order.append("call")
            time.sleep(0.001)

        async with wired(app) as wire:
            wire.send(*[wire_call("work")] * 50)
            for _ in range(50):
                await wire.answer()

        assert order.count("call") == 50
        assert order.index("turn") <= 6

    async def test_reading_pauses_between_turns(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No more is read while a read's calls wait for their turn."""
        app, waiting = make_app(grace=0), list[int]()
        monkeypatch.setattr(wsappy, "TURN", 0)
        call = wire_frame(wire_json("work", None).ljust(120))

        def look() -> None:
            waiting.append(app.stats()["bytes_in"] - len(waiting) * len(call))

        @app.module("e")
        @app.method
        def work(request: wsappy.Request) -> None:
            asyncio.get_running_loop().call_soon(look)

        async with wired(app) as wire:
            wire.send(call * 5_000, wire_frame(b"", FIN | PING))
            assert await wire.frame() == (FIN | PONG, b"")

        assert len(waiting) == 5_000
        # One read, the rest of the one before it, and the request.
        assert max(waiting) <= 2**18 + len(call) + len(wire_request())

    async def test_too_many_unfinished(self) -> None:
        """One call over `max_in_flight` is overloaded; the reader goes on."""
        app = make_app(grace=0, max_in_flight=2)

        @app.module("e")
        @app.method
        async def wait(request: wsappy.Request) -> None:
            await asyncio.Event().wait()

        calls = [wire_call("wait", each) for each in range(3)]

        async with wired(app) as wire:
            wire.send(*calls, wire_frame(b"hi", FIN | PING))

            message = await wire.answer()
            assert message["request_id"] == 2
            assert message["data"] == {
                "code": "overloaded",
                "message": "too many unfinished calls",
                "retry": True,
            }
            assert await wire.frame() == (FIN | PONG, b"hi")


class LoopClock:
    """The clock of dispatch, which calls move on, and a count of calls in each turn.

    Attributes:
        now: Seconds; `work` moves it, and each look at it by a microsecond.
        looks: How often it was looked at.
        turns: How many calls ran in each turn of the loop that had any.
        order: The ids of the calls, as they ran.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.looks = 1000.0, 0
        self.turns: list[int] = []
        self.order: list[Any] = []
        self.count = 0
        self.loop = asyncio.get_running_loop()
        monkeypatch.setattr(wsappy, "monotonic", self.look)
        self.turn()

    def look(self) -> float:
        """Tell the time."""
        self.looks += 1
        self.now += 1e-6
        return self.now

    def turn(self) -> None:
        """Count the calls of the turn that ends, and look at the next one, too."""
        if self.count:
            self.turns.append(self.count)
        self.count = 0
        self.loop.call_soon(self.turn)

    def work(self, number: Any = None) -> Any:
        """Take 4 ms of the loop's 5; return the number of the call."""
        self.now += 0.004
        self.count += 1
        self.order.append(number)
        return number


# In 5 ms two calls of 4 ms begin. What is counted between two of the counter's turns
# may be the end of one turn of the dispatch and the beginning of the next.
MOST_IN_A_TURN = 4


def clock_app(clock: LoopClock, **options: Any) -> App:
    """Make an app with the module `e`, whose methods all take 4 ms."""
    app = wire_app(**{"max_in_flight": 1000, **options})
    module = app.module("e")

    @module.method
    def plain(request: wsappy.Request) -> Any:
        return clock.work(request.id)

    @module.method
    async def task(request: wsappy.Request) -> Any:
        return clock.work(request.id)

    @module.method
    def later(request: wsappy.Request) -> Any:
        async def work() -> Any:
            return clock.work(request.id)

        return work()

    @module.method
    async def stream(request: wsappy.Request, count: int = 1) -> AsyncIterator[Any]:
        for _ in range(count):
            yield clock.work(request.id)

    return app


KINDS = pytest.mark.parametrize("kind", ["plain", "task", "later", "stream"])


class TestSharedTurns:
    """Dispatch and streams give the loop a turn after 5 ms, for all connections."""

    @KINDS
    async def test_read_of_many_calls(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The calls of one read run over many turns, in their order."""
        clock = LoopClock(monkeypatch)

        async with wired(clock_app(clock)) as wire:
            wire.send(*[wire_call(kind, each) for each in range(100)])
            await wire_until(lambda: len(clock.order) == 100)

        assert clock.order == list(range(100))
        assert max(clock.turns) <= MOST_IN_A_TURN

    async def test_tasks_that_begin_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So it is where tasks don't begin at once: on every Python as on 3.11."""
        monkeypatch.setattr(wsappy, "LAZY_TASKS", 1)
        monkeypatch.setattr(wsappy, "TASK_OPTIONS", {})
        clock = LoopClock(monkeypatch)

        async with wired(clock_app(clock)) as wire:
            pings = [
                json.dumps({**json.loads(wire_json("x", at)), **ping}).encode()
                for at, ping in enumerate([{"module": "$", "method": "ping"}])
            ]
            calls = [wire_call("task", each) for each in range(50)]
            wire.send(*calls, wire_frame(pings[0]))
            await wire_until(lambda: len(clock.order) == 50)

        assert clock.order == list(range(50))
        assert max(clock.turns) <= MOST_IN_A_TURN

    async def test_task_that_is_cancelled_before_it_begins(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A task that has not begun runs no line, and is answered all the same."""
        monkeypatch.setattr(wsappy, "LAZY_TASKS", 1)
        monkeypatch.setattr(wsappy, "TASK_OPTIONS", {})
        wire = calls_wire(asleep)

        wire.call("m.asleep", "w1")
        wire.abandon()
        await wire.settled()

        assert (wire.posted, wire.unfinished()) == ([], 0)

    @KINDS
    async def test_wrapped_calls(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So do those that pass a `process_message`."""
        clock = LoopClock(monkeypatch)
        app = clock_app(clock)

        @app.client("/wrapped")
        class Wrapped(Client):
            async def process_message(self, request: wsappy.Request) -> Any:
                return await super().process_message(request)

        async with wired(app, path="/wrapped") as wire:
            wire.send(*[wire_call(kind, each) for each in range(100)])
            await wire_until(lambda: len(clock.order) == 100)

        assert clock.order == list(range(100))
        assert max(clock.turns) <= MOST_IN_A_TURN

    @KINDS
    async def test_calls_held_by_on_connected(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Held calls begin over many turns, and before those that come meanwhile."""
        clock, greeted = LoopClock(monkeypatch), asyncio.Event()
        app = clock_app(clock)

        @app.client("/held")
        class Held(Client):
            async def on_connected(self) -> None:
                await greeted.wait()

        async with wired(app, path="/held") as wire:
            wire.send(*[wire_call(kind, each) for each in range(100)])
            await wire_until(lambda: app.stats()["calls"] == 100)
            assert clock.order == []
            greeted.set()
            await wire_until(lambda: clock.order)
            wire.send(*[wire_call(kind, each) for each in range(100, 120)])
            await wire_until(lambda: app.stats()["calls"] == 120)
            await wire_until(lambda: len(clock.order) == 120)

        assert clock.order == list(range(120))
        assert max(clock.turns) <= MOST_IN_A_TURN

    @KINDS
    async def test_held_calls_wait_idly(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Held calls look at the clock a few times each: none spins until its turn."""
        clock, greeted = LoopClock(monkeypatch), asyncio.Event()
        app = clock_app(clock)

        @app.client("/held")
        class Held(Client):
            async def on_connected(self) -> None:
                await greeted.wait()

        async with wired(app, path="/held") as wire:
            wire.send(*[wire_call(kind, each) for each in range(100)])
            await wire_until(lambda: app.stats()["calls"] == 100)
            looks = clock.looks
            greeted.set()
            await wire_until(lambda: len(clock.order) == 100)

            assert clock.looks - looks <= 2000

    @KINDS
    async def test_calls_of_an_ordered_route(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So do those that one call of an ordered route has kept waiting."""
        clock, ended = LoopClock(monkeypatch), asyncio.Event()
        app = clock_app(clock)
        app.client("/ordered", ordered=True)(lambda client: None)

        @app.module("e")
        @app.method
        async def first(request: wsappy.Request) -> None:
            await ended.wait()

        async with wired(app, path="/ordered") as wire:
            calls = [wire_call(kind, each) for each in range(100)]
            wire.send(wire_call("first"), *calls)
            await wire_until(lambda: app.stats()["calls"] == 101)
            assert clock.order == []
            ended.set()
            await wire_until(lambda: clock.order)
            wire.send(*[wire_call(kind, each) for each in range(100, 120)])
            await wire_until(lambda: len(clock.order) == 120)

        assert clock.order == list(range(120))
        assert max(clock.turns) <= MOST_IN_A_TURN

    @pytest.mark.parametrize("kind", ["plain", "task"])
    async def test_calls_of_many_clients(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit is the loop's: fifty clients together don't get more of it."""
        clock = LoopClock(monkeypatch)
        app = clock_app(clock)

        async with many_wired(app, 50) as wires:
            for number, wire in enumerate(wires):
                calls = [wire_call(kind, (number, each)[0]) for each in range(10)]
                wire.send(*calls)
            await wire_until(lambda: len(clock.order) == 500)

        assert collections.Counter(clock.order) == dict.fromkeys(range(50), 10)
        assert max(clock.turns) <= MOST_IN_A_TURN

    async def test_quiet_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A client with one call waits for a few calls of each that floods."""
        clock = LoopClock(monkeypatch)
        app = clock_app(clock)

        async with many_wired(app, 51) as (quiet, *flooders):
            for wire in flooders:
                wire.send(*[wire_call("plain", "flood")] * 200)
            await wire_until(lambda: len(clock.order) > 200)
            begun = len(clock.order)
            quiet.send(wire_call("plain", "quiet"))
            await wire_until(lambda: "quiet" in clock.order)

            assert clock.order.index("quiet") - begun <= 4 * len(flooders)

    async def test_quiet_client_without_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That holds where each call takes a turn of its own."""
        monkeypatch.setattr(wsappy, "TURN", 0)
        app, order = wire_app(), list[Any]()

        @app.module("e")
        @app.method
        def work(request: wsappy.Request) -> None:
            order.append(request.id)

        async with many_wired(app, 51) as (quiet, *flooders):
            for wire in flooders:
                wire.send(*[wire_call("work", "flood")] * 200)
            await wire_until(lambda: len(order) > 200)
            begun = len(order)
            quiet.send(wire_call("work", "quiet"))
            await wire_until(lambda: "quiet" in order)

            assert order.index("quiet") - begun <= 4 * len(flooders)

    async def test_one_stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stream that never suspends gives the loop its turns."""
        clock = LoopClock(monkeypatch)

        async with wired(clock_app(clock)) as wire:
            wire.send(wire_call("stream", count=50))
            await wire_until(lambda: len(clock.order) == 50)

        assert max(clock.turns) <= MOST_IN_A_TURN

    async def test_streams_of_one_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Twenty streams share a turn, and each of them goes on."""
        clock = LoopClock(monkeypatch)

        async with wired(clock_app(clock)) as wire:
            calls = [wire_call("stream", each, count=30) for each in range(20)]
            wire.send(*calls)
            await wire_until(lambda: len(clock.order) == 600)

        # Round robin: one more begins while each of those before it goes on once.
        assert set(clock.order[:450]) == set(range(20))
        assert max(clock.turns) <= MOST_IN_A_TURN

    async def test_streams_of_many_clients(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So do the streams of twenty clients."""
        clock = LoopClock(monkeypatch)

        async with many_wired(clock_app(clock), 20) as wires:
            for number, wire in enumerate(wires):
                wire.send(wire_call("stream", number, count=10))
            await wire_until(lambda: len(clock.order) == 200)

        assert max(clock.turns) <= MOST_IN_A_TURN

    async def test_streams_beside_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A call is answered though twenty streams never suspend."""
        clock = LoopClock(monkeypatch)

        async with wired(clock_app(clock)) as wire:
            streams = [wire_call("stream", each, count=10**6) for each in range(20)]
            wire.send(*streams)
            await wire_until(lambda: len(clock.order) > 100)
            begun = len(clock.order)
            wire.send(wire_call("plain", "call"))
            await wire_until(lambda: "call" in clock.order)

            assert clock.order.index("call") - begun <= 600

    @pytest.mark.parametrize("count", [1, 20])
    async def test_raw_messages(
        self, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So do raw messages, of one client or of many."""
        clock = LoopClock(monkeypatch)
        app = wire_app()

        @app.client("/work")
        class Work(Client):
            async def on_message(self, message: str | bytes) -> None:
                clock.work(message)

        async with many_wired(app, count, "/work") as wires:
            for wire in wires:
                wire.send(*[wire_frame(str(each).encode()) for each in range(10)])
            await wire_until(lambda: len(clock.order) == 10 * count)

        if count == 1:
            assert clock.order == [str(each) for each in range(10)]
        assert max(clock.turns) <= MOST_IN_A_TURN


@contextlib.asynccontextmanager
async def many_wired(
    app: App, count: int, path: str = "/api"
) -> AsyncIterator[list[Wire]]:
    """Serve an app, and shake hands that many times."""
    async with (
        app.serve("127.0.0.1", 0) as serving,
        contextlib.AsyncExitStack() as stack,
    ):
        wires = []
        for _ in range(count):
            wire = await stack.enter_async_context(dialled(serving, wire_request(path)))
            assert (await wire.head())[0] == 101
            wires.append(wire)
        yield wires


class TestCompression:
    """With `compression="deflate"` everything works, and bombs stay small."""

    async def test_compressed_call(self) -> None:
        """Compressed messages are taken, and answers are compressed."""
        async with wired(wire_app(), extensions=DEFLATE) as wire:
            wire.send(
                wire_deflated(wire_json(x="y" * 300)), wire_call("fill", size=500)
            )

            assert await wire.answer() == wire_result(1, {"x": "y" * 300})
            head = await wire.reader.readexactly(2)
            assert head[0] == FIN | RSV1 | TEXT
            assert head[1] < 126

    async def test_compressed_fragments(self) -> None:
        """A compressed message may have fragments."""
        whole = wire_deflated(wire_json(x="y" * 20))
        data = apply_mask(whole[6:], whole[2:6])
        first, last = (
            wire_frame(data[:9], RSV1 | TEXT),
            wire_frame(data[9:], FIN | CONT),
        )

        async with wired(wire_app(), extensions=DEFLATE) as wire:
            wire.send(first, wire_frame(b"hi", FIN | PING), last)

            assert await wire.frame() == (FIN | PONG, b"hi")
            assert await wire.answer() == wire_result(1, {"x": "y" * 20})

    async def test_not_negotiated(self) -> None:
        """Without the extension a compressed frame is a protocol error."""
        async with wired(wire_app()) as wire:
            wire.send(wire_deflated(wire_json()))

            assert await wire.closed() == (1002, "reserved bits must be 0")

    async def test_push_to_group(self) -> None:
        """A push to a group reaches a member whose messages are compressed."""
        app = wire_app()

        async with wired(app, extensions=DEFLATE) as wire:
            client = wire.client
            client.join("room")
            client.push("e", "first")
            app.to("room").push("e", "hello", text="hi")

            assert (await wire.answer())["event"] == "first"
            assert (await wire.answer())["data"] == {"text": "hi"}

    async def test_bomb(self) -> None:
        """A message over `max_size` is inflated no further; it closes with 1009."""
        bomb = wire_deflated(bytes(2**26))
        size = {"max_size": 2**17}

        async with wired(wire_app(), extensions=DEFLATE, serve=size) as wire:
            tracemalloc.start()
            wire.send(bomb)
            code, _ = await wire.closed()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()

        assert code == 1009
        assert peak < 2**21

    async def test_bombs_behind_close(self) -> None:
        """Data frames behind the server's own close aren't inflated."""
        bombs = [wire_deflated(bytes(2**20))] * 100

        async with wired(wire_app(), extensions=DEFLATE) as wire:
            wire.close()
            assert await wire.closed() == (1000, "")
            tracemalloc.start()
            wire.send(*bombs, wire_close())
            assert await wire.ended() == b""
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()

        assert peak < 2**20


class TestSlowReaders:
    """A client that doesn't read is held back, and dropped when it takes nothing."""

    @BOTH
    async def test_no_call_starts(self, extensions: str) -> None:
        """While a client is behind none of its calls start, not even received ones."""
        app, started = make_app(grace=0), list[int]()

        @app.module("e")
        @app.method
        def fill(request: wsappy.Request, size: int) -> str:
            started.append(size)
            return os.urandom(size // 2).hex()

        calls = [wire_call("fill", each, size=2**16) for each in range(60)]

        async with wired(app, extensions=extensions) as wire:
            wire.stop_reading()
            wire.send(*calls)
            await wire_until(lambda: wire.is_behind)
            begun = len(started)
            await turns()

            assert len(started) == begun < 60
            assert wire.waiting_bytes < 2**20
            wire.read_on()
            for each in range(60):
                assert (await wire.answer())["request_id"] == each

    async def test_reading_pauses(self) -> None:
        """While a client is behind nothing is read from it."""
        app = wire_app()

        async with wired(app) as wire:
            wire.stop_reading()
            wire.send(wire_call("fill", size=2**20))
            await wire_until(lambda: wire.is_behind)

            assert not wire.is_read
            assert app.stats()["pauses"] == 1
            wire.read_on()
            await wire.answer()
            wire.send(wire_call(request_id=2))
            assert await wire.answer() == wire_result(2, {})

    async def test_ping_flood(self) -> None:
        """Pings whose pongs nobody reads fill no memory."""
        app, pings = wire_app(), wire_frame(bytes(125), FIN | PING) * 50_000

        async with wired(app) as wire:
            wire.stop_reading()
            wire.send(pings)
            await wire_until(lambda: wire.is_behind)
            await turns()
            stats = app.stats()

            # What was read and isn't answered yet, and the answers.
            unanswered = stats["bytes_in"] - stats["bytes_out"]
            assert unanswered + wire.waiting_bytes < 2**19

    @pytest.mark.parametrize("filling", ["answers", "pushes", "pongs"])
    async def test_takes_nothing(self, filling: str) -> None:
        """A client that takes no byte for `ping_timeout` is aborted, whatever waits."""
        app = wire_app(max_backlog=2**30)
        limits = {"ping_interval": None, "ping_timeout": 0.1}
        frames = {
            "answers": wire_call("fill", size=2**22),
            "pongs": wire_frame(bytes(125), FIN | PING) * 50_000,
        }

        async with wired(app, serve=limits) as wire:
            client = wire.client
            wire.stop_reading()
            wire.send(frames.get(filling, b""))
            async with asyncio.timeout(LIMIT):
                while not wire.is_gone:
                    if filling == "pushes":
                        client.push("e", "x", "y" * 2**12)
                    await asyncio.sleep(0)

        assert app.stats()["stalled_clients_dropped"] == 1

    async def test_mark(self) -> None:
        """`write_limit` is the mark: a client with less than that isn't behind."""
        app = wire_app()

        async with wired(app, serve={"write_limit": 2**24}) as wire:
            wire.stop_reading()
            wire.send(wire_call("fill", size=2**23), wire_call(request_id=2))
            await wire_until(lambda: app.stats()["calls"] == 2)

            assert wire.waiting_bytes > 2**22
            assert not wire.is_behind

    async def test_takes_what_the_kernel_holds(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client stays that takes bytes before the kernel says that there is room."""
        looks: list[Any] = []
        limits = {"ping_interval": None, "ping_timeout": 0.1}

        def less_each_time(transport: Any) -> int:
            looks.append(transport)
            return -len(looks)

        monkeypatch.setattr(wsappy, "unacknowledged", less_each_time)

        async with wired(wire_app(), serve=limits) as wire:
            wire.stop_reading()
            wire.send(wire_call("fill", size=2**22))
            await wire_until(lambda: wire.is_behind)
            # It looks eight times in each `ping_timeout`.
            await wire_until(lambda: len(looks) > 20)

            assert wire.connection.state is State.OPEN

    async def test_what_the_kernel_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel tells what it holds for a peer; where it doesn't, that is 0."""
        async with wired(wire_app()) as wire:
            transport = wire.connection.transport
            wire.stop_reading()
            wire.send(wire_call("fill", size=2**22))
            await wire_until(lambda: wire.is_behind)

            assert wsappy.unacknowledged(transport) > 0
            monkeypatch.setitem(sys.modules, "fcntl", None)
            assert wsappy.unacknowledged(transport) == 0

    async def test_takes_nothing_without_limit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without `ping_timeout` such a client stays: nobody looks at what it takes."""
        limits = {"ping_interval": None, "ping_timeout": None}
        looks: list[Any] = []
        monkeypatch.setattr(wsappy, "unacknowledged", looks.append)

        async with wired(wire_app(), serve=limits) as wire:
            wire.stop_reading()
            wire.send(wire_call("fill", size=2**22))
            await wire_until(lambda: wire.is_behind)

            wire.read_on()
            assert await wire.answer() == wire_result(1, "x" * 2**22, "fill")
            assert looks == []

    async def test_reads_slowly(self) -> None:
        """A client that takes bytes now and then stays, though no pong can come."""
        app = wire_app()
        limits = {"ping_interval": 0.05, "ping_timeout": 0.6}
        size = 2**20

        async with wired(app, serve=limits) as wire:
            wire.narrow()
            wire.send(wire_call("fill", size=size))
            began, taken = time.monotonic(), 0
            while time.monotonic() < began + 1.5:
                taken += len(await wire.reader.readexactly(1000))
                await asyncio.sleep(0.01)
            assert wire.is_behind
            await wire.reader.readexactly(size + 83 - taken)

            assert app.stats()["stalled_clients_dropped"] == 0
            wire.send(wire_call(request_id=2))

    async def test_pushed_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A push to a group drops a client with more than `max_backlog` waiting."""
        app = wire_app(max_backlog=2**16)
        monkeypatch.setattr(wsappy, "SLOW_GRACE", LIMIT)

        async with wired(app) as wire:
            wire.client.join("room")
            wire.stop_reading()
            app.to("room").push("e", "large", "x" * 2**19)
            await wire_until(lambda: wire.is_behind)
            assert wire.connection.state is State.OPEN
            await turns()
            app.to("room").push("e", "small")
            wire.read_on()

            assert (await wire.answer())["event"] == "large"
            assert await wire.closed() == (4508, "it reads too slowly")
            assert app.stats()["slow_clients_dropped"] == 1

    async def test_dropped_client_that_takes_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that is dropped and takes nothing is aborted."""
        app = wire_app(max_backlog=2**16)
        monkeypatch.setattr(wsappy, "SLOW_GRACE", 0.05)

        async with wired(app) as wire:
            wire.client.join("room")
            wire.stop_reading()
            app.to("room").push("e", "large", "x" * 2**23)
            await wire_until(lambda: wire.is_behind)
            app.to("room").push("e", "small")

            await wire_until(lambda: wire.is_gone)

        assert app.stats()["closed"] == {"4508": 1}

    async def test_other_members(self) -> None:
        """The members that read hear all that one of them is dropped for."""
        app = App(grace=0, max_backlog=2**16)
        app.client("/api")(lambda client: client.join("room"))

        async with (
            wired(app) as wire,
            ws_connect(wire.serving.url("/api"), proxy=None) as other,
        ):
            wire.stop_reading()
            heard = []
            for event, size in ("large", 2**19), ("small", 0), ("smaller", 0):
                app.to("room").push("e", event, "x" * size)
                heard.append((await Talk(other).receive())["event"])

            assert heard == ["large", "small", "smaller"]
            assert app.stats()["slow_clients_dropped"] == 1

    async def test_small_backlog(self) -> None:
        """A `max_backlog` below the mark of other messages is kept, too."""
        app = wire_app(max_backlog=1000)

        async with wired(app) as wire:
            wire.client.join("room")
            wire.stop_reading()
            while wire.waiting_bytes <= 1000:
                app.to("room").push("e", "x", "y" * 8000)
                await turns()
            app.to("room").push("e", "x")

            assert app.stats()["slow_clients_dropped"] == 1

    async def test_pushes_of_one_turn(self) -> None:
        """What is pushed in one turn of the loop doesn't count as a backlog yet."""
        app = wire_app(max_backlog=1000)

        async with wired(app) as wire:
            wire.client.join("room")
            for number in range(3):
                app.to("room").push("e", str(number), "y" * 8000)

            assert [(await wire.answer())["event"] for _ in range(3)] == ["0", "1", "2"]

    async def test_push_larger_than_the_backlog(self) -> None:
        """A client that is behind by less than `max_backlog` takes a larger message."""
        app = wire_app(max_backlog=2**22)

        async with wired(app) as wire:
            client = wire.client
            client.join("room")
            wire.stop_reading()
            while not wire.is_behind:
                client.push("e", "small", "x" * 2**16)
                await asyncio.sleep(0)
            assert wire.waiting_bytes < 2**22
            app.to("room").push("e", "first")
            app.to("room").push("e", "large", "x" * 2**23)

            assert wire.connection.state is State.OPEN
            wire.read_on()
            while (await wire.answer())["event"] != "large":
                pass

    async def test_large_page(self) -> None:
        """A page is written whole to a client that reads it late."""
        app = wire_app()
        app.http("/page")(lambda request: "x" * 2**22)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand("/page"), is_small=True) as wire,
        ):
            await wire_until(lambda: wire.is_behind)
            data = await wire.ended()

        assert data.endswith(b"\r\n\r\n" + b"x" * 2**22)

    async def test_many_pushes_in_a_row(self) -> None:
        """Pushes in a loop that never suspends are written at 64 KiB each."""
        app = wire_app(max_backlog=2**21)

        async with wired(app) as wire:
            client = wire.client
            wire.stop_reading()
            for _ in range(300):
                client.push("e", "x", "y" * 2**15)

            assert wire.is_behind
            assert app.stats()["bytes_out"] > 299 * 2**15

    async def test_awaited_push(self) -> None:
        """An awaited push waits while the client is behind."""
        async with wired(wire_app()) as wire:
            client = wire.client
            wire.stop_reading()
            pushes = [
                asyncio.create_task(wire_wait(client.push("e", "x", "y" * 2**22)))
                for _ in range(2)
            ]
            await wire_until(lambda: wire.is_behind)
            await turns()
            are_early = [push.done() for push in pushes]
            wire.read_on()
            await wire.answer()
            await wire.answer()
            async with asyncio.timeout(LIMIT):
                await asyncio.gather(*pushes)

            assert are_early == [False, False]
            assert not wire.is_behind

    async def test_gone_while_waiting(self) -> None:
        """A push that waits raises ConnectionClosed when its client is gone."""
        async with wired(wire_app()) as wire:
            client = wire.client
            wire.stop_reading()
            push = asyncio.create_task(wire_wait(client.push("e", "x", "y" * 2**22)))
            await wire_until(lambda: wire.is_behind)
            await turns()
            assert not push.done()
            wire.connection.transport.abort()

            async with asyncio.timeout(LIMIT):
                with pytest.raises(ConnectionClosed):
                    await push


class TestBacklog:
    """Pushes never wait for a client, and never grow without limit."""

    @pytest.mark.parametrize("way", ["group", "direct"])
    async def test_burst(self, way: str) -> None:
        """A healthy reader gets 9 MB that were pushed in one turn."""
        app = wire_app()

        async with load_reader(app) as (wire, push):
            for number in range(3):
                push(way, str(number), 3 * 2**20)
            events = [(await wire.answer())["event"] for _ in range(3)]

        assert events == ["0", "1", "2"]
        assert app.stats()["slow_clients_dropped"] == 0

    @pytest.mark.parametrize("way", ["group", "direct"])
    async def test_burst_of_several_tasks(self, way: str) -> None:
        """So it does if they come from several tasks that run in one turn."""
        app, go = wire_app(), asyncio.Event()

        async with load_reader(app) as (wire, push):

            async def say(number: int) -> None:
                await go.wait()
                push(way, str(number), 3 * 2**20)

            tasks = [asyncio.create_task(say(number)) for number in range(3)]
            await turns()
            go.set()
            push(way, "first", 0)
            await asyncio.gather(*tasks)
            events = [(await wire.answer())["event"] for _ in range(4)]

        assert events == ["first", "0", "1", "2"]
        assert app.stats()["slow_clients_dropped"] == 0

    @pytest.mark.parametrize("way", ["group", "direct"])
    async def test_burst_around_the_end_of_a_turn(self, way: str) -> None:
        """So it does if a push of a turn before stands between them in the loop."""
        app, loop = wire_app(), asyncio.get_running_loop()

        async with load_reader(app) as (wire, push):
            await turns()
            loop.call_soon(push, way, "0", 7 * 2**20)
            push("group", "first", 0)
            loop.call_soon(push, way, "1", 0)
            events = [(await wire.answer())["event"] for _ in range(3)]

        assert events == ["first", "0", "1"]
        assert app.stats()["slow_clients_dropped"] == 0

    @pytest.mark.parametrize("kind", ["def", "async def", "thread"])
    async def test_burst_of_responses(self, kind: str) -> None:
        """A healthy reader gets 6 MB of events that a handler sends at once."""
        app = wire_app()
        module = app.module("e")

        def say(request: Request) -> None:
            for number in range(2):
                request.response(str(number), "x" * 3 * 2**20)

        @module.method
        async def later(request: Request) -> None:
            say(request)

        module.method("def")(say)
        module.method("async def")(later)
        module.method("thread", thread=True)(say)

        async with load_reader(app) as (wire, _):
            wire.send(wire_call(kind))
            events = [(await wire.answer())["event"] for _ in range(3)]

        assert events == ["0", "1", "result"]
        assert app.stats()["slow_clients_dropped"] == 0

    @pytest.mark.parametrize("way", ["group", "direct"])
    async def test_burst_without_end(self, way: str) -> None:
        """Beyond 8 times `max_backlog` a client is closed within one turn."""
        app, size = wire_app(max_backlog=2**16), 2**13

        async with load_reader(app) as (wire, push):
            wire.stop_reading()
            count = 0
            while not app.stats()["slow_clients_dropped"]:
                push(way, "x", size)
                count += 1
                assert count < 10_000

            # The kernel's buffers took what is not in the backlog.
            backlog = wire.waiting_bytes
            assert 8 * 2**16 < backlog < 8 * 2**16 + 3 * 2**16

    @pytest.mark.parametrize("way", ["group", "direct"])
    async def test_small_backlog(self, way: str) -> None:
        """One rule for direct pushes and for those to a group, however small it is."""
        app = wire_app(max_backlog=1000)

        async with load_reader(app) as (wire, push):
            wire.stop_reading()
            while wire.waiting_bytes <= 1000:
                push(way, "x", 8000)
                await turns()
            assert app.stats()["slow_clients_dropped"] == 0
            push(way, "x", 0)

            assert app.stats()["slow_clients_dropped"] == 1

    @pytest.mark.parametrize("way", ["group", "direct", "thread"])
    async def test_nobody_awaits(
        self, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that reads a few bytes now and then is closed with 4508."""
        monkeypatch.setattr(wsappy, "SLOW_GRACE", LIMIT)
        app = wire_app(max_backlog=2**16)

        async with load_reader(app) as (wire, push):
            wire.stop_reading()
            most = 0
            while not app.stats()["slow_clients_dropped"]:
                if way == "thread":
                    await asyncio.to_thread(push, "direct", "x", 1000)
                else:
                    push(way, "x", 1000)
                await load_sip(wire)
                most = max(most, wire.waiting_bytes)
            wire.read_on()
            wire.send(wire_close(4508))

            assert most < 2**17
            assert (await wire.ended())[-23:] == b"\x88\x15\x11\x9cit reads too slowly"

        assert app.stats()["closed"] == {"4508": 1}

    @pytest.mark.parametrize("kind", ["async def", "thread"])
    async def test_nobody_awaits_events(self, kind: str) -> None:
        """So is one whose handler sends events without awaiting them."""
        app = wire_app(max_backlog=2**16)
        module = app.module("e")

        @module.method("async def")
        async def say(request: Request) -> None:
            while not app.stats()["slow_clients_dropped"]:
                request.response("x", "x" * 1000)
                await asyncio.sleep(0)

        @module.method("thread", thread=True)
        def say_here(request: Request) -> None:
            while not app.stats()["slow_clients_dropped"] and request.client.groups:
                request.response("x", "x" * 1000)
                time.sleep(0.0001)

        async with load_reader(app) as (wire, _):
            wire.stop_reading()
            wire.send(wire_call(kind))
            most = 0
            while not app.stats()["slow_clients_dropped"]:
                await load_sip(wire)
                most = max(most, wire.waiting_bytes)

            assert most < 2**17

    async def test_awaited_pushes(self) -> None:
        """Pushes of which each waits for the last don't close a slow reader."""
        app, count = wire_app(max_backlog=2**16), 40

        async with load_reader(app) as (wire, _):
            client = wire.client
            wire.narrow()

            async def say() -> None:
                for number in range(count):
                    await client.push("e", str(number), "x" * 2**16)

            saying = asyncio.create_task(say())
            await wire_until(lambda: wire.is_behind)
            events = [(await wire.answer())["event"] for _ in range(count)]
            await saying

        assert events == list(map(str, range(count)))
        assert app.stats()["slow_clients_dropped"] == 0

    async def test_awaited_events(self) -> None:
        """Nor do the events of a handler that awaits each of them."""
        app, count = wire_app(max_backlog=2**16), 40

        @app.module("e")
        @app.method
        async def say(request: Request) -> None:
            for number in range(count):
                await request.response(str(number), "x" * 2**16)

        async with load_reader(app) as (wire, _):
            wire.narrow()
            wire.send(wire_call("say"))
            await wire_until(lambda: wire.is_behind)
            events = [(await wire.answer())["event"] for _ in range(count)]

        assert events == list(map(str, range(count)))
        assert app.stats()["slow_clients_dropped"] == 0


async def load_sip(wire: Wire) -> None:
    """Read ten bytes, if any are there, past the client's paused transport."""
    with contextlib.suppress(BlockingIOError):
        os.read(wire.writer.get_extra_info("socket").fileno(), 10)
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def load_reader(
    app: App,
) -> AsyncIterator[tuple[Wire, Callable[[str, str, int], None]]]:
    """Connect; yield the client, and what pushes to it: directly or to its group."""
    async with wired(app) as wire:
        client = wire.client
        client.join("room")

        def push(way: str, event: str, size: int) -> None:
            target: Any = client if way == "direct" else app.to("room")
            target.push("e", event, "x" * size)

        yield wire, push


async def wire_wait(sent: wsappy.Sent) -> str:
    """Wait for a message that was sent already."""
    await sent
    return "done"


class TestKeepalive:
    """Dead peers are found by ping."""

    async def test_no_pong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that answers no ping is failed with 1011, then aborted."""
        monkeypatch.setattr(wsappy, "SLOW_GRACE", 0.05)
        limits = {"ping_interval": 0.01, "ping_timeout": 0.01}

        async with wired(wire_app(), serve=limits) as wire:
            first, _ = await wire.frame()

            assert first == FIN | PING
            assert await wire.closed() == (1011, "keepalive ping timeout")
            await wire_until(lambda: wire.is_gone)

    async def test_pong(self) -> None:
        """A peer that answers is pinged again."""
        limits = {"ping_interval": 0.01, "ping_timeout": LIMIT}

        async with wired(wire_app(), serve=limits) as wire:
            for _ in range(3):
                first, payload = await wire.frame()
                assert first == FIN | PING
                wire.send(wire_frame(payload, FIN | PONG))

    async def test_pong_behind_a_message(self) -> None:
        """Any byte is a sign of life: a pong may be stuck behind a large message."""
        limits = {"ping_interval": 0.02, "ping_timeout": 0.2}

        async with wired(wire_app(), serve=limits) as wire:
            message = wire_call("echo", text="x" * 200)
            for position in range(3):
                assert (await wire.frame())[0] == FIN | PING
                wire.send(message[position : position + 1])
            wire.send(message[3:])

            while (frame := await wire.frame())[0] == FIN | PING:
                pass
            assert json.loads(frame[1])["data"] == {"text": "x" * 200}

    async def test_no_byte_behind_a_part(self) -> None:
        """A peer that stops in the middle of a message is failed."""
        limits = {"ping_interval": 0.02, "ping_timeout": 0.05}

        async with wired(wire_app(), serve=limits) as wire:
            wire.send(wire_call("echo", text="x" * 200)[:9])
            while (frame := await wire.frame())[0] == FIN | PING:
                pass

            assert frame[1][2:] == b"keepalive ping timeout"

    async def test_no_pong_across_a_pause(self) -> None:
        """While reading was paused no pong could come, so its absence says nothing."""
        app, limits = wire_app(), {"ping_interval": 0.05, "ping_timeout": 0.3}

        async with wired(app, serve=limits) as wire:
            await wire.frame()
            wire.stop_reading()
            wire.send(wire_call("fill", size=2**22))
            await wire_until(lambda: wire.is_behind)
            wire.read_on()
            await wire.answer()
            first, payload = await wire.frame()

            assert app.stats()["pauses"] == 1
            assert first == FIN | PING
            wire.send(wire_frame(payload, FIN | PONG))

    async def test_no_verdict_while_raw_messages_wait(self) -> None:
        """A client with too many messages for a slow `on_message` to take stays."""
        app, go_on = App(grace=0), asyncio.Event()
        limits = {"ping_interval": 0.02, "ping_timeout": 0.05}

        @app.client("/raw")
        class Slow(Client):
            async def on_message(self, message: str | bytes) -> None:
                await go_on.wait()
                await self.connection.send("taken")

        async with wired(app, path="/raw", serve=limits) as wire:
            wire.send(wire_frame(bytes(2**15)) * 4)
            await wire_until(lambda: not wire.is_read)
            asyncio.get_running_loop().call_later(0.4, go_on.set)
            frames = [await wire.frame()]
            while frames.count((FIN | TEXT, b"taken")) < 4:
                frames.append(await wire.frame())

            assert wire.connection.state is State.OPEN

    async def test_gone_while_raw_messages_wait(self) -> None:
        """A client that is gone is found, though nothing is read from it."""
        app, gone = App(grace=0), asyncio.Event()
        limits = {"ping_interval": 0.02, "ping_timeout": 0.05}

        @app.client("/raw")
        class Slow(Client):
            async def on_message(self, message: str | bytes) -> None:
                await asyncio.Event().wait()

            async def on_disconnected(self) -> None:
                gone.set()

        async with wired(app, path="/raw", serve=limits) as wire:
            wire.send(wire_frame(bytes(2**15)) * 4)
            await wire_until(lambda: not wire.is_read)
            assert app.stats()["pauses"] > 0
            wire.reset()

            async with asyncio.timeout(LIMIT):
                await gone.wait()

    async def test_switched_off(self) -> None:
        """Without a `ping_interval`, from now on, it is pinged no more."""
        limits = {"ping_interval": 0.01, "ping_timeout": LIMIT}

        async with wired(wire_app(), serve=limits) as wire:
            _, payload = await wire.frame()
            wire.connection.ping_interval = None
            wire.send(wire_frame(payload, FIN | PONG))

            await wire_until(lambda: not wire.is_pinged)

    async def test_beside_a_long_goodbye(self) -> None:
        """A goodbye that takes long keeps no other peer from being looked at."""
        app = wire_app()
        limits = {"ping_interval": 0.02, "ping_timeout": 0.02}
        is_free = asyncio.Event()

        @app.client("/slow")
        async def slow(client: Client) -> AsyncIterator[None]:
            yield
            await is_free.wait()

        async with wired(app, path="/slow", serve=limits) as gone:
            gone.reset()
            async with dialled(gone.serving, wire_request()) as wire:
                await wire.head()
                first, _ = await wire.frame()
                assert first == FIN | PING
                assert await wire.closed() == (1011, "keepalive ping timeout")
                is_free.set()

    async def test_close_without_echo(self) -> None:
        """A peer that never answers a close is aborted after `close_timeout`."""
        async with wired(wire_app(), serve={"close_timeout": 0.05}) as wire:
            wire.close()
            assert await wire.closed() == (1000, "")

            assert await wire.ended() == b""
            await wire_until(lambda: wire.is_gone)


# -- The lane and the library -------------------------------------------------


class LibraryLane(wsappy.Lane):
    """A lane that leaves every byte to the library."""

    def read(self, data: bytes) -> None:
        """Hand over bytes of an open connection."""
        self.wire.is_collecting = True
        self.wire.give(data)
        self.wire.is_collecting = False
        self.wire.flush()


# Bytes of the largest message, in the comparison of lane and library, and its examples.
EQUAL_MAX_SIZE = 2**12
EQUAL_EXAMPLES = 150


def equal_pieces(payload: bytes, first: int, cuts: list[int]) -> list[bytes]:
    """Return a message in fragments."""
    ends = [*sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    frames: list[bytes] = []
    start = 0
    for end in ends:
        opcode = first if not frames else CONT
        fin = FIN if len(frames) == len(ends) - 1 else 0
        frames.append(wire_frame(payload[start:end], opcode | fin))
        start = end
    return frames


def equal_deflated(payload: bytes) -> bytes:
    """Return a message, compressed."""
    deflate = zlib.compressobj(wbits=-15)
    return (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def equal_long_form(frame: bytes) -> bytes:
    """Write the length of a short frame in the longest form."""
    return bytes((frame[0], 0xFF)) + struct.pack("!Q", frame[1] & 0x7F) + frame[2:]


@st.composite
def equal_messages(draw: st.DrawFn) -> list[bytes]:
    """Draw the frames of one message that may end nothing."""
    payload = draw(
        st.one_of(
            st.builds(wire_json, request_id=st.integers(0, 99)),
            st.builds(wire_json, x=st.text("ab\u20ac", max_size=130)),
            st.sampled_from(
                [
                    b"",
                    b"{",
                    b"[]",
                    wire_json("none"),
                    wire_json().ljust(EQUAL_MAX_SIZE),
                ]
            ),
        )
    )
    opcode = draw(st.sampled_from([TEXT, TEXT, BINARY]))
    if draw(st.integers(0, 3)) == 0:
        payload, opcode = equal_deflated(payload), opcode | RSV1
    if draw(st.integers(0, 2)) == 0:
        frames = equal_pieces(
            payload, opcode, draw(st.lists(st.integers(0), max_size=3))
        )
        for _ in range(draw(st.integers(0, 1))):
            control = wire_frame(b"between", FIN | draw(st.sampled_from([PING, PONG])))
            frames.insert(draw(st.integers(0, len(frames))), control)
        return frames
    frame = wire_frame(payload, FIN | opcode)
    is_short = len(payload) < 126 and draw(st.booleans())
    return [equal_long_form(frame) if is_short else frame]


EQUAL_CONTROLS = st.builds(
    lambda payload, opcode: [wire_frame(payload, FIN | opcode)],
    st.binary(max_size=125),
    st.sampled_from([PING, PING, PONG]),
)
EQUAL_NOT_UTF8 = [
    [wire_frame(b"{\xff")],
    [wire_frame(b"\xe2\x82", TEXT), wire_frame(b"", FIN | CONT)],
    [wire_deflated(b"{\xc0\xaf")],
]
EQUAL_ENDS = st.one_of(
    st.sampled_from(
        [
            wire_close(),
            wire_close(3000, b"bye"),
            wire_frame(b"", FIN | CLOSE),
            wire_frame(b"\x03", FIN | CLOSE),
            wire_close(1005),
            wire_close(1000, b"\xff"),
            wire_frame(bytes(EQUAL_MAX_SIZE + 1)),
            wire_frame(bytes(EQUAL_MAX_SIZE + 1), TEXT),
            wire_deflated(bytes(EQUAL_MAX_SIZE + 1)),
            wire_frame(b"\xff\xff", FIN | RSV1 | TEXT),
            wire_frame(b"{}", TEXT),
            wire_frame(b"{}", CONT),
            wire_frame(b"{}", FIN | CONT),
            wire_frame(b"{}", FIN | RSV1 | CONT),
            wire_frame(b"{}", PING),
            wire_frame(bytes(126), FIN | PING),
            b"\x81\x02{}",
            b"\x89\x00",
        ]
    ),
    st.builds(
        lambda first: wire_frame(b"{}", first),
        st.integers(0, 255).filter(lambda first: first & 0x30 or first & 15 in {3, 11}),
    ),
).map(lambda frame: [frame])
EQUAL_STEPS = st.one_of(
    *[equal_messages()] * 5,
    EQUAL_CONTROLS,
    EQUAL_CONTROLS,
    st.sampled_from(EQUAL_NOT_UTF8),
    EQUAL_ENDS,
)


class Heard(NamedTuple):
    """What a server said, each kind as its own sequence."""

    messages: list[bytes]
    pongs: list[bytes]
    close: bytes | None


async def equal_talk(serving: Any, pieces: list[bytes], extensions: str) -> Heard:
    """Send bytes piece by piece, and read all that comes back."""
    ends = await asyncio.open_connection("127.0.0.1", serving.port)
    wire, heard, close = Wire(serving, ends), Heard([], [], None), None
    wire.send(wire_request("/api", extensions))
    await wire.reader.readuntil(b"\r\n\r\n")
    await wire.trickle(*pieces, wire_call(request_id="end"))
    with contextlib.suppress(asyncio.IncompleteReadError):
        while b'"end"' not in (heard.messages or [b""])[-1]:
            first, payload = await wire.frame()
            if first == FIN | CLOSE:
                close = payload
            else:
                said = {FIN | TEXT: heard.messages, FIN | PONG: heard.pongs}
                said[first].append(payload)
    wire.writer.transport.abort()
    return heard._replace(close=close)


Hear = Callable[[bool, list[bytes]], Heard]


@contextlib.contextmanager
def equal_servers(extensions: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hear]:
    """Serve with the lane and without; return what talks to one of them."""
    options: dict[str, Any] = {"max_size": EQUAL_MAX_SIZE, "ping_interval": None}
    options["compression"] = "deflate" if extensions else None
    servings = [wire_app().serve("127.0.0.1", 0, **options) for _ in range(2)]

    def hear(has_lane: bool, pieces: list[bytes]) -> Heard:
        return runner.run(equal_talk(servings[has_lane], pieces, extensions))

    with asyncio.Runner() as runner:
        runner.run(servings[True].__aenter__())
        monkeypatch.setattr(wsappy, "Lane", LibraryLane)
        runner.run(servings[False].__aenter__())
        try:
            yield hear
        finally:
            for serving in servings:
                runner.run(serving.__aexit__())


def equal_compare(
    hear: Hear, steps: list[list[bytes]], cuts: list[int], not_utf8: list[list[bytes]]
) -> None:
    """Compare what both say to some frames that are cut at some places."""
    data = b"".join(frame for step in steps for frame in step)
    spots = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(spots)]
    ours, theirs = hear(True, pieces), hear(False, pieces)
    if ours == theirs:
        return
    assert ours.close is not None
    assert theirs.messages == ours.messages[: len(theirs.messages)]
    if ours.close[:2] != b"\x03\xef":
        assert theirs[1:] == ours[1:]
        return
    # The library looks for UTF-8 behind all frames of a read: pongs go out before, and
    # the end that another frame brings.
    assert ours.pongs == theirs.pongs[: len(ours.pongs)]
    if theirs.close != ours.close:
        bad = [spot for spot, step in enumerate(steps) if step in not_utf8]
        passed = [set(bad[: count + 1]) for count in range(len(bad))]
        assert theirs.close in [
            hear(
                False,
                [b"".join(step) for at, step in enumerate(steps) if at not in each],
            ).close
            for each in passed
        ]


class TestEquality:
    """The lane and the plain library give the same."""

    @BOTH
    def test_random_frames(
        self, extensions: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Messages, pongs and close are the same, but for what one read allows."""
        steps = st.lists(EQUAL_STEPS, max_size=12)
        cuts = st.lists(st.integers(0), max_size=9)
        not_utf8 = EQUAL_NOT_UTF8 if extensions else EQUAL_NOT_UTF8[:-1]

        with equal_servers(extensions, monkeypatch) as hear:

            @settings(max_examples=EQUAL_EXAMPLES, deadline=None, database=None)
            @given(steps, cuts)
            def compare(steps: list[list[bytes]], cuts: list[int]) -> None:
                equal_compare(hear, steps, cuts, not_utf8)

            compare()


# --- 5. Calls ----------------------------------------------------------------


class CallsWire(wsappy.Wire):
    """A wire without I/O that keeps what is sent; alone it knows how calls work.

    Attributes:
        posted: The messages that were sent, and "writable" where a sender waited.
        ends: Close codes and reasons.
    """

    close_exc: Any = ConnectionResetError("gone")

    def __init__(
        self, app: App, *, request: Any = None, max_size: int | None = 1000
    ) -> None:
        super().__init__(wsappy.Runtime(wsappy.Threads(4)))
        self.app = app
        self.loop = self.runtime.loop
        self.opening = wsappy.Opening("/api", Headers(), ("127.0.0.1", 1), "c1")
        self.params: dict[str, Any] = {}
        self.max_size = max_size
        self.paused = False
        self.posted: list[Any] = []
        self.ends: list[tuple[int, str]] = []
        app.prepare()
        found = app.table.find("/api")
        assert found is not None
        route, _ = found
        self.phase = wsappy.Phase.OPEN
        self.client = route.factory(self)
        if request is not None:
            route.overrides = wsappy.overrides_of(type(self.client), request)
        context = contextvars.copy_context()
        self.calls = wsappy.Calls(app, route, self, self.client, context)
        test: Any = asyncio.current_task()
        test.add_done_callback(lambda _: self.calls.abandon())

    def post(self, payload: bytes) -> None:
        """Keep what is sent."""
        self.posted.append(json.loads(payload))

    def push(self, payload: bytes) -> None:
        """Keep what is pushed."""
        self.post(payload)

    def shut(self, code: int, reason: str = "") -> None:
        """Keep the end of the connection."""
        self.ends.append((code, reason))

    def fail(self, code: int, reason: str) -> None:
        """Keep the end of the connection."""
        self.ends.append((code, reason))

    def halt(self) -> None:
        """Read no further in this turn of the loop."""

    async def wait_closed(self) -> None:
        """Be gone."""

    async def written(self) -> None:
        """Wait for the transport, which has written all."""
        self.posted.append("written")

    async def writable(self) -> None:
        """Wait until the client has caught up, which it does at once."""
        self.paused = False
        self.posted.append("writable")

    def open(self) -> CallsWire:
        """Let calls begin, as the end of `on_connected` does."""
        self.calls.is_greeting = False
        self.calls.release()
        return self

    def hold(self) -> None:
        """Let calls wait, as while `on_connected` runs."""
        self.calls.is_greeting = True
        self.calls.set_gate()

    def fall_behind(self) -> None:
        """Be a client that reads too slowly, until a sender has waited for it."""
        self.paused = True

    def stop(self) -> None:
        """Refuse calls and end the streams, as at the beginning of a stop."""
        self.calls.stop()

    def cut_off(self) -> None:
        """End every call, as at the end of a stop's grace."""
        self.calls.cut_off()

    def abandon(self) -> None:
        """Lose the client; `settled` waits for what must end."""
        self.calls.abandon()

    def unfinished(self) -> int:
        """Return how many calls are unfinished."""
        return len(self.calls.unfinished)

    def counted(self, counter: str) -> int:
        """Return a counter of the application's."""
        return int(self.app.counts[counter])

    async def ask(self, data: Any, seconds: float = LIMIT) -> Any:
        """Call `ui.confirm` of the client; return the result."""
        return await self.calls.asked.ask("ui", "confirm", data, seconds)

    def read(self, message: Any, *, is_text: bool = True) -> Any:
        """Take a message; return what was sent meanwhile: one message, or a list."""
        is_raw = isinstance(message, bytes)
        count = len(self.posted)
        self.calls.receive(message if is_raw else json.dumps(message).encode(), is_text)
        sent = self.posted[count:]
        return sent[0] if len(sent) == 1 else sent

    def call(self, name: str, request_id: Any = 1, /, **data: Any) -> Any:
        """Call a method; return what was sent meanwhile."""
        module, _, method = name.partition(".")
        message = {"module": module, "method": method, "data": data}
        return self.read({**message, "request_id": request_id})

    async def settled(self) -> list[Any]:
        """Wait until no call is unfinished; return all that was sent, in order."""
        async with asyncio.timeout(LIMIT):
            while self.calls.unfinished or self.calls.answers.senders:
                await asyncio.wait(
                    [*self.calls.unfinished, *self.calls.answers.senders]
                )
            await asyncio.sleep(0)
        return self.posted

    async def sent(self, count: int) -> list[Any]:
        """Wait until that many messages were sent; return them."""
        async with asyncio.timeout(LIMIT):
            while len(self.posted) < count:
                await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0))])
        return self.posted


def calls_wire(
    *handlers: Callable[..., Any], max_size: int | None = 1000, **options: Any
) -> CallsWire:
    """Make an open wire whose module `m` has the handlers."""
    app = make_app(**options)
    for handler in handlers:
        app.module("m")(handler if wsappy.mark_of(handler) else app.method(handler))
    return CallsWire(app, max_size=max_size).open()


def calls_event(method: str, event: str, data: Any, request_id: Any = 1) -> Any:
    """Return an event of the module `m`."""
    head = {"request_id": request_id, "module": "m", "method": method}
    return {**head, "event": event, "data": data}


def calls_error(method: str, code: str, message: str, **more: Any) -> Any:
    """Return an error of the module `m`."""
    return calls_event(method, "error", {"code": code, "message": message, **more})


class CallsLater:
    """An awaitable object."""

    def __init__(self, work: Awaitable[Any]) -> None:
        self.work = work

    def __await__(self) -> Generator[Any, Any, Any]:
        """Await what it was made of."""
        return self.work.__await__()


async def calls_later(outcome: Any) -> Any:
    """Return a value, or raise it, in another turn."""
    await asyncio.sleep(0)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@types.coroutine
def calls_later_generator(outcome: Any) -> Generator[Any, Any, Any]:
    """Do the same as a plain generator that is marked as a coroutine."""
    return (yield from calls_later(outcome).__await__())


# What a `def` may return to be awaited, by kind.
CALLS_LATER: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "coroutine": calls_later,
    "generator": calls_later_generator,
    "object": lambda outcome: CallsLater(calls_later(outcome)),
    "future": lambda outcome: asyncio.ensure_future(calls_later(outcome)),
}
CALLS_OVERLOADED = {"message": "too many unfinished calls", "retry": True}
CALLS_STOPPING = {"message": "the server is stopping", "retry": True}


def echo(request: Request, value: Any = None) -> Any:
    """Return the value."""
    return value


async def sleep_on(request: Request, value: Any = None) -> None:
    """Never end, with a value."""
    await asyncio.get_running_loop().create_future()


async def echo_later(request: Request, value: Any = None) -> Any:
    """Return the value in another turn."""
    await asyncio.sleep(0)
    return value


async def asleep(request: Request) -> None:
    """Never end."""
    await asyncio.get_running_loop().create_future()


NO_OBJECT = "a message must be a JSON object"
UNREADABLE = "a message must be at most 254 deep, and hold no half of a surrogate pair"


def nested(levels: int, request_id: Any = 4, word: str = "echo") -> bytes:
    """Return a call of that many levels, half of them objects."""
    half, odd = divmod(levels - 2, 2)
    deep = '{"a":[' * half + "[" * odd + "]" * odd + "]}" * half
    call = {
        "module": "m",
        "method": word,
        "data": {"value": 0},
        "request_id": request_id,
    }
    return json.dumps(call).replace(": 0}", f": {deep}}}").encode()


class TestReceiving:
    """How a message is read, from the top of the protocol's table."""

    @pytest.mark.parametrize(
        ("message", "request_id", "why"),
        [
            (b"nonsense", None, "a message must be a JSON object"),
            (b"[1]", None, "a message must be a JSON object"),
            (b'"text"', None, "a message must be a JSON object"),
            (b"7", None, "a message must be a JSON object"),
            (b"null", None, "a message must be a JSON object"),
            (b"[" * 100_000, None, "a message must be a JSON object"),
            (b'{"method":"\\ud800"}', None, UNREADABLE),
            (b'{"method":"\\ud800","request_id":4}', 4, UNREADABLE),
            (b'{"x":["\\udc00"],"request_id":"x"}', "x", UNREADABLE),
            (b'{"x":"\\ud800","request_id":1.5}', None, UNREADABLE),
            (b'{"request_id":"\\ud800"}', None, UNREADABLE),
            (b'["\\ud800"]', None, "a message must be a JSON object"),
            (b'{"x":"\\ud800","y":NaN,"request_id":4}', None, NO_OBJECT),
            (b'{"x":"\\ud800","request_id":4', None, NO_OBJECT),
            (b'{"data": NaN}', None, "a message must be a JSON object"),
            ({"module": "m", "request_id": 4}, 4, "method must be a string"),
            ({"method": "m", "request_id": "x"}, "x", "module must be a string"),
            ({"module": 1, "request_id": 4}, 4, "module must be a string"),
            (
                {"module": "m", "method": "echo", "data": [], "request_id": 4},
                4,
                "data must be an object",
            ),
            (
                {"module": "m", "method": "echo", "items": 0, "request_id": 4},
                4,
                "items must be an integer of at least 1",
            ),
            (
                {"module": "m", "method": "echo", "items": True, "request_id": 4},
                4,
                "items must be an integer of at least 1",
            ),
            ({"event": 1, "request_id": 4}, None, "event must be a string"),
            ({"event": None, "request_id": 4}, None, "event must be a string"),
            *((nested(levels), 4, UNREADABLE) for levels in (255, 1024, 1025, 100_000)),
            (nested(255, 2.5), None, UNREADABLE),
            (nested(100_000, "x]}"), "x]}", UNREADABLE),
            (nested(100_000)[:-1], None, NO_OBJECT),
            (b'{"event": "x", %s' % nested(255)[1:], 4, UNREADABLE),
        ],
    )
    async def test_bad_message(self, message: Any, request_id: Any, why: str) -> None:
        """What is neither a call nor an event is answered `bad_message`."""
        wire = calls_wire(echo)

        answer = wire.read(message)

        assert answer["request_id"] == request_id
        assert answer["data"] == {"code": "bad_message", "message": why}

    @pytest.mark.parametrize(
        "request_id", [True, 1.0, 2**63, -(2**63) - 1, [], {}, "x" * 129]
    )
    async def test_bad_request_id(self, request_id: Any) -> None:
        """A request_id that isn't allowed is answered with null."""
        wire = calls_wire(echo)

        answer = wire.call("m.echo", request_id)

        assert answer["request_id"] is None
        assert answer["data"]["code"] == "bad_message"

    @pytest.mark.parametrize("request_id", [0, 2**63 - 1, -(2**63), "", "x" * 128, "é"])
    async def test_good_request_id(self, request_id: Any) -> None:
        """The request_id comes back unchanged."""
        wire = calls_wire(echo)

        answer = wire.call("m.echo", request_id, value=5)

        assert answer == calls_event("echo", "result", 5, request_id)

    async def test_names_in_the_answer_to_a_bad_message(self) -> None:
        """The answer to a bad message names the strings that it had."""
        wire = calls_wire(echo)

        answer = wire.read({"module": "m", "method": 5, "request_id": 1})

        assert (answer["module"], answer["method"]) == ("m", None)

    async def test_text_that_is_not_utf8(self) -> None:
        """A text frame that isn't UTF-8 ends the connection with 1007."""
        wire = calls_wire(echo)

        wire.read(b"\xff")

        assert (wire.ends, wire.posted) == (
            [(1007, "invalid start byte at position 0")],
            [],
        )

    async def test_binary_that_is_not_utf8(self) -> None:
        """A binary frame that isn't UTF-8 is a bad message."""
        wire = calls_wire(echo)

        answer = wire.read(b"\xff", is_text=False)

        assert answer["data"]["code"] == "bad_message"

    async def test_sixteen_bad_messages_in_a_row(self) -> None:
        """The sixteenth bad message in a row is answered, then it's 4400."""
        wire = calls_wire(echo)

        for _ in range(16):
            wire.read(b"?")

        assert len(wire.posted) == 16
        assert wire.ends == [(4400, "16 bad messages in a row")]

    @pytest.mark.parametrize("name", ["m.echo", "m.nothing"])
    async def test_call_between_bad_messages(self, name: str) -> None:
        """Any call, known or not, starts the count again."""
        wire = calls_wire(echo)

        for _ in range(15):
            wire.read(b"?")
        wire.call(name)
        wire.read(b"?")

        assert wire.ends == []

    @pytest.mark.parametrize(
        ("request_id", "counter"), [(None, "dropped_push"), (7, "dropped_event")]
    )
    async def test_event_that_nobody_waits_for(
        self, request_id: Any, counter: str
    ) -> None:
        """A push and a late answer are dropped and counted."""
        wire = calls_wire(echo)

        answer = wire.read({"event": "result", "request_id": request_id})

        assert answer == []
        assert wire.counted(counter) == 1

    async def test_other_keys(self) -> None:
        """Keys that are not listed are ignored."""
        wire = calls_wire(echo)

        answer = wire.read(
            {"module": "m", "method": "echo", "request_id": 1, "more": [1]}
        )

        assert answer == calls_event("echo", "result", {})

    @pytest.mark.parametrize("loads", [orjson.loads, json.loads])
    async def test_nesting(self, loads: Any, caplog: pytest.LogCaptureFixture) -> None:
        """What may be read can be written back: 254 levels."""
        wire = calls_wire(echo, loads=loads)

        answers = [wire.read(nested(levels)) for levels in (254, 255)]
        big = nested(255).replace(b'"value": ', b'"more": %d, "value": ' % 2**70)
        answers.append(wire.read(big))

        assert json.dumps(answers[0]["data"]).count("[") == 126
        assert error_of(answers[1]) == ("bad_message", UNREADABLE)
        assert error_of(answers[2]) == ("bad_message", UNREADABLE)
        assert caplog.messages == []

    async def test_many_brackets(self) -> None:
        """A message of many lists is read, as long as they are side by side."""
        wire = calls_wire(echo, loads=functools.partial(json.loads, parse_int=str))

        answer = wire.call("m.echo", "x", value=[[1]] * 300)

        assert answer == calls_event("echo", "result", [["1"]] * 300, "x")

    @pytest.mark.parametrize("module", ["m" * 2**20, "\0" * 2**20])
    @pytest.mark.parametrize("rest", [{"data": {}}, {"data": []}])
    async def test_long_names(self, module: str, rest: Any) -> None:
        """An answer has 200 characters of names that nobody knows."""
        wire = calls_wire(echo)

        answer = wire.read(
            {"module": module, "method": module, "request_id": 1, **rest}
        )

        assert (answer["module"], answer["method"]) == (f"{module[:200]}…",) * 2

    async def test_codec_that_returns_something_else(self) -> None:
        """What a codec of one's own reads must be a dict, or it's a bad message."""
        wire = calls_wire(echo, loads=lambda payload: {1: 2}.keys())

        answer = wire.read(b"{}")

        assert answer["data"]["code"] == "bad_message"


class TestFindingMethods:
    """How a call finds its method and its arguments."""

    @pytest.mark.parametrize("wraps", [False, True])
    async def test_method_of_another_route(
        self, wraps: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A method that is registered for another route is named once in the log."""
        caplog.set_level(logging.INFO, "wsappy")

        class Wrapping(Client):
            async def process_message(self, request: Request) -> Any:
                return await super().process_message(request)

        app = App()
        app.client("/api")(Wrapping if wraps else Client)
        app.client("/admin")(Client)
        app.module("m", clients=["/admin"])(app.method(echo))

        async with talking(app) as talk:
            answers = [await talk.call("m.echo") for _ in range(2)]

        assert {error_of(each)[0] for each in answers} == {"unknown_method"}
        assert [each for each in caplog.messages if "m.echo" in each] == [
            f"'m.echo' was called at '/api', but handler {describe(echo)} is for "
            f"clients=['/admin']"
        ]

    @pytest.mark.parametrize(
        "name", ["m.nothing", "x.echo", "m.__init__", "m.echo.__call__", "m."]
    )
    async def test_unknown_method(self, name: str) -> None:
        """A module or a method that isn't there has one code for both."""
        wire = calls_wire(echo)

        answer = wire.call(name)

        assert error_of(answer) == ("unknown_method", "no such module or method")

    async def test_bad_data(self) -> None:
        """An argument that is unknown is `bad_data` with its details."""
        wire = calls_wire(echo)

        answer = wire.call("m.echo", valu=1)

        details = [{"argument": "valu", "message": "unknown"}]
        assert answer == calls_error(
            "echo", "bad_data", "valu: unknown", details=details
        )

    async def test_one_call_too_many(self) -> None:
        """A call above `max_in_flight` is answered `overloaded` at once."""
        wire = calls_wire(asleep, echo, max_in_flight=2)

        wire.call("m.asleep")
        wire.call("m.asleep")
        answer = wire.call("m.echo")

        assert answer == calls_event(
            "echo", "error", {"code": "overloaded", **CALLS_OVERLOADED}
        )


class TestBytesInFlight:
    """`max_in_flight_bytes`: the messages of held and unfinished calls."""

    async def test_one_call_too_large(self) -> None:
        """A call with which there are too many bytes is `overloaded`."""
        wire = calls_wire(sleep_on, max_in_flight_bytes=1000, max_size=None)

        wire.call("m.sleep_on", 1, value="x" * 600)
        wire.call("m.sleep_on", 2, value="x" * 600)
        (answer,) = await wire.sent(1)

        assert answer["request_id"] == 2
        assert answer["data"] == {"code": "overloaded", **CALLS_OVERLOADED}

    async def test_one_always_runs(self) -> None:
        """A call of whatever size runs where it is alone."""
        wire = calls_wire(echo_later, max_in_flight_bytes=10, max_size=None)

        wire.call("m.echo_later", 1, value="x" * 600)

        assert await wire.settled() == [
            calls_event("echo_later", "result", "x" * 600),
        ]

    async def test_held_calls(self) -> None:
        """Calls that are held count, too."""
        wire = calls_wire(echo, max_in_flight_bytes=1000, max_size=None)
        wire.hold()

        wire.call("m.echo", 1, value="x" * 600)
        answer = wire.call("m.echo", 2, value="x" * 600)

        assert error_of(answer)[0] == "overloaded"

    @pytest.mark.parametrize("end", ["result", "cancel held", "cancel begun"])
    async def test_end(self, end: str) -> None:
        """What has ended counts no longer."""
        wire = calls_wire(echo_later, max_in_flight_bytes=1000, max_size=None)
        if end == "cancel held":
            wire.hold()

        wire.call("m.echo_later", 1, value="x" * 600)
        if end != "result":
            wire.call("$.cancel", None, request_id=1)
        await wire.settled()
        wire.open()
        wire.call("m.echo_later", 2, value="x" * 600)

        assert (await wire.settled())[-1] == (
            calls_event("echo_later", "result", "x" * 600, 2)
        )


class TestReady:
    """`request.ready`: what a stream computes after it is fresh."""

    async def test_credit_and_transport(self) -> None:
        """It waits until the caller has credit, then for the transport."""
        computed: list[int] = []

        async def watch(request: Request) -> AsyncIterator[int]:
            for number in range(3):
                await request.ready()
                computed.append(number)
                yield number

        wire = calls_wire(watch)
        message = {"module": "m", "method": "watch", "request_id": 1, "items": 1}
        wire.read(message)

        posted = list(await wire.sent(2))
        await turns()
        before = list(computed)
        wire.call("$.more", None, request_id=1, items=1)
        await turns()

        assert posted == ["written", calls_event("watch", "item", 0)]
        assert (before, computed) == ([0], [0, 1])

    async def test_without_credit(self) -> None:
        """A caller that gives no credit is waited for by the transport alone."""

        async def watch(request: Request) -> AsyncIterator[int]:
            await request.ready()
            yield 1

        wire = calls_wire(watch)

        wire.call("m.watch")

        assert await wire.settled() == [
            "written",
            calls_event("watch", "item", 1),
            calls_event("watch", "result", {}),
        ]

    async def test_slow_reader(self) -> None:
        """A slow reader sees the newest value, and nothing waits for it."""
        app, numbers = wire_app(), itertools.count()

        @app.module("e")
        @app.method
        async def watch(request: Request) -> AsyncIterator[Any]:
            while True:
                await request.ready()
                yield next(numbers), "x" * 2**16

        async with wired(app) as wire:
            wire.stop_reading()
            wire.send(wire_call("watch"))
            await wire_until(lambda: wire.is_behind)
            await turns()
            assert wire.waiting_bytes < 2**17

            wire.read_on()
            assert [(await wire.answer())["data"][0] for _ in range(20)] == [*range(20)]


class TestAnswers:
    """What a handler returns, raises and sends itself."""

    @pytest.mark.parametrize("value", [0, False, "", [], {"a": 1}, 1.5, "text"])
    async def test_returned_value(self, value: Any) -> None:
        """What the handler returns is the data of the result."""
        wire = calls_wire(echo)

        answer = wire.call("m.echo", value=value)

        assert answer == calls_event("echo", "result", value)

    async def test_returned_none(self) -> None:
        """None becomes an empty object."""
        wire = calls_wire(echo)

        answer = wire.call("m.echo")

        assert answer == calls_event("echo", "result", {})

    async def test_fire_and_forget(self) -> None:
        """A call without a request_id that returns None is not answered."""
        wire = calls_wire(echo)

        answer = wire.call("m.echo", None)

        assert answer == []

    async def test_value_without_request_id(self) -> None:
        """A value is sent, with request_id null, also to a call without one."""
        wire = calls_wire(echo)

        answer = wire.call("m.echo", None, value=1)

        assert answer == calls_event("echo", "result", 1, None)

    async def test_key_order(self) -> None:
        """An event's keys are written in the order of the protocol."""
        wire = calls_wire(echo)

        answer = wire.call("m.echo")

        assert list(answer) == ["request_id", "module", "method", "event", "data"]

    async def test_error(self) -> None:
        """An `Error` is the answer, with its details and retry."""

        def fail(request: Request) -> None:
            raise Error("not_found", "no item 7", details={"item_id": 7}, retry=True)

        wire = calls_wire(fail)

        answer = wire.call("m.fail")

        assert answer == calls_error(
            "fail", "not_found", "no item 7", details={"item_id": 7}, retry=True
        )

    @pytest.mark.parametrize(
        "exc",
        [RuntimeError("secret"), TimeoutError("secret"), KeyError("secret")],
    )
    async def test_bug(self, exc: Exception, caplog: pytest.LogCaptureFixture) -> None:
        """Any other exception is `internal`, and its text stays in the log."""

        def fail(request: Request) -> None:
            raise exc

        wire = calls_wire(fail)

        answer = wire.call("m.fail")

        assert answer == calls_error("fail", "internal", "internal error")
        assert caplog.messages == ["handler 'm.fail' failed"]

    async def test_refused_in_a_handler(self, caplog: pytest.LogCaptureFixture) -> None:
        """A `Refused` is `internal` as well, and the log says where it belongs."""

        def fail(request: Request) -> None:
            raise Refused(401, "secret")

        answer = calls_wire(fail).call("m.fail")

        assert answer == calls_error("fail", "internal", "internal error")
        assert caplog.messages == [
            "handler 'm.fail' failed; Refused is for on_connecting, write raise "
            "Error('forbidden')"
        ]

    async def test_cancelled_error_of_its_own(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A CancelledError of the handler's own making is `internal`."""

        async def fail(request: Request) -> None:
            raise asyncio.CancelledError

        wire = calls_wire(fail)

        wire.call("m.fail")

        assert await wire.settled() == [
            calls_error("fail", "internal", "internal error")
        ]

    async def test_unwritable_result(self, caplog: pytest.LogCaptureFixture) -> None:
        """What can't be written is `internal`, and the log names handler and type."""

        def fail(request: Request) -> object:
            return {"a": object()}

        wire = calls_wire(fail)

        answer = wire.call("m.fail")

        assert answer == calls_error("fail", "internal", "internal error")
        assert caplog.messages == [
            "what handler 'm.fail' sends can't be written: data.a must be JSON: got "
            "object: Type is not JSON serializable: object"
        ]

    @pytest.mark.parametrize(("levels", "event"), [(254, "result"), (255, "error")])
    async def test_nesting(
        self, levels: int, event: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An answer of more than 254 levels can't be written."""

        def nest(request: Request) -> Any:
            return json.loads("[" * (levels - 1) + "1" + "]" * (levels - 1))

        wire = calls_wire(nest)

        answer = wire.call("m.nest")

        assert answer["event"] == event

    @pytest.mark.parametrize(
        "dumps", [None, functools.partial(json.dumps, ensure_ascii=False)]
    )
    async def test_half_of_a_surrogate_pair(
        self, dumps: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Text that UTF-8 can't hold is `internal`, and the connection stays."""
        app = make_app(dumps=dumps)
        app.module("m")(app.method("half")(lambda request: {"v": "\ud800"}))

        async with talking(app) as talk:
            answers = [await talk.call("m.half"), await talk.call("$.ping")]

        assert error_of(answers[0]) == ("internal", "internal error")
        assert result_of(answers[1]) == {}

    async def test_unwritable_details(self, caplog: pytest.LogCaptureFixture) -> None:
        """Details that can't be written make an error `internal`."""

        def fail(request: Request) -> None:
            raise Error("odd", details=object())

        wire = calls_wire(fail)

        answer = wire.call("m.fail")

        assert error_of(answer) == ("internal", "internal error")

    async def test_codec_that_writes_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A call is answered even where the application's codec fails on everything."""

        def dumps(message: Any) -> bytes:
            raise RuntimeError("odd")

        wire = calls_wire(echo, dumps=dumps)

        answer = wire.call("m.echo")

        assert answer == calls_error("echo", "internal", "internal error")

    async def test_numpy_and_models(self) -> None:
        """What plain orjson refuses is written with all its options."""
        numpy = pytest.importorskip("numpy")

        def numbers(request: Request) -> Any:
            return {1: numpy.arange(3)}

        wire = calls_wire(numbers)

        answer = wire.call("m.numbers")

        assert result_of(answer) == {"1": [0, 1, 2]}


class TestResponse:
    """The events that a handler sends by itself."""

    async def test_own_events(self) -> None:
        """A handler may send events while it runs; the result follows them."""

        async def work(request: Request) -> str:
            await request.response("progress", percent=50)
            return "done"

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [
            calls_event("work", "progress", {"percent": 50}),
            calls_event("work", "result", "done"),
        ]

    async def test_own_terminal_event(self) -> None:
        """If the handler sent the terminal event itself, nothing is added."""

        async def work(request: Request) -> None:
            await request.response("result", [1])

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [calls_event("work", "result", [1])]

    async def test_value_behind_the_end(self, caplog: pytest.LogCaptureFixture) -> None:
        """A value returned behind the terminal event is dropped with a warning."""

        def work(request: Request) -> int:
            request.response("result")
            return 5

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.sent(1) == [calls_event("work", "result", {})]
        assert caplog.messages == [
            "what handler 'm.work' returned after it had answered is dropped"
        ]

    async def test_exception_behind_the_end(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception behind the terminal event is logged, not sent."""

        def work(request: Request) -> None:
            request.response("result")
            raise Error("late")

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.sent(1) == [calls_event("work", "result", {})]
        assert caplog.messages == [
            "handler 'm.work' raised after it had answered: Error('late', '')"
        ]

    @pytest.mark.parametrize(
        ("events", "kind", "why"),
        [
            (
                [("result", {}), ("more", {})],
                RuntimeError,
                "call 'm.work' has ended, but 'more' is sent; send nothing after "
                "'result' or 'error'",
            ),
            (
                [("error", {"message": "odd"})],
                ValueError,
                "data of an error must have code and message: got {'message': 'odd'}; "
                "raise Error('not_found', 'no item 7')",
            ),
        ],
        ids=["event behind the end", "error without code"],
    )
    async def test_mistake(
        self, events: list[Any], kind: type[Exception], why: str
    ) -> None:
        """Nothing follows the terminal event, and an `error` has code and message."""
        raised: list[Exception] = []

        def work(request: Request) -> None:
            try:
                for name, data in events:
                    request.response(name, data)
            except Exception as exc:  # noqa: BLE001
                raised.append(exc)

        wire = calls_wire(work)

        wire.call("m.work")

        assert [(type(each), str(each)) for each in raised] == [(kind, why)]

    async def test_unwritable_data(self, caplog: pytest.LogCaptureFixture) -> None:
        """Data that can't be written raises where it is sent, and ends nothing."""

        async def work(request: Request) -> str:
            with pytest.raises(TypeError):
                request.response("result", object())
            return "still here"

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [calls_event("work", "result", "still here")]

    async def test_answer_to_a_client_that_is_behind(self) -> None:
        """A call stays unfinished until its answer can be written."""

        async def work(request: Request) -> int:
            await asyncio.sleep(0)
            return 5

        wire = calls_wire(work)
        wire.call("m.work")
        wire.fall_behind()

        assert await wire.settled() == ["writable", calls_event("work", "result", 5)]

    async def test_while_the_client_is_behind(self) -> None:
        """Awaiting what `response` returns waits while the client is behind."""

        async def work(request: Request) -> None:
            await request.response("progress")

        wire = calls_wire(work)
        wire.fall_behind()

        wire.call("m.work")

        assert await wire.settled() == [
            calls_event("work", "progress", {}),
            "writable",
            calls_event("work", "result", {}),
        ]


class TestKinds:
    """How handlers of every kind run."""

    async def test_task(self) -> None:
        """An `async def` runs as a task."""

        async def work(request: Request) -> str:
            await asyncio.sleep(0)
            return "done"

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [calls_event("work", "result", "done")]

    @pytest.mark.parametrize("is_as_python_3_11", [False, True])
    async def test_order_within_one_read(
        self, is_as_python_3_11: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Calls start in the order in which they arrive, without eager tasks too."""
        if is_as_python_3_11:
            monkeypatch.setattr(wsappy, "LAZY_TASKS", 1)
            monkeypatch.setattr(wsappy, "TASK_OPTIONS", {})
        started: list[str] = []

        async def first(request: Request) -> None:
            started.append("first")

        def second(request: Request) -> None:
            started.append("second")

        wire = calls_wire(first, second)

        wire.call("m.first")
        wire.call("m.second", 2)
        await wire.sent(2)

        assert started == ["first", "second"]

    @pytest.mark.parametrize("is_as_python_3_11", [False, True])
    async def test_order_of_a_mixed_read(
        self, is_as_python_3_11: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Calls of all kinds in one read start in the order in which they arrive."""
        if is_as_python_3_11:
            monkeypatch.setattr(wsappy, "LAZY_TASKS", 1)
            monkeypatch.setattr(wsappy, "TASK_OPTIONS", {})
        app, started = wire_app(), list[Any]()
        module = app.module("m")

        @module.method
        def plain(request: Request) -> None:
            started.append(request.id)

        @module.method
        async def task(request: Request) -> None:
            started.append(request.id)

        kinds = ["task", "plain", "task", "plain", "plain", "task", "task", "plain"]
        calls = [
            {"module": "m", "method": kind, "data": {}, "request_id": number}
            for number, kind in enumerate(kinds)
        ]

        async with wired(app) as wire:
            wire.send(*[wire_frame(json.dumps(each).encode()) for each in calls])
            for _ in calls:
                await wire.answer()

        assert started == [*range(8)]

    async def test_side_by_side(self) -> None:
        """A slow call doesn't hold the next one back."""
        wire = calls_wire(asleep, echo)

        wire.call("m.asleep")
        await asyncio.sleep(0)
        answer = wire.call("m.echo", 2)

        assert answer == calls_event("echo", "result", {}, 2)

    @pytest.mark.parametrize("kind", ["coroutine", "generator", "object", "future"])
    async def test_def_that_returns_an_awaitable(self, kind: str) -> None:
        """A `def` that returns an awaitable of whatever kind is awaited."""

        def work(request: Request) -> Awaitable[int]:
            return CALLS_LATER[kind](5)

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [calls_event("work", "result", 5)]

    @pytest.mark.parametrize("kind", ["coroutine", "generator", "object", "future"])
    async def test_awaitable_that_fails(
        self, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it raises is what the handler raises."""

        def work(request: Request) -> Awaitable[int]:
            return CALLS_LATER[kind](Error("odd", "not today"))

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [calls_error("work", "odd", "not today")]

    async def test_awaitable_that_is_cancelled(self) -> None:
        """A cancellation reaches the code behind an awaitable object."""
        seen: list[str] = []

        async def wait() -> int:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                seen.append("cancelled")
            return 5

        wire = calls_wire(functools.wraps(echo)(lambda request: CallsLater(wait())))
        wire.call("m.echo")
        await asyncio.sleep(0)

        wire.call("$.cancel", 2, request_id=1)
        await wire.settled()

        assert seen == ["cancelled"]

    async def test_object_that_json_knows(self) -> None:
        """A returned object that isn't awaitable goes to the codec."""
        wire = calls_wire(functools.wraps(echo)(lambda request: frozenset({1})))

        answer = wire.call("m.echo")

        assert result_of(answer) == [1]

    async def test_thread(self) -> None:
        """A `def` with thread=True runs in a worker thread."""
        app = make_app()

        @app.module("m")
        @app.method(thread=True)
        def work(request: Request) -> bool:
            request.response("note")
            return threading.current_thread() is threading.main_thread()

        wire = CallsWire(app).open()

        wire.call("m.work")

        assert await wire.settled() == [
            calls_event("work", "note", {}),
            calls_event("work", "result", False),
        ]

    async def test_threads_are_used_again(self) -> None:
        """Workers are started as they are needed, and no more than the limit."""
        threads = wsappy.Threads(1)

        async with asyncio.timeout(LIMIT):
            names = [
                await asyncio.wrap_future(threads.submit(threading.get_ident))
                for _ in range(3)
            ]

        assert len(set(names)) == 1

    async def test_no_thread_to_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system gives no thread the call is `internal`, the next one not."""

        @App().method(thread=True)
        def work(request: Request) -> str:
            return "done"

        wire = calls_wire(work)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda self: 1 / 0)
            wire.call("m.work", 1)
            (answer,) = list(await wire.settled())
        wire.call("m.work", 2)

        assert error_of(answer)[0] == "internal"
        assert await wire.settled() == [
            answer,
            calls_event("work", "result", "done", 2),
        ]

    async def test_job_after_the_end(self) -> None:
        """A pool whose server has stopped refuses work."""
        threads = wsappy.Threads(1)
        threads.shutdown()

        with pytest.raises(RuntimeError) as caught:
            threads.submit(int)

        assert str(caught.value) == "the server that owns these threads has stopped"

    async def test_task_that_needs_no_turn(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where tasks begin at once, none waits to begin."""
        monkeypatch.setattr(wsappy, "LAZY_TASKS", 0)
        wire = calls_wire(echo_later)

        wire.call("m.echo_later", value=5)

        assert await wire.settled() == [calls_event("echo_later", "result", 5)]

    async def test_event_of_a_thread_that_has_ended(self) -> None:
        """What a thread has said comes before the answer, whoever waited for it."""

        async def work(request: Request) -> str:
            thread = threading.Thread(target=request.response, args=("progress", 1))
            thread.start()
            thread.join()
            return "done"

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [
            calls_event("work", "progress", 1),
            calls_event("work", "result", "done"),
        ]

    @pytest.mark.parametrize("kind", ["push", "response"])
    async def test_order_behind_a_thread(self, kind: str) -> None:
        """What a thread has sent comes before what the handler sends later."""

        async def work(request: Request) -> None:
            thread = threading.Thread(target=request.client.push, args=("m", "first"))
            thread.start()
            thread.join()
            if kind == "push":
                request.client.push("m", "second")
            else:
                request.response("second")

        wire = calls_wire(work)

        wire.call("m.work")

        events = [each["event"] for each in await wire.settled()]
        assert events == ["first", "second", "result"]

    async def test_push_to_a_group_on_a_wire_without_frames(self) -> None:
        """A wire that writes no frames of its own sends it as any push."""
        wire = calls_wire(echo)

        wire.deliver(b'{"event":"x"}', None)

        assert wire.posted == [{"event": "x"}]

    async def test_job_of_to_thread_that_fails(self) -> None:
        """The workers run `asyncio.to_thread`, too: what fails there is raised."""
        threads = wsappy.Threads(1)

        future = asyncio.wrap_future(threads.submit(int, "x"))

        with pytest.raises(ValueError, match="invalid literal"):
            await future

    async def test_job_that_is_cancelled_first(self) -> None:
        """A job that is cancelled before its turn leaves at once, with all it holds."""
        threads = wsappy.Threads(1)
        gate = threading.Event()

        def fail() -> None:
            pytest.fail("must not run")

        first = asyncio.wrap_future(threads.submit(gate.wait, LIMIT))
        second, held = threads.submit(fail), weakref.ref(fail)
        del fail

        second.cancel()
        is_left = held() is not None
        gate.set()

        assert not is_left
        assert await first is True

    async def test_job_that_is_cancelled_as_it_begins(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job that is cancelled as it begins doesn't run, and its worker goes on."""

        class Late(Future[Any]):
            def set_running_or_notify_cancel(self) -> bool:
                self.cancel()
                return super().set_running_or_notify_cancel()

        threads = wsappy.Threads(1)
        with monkeypatch.context() as patch:
            patch.setattr(wsappy, "Future", Late)
            late = threads.submit(pytest.fail, "must not run")

        async with asyncio.timeout(LIMIT):
            assert await asyncio.wrap_future(threads.submit(int, "5")) == 5
        assert late.cancelled()

    @pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError])
    async def test_job_that_ends_more_than_itself(
        self, kind: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        """What no handler should raise is `internal`, and the worker lives on."""

        @App().method(thread=True)
        def leave(request: Request) -> None:
            raise kind

        wire = calls_wire(leave)

        wire.call("m.leave")
        (answer,) = await wire.settled()

        assert error_of(answer)[0] == "internal"
        assert caplog.messages == ["handler 'm.leave' failed"]


class TestStreams:
    """A handler that yields."""

    @pytest.mark.parametrize("is_async", [True, False])
    async def test_items(self, is_async: bool) -> None:
        """A stream sends an `item` for each value, then `result`."""

        def count(request: Request, n: int) -> Iterator[int]:
            yield from range(n)

        async def acount(request: Request, n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number

        acount.__name__ = "count"
        wire = calls_wire(acount if is_async else count)

        wire.call("m.count", n=2)

        assert await wire.settled() == [
            calls_event("count", "item", 0),
            calls_event("count", "item", 1),
            calls_event("count", "result", {}),
        ]

    async def test_exception_after_items(self) -> None:
        """An exception ends the stream with `error`; the items before it stand."""

        def count(request: Request) -> Iterator[int]:
            yield 1
            raise Error("enough")

        wire = calls_wire(count)

        wire.call("m.count")

        assert await wire.settled() == [
            calls_event("count", "item", 1),
            calls_error("count", "enough", ""),
        ]

    async def test_credit(self) -> None:
        """A stream sends as many items as the call allows, then waits for `$ more`."""

        def count(request: Request) -> Iterator[int]:
            yield from range(4)

        wire = calls_wire(count)
        message = {"module": "m", "method": "count", "items": 1, "request_id": "s"}

        wire.read(message)
        await wire.sent(1)
        assert wire.unfinished() == 1
        wire.call("$.more", 9, request_id="other", items=5)
        wire.call("$.more", None, request_id="s", items=1)
        wire.call("$.more", None, request_id="s", items=5)
        await wire.settled()

        events = [each["event"] for each in wire.posted]
        assert events == ["item", "result", "item", "item", "item", "result"]

    async def test_other_calls_meanwhile(self) -> None:
        """While a stream waits for credit the other calls of its client go on."""

        def count(request: Request) -> Iterator[int]:
            yield from range(4)

        wire = calls_wire(count, echo)
        wire.read({"module": "m", "method": "count", "items": 1, "request_id": "s"})
        await wire.sent(1)

        wire.call("m.echo", 2, value="meanwhile")

        assert (await wire.sent(2))[1] == calls_event("echo", "result", "meanwhile", 2)
        assert wire.unfinished() == 1

    @pytest.mark.parametrize("end", ["cancel", "disconnect", "stop"])
    async def test_finally_while_it_waits(self, end: str) -> None:
        """Whatever cuts a stream off at a yield, its `finally` blocks run."""
        steps: list[Any] = []

        async def count(request: Request) -> AsyncIterator[int]:
            task = asyncio.current_task()
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                steps.append((asyncio.current_task() is task, wire.unfinished()))

        wire = calls_wire(count)
        wire.read({"module": "m", "method": "count", "items": 1, "request_id": 1})
        await wire.sent(1)
        ends: dict[str, Callable[[], Any]] = {
            "cancel": lambda: wire.call("$.cancel", 2, request_id=1),
            "disconnect": wire.abandon,
            "stop": wire.stop,
        }

        ends[end]()
        await wire.settled()

        assert steps == [(True, 1)]

    async def test_credit_of_no_items(self) -> None:
        """`$ more` needs at least one item."""
        wire = calls_wire(echo)

        answer = wire.call("$.more", 1, request_id=1, items=0)

        assert error_of(answer) == (
            "bad_data",
            "items: expected an integer of at least 1",
        )

    async def test_more_for_a_stream_without_credit(self) -> None:
        """`$ more` for a call that has no credit changes nothing."""
        wire = calls_wire(asleep)

        wire.call("m.asleep", 5)
        wire.call("$.more", 6, request_id=5, items=1)

        assert await wire.sent(1) == [
            {**calls_event("more", "result", {}, 6), "module": "$"}
        ]

    async def test_client_that_is_behind(self) -> None:
        """A stream waits while the connection's buffer is over its mark."""

        def count(request: Request) -> Iterator[int]:
            yield 1
            yield 2

        wire = calls_wire(count)
        wire.fall_behind()

        wire.call("m.count")

        assert [
            each if isinstance(each, str) else each["event"]
            for each in await wire.settled()
        ] == ["item", "writable", "item", "result"]

    async def test_generator_that_never_suspends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stream gives the loop its turns whenever it has had 5 ms."""
        now, passed, seen = [100.0], [0], list[int]()
        loop = asyncio.get_running_loop()

        def turn() -> None:
            passed[0] += 1
            loop.call_soon(turn)

        def count(request: Request) -> Iterator[int]:
            loop.call_soon(turn)
            for number in range(12):
                now[0] += 0.00101
                seen.append(passed[0])
                yield number

        wire = calls_wire(count)
        monkeypatch.setattr(wsappy, "monotonic", lambda: now[0])

        wire.call("m.count")
        await wire.settled()

        shares = [len([*group]) for _, group in itertools.groupby(seen)]
        assert shares == [5, 5, 2]

    async def test_item_that_can_not_be_written(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An item that can't be written ends its stream: nothing follows `internal`."""

        def count(request: Request) -> Iterator[object]:
            yield 1
            yield object()
            yield 2

        wire = calls_wire(count)

        wire.call("m.count")

        assert await wire.settled() == [
            calls_event("count", "item", 1),
            calls_error("count", "internal", "internal error"),
        ]

    async def test_stream_that_ends_itself(self) -> None:
        """Behind a terminal event of its own a stream sends nothing."""

        async def count(request: Request) -> AsyncIterator[int]:
            yield 1
            await request.response("error", code="odd", message="")
            yield 2

        wire = calls_wire(count)

        wire.call("m.count")

        assert [each["event"] for each in await wire.settled()] == ["item", "error"]


class TestTimeouts:
    """The limit of one call."""

    async def test_handler_that_takes_too_long(self) -> None:
        """A call over its limit is answered `timeout`, and its task is cancelled."""
        ended: list[str] = []

        async def work(request: Request) -> None:
            try:
                await asleep(request)
            finally:
                ended.append("work")

        wire = calls_wire(work, timeout=0.05)

        wire.call("m.work")

        assert await wire.settled() == [
            calls_error("work", "timeout", "the call took too long", retry=True)
        ]
        assert ended == ["work"]

    async def test_handler_in_time(self) -> None:
        """A call that ends in time takes its timer with it, and all that this holds."""

        class Value(dict[str, int]):
            pass

        refs: list[weakref.ref[Value]] = []

        async def work(request: Request) -> Value:
            value = Value()
            refs.append(weakref.ref(value))
            await asyncio.sleep(0)
            return value

        wire = calls_wire(work, timeout=LIMIT)

        wire.call("m.work")
        await wire.settled()
        gc.collect()

        assert [each() for each in refs] == [None]

    @pytest.mark.parametrize("name", ["unlimited", "stream"])
    async def test_no_limit(self, name: str) -> None:
        """A method's own timeout wins, None for no limit; a stream has none at all."""

        @App().method(timeout=None)
        async def unlimited(request: Request) -> None:
            await asleep(request)

        async def stream(request: Request) -> AsyncIterator[int]:
            await asleep(request)
            yield 1

        wire = calls_wire(asleep, unlimited, stream, timeout=0.05)

        wire.call(f"m.{name}", 1)
        wire.call("m.asleep", 2)

        # Had the first one a limit it would end first.
        assert [each["request_id"] for each in await wire.sent(1)] == [2]
        await turns()
        assert wire.unfinished() == 1

    async def test_thread(self) -> None:
        """A thread can't be stopped: it counts until it returns."""
        began, gate = threading.Event(), threading.Event()
        app = make_app()

        @app.module("m")
        @app.method(thread=True, timeout=0.2)
        def work(request: Request) -> bool:
            began.set()
            return gate.wait(LIMIT)

        wire = CallsWire(app).open()

        wire.call("m.work")
        await asyncio.to_thread(began.wait, LIMIT)
        await wire.sent(1)
        assert wire.unfinished() == 1
        gate.set()

        assert [error_of(each)[0] for each in await wire.settled()] == ["timeout"]

    async def test_handler_that_swallows_its_cancellation(self) -> None:
        """Its caller is answered at once, and it counts until it ends."""
        gate = asyncio.Event()

        async def work(request: Request) -> str:
            with contextlib.suppress(asyncio.CancelledError):
                await asleep(request)
            await gate.wait()
            request.response("dropped")
            return "dropped"

        wire = calls_wire(work, timeout=0.05)
        wire.call("m.work")

        await wire.sent(1)
        assert wire.unfinished() == 1
        gate.set()

        assert len(await wire.settled()) == 1


class TestCancel:
    """`$ cancel` and `$ ping`."""

    async def test_unfinished_call(self) -> None:
        """A cancelled call ends with `error` `cancelled`, the cancel with true."""
        wire = calls_wire(asleep)
        wire.call("m.asleep", "w1")
        await asyncio.sleep(0)

        answers = wire.call("$.cancel", 2, request_id="w1")

        error, result = answers
        assert (error["request_id"], error_of(error)) == (
            "w1",
            ("cancelled", "the caller cancelled the call"),
        )
        assert result_of(result) == {"cancelled": True}
        assert await wire.settled() == answers

    async def test_call_that_has_not_begun(self) -> None:
        """A call cancelled before it has started gets its terminal event, too."""
        wire = calls_wire(asleep)

        wire.call("m.asleep", "w1")
        wire.call("$.cancel", 2, request_id="w1")

        assert [each["event"] for each in await wire.sent(2)] == ["error", "result"]
        assert await wire.settled() == wire.posted

    async def test_too_late(self) -> None:
        """A cancel that comes too late is answered false."""
        wire = calls_wire(echo)
        wire.call("m.echo", "w1")

        answer = wire.call("$.cancel", 2, request_id="w1")

        assert result_of(answer) == {"cancelled": False}

    async def test_call_that_has_answered(self) -> None:
        """A call that has sent its terminal event isn't unfinished any more."""

        async def work(request: Request) -> None:
            await request.response("result")
            await asleep(request)

        wire = calls_wire(work)
        wire.call("m.work", "w1")
        await wire.sent(1)

        wire.call("$.cancel", 2, request_id="w1")

        assert result_of((await wire.sent(2))[1]) == {"cancelled": False}

    async def test_waiting_call(self) -> None:
        """A call that waits for its turn is cancelled without beginning."""
        wire = calls_wire(echo)
        wire.hold()
        wire.call("m.echo", "w1")

        answers = wire.call("$.cancel", 2, request_id="w1")
        wire.open()

        assert [each["event"] for each in answers] == ["error", "result"]
        assert await wire.settled() == answers

    async def test_room_of_a_waiting_call(self) -> None:
        """A waiting call that is cancelled leaves its room to another."""
        wire = calls_wire(echo)
        wire.hold()
        wire.call("m.echo", "w1", value="x" * 900)
        wire.call("$.cancel", None, request_id="w1")

        answer = wire.call("m.echo", "w2", value="x" * 900)

        assert answer == []

    async def test_id_used_twice(self) -> None:
        """Ids used twice: every such call is cancelled."""
        wire = calls_wire(asleep)
        wire.call("m.asleep", 7)
        wire.call("m.asleep", 7)

        wire.call("$.cancel", 2, request_id=7)
        await wire.settled()

        assert [each["event"] for each in wire.posted] == ["error", "error", "result"]

    async def test_call_of_another_client(self) -> None:
        """A client can't cancel what another one has called, though the id is known."""
        app, began, go_on = make_app(), asyncio.Event(), asyncio.Event()

        @app.module("m")
        @app.method
        async def work(request: Request) -> str:
            began.set()
            await go_on.wait()
            return "done"

        async with app.serve("127.0.0.1", 0) as serving:
            connect_one = functools.partial(ws_connect, serving.url("/api"), proxy=None)
            async with connect_one() as one, connect_one() as other:
                message = {"module": "m", "method": "work", "request_id": "w1"}
                await Talk(one).send(message)
                await began.wait()
                await Talk(other).send(
                    b'{"module": "$", "method": "cancel", "request_id": 2, '
                    b'"data": {"request_id": "w1"}}'
                )
                cancel = await Talk(other).receive()
                go_on.set()
                answer = await Talk(one).receive()

        assert result_of(cancel) == {"cancelled": False}
        assert result_of(answer) == "done"

    async def test_without_request_id(self) -> None:
        """A `$` call without a request_id is answered only by an error."""
        wire = calls_wire(asleep)
        wire.call("m.asleep", 7)

        wire.call("$.cancel", None, request_id=7)
        wire.call("$.cancel", None, request_id=None)

        codes = {error_of(each)[0] for each in await wire.sent(2)}
        assert codes == {"bad_data", "cancelled"}

    async def test_ping_above_the_limit(self) -> None:
        """`$` calls are never held back by the limit on unfinished calls."""
        wire = calls_wire(asleep, max_in_flight=1)
        wire.call("m.asleep")
        await asyncio.sleep(0)

        answer = wire.call("$.ping", 2)

        assert result_of(answer) == {}

    async def test_exception_after_the_cancel(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a cancelled handler raises instead goes to the log."""

        async def work(request: Request) -> None:
            try:
                await asleep(request)
            finally:
                raise RuntimeError("in finally")

        wire = calls_wire(work)
        wire.call("m.work")
        await asyncio.sleep(0)

        wire.call("$.cancel", 2, request_id=1)
        await wire.settled()

        assert caplog.messages == ["handler 'm.work', which was cut off, failed"]

    async def test_unknown_control(self) -> None:
        """A `$` method that doesn't exist is an unknown method."""
        wire = calls_wire(echo)

        answer = wire.call("$.nothing")

        assert error_of(answer) == ("unknown_method", "no such module or method")


def is_allowed(request: Request) -> bool:
    """Let every call in."""
    return True


def is_denied(request: Request) -> bool:
    """Let no call in."""
    return False


async def is_allowed_later(request: Request) -> bool:
    """Let every call in, in another turn."""
    await asyncio.sleep(0)
    return True


async def is_denied_later(request: Request) -> bool:
    """Let no call in, in another turn."""
    await asyncio.sleep(0)
    return False


def guard_of(verdict: Any) -> Any:
    """Return a guard that returns something, or raises it."""

    def guard(request: Request) -> Any:
        if isinstance(verdict, BaseException):
            raise verdict
        return verdict

    return guard


GUARDED_KINDS = ("plain", "task", "items", "threaded")


def guarded(allow: Any, kind: str = "plain", module_allow: Any = None) -> CallsWire:
    """Make a wire whose module `m` has a guarded method `work`."""
    app = make_app()

    def plain(request: Request, x: int = 0) -> int:
        return x

    async def task(request: Request, x: int = 0) -> int:
        return x

    def items(request: Request, x: int = 0) -> Iterator[int]:
        yield x

    def threaded(request: Request, x: int = 0) -> int:
        return x

    functions = {"plain": plain, "task": task, "items": items, "threaded": threaded}
    module = app.module("m", allow=module_allow)
    is_thread = kind == "threaded"
    module.method("work", thread=is_thread, allow=allow)(functions[kind])
    return CallsWire(app).open()


class TestGuards:
    """`allow` decides whether a call may run."""

    @pytest.mark.parametrize("kind", GUARDED_KINDS)
    @pytest.mark.parametrize("guard", [is_allowed, is_allowed_later])
    async def test_true(self, guard: Any, kind: str) -> None:
        """True lets the call in, whatever its kind."""
        wire = guarded(guard, kind)

        wire.call("m.work", x=5)

        posted = await wire.settled()
        expected: Any = (
            [("item", 5), ("result", {})] if kind == "items" else [("result", 5)]
        )
        assert [(each["event"], each["data"]) for each in posted] == expected

    @pytest.mark.parametrize("kind", GUARDED_KINDS)
    @pytest.mark.parametrize("guard", [is_denied, is_denied_later])
    async def test_false(self, guard: Any, kind: str) -> None:
        """False is `forbidden`, before the arguments are checked."""
        wire = guarded(guard, kind)

        wire.call("m.work", x="no int")

        assert await wire.settled() == [calls_error("work", "forbidden", "not allowed")]

    async def test_plain_function(self) -> None:
        """A `def` behind guards that needn't be awaited runs in the same step."""
        wire = guarded([is_allowed, is_allowed])

        assert result_of(wire.call("m.work", x=5)) == 5

    async def test_arguments(self) -> None:
        """The arguments are checked after the guards."""
        wire = guarded([is_allowed, is_allowed_later])

        wire.call("m.work", x="no int")

        (answer,) = await wire.settled()
        assert error_of(answer) == ("bad_data", "x: expected an integer")

    async def test_error(self) -> None:
        """An `Error` that a guard raises is the answer."""
        wire = guarded(guard_of(Error("unauthorized", "log in first")))

        answer = wire.call("m.work")

        assert error_of(answer) == ("unauthorized", "log in first")

    @pytest.mark.parametrize("verdict", [None, 1, "yes", [True], np.True_])
    async def test_no_bool(
        self, verdict: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Anything else that it returns is `internal`, and never in."""
        guard = guard_of(verdict)
        wire = guarded(guard)

        answer = wire.call("m.work")

        assert error_of(answer) == ("internal", "internal error")
        assert caplog.messages == [
            f"guard {describe(guard)} must return True or False: got {verdict!r}"
        ]

    @pytest.mark.parametrize(
        "exc", [KeyError("x"), Refused(403), asyncio.CancelledError(), StopIteration()]
    )
    async def test_exception(
        self, exc: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Anything else that it raises is `internal`, and logged."""
        guard = guard_of(exc)
        wire = guarded(guard)

        answer = wire.call("m.work")

        assert error_of(answer) == ("internal", "internal error")
        assert caplog.messages == [f"guard {describe(guard)} failed"]

    async def test_error_function(self) -> None:
        """`@app.error` is for handlers: what a guard raises stays `internal`."""
        wire = guarded(guard_of(KeyError("x")))
        wire.app.error(KeyError)(lambda request, exc: Error("not_found"))

        assert error_of(wire.call("m.work"))[0] == "internal"

    async def test_order(self) -> None:
        """The module's guards come before the method's, in order."""
        asked: list[str] = []

        def noting(name: str) -> Any:
            def guard(request: Request) -> bool:
                asked.append(name)
                return name != "c"

            return guard

        wire = guarded([noting("c"), noting("d")], "plain", [noting("a"), noting("b")])

        wire.call("m.work")

        assert asked == ["a", "b", "c"]

    async def test_request(self) -> None:
        """A guard sees the call: who makes it, and its data."""
        seen: list[Any] = []

        def guard(request: Request) -> bool:
            seen.append((request.client, request.module, request.data))
            return True

        wire = guarded(guard)

        wire.call("m.work", x=5)

        assert seen == [(wire.client, "m", {"x": 5})]

    async def test_behind_process_message(self) -> None:
        """Behind an overridden `process_message` the guards decide as well."""
        app = App()

        @app.client("/api")
        class Wrapped(Client):
            async def process_message(self, request: Request) -> Any:
                return await super().process_message(request)

        app.module("m", allow=is_denied)(app.method(echo))
        wire = CallsWire(app).open()

        wire.call("m.echo")

        assert await wire.settled() == [calls_error("echo", "forbidden", "not allowed")]

    async def test_cancelled_guard(self) -> None:
        """A call that waits for its guard can be cancelled."""
        wire = guarded(asleep)

        wire.call("m.work", "w1")
        await asyncio.sleep(0)
        wire.call("$.cancel", None, request_id="w1")

        (answer,) = await wire.settled()
        assert error_of(answer)[0] == "cancelled"

    def test_one_allow_for_a_module(self) -> None:
        """A module's name has the same guards wherever it is registered."""
        app = make_app()
        app.module("m", allow=is_allowed)(app.method("a")(lambda request: None))
        app.module("m", allow=[is_allowed])(app.method("b")(lambda request: None))

        with pytest.raises(ValueError, match="must have one allow") as caught:
            app.module("m")(app.method("c")(lambda request: None))

        assert str(caught.value) == (
            f"module 'm' must have one allow: got [] and [{describe(is_allowed)!r}]; "
            f"write the same for both"
        )

    @pytest.mark.parametrize("allow", [5, "admin", lambda: True, lambda a, b: True])
    @pytest.mark.parametrize("register", ["module", "method"])
    def test_no_guard(self, allow: Any, register: str) -> None:
        """What can't be called with a request is no guard."""
        app = make_app()

        with pytest.raises(TypeError) as caught:
            getattr(app, register)("m", allow=[is_allowed, allow])

        assert str(caught.value) == (
            f"allow must be a function of the request: got {describe(allow)}; write "
            f"def may(request): return True"
        )


class TestExceptionGroups:
    """What a TaskGroup raises."""

    @pytest.mark.parametrize("depth", [1, 2])
    async def test_group_of_one(self, depth: int) -> None:
        """An `Error` in a group of one is that error."""

        async def work(request: Request) -> None:
            exc: Exception = Error("gone", "no more")
            for _ in range(depth):
                exc = ExceptionGroup("of one", [exc])
            raise exc

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [calls_error("work", "gone", "no more")]

    async def test_error_function(self) -> None:
        """`@app.error` applies to what is in a group of one."""
        app = make_app()

        @app.error(KeyError)
        def missing(request: Request, exc: KeyError) -> Error:
            return Error("not_found", str(exc))

        @app.module("m")
        @app.method
        def work(request: Request) -> None:
            raise ExceptionGroup("of one", [KeyError("x")])

        wire = CallsWire(app).open()

        assert error_of(wire.call("m.work")) == ("not_found", "'x'")

    async def test_group_of_two(self, caplog: pytest.LogCaptureFixture) -> None:
        """A group of two is `internal`: nobody can say which one is meant."""

        def work(request: Request) -> None:
            raise ExceptionGroup("of two", [Error("a"), Error("b")])

        wire = calls_wire(work)

        assert error_of(wire.call("m.work")) == ("internal", "internal error")
        assert caplog.messages == ["handler 'm.work' failed"]


class TestErrorFunctions:
    """`@app.error`."""

    async def test_most_specific_class(self) -> None:
        """The function of the most specific class makes the `Error`."""
        app = make_app()

        @app.error(LookupError)
        def lookup(request: Request, exc: LookupError) -> Error:
            return Error("lookup")

        @app.error(KeyError)
        def key(request: Request, exc: KeyError) -> Error:
            return Error("not_found", f"{request.method} {exc}")

        @app.module("m")
        @app.method
        def work(request: Request) -> None:
            raise KeyError(7)

        wire = CallsWire(app).open()

        answer = wire.call("m.work")

        assert error_of(answer) == ("not_found", "work 7")

    @pytest.mark.parametrize("outcome", [None, ValueError("odd")])
    async def test_function_that_makes_no_error(
        self, outcome: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it raises, or returns that is no `Error`, is `internal`."""
        app = make_app()

        @app.error(KeyError)
        def key(request: Request, exc: KeyError) -> Any:
            if outcome is not None:
                raise outcome

        @app.module("m")
        @app.method
        def work(request: Request) -> None:
            raise KeyError(7)

        wire = CallsWire(app).open()

        answer = wire.call("m.work")

        assert error_of(answer) == ("internal", "internal error")


class TestWrapping:
    """A client whose class overrides `process_message`."""

    @staticmethod
    def wire(*handlers: Callable[..., Any], **options: Any) -> CallsWire:
        """Make an open wire whose client wraps every call."""
        app = App(**options)

        @app.client("/api")
        class Guarded(Client):
            async def process_message(self, request: Request) -> Any:
                if request.data.pop("denied", False):
                    raise Error("forbidden", "not you")
                value = await super().process_message(request)
                return ["wrapped", value]

        for handler in handlers:
            app.module("m")(app.method(handler))
        return CallsWire(app).open()

    async def test_right(self) -> None:
        """A call that is refused doesn't reach its handler."""
        wire = self.wire(echo)

        wire.call("m.echo", denied=True)

        assert await wire.settled() == [calls_error("echo", "forbidden", "not you")]

    @pytest.mark.parametrize("name", ["m.echo", "m.work"])
    async def test_result(self, name: str) -> None:
        """What it returns is the result."""

        async def work(request: Request, value: int) -> int:
            return value

        wire = self.wire(echo, work)

        wire.call(name, value=5)

        assert result_of((await wire.settled())[0]) == ["wrapped", 5]

    async def test_unknown_method(self) -> None:
        """`unknown_method` comes out of `super()`."""
        wire = self.wire(echo)

        wire.call("m.nothing")

        assert error_of((await wire.settled())[0])[0] == "unknown_method"

    async def test_stream(self) -> None:
        """For a stream it returns None, after the last item."""

        def count(request: Request) -> Iterator[int]:
            yield 1

        wire = self.wire(count)

        wire.call("m.count")

        assert await wire.settled() == [
            calls_event("count", "item", 1),
            calls_event("count", "result", ["wrapped", None]),
        ]

    @pytest.mark.parametrize(("value", "event"), [(1, "result"), (0, "error")])
    async def test_thread(self, value: int, event: str) -> None:
        """A thread's outcome comes out of `super()`."""
        wire = self.wire()

        @wire.app.module("m")
        @wire.app.method(thread=True)
        def work(request: Request, value: int) -> float:
            return 1 / value

        wire.call("m.work", value=value)

        assert [each["event"] for each in await wire.settled()] == [event]

    async def test_timeout(self) -> None:
        """The method's own timeout holds there, too."""
        app = App()

        @app.client("/api")
        class Slow(Client):
            async def process_message(self, request: Request) -> Any:
                await asyncio.sleep(0)
                return await super().process_message(request)

        @app.module("m")
        @app.method(timeout=0.05)
        async def work(request: Request) -> None:
            await asleep(request)

        wire = CallsWire(app).open()

        wire.call("m.work")

        assert await wire.settled() == [
            calls_error("work", "timeout", "the call took too long", retry=True)
        ]

    async def test_limit(self) -> None:
        """The limit on unfinished calls holds there, too."""
        wire = self.wire(asleep, max_in_flight=1)
        wire.call("m.asleep")

        answer = wire.call("m.asleep", 2)

        assert error_of(answer)[0] == "overloaded"

    async def test_plain_function(self) -> None:
        """An override may be a plain function that returns the result."""
        app = App()

        @app.client("/api")
        class Fixed(Client):
            def process_message(self, request: Request) -> Any:
                return 5

        app.module("m")(app.method(echo))
        wire = CallsWire(app).open()

        wire.call("m.echo")

        (answer,) = await wire.settled()
        assert result_of(answer) == 5


class TestWaiting:
    """Calls that wait: while `on_connected` runs, and on an ordered route."""

    @staticmethod
    def ordered(
        *handlers: Callable[..., Any], max_size: int | None = 1000, **options: Any
    ) -> CallsWire:
        """Make an open wire of an ordered route."""
        app = App(**options)
        app.client("/api", ordered=True)(lambda client: None)
        for handler in handlers:
            app.module("m")(app.method(handler))
        return CallsWire(app, max_size=max_size).open()

    async def test_ordered_route(self) -> None:
        """An ordered route runs one call at a time, in order."""
        log: list[str] = []

        async def work(request: Request, name: str) -> None:
            log.append(f"begin {name}")
            await asyncio.sleep(0)
            log.append(f"end {name}")

        wire = self.ordered(work)

        wire.call("m.work", name="a")
        wire.call("m.work", name="b")
        await wire.settled()

        assert log == ["begin a", "end a", "begin b", "end b"]

    async def test_def_on_an_ordered_route(self) -> None:
        """A `def` waits for the call before it."""
        log: list[str] = []

        async def slow(request: Request) -> None:
            await asyncio.sleep(0)
            log.append("slow")

        def quick(request: Request) -> None:
            log.append("quick")

        wire = self.ordered(slow, quick)

        wire.call("m.slow")
        wire.call("m.quick")
        wire.call("m.quick")
        await wire.sent(3)

        assert log == ["slow", "quick", "quick"]

    async def test_client_that_is_behind(self) -> None:
        """While the client is behind no waiting call begins."""
        wire = self.ordered(asleep, echo)
        wire.call("m.asleep", 1)
        wire.call("m.echo", 2)
        wire.fall_behind()

        wire.call("$.cancel", None, request_id=1)
        await wire.settled()

        assert [each["request_id"] for each in wire.posted] == [1]

    async def test_too_many_waiting(self) -> None:
        """Waiting calls count against `max_in_flight`."""
        wire = self.ordered(asleep, max_in_flight=2)
        wire.call("m.asleep", 1)
        wire.call("m.asleep", 2)

        answer = wire.call("m.asleep", 3)

        assert error_of(answer)[0] == "overloaded"

    async def test_too_many_bytes_waiting(self) -> None:
        """Their bytes in all count against `max_size`."""
        wire = self.ordered(asleep, echo)
        wire.call("m.asleep", 1)
        wire.call("m.echo", 2, value="x" * 500)

        answer = wire.call("m.echo", 3, value="x" * 500)

        assert error_of(answer)[0] == "overloaded"

    async def test_no_limit_of_bytes(self) -> None:
        """With max_size=None only their number counts."""
        wire = self.ordered(asleep, echo, max_size=None)
        wire.call("m.asleep", 1)

        answer = wire.call("m.echo", 2, value="x" * 5000)

        assert answer == []


class TestOwnClasses:
    """Requests and clients with a `response` and a `send_message` of their own."""

    @staticmethod
    def wire(
        request: type[Request] = Request,
        client: type[Client] = Client,
        handler: Callable[..., Any] = echo,
    ) -> CallsWire:
        """Make an open wire with classes of its own."""
        app = App()
        app.client("/api")(client)
        app.module("m")(app.method(handler))
        return CallsWire(app, request=request).open()

    async def test_cancelled_while_response_waits(self) -> None:
        """A `response` that waits says the one end of a cancelled call."""

        class Own(Request):
            async def response(self, *args: Any, **fields: Any) -> None:  # type: ignore[override]
                await asyncio.sleep(0)
                await super(Own, self).response(*args, **fields)

        wire = self.wire(Own, handler=asleep)
        wire.call("m.asleep", 1)
        await turns()

        wire.call("$.cancel", 2, request_id=1)
        await wire.settled()

        events = [(each["request_id"], each["event"]) for each in wire.posted]
        assert events == [(1, "error"), (2, "result")]

    async def test_init_of_a_request(self) -> None:
        """All attributes are set before `__init__` runs."""
        seen: list[Any] = []

        class Own(Request):
            def __init__(
                self,
                module: str,
                method: str,
                data: Any,
                client: Any,
                id: Any,  # noqa: A002
            ) -> None:
                seen.append((self.module, self.method, self.data, self.id, id))

        wire = self.wire(Own)

        wire.call("m.echo", value=1)

        assert seen == [("m", "echo", {"value": 1}, 1, 1)]

    async def test_init_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """A request whose `__init__` raises is logged, and runs all the same."""

        class Own(Request):
            def __init__(self, *args: Any) -> None:
                raise RuntimeError("odd")

        wire = self.wire(Own)

        answer = wire.call("m.echo", value=1)

        assert result_of(answer) == 1
        assert caplog.messages == ["Own.__init__ failed"]

    async def test_response(self) -> None:
        """An overridden `response` is used for every event."""

        class Own(Request):
            async def response(self, event: str, **data: Any) -> None:  # type: ignore[override]
                await super().response(event, {**data, "own": True})

        wire = self.wire(Own)

        wire.call("m.echo", value={"a": 1})

        assert await wire.settled() == [
            calls_event("echo", "result", {"a": 1, "own": True})
        ]

    async def test_response_for_other_data(self) -> None:
        """Data that is no object goes by position."""

        class Own(Request):
            def response(self, event: str, data: Any = None, /, **fields: Any) -> Any:
                return super().response(event, ["own", data], **fields)

        wire = self.wire(Own)

        wire.call("m.echo", value=5)

        assert await wire.sent(1) == [calls_event("echo", "result", ["own", 5])]

    async def test_response_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """A call whose `response` raises is answered `internal`."""

        class Own(Request):
            def response(self, event: str, data: Any = None, /, **fields: Any) -> Any:
                raise RuntimeError("odd")

        wire = self.wire(Own)

        wire.call("m.echo", value=5)

        assert await wire.sent(1) == [calls_error("echo", "internal", "internal error")]

    async def test_send_message(self) -> None:
        """An overridden `send_message` sends every event with an object for data."""

        class Own(Client):
            async def send_message(self, *head: Any, **data: Any) -> Any:
                await super().send_message(*head, **data, own=True)

        wire = self.wire(client=Own)

        wire.call("m.echo", value={"a": 1})

        assert await wire.settled() == [
            calls_event("echo", "result", {"a": 1, "own": True})
        ]

    async def test_send_message_that_fails(self) -> None:
        """A call whose result its `send_message` doesn't take ends with `internal`."""

        class Own(Client):
            def send_message(self, *head: Any, **data: Any) -> Any:
                if "code" not in data:
                    raise RuntimeError("odd")
                return super().send_message(*head, **data)

        def answer(request: Request) -> None:
            request.response("result", a=1)

        wire = self.wire(client=Own, handler=answer)

        wire.call("m.answer")

        assert await wire.sent(1) == [
            calls_error("answer", "internal", "internal error")
        ]

    async def test_keys_that_send_message_has_itself(self) -> None:
        """Data with a key such as `event` goes past `send_message`, and isn't lost."""

        class Own(Client):
            def send_message(self, *head: Any, **data: Any) -> Any:
                pytest.fail("must not be called")

        wire = self.wire(client=Own)

        wire.call("m.echo", value={"event": 1})

        assert await wire.sent(1) == [calls_event("echo", "result", {"event": 1})]

    async def test_cut_off(self) -> None:
        """The end of a call that is cut off goes the same way."""

        class Own(Request):
            async def response(self, event: str, **data: Any) -> None:  # type: ignore[override]
                await super().response(event, {**data, "own": True})

        wire = self.wire(Own, handler=asleep)
        wire.call("m.asleep")

        wire.cut_off()

        assert await wire.settled() == [
            calls_event(
                "asleep", "error", {"code": "overloaded", **CALLS_STOPPING, "own": True}
            )
        ]


ASKED_ERROR = {"code": "no", "message": "not now", "details": 5, "retry": True}


class TestAsking:
    """Calls from the server."""

    @staticmethod
    async def asked(answer: Any) -> Any:
        """Return what a call from the server makes of an answer."""
        wire = calls_wire(echo)
        asking = asyncio.create_task(wire.ask({"a": 1}))
        await wire.sent(1)
        wire.read({"request_id": 1, **answer})
        return await asking

    async def test_call(self) -> None:
        """The server's call has the shape of a client's."""
        wire = calls_wire(echo)
        asking = asyncio.create_task(wire.ask({"a": 1}))

        sent = await wire.sent(1)
        asking.cancel()

        assert sent == [
            {"module": "ui", "method": "confirm", "data": {"a": 1}, "request_id": 1}
        ]

    async def test_result(self) -> None:
        """The data of the result is returned."""
        assert await self.asked({"event": "result", "data": [5]}) == [5]

    @pytest.mark.parametrize(
        ("data", "raised_data"),
        [
            (ASKED_ERROR, ASKED_ERROR),
            (5, {"code": "internal", "message": "5"}),
        ],
        ids=["whole", "no object"],
    )
    async def test_error(self, data: Any, raised_data: Any) -> None:
        """An error of the client's is raised whole; any other data is its text."""
        with pytest.raises(Error) as raised:
            await self.asked({"event": "error", "data": data})

        assert raised.value.as_data() == raised_data

    async def test_other_event_and_second_answer(self) -> None:
        """Events before the answer, and a second answer, change nothing."""
        wire = calls_wire(echo)
        asking = asyncio.create_task(wire.ask({}))
        await wire.sent(1)

        for event, data in ("progress", 1), ("result", 2), ("result", 3):
            wire.read({"request_id": 1, "event": event, "data": data})

        assert await asking == 2

    async def test_no_answer(self) -> None:
        """A client that doesn't answer in time is a TimeoutError, and too late then."""
        wire = calls_wire(echo)

        with pytest.raises(TimeoutError) as raised:
            await wire.ask({}, 0.001)
        wire.read({"request_id": 1, "event": "result"})

        assert str(raised.value) == "no answer to ui.confirm in time; it was sent"
        assert wire.counted("dropped_event") == 1

    async def test_client_that_goes(self) -> None:
        """A caller whose client goes away hears of it at once."""
        wire = calls_wire(echo)
        first = asyncio.create_task(wire.ask({}))
        second = asyncio.create_task(wire.ask({}))
        await wire.sent(2)
        wire.read({"request_id": 1, "event": "result", "data": 5})

        wire.abandon()

        assert await first == 5
        with pytest.raises(ConnectionResetError):
            await second


class TestStopping:
    """What happens to calls when the server stops, or the client is gone."""

    async def test_new_call(self) -> None:
        """New calls are `overloaded`, and may be tried again."""
        wire = calls_wire(echo)

        wire.stop()
        answer = wire.call("m.echo")

        assert answer == calls_event(
            "echo", "error", {"code": "overloaded", **CALLS_STOPPING}
        )

    async def test_stream(self) -> None:
        """Streams end at once, and their `finally` blocks run; other calls go on."""
        ended = asyncio.Event()

        async def count(request: Request) -> AsyncIterator[int]:
            try:
                await asleep(request)
                yield 1
            finally:
                ended.set()

        wire = calls_wire(count, asleep)
        wire.call("m.count", 1)
        wire.call("m.asleep", 2)
        await asyncio.sleep(0)

        wire.stop()
        await happens(ended)
        await turns()

        assert [each["request_id"] for each in wire.posted] == [1]
        assert wire.unfinished() == 1

    async def test_waiting_stream(self) -> None:
        """A stream that waits for its turn ends when the turn comes."""

        def count(request: Request) -> Iterator[int]:
            yield 1

        wire = calls_wire(count)
        wire.hold()
        wire.call("m.count")

        wire.stop()
        wire.open()

        assert [error_of(each) for each in await wire.settled()] == [
            ("overloaded", "the server is stopping")
        ]

    async def test_end_of_the_grace(self) -> None:
        """Calls that are left, and those that wait, end with `overloaded`."""
        wire = calls_wire(asleep, echo)
        wire.call("m.asleep", 1)
        wire.hold()
        wire.call("m.echo", 2)

        wire.cut_off()
        await wire.settled()

        assert sorted(each["request_id"] for each in wire.posted) == [1, 2]
        assert {error_of(each) for each in wire.posted} == {
            ("overloaded", "the server is stopping")
        }

    async def test_client_that_is_gone(self) -> None:
        """When a connection ends its unfinished calls are cancelled, unanswered."""
        wire = calls_wire(asleep)
        wire.call("m.asleep")

        wire.abandon()

        assert await wire.settled() == []

    async def test_sender_under_way(self) -> None:
        """A `send_message` that hangs is cancelled with the rest."""
        steps: list[str] = []

        class Own(Client):
            async def send_message(self, *head: Any, **data: Any) -> Any:
                steps.append("begun")
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    steps.append("cancelled")

        wire = TestOwnClasses.wire(client=Own)
        wire.call("m.echo")
        await asyncio.sleep(0)

        wire.abandon()
        await wire.settled()

        assert steps == ["begun", "cancelled"]


class Own(BaseException):
    """An exception that no `except Exception` catches."""


# What a handler or a hook may raise of its own making.
RAISED: dict[str, Callable[[], BaseException]] = {
    "BaseException": Own,
    "CancelledError": asyncio.CancelledError,
    "CancelledError of futures": concurrent.futures.CancelledError,
    "ConnectionClosed": lambda: ConnectionClosedError(None, None),
    "GeneratorExit": GeneratorExit,
    "group": lambda: BaseExceptionGroup("two", [Own(), asyncio.CancelledError()]),
    "RecursionError": RecursionError,
    "Refused": lambda: Refused(403),
    "StopAsyncIteration": StopAsyncIteration,
    "StopIteration": StopIteration,
    "TimeoutError": TimeoutError,
}


def raising(function: Any, **options: Any) -> Any:
    """Make a method `raising` of a function."""
    return App().method("raising", **options)(function)


def raising_handlers(make: Callable[[], BaseException]) -> dict[str, Any]:
    """Return methods of every kind that raise, by kind; streams after an item."""

    def plain(request: Request) -> None:
        raise make()

    async def task(request: Request) -> None:
        raise make()

    async def later(request: Request) -> None:
        await asyncio.sleep(0)
        raise make()

    def awaitable(request: Request) -> Awaitable[None]:
        return CallsLater(later(request))

    def generator(request: Request) -> Iterator[int]:
        yield 1
        raise make()

    async def stream(request: Request) -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0)
        raise make()

    def thread(request: Request) -> None:
        raise make()

    kinds = (plain, task, later, awaitable, generator, stream, thread)
    return {each.__name__: raising(each, thread=each is thread) for each in kinds}


RAISING_KINDS = [*raising_handlers(Own)]
# Nobody can tell a cancellation of the handler's own from that of the framework.
RAISED_CUT = [each for each in RAISED if each != "CancelledError"]


class Wrapping(Client):
    """A client whose calls are wrapped."""

    async def process_message(self, request: Request) -> Any:
        """Run the call as it is."""
        return await super().process_message(request)


def raising_wire(handler: Any, factory: Any = None, on_error: Any = None) -> CallsWire:
    """Make a wire with a method `raising`, beside `m.echo` and `m.asleep`."""
    app = App()
    app.client("/api")(factory or (lambda client: None))
    if on_error is not None:
        app.error(KeyError)(on_error)
    for each in (handler, app.method(echo), app.method(asleep)):
        app.module("m")(each)
    return CallsWire(app).open()


def ends_of(messages: list[Any]) -> list[tuple[Any, str]]:
    """Return id, and code or event, of each terminal event; nothing may follow one."""
    ends: list[tuple[Any, str]] = []
    for message in messages:
        assert message["request_id"] not in dict(ends), message
        if message["event"] in {"result", "error"}:
            is_error = message["event"] == "error"
            end = message["data"]["code"] if is_error else "result"
            ends.append((message["request_id"], end))
    return ends


class TestWhatHandlersRaise:
    """Whatever a handler raises of its own making is `internal`, and logged."""

    @staticmethod
    async def check(wire: CallsWire, caplog: pytest.LogCaptureFixture) -> None:
        """Call `m.raising` while another call waits; both calls must have one end."""
        wire.call("m.asleep", "other")
        wire.call("m.raising", "raising")
        await wire_until(lambda: ends_of(wire.posted))
        assert ends_of(wire.posted) == [("raising", "internal")]
        assert wire.posted[-1]["data"]["message"] == "internal error"

        wire.call("m.echo", "next")
        wire.call("$.cancel", "cancel", request_id="other")
        await wire.settled()
        last = caplog.records[-1]

        assert sorted(ends_of(wire.posted)) == [
            ("cancel", "result"),
            ("next", "result"),
            ("other", "cancelled"),
            ("raising", "internal"),
        ]
        assert {each.levelno for each in caplog.records} == {logging.ERROR}
        assert last.message.startswith("handler 'm.raising' failed")
        assert last.exc_info is not None

    @pytest.mark.parametrize("name", RAISED)
    @pytest.mark.parametrize("kind", RAISING_KINDS)
    async def test_kind_of_handler(
        self, kind: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handler of any kind may raise anything."""
        handler = raising_handlers(RAISED[name])[kind]

        await self.check(raising_wire(handler), caplog)

        assert len(caplog.records) == 1

    @pytest.mark.parametrize("name", RAISED)
    @pytest.mark.parametrize("kind", RAISING_KINDS)
    async def test_behind_process_message(
        self, kind: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It comes out of an overridden process_message in the same way."""
        handler = raising_handlers(RAISED[name])[kind]

        await self.check(raising_wire(handler, Wrapping), caplog)

        assert len(caplog.records) == 1

    @pytest.mark.parametrize("name", RAISED)
    async def test_process_message(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An overridden process_message may raise anything itself."""

        class Failing(Client):
            async def process_message(self, request: Request) -> Any:
                if request.method == "raising":
                    raise RAISED[name]()
                return await super().process_message(request)

        handler = raising_handlers(Own)["plain"]

        await self.check(raising_wire(handler, Failing), caplog)

        assert len(caplog.records) == 1

    @pytest.mark.parametrize("name", RAISED)
    async def test_error_function(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A function of `@app.error` may raise anything, too."""

        def missing(request: Request, exc: KeyError) -> Error:
            raise RAISED[name]()

        handler = raising_handlers(KeyError)["plain"]

        await self.check(raising_wire(handler, on_error=missing), caplog)

        assert [each.message for each in caplog.records][1:] == [
            "handler 'm.raising' failed"
        ]

    @pytest.mark.parametrize("kind", ["def", "async def"])
    async def test_result_of_a_cancelled_task(
        self, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The result of a task that was cancelled raises CancelledError: `internal`."""
        task = asyncio.create_task(asyncio.sleep(LIMIT))
        task.cancel()
        await asyncio.wait([task])

        def read(request: Request) -> Any:
            return task.result()

        async def read_async(request: Request) -> Any:
            return task.result()

        handler = raising(read if kind == "def" else read_async)

        await self.check(raising_wire(handler), caplog)

    async def test_await_of_a_cancelled_task(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A task that was cancelled by another one is no cancellation of the call."""
        task = asyncio.create_task(asyncio.sleep(LIMIT))

        async def wait(request: Request) -> None:
            asyncio.get_running_loop().call_soon(task.cancel)
            await task

        await self.check(raising_wire(raising(wait)), caplog)

    async def test_group_of_tasks(self, caplog: pytest.LogCaptureFixture) -> None:
        """A group whose task fails cancels the handler, and takes that back."""

        async def fail() -> None:
            raise Own

        async def work(request: Request) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.sleep(LIMIT)

        await self.check(raising_wire(raising(work)), caplog)

    async def test_time_limit_of_its_own(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A time limit of the handler's own raises TimeoutError: `internal`."""

        async def work(request: Request) -> None:
            async with asyncio.timeout(0):
                await asyncio.sleep(LIMIT)

        await self.check(raising_wire(raising(work)), caplog)


def cancel_myself() -> None:
    """Cancel the task that this runs in."""
    task: Any = asyncio.current_task()
    task.cancel()


class TestWhatOwnClassesRaise:
    """Whatever the classic API's overrides raise ends a call, too, and no other one."""

    @staticmethod
    def requests(make: Callable[[], BaseException]) -> dict[str, type[Request]]:
        """Return classes of requests that raise for `m.bad`, by kind."""

        class Plain(Request):
            def response(self, event: str, *data: Any, **fields: Any) -> Any:  # type: ignore[override]
                if self.method == "bad":
                    raise make()
                return super().response(event, *data, **fields)

        class Async(Request):
            async def response(self, event: str, *data: Any, **fields: Any) -> Any:  # type: ignore[override]
                await asyncio.sleep(0)
                if self.method == "bad":
                    raise make()
                return super().response(event, *data, **fields)

        return {each.__name__: each for each in (Plain, Async)}

    @pytest.mark.parametrize("name", RAISED)
    @pytest.mark.parametrize("kind", ["Plain", "Async"])
    async def test_response(
        self, kind: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A response of a request class's own may raise anything."""
        app = make_app()
        app.module("m")(app.method("bad")(lambda request: 5))
        app.module("m")(app.method("good")(lambda request: 5))
        wire = CallsWire(app, request=self.requests(RAISED[name])[kind]).open()

        wire.call("m.bad")
        wire.call("m.good", 2)
        await wire.settled()

        assert sorted(ends_of(wire.posted)) == [(1, "internal"), (2, "result")]
        assert {each.levelname for each in caplog.records} == {"ERROR"}

    @pytest.mark.parametrize("name", RAISED)
    @pytest.mark.parametrize("kind", ["task", "generator", "plain"])
    async def test_classic_method(
        self, kind: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A classic method of any kind may raise anything."""

        class EntityHandler(Handler):
            @handler_method
            async def task(self, request: Any) -> None:
                await asyncio.sleep(0)
                raise RAISED[name]()

            @handler_method
            def generator(self, request: Any) -> Generator[Any, Any, None]:
                yield from asyncio.sleep(0).__await__()
                raise RAISED[name]()

            @handler_method
            def plain(self, request: Any) -> None:
                raise RAISED[name]()

        server = Server(Request, {"api": Client}, {"entity": EntityHandler()})

        async with classic_talk(server) as talk:
            error = await talk.call(f"entity.{kind}")
            answer = await talk.call("$.ping", 2)

        assert (error_of(error)[0], result_of(answer)) == ("internal", {})
        (message,) = caplog.messages
        assert message.startswith(f"handler 'entity.{kind}' failed")


class TestHandlerThatCancelsItself:
    """A handler that cancels its own task has one terminal event all the same."""

    @staticmethod
    def handlers() -> dict[str, Any]:
        """Return handlers that cancel themselves and await, by kind."""

        async def task(request: Request) -> None:
            cancel_myself()
            await asyncio.sleep(0)

        async def late(request: Request) -> None:
            await asyncio.sleep(0)
            await task(request)

        def awaitable(request: Request) -> Awaitable[None]:
            return CallsLater(task(request))

        async def stream(request: Request) -> AsyncIterator[int]:
            yield 1
            await task(request)

        async def twice(request: Request) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await task(request)
            await task(request)

        return {each.__name__: each for each in (task, late, awaitable, stream, twice)}

    @pytest.mark.parametrize("factory", [None, Wrapping], ids=["plain", "wrapped"])
    @pytest.mark.parametrize("kind", ["task", "late", "awaitable", "stream", "twice"])
    async def test_then_awaits(
        self, kind: str, factory: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handler that cancels itself and awaits is `internal`, and logged."""
        wire = raising_wire(raising(self.handlers()[kind]), factory)

        wire.call("m.raising")
        wire.call("m.echo", 2)
        await wire.settled()

        assert sorted(ends_of(wire.posted)) == [(1, "internal"), (2, "result")]
        assert caplog.messages == ["handler 'm.raising' failed"]

    @pytest.mark.parametrize("factory", [None, Wrapping], ids=["plain", "wrapped"])
    async def test_then_goes_on(self, factory: Any) -> None:
        """One that swallows it has the result that it returns."""

        async def work(request: Request) -> str:
            cancel_myself()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            return "done"

        wire = raising_wire(raising(work), factory)

        wire.call("m.raising")

        assert await wire.settled() == [calls_event("raising", "result", "done")]

    @pytest.mark.parametrize("is_behind", [False, True])
    async def test_then_returns(self, is_behind: bool) -> None:
        """One that returns at once has one end, also where its client is behind."""

        async def work(request: Request) -> None:
            cancel_myself()

        wire = raising_wire(raising(work))
        if is_behind:
            wire.fall_behind()

        wire.call("m.raising")
        await wire.settled()

        messages = [each for each in wire.posted if each != "writable"]
        assert [each for each, _ in ends_of(messages)] == [1]

    async def test_after_its_answer(self) -> None:
        """One that has answered before gets no second end."""

        async def work(request: Request) -> None:
            request.response("result", 5)
            cancel_myself()
            await asyncio.sleep(0)

        wire = raising_wire(raising(work))

        wire.call("m.raising")

        assert await wire.settled() == [calls_event("raising", "result", 5)]

    async def test_cancelled_by_the_application(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handler that the application cancels is `internal`: nobody asked for it."""
        tasks: list[Any] = []

        async def work(request: Request) -> None:
            tasks.append(asyncio.current_task())
            await asleep(request)

        wire = raising_wire(raising(work))
        wire.call("m.raising")
        await asyncio.sleep(0)

        tasks[0].cancel()
        await wire.settled()

        assert ends_of(wire.posted) == [(1, "internal")]
        assert caplog.messages == ["handler 'm.raising' failed"]


class Gates:
    """What a handler in a thread waits for, and who waits for it."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.seen: list[Any] = []

    async def until_begun(self) -> None:
        """Wait until the thread has begun."""
        assert await asyncio.to_thread(self.began.wait, LIMIT)

    def wait(self) -> None:
        """Tell that the thread has begun, and wait."""
        self.began.set()
        assert self.go_on.wait(LIMIT)


class TestThreads:
    """Handlers in worker threads keep the order of a call's events."""

    @staticmethod
    def chatter(limit: float | None, ends: list[threading.Event]) -> CallsWire:
        """Make a wire whose `m.chatter` sends events all the time, until it may end."""
        app = make_app(max_in_flight=1000)

        @app.module("m")
        @app.method(thread=True, timeout=limit)
        def chatter(request: Request, at: int, end: str) -> Any:
            request.response("note")
            # No flood without an end: the loop has to get its turns beside it.
            for _ in range(500):
                if ends[at].is_set():
                    break
                request.response("note")
            ends[at].wait(LIMIT)
            if end == "own":
                request.response("result", "own")
            if end == "fails":
                raise Own
            return object() if end == "unwritable" else None

        return CallsWire(app).open()

    @pytest.mark.parametrize("end", ["own", "fails", "unwritable", "returns"])
    @pytest.mark.parametrize("limit", [None, 0.001])
    async def test_no_event_after_the_end(
        self, end: str, limit: float | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Calls that are cancelled, or time out, while they send: one end, the last."""
        rounds, width = 10, 4
        ends = [threading.Event() for _ in range(rounds * width)]
        wire = self.chatter(limit, ends)

        for first in range(0, rounds * width, width):
            batch = range(first, first + width)
            for at in batch:
                wire.call("m.chatter", at, at=at, end=end)
            await wire_until(lambda: wire.posted)
            for at in batch:
                # Every other one ends by itself, at about the same time.
                if at % 2:
                    ends[at].set()
                wire.call("$.cancel", None, request_id=at)
                ends[at].set()
            await wire.settled()

        assert sorted(at for at, _ in ends_of(wire.posted)) == [*range(rounds * width)]

    async def test_late_event(self) -> None:
        """What a thread sends before the loop knows that its call ended is dropped."""
        begun, go, sent = threading.Event(), threading.Event(), threading.Event()
        app = make_app()

        @app.module("m")
        @app.method(thread=True)
        def work(request: Request) -> None:
            begun.set()
            go.wait(LIMIT)
            request.response("note")
            sent.set()

        wire = CallsWire(app).open()
        wire.call("m.work")
        await asyncio.to_thread(begun.wait, LIMIT)

        go.set()
        sent.wait(LIMIT)
        wire.call("$.cancel", None, request_id=1)

        assert await wire.settled() == [
            calls_error("work", "cancelled", "the caller cancelled the call")
        ]

    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
    @pytest.mark.parametrize("factory", [None, Wrapping], ids=["plain", "wrapped"])
    async def test_exit(
        self,
        factory: Any,
        kind: type[BaseException],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A thread can't end the server: that is `internal`, and logged."""

        def leave(request: Request) -> None:
            raise kind

        wire = raising_wire(raising(leave, thread=True), factory)

        await TestWhatHandlersRaise.check(wire, caplog)

    @pytest.mark.parametrize("is_async", [False, True])
    async def test_own_send_message(self, is_async: bool) -> None:
        """A client's own send_message changes nothing about the order of events."""

        class Plain(Client):
            def send_message(self, *parts: Any, **data: Any) -> Any:
                return super().send_message(*parts, **data)

        class Async(Client):
            async def send_message(self, *parts: Any, **data: Any) -> Any:
                await asyncio.sleep(0)
                await super().send_message(*parts, **data)

        app, is_over = App(), threading.Event()
        app.client("/api")(Async if is_async else Plain)

        @app.module("m")
        @app.method(thread=True)
        def chatter(request: Request) -> None:
            while not is_over.is_set():
                request.response("note")
                is_over.wait(0.0001)

        wire = CallsWire(app).open()

        for each in range(4):
            wire.call("m.chatter", each)
        await wire_until(lambda: len(wire.posted) > 20)
        for each in range(4):
            wire.call("$.cancel", None, request_id=each)
        await turns()
        is_over.set()
        await wire.settled()

        assert sorted(ends_of(wire.posted)) == [(at, "cancelled") for at in range(4)]

    async def test_answer_and_timeout_at_once(self) -> None:
        """Calls that answer by themselves as they time out have one end, the last."""
        app = make_app(max_in_flight=1000)

        @app.module("m")
        @app.method(thread=True, timeout=0.05)
        def work(request: Request, laps: int) -> None:
            for _ in range(laps):
                request.response("note")
            request.response("result")

        wire = CallsWire(app).open()

        for each in range(100):
            wire.call("m.work", each, laps=each)
        await wire.settled()

        assert sorted(at for at, _ in ends_of(wire.posted)) == [*range(100)]

    @pytest.mark.parametrize("answer", ["returned", "result", "error", "note"])
    async def test_unwritable_answer_and_timeout(
        self, answer: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A timeout that falls while an unwritable answer is written is the end."""
        gates, (thread, loops) = Gates(), (threading.get_ident(), [0])

        def dumps(value: Any) -> bytes:
            data = value["data"]
            if data in ("bad", {"code": "odd", "message": "bad"}):
                if threading.get_ident() == thread:
                    loops[0] += 1
                else:
                    gates.wait()
                raise TypeError("bad")
            return json.dumps(value).encode()

        app = make_app(dumps=dumps)

        @app.module("m")
        @app.method(thread=True, timeout=0.05)
        def work(request: Request) -> Any:
            if answer == "returned":
                gates.wait()
                return "bad"
            if answer == "error":
                request.response("error", code="odd", message="bad")
            return request.response(answer, "bad")

        wire = CallsWire(app).open()

        wire.call("m.work")
        await gates.until_begun()
        await wire.sent(1)
        gates.go_on.set()
        await wire.settled()

        assert ends_of(wire.posted) == [(1, "timeout")]
        assert loops == [0]

    @pytest.mark.parametrize("answer", ["returned", "result", "error", "note"])
    async def test_unwritable_answer(
        self, answer: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An answer that can't be written is `internal`, once."""
        app = make_app()

        @app.module("m")
        @app.method(thread=True)
        def work(request: Request) -> Any:
            if answer == "returned":
                return object()
            if answer == "error":
                request.response("error", code="odd", message=object())
            return request.response(answer, object())

        wire = CallsWire(app).open()

        wire.call("m.work")
        await wire.settled()

        assert ends_of(wire.posted) == [(1, "internal")]
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("event", ["result", "error"])
    @pytest.mark.parametrize("second", ["note", "result", "error"])
    async def test_response_after_its_own_answer(self, event: str, second: str) -> None:
        """After its own answer a further response raises in the worker, at once."""
        gates = Gates()
        fields = {"code": "odd", "message": "not today"}

        @App().method(thread=True)
        def work(request: Request) -> None:
            gates.wait()
            request.response(event, fields)
            try:
                request.response(second, fields)
            except RuntimeError as exc:
                gates.seen.append(str(exc))

        wire = calls_wire(work)

        wire.call("m.work")
        await gates.until_begun()
        gates.go_on.set()
        await wire.settled()

        assert wire.posted == [calls_event("work", event, fields)]
        assert gates.seen == [
            f"call 'm.work' has ended, but {second!r} is sent; send nothing after "
            f"'result' or 'error'"
        ]

    async def test_value_after_its_own_answer(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it still returns is dropped, with a warning."""

        @App().method(thread=True)
        def work(request: Request) -> int:
            request.response("result", 1)
            return 2

        wire = calls_wire(work)

        wire.call("m.work")

        assert await wire.settled() == [calls_event("work", "result", 1)]
        assert caplog.messages == [
            "what handler 'm.work' returned after it had answered is dropped"
        ]

    async def test_response_after_a_timeout(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it says after its timeout is dropped, and no error: it can't know."""
        gates = Gates()

        @App().method(thread=True, timeout=0.01)
        def work(request: Request) -> int:
            gates.wait()
            request.response("note")
            request.response("result", 1)
            gates.seen.append("said")
            return 2

        wire = calls_wire(work)

        wire.call("m.work")
        await wire.sent(1)
        gates.go_on.set()
        await wire.settled()

        assert ends_of(wire.posted) == [(1, "timeout")]
        assert (gates.seen, caplog.messages) == (["said"], [])


class TestWhatIsRaisedAfterTheEnd:
    """What a handler raises once its call was cut off is logged, and no more."""

    @staticmethod
    def handlers(make: Callable[[], BaseException], gates: Gates) -> dict[str, Any]:
        """Return methods that raise while they clean up, by kind."""

        async def task(request: Request) -> None:
            try:
                await asleep(request)
            finally:
                raise make()

        async def stream(request: Request) -> AsyncIterator[int]:
            yield 1
            await task(request)

        async def paused_stream(request: Request) -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
            finally:
                raise make()

        def thread(request: Request) -> None:
            gates.wait()
            raise make()

        kinds = (task, stream, paused_stream, thread)
        return {each.__name__: raising(each, thread=each is thread) for each in kinds}

    @pytest.mark.parametrize("name", RAISED_CUT)
    @pytest.mark.parametrize("kind", ["task", "stream", "paused_stream", "thread"])
    async def test_cut_off(
        self, kind: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A call that was cancelled has had its end; what it raises then is logged."""
        if (kind, name) == ("paused_stream", "GeneratorExit"):
            # Which is what closing a generator raises in it: no word of its own.
            return
        gates = Gates()
        wire = raising_wire(self.handlers(RAISED[name], gates)[kind])
        call = {"module": "m", "method": "raising", "data": {}, "request_id": 1}
        wire.read({**call, "items": 1})
        if kind == "thread":
            await gates.until_begun()
        await turns()

        wire.call("$.cancel", 2, request_id=1)
        gates.go_on.set()
        await wire.settled()

        assert ends_of(wire.posted) == [(1, "cancelled"), (2, "result")]
        assert [(each.levelname, each.message) for each in caplog.records] == [
            ("ERROR", "handler 'm.raising', which was cut off, failed")
        ]

    @pytest.mark.parametrize("name", RAISED)
    async def test_answered(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """A call that has answered by itself has had its end, too."""

        async def work(request: Request) -> None:
            request.response("result", 5)
            raise RAISED[name]()

        wire = raising_wire(raising(work))

        wire.call("m.raising")
        await wire.settled()

        assert wire.posted == [calls_event("raising", "result", 5)]
        assert caplog.messages[0].startswith("handler 'm.raising' failed")


class TestCodecThatFails:
    """Whatever an application's own codec raises is `internal`."""

    @pytest.mark.parametrize("name", RAISED)
    @pytest.mark.parametrize("kind", ["plain", "task", "stream", "thread"])
    async def test_dumps(
        self, kind: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What dumps raises ends the call that it was for, and no other one."""

        def dumps(value: Any) -> str:
            if value["data"] == "bad":
                raise RAISED[name]()
            return json.dumps(value)

        def plain(request: Request) -> str:
            return "bad"

        async def task(request: Request) -> str:
            return "bad"

        def stream(request: Request) -> Iterator[str]:
            yield "bad"

        def thread(request: Request) -> str:
            return "bad"

        handlers = {each.__name__: each for each in (plain, task, stream, thread)}
        app = make_app(dumps=dumps)
        app.module("m")(app.method(kind, thread=kind == "thread")(handlers[kind]))
        wire = CallsWire(app).open()

        wire.call(f"m.{kind}")
        wire.call("$.ping", 2)
        await wire.settled()

        assert sorted(ends_of(wire.posted)) == [(1, "internal"), (2, "result")]
        assert len(caplog.records) == 1


def look_and_set(value: str) -> str:
    """Return what the variable was, and set it."""
    before = VALUE.get()
    VALUE.set("leaked")
    return before


Looked = typing.Annotated[str, pydantic.AfterValidator(look_and_set)]


class TestContextOfChecks:
    """Validators and error functions are part of the call whose they are."""

    @staticmethod
    def app(handler: Any) -> App:
        """Make an app whose connections set the variable in on_connecting."""
        app = App()

        @app.client("/api")
        def api(client: Client) -> None:
            VALUE.set("tenant")

        app.module("m")(handler)
        return app

    @pytest.mark.parametrize("kind", ["plain", "task", "stream", "thread"])
    async def test_validator(self, kind: str) -> None:
        """A validator sees what on_connecting set; what it sets no later call sees."""

        def plain(request: Request, value: Looked) -> str:
            return value

        async def task(request: Request, value: Looked) -> str:
            return value

        def stream(request: Request, value: Looked) -> Iterator[str]:
            yield value

        def thread(request: Request, value: Looked) -> str:
            return value

        handlers = {each.__name__: each for each in (plain, task, stream, thread)}
        app = self.app(App().method("m", thread=kind == "thread")(handlers[kind]))

        async with talking(app) as talk:
            answers = [await talk.call("m.m", value="")]
            if kind == "stream":
                await talk.receive()
            answers.append(await talk.call("m.m", value=""))

        assert [each["data"] for each in answers] == ["tenant", "tenant"]

    @pytest.mark.parametrize("kind", RAISING_KINDS)
    async def test_error_function(self, kind: str) -> None:
        """An error function sees it, too, and what it sets no later call sees."""
        app = self.app(raising_handlers(KeyError)[kind])
        app.error(KeyError)(lambda request, exc: Error("odd", look_and_set("")))

        async with talking(app) as talk:
            seen = list[Any]()
            while len(seen) < 2:
                answer = await talk.call("m.raising")
                if answer["event"] == "item":
                    answer = await talk.receive()
                seen.append(error_of(answer))

        assert seen == [("odd", "tenant")] * 2


class SendingPlainly(Client):
    """A client with a send_message of its own."""

    def send_message(self, *parts: Any, **data: Any) -> Any:
        """Send, but nothing that is bad."""
        if data.get("bad"):
            raise ValueError("bad")
        return super().send_message(*parts, **data)


class SendingAsync(Client):
    """The same as a coroutine."""

    async def send_message(self, *parts: Any, **data: Any) -> Any:
        """Send, but nothing that is bad."""
        await asyncio.sleep(0)
        if data.get("bad"):
            raise ValueError("bad")
        await super().send_message(*parts, **data)


class TestOwnSendMessageThatFails:
    """A client's own send_message that raises ends the call once, with `internal`."""

    FACTORIES: ClassVar = [SendingPlainly, SendingAsync]

    @staticmethod
    def handlers() -> dict[str, Any]:
        """Return handlers that answer by themselves, with what can't be sent."""

        async def task(request: Request) -> None:
            await request.response("result", bad=True)

        def plain(request: Request) -> Any:
            return request.response("result", bad=True)

        async def error(request: Request) -> None:
            await request.response("error", code="odd", message="no", bad=True)

        def thread(request: Request) -> None:
            request.response("result", bad=True)

        kinds = (task, plain, error, thread)
        return {each.__name__: raising(each, thread=each is thread) for each in kinds}

    @pytest.mark.parametrize("factory", FACTORIES)
    @pytest.mark.parametrize("kind", ["task", "plain", "error", "thread"])
    async def test_own_answer(self, kind: str, factory: Any) -> None:
        """A handler's own answer that fails is followed by `internal`."""
        wire = raising_wire(self.handlers()[kind], factory)

        wire.call("m.raising")
        await wire.settled()
        await turns()

        assert ends_of(wire.posted) == [(1, "internal")]

    @pytest.mark.parametrize("factory", FACTORIES)
    @pytest.mark.parametrize(
        "bad", [{"bad": True}, {"object": object()}], ids=["own", "JSON"]
    )
    async def test_item(self, bad: Any, factory: Any) -> None:
        """An item that fails is the end of its stream."""

        async def stream(request: Request) -> AsyncIterator[Any]:
            yield {"item": 1}
            yield bad

        wire = raising_wire(raising(stream), factory)

        wire.call("m.raising")
        await wire.settled()

        assert ends_of(wire.posted) == [(1, "internal")]
        assert [each["event"] for each in wire.posted] == ["item", "error"]


FORKED = """
import asyncio, os, signal, sys
from wsappy import App

def make_app():
    app = App()
    app.client("/api")(lambda client: None)

    @app.module("m")
    @app.method(thread=True)
    def work(request, value: int):
        return value

    return app

app = make_app()

async def visit(app, value):
    async with app.test_client("/api") as api:
        calls = [api.call("m", "work", value=value) for _ in range(8)]
        assert await asyncio.gather(*calls) == [value] * 8
        if "inside" in sys.argv and value == 1:
            fork()

def fork():
    if os.fork() == 0:
        signal.alarm(8)
        asyncio._set_running_loop(None)
        asyncio.run(visit(app if "same" in sys.argv else make_app(), 2))
        print("answered", flush=True)
        os._exit(0)
    print(os.wait()[1], flush=True)

asyncio.run(visit(app, 1))
if "inside" not in sys.argv:
    fork()
"""


class TestForkedProcess:
    """Worker threads in the child of a process that has used some."""

    @pytest.mark.parametrize("when", ["inside", "afterwards"])
    @pytest.mark.parametrize("which", ["same", "new"])
    async def test_child(self, when: str, which: str) -> None:
        """The child serves an app, and its `thread=True` handlers answer."""
        command = [sys.executable, "-W", "ignore", "-c", FORKED, when, which]

        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=2 * LIMIT
        )

        assert (done.stdout.split(), done.stderr) == (["answered", "0"], "")


VALUE: contextvars.ContextVar[str] = contextvars.ContextVar("VALUE", default="none")


class TestContextOfCalls:
    """Each call runs in a copy of its connection's context."""

    @staticmethod
    def setters() -> dict[str, Any]:
        """Return handlers of every kind that set the variable and read it again."""

        def plain(request: Request) -> str:
            VALUE.set("plain")
            return VALUE.get()

        async def task(request: Request) -> str:
            VALUE.set("task")
            await asyncio.sleep(0)
            return VALUE.get()

        def awaitable(request: Request) -> Awaitable[str]:
            VALUE.set("awaitable")
            return calls_later(VALUE.get())

        def generator(request: Request) -> Iterator[str]:
            VALUE.set("generator")
            yield VALUE.get()
            yield VALUE.get()

        async def stream(request: Request) -> AsyncIterator[str]:
            VALUE.set("stream")
            yield VALUE.get()
            await asyncio.sleep(0)
            yield VALUE.get()

        def thread(request: Request) -> str:
            VALUE.set("thread")
            return VALUE.get()

        kinds = (plain, task, awaitable, generator, stream, thread)
        return {
            each.__name__: App().method(thread=each is thread)(each) for each in kinds
        }

    @staticmethod
    def readers() -> dict[str, Any]:
        """Return handlers of every kind that read the variable."""

        def read_plain(request: Request) -> str:
            return VALUE.get()

        async def read_task(request: Request) -> str:
            return VALUE.get()

        def read_stream(request: Request) -> Iterator[str]:
            yield VALUE.get()

        def read_thread(request: Request) -> str:
            return VALUE.get()

        kinds = (read_plain, read_task, read_stream, read_thread)
        return {
            each.__name__: App().method(thread=each is read_thread)(each)
            for each in kinds
        }

    @pytest.mark.parametrize("factory", [None, Wrapping], ids=["plain", "wrapped"])
    @pytest.mark.parametrize(
        "kind", ["plain", "task", "awaitable", "generator", "stream", "thread"]
    )
    async def test_later_calls(self, kind: str, factory: Any) -> None:
        """What a handler of any kind sets it sees itself, and no later call does."""
        app = App()
        app.client("/api")(factory or (lambda client: None))
        for handler in [self.setters()[kind], *self.readers().values()]:
            app.module("m")(handler)
        wire = CallsWire(app).open()

        wire.call(f"m.{kind}", "set")
        await wire.settled()
        for name in self.readers():
            wire.call(f"m.{name}", name)
        await wire.settled()

        values = {
            (each["request_id"], each["data"]) for each in wire.posted if each["data"]
        }
        assert values == {("set", kind), *((name, "none") for name in self.readers())}
        assert VALUE.get() == "none"

    async def test_calls_of_one_read(self) -> None:
        """Calls that run side by side see nothing of each other."""

        async def work(request: Request, value: str) -> str:
            before = VALUE.get()
            VALUE.set(value)
            await asyncio.sleep(0)
            return f"{before} {VALUE.get()}"

        wire = calls_wire(work)

        for each in "ab":
            wire.call("m.work", each, value=each)
        await wire.settled()

        answers = sorted(each["data"] for each in wire.posted)
        assert answers == ["none a", "none b"]

    async def test_task_of_a_handler(self) -> None:
        """A task that a handler started keeps its copy, after the call has ended."""
        gate, tasks = asyncio.Event(), list[asyncio.Task[str]]()

        async def look() -> str:
            await gate.wait()
            return VALUE.get()

        def work(request: Request, value: str) -> None:
            VALUE.set(value)
            tasks.append(asyncio.get_running_loop().create_task(look()))

        wire = calls_wire(work)

        for each in "ab":
            wire.call("m.work", value=each)
        gate.set()

        assert await asyncio.gather(*tasks) == ["a", "b"]


# --- 6. Clients --------------------------------------------------------------

# -- The handshake ------------------------------------------------------------


def frame_by_hand(payload: bytes, opcode: int = TEXT) -> bytes:
    """Make a whole frame from a client."""
    return wire_frame(payload, FIN | opcode)


async def ask_by_hand(app: App, *parts: str, **headers: Any) -> tuple[int, str]:
    """Serve an app for one request; return the status and the body."""
    async with (
        app.serve("127.0.0.1", 0) as serving,
        dialled(serving, request_by_hand(*parts, **headers)) as wire,
    ):
        status, _ = await wire.head()
        return status, "" if status == 101 else (await wire.ended()).decode()


async def shake_by_hand(
    app: App, path: str = "/api", **headers: Any
) -> tuple[int, str]:
    """Like `ask_by_hand`, with a WebSocket handshake."""
    return await ask_by_hand(app, path, **UPGRADE, **headers)


async def close_of_browser(
    app: App, path: str = "/api"
) -> tuple[int | None, str | None]:
    """Connect as a page of the same host does; return how the connection was closed."""
    async with app.serve("127.0.0.1", 0) as serving:
        url = serving.url(path)
        origin: Any = url.replace("ws", "http")
        async with ws_connect(url, proxy=None, origin=origin) as ws:
            return await Talk(ws).closed()


async def happens(event: asyncio.Event) -> None:
    """Wait for *event*."""
    async with asyncio.timeout(LIMIT):
        await event.wait()


def refusing(error: BaseException) -> App:
    """Make an app that raises in `on_connecting`."""
    app = App()

    @app.client("/api")
    def api(client: Client) -> None:
        raise error

    return app


NO_PAGE = (426, "this address is for WebSocket clients")
TWICE = (400, "one Host and one Origin at most")


class TestWhatIsNoHandshake:
    """Requests that are no WebSocket handshake."""

    @pytest.mark.parametrize(
        ("parts", "headers", "answer"),
        [
            ([], {}, NO_PAGE),
            (["/api", "HEAD"], {}, (426, "")),
            (["/other"], {}, (404, "not found")),
            (["/%ff"], {}, (404, "not found")),
            (["/api", "POST"], {}, (405, "method not allowed")),
            ([], {**UPGRADE, "protocol": "HTTP/1.0"}, NO_PAGE),
            ([], {**UPGRADE, "Host": ["a", "a"]}, TWICE),
            ([], {**UPGRADE, "Origin": ["a", "a"]}, TWICE),
        ],
        ids=[
            "route",
            "HEAD",
            "unknown path",
            "path that isn't UTF-8",
            "POST",
            "upgrade of HTTP/1.0",
            "two Hosts",
            "two Origins",
        ],
    )
    async def test_answer(
        self, parts: list[str], headers: dict[str, Any], answer: tuple[int, str]
    ) -> None:
        """Its answer is 400, 404, 405 or 426 with a reason; none to HEAD."""
        assert await ask_by_hand(make_app(), *parts, **headers) == answer

    @pytest.mark.parametrize(
        ("method", "name", "value"),
        [("GET", "Upgrade", "websocket"), ("POST", "Allow", "GET, HEAD")],
    )
    async def test_header(self, method: str, name: str, value: str) -> None:
        """A 426 has the header `Upgrade`, a 405 has `Allow`."""
        async with (
            make_app().serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand(method=method)) as wire,
        ):
            _, headers = await wire.head()

        assert headers[name] == value

    @pytest.mark.parametrize(
        ("method", "headers", "status"),
        [
            ("GET", {**UPGRADE, "Sec-WebSocket-Key": "x"}, 400),
            ("POST", UPGRADE, 405),
        ],
        ids=["bad key", "POST"],
    )
    async def test_handshake_that_is_not_whole(
        self, method: str, headers: dict[str, str], status: int
    ) -> None:
        """A handshake that isn't whole is 400, by another method than GET 405."""
        answer = await ask_by_hand(make_app(), "/api", method, **headers)

        assert answer[0] == status

    @pytest.mark.parametrize(
        ("path", "headers", "status"),
        [
            ("/api", [b"X: y\r\n"] * 123, 101),
            ("/api", [b"X: y\r\n"] * 124, 431),
            ("/api", [b"X: %s\r\n" % (b"y" * 8187)], 101),
            ("/api", [b"X: %s\r\n" % (b"y" * 8188)], 431),
            ("/" + "y" * 8176, [], 404),
            ("/" + "y" * 8177, [], 414),
        ],
    )
    async def test_size(self, path: str, headers: list[bytes], status: int) -> None:
        """It has at most 128 headers, and 8,192 bytes a line with the line's end."""
        request = request_by_hand(path, **UPGRADE)[:-2] + b"".join(headers) + b"\r\n"

        async with (
            make_app().serve("127.0.0.1", 0) as serving,
            dialled(serving, request) as wire,
        ):
            assert (await wire.head())[0] == status

    async def test_request_behind_another(self) -> None:
        """A second request that is smuggled in behind the first one is not answered."""
        app, queries = make_app(), list[dict[str, str]]()

        @app.http("/page")
        def page(request: wsappy.PageRequest) -> str:
            queries.append(request.query)
            return ""

        requests = [request_by_hand(f"/page?n={number}") for number in range(3)]

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, b"".join(requests)) as wire,
        ):
            await wire.head()
            assert await wire.ended() == b""

        assert queries == [{"n": "0"}]

    async def test_no_hook_runs(self) -> None:
        """What isn't a WebSocket handshake reaches no hook."""
        app = refusing(RuntimeError("ran"))

        status, _ = await ask_by_hand(app, "/api", "GET", Upgrade="websocket")

        assert status == 426


def page_app() -> App:
    """Make an app with the route `/api` and the page `/page`."""
    app = make_app()
    app.http("/page")(lambda request: "text")
    return app


async def raw_answer(app: App, request: bytes) -> tuple[int, str, str]:
    """Send bytes; return the status, what is said of the connection, and the body."""
    async with app.serve("127.0.0.1", 0) as serving, dialled(serving, request) as wire:
        status, headers = await wire.head()
        return status, headers["Connection"], (await wire.ended()).decode()


HEAD_END = b"Host: localhost\r\n\r\n"
BODY = b"Content-Length: 2\r\n" + HEAD_END + b"{}"
CHUNKED = b"Transfer-Encoding: chunked\r\n" + HEAD_END + b"2\r\n{}\r\n0\r\n\r\n"
BAD_METHOD = (405, "method not allowed")
BAD_REQUEST = (400, "this is no HTTP request")
BAD_TARGET = (400, "the target must be a path or a URL")
BAD_LENGTH = (400, "Content-Length must be one number")
BAD_VERSION = (505, "this server speaks HTTP/1.1")
BAD_CODING = (501, "transfer codings are not supported")
# Requests that the library drops, or would not understand.
DROPPED: dict[str, tuple[bytes, tuple[int, str]]] = {
    "body": (b"POST /api HTTP/1.1\r\n" + BODY, BAD_METHOD),
    "body of a page": (b"GET /page HTTP/1.1\r\n" + BODY, (200, "text")),
    "body of a route": (b"GET /api HTTP/1.1\r\n" + BODY, NO_PAGE),
    "body of HTTP/1.0": (b"PUT /api HTTP/1.0\r\n" + BODY, BAD_METHOD),
    "no body": (b"DELETE /page HTTP/1.1\r\n" + HEAD_END, BAD_METHOD),
    "chunks": (b"POST /api HTTP/1.1\r\n" + CHUNKED, BAD_CODING),
    "chunks to a page": (b"GET /page HTTP/1.1\r\n" + CHUNKED, BAD_CODING),
    "two lengths": (b"GET /page HTTP/1.1\r\nContent-Length: 3\r\n" + BODY, BAD_LENGTH),
    "length below 0": (
        b"GET /page HTTP/1.1\r\nContent-Length: -1\r\n" + HEAD_END,
        BAD_LENGTH,
    ),
    "Latin-1": (b"GET /\xe4 HTTP/1.1\r\n" + HEAD_END, BAD_REQUEST),
    "UTF-8": ("GET /\u00e4 HTTP/1.1\r\n".encode() + HEAD_END, BAD_REQUEST),
    "Latin-1 method": (b"G\xe4T / HTTP/1.1\r\n" + HEAD_END, BAD_REQUEST),
    "no CR": (b"GET /page HTTP/1.1\nHost: localhost\n\n", BAD_REQUEST),
    "no CR in a header": (b"GET /page HTTP/1.1\r\nHost: x\n\r\n", BAD_REQUEST),
    "no colon": (b"GET /page HTTP/1.1\r\nHost\r\n\r\n", BAD_REQUEST),
    "PROXY": (
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /page HTTP/1.1\r\n" + HEAD_END,
        BAD_REQUEST,
    ),
    "PROXY 2": (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), BAD_REQUEST),
    "preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), BAD_VERSION),
    "HTTP/3": (b"GET /page HTTP/3\r\n" + HEAD_END, BAD_VERSION),
    "HTTP/0.9": (b"GET /page\r\n", BAD_REQUEST),
    "HTTP/x": (b"GET /page HTTP/x\r\n" + HEAD_END, BAD_REQUEST),
    "garbage": (bytes(range(14)) + b"\r\n\r\n", BAD_REQUEST),
    "no path": (b"GET page HTTP/1.1\r\n" + HEAD_END, BAD_TARGET),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\n" + HEAD_END, BAD_TARGET),
    "CONNECT": (b"CONNECT localhost:80 HTTP/1.1\r\n" + HEAD_END, BAD_TARGET),
    "no host": (b"GET http:///page HTTP/1.1\r\n" + HEAD_END, BAD_TARGET),
    "handshake with a body": (
        wire_request().replace(b"Host", b"Content-Length: 2\r\nHost") + b"{}",
        (400, "a WebSocket handshake has no body"),
    ),
    "handshake with chunks": (
        wire_request().replace(b"Host", b"Transfer-Encoding: chunked\r\nHost"),
        BAD_CODING,
    ),
}


class TestRequestsThatTheLibraryDrops:
    """Every request that has a head gets its answer."""

    @pytest.mark.parametrize("kind", DROPPED)
    async def test_answer(self, kind: str) -> None:
        """It is an HTTP answer that says why, and `Connection: close`."""
        request, (status, text) = DROPPED[kind]

        assert await raw_answer(page_app(), request) == (status, "close", text)

    async def test_byte_by_byte(self) -> None:
        """Neither does it matter how the request is cut."""
        request, _ = DROPPED["body"]

        async with (
            page_app().serve("127.0.0.1", 0) as serving,
            dialled(serving) as wire,
        ):
            await wire.trickle(*(bytes((each,)) for each in request))
            status, _ = await wire.head()

        assert status == 405

    async def test_empty_body(self) -> None:
        """A handshake with a body of no bytes is one."""
        request = wire_request().replace(b"Host", b"Content-Length: 0\r\nHost")

        async with (
            make_app().serve("127.0.0.1", 0) as serving,
            dialled(serving, request) as wire,
        ):
            assert (await wire.head())[0] == 101

    async def test_counted(self) -> None:
        """What is no request at all is counted as refused."""
        app = make_app()

        await raw_answer(app, b"garbage\r\n\r\n")

        stats = app.stats()
        assert (stats["refused"], stats["handshakes_dropped"]) == ({"400": 1}, 0)

    @pytest.mark.parametrize("request_", [b"", b"GET /page", b"GET / HTTP/1.1\r\nHo"])
    async def test_no_head(self, request_: bytes) -> None:
        """What ends before its head does gets none."""
        app = page_app()
        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_) as wire,
        ):
            wire.writer.write_eof()
            assert await wire.ended() == b""
            await wire_until(lambda: wire.is_gone)

        assert app.stats()["handshakes_dropped"] == 1

    async def test_client_that_shuts_its_sending_side(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A page goes to a client that has said its last word, as netcat does."""
        monkeypatch.setattr(wsappy, "BODY_GRACE", 0.1)
        app, go_on = make_app(), asyncio.Event()

        @app.http("/page")
        async def page(request: Any) -> str:
            await go_on.wait()
            return "text"

        async with (
            app.serve("127.0.0.1", 0, open_timeout=0.8) as serving,
            dialled(serving, request_by_hand("/page")) as wire,
        ):
            wire.writer.write_eof()
            await wire_until(lambda: wire.connection.response is None)
            await turns()
            go_on.set()
            await wire.head()

            assert await wire.ended() == b"text"

    @pytest.mark.parametrize("path", ["/api", "/page"])
    @pytest.mark.parametrize("size", [600_000, 5_000_000])
    async def test_large_body(
        self, path: str, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A body is read and dropped, so that the answer arrives."""
        monkeypatch.setattr(wsappy, "BODY_GRACE", 0.3)
        head = request_by_hand(path, "POST", **{"Content-Length": size})
        async with (
            page_app().serve("127.0.0.1", 0, open_timeout=0.8) as serving,
            dialled(serving, head + bytes(size)) as wire,
        ):
            status, _ = await wire.head()

            assert (status, await wire.ended()) == (405, b"method not allowed")

    async def test_client_that_writes_before_it_reads(self) -> None:
        """A client that writes all of its body before it reads gets it, too."""
        size = 600_000
        head = request_by_hand("/api", "POST", **{"Content-Length": size})

        def post(port: int) -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock:
                sock.sendall(head + bytes(size))
                return sock.makefile("rb").read()

        async with make_app().serve("127.0.0.1", 0) as serving:
            answer = await asyncio.to_thread(post, serving.port)

        assert answer.endswith(b"\r\n\r\nmethod not allowed")

    async def test_body_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """At most 1 MiB of it is read, and the connection ends a little later."""
        monkeypatch.setattr(wsappy, "BODY_GRACE", 0.1)
        head = request_by_hand("/api", "POST", **{"Content-Length": 2**40})
        async with (
            make_app().serve("127.0.0.1", 0, open_timeout=0.4) as serving,
            dialled(serving, head + bytes(2**23)) as wire,
        ):
            await wire.head()
            connection = wire.connection
            await wire_until(lambda: wire.is_gone)

            assert 2**20 < connection.bytes_in < 2**21

    async def test_body_of_a_page_that_takes_its_time(self) -> None:
        """What comes before the answer is dropped, too: it is no early frame."""
        app, come = make_app(), asyncio.Event()

        @app.http("/page")
        async def page(request: Any) -> str:
            await come.wait()
            return "text"

        length: Any = {"Content-Length": 2**18}
        head = request_by_hand("/page", **length)
        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, head + bytes(2**18)) as wire,
        ):
            await wire_until(
                lambda: serving.wires and wire.connection.bytes_in >= 2**18 + len(head)
            )
            come.set()
            await wire.head()

            assert await wire.ended() == b"text"

    async def test_body_over_tls(self, tmp_path: pathlib.Path) -> None:
        """With TLS, too, where a connection has no half that could be shut."""
        files = tmp_path / "key.pem", tmp_path / "certificate.pem"
        make_certificate(*files)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[1], files[0])
        trust: Any = ssl.create_default_context(cafile=files[1])
        head = request_by_hand("/api", "POST", **{"Content-Length": 600_000})

        async with make_app().serve("127.0.0.1", 0, ssl=context) as serving:
            dial = asyncio.open_connection("127.0.0.1", serving.port, ssl=trust)
            wire = Wire(serving, await dial)
            wire.send(head + bytes(600_000))
            status, _ = await wire.head()
            async with asyncio.timeout(LIMIT):
                body = await wire.reader.readexactly(len("method not allowed"))
            wire.writer.transport.abort()

        assert (status, body) == (405, b"method not allowed")


NGINX = """
daemon off; master_process off; worker_processes 1;
pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 99; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi; client_max_body_size 9m;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
    upstream wsappy {{ server 127.0.0.1:{one}; server 127.0.0.1:{two}; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://wsappy; proxy_http_version 1.1;
            proxy_request_buffering {buffering};
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""


@contextlib.asynccontextmanager
async def behind_nginx(
    app: App, folder: pathlib.Path, buffering: str
) -> AsyncIterator[Any]:
    """Serve an app twice behind nginx; yield what knows the port of nginx."""
    async with app.serve("127.0.0.1", 0) as one, app.serve("127.0.0.1", 0) as two:
        _, port = await wsappy.find_free("127.0.0.1", 0)
        ports = {"one": one.port, "two": two.port, "port": port}
        text = NGINX.format(folder=folder, buffering=buffering, **ports)
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        command = ["nginx", "-e", "error.log", "-p", str(folder), "-c", "nginx.conf"]
        nginx = await asyncio.create_subprocess_exec(*command)
        try:
            async with asyncio.timeout(LIMIT):
                while not await can_connect(port):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            yield types.SimpleNamespace(port=port, wires=set())
        finally:
            nginx.terminate()
            await nginx.wait()


async def can_connect(port: int) -> bool:
    """Tell whether a port is open."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
class TestNginx:
    """With two servers behind nginx no request makes it give both of them up."""

    @pytest.mark.parametrize("buffering", ["on", "off"])
    @pytest.mark.parametrize("size", [2, 600_000, 5_000_000])
    async def test_bodies(
        self, tmp_path: pathlib.Path, size: int, buffering: str
    ) -> None:
        """Two POSTs are answered, and clients go on to come in."""
        app = page_app()
        post = request_by_hand("/api", "POST", **{"Content-Length": size}) + bytes(size)
        statuses = []

        async with behind_nginx(app, tmp_path, buffering) as proxy:
            for request in (post, post, wire_request(), request_by_hand("/page")):
                async with dialled(proxy, request) as wire:
                    statuses.append((await wire.head())[0])

        assert statuses == [405, 405, 101, 200]

    @pytest.mark.parametrize("kind", ["chunks", "Latin-1", "no path"])
    async def test_others(self, tmp_path: pathlib.Path, kind: str) -> None:
        """So it is after other requests that the library drops."""
        request, _ = DROPPED[kind]
        statuses = []

        async with behind_nginx(page_app(), tmp_path, "off") as proxy:
            for each in (request, request, wire_request()):
                async with dialled(proxy, each) as wire:
                    statuses.append((await wire.head())[0])

        assert 502 not in statuses
        assert statuses[2] == 101

    async def test_address(self, tmp_path: pathlib.Path) -> None:
        """With `proxies=1` the address of a client is the one that nginx saw."""
        app = App(proxies=1)
        clients = clients_of(app)

        async with behind_nginx(app, tmp_path, "on") as proxy:
            request = request_by_hand(**UPGRADE, **{"X-Forwarded-For": "192.0.2.1"})
            async with dialled(proxy, request) as wire:
                await wire.head()

        assert clients[0].remote == ("127.0.0.1", 0)


class TestHandshakeOrder:
    """The order in which the handshake decides."""

    @pytest.mark.parametrize(
        ("path", "headers", "answer"),
        [
            ("/api", {}, (101, "")),
            ("/other", {"Origin": "http://a.b"}, (403, "this origin is not allowed")),
            ("/other", {}, (404, "no such path")),
        ],
        ids=["nothing is wrong", "origin and path", "path"],
    )
    async def test_before_any_hook(
        self, path: str, headers: dict[str, str], answer: tuple[int, str]
    ) -> None:
        """The origin is looked at before the path."""
        assert await shake_by_hand(make_app(), path, **headers) == answer

    async def test_unknown_path_from_a_browser(self) -> None:
        """A browser can't read a status: it is let in and closed with 4404."""
        assert await close_of_browser(make_app(), "/other") == (4404, "no such path")

    async def test_unknown_path_of_a_full_server(self) -> None:
        """The path is looked at before the number of clients."""
        app = make_app(max_clients=1)
        async with (
            app.serve("127.0.0.1", 0) as serving,
            ws_connect(serving.url("/api"), proxy=None),
        ):
            request = request_by_hand("/other", **UPGRADE)
            async with dialled(serving, request) as wire:
                status, _ = await wire.head()

        assert status == 404

    @pytest.mark.parametrize("headers", [{}, {"Origin": "http://localhost"}])
    async def test_full_server(self, headers: dict[str, str]) -> None:
        """Too many clients are HTTP 503, for browsers too; no hook runs."""
        seen: list[str] = []
        app = App(max_clients=1)

        @app.client("/api")
        def api(client: Client) -> None:
            seen.append(client.id)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            ws_connect(serving.url("/api"), proxy=None),
        ):
            request = request_by_hand(**UPGRADE, **headers)
            async with dialled(serving, request) as wire:
                status, _ = await wire.head()
                answer = status, await wire.ended(), len(seen)

        assert answer == (503, b"too many clients", 1)

    async def test_goodbye_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A client whose goodbye hangs leaves its place to the next one."""
        monkeypatch.setattr(wsappy, "GOODBYE_GRACE", 0.01)
        app, is_leaving = App(max_clients=1), asyncio.Event()

        @app.client("/api")
        class Hanging(Client):
            async def on_disconnected(self) -> None:
                is_leaving.set()
                await asyncio.Event().wait()

        async with app.serve("127.0.0.1", 0) as serving:
            async with dialled(serving, wire_request()) as wire:
                await wire.head()
            await happens(is_leaving)
            async with dialled(serving, wire_request()) as wire:
                status, _ = await wire.head()

        assert status == 101

    async def test_refused_clients_do_not_count(self) -> None:
        """A client that was refused leaves its place to the next one."""
        app = App(max_clients=1)

        @app.client("/api")
        def api(client: Client) -> None:
            if "out" in client.query:
                raise Refused(403)

        async with app.serve("127.0.0.1", 0) as serving:
            statuses = []
            for path in ("/api?out", "/api?out", "/api"):
                request = request_by_hand(path, **UPGRADE)
                async with dialled(serving, request) as wire:
                    statuses.append((await wire.head())[0])

        assert statuses == [403, 403, 101]

    @pytest.mark.parametrize(
        ("error", "answer"),
        [
            (Refused(401, "who are you?"), (401, "who are you?")),
            (Refused(403), (403, "Forbidden")),
            (RuntimeError("secret"), (500, "internal error")),
            (asyncio.CancelledError(), (500, "internal error")),
        ],
        ids=repr,
    )
    async def test_refusal(self, error: BaseException, answer: tuple[int, str]) -> None:
        """`Refused` is its status and reason, or phrase; anything else is 500."""
        assert await shake_by_hand(refusing(error)) == answer

    @pytest.mark.parametrize(
        ("error", "answer"),
        [
            (Refused(401, "who are you?"), (4401, "who are you?")),
            (Refused(401, "ä" * 100), (4401, "ä" * 61)),
            (RuntimeError("secret"), (1011, "internal error")),
        ],
        ids=["refused", "long reason", "bug"],
    )
    async def test_refusal_of_a_browser(
        self, error: BaseException, answer: tuple[int, str]
    ) -> None:
        """It is closed with 4000 + status and 123 bytes of reason; 1011 for a bug."""
        assert await close_of_browser(refusing(error)) == answer

    async def test_bug_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """A bug in on_connecting is logged with its traceback."""
        await shake_by_hand(refusing(RuntimeError("secret")))

        (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
        assert record.message == "on_connecting failed"
        assert "RuntimeError: secret" in caplog.text

    async def test_refusal_is_no_error(self, caplog: pytest.LogCaptureFixture) -> None:
        """A refusal is logged at INFO."""
        caplog.set_level("INFO")

        await shake_by_hand(refusing(Refused(403, "members only")))

        text = "on_connecting raised Refused(403, 'members only')"
        assert text in caplog.messages

    async def test_bug_in_init(self, caplog: pytest.LogCaptureFixture) -> None:
        """What a client's `__init__` raises is 500."""
        app = App()

        @app.client("/api")
        class Mine(Client):
            def __init__(self, *args: Any) -> None:
                raise RuntimeError("secret")

        assert await shake_by_hand(app) == (500, "internal error")

    @pytest.mark.parametrize(
        ("path", "answer"), [("/api", (101, "")), ("/api?out", (402, "not you"))]
    )
    async def test_def_hook_of_a_class(
        self, path: str, answer: tuple[int, str]
    ) -> None:
        """`on_connecting` may be a plain `def`."""
        app = App()

        @app.client("/api")
        class Mine(Client):
            def on_connecting(self) -> None:  # type: ignore[override]
                if "out" in self.query:
                    raise Refused(402, "not you")

        assert await shake_by_hand(app, path) == answer

    async def test_hook_that_never_ends(self) -> None:
        """`on_connecting` has open_timeout seconds; then the connection ends."""
        app = App()
        steps: list[str] = []

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            try:
                await asyncio.Event().wait()
                yield
            finally:
                steps.append("cut")

        async with (
            app.serve("127.0.0.1", 0, open_timeout=0.05) as serving,
            dialled(serving, request_by_hand(**UPGRADE)) as wire,
        ):
            assert (await wire.ended(), steps) == (b"", ["cut"])


class TestWhileTheServerStops:
    """Handshakes and pages after the stop has begun."""

    @staticmethod
    @contextlib.asynccontextmanager
    async def stopping(app: App, *, late: Any = None) -> AsyncIterator[Any]:
        """Serve *app*, begin the stop while a call holds it up; give the serving.

        *late* is what another client asks before that; the block gets it, too.
        """
        is_begun, is_free = asyncio.Event(), asyncio.Event()

        @app.module("stop")
        @app.method
        async def wait(request: Any) -> None:
            is_begun.set()
            await is_free.wait()

        serving = app.serve("127.0.0.1", 0)
        await serving.__aenter__()
        async with ws_connect(serving.url("/api"), proxy=None) as ws:
            await ws.send('{"module": "stop", "method": "wait", "request_id": 1}')
            await happens(is_begun)
            if late is not None:
                await late(serving)
            stop = asyncio.create_task(serving.__aexit__(None, None, None))
            await asyncio.sleep(0)
            try:
                yield serving
            finally:
                is_free.set()
                await stop

    async def test_new_handshake(self) -> None:
        """New handshakes get 503."""
        async with (
            self.stopping(make_app()) as serving,
            dialled(serving, request_by_hand(**UPGRADE)) as wire,
        ):
            status, _ = await wire.head()
            assert (status, await wire.ended()) == (503, b"the server is stopping")

    async def test_page(self) -> None:
        """Pages are still answered."""
        app = make_app()
        app.http("/health")(lambda request: "well")

        async with (
            self.stopping(app) as serving,
            dialled(serving, request_by_hand("/health")) as wire,
        ):
            assert (await wire.head())[0] == 200

    async def test_hook_that_is_under_way(self) -> None:
        """A client whose on_connecting ends too late gets 503, and its goodbye."""
        app, told, is_free = App(), Told(), asyncio.Event()
        stack = contextlib.AsyncExitStack()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            if "late" in client.query:
                told("asked")
                await is_free.wait()
            yield
            told("gone")

        async def late(serving: Any) -> None:
            request = request_by_hand("/api?late", **UPGRADE)
            self.wire = await stack.enter_async_context(dialled(serving, request))
            await told.until("asked")

        async with stack, self.stopping(app, late=late):
            is_free.set()
            status, _ = await self.wire.head()
            self.wire.writer.close()
            await told.until("gone")

        assert status == 503


class TestBytesBeforeTheOpening:
    """Bytes that arrive with the handshake's request."""

    async def test_call_waits(self) -> None:
        """Nothing that a client sends before the handshake has ended is acted on."""
        app = App()
        steps: list[str] = []
        is_asked, is_free = asyncio.Event(), asyncio.Event()

        @app.client("/api")
        async def api(client: Client) -> None:
            is_asked.set()
            await is_free.wait()
            steps.append("in")

        @app.module("entity")
        @app.method
        def act(request: Any) -> None:
            steps.append("call")

        call = b'{"module": "entity", "method": "act", "request_id": 1}'
        async with app.serve("127.0.0.1", 0) as serving:
            request = wire_request() + wire_frame(call)
            async with dialled(
                serving, request + wire_frame(b"hi", FIN | PING)
            ) as wire:
                await happens(is_asked)
                is_free.set()
                await wire.head()
                frames = [await wire.frame(), await wire.frame()]

        assert steps == ["in", "call"]
        assert frames[1] == (FIN | PONG, b"hi")

    async def test_call_of_a_client_that_is_refused(self) -> None:
        """A browser that is let in only to be closed can't call anything."""
        app = refusing(Refused(403, "no"))
        called: list[str] = []

        @app.module("entity")
        @app.method
        def act(request: Any) -> None:
            called.append("call")

        call = wire_frame(b'{"module": "entity", "method": "act"}')
        request = request_by_hand(Origin="http://localhost", **UPGRADE) + call * 3
        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request) as wire,
        ):
            await wire.head()
            closing = await wire.closed()
            wire.send(wire_close(4403))
            rest = await wire.ended()

        assert (closing, rest, called) == ((4403, "no"), b"", [])


@pytest.mark.usefixtures("each_server")
class TestOrigins:
    """Which pages' scripts may connect."""

    @staticmethod
    async def status(origin: str, origins: Any = None, host: str = "localhost") -> int:
        """Return the status that a handshake gets."""
        app = make_app(origins=origins)
        return (await shake_by_hand(app, Origin=origin, Host=host))[0]

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://localhost", "localhost"),
            ("http://LOCALHOST:8008", "localhost:8008"),
            ("http://example.org", "example.org:80"),
            ("https://example.org", "example.org:443"),
            ("https://example.org", "example.org"),
            ("http://[::1]:8008", "[::1]:8008"),
        ],
    )
    async def test_same_host(self, origin: str, host: str) -> None:
        """Host and port are compared; a missing port is the Origin's scheme's."""
        assert await self.status(origin, None, host) == 101

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://localhost:5173", "localhost:8008"),
            ("https://example.org", "example.org:80"),
            ("http://localhost.evil.example", "localhost"),
            ("http://localhost@evil.example", "localhost"),
            ("http://evil.example", ""),
            ("null", "localhost"),
            ("null", "null"),
            ("http://[", "["),
            ("http://a:port", "a:port"),
            ("file://", "localhost"),
            ("", "localhost"),
        ],
    )
    async def test_other_host(self, origin: str, host: str) -> None:
        """What isn't the same host and port is 403, garbage too."""
        assert await self.status(origin, None, host) == 403

    @pytest.mark.parametrize(
        ("origin", "listed"),
        [
            ("https://example.org", "https://example.org"),
            ("http://example.org", "https://example.org"),
            ("https://example.org", "example.org:443"),
            ("https://example.org", "example.org"),
            ("chrome-extension://abc", "chrome-extension://abc"),
            ("null", "null"),
        ],
    )
    async def test_listed(self, origin: str, listed: str) -> None:
        """A listed origin passes; schemes aren't compared."""
        assert await self.status(origin, [listed]) == 101

    @pytest.mark.parametrize("origin", ["null", "http://localhost", "https://a.b:444"])
    async def test_not_listed(self, origin: str) -> None:
        """Where there is a list nothing else passes, not even the same host."""
        assert await self.status(origin, ["https://a.b"]) == 403

    @pytest.mark.parametrize(("origin", "status"), [("http://a.b", 101), ("null", 403)])
    async def test_every_one(self, origin: str, status: int) -> None:
        """A star lets every origin in but null."""
        assert await self.status(origin, "*") == status

    async def test_no_origin(self) -> None:
        """A request without an Origin passes."""
        assert (await shake_by_hand(make_app(origins=[])))[0] == 101

    async def test_route_of_its_own(self) -> None:
        """A route's origins stand instead of the app's."""
        app = App(origins=["https://a.b"])

        @app.client("/api", origins="*")
        def api(client: Client) -> None:
            pass

        assert (await shake_by_hand(app, Origin="http://c.d"))[0] == 101

    async def test_log(self, caplog: pytest.LogCaptureFixture) -> None:
        """A refused origin is logged with the line to write, once."""
        app = make_app()
        headers = {"Origin": "http://localhost:5173", "Host": "localhost:8008"}

        for _ in range(2):
            await shake_by_hand(app, "/api?token=secret", **headers)

        assert caplog.messages == [
            "refused origin 'http://localhost:5173' at host 'localhost:8008'; to allow "
            "it write App(origins=['http://localhost:5173'])"
        ]

    async def test_log_of_many(self, caplog: pytest.LogCaptureFixture) -> None:
        """At most 100 different origins are logged."""
        async with make_app().serve("127.0.0.1", 0) as serving:
            for number in range(102):
                headers = {**UPGRADE, "Origin": f"http://{number}.example"}
                async with dialled(serving, request_by_hand(**headers)) as wire:
                    await wire.head()

        assert len(caplog.messages) == 100


class TestOriginsWithoutHost:
    """Origins that have no host are listed as they are."""

    @pytest.mark.parametrize("origin", ["file://", "qrc://", "FILE://", "http://["])
    async def test_advice(self, origin: str, caplog: pytest.LogCaptureFixture) -> None:
        """What the log says to write lets it in."""
        headers = {**UPGRADE, "Origin": origin}
        before = await ask_by_hand(make_app(origins=["https://a.b"]), **headers)
        advice = caplog.messages[0].partition("write ")[2]
        app = eval(advice, {"App": make_app})  # noqa: S307

        after = await ask_by_hand(app, **headers)

        assert (before[0], after[0]) == (403, 101)

    @pytest.mark.parametrize(
        ("origin", "listed"),
        [("file://", "qrc://"), ("file://x", "file://"), ("file://", "file")],
    )
    async def test_others(self, origin: str, listed: str) -> None:
        """Another one isn't let in."""
        assert (await shake_by_hand(make_app(origins=[listed]), Origin=origin))[
            0
        ] == 403


class TestSeveralWaysToSayIt:
    """Requests that say the same in another way."""

    @pytest.mark.parametrize(
        ("target", "path", "query"),
        [
            ("http://localhost/api", "/api", {}),
            ("ws://localhost:8008/api?a=1", "/api", {"a": "1"}),
            ("HTTP://localhost/api/", "/api/", {}),
        ],
    )
    async def test_absolute_target(
        self, target: str, path: str, query: dict[str, str]
    ) -> None:
        """Of a whole URL the path counts."""
        app = App()
        clients = clients_of(app)

        assert (await shake_by_hand(app, target))[0] == 101
        assert (clients[0].path, clients[0].query) == (path, query)

    @pytest.mark.parametrize("target", ["http://a.b", "http://a.b/", "http://a.b?x=1"])
    async def test_absolute_target_of_a_page(self, target: str) -> None:
        """Without a path it is the root."""
        app = make_app()
        app.http("/")(lambda request: f"{request.path} {request.query.get('x', '')}")

        status, text = await ask_by_hand(app, target)

        assert (status, text[0]) == (200, "/")

    @pytest.mark.parametrize(
        ("host", "status"), [("http://a.b", 101), ("http://c.d", 403)]
    )
    async def test_host_of_an_absolute_target(self, host: str, status: int) -> None:
        """Its host stands for the `Host`."""
        headers = {"Origin": "http://a.b", "Host": "c.d"}

        answer = await shake_by_hand(make_app(), f"{host}/api", **headers)

        assert answer[0] == status

    async def test_cookies(self) -> None:
        """Two `Cookie` lines are one."""
        app = App()
        clients = clients_of(app)

        await shake_by_hand(app, Cookie=["a=1", "b=2; c=3"])

        assert clients[0].headers["Cookie"] == "a=1; b=2; c=3"

    @pytest.mark.parametrize("value", ["", " ", ",", ["", ""]])
    @pytest.mark.parametrize("name", ["Protocol", "Extensions"])
    async def test_empty_offer(self, name: str, value: Any) -> None:
        """An empty list of subprotocols, or of extensions, is none."""
        request = request_by_hand(**UPGRADE, **{f"Sec-WebSocket-{name}": value})

        async with (
            make_app().serve("127.0.0.1", 0, compression="deflate") as serving,
            dialled(serving, request) as wire,
        ):
            assert (await wire.head())[0] == 101


class TestProxies:
    """With `proxies` the address comes from `X-Forwarded-For`."""

    @pytest.mark.parametrize(
        ("proxies", "values", "remote"),
        [
            (1, "192.0.2.1", "192.0.2.1"),
            (1, "192.0.2.9, 192.0.2.1", "192.0.2.1"),
            (2, "192.0.2.9, 192.0.2.1 ,192.0.2.2", "192.0.2.1"),
            (2, ["192.0.2.9, 192.0.2.1", "192.0.2.2"], "192.0.2.1"),
            (1, "192.0.2.1:8008", "192.0.2.1"),
            (1, "2001:db8::1", "2001:db8::1"),
            (1, "[2001:db8::1]:8008", "2001:db8::1"),
            (1, "[2001:db8::1]", "2001:db8::1"),
            (2, "192.0.2.1", None),
            (1, [], None),
            (1, "", None),
            (1, "unknown", None),
            (1, "192.0.2.1, example.org", None),
            (1, "192.0.2.1:x", None),
            (1, "[192.0.2.1", None),
            (0, "192.0.2.1", None),
        ],
    )
    async def test_address(self, proxies: int, values: Any, remote: Any) -> None:
        """It is the n-th one from the right, port 0; the peer's where there is none."""
        app = App(proxies=proxies)
        clients = clients_of(app)

        await shake_by_hand(app, **{"X-Forwarded-For": values})

        seen: Any = clients[0].remote
        assert seen == ((remote, 0) if remote else ("127.0.0.1", seen[1]))
        assert bool(remote) != bool(seen[1])

    @pytest.mark.parametrize(
        ("headers", "remote"),
        [({"X-Forwarded-For": "192.0.2.1"}, "192.0.2.1"), ({}, None)],
    )
    async def test_unix_socket(
        self, tmp_path: pathlib.Path, headers: Any, remote: Any
    ) -> None:
        """On a Unix socket, too."""
        app = App(proxies=1)
        clients, path = clients_of(app), str(tmp_path / "socket")

        async with (
            app.serve(unix=path),
            unix_connect(path, "ws://localhost/api", additional_headers=headers),
        ):
            assert clients[0].remote == (remote and (remote, 0))

    @pytest.mark.parametrize("proxies", [-1, 1.0, "1", None])
    def test_no_number(self, proxies: Any) -> None:
        """Anything but a whole number is an error."""
        with pytest.raises(ValueError, match="proxies") as caught:
            App(proxies=proxies)

        must = "proxies must be a whole number of at least 0"
        assert str(caught.value) == f"{must}: got {proxies!r}"


@pytest.mark.usefixtures("each_server")
class TestPages:
    """Pages of `@app.http`."""

    @staticmethod
    async def page(outcome: Any, method: str = "GET") -> tuple[int, str, bytes]:
        """Return status, content type and body of a page that returns *outcome*."""
        app = make_app()

        @app.http("/page")
        async def page(request: Any) -> Any:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand("/page", method)) as wire,
        ):
            status, headers = await wire.head()
            body = await wire.ended()
        if method == "GET":
            assert headers["Content-Length"] == str(len(body))
        return status, headers["Content-Type"], body

    @pytest.mark.parametrize(
        ("outcome", "content_type", "body"),
        [
            ("grün", "text/plain; charset=utf-8", "grün".encode()),
            ("", "text/plain; charset=utf-8", b""),
            (b"\0\1", "application/octet-stream", b"\0\1"),
            (("<p>", "text/html"), "text/html", b"<p>"),
            ((b"{}", "application/json"), "application/json", b"{}"),
            ("\ud800", "text/plain; charset=utf-8", b"?"),
        ],
    )
    async def test_body(self, outcome: Any, content_type: str, body: bytes) -> None:
        """A page returns str, bytes or (body, content type)."""
        assert await self.page(outcome) == (200, content_type, body)

    @pytest.mark.parametrize("outcome", [None, 42, ("a", "b", "c"), ("a", None)])
    async def test_anything_else(
        self, outcome: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Anything else is 500, and a log entry that names the page."""
        status, _, body = await self.page(outcome)

        assert (status, body) == (500, b"internal error")
        assert caplog.messages[0].startswith("page 'TestPages.page.<locals>.page' (")
        assert caplog.messages[0].endswith(
            ") must return str, bytes, (body, content type), (body, {header: value}) "
            f"or (status, body, {{header: value}}): got {outcome!r}"
        )

    async def test_refusal(self) -> None:
        """`Refused` in a page is another status."""
        status, _, body = await self.page(Refused(503, "not well"))

        assert (status, body) == (503, b"not well")

    async def test_bug(self) -> None:
        """What a page raises is 500, and its text stays inside."""
        status, _, body = await self.page(RuntimeError("secret"))

        assert (status, body) == (500, b"internal error")

    async def test_head(self) -> None:
        """HEAD has no body."""
        assert (await self.page("text", "HEAD"))[2] == b""

    async def test_head_says_the_size(self) -> None:
        """HEAD has the headers of a GET."""
        app = make_app()
        app.http("/page")(lambda request: "text")

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand("/page", "HEAD")) as wire,
        ):
            _, headers = await wire.head()

        assert headers["Content-Length"] == "4"

    @pytest.mark.parametrize(
        ("outcome", "status", "headers", "body"),
        [
            (("a", {"X-A": "\u00e4\tb"}), 200, {"X-A": "\u00e4\tb"}, b"a"),
            (("a", {}), 200, {"Content-Type": "text/plain; charset=utf-8"}, b"a"),
            ((b"a", {}), 200, {"Content-Type": "application/octet-stream"}, b"a"),
            (("a", {"content-type": "x/y"}), 200, {"content-type": "x/y"}, b"a"),
            (("a", {"Server": "me"}), 200, {"Server": "me"}, b"a"),
            (("a", {"date": "now"}), 200, {"date": "now"}, b"a"),
            ((201, "a", {}), 201, {}, b"a"),
            ((302, "", {"Location": "/b"}), 302, {"Location": "/b"}, b""),
            ((http.HTTPStatus.NOT_FOUND, "no", {}), 404, {}, b"no"),
            ((204, "", {}), 204, {}, b""),
        ],
    )
    async def test_headers(
        self, outcome: Any, status: int, headers: dict[str, str], body: bytes
    ) -> None:
        """A page returns headers, too, and a status."""
        app = make_app()
        app.http("/page")(lambda request: outcome)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand("/page")) as wire,
        ):
            async with asyncio.timeout(LIMIT):
                head = await wire.reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            names = [line.partition(":")[0].lower() for line in lines[1:-2]]

            assert int(lines[0].split()[1]) == status
            assert {f"{name}: {value}" for name, value in headers.items()} <= set(lines)
            assert len(names) == len(set(names))
            assert ("content-length" in names) is (status != 204)
            assert await wire.ended() == body

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-A": "a\r\nX-B: b"},
            {"X-A": "a\n"},
            {"X-A": "\0"},
            {"X-A": "\u20ac"},
            {"X-A": 1},
            {"X A": "a"},
            {"X-A\r\nX-B": "b"},
            {"": "a"},
            {1: "a"},
            {"Content-Length": "0"},
            {"transfer-encoding": "chunked"},
            {"Connection": "keep-alive"},
        ],
        ids=repr,
    )
    async def test_bad_headers(
        self, headers: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Headers that would not be one line each are 500, and a log entry."""
        status, _, body = await self.page(("text", {**headers, "X-C": "c"}))

        assert (status, body) == (500, b"internal error")
        assert caplog.messages[0].endswith(
            f") must return headers of one line each, in Latin-1, that don't frame the "
            f"answer: got {headers!r}"
        )

    async def test_bad_content_type(self) -> None:
        """A content type likewise."""
        assert (await self.page(("text", "a/b\r\nX: y")))[0] == 500

    @pytest.mark.parametrize(
        "outcome", [(101, "", {}), (299, "", {}), ("200", "", {}), (200, None, {})]
    )
    async def test_bad_status(self, outcome: Any) -> None:
        """A status that is none of HTTP's, or no answer, is 500."""
        assert (await self.page(outcome))[0] == 500

    async def test_other_method(self) -> None:
        """Other methods are 405."""
        assert (await self.page("text", "DELETE"))[0] == 405

    async def test_request(self) -> None:
        """A page sees path, query and headers; a `def` works too."""
        app = make_app()

        @app.http("/page")
        def page(request: Any) -> str:
            return f"{request.path} {request.query} {request.headers['X-A']}"

        answer = await ask_by_hand(app, "/page/?a=1&a=2&b=", "GET", **{"X-A": "x"})

        assert answer == (200, "/page/ {'a': '2', 'b': ''} x")

    async def test_upgrade(self) -> None:
        """Upgrades look at routes only."""
        app = make_app()
        app.http("/page")(lambda request: "text")

        assert await shake_by_hand(app, "/page") == (404, "no such path")

    async def test_upgrade_to_something_else(self) -> None:
        """A request that would like HTTP/2 gets its page by HTTP/1.1."""
        app = make_app()
        app.http("/page")(lambda request: "text")

        assert await ask_by_hand(app, "/page", "GET", Upgrade="h2c") == (200, "text")


class TestManyAnswers:
    """Pages that are under way."""

    async def test_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One more than `MAX_ANSWERS` at once is 503, until one of them is gone."""
        assert wsappy.MAX_ANSWERS == 64
        monkeypatch.setattr(wsappy, "MAX_ANSWERS", 2)
        app, go_on = make_app(), asyncio.Event()

        @app.http("/page")
        async def page(request: Any) -> str:
            await go_on.wait()
            return "text"

        request = request_by_hand("/page")
        async with app.serve("127.0.0.1", 0) as serving:
            async with dialled(serving, request) as one, dialled(serving, request):
                await wire_until(lambda: len(serving.answers) == 2)
                async with dialled(serving, request) as three:
                    status, _ = await three.head()
                    answer = status, await three.ended()
                go_on.set()
                await one.head()
            await wire_until(lambda: not serving.answers)
            async with dialled(serving, request) as four:
                last, _ = await four.head()

        assert (answer, last) == ((503, b"too many pages are under way"), 200)

    async def test_readers_that_take_nothing(self) -> None:
        """A reader that takes nothing for `ping_timeout` is aborted."""
        app, size = make_app(), 2**23
        app.http("/page")(lambda request: "x" * size)
        request = request_by_hand("/page")

        async with (
            app.serve("127.0.0.1", 0, ping_timeout=0.2) as serving,
            contextlib.AsyncExitStack() as stack,
        ):
            for _ in range(5):
                wire = await stack.enter_async_context(
                    dialled(serving, request, is_small=True)
                )
                wire.writer.transport.pause_reading()
            await wire_until(lambda: app.stats()["stalled_clients_dropped"] == 5)
            await wire_until(lambda: wire.is_gone)

    async def test_one_copy(self) -> None:
        """Only the transport keeps what a slow reader has yet to read."""
        app, size = make_app(), 2**24
        app.http("/page")(lambda request: bytes(size))

        async with (
            app.serve("127.0.0.1", 0) as serving,
            contextlib.AsyncExitStack() as stack,
        ):
            tracemalloc.start()
            try:
                for _ in range(4):
                    wire = await stack.enter_async_context(
                        dialled(serving, request_by_hand("/page"), is_small=True)
                    )
                    wire.writer.transport.pause_reading()
                await wire_until(
                    lambda: [each.paused for each in serving.wires] == [True] * 4
                )
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()

        assert held < 5 * size

    async def test_slow_reader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that goes on to read has all the time that it takes."""
        monkeypatch.setattr(wsappy, "BODY_GRACE", 0.01)
        app, size = make_app(), 2**23
        app.http("/page")(lambda request: bytes(size))
        limits: Any = {"open_timeout": 0.08, "close_timeout": 0.01}

        async with (
            app.serve("127.0.0.1", 0, **limits) as serving,
            dialled(serving, request_by_hand("/page"), is_small=True) as wire,
        ):
            await wire.head()
            count = 0
            while data := await wire.reader.read(2**16):
                count += len(data)
                # Far longer than all of the limits together.
                await asyncio.sleep(0.002 if count < size else 0)

        assert count == size


# -- From the opening to the goodbye ------------------------------------------


class Told:
    """What happened, in order, and a way to wait for it."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.news = asyncio.Event()

    def __call__(self, step: Any) -> None:
        """Write down what happened."""
        self.steps.append(step)
        self.news.set()

    async def until(self, step: Any) -> list[Any]:
        """Wait until *step* has happened; return all steps so far."""
        async with asyncio.timeout(LIMIT):
            while step not in self.steps:
                self.news.clear()
                await self.news.wait()
        return self.steps


def telling(told: Told, **options: Any) -> tuple[App, asyncio.Event]:
    """Make an app whose hooks and calls tell; `?wait=hook` waits in that one."""
    app, is_free = App(**options), asyncio.Event()

    async def step(client: Client, name: str) -> None:
        told(name)
        if client.query.get("wait") == name:
            try:
                await is_free.wait()
            except asyncio.CancelledError:
                told(f"{name} cut")
                raise
            told(f"{name} done")

    @app.client("/api")
    class Telling(Client):
        async def on_connecting(self, **params: Any) -> None:
            self.join("all")
            await step(self, "connecting")

        async def on_connected(self) -> None:
            await step(self, "connected")

        async def on_disconnected(self) -> None:
            told(("disconnected", sorted(self.groups), len(app.to("all").members)))
            await step(self, "disconnected")

    @app.module("entity")
    @app.method
    async def wait(request: Any) -> None:
        told("call")
        try:
            await is_free.wait()
        finally:
            told("call ended")

    return app, is_free


GONE = ("disconnected", ["all"], 0)
WAIT = b'{"module": "entity", "method": "wait", "request_id": 1}'


class TestHooks:
    """The hooks of a client, however its connection ends."""

    async def test_order(self) -> None:
        """The hooks of a connection run in their promised order."""
        told = Told()
        app, _ = telling(told)

        async with talking(app) as talk:
            await talk.send(WAIT)
            await told.until("call")
        await told.until("disconnected")

        assert told.steps == [
            *("connecting", "connected", "call", "call ended"),
            *(GONE, "disconnected"),
        ]

    async def test_reset_before_the_request(self) -> None:
        """A connection that ends before its request is whole reaches no hook."""
        told = Told()
        app, _ = telling(told)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, b"GET /api HTTP/1.1\r\n") as wire,
        ):
            wire.reset()

        assert told.steps == []

    async def test_reset_in_on_connecting(self) -> None:
        """`on_disconnected` runs though the connection never opened."""
        told = Told()
        app, is_free = telling(told)

        async with app.serve("127.0.0.1", 0) as serving:
            request = request_by_hand("/api?wait=connecting", **UPGRADE)
            async with dialled(serving, request) as wire:
                await told.until("connecting")
                wire.reset()
                is_free.set()
                await told.until("disconnected")

        gone: Any = ("disconnected", [], 0)
        assert told.steps == ["connecting", "connecting done", gone, "disconnected"]

    async def test_stop_in_on_connecting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A client whose on_connecting was cut off hears no goodbye."""
        monkeypatch.setattr(wsappy, "CLOSE_GRACE", 0.01)
        told = Told()
        app, _ = telling(told)

        async with (
            contextlib.AsyncExitStack() as stack,
            app.serve("127.0.0.1", 0) as serving,
        ):
            request = request_by_hand("/api?wait=connecting", **UPGRADE)
            await stack.enter_async_context(dialled(serving, request))
            await told.until("connecting")

        assert told.steps == ["connecting", "connecting cut"]

    async def test_reset_in_on_connected(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`on_connected` is cancelled when the connection ends; nothing is logged."""
        told = Told()
        app, _ = telling(told)

        async with app.serve("127.0.0.1", 0) as serving:
            request = request_by_hand("/api?wait=connected", **UPGRADE)
            async with dialled(serving, request) as wire:
                await told.until("connected")
                wire.reset()
                await told.until("disconnected")

        assert told.steps == [
            *("connecting", "connected", "connected cut"),
            *(GONE, "disconnected"),
        ]
        assert caplog.messages == []

    async def test_reset_with_a_handler_running(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`on_disconnected` runs after the calls have ended."""
        told = Told()
        app, _ = telling(told)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand(**UPGRADE)) as wire,
        ):
            wire.send(wire_frame(WAIT))
            await told.until("call")
            wire.reset()
            await told.until("disconnected")

        assert told.steps[2:] == ["call", "call ended", GONE, "disconnected"]
        assert caplog.messages == []

    async def test_reset_in_a_close(self) -> None:
        """A connection that is reset in the closing handshake ends like any other."""
        told = Told()
        app, _ = telling(told)

        @app.module("entity")
        @app.method
        def leave(request: Any) -> Any:
            return request.client.close(4000)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand(**UPGRADE)) as wire,
        ):
            await told.until("connected")
            wire.send(wire_frame(b'{"module": "entity", "method": "leave"}'))
            await wire.head()
            closing = await wire.closed()
            wire.reset()
            await told.until("disconnected")

        assert closing == (4000, "")
        assert told.steps == ["connecting", "connected", GONE, "disconnected"]

    async def test_stop(self) -> None:
        """At a stop the client is closed with 1001 before its on_disconnected runs."""
        told = Told()
        app, _ = telling(told)

        async with app.serve("127.0.0.1", 0) as serving:
            ws = await ws_connect(serving.url("/api"), proxy=None)
            await told.until("connected")
        closed = await Talk(ws).closed()

        assert closed == (1001, "the server is stopping")
        assert told.steps == ["connecting", "connected", GONE, "disconnected"]

    async def test_goodbye_that_takes_too_long(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At a stop on_disconnected gets 2 s; then it is cut off and named."""
        monkeypatch.setattr(wsappy, "GOODBYE_GRACE", 0.01)
        told = Told()
        app, _ = telling(told)

        async with app.serve("127.0.0.1", 0) as serving:
            url = serving.url("/api?wait=disconnected")
            ws = await ws_connect(url, proxy=None)
            await told.until("connected")
        await ws.wait_closed()

        assert told.steps[-1] == "disconnected cut"
        assert caplog.messages == ["on_disconnected failed"]

    async def test_bug_in_on_disconnected(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What on_disconnected raises is logged."""
        app = App()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            yield
            raise RuntimeError("secret")

        async with talking(app):
            pass

        assert caplog.messages == ["on_disconnected failed"]

    async def test_hook_that_swallows_its_cancellation(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A hook that can't be stopped is named and left behind."""
        monkeypatch.setattr(wsappy, "CANCEL_GRACE", 0.01)
        app = App()
        is_free, is_gone = asyncio.Event(), asyncio.Event()

        @app.client("/api")
        class Deaf(Client):
            async def on_connected(self) -> None:
                while not is_free.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await is_free.wait()

            async def on_disconnected(self) -> None:
                is_gone.set()

        async with talking(app) as talk:
            await talk.ws.close()
            await happens(is_gone)
            is_free.set()

        (record,) = caplog.records
        assert record.message.startswith("<Task cancelling name='on_connected'")
        assert record.message.endswith(
            "did not end when it was cancelled; it is left behind"
        )


@pytest.mark.usefixtures("each_server")
class TestGeneratorForm:
    """Client functions that yield."""

    async def test_block_spans_the_yield(self) -> None:
        """An `async with` may span the yield: both halves run in one task."""
        told = Told()
        app = App()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            async with asyncio.timeout(LIMIT):
                told(asyncio.current_task())
                yield
                told(asyncio.current_task())
            told("end")

        async with talking(app):
            pass

        await told.until("end")
        assert told.steps[0] is told.steps[1]

    async def test_connection_that_never_opened(self) -> None:
        """What follows the yield runs in the same task, too, if it never opened."""
        told = Told()
        app = App()
        is_free = asyncio.Event()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            async with asyncio.timeout(LIMIT):
                told("asked")
                await is_free.wait()
                yield
            told("end")

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand(**UPGRADE)) as wire,
        ):
            await told.until("asked")
            wire.reset()
            is_free.set()
            await told.until("end")

        assert told.steps == ["asked", "end"]


@pytest.mark.usefixtures("each_server")
class TestOnConnecting:
    """What can be done before the connection is open."""

    async def test_push_and_join(self) -> None:
        """`push` and join take effect when the connection opens, in their order."""
        app = App()

        @app.client("/api")
        def api(client: Client) -> None:
            client.push("chat", "first")
            client.join("all")
            app.to("all").push("chat", "lost")
            client.push("chat", "second", n=2)

        async with talking(app) as talk:
            events = [await talk.receive() for _ in range(2)]
            app.to("all").push("chat", "third")
            events.append(await talk.receive())

        assert [each["event"] for each in events] == ["first", "second", "third"]

    async def test_leave(self) -> None:
        """`leave` takes effect in its order, too."""
        app = App()

        @app.client("/api")
        def api(client: Client) -> None:
            client.join("a")
            client.join("b")
            client.leave("a")

        async with talking(app) as talk:
            await talk.call("$.ping")
            counts = len(app.to("a").members), len(app.to("b").members)

        assert counts == (0, 1)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (
                "call",
                "client must be open to be called; call it in on_connected",
            ),
            (
                "close",
                "client must be open to be closed; raise Refused(403) in on_connecting",
            ),
        ],
    )
    async def test_what_needs_an_open_connection(self, name: str, text: str) -> None:
        """`call` and close raise RuntimeError."""
        app = App()
        errors: list[str] = []

        @app.client("/api")
        async def api(client: Client) -> None:
            attempt = client.close() if name == "close" else client.call("ui", "ask")
            try:
                await attempt
            except RuntimeError as exc:
                errors.append(str(exc))

        await shake_by_hand(app)

        assert errors == [text]


@pytest.mark.usefixtures("each_server")
class TestOnConnected:
    """The hook that runs when the connection is open."""

    @staticmethod
    def app(hook: Any) -> App:
        """Make an app whose on_connected is *hook*."""
        app = App()

        @app.client("/api")
        class Mine(Client):
            async def on_connected(self) -> None:
                await hook(self)

        @app.module("entity")
        @app.method
        def get(request: Any) -> str:
            return "got"

        return app

    async def test_client_that_catches_up(self) -> None:
        """Calls are held on, though the client has caught up with what it is told."""
        app, told, began = App(grace=0), list[str](), asyncio.Event()

        @app.client("/api")
        class Api(Client):
            async def on_connected(self) -> None:
                await self.push("e", "hello", "x" * 2**22)
                told.append("caught up")
                await began.wait()
                told.append("greeted")

        @app.module("e")
        @app.method
        def work(request: wsappy.Request) -> None:
            told.append("called")

        async with wired(app) as wire:
            wire.send(wire_call("work"))
            await wire.answer()
            await wire_until(lambda: app.stats()["calls"] == 1 and told)
            await turns()
            began.set()
            await wire.answer()

        assert told == ["caught up", "greeted", "called"]

    async def test_calls_are_held(self) -> None:
        """Calls that arrive meanwhile are held, `$` calls are not."""
        is_free = asyncio.Event()

        async def hook(client: Client) -> None:
            await is_free.wait()
            client.push("chat", "welcome")

        async with talking(self.app(hook)) as talk:
            await talk.send({"module": "entity", "method": "get", "request_id": 1})
            events = [await talk.call("$.ping", 2)]
            is_free.set()
            events += [await talk.receive(), await talk.receive()]

        assert [each["event"] for each in events] == ["result", "welcome", "result"]
        assert [each["request_id"] for each in events] == [2, None, 1]

    async def test_answers_are_not_held(self) -> None:
        """`on_connected` may call the client and wait for the answer."""

        async def hook(client: Client) -> None:
            client.push("chat", "welcome", await client.call("ui", "name"))

        async with talking(self.app(hook)) as talk:
            call = await talk.receive()
            await talk.send({**call, "event": "result", "data": {"name": "Ada"}})
            welcome = await talk.receive()

        assert welcome["data"] == {"name": "Ada"}

    async def test_refusal(self) -> None:
        """`Refused` closes with 4000 + status, and held calls never run."""

        async def hook(client: Client) -> None:
            raise Refused(429, "later")

        async with talking(self.app(hook)) as talk:
            assert await talk.closed() == (4429, "later")

    @pytest.mark.parametrize(
        "error", [RuntimeError("secret"), asyncio.CancelledError()]
    )
    async def test_bug(
        self, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Anything else closes with 1011, and is logged."""

        async def hook(client: Client) -> None:
            raise error

        async with talking(self.app(hook)) as talk:
            assert await talk.closed() == (1011, "internal error")
        assert caplog.messages == ["on_connected failed"]


class TestRawMessages:
    """Routes with an on_message of their own."""

    @staticmethod
    def echo(hook: Any = None) -> tuple[App, Told]:
        """Make an app that sends back what comes, after *hook*."""
        app, told = App(), Told()

        @app.client("/api")
        class Echo(Client):
            async def on_message(self, message: str | bytes) -> None:
                if hook is not None:
                    await hook(self, message)
                await self.connection.send(message)

            async def on_disconnected(self) -> None:
                told("gone")

        return app, told

    async def test_more_than_may_wait(self) -> None:
        """What is over the limit after one message waits on, and nothing is lost."""
        app, sizes = App(grace=0), list[int]()

        @app.client("/api")
        class Slow(Client):
            async def on_message(self, message: str | bytes) -> None:
                await asyncio.sleep(0)
                sizes.append(len(message))

        async with wired(app) as wire:
            wire.send(*[wire_frame(bytes(30_000), FIN | BINARY)] * 20)
            await wire_until(lambda: len(sizes) == 20)

        assert sizes == [30_000] * 20

    async def test_large_one_behind_a_small_one(self) -> None:
        """Reading stays halted while one that is too large waits."""
        app, sizes, go_on = App(grace=0), list[int](), asyncio.Event()

        @app.client("/api")
        class Slow(Client):
            async def on_message(self, message: str | bytes) -> None:
                await go_on.wait()
                sizes.append(len(message))

        frames = [wire_frame(bytes(size), FIN | BINARY) for size in (10, 100_000, 20)]

        async with wired(app) as wire:
            wire.send(*frames)
            await wire_until(lambda: not wire.is_read)
            go_on.set()
            await wire_until(lambda: len(sizes) == 3)

        assert sizes == [10, 100_000, 20]

    async def test_types(self) -> None:
        """Text arrives as str, binary as bytes, whatever they hold."""
        messages = ["grün", b"\xff", "", b"", "not JSON"]

        async with talking(self.echo()[0]) as talk:
            for message in messages:
                await talk.send(message)
            answers = [await talk.ws.recv() for _ in messages]

        assert answers == messages

    async def test_half_of_a_surrogate_pair(self) -> None:
        """Text that UTF-8 can't hold is an error of `send`, and ends with 1011."""

        async def hook(client: Client, message: Any) -> None:
            await client.connection.send("\ud800")

        app, told = self.echo(hook)

        async with talking(app) as talk:
            await talk.send("x")

            assert await talk.closed() == (1011, "internal error")
        assert await told.until("gone") == ["gone"]

    async def test_order(self) -> None:
        """They are taken one at a time, in order."""
        told = Told()

        async def hook(client: Client, message: Any) -> None:
            told(f"begin {message}")
            await asyncio.sleep(0)
            told(f"end {message}")

        async with talking(self.echo(hook)[0]) as talk:
            for message in "ab":
                await talk.send(message)
            await talk.ws.recv()
            await talk.ws.recv()

        assert told.steps == ["begin a", "end a", "begin b", "end b"]

    async def test_text_that_is_not_utf_8(self) -> None:
        """Text that isn't UTF-8 is the end of the connection: 1007."""
        app, _ = self.echo()

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand(**UPGRADE)) as wire,
        ):
            await wire.head()
            wire.send(wire_frame(b"\xff"))

            assert await wire.closed() == (1007, "invalid start byte at position 0")

    @pytest.mark.parametrize(
        "error", [RuntimeError("secret"), asyncio.CancelledError(), Refused(403)]
    )
    async def test_bug(self, error: BaseException) -> None:
        """If on_message raises the connection is closed with 1011."""

        async def hook(client: Client, message: Any) -> None:
            raise error

        app, told = self.echo(hook)
        async with talking(app) as talk:
            for _ in range(3):
                await talk.send("x" * 60_000)
            closed = await talk.closed()
        await told.until("gone")

        assert closed == (1011, "internal error")

    async def test_client_that_is_gone(self, caplog: pytest.LogCaptureFixture) -> None:
        """A client that goes while on_message sends is no error."""
        is_gone = asyncio.Event()

        async def hook(client: Client, message: Any) -> None:
            told("begun")
            with contextlib.suppress(asyncio.CancelledError):
                await is_gone.wait()

        app, told = self.echo(hook)
        async with talking(app) as talk:
            await talk.send("x")
            await told.until("begun")
            talk.ws.transport.abort()
            await told.until("gone")

        assert caplog.messages == []

    async def test_messages_wait_for_on_connected(self) -> None:
        """`on_message` isn't called before on_connected has ended."""
        told, app = Told(), App()
        is_free = asyncio.Event()

        @app.client("/api")
        class Mine(Client):
            async def on_connected(self) -> None:
                await is_free.wait()
                told("connected")

            async def on_message(self, message: str | bytes) -> None:
                told(message)

        async with talking(app) as talk:
            await talk.send("x")
            await (await talk.ws.ping())
            is_free.set()
            steps = await told.until("x")

        assert steps == ["connected", "x"]

    @pytest.mark.parametrize(("message", "count"), [(b"", 2000), (b"x" * 60_000, 200)])
    async def test_slow_hook(self, message: bytes, count: int) -> None:
        """While on_message is slow reading stops, so that memory stays bounded."""
        is_free = asyncio.Event()

        async def hook(client: Client, message: Any) -> None:
            await is_free.wait()

        app, _ = self.echo(hook)

        async with wired(app) as wire:
            wire.send(wire_frame(message) * count)
            await wire_until(lambda: not wire.is_read)
            await turns()
            size = app.stats()["bytes_in"]
            is_free.set()

            for _ in range(count):
                assert await wire.frame() == (FIN | TEXT, message)
            assert size < 2**19
            assert app.stats()["pauses"] > 0

    async def test_hook_that_never_waits(self) -> None:
        """A flood of messages gives the loop a turn after at most 5 ms."""
        app, loop = App(), asyncio.get_running_loop()
        told = Told()

        @app.client("/api")
        class Busy(Client):
            async def on_message(self, message: str | bytes) -> None:
                loop.call_soon(told, f"turn after {message!s}")
                time.sleep(0.002)  # noqa: ASYNC251
                told(message)

        async with app.serve("127.0.0.1", 0) as serving:
            flood = b"".join(wire_frame(each.encode()) for each in "abcdefghij")
            async with dialled(serving, request_by_hand(**UPGRADE) + flood):
                steps = await told.until("j")

        assert steps.index("turn after a") < steps.index("j")


class Waving(Client):
    """A client that tells when it leaves."""

    told: Told

    async def on_disconnected(self) -> None:
        """Tell."""
        self.told("gone")


def raising_clients(make: Callable[[], BaseException]) -> dict[str, Any]:
    """Return what an app may have as client, by kind, each of which keeps all out."""

    def function(client: Client) -> None:
        raise make()

    async def async_function(client: Client) -> None:
        await asyncio.sleep(0)
        raise make()

    async def generator(client: Client) -> AsyncIterator[None]:
        raise make()
        yield

    class InInit(Client):
        def __init__(self, *parts: Any) -> None:
            raise make()

    class Connecting(Client):
        async def on_connecting(self, **params: Any) -> None:
            await asyncio.sleep(0)
            raise make()

    class PlainConnecting(Client):
        def on_connecting(self, **params: Any) -> Any:
            raise make()

    kinds = (function, async_function, generator, InInit, Connecting, PlainConnecting)
    return {each.__name__: each for each in kinds}


RAISED_BY_HOOKS = [each for each in RAISED if each != "Refused"]
RAISED_BY_GOODBYES = [each for each in RAISED_BY_HOOKS if each != "ConnectionClosed"]


class TestWhatHooksRaise:
    """Whatever a hook raises of its own making is a bug: logged, and no more."""

    @pytest.mark.parametrize("name", RAISED_BY_HOOKS)
    @pytest.mark.parametrize("kind", raising_clients(Own))
    async def test_on_connecting(
        self, kind: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What keeps a client out is HTTP 500; a browser is closed with 1011."""
        app = App()
        app.client("/api")(raising_clients(RAISED[name])[kind])

        async with asyncio.timeout(LIMIT):
            answer = await shake_by_hand(app)
            closed = await close_of_browser(app)

        assert answer == (500, "internal error")
        assert closed == (1011, "internal error")
        assert caplog.messages == ["on_connecting failed"] * 2
        assert app.stats()["clients"] == 0

    @pytest.mark.parametrize("name", RAISED_BY_HOOKS)
    @pytest.mark.parametrize("hook", ["on_connected", "on_message"])
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_open_connection(
        self, is_async: bool, hook: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """on_connected and on_message end the connection with 1011."""

        def plain(client: Client, *message: Any) -> None:
            raise RAISED[name]()

        async def task(client: Client, *message: Any) -> None:
            await asyncio.sleep(0)
            raise RAISED[name]()

        app, told = App(), Told()
        attributes = {"told": told, hook: task if is_async else plain}
        app.client("/api")(type("Failing", (Waving,), attributes))

        async with talking(app) as talk:
            with contextlib.suppress(ConnectionClosed):
                await talk.send("x")
            closed = await talk.closed()
            await told.until("gone")

        assert closed == (1011, "internal error")
        assert caplog.messages == [f"{hook} failed"]

    # The connection is closed by then: ConnectionClosed is no bug.
    @pytest.mark.parametrize("name", RAISED_BY_GOODBYES)
    @pytest.mark.parametrize("kind", ["generator", "method", "plain method"])
    async def test_on_disconnected(
        self, kind: str, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What on_disconnected raises is logged; the client is gone, others stay."""
        app = App()

        @app.client("/generator")
        async def generator(client: Client) -> AsyncIterator[None]:
            yield
            raise RAISED[name]()

        @app.client("/method")
        class Failing(Client):
            async def on_disconnected(self) -> None:
                await asyncio.sleep(0)
                raise RAISED[name]()

        @app.client("/plain method")
        class PlainFailing(Client):
            def on_disconnected(self) -> Any:
                raise RAISED[name]()

        app.client("/api")(lambda client: None)

        async with talking(app) as talk:
            url = f"ws://127.0.0.1:{talk.ws.remote_address[1]}/{kind}"
            async with ws_connect(url.replace(" ", "%20"), proxy=None) as ws:
                await Talk(ws).call("$.ping")
            await wire_until(lambda: app.stats()["clients"] == 1)
            answer = await talk.call("$.ping")

        assert result_of(answer) == {}
        assert caplog.messages == ["on_disconnected failed"]

    @pytest.mark.parametrize("name", RAISED_BY_HOOKS)
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_page(
        self, is_async: bool, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a page raises is HTTP 500."""
        app = make_app()

        def plain(request: Any) -> str:
            raise RAISED[name]()

        async def task(request: Any) -> str:
            await asyncio.sleep(0)
            raise RAISED[name]()

        page = app.http("/page")(task if is_async else plain)

        answer = await ask_by_hand(app, "/page")

        assert answer == (500, "internal error")
        assert caplog.messages == [f"page {describe(page)} failed"]

    async def test_result_of_a_cancelled_task(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The result of a task that was cancelled ends on_connected with 1011."""
        app = App()
        task = asyncio.create_task(asyncio.sleep(LIMIT))
        task.cancel()
        await asyncio.wait([task])

        @app.client("/api")
        class Reading(Client):
            async def on_connected(self) -> None:
                task.result()

        async with talking(app) as talk:
            assert await talk.closed() == (1011, "internal error")
        assert caplog.messages == ["on_connected failed"]


def set_in(client: Client, hook: str) -> None:
    """Set the variable in the hook that `?set=` names."""
    if client.query.get("set") == hook:
        VALUE.set(hook)


class Setting(Waving):
    """A client that sets the variable in its hooks, and tells what they see."""

    async def on_connecting(self, **params: Any) -> None:
        """Set it."""
        await asyncio.sleep(0)
        set_in(self, "on_connecting")

    async def on_connected(self) -> None:
        """Look, and set it."""
        self.told(VALUE.get())
        set_in(self, "on_connected")

    async def on_disconnected(self) -> None:
        """Look."""
        self.told(VALUE.get())
        self.told("gone")


class RawSetting(Setting):
    """The same, on a route with its own messages."""

    async def on_message(self, message: str | bytes) -> None:
        """Look."""
        self.told(VALUE.get())
        await self.connection.send(message)


class TestHookThatCancelsItself:
    """A hook that cancels its own task and awaits is a bug like any other."""

    @pytest.mark.parametrize("kind", ["function", "class"])
    async def test_on_connecting(
        self, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An on_connecting that cancels its own task is a bug like any other."""
        app = App()

        async def function(client: Client) -> None:
            cancel_myself()
            await asyncio.sleep(0)

        class Connecting(Client):
            async def on_connecting(self, **params: Any) -> None:
                await function(self)

        app.client("/api")(function if kind == "function" else Connecting)

        async with asyncio.timeout(LIMIT):
            answer = await shake_by_hand(app)
            closed = await close_of_browser(app)

        assert answer == (500, "internal error")
        assert closed == (1011, "internal error")
        assert caplog.messages == ["on_connecting failed"] * 2

    @pytest.mark.parametrize("hook", ["on_connected", "on_message"])
    async def test_open_connection(
        self, hook: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Another hook that cancels its own task ends the connection with 1011."""

        async def cancel(client: Client, *message: Any) -> None:
            cancel_myself()
            await asyncio.sleep(0)

        app, told = App(), Told()
        app.client("/api")(type("Failing", (Waving,), {"told": told, hook: cancel}))

        async with talking(app) as talk:
            with contextlib.suppress(ConnectionClosed):
                await talk.send("x")
            closed = await talk.closed()
            await told.until("gone")

        assert closed == (1011, "internal error")
        assert caplog.messages == [f"{hook} failed"]

    async def test_on_disconnected(self, caplog: pytest.LogCaptureFixture) -> None:
        """That of on_disconnected is logged, and the client is gone."""
        app = make_app()

        @app.client("/leaving")
        class Leaving(Client):
            async def on_disconnected(self) -> None:
                cancel_myself()
                await asyncio.sleep(0)

        async with talking(app) as talk:
            url = f"ws://127.0.0.1:{talk.ws.remote_address[1]}/leaving"
            async with ws_connect(url, proxy=None) as ws:
                await Talk(ws).call("$.ping")
            await wire_until(lambda: app.stats()["clients"] == 1)

        assert caplog.messages == ["on_disconnected failed"]


@pytest.mark.usefixtures("each_server")
class TestContextOfHooks:
    """What the hooks of a connection set, all that comes later on it sees."""

    @staticmethod
    def app(told: Told) -> App:
        """Make an app whose clients set the variable in the hook that `?set=` names."""
        app = App()

        @app.client("/function")
        def function(client: Client) -> None:
            set_in(client, "on_connecting")

        @app.client("/async function")
        async def async_function(client: Client) -> None:
            await asyncio.sleep(0)
            set_in(client, "on_connecting")

        @app.client("/generator")
        async def generator(client: Client) -> AsyncIterator[None]:
            set_in(client, "on_connecting")
            yield
            told(VALUE.get())
            told("gone")

        app.client("/class")(type("Setter", (Setting,), {"told": told}))
        app.client("/raw")(type("RawSetter", (RawSetting,), {"told": told}))
        for reader in TestContextOfCalls.readers().values():
            app.module("m")(reader)
        return app

    async def values_of(self, talk: Talk) -> list[str]:
        """Return what handlers of each kind see, in order."""
        values = []
        for name in TestContextOfCalls.readers():
            answer = await talk.call(f"m.{name}")
            values.append(answer["data"])
            if answer["event"] == "item":
                assert result_of(await talk.receive()) == {}
        return values

    @pytest.mark.parametrize("path", ["function", "async%20function", "generator"])
    async def test_function(self, path: str) -> None:
        """What a client function sets, all handlers see."""
        app = self.app(Told())

        async with talking(app, f"/{path}?set=on_connecting") as talk:
            values = await self.values_of(talk)

        assert values == ["on_connecting"] * 4

    async def test_function_with_yield(self) -> None:
        """What it sets before its yield it sees after it."""
        told = Told()
        app = self.app(told)

        async with talking(app, "/generator?set=on_connecting"):
            pass

        assert await told.until("gone") == ["on_connecting", "gone"]

    @pytest.mark.parametrize(
        ("hook", "before"),
        [("on_connecting", "on_connecting"), ("on_connected", "none")],
    )
    async def test_class(self, hook: str, before: str) -> None:
        """What a hook sets, all later handlers and hooks of the connection see."""
        told = Told()
        app = self.app(told)

        async with talking(app, f"/class?set={hook}") as talk:
            values = await self.values_of(talk)
        seen = await told.until("gone")

        assert (values, seen) == ([hook] * 4, [before, hook, "gone"])

    @pytest.mark.parametrize("hook", ["on_connecting", "on_connected"])
    async def test_on_message(self, hook: str) -> None:
        """on_message sees it, too."""
        told = Told()
        app = self.app(told)

        async with talking(app, f"/raw?set={hook}") as talk:
            await talk.send("x")
            await talk.ws.recv()
        seen = await told.until("gone")

        assert seen[1:] == [hook, hook, "gone"]

    async def test_call_that_was_held(self) -> None:
        """A call that waited for on_connected sees what that set."""
        app, is_free = App(), asyncio.Event()

        @app.client("/api")
        class Slow(Client):
            async def on_connected(self) -> None:
                await is_free.wait()
                VALUE.set("connected")

        for reader in TestContextOfCalls.readers().values():
            app.module("m")(reader)

        async with talking(app) as talk:
            await talk.send({"module": "m", "method": "read_plain", "request_id": 1})
            await talk.send({"module": "m", "method": "read_task", "request_id": 2})
            await talk.call("$.ping")
            is_free.set()
            answers = [result_of(await talk.receive()) for _ in range(2)]

        assert answers == ["connected", "connected"]

    async def test_what_a_held_call_sets(self) -> None:
        """What a call sets that waited for on_connected, no later call sees."""
        app, is_free = App(), asyncio.Event()

        @app.client("/api")
        class Slow(Client):
            async def on_connected(self) -> None:
                await is_free.wait()

        setters, readers = TestContextOfCalls.setters(), TestContextOfCalls.readers()
        app.module("m")(setters["plain"])
        app.module("m")(readers["read_plain"])

        async with talking(app) as talk:
            await talk.send({"module": "m", "method": "plain", "request_id": 1})
            await talk.call("$.ping")
            is_free.set()
            await talk.receive()
            answer = await talk.call("m.read_plain")

        assert result_of(answer) == "none"

    @pytest.mark.parametrize("path", ["function", "generator", "class"])
    async def test_other_connections(self, path: str) -> None:
        """Another connection sees nothing of it, whether it comes before or after."""
        app = self.app(Told())

        async with talking(app, "/class") as before:
            base = f"ws://127.0.0.1:{before.ws.remote_address[1]}/{path}"
            async with (
                ws_connect(f"{base}?set=on_connecting", proxy=None) as setter,
                ws_connect(base, proxy=None) as after,
            ):
                first = await self.values_of(Talk(setter))
                others = [await self.values_of(each) for each in (before, Talk(after))]

        assert first == ["on_connecting"] * 4
        assert others == [["none"] * 4] * 2

    async def test_lifespan(self) -> None:
        """What the lifespan sets nobody sees but itself."""
        told = Told()
        app = self.app(told)

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            VALUE.set("lifespan")
            yield
            told(f"its own {VALUE.get()}")

        async with talking(app, "/class") as talk:
            values = await self.values_of(talk)
        outside = VALUE.get()

        assert (values, outside) == (["none"] * 4, "none")
        assert told.steps == ["none", "none", "gone", "its own lifespan"]

    async def test_task_of_a_hook(self) -> None:
        """A task that on_connected started keeps its copy."""
        app, tasks, is_free = App(), list[asyncio.Task[str]](), asyncio.Event()

        async def look() -> str:
            await is_free.wait()
            return VALUE.get()

        @app.client("/api")
        class Starting(Client):
            async def on_connected(self) -> None:
                VALUE.set("first")
                tasks.append(asyncio.create_task(look()))
                VALUE.set("second")

        app.module("m")(TestContextOfCalls.readers()["read_plain"])

        async with talking(app) as talk:
            answer = await talk.call("m.read_plain")
        is_free.set()

        assert result_of(answer) == "second"
        assert await asyncio.gather(*tasks) == ["first"]


# -- The client ---------------------------------------------------------------


class TestLogOfClients:
    """Each client that comes, is refused or goes is a line at INFO."""

    @staticmethod
    def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
        """Return the lines of wsappy itself."""
        records = [each for each in caplog.records if each.name == "wsappy"]
        return [
            re.sub(r"[0-9a-f]{32}|127\.0\.0\.1:\d+", "?", each.getMessage())
            for each in records
            if each.funcName in ("greet", "note_end")
        ]

    @pytest.mark.parametrize(
        ("close", "end"),
        [
            (wire_close(1000), "closed by the client with 1000"),
            (wire_close(4123), "closed by the client with 4123"),
            (b"", "closed by nobody with 1006"),
            (wire_call("leave"), "closed by the server with 4001"),
        ],
    )
    async def test_end(
        self, close: bytes, end: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The lines name the client, the close code, and who closed."""
        caplog.set_level(logging.INFO, "wsappy")
        app = wire_app()

        @app.module("e")
        @app.method
        async def leave(request: Request) -> None:
            await request.client.close(4001)

        async with wired(app, path="/api?token=secret") as wire:
            wire.send(close or wire_call())
            await wire.frame()
            if not close:
                wire.reset()
            wire.send(wire_close(4001))
            await wire.ended()
            wire.writer.close()
            await wire_until(lambda: wire.is_gone)

        assert self.lines(caplog) == [
            "<api ? at '/api' from ?> came",
            f"<api ? at '/api' from ?> went: {end}",
        ]

    @pytest.mark.parametrize(
        ("path", "headers", "status"),
        [
            ("/none", {}, 404),
            ("/none", {"Origin": "http://localhost"}, 404),
            ("/closed", {}, 403),
            ("/api", {"Origin": "http://other"}, 403),
        ],
    )
    async def test_refused(
        self,
        path: str,
        headers: Any,
        status: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A client that is refused is named by its path and address."""
        caplog.set_level(logging.INFO, "wsappy")
        app = make_app()

        @app.client("/closed")
        def closed(client: Client) -> None:
            raise Refused(403)

        async with app.serve("127.0.0.1", 0) as serving:
            request = request_by_hand(f"{path}?token=secret", **UPGRADE, **headers)
            async with dialled(serving, request) as wire:
                await wire.head()
                wire.send(wire_close())
                await wire.ended()

        (line,) = self.lines(caplog)
        assert re.sub(r"\(.*?\)", "?", line) == (
            f"refused a client at {path!r} from ?: {status}"
        )


@pytest.mark.usefixtures("each_server")
class TestClientAttributes:
    """What a client knows of its connection."""

    @staticmethod
    async def seen(path: str = "/api", **options: Any) -> Client:
        """Connect to a route and return its client."""
        app = App()
        clients: list[Client] = []

        @app.client("/api")
        @app.client("/rooms/{room}/{number:int}")
        def api(client: Client) -> None:
            client.mine = "mine"  # type: ignore[attr-defined]
            clients.append(client)

        async with talking(app, path, **options):
            return clients[0]

    async def test_path(self) -> None:
        """`path` is what the client asked for, without the query."""
        assert (await self.seen("/api/?token=secret")).path == "/api/"

    async def test_params(self) -> None:
        """`params` are converted."""
        client = await self.seen("/rooms/a%20b/42")

        assert client.params == {"room": "a b", "number": 42}

    async def test_query(self) -> None:
        """`query` has the last value of a repeated name."""
        client = await self.seen("/api?a=1&a=2&b=&c=%C3%BC&d=%FF")

        assert client.query == {"a": "2", "b": "", "c": "ü", "d": "\ufffd"}

    async def test_headers(self) -> None:
        """`headers` are those of the handshake."""
        client = await self.seen(additional_headers={"X-Token": "x"})

        assert client.headers["x-token"] == "x"

    async def test_remote(self) -> None:
        """`remote` is host and port of the peer."""
        app = App()
        clients = clients_of(app)

        async with talking(app) as talk:
            peer = talk.ws.local_address

        assert clients[0].remote == peer

    async def test_remote_of_a_unix_socket(self, tmp_path: Any) -> None:
        """`remote` is None on a Unix socket."""
        app, remotes = App(), []
        app.client("/api")(lambda client: remotes.append(client.remote))

        async with (
            app.serve(unix=str(tmp_path / "socket")),
            unix_connect(str(tmp_path / "socket"), "ws://localhost/api"),
        ):
            pass

        assert remotes == [None]

    async def test_id(self) -> None:
        """`id` is a string, distinct for each connection."""
        one, other = await self.seen(), await self.seen()

        assert type(one.id) is str
        assert one.id != other.id

    async def test_the_rest(self) -> None:
        """It has `app`, `server`, `groups`, `handlers`, and room for one's own."""
        client = await self.seen()

        assert client.server is client.app
        assert (client.groups, client.handlers) == (set(), None)
        assert client.mine == "mine"  # type: ignore[attr-defined]

    async def test_before_init(self) -> None:
        """All attributes are set before `__init__` runs."""
        app, paths = App(), []

        @app.client("/api")
        class Mine(Client):
            def __init__(self, server: Any, connection: Any, handlers: Any) -> None:
                paths.append(self.path)
                super().__init__(server, connection, handlers)

        async with talking(app):
            pass

        assert paths == ["/api"]


def client_app(hook: Any, **options: Any) -> App:
    """Make an app whose method `do.it` calls *hook* with the client."""
    app = make_app(**options)

    @app.module("do")
    @app.method
    async def it(request: Any) -> Any:
        return await hook(request.client)

    return app


CANCEL_FIRST = {
    "module": "$",
    "method": "cancel",
    "data": {"request_id": 1},
    "request_id": "cancel",
}


@pytest.mark.usefixtures("each_server")
class TestProcessMessage:
    """The hook that wraps every call."""

    async def test_super(self) -> None:
        """`super().process_message` returns what the handler returned."""
        told = Told()
        app = App()

        @app.client("/api")
        class Mine(Client):
            async def process_message(self, request: Any) -> Any:
                result = await super().process_message(request)
                told((request.method, result))
                return result

        @app.module("do")
        @app.method
        async def it(request: Any) -> int:
            return 42

        async with talking(app) as talk:
            assert result_of(await talk.call("do.it")) == 42

        assert told.steps == [("it", 42)]

    async def test_thread_that_is_cancelled(self) -> None:
        """A thread counts until it returns, though its caller was answered."""
        began, gate = asyncio.Event(), threading.Event()
        app, loop = App(max_in_flight=1, grace=0), asyncio.get_running_loop()

        @app.client("/api")
        class Mine(Client):
            async def process_message(self, request: Any) -> Any:
                return await super().process_message(request)

        @app.module("do")
        @app.method(thread=True)
        def wait(request: Any) -> str:
            loop.call_soon_threadsafe(began.set)
            gate.wait(LIMIT)
            return "done"

        async with talking(app) as talk:
            await talk.send({"module": "do", "method": "wait", "request_id": 1})
            await began.wait()
            await talk.send(CANCEL_FIRST)
            cancelled = await talk.receive()
            await talk.receive()
            refused = await talk.call("do.wait", 3)
            gate.set()
            await wire_until(lambda: not app.stats()["unfinished"])
            taken = await talk.call("do.wait", 4)

        assert error_of(cancelled)[0] == "cancelled"
        assert error_of(refused)[0] == "overloaded"
        assert result_of(taken) == "done"

    async def test_thread_that_is_cancelled_on_an_ordered_route(self) -> None:
        """The next call waits until the thread has returned."""
        began, gate = asyncio.Event(), threading.Event()
        app, loop = App(grace=0), asyncio.get_running_loop()

        @app.client("/api", ordered=True)
        class Mine(Client):
            async def process_message(self, request: Any) -> Any:
                return await super().process_message(request)

        @app.module("do")
        @app.method(thread=True)
        def wait(request: Any) -> bool:
            loop.call_soon_threadsafe(began.set)
            return gate.wait(LIMIT)

        @app.module("do")
        @app.method
        def gated(request: Any) -> bool:
            return gate.is_set()

        async with talking(app) as talk:
            await talk.send({"module": "do", "method": "wait", "request_id": 1})
            await began.wait()
            await talk.send({"module": "do", "method": "gated", "request_id": 2})
            await talk.send(CANCEL_FIRST)
            assert error_of(await talk.receive())[0] == "cancelled"
            assert result_of(await talk.receive()) == {"cancelled": True}
            assert result_of(await talk.call("$.ping", 4)) == {}
            gate.set()

            assert result_of(await talk.receive()) is True

    async def test_thread_that_fails(self) -> None:
        """What a thread raises comes out of `super().process_message`."""
        app = App()

        @app.client("/api")
        class Mine(Client):
            async def process_message(self, request: Any) -> Any:
                with contextlib.suppress(KeyError):
                    return await super().process_message(request)
                return "caught"

        @app.module("do")
        @app.method(thread=True)
        def fail(request: Any) -> None:
            raise KeyError

        async with talking(app) as talk:
            assert result_of(await talk.call("do.fail")) == "caught"


@pytest.mark.usefixtures("each_server")
class TestPush:
    """Pushes to one client."""

    async def test_shape(self) -> None:
        """A push has null for method and request_id."""

        async def hook(client: Client) -> None:
            client.push("chat", "message", {"a": 1}, b=2)

        async with talking(client_app(hook)) as talk:
            assert await talk.call("do.it") == {
                "request_id": None,
                "module": "chat",
                "method": None,
                "event": "message",
                "data": {"a": 1, "b": 2},
            }

    @pytest.mark.parametrize(
        ("data", "written"), [(None, {}), ([1], [1]), ("text", "text"), (0, 0)]
    )
    async def test_data(self, data: Any, written: Any) -> None:
        """Without fields the data may be any JSON; None is an empty object."""

        async def hook(client: Client) -> None:
            await client.push("chat", "message", data)

        async with talking(client_app(hook)) as talk:
            assert (await talk.call("do.it"))["data"] == written

    async def test_data_that_can_not_be_written(self) -> None:
        """What can't be written as JSON is a TypeError."""
        errors: list[type] = []

        async def hook(client: Client) -> None:
            try:
                client.push("chat", "message", object())
            except TypeError as exc:
                errors.append(type(exc))

        async with talking(client_app(hook)) as talk:
            await talk.call("do.it")

        assert errors == [TypeError]

    async def test_from_a_thread(self) -> None:
        """A worker thread may push."""
        app = make_app()

        @app.module("do")
        @app.method(thread=True)
        def it(request: Any) -> None:
            request.client.push("chat", "message", name=threading.current_thread().name)

        async with talking(app) as talk:
            assert (await talk.call("do.it"))["data"] == {"name": "wsappy"}

    async def test_own_send_message(self) -> None:
        """A push whose data is an object passes an overridden send_message."""
        app = App()

        @app.client("/api")
        class Mine(Client):
            async def on_connected(self) -> None:
                self.push("chat", "one", {"a": 1})
                self.push("chat", "two", [1])
                self.push("chat", "three", {"module": "x"})

            def send_message(self, *parts: Any, **data: Any) -> Any:
                return super().send_message(*parts, **data, seen=True)

        async with talking(app) as talk:
            events = [(await talk.receive())["data"] for _ in range(3)]

        assert events == [{"a": 1, "seen": True}, [1], {"module": "x"}]

    async def test_to_a_client_that_is_gone(self) -> None:
        """A push to a client that is gone is dropped; awaiting it says so."""
        app, told = App(), Told()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            told(f"{client.is_open}")
            yield
            client.push("chat", "goodbye")
            with contextlib.suppress(ConnectionClosed):
                await client.push("chat", "goodbye")
                told("pushed")
            told(f"{client.is_open}")
            told("done")

        async with talking(app):
            pass

        assert await told.until("done") == ["False", "False", "done"]

    async def test_open_client(self) -> None:
        """`is_open` tells whether a client can be reached."""
        app = make_app()

        @app.module("a")
        @app.method
        def b(request: Request) -> bool:
            return request.client.is_open

        async with talking(app) as talk:
            assert result_of(await talk.call("a.b")) is True


@pytest.mark.usefixtures("each_server")
class TestCallToTheClient:
    """Calls that the server makes."""

    @staticmethod
    async def answered(answer: Any, **options: Any) -> Any:
        """Let a handler call the client, and answer it; return what came of it."""

        async def hook(client: Client) -> Any:
            try:
                return await client.call("ui", "confirm", text="Delete?")
            except Error as exc:
                return exc.as_data()
            except TypeError as exc:
                return str(exc)

        async with talking(client_app(hook, **options)) as talk:
            call = await talk.call("do.it", "mine")
            for event in answer:
                await talk.send({"request_id": call["request_id"], **event})
            return call, result_of(await talk.receive())

    async def test_shape(self) -> None:
        """The call has the protocol's shape, reversed."""
        call, _ = await self.answered([{"event": "result"}])

        assert call == {
            "module": "ui",
            "method": "confirm",
            "data": {"text": "Delete?"},
            "request_id": 1,
        }

    async def test_result(self) -> None:
        """It returns the data of the result, in a handler of the same client too."""
        events = [{"event": "result", "data": [1]}]

        _, result = await self.answered(events, max_in_flight=1)

        assert result == [1]

    async def test_nested_call_at_the_limit(self) -> None:
        """What the client calls meanwhile counts, and is `overloaded` at the limit."""

        async def hook(client: Client) -> Any:
            return await client.call("ui", "confirm")

        async with talking(client_app(hook, max_in_flight=1)) as talk:
            call = await talk.call("do.it", "outer")
            nested = await talk.call("do.it", "nested")
            await talk.send({**call, "event": "result", "data": "yes"})
            outer = await talk.receive()

        assert (nested["request_id"], error_of(nested)) == (
            "nested",
            ("overloaded", "too many unfinished calls"),
        )
        assert (outer["request_id"], result_of(outer)) == ("outer", "yes")

    async def test_error(self) -> None:
        """`call` raises the `Error` that the client answers."""
        data = {"code": "no", "message": "never", "details": [1], "retry": True}

        _, result = await self.answered([{"event": "error", "data": data}])

        assert result == data

    async def test_other_events(self) -> None:
        """Events before the terminal one are passed over, a second answer dropped."""
        last = {"event": "result", "data": 1}

        messages = [{"event": "progress"}, last, {**last, "data": 2}]
        _, result = await self.answered(messages)

        assert result == 1

    async def test_stream(self) -> None:
        """A method of the client's that streams is an error that says what to write."""
        _, result = await self.answered([{"event": "item", "data": 1}])

        assert result == (
            "call of 'ui.confirm' must have one result: got an item; write return "
            "instead of yield there"
        )

    async def test_no_answer(self) -> None:
        """`call` raises TimeoutError where the client doesn't answer in time."""

        async def hook(client: Client) -> str:
            try:
                await client.call("ui", "confirm", timeout=0.01)
            except TimeoutError:
                return "late"
            return ""

        async with talking(client_app(hook)) as talk:
            await talk.call("do.it")
            assert result_of(await talk.receive()) == "late"

    @pytest.mark.parametrize("is_polite", [True, False])
    async def test_client_that_goes(self, is_polite: bool) -> None:
        """`call` raises ConnectionClosed at once when the client goes."""
        app, told = App(), Told()

        @app.client("/api")
        class Mine(Client):
            async def on_connected(self) -> None:
                told(asyncio.create_task(self.ask()))

            async def ask(self) -> None:
                try:
                    await self.call("ui", "confirm", timeout=None)
                except wsappy.ConnectionClosed:
                    told("closed")

        async with talking(app) as talk:
            await talk.receive()
            if is_polite:
                await talk.ws.close()
            else:
                talk.ws.transport.abort()
            await told.until("closed")

        assert told.steps[1:] == ["closed"]

    async def test_client_that_is_gone(self) -> None:
        """`call` raises ConnectionClosed where the client is gone already."""
        app, told = App(), Told()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            yield
            try:
                await client.call("ui", "confirm")
            except wsappy.ConnectionClosed:
                told("closed")

        async with talking(app):
            pass

        assert await told.until("closed") == ["closed"]


class TestConnectionClosedInHooks:
    """A `ConnectionClosed` that leaves a hook of a client."""

    async def test_client_that_is_open(self, caplog: pytest.LogCaptureFixture) -> None:
        """Where the client is open it is a bug like any other: 1011, and an ERROR."""
        app, told = App(), Told()

        @app.client("/gone")
        class Gone(Client):
            async def on_disconnected(self) -> None:
                told(self)

        @app.client("/api")
        class Open(Client):
            async def on_connected(self) -> None:
                await told.steps[0].call("ui", "confirm")

        async with talking_server(app, "/gone") as (server, gone):
            await gone.ws.close()
            await wire_until(lambda: told.steps)
            async with ws_connect(server.url("/api"), proxy=None) as ws:
                closed = await Talk(ws).closed()

        assert closed == (1011, "internal error")
        assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
            ("ERROR", "on_connected failed")
        ]

    async def test_client_that_is_gone(self, caplog: pytest.LogCaptureFixture) -> None:
        """Where the client is gone it is a line at INFO."""
        caplog.set_level(logging.INFO, "wsappy")
        app, errors = App(), list[ConnectionClosed]()

        @app.client("/api")
        class Gone(Client):
            async def on_disconnected(self) -> None:
                try:
                    await self.call("ui", "confirm")
                except ConnectionClosed as exc:
                    errors.append(exc)
                    raise

        async with talking(app):
            pass

        hook = [each for each in caplog.records if "on_disc" in each.getMessage()]
        assert [(each.levelname, each.getMessage()) for each in hook] == [
            ("INFO", f"on_disconnected raised {errors[0]!r}")
        ]


@pytest.mark.usefixtures("each_server")
class TestClose:
    """Closing from the server's side."""

    @staticmethod
    def app(told: Told, *arguments: Any) -> App:
        """Make an app whose method `do.it` closes the client, twice."""

        async def hook(client: Client) -> None:
            await client.close(*arguments)
            await client.close()
            told("under way")

        return client_app(hook)

    @pytest.mark.parametrize(
        ("arguments", "closed"),
        [
            ((), (1000, "")),
            ((1001, "moving"), (1001, "moving")),
            ((1014,), (1014, "")),
            ((4999, "ä" * 61), (4999, "ä" * 61)),
        ],
    )
    async def test_from_a_handler(self, arguments: Any, closed: Any) -> None:
        """From a handler close doesn't wait for that handler; the second is a no-op."""
        told = Told()

        async with talking(self.app(told, *arguments)) as talk:
            await talk.send({"module": "do", "method": "it"})
            assert await talk.closed() == closed

        assert told.steps == ["under way"]

    @pytest.mark.parametrize(
        ("code", "reason", "size"),
        [
            (1002, "", 0),
            (1005, "", 0),
            (999, "", 0),
            (5000, "", 0),
            (1000, "ä" * 62, 124),
        ],
    )
    async def test_what_is_not_allowed(self, code: int, reason: str, size: int) -> None:
        """Other codes, and longer reasons, are a ValueError."""

        async def hook(client: Client) -> str:
            with pytest.raises(ValueError) as info:  # noqa: PT011
                await client.close(code, reason)
            return str(info.value)

        async with talking(client_app(hook)) as talk:
            text = result_of(await talk.call("do.it"))

        assert text == (
            f"code and reason of a close must be what RFC 6455 allows: got {code} and "
            f"{size} bytes; write 1000 or 4000 to 4999, and at most 123 bytes"
        )

    async def test_from_on_connected(self) -> None:
        """From on_connected close doesn't wait for that hook."""
        app, told = App(), Told()

        @app.client("/api")
        class Mine(Client):
            async def on_connected(self) -> None:
                await self.close(4000, "no")
                told("under way")

        async with talking(app) as talk:
            assert await talk.closed() == (4000, "no")

        assert told.steps == ["under way"]

    async def test_from_on_message(self) -> None:
        """From on_message close doesn't wait for that hook."""
        app, told = App(), Told()

        @app.client("/api")
        class Mine(Client):
            async def on_message(self, message: str | bytes) -> None:
                await self.close(4000, "no")
                told("under way")

        async with talking(app) as talk:
            await talk.send("x")
            assert await talk.closed() == (4000, "no")

        assert told.steps == ["under way"]

    async def test_from_on_disconnected(self) -> None:
        """From on_disconnected close is a no-op."""
        app, told = App(), Told()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            yield
            await client.close()
            told("closed")

        async with talking(app):
            pass

        assert await told.until("closed") == ["closed"]

    async def test_from_elsewhere(self) -> None:
        """From another task close waits for the end of the connection."""
        app = App()
        clients = clients_of(app)

        async with talking(app) as talk:
            await talk.call("$.ping")
            await clients[0].close(4000)
            phase = clients[0].connection.phase

        assert phase is wsappy.Phase.CLOSED


class TestWhoCloses:
    """`close` returns at once for whom the connection waits, and waits for others."""

    @staticmethod
    def handlers(told: Told) -> dict[str, Any]:
        """Return handlers of every kind that close, tell it, and run on, by kind."""

        async def close(client: Client) -> None:
            await client.close(4000)
            told("returned")
            await asyncio.get_running_loop().create_future()

        async def task(request: Request) -> None:
            await close(request.client)

        def awaitable(request: Request) -> Awaitable[None]:
            return close(request.client)

        async def stream(request: Request) -> AsyncIterator[int]:
            yield 1
            await close(request.client)

        async def started(request: Request) -> None:
            await asyncio.create_task(close(request.client))

        async def group(request: Request) -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(close(request.client))

        async def limited(request: Request) -> None:
            await asyncio.wait_for(close(request.client), LIMIT)

        kinds = (task, awaitable, stream, started, group, limited)
        return {each.__name__: each for each in kinds}

    @pytest.mark.parametrize("factory", [None, Wrapping], ids=["plain", "wrapped"])
    @pytest.mark.parametrize("kind", handlers(Told()))
    async def test_handler(self, kind: str, factory: Any) -> None:
        """From a handler, and a task that it started, it returns while that runs."""
        app, told = App(), Told()
        app.client("/api")(factory or (lambda client: None))
        app.module("m")(app.method(kind)(self.handlers(told)[kind]))

        async with talking(app) as talk:
            await talk.send({"module": "m", "method": kind})
            closed = await talk.closed()
            await told.until("returned")

        assert closed == (4000, "")

    async def test_task_that_outlives_its_handler(self) -> None:
        """From a task whose handler has ended before it returns, too."""
        app, told, is_free = make_app(), Told(), asyncio.Event()
        tasks: list[asyncio.Task[None]] = []

        async def close(client: Client) -> None:
            await is_free.wait()
            await client.close(4000)
            told("returned")

        @app.module("m")
        @app.method
        def leave(request: Request) -> None:
            loop = asyncio.get_running_loop()
            tasks.append(loop.create_task(close(request.client)))

        async with talking(app) as talk:
            await talk.call("m.leave")
            is_free.set()
            assert await talk.closed() == (4000, "")
        await asyncio.gather(*tasks)

        assert told.steps == ["returned"]

    async def test_thread(self) -> None:
        """A worker thread may wait for it, in the loop, while its handler runs."""
        app, told = make_app(), Told()
        loop = asyncio.get_running_loop()

        @app.module("m")
        @app.method(thread=True)
        def leave(request: Request) -> None:
            work = request.client.close(4000)
            asyncio.run_coroutine_threadsafe(work, loop).result(LIMIT)
            loop.call_soon_threadsafe(told, "returned")

        async with talking(app) as talk:
            await talk.send({"module": "m", "method": "leave"})
            closed = await talk.closed()

        assert (closed, await told.until("returned")) == ((4000, ""), ["returned"])

    @pytest.mark.parametrize("is_task", [False, True])
    @pytest.mark.parametrize("hook", ["on_connected", "on_message"])
    async def test_hook(self, hook: str, is_task: bool) -> None:
        """From a hook, and a task that it started, it returns while that runs."""

        async def close(client: Any, *message: Any) -> None:
            work = client.close(4000)
            await (asyncio.create_task(work) if is_task else work)
            client.told("returned")
            await asyncio.get_running_loop().create_future()

        app, told = App(), Told()
        app.client("/api")(type("Closing", (Waving,), {"told": told, hook: close}))

        async with talking(app) as talk:
            with contextlib.suppress(ConnectionClosed):
                await talk.send("x")
            closed = await talk.closed()
            await told.until("gone")

        assert (closed, told.steps) == ((4000, ""), ["returned", "gone"])

    @pytest.mark.parametrize("is_task", [False, True])
    @pytest.mark.parametrize("kind", ["generator", "class"])
    async def test_on_disconnected(self, kind: str, is_task: bool) -> None:
        """From the goodbye, and a task that it started, it returns at once."""
        app, told = App(), Told()

        async def close(client: Client) -> None:
            work = client.close(4000)
            await (asyncio.create_task(work) if is_task else work)
            told("returned")

        @app.client("/generator")
        async def generator(client: Client) -> AsyncIterator[None]:
            yield
            await close(client)

        @app.client("/class")
        class Leaving(Client):
            async def on_disconnected(self) -> None:
                await close(self)

        async with talking(app, f"/{kind}"):
            pass

        assert await told.until("returned") == ["returned"]

    async def test_task_of_on_connecting(self) -> None:
        """From a task that on_connecting started it returns while that runs."""
        app, told, is_open = App(), Told(), asyncio.Event()
        tasks: list[asyncio.Task[None]] = []

        async def close(client: Client) -> None:
            await is_open.wait()
            await client.close(4000)
            told("returned")

        @app.client("/api")
        async def api(client: Client) -> None:
            tasks.append(asyncio.create_task(close(client)))

        async with talking(app) as talk:
            is_open.set()
            assert await talk.closed() == (4000, "")
        await asyncio.gather(*tasks)

        assert told.steps == ["returned"]

    @pytest.mark.parametrize("who", ["test", "lifespan", "other client"])
    async def test_foreign_task(self, who: str) -> None:
        """A task that isn't the client's waits for the end of the connection."""
        app, told, go_on = App(), Told(), asyncio.Event()
        clients = clients_of(app)

        async def close() -> None:
            is_open = clients[0].connection.state is State.OPEN
            await clients[0].close(4000)
            told((is_open, clients[0].connection.state))

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            async def worker() -> None:
                await go_on.wait()
                await close()

            async with asyncio.TaskGroup() as tasks:
                work = tasks.create_task(worker())
                yield
                work.cancel()

        app.module("m")(app.method("close")(lambda request: close()))

        async with talking(app) as talk:
            await talk.call("$.ping")
            if who == "test":
                await close()
            elif who == "lifespan":
                go_on.set()
            else:
                url = f"ws://127.0.0.1:{talk.ws.remote_address[1]}/api"
                async with ws_connect(url, proxy=None) as ws:
                    await Talk(ws).call("m.close")
            closed = await talk.closed()
            steps = await told.until((True, State.CLOSED))

        assert (closed, len(steps)) == ((4000, ""), 1)


# --- 7. Groups ---------------------------------------------------------------


@pytest.mark.usefixtures("each_server")
class TestGroups:
    """Groups in one process."""

    @staticmethod
    def app(**options: Any) -> App:
        """Make an app whose clients join the groups of their query."""
        app = App(**options)

        @app.client("/api")
        def api(client: Client) -> None:
            for name in client.query.get("in", "all").split(","):
                client.join(name)

        @app.module("do")
        @app.method
        def say(request: Any, group: str) -> None:
            app.to(group).without(request.client).push("chat", "said")

        @app.module("do")
        @app.method
        def leave(request: Any, group: str) -> None:
            request.client.leave(group)
            request.client.leave(group)

        return app

    async def test_shape(self) -> None:
        """A push to a group names the group."""
        app = self.app()

        async with talking(app, "/api?in=room:42") as talk:
            app.to("room:42").push("chat", "message", text="hi")
            text = await talk.ws.recv()

        assert text == (
            '{"request_id":null,"module":"chat","method":null,"event":"message",'
            '"data":{"text":"hi"},"group":"room:42"}'
        )

    async def test_members(self) -> None:
        """`members` are the clients in the group, `without` is all of them but one."""
        app = self.app()

        async with talking(app) as one, talking(app) as other:
            await one.call("$.ping")
            await other.call("$.ping")
            group = app.to("all")
            some = group.without(next(iter(group.members)))
            counts = len(group.members), len(some.members)

        assert counts == (2, 1)

    async def test_without(self) -> None:
        """`without` leaves the client out that spoke."""
        app = self.app()

        async with app.serve("127.0.0.1", 0) as serving:
            connect = functools.partial(ws_connect, serving.url("/api"), proxy=None)
            async with connect() as one, connect() as other:
                speaker, hearer = Talk(one), Talk(other)
                first = await speaker.call("do.say", group="all")
                heard = await hearer.receive()

        assert (first["event"], heard["event"]) == ("result", "said")

    async def test_leave(self) -> None:
        """A client that left hears nothing more; leaving twice is fine."""
        app = self.app()

        async with talking(app, "/api?in=a,b") as talk:
            await talk.call("do.leave", group="a")
            app.to("a").push("chat", "a")
            app.to("b").push("chat", "b")
            event = (await talk.receive())["event"]

        assert event == "b"

    async def test_disconnect(self) -> None:
        """A client that is gone is in no group, and can't join one."""
        app, told = App(), Told()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            client.join("a")
            yield
            client.join("b")
            client.leave("a")
            told((client.groups, app.to("a").members, app.to("b").members))

        async with talking(app) as talk:
            await talk.call("$.ping")

        assert told.steps == [({"a"}, frozenset(), frozenset())]

    async def test_names(self) -> None:
        """`groups` names the groups that a client is in."""
        app = self.app()

        async with talking(app, "/api?in=a,b,c") as talk:
            await talk.call("do.leave", group="c")
            (client,) = app.to("a").members
            groups = client.groups

        assert groups == {"a", "b"}

    async def test_order(self) -> None:
        """Pushes to groups and to the client keep their order."""
        app = self.app()

        async with talking(app) as talk:
            await talk.call("$.ping")
            (client,) = app.to("all").members
            for number in range(50):
                target: Any = client if number % 2 else app.to("all")
                target.push("chat", "n", number)
            numbers = [(await talk.receive())["data"] for _ in range(50)]

        assert numbers == list(range(50))

    async def test_encoded_once(self) -> None:
        """A push is encoded once for all of its members."""
        encoded: list[Any] = []

        def dumps(message: Any) -> bytes:
            encoded.append(message["event"])
            return json.dumps(message).encode()

        app = self.app(dumps=dumps)
        async with app.serve("127.0.0.1", 0) as serving:
            connect = functools.partial(ws_connect, serving.url("/api"), proxy=None)
            async with connect() as one, connect() as other:
                app.to("all").push("chat", "message")
                texts = {await one.recv(), await other.recv()}

        assert (encoded, len(texts)) == (["message"], 1)

    async def test_await(self) -> None:
        """A push to a group may be awaited, and waits for nobody."""
        app = self.app()

        async with talking(app) as talk:
            await app.to("all").push("chat", "message")
            event = (await talk.receive())["event"]

        assert event == "message"

    async def test_nobody(self) -> None:
        """A push to an empty group, or before the app is served, goes nowhere."""
        app = self.app()

        await app.to("nobody").push("chat", "message")

        assert app.to("nobody").members == frozenset()

    async def test_data_that_can_not_be_written(self) -> None:
        """What can't be written as JSON is a TypeError, members or not."""
        with pytest.raises(TypeError):
            self.app().to("all").push("chat", "message", object())

    async def test_from_a_thread(self) -> None:
        """A thread may push to a group."""
        app = self.app()

        async with talking(app) as talk:
            await asyncio.to_thread(app.to("all").push, "chat", "message")
            event = (await talk.receive())["event"]

        assert event == "message"

    async def test_compression(self) -> None:
        """Members with compression get the push, too."""
        app = self.app()

        async with (
            app.serve("127.0.0.1", 0, compression="deflate") as serving,
            ws_connect(serving.url("/api"), proxy=None) as ws,
        ):
            app.to("all").push("chat", "message")
            event = (await Talk(ws).receive())["event"]

        assert event == "message"


class TestMemberThatDoesNotRead:
    """A push waits for no member."""

    async def test_max_backlog(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A member with more than max_backlog bytes waiting is closed with 4508."""
        monkeypatch.setattr(wsappy, "SLOW_GRACE", LIMIT)
        app = TestGroups.app(max_backlog=2**16)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            Hand(serving, request_by_hand(**UPGRADE)) as hand,
        ):
            await hand.head()
            while not app.stats()["slow_clients_dropped"]:
                app.to("all").push("chat", "message", "x" * 2**16)
                await asyncio.sleep(0)
            hand.writer.write(wire_close())
            said = await hand.rest()

        assert said[-23:] == b"\x88\x15\x11\x9cit reads too slowly"


class TestFlushing:
    """What is sent outside of a read goes out when the loop's turn has ended."""

    async def test_two_clients_in_one_turn(self) -> None:
        """Pushes to several clients in one turn all go out."""
        app = App()
        clients = clients_of(app)

        async with app.serve("127.0.0.1", 0) as serving:
            url = serving.url("/api")
            async with ws_connect(url) as one, ws_connect(url) as two:
                for client in clients:
                    client.push("m", "hello")

                events = [json.loads(await each.recv())["event"] for each in (one, two)]

        assert events == ["hello", "hello"]


# --- 8. App ------------------------------------------------------------------


def names_of(app: App) -> list[tuple[str, str, str]]:
    """Return the rows of the one table, without their handlers."""
    return list(app.routes)


async def start_up(app: App, host: Any = "127.0.0.1", port: int = 0) -> None:
    """Start an app and stop it; raises what only the whole can show."""
    async with app.serve(host, port):
        pass


# -- Handlers -----------------------------------------------------------------


class TestMethodForms:
    """Every way to register a handler ends in the same row."""

    def test_module_above_method(self) -> None:
        """`@app.module` may stand above `@app.method`."""
        app = make_app()

        @app.module("entity")
        @app.method("get")
        def find(request: Request) -> None: ...

        assert app.routes == {("/api", "entity", "get"): find}

    def test_method_above_module(self) -> None:
        """`@app.method` may stand above `@app.module`."""
        app = make_app()

        @app.method("get")
        @app.module("entity")
        def find(request: Request) -> None: ...

        assert app.routes == {("/api", "entity", "get"): find}

    async def test_method_above_two_modules(self) -> None:
        """Each module below a method gets it."""
        app = make_app()

        @app.method
        @app.module("a")
        @app.module("b")
        def get(request: Request) -> None: ...

        await start_up(app)

        assert names_of(app) == [("/api", "b", "get"), ("/api", "a", "get")]

    def test_bare_method(self) -> None:
        """The name of a method defaults to the function's."""
        app = make_app()

        @app.module("entity")
        @app.method
        def get(request: Request) -> None: ...

        assert names_of(app) == [("/api", "entity", "get")]

    def test_method_called_without_a_name(self) -> None:
        """Parentheses without a name are the same as none."""
        app = make_app()

        @app.module("entity")
        @app.method(timeout=None)
        async def get(request: Request) -> None: ...

        assert names_of(app) == [("/api", "entity", "get")]

    def test_method_of_a_module(self) -> None:
        """A `Module` that decorates nothing marks and registers at once."""
        app = make_app()
        entity = app.module("entity")

        @entity.method
        def get(request: Request) -> None: ...

        assert app.routes == {("/api", "entity", "get"): get}

    def test_class(self) -> None:
        """A class is instantiated once; its marked methods are registered."""
        app = make_app()

        @app.module("entity")
        class Entities:
            @app.method
            def get(self, request: Request) -> None: ...

            @app.method("find")
            @staticmethod
            def search(request: Request) -> None: ...

            def helper(self, request: Request) -> None: ...

        assert names_of(app) == [("/api", "entity", "get"), ("/api", "entity", "find")]

    def test_bare_module_on_a_class(self) -> None:
        """The name of a class's module defaults to the class's, less `Handler`."""
        app = make_app()

        @app.module
        class EntityHandler:
            @app.method
            def get(self, request: Request) -> None: ...

        assert names_of(app) == [("/api", "entity", "get")]

    def test_instance(self) -> None:
        """An instance keeps its state."""
        app = make_app()

        class Entities:
            @app.method
            def get(self, request: Request) -> None: ...

        entities = app.module("entity")(Entities())

        assert app.routes == {("/api", "entity", "get"): entities.get}

    async def test_overridden_method(self) -> None:
        """A marked method that a subclass overrides belongs to a module, too."""
        app = make_app()

        class Base:
            @app.method
            def get(self, request: Request) -> None: ...

        @app.module("entity")
        class Entities(Base):
            @app.method
            def get(self, request: Request) -> None: ...

        await start_up(app)

        assert names_of(app) == [("/api", "entity", "get")]

    def test_include_in_two_apps(self) -> None:
        """A `Module` of another file may belong to several apps."""
        entity, apps = Module("entity"), [make_app(), make_app()]
        for app in apps:
            app.include(entity)

        @entity.method("get")
        def get(request: Request) -> None: ...

        assert [names_of(app) for app in apps] == [[("/api", "entity", "get")]] * 2

    def test_include_after_its_methods(self) -> None:
        """A `Module` may be full when it is included."""
        app, entity = make_app(), Module("entity")
        entity.method("get")(lambda request: None)

        app.include(entity)

        assert names_of(app) == [("/api", "entity", "get")]

    def test_clients(self) -> None:
        """`clients` limits a module to those routes."""
        app = make_app()
        app.client("/admin")(lambda client: None)

        @app.module("entity", clients=["/admin"])
        @app.method
        def drop(request: Request) -> None: ...

        assert names_of(app) == [("/admin", "entity", "drop")]


# -- Mistakes -----------------------------------------------------------------


class _Mistaken:
    """What can't be registered, or not twice."""

    class Empty:
        """A module without a method."""

    class Some:
        """A module whose method is overridden in `Less`."""

        @App().method
        def get(self, request: Request) -> None: ...

    class Less(Some):
        get = None  # type: ignore[assignment]

    BOTH = (Some, Less)

    @staticmethod
    def get(request: Request) -> None: ...

    @staticmethod
    def unmarked(request: Request) -> None: ...

    @staticmethod
    def enter(client: Client, room: str) -> None: ...

    @staticmethod
    def enter_by_yield(client: Client) -> Iterator[None]:
        yield

    @staticmethod
    def missing(request: Request, exc: KeyError) -> Error:
        return Error("x")

    @staticmethod
    async def missing_async(request: Request, exc: KeyError) -> Error:
        return Error("x")

    @staticmethod
    async def life(app: App) -> AsyncIterator[None]:
        yield

    @staticmethod
    async def no_life(app: App) -> None: ...

    @staticmethod
    def page(request: Any) -> str:
        return ""

    @staticmethod
    def nothing() -> str:
        return ""

    @staticmethod
    async def no_app() -> AsyncIterator[None]:
        yield

    @dataclasses.dataclass
    class Data(Client):
        name: str = ""

    class Short(Client):
        def __init__(self) -> None: ...


def client_with(name: str) -> type[Client]:
    """Make a class of clients with that method."""
    return type("Room", (Client,), {name: lambda self: None})


WRAPPED = functools.wraps(_Mistaken.enter_by_yield)(lambda client: None)
NOTHING, NO_APP = describe(_Mistaken.nothing), describe(_Mistaken.no_app)
GET, ENTER, LIFE = map(describe, (_Mistaken.get, _Mistaken.enter, _Mistaken.life))
MISSING, PAGE = describe(_Mistaken.missing), describe(_Mistaken.page)


def twice(register: Any, function: Any) -> None:
    """Register a function, and once more."""
    register(function)
    register(function)


# What is done with a new app, and the text of the error.
TYPE_MISTAKES: list[tuple[Callable[[Any], object], str]] = [
    (
        lambda app: app.method(5),
        "method must stand above a def: got 5; write one",
    ),
    (
        lambda app: Module(typing.cast(str, 7)),
        "name of a module must be a string: got 7; write @app.module('name')",
    ),
    (
        lambda app: app.module(app.method("get")(_Mistaken.get)),
        f"module of handler {GET} must have a name; write @app.module('name')",
    ),
    (
        lambda app: app.module("entity")(_Mistaken.Empty),
        "module of '_Mistaken.Empty' must have a method; mark one with @app.method",
    ),
    (
        lambda app: list(map(app.module("entity"), _Mistaken.BOTH)),
        "module of '_Mistaken.Less' must have a method; mark one with @app.method",
    ),
    (
        lambda app: app.module("entity", clients="/api"),
        "clients must be a list of paths: got '/api'; write ['/api']",
    ),
    (
        lambda app: app.include("entity"),
        "include needs a Module: got 'entity'; write Module('x')",
    ),
    (
        lambda app: app.client("/api")(_Mistaken.enter_by_yield),
        f"client of '/api' must be a subclass of Client or a function: got "
        f"{_Mistaken.enter_by_yield!r}; write async def api(client)",
    ),
    (
        lambda app: app.client("/rooms/{key}")(_Mistaken.enter),
        f"client function {ENTER} must fit '/rooms/{{key}}': missing a required "
        f"argument: 'room'; write def api(client, key)",
    ),
    (
        lambda app: App(origins="https://example.org"),
        "origins must be None for the same host, a list, or '*': got "
        "'https://example.org'; write ['https://example.org']",
    ),
    (
        lambda app: app.error(5),
        "error needs an exception: got 5; write KeyError, say",
    ),
    (
        lambda app: app.error(KeyError)(_Mistaken.missing_async),
        f"error function {describe(_Mistaken.missing_async)} must not be async",
    ),
    (
        lambda app: app.lifespan(_Mistaken.no_life),
        f"lifespan {describe(_Mistaken.no_life)} must be async def with yield",
    ),
    (
        lambda app: app.client("/api")(WRAPPED),
        f"client of '/api' must be a subclass of Client or a function: got "
        f"{WRAPPED!r}; write async def api(client)",
    ),
    (
        lambda app: app.error(KeyError)(_Mistaken.page),
        f"error function {PAGE} must take (request, exc): got (request: 'Any'); write "
        f"def page(request, exc)",
    ),
    (
        lambda app: app.lifespan(_Mistaken.no_app),
        f"lifespan {NO_APP} must take (app): got (); write def no_app(app)",
    ),
    (
        lambda app: app.http("/")(_Mistaken.nothing),
        f"page {NOTHING} must take (request): got (); write def nothing(request)",
    ),
    (
        lambda app: app.client("/api")(_Mistaken.Data),
        "class '_Mistaken.Data' must be no dataclass: its fields would be what a "
        "connection is; write self.name = ... in on_connecting",
    ),
    (
        lambda app: app.client("/api")(_Mistaken.Short),
        "__init__ of class '_Mistaken.Short' must take (self, server, connection, "
        "handlers): got (self); write def __init__(self, server, connection, handlers)",
    ),
    *(
        (
            lambda app, name=name: app.client("/api")(client_with(name)),
            f"hook of class 'Room' must be one that is called: got {name!r}; write "
            f"{instead}",
        )
        for name, instead in [
            ("on_connect", "on_connecting or on_connected"),
            ("on_disconnect", "on_disconnected"),
            ("on_disconnecting", "on_disconnected"),
            ("on_receive", "on_message"),
            ("on_messages", "on_message"),
            ("on_open", "on_connected"),
            ("on_close", "on_disconnected"),
            ("onconnected", "on_connected"),
        ]
    ),
    (
        lambda app: app.run(8008),
        "host must be a name or an address: got 8008; write port=8008",
    ),
    *(
        (
            lambda app, name=name: app.run(**{name: None}),
            f"option {name!r} must be one of app.serve or websockets.serve; write "
            f"{instead}",
        )
        for name, instead in [
            ("compresion", "compression"),
            ("ping_intervall", "ping_interval"),
            ("timeout", "App(timeout=...)"),
            ("max_in_flight", "App(max_in_flight=...)"),
            ("xyzzy", "help(websockets)"),
        ]
    ),
]
VALUE_MISTAKES: list[tuple[Callable[[Any], object], str]] = [
    (
        lambda app: app.module("x" * 201),
        "name of a module must have at most 200 characters: got 201; write a shorter "
        "one",
    ),
    (
        lambda app: app.module("$x")(_Mistaken.get),
        "name of a module must not start with '$': got '$x'; write it without",
    ),
    (
        lambda app: app.method("$x")(_Mistaken.get),
        "name of a method must not start with '$': got '$x'; write it without",
    ),
    (
        lambda app: twice(app.error(KeyError), _Mistaken.missing),
        f"error function {MISSING} clashes with {MISSING}: both are for KeyError; "
        f"write one for both",
    ),
    (
        lambda app: twice(app.lifespan, _Mistaken.life),
        f"lifespan {LIFE} clashes with {LIFE}: both are for the app; write one for "
        f"both",
    ),
    (
        lambda app: app.http("/items/{id}"),
        "page '/items/{id}' must have no parameters; use the query",
    ),
    (
        lambda app: twice(app.http("/"), _Mistaken.page),
        f"page {PAGE} clashes with {PAGE}: both are for '/'; write one for both",
    ),
]
LATE_MISTAKES: list[tuple[Callable[[Any], object], str]] = [
    (
        lambda app: app.method("get")(_Mistaken.get),
        f"handler {GET} belongs to no module; write @app.module('name') above it or "
        f"its class",
    ),
    (
        lambda app: app.module("entity")(_Mistaken.unmarked),
        f"handler {describe(_Mistaken.unmarked)} is no method; write @app.method below "
        f"@app.module",
    ),
    (
        lambda app: app.client("/rooms/{room:int}")(_Mistaken.enter),
        f"parameter 'room' of client function {ENTER} must fit '/rooms/{{room:int}}': "
        f"got <class 'str'>; write room: int",
    ),
]


class TestOptions:
    """What an app can be told."""

    def test_by_name(self) -> None:
        """Every option is keyword-only."""
        kinds = {each.kind for each in inspect.signature(App).parameters.values()}

        assert kinds == {inspect.Parameter.KEYWORD_ONLY}


class TestMistakes:
    """What is wrong raises as soon as it shows, with a text that says what to write."""

    @pytest.mark.parametrize(("register", "text"), TYPE_MISTAKES)
    def test_type(self, register: Callable[[Any], object], text: str) -> None:
        """What is of another kind is a TypeError at the decorator."""
        with pytest.raises(TypeError) as caught:
            register(App())

        assert str(caught.value) == text

    @pytest.mark.parametrize(("register", "text"), VALUE_MISTAKES)
    def test_value(self, register: Callable[[Any], object], text: str) -> None:
        """What can't be so, or not twice, is a ValueError at the decorator."""
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            register(App())

        assert str(caught.value) == text

    async def test_awaited_serve(self) -> None:
        """Awaiting `serve` says how it is entered."""
        with pytest.raises(TypeError) as caught:
            await make_app().serve()

        text = "app.serve() must be entered, not awaited; write async with app.serve():"
        assert str(caught.value) == text

    def test_methods_of_ones_own(self) -> None:
        """What merely begins like a hook is the application's."""
        for name in ("on_timer", "on_connection_lost", "one"):
            App().client("/api")(client_with(name))

    def test_known_options(self) -> None:
        """Those of websockets and of asyncio's servers go through."""
        App().serve(unix="/x", ssl=None, reuse_port=True, sock=None, ping_interval=1)

    async def test_error_in_a_client_function(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An `Error` that a hook raises is a bug; the log says where it belongs."""
        status, _ = await shake_by_hand(refusing(Error("forbidden")))

        assert status == 500
        assert caplog.messages == [
            "on_connecting failed; Error is for handlers, write raise Refused(403)"
        ]

    @pytest.mark.parametrize(("register", "text"), LATE_MISTAKES)
    async def test_start_up(self, register: Callable[[Any], object], text: str) -> None:
        """What only the whole can show is a TypeError at start-up."""
        app = make_app()
        register(app)

        with pytest.raises(TypeError) as caught:
            await start_up(app)

        assert str(caught.value) == text

    @pytest.mark.parametrize(
        ("function", "options", "text"),
        [
            (App, {"timeout": 0}, "at least 0.001: got 0"),
            (App, {"max_in_flight": None}, "at least 1: got None"),
            (App, {"max_backlog": -1}, "at least 0: got -1"),
            (App, {"max_clients": "5"}, "at least 1: got '5'"),
            (App, {"grace": -0.5}, "at least 0: got -0.5"),
            (App().method, {"timeout": 0}, "at least 0.001: got 0"),
            (App().method, {"timeout": -1}, "at least 0.001: got -1"),
            (App().method, {"timeout": math.nan}, "at least 0.001: got nan"),
            (App().method, {"timeout": "5"}, "at least 0.001: got '5'"),
        ],
    )
    def test_number(self, function: Any, options: dict[str, Any], text: str) -> None:
        """Every number has its least value."""
        with pytest.raises(ValueError, match="must be a number") as caught:
            function(**options)(_Mistaken.get)

        (name,) = options
        assert str(caught.value) == f"{name} must be a number of {text}"

    @pytest.mark.parametrize(
        ("option", "instead"),
        [
            ("handler", "@app.module and @app.method"),
            ("process_request", "@app.client and @app.http"),
            ("process_response", "@app.client and @app.http"),
            ("create_connection", "a subclass of Client"),
            ("origins", "App(origins=[...])"),
            ("max_queue", "App(max_in_flight=...)"),
            ("start_serving", "app.serve"),
        ],
    )
    def test_reserved_option(self, option: str, instead: str) -> None:
        """What wsappy itself needs is a TypeError that names the `App` option."""
        with pytest.raises(TypeError) as caught:
            App().serve(**{option: None})  # type: ignore[arg-type]

        assert str(caught.value) == (
            f"option {option!r} is wsappy's own; write {instead}"
        )


# -- Who comes in -------------------------------------------------------------


async def status_of(origin: str, host: str, origins: Any) -> int:
    """Shake hands with a new app, and return the status of its answer."""
    app = make_app(origins=origins)
    return (await shake_by_hand(app, Origin=origin, Host=host))[0]


class TestOriginOptions:
    """Host and port of an `Origin` are compared; its scheme has a default port."""

    @pytest.mark.parametrize(
        ("origin", "host", "origins"),
        [
            ("http://example.org", "example.org", None),
            ("HTTP://EXAMPLE.org", "Example.ORG:80", None),
            ("https://example.org", "example.org", None),
            ("https://example.org:443", "example.org", None),
            ("http://[::1]:8008", "[::1]:8008", None),
            ("http://localhost:5173", "x", ["localhost:5173"]),
            ("http://localhost", "x", ["https://localhost"]),
            ("https://localhost", "x", ["http://localhost/"]),
            ("chrome-extension://abc", "x", ["chrome-extension://abc"]),
            ("http://anything", "x", "*"),
            ("null", "x", ["null"]),
        ],
    )
    async def test_allowed(self, origin: str, host: str, origins: Any) -> None:
        """The same host and port may come in."""
        assert await status_of(origin, host, origins) == 101

    @pytest.mark.parametrize(
        ("origin", "host", "origins"),
        [
            ("http://example.org", "example.org:8008", None),
            ("https://example.org", "example.org:80", None),
            ("http://example.org.evil.net", "example.org", None),
            ("http://example.org:8008@evil.net", "example.org:8008", None),
            ("http://[bad", "[bad", None),
            ("http://example.org:x", "example.org:x", None),
            ("", "", None),
            ("null", "null", None),
            ("null", "x", "*"),
            ("null", "x", ["http://null"]),
            ("http://example.org", "example.org", []),
        ],
    )
    async def test_refused(self, origin: str, host: str, origins: Any) -> None:
        """Another host or port may not, nor what is no origin, nor `null` unlisted."""
        assert await status_of(origin, host, origins) == 403


class TestClientForms:
    """A route is a class, a function or an async generator function."""

    @pytest.mark.parametrize("is_async", [False, True])
    async def test_function(self, is_async: bool) -> None:
        """A function gets the client and the path parameters that it names."""
        app = App()

        def greet(client: Client, key: int) -> None:
            client.push("chat", "hello", id=key)

        async def greet_async(client: Client, key: int) -> None:
            greet(client, key)

        app.client("/rooms/{room}/{key:int}")(greet_async if is_async else greet)

        async with talking(app, "/rooms/a/7") as talk:
            push = await talk.receive()

        assert push == {
            "request_id": None,
            "module": "chat",
            "method": None,
            "event": "hello",
            "data": {"id": 7},
        }

    async def test_generator(self) -> None:
        """What follows the `yield` runs as `on_disconnected`, in the same task."""
        app, seen = App(), []

        @app.client("/{room}")
        async def visit(client: Client, room: str) -> AsyncIterator[None]:
            task = asyncio.current_task()
            yield
            seen.append((room, asyncio.current_task() is task))

        async with talking(app, "/a"):
            pass

        assert seen == [("a", True)]

    async def test_wrapped_generator(self) -> None:
        """A generator that is wrapped is one all the same; a lifespan as well."""
        app, seen = App(), []

        async def visit(who: Any) -> AsyncIterator[None]:
            seen.append("came")
            yield
            seen.append("went")

        app.lifespan(_routes_wrapped(visit))
        app.client("/api")(_routes_wrapped(visit))

        async with talking(app):
            pass

        assert seen == ["came", "came", "went", "went"]

    async def test_bound_method(self) -> None:
        """A method of an object is a function, too."""
        seen = []

        class Door:
            def enter(self, client: Client) -> None:
                seen.append(client.path)

        app = App()
        app.client("/api")(Door().enter)

        async with talking(app):
            pass

        assert seen == ["/api"]

    async def test_function_that_returns(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Returning anything but None lets nobody in."""
        app = App()

        @app.client("/api")
        def enter(client: Client) -> bool:
            return True

        with pytest.raises(websockets.InvalidStatus) as caught:
            async with talking(app):
                pass

        assert caught.value.response.status_code == 500
        assert caplog.records[0].exc_info is not None
        assert str(caplog.records[0].exc_info[1]) == (
            f"client function {describe(enter)} must return None: got True; raise "
            f"Refused(403) to refuse"
        )


# -- Serving ------------------------------------------------------------------


BOTH_HOSTS: Any = ["127.0.0.1", "::1"]


def lack_addresses(monkeypatch: pytest.MonkeyPatch, *lacking: str) -> None:
    """Make the machine lack addresses of `localhost`, which has two."""
    bind = socket.socket.bind

    def bind_or_fail(self: socket.socket, address: Any) -> None:
        if address[0] in lacking:
            raise OSError(errno.EADDRNOTAVAIL, "not there")
        bind(self, address)

    def both(host: Any, port: Any, *_: Any, **__: Any) -> Any:
        hosts = ["::1", "127.0.0.1"] if host == "localhost" else [host]
        families = {"::1": socket.AF_INET6}
        kind = socket.SOCK_STREAM
        return [
            (families.get(each, socket.AF_INET), kind, 0, "", (each, port))
            for each in hosts
        ]

    monkeypatch.setattr(socket.socket, "bind", bind_or_fail)
    monkeypatch.setattr(socket, "getaddrinfo", both)


class Stdout(io.TextIOWrapper):
    """Standard output of some encoding, or whose reader is gone."""

    def __init__(self, encoding: str, *, is_broken: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")
        self.is_broken = is_broken

    def flush(self) -> None:
        """Write what waits."""
        if self.is_broken:
            raise BrokenPipeError
        super().flush()


def take_ports(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """Make the first *count* ports that are tried at `::1` taken; list all tries."""
    tried: list[int] = []
    bind = socket.socket.bind

    def bind_or_fail(self: socket.socket, address: Any) -> None:
        if address[0] == "::1" and address[1]:
            tried.append(address[1])
            if len(tried) <= count:
                raise OSError(errno.EADDRINUSE, "taken")
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", bind_or_fail)
    return tried


class TestServe:
    """`App.serve` opens the port inside a running loop."""

    async def test_url(self) -> None:
        """The URL has the literal address and the port that is open."""
        async with make_app().serve("127.0.0.1", 0) as serving:
            url = serving.url("/api")

            assert url == f"ws://127.0.0.1:{serving.port}/api"

    async def test_entered_twice(self) -> None:
        """What `serve` returns is entered once."""
        serving = make_app().serve("127.0.0.1", 0)
        async with serving:
            pass

        with pytest.raises(RuntimeError) as caught:
            await serving.__aenter__()

        text = "serving must be entered once; write app.serve() again"
        assert str(caught.value) == text

    @pytest.mark.parametrize("value", [None, "mine"])
    async def test_server_header(self, value: str | None) -> None:
        """`server_header` is the header of every response; None leaves it out."""
        async with (
            make_app().serve("127.0.0.1", 0, server_header=value) as serving,
            dialled(serving, request_by_hand("/nowhere")) as wire,
        ):
            status, headers = await wire.head()

        assert (status, headers.get("Server")) == (404, value)

    async def test_all_addresses_have_one_port(self) -> None:
        """With port 0 all of a host's addresses get the same port."""
        async with make_app().serve(BOTH_HOSTS, 0) as serving:
            answers = []
            for host in ("127.0.0.1", "::1"):
                async with ws_connect(serving.url("/api", host), proxy=None) as ws:
                    answers.append(await Talk(ws).call("$.ping"))

        assert list(map(result_of, answers)) == [{}, {}]

    async def test_port_that_is_taken_at_another_address(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A port that isn't free everywhere is tried again."""
        tried = take_ports(monkeypatch, 1)

        async with make_app().serve(BOTH_HOSTS, 0) as serving:
            port = serving.port

        assert tried == [tried[0], port]

    async def test_no_port_at_all_addresses(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After the last try for a port that is free everywhere there is an error."""
        tried = take_ports(monkeypatch, 10 * wsappy.PORT_ATTEMPTS)

        with pytest.raises(OSError, match="cannot listen") as caught:
            await start_up(make_app(), BOTH_HOSTS)

        assert (len(tried), caught.value.errno) == (
            wsappy.PORT_ATTEMPTS,
            errno.EADDRINUSE,
        )

    @pytest.mark.parametrize("is_random", [True, False])
    async def test_address_that_the_machine_lacks(
        self, monkeypatch: pytest.MonkeyPatch, is_random: bool
    ) -> None:
        """Of a host's addresses those are opened that the machine has."""
        lack_addresses(monkeypatch, "::1")
        port = 0 if is_random else (await wsappy.find_free("127.0.0.1", 0))[1]

        async with make_app().serve("localhost", port) as serving:
            server: Any = serving.server
            hosts = [each.getsockname()[0] for each in server.sockets]

        assert hosts == ["127.0.0.1"]

    async def test_no_address_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host none of whose addresses the machine has is an error."""
        lack_addresses(monkeypatch, "::1", "127.0.0.1")

        with pytest.raises(OSError, match="cannot listen") as caught:
            await start_up(make_app(), "localhost", 8008)

        reason = os.strerror(errno.EADDRNOTAVAIL)
        assert caught.value.strerror == f"cannot listen on localhost:8008: {reason}"

    @pytest.mark.parametrize(
        ("stdout", "printed"),
        [
            (Stdout(encoding="ascii"), b"ws://127.0.0.1:%d/r\\xe4ume\n"),
            (Stdout(encoding="cp1252"), b"ws://127.0.0.1:%d/r\xe4ume\n"),
            (Stdout(encoding="utf-8", is_broken=True), b""),
            (None, b""),
        ],
        ids=["ascii", "cp1252", "broken pipe", "none"],
    )
    async def test_printed_line(
        self, monkeypatch: pytest.MonkeyPatch, stdout: Any, printed: bytes
    ) -> None:
        """The line that `run` prints can't keep the server from starting."""
        app = App()
        clients_of(app, "/r\u00e4ume")
        serving = app.serve("127.0.0.1", 0)
        monkeypatch.setattr(sys, "stdout", stdout)
        running = asyncio.create_task(wsappy.serve_until_cancelled(serving))
        await wire_until(lambda: serving.server is not None)
        async with dialled(serving, wire_request("/r%C3%A4ume")) as wire:
            status, _ = await wire.head()
        port = serving.port
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

        written = b"" if stdout is None else stdout.buffer.getvalue()
        assert (status, written) == (101, printed % port if printed else b"")

    async def test_port_in_use(self) -> None:
        """A port in use is an OSError in words."""
        app = make_app()
        async with app.serve("127.0.0.1", 0) as other:
            port = other.port
            with pytest.raises(OSError, match="cannot listen") as caught:
                await start_up(app, "127.0.0.1", port)

        assert caught.value.strerror == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use"
        )

    async def test_ipv6(self) -> None:
        """An IPv6 address stands in brackets."""
        async with make_app().serve("::1", 0) as serving:
            assert serving.url() == f"ws://[::1]:{serving.port}/"

    async def test_unix(self, tmp_path: pathlib.Path) -> None:
        """A Unix socket takes the place of host and port; clients have no address."""
        app, path, remotes = make_app(), str(tmp_path / "socket"), []

        @app.client("/unix")
        def enter(client: Client) -> None:
            remotes.append(client.remote)

        async with app.serve(unix=path) as serving:
            async with unix_connect(path, "ws://localhost/unix"):
                pass
            where = (serving.port, serving.url("/unix"))

        assert (where, remotes) == ((0, f"ws+unix://{path}:/unix"), [None])

    async def test_socket(self) -> None:
        """A socket that is open already can be handed in."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
            async with make_app().serve(sock=sock) as serving:
                assert serving.url("/api") == f"ws://127.0.0.1:{port}/api"

    async def test_tls(self, tmp_path: pathlib.Path) -> None:
        """`ssl` goes to the library, and the URL says so."""
        files = [tmp_path / "key.pem", tmp_path / "cert.pem"]
        make_certificate(*files)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[1], files[0])
        trust = ssl.create_default_context(cafile=files[1])

        async with make_app().serve("127.0.0.1", 0, ssl=context) as serving:
            url = serving.url("/api")
            async with ws_connect(url, ssl=trust, proxy=None) as ws:
                answer = await Talk(ws).call("a.b")

        assert (url[:6], answer["event"]) == ("wss://", "error")

    async def test_tls_that_is_late(self, tmp_path: pathlib.Path) -> None:
        """A handshake of TLS that ends after the stop has ended meets a closed door."""
        files = [tmp_path / "key.pem", tmp_path / "cert.pem"]
        make_certificate(*files)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[1], files[0])
        trust = ssl.create_default_context(cafile=files[1])
        begun, go_on = threading.Event(), threading.Event()

        def visit(port: int) -> bytes:
            with socket.create_connection(("localhost", port)) as sock:
                begun.set()
                go_on.wait(LIMIT)
                sock.settimeout(LIMIT)
                with trust.wrap_socket(sock, server_hostname="localhost") as secure:
                    return secure.recv(1)

        async with make_app().serve("127.0.0.1", 0, ssl=context) as serving:
            visiting = asyncio.create_task(asyncio.to_thread(visit, serving.port))
            await asyncio.to_thread(begun.wait, LIMIT)
            await turns()
        go_on.set()
        async with asyncio.timeout(LIMIT):
            (outcome,) = await asyncio.gather(visiting, return_exceptions=True)

        assert outcome == b"" or isinstance(outcome, OSError)

    async def test_before_it_is_entered(self) -> None:
        """The port is known once serving has been entered."""
        serving = make_app().serve("localhost", 0)

        with pytest.raises(RuntimeError) as caught:
            serving.url("/api")

        assert str(caught.value) == ("serving must be entered; write async with")

    async def test_too_many_clients(self) -> None:
        """One client more than `max_clients` gets HTTP 503."""
        app = make_app(max_clients=1)

        async with talking_server(app) as (server, _):
            with pytest.raises(websockets.InvalidStatus) as caught:
                await ws_connect(server.url("/api"), proxy=None)

        assert caught.value.response.status_code == 503
        assert caught.value.response.body == b"too many clients"

    async def test_page_at_a_bad_path(self) -> None:
        """A path that isn't UTF-8 has no page."""
        app = make_app()
        app.http("/")(lambda request: "home")

        answer = await ask_by_hand(app, "/%ff")

        assert answer == (404, "not found")

    async def test_lifespan(self) -> None:
        """The lifespan begins before the port opens and ends after it closes."""
        app, seen = make_app(), list[bool]()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]

        def is_listening() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", port)) == 0

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            seen.append(is_listening())
            yield
            seen.append(is_listening())

        async with (
            app.serve("127.0.0.1", port) as serving,
            ws_connect(serving.url("/api"), proxy=None),
        ):
            pass

        assert seen == [False, False]


def make_certificate(key: pathlib.Path, certificate: pathlib.Path) -> None:
    """Write a self-signed certificate of 127.0.0.1."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    extra = ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *extra, *files], check=True, capture_output=True)  # noqa: S603


# -- Stopping -----------------------------------------------------------------


class _Steps:
    """An app whose handlers say that they began, and go on when they are told to."""

    def __init__(self, **options: Any) -> None:
        self.app = make_app(**options)
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.seen: list[str] = []
        module = self.app.module("a")
        module.method(self.wait)
        module.method(self.stream)
        module.method(self.swallow)
        module.method(thread=True)(self.block)
        self.thread_ends = threading.Event()
        self.loop = asyncio.get_running_loop()

    async def wait(self, request: Request) -> str:
        self.began.set()
        await self.go_on.wait()
        return "done"

    async def stream(self, request: Request) -> AsyncIterator[int]:
        self.began.set()
        yield 1
        await self.go_on.wait()

    async def swallow(self, request: Request) -> None:
        self.began.set()
        while not self.go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.go_on.wait()

    def block(self, request: Request) -> None:
        self.loop.call_soon_threadsafe(self.began.set)
        self.thread_ends.wait(LIMIT)


class Stoppable:
    """A server on a free port that a test may stop before its clients go."""

    def __init__(self, app: App) -> None:
        self.serving = app.serve("127.0.0.1", 0)
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.stack.enter_async_context(self.serving)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop the server; a no-op once that was done."""
        await self.stack.aclose()

    async def begin_stop(self) -> asyncio.Task[None]:
        """Begin the end; it waits for the calls that are under way."""
        task = asyncio.create_task(self.stop())
        while not self.serving.is_stopping:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return task

    @property
    def port(self) -> int:
        """The port that is open."""
        return self.serving.port

    def url(self, path: str = "/api") -> str:
        """Return the URL of a path."""
        return self.serving.url(path)


STOPPED = ("overloaded", "the server is stopping")


class TestStop:
    """A server ends in order: calls, clients, sockets, lifespan."""

    async def test_new_handshakes(self) -> None:
        """New handshakes get 503 while calls have their grace."""
        steps = _Steps()
        async with talking_server(steps.app) as (server, talk):
            await talk.send({"module": "a", "method": "wait", "request_id": 1})
            await steps.began.wait()
            stop = await server.begin_stop()

            with pytest.raises(websockets.InvalidStatus) as caught:
                await ws_connect(server.url("/api"), proxy=None)

            steps.go_on.set()
            await stop
        assert caught.value.response.status_code == 503
        assert caught.value.response.body == b"the server is stopping"

    async def test_pages(self) -> None:
        """Pages are still answered while calls have their grace."""
        steps = _Steps()
        steps.app.http("/health")(lambda request: "stopping")
        async with talking_server(steps.app) as (server, talk):
            await talk.send({"module": "a", "method": "wait", "request_id": 1})
            await steps.began.wait()
            stop = await server.begin_stop()

            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await reader.read()

            writer.close()
            steps.go_on.set()
            await stop
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"stopping")  # noqa: PT018

    async def test_new_calls(self) -> None:
        """New calls are `overloaded`, to be tried again."""
        steps = _Steps()
        async with talking_server(steps.app) as (server, talk):
            await talk.send({"module": "a", "method": "wait", "request_id": 1})
            await steps.began.wait()
            stop = await server.begin_stop()

            answer = await talk.call("a.wait", 2)

            steps.go_on.set()
            await stop
        assert answer["data"] == {
            "code": "overloaded",
            "message": "the server is stopping",
            "retry": True,
        }

    async def test_unfinished_calls(self) -> None:
        """A call that ends within the grace has its result, before 1001."""
        steps = _Steps()
        async with talking_server(steps.app) as (server, talk):
            await talk.send({"module": "a", "method": "wait", "request_id": 1})
            await steps.began.wait()
            stop = await server.begin_stop()

            steps.go_on.set()
            answer = await talk.receive()

            await stop
            closed = await talk.closed()
        assert result_of(answer) == "done"
        assert closed == (1001, "the server is stopping")

    async def test_call_during_on_connected(self) -> None:
        """A call that is held while `on_connected` runs has its grace, too."""
        steps = _Steps()

        @steps.app.client("/slow")
        class Slow(Client):
            async def on_connected(self) -> None:
                steps.began.set()
                await steps.go_on.wait()

        async with talking_server(steps.app, "/slow") as (server, talk):
            await talk.send({"module": "a", "method": "wait", "request_id": 1})
            await talk.send("x")
            await talk.receive()
            stop = await server.begin_stop()

            steps.go_on.set()
            answer = await talk.receive()

            await stop
        assert result_of(answer) == "done"

    async def test_streams(self) -> None:
        """Streams end at once with `overloaded`."""
        steps = _Steps()
        async with talking_server(steps.app) as (server, talk):
            await talk.call("a.stream")
            stop = await server.begin_stop()

            answer = await talk.receive()

            await stop
        assert error_of(answer) == STOPPED

    async def test_after_the_grace(self) -> None:
        """What is left after the grace is cancelled and ends with `overloaded`."""
        steps = _Steps(grace=0)
        async with talking_server(steps.app) as (server, talk):
            await talk.send({"module": "a", "method": "wait", "request_id": 1})
            await steps.began.wait()

            await server.stop()

            assert error_of(await talk.receive()) == STOPPED

    async def test_own_response_after_the_grace(self) -> None:
        """A `send_message` of the application's own sends that last answer, too."""
        steps = _Steps(grace=0)

        @steps.app.client("/own")
        class Own(Client):
            async def send_message(self, *head: Any, **data: Any) -> None:
                await asyncio.sleep(0)
                await super().send_message(*head, **data, own=True)

        async with talking_server(steps.app, "/own") as (server, talk):
            await talk.send({"module": "a", "method": "wait", "request_id": 1})
            await steps.began.wait()

            await server.stop()

            assert (await talk.receive())["data"]["own"] is True

    async def test_on_disconnected(self) -> None:
        """Each client's `on_disconnected` runs, before the lifespan ends."""
        steps = _Steps()

        @steps.app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            yield
            steps.seen.append("lifespan")

        @steps.app.client("/bye")
        class Bye(Client):
            async def on_disconnected(self) -> None:
                await asyncio.sleep(0)
                steps.seen.append("client")

        async with talking_server(steps.app, "/bye") as (server, _):
            await server.stop()

        assert steps.seen == ["client", "lifespan"]

    async def test_cancelled_stop(self) -> None:
        """A stop whose grace is cancelled still closes every client."""
        steps = _Steps()
        async with talking_server(steps.app) as (server, talk):
            await talk.send({"module": "a", "method": "wait", "request_id": 1})
            await steps.began.wait()
            stop = await server.begin_stop()

            stop.cancel()

            assert error_of(await talk.receive()) == STOPPED
            assert await talk.closed() == (1001, "the server is stopping")
            with pytest.raises(asyncio.CancelledError):
                await stop


class TestHostileStop:
    """Nobody can hold a stop for longer than the grace and 4 s."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Shorten every limit of the end."""
        for name in ("CLOSE_GRACE", "CANCEL_GRACE", "GOODBYE_GRACE", "LAST_GRACE"):
            monkeypatch.setattr(wsappy, name, 0.05)

    @staticmethod
    def received(sock: socket.socket) -> bytes:
        """Return what a socket received until its end, which may be a reset."""
        with sock, contextlib.suppress(ConnectionResetError):
            sock.settimeout(LIMIT)
            return sock.recv(1024)
        return b""

    @staticmethod
    def hanging() -> tuple[App, Told, list[Client]]:
        """Make an app whose handshakes hang, and tell; list its clients."""
        app, told = App(), Told()
        clients: list[Client] = []

        @app.client("/api")
        async def enter(client: Client) -> None:
            clients.append(client)
            told("began")
            try:
                await asyncio.Event().wait()
            finally:
                told("cancelled")

        return app, told, clients

    async def test_handler_that_swallows_its_cancellation(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handler that can't be stopped is answered, named and left behind."""
        steps = _Steps(grace=0)
        async with talking_server(steps.app) as (server, talk):
            await talk.send({"module": "a", "method": "swallow", "request_id": 1})
            await steps.began.wait()

            await server.stop()

            answer = await talk.receive()
        steps.go_on.set()
        assert error_of(answer) == STOPPED
        assert caplog.messages == [
            "handler 'a.swallow' did not end when it was cancelled; it is left behind"
        ]

    async def test_thread_that_does_not_return(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A thread can't be stopped: it is named and left behind."""
        steps = _Steps(grace=0)
        async with talking_server(steps.app) as (server, talk):
            await talk.send({"module": "a", "method": "block", "request_id": 1})
            await steps.began.wait()

            await server.stop()

            answer = await talk.receive()
        steps.thread_ends.set()
        assert error_of(answer) == STOPPED
        assert caplog.messages == [
            "handler 'a.block' did not end when it was cancelled; it is left behind"
        ]

    async def test_hook_that_swallows_its_cancellation(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A hook that can't be stopped is named by its path, less the query."""
        steps = _Steps(grace=0)

        @steps.app.client("/bye")
        class Bye(Client):
            async def on_disconnected(self) -> None:
                await steps.swallow(None)  # type: ignore[arg-type]

        async with talking_server(steps.app, "/bye?token=secret") as (server, _):
            await server.stop()

        steps.go_on.set()
        await turns()
        assert caplog.messages == [
            "a hook of a client at '/bye' did not end in time; it is left behind"
        ]

    async def test_half_open_handshake(self) -> None:
        """A peer that sends half a request is aborted."""
        async with Stoppable(make_app()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /api HTT")
            # Its answer shows that the connection before it was accepted.
            await (await connect_to(server)).close()

            await server.stop()

            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    async def test_on_connecting_that_hangs(self) -> None:
        """A handshake under way is cancelled."""
        app, told, _ = self.hanging()
        async with Stoppable(app) as server:
            visit = asyncio.create_task(connect_to(server))
            await told.until("began")

            await server.stop()

            with pytest.raises((OSError, websockets.InvalidMessage)):
                await visit
        assert told.steps == ["began", "cancelled"]

    async def test_on_connecting_of_a_peer_that_is_gone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the connection was lost, its handshake is cancelled without delay."""
        monkeypatch.setattr(wsappy, "CLOSE_GRACE", 10 * LIMIT)
        app, told, clients = self.hanging()
        async with Stoppable(app) as server:
            visit = asyncio.create_task(connect_to(server))
            await told.until("began")
            visit.cancel()
            await wire_until(clients[0].connection.transport.is_closing)
            await turns()

            async with asyncio.timeout(LIMIT):
                await server.stop()

        assert told.steps == ["began", "cancelled"]

    async def test_connection_that_comes_late(self) -> None:
        """A connection that comes in during the end is aborted with the sockets."""
        app, sockets = App(), list[socket.socket]()
        is_over = asyncio.Event()

        @app.client("/api")
        class Late(Client):
            async def on_disconnected(self) -> None:
                while not is_over.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await is_over.wait()
                        return
                    sockets.append(socket.create_connection(address))

        async with talking_server(app) as (server, _):
            address = ("127.0.0.1", server.port)

            await server.stop()

        is_over.set()
        await turns()
        assert {self.received(sock) for sock in sockets} == {b""}

    async def test_peer_that_does_not_read(self) -> None:
        """A peer that never answers the close is aborted."""
        async with Stoppable(make_app()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"GET /api HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")

            await server.stop()

            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b"\x88\x18\x03\xe9the server is stopping"
            writer.close()


async def connect_to(server: Stoppable) -> ClientConnection:
    """Connect to a server in a task of its own."""
    return await ws_connect(server.url("/api"), proxy=None)


@contextlib.asynccontextmanager
async def talking_server(
    app: App, path: str = "/api"
) -> AsyncIterator[tuple[Stoppable, Talk]]:
    """Serve an app and connect to it; give both."""
    async with (
        Stoppable(app) as server,
        ws_connect(server.url(path), proxy=None) as ws,
    ):
        yield server, Talk(ws)


class TestStopOfTestClients:
    """The last test client stops the server, without grace."""

    async def test_unfinished_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A call that is unfinished doesn't delay the end of the last test client."""
        monkeypatch.setattr(wsappy, "CANCEL_GRACE", 0.05)
        steps = _Steps(grace=100 * LIMIT)

        async with asyncio.timeout(LIMIT):
            async with steps.app.test_client("/api") as api:
                call = asyncio.create_task(api.call("a", "block"))
                await steps.began.wait()
            unfinished = steps.app.stats()["unfinished"]

        steps.thread_ends.set()
        with pytest.raises(ConnectionClosed):
            await call
        assert unfinished == 0


class Scope:
    """A block that must be left in the task that entered it."""

    def __enter__(self) -> Self:
        self.task = asyncio.current_task()
        self.token = VALUE.set("scope")
        return self

    def __exit__(self, *_: object) -> None:
        assert asyncio.current_task() is self.task
        # It raises ValueError in another context.
        VALUE.reset(self.token)


class TestLifespan:
    """The lifespan of an app, entered and left in one task of its own."""

    @staticmethod
    def app(tasks: list[Any]) -> App:
        """Make an app whose lifespan keeps its task, and spans blocks of all kinds."""
        app = make_app()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
                with Scope():
                    tasks.append(asyncio.current_task())
                    work = group.create_task(asyncio.sleep(LIMIT))
                    yield
                    tasks.append(asyncio.current_task())
                    work.cancel()

        return app

    async def test_served(self) -> None:
        """Blocks may span the yield: it is one task, and not that of who serves."""
        tasks: list[Any] = []

        async with self.app(tasks).serve("127.0.0.1", 0):
            assert len(tasks) == 1

        assert tasks[0] is tasks[1]
        assert tasks[0] is not asyncio.current_task()

    async def test_served_in_two_tasks(self) -> None:
        """Who leaves the serving may be another task than who entered it."""
        tasks: list[Any] = []
        serving = self.app(tasks).serve("127.0.0.1", 0)

        await asyncio.create_task(serving.__aenter__())
        await asyncio.create_task(serving.__aexit__())

        assert len(set(tasks)) == 1

    async def test_test_clients_in_several_tasks(self) -> None:
        """The last test client may go in another task than the first one came in."""
        tasks: list[Any] = []
        app = self.app(tasks)
        came, is_first_gone = asyncio.Event(), asyncio.Event()

        async def first() -> Any:
            async with app.test_client("/api"):
                await came.wait()
            is_first_gone.set()
            return asyncio.current_task()

        async def last() -> Any:
            async with app.test_client("/api"):
                came.set()
                await is_first_gone.wait()
                assert len(tasks) == 1
            return asyncio.current_task()

        others = await asyncio.gather(first(), last())

        assert len(tasks) == 2
        assert tasks[0] is tasks[1]
        assert tasks[0] not in others

    def test_time_to_end(self) -> None:
        """What follows the yield has 10 s."""
        assert wsappy.LIFESPAN_GRACE == 10.0

    async def test_end_that_swallows_its_cancellation(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An end that can't be cancelled is named and left, and the stop ends."""
        monkeypatch.setattr(wsappy, "LIFESPAN_GRACE", 0.01)
        app, told, is_free = make_app(), Told(), asyncio.Event()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            yield
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told("cancelled")
            await is_free.wait()
            told("ended")

        async with asyncio.timeout(LIMIT), app.serve("127.0.0.1", 0):
            pass
        steps = list(told.steps)
        is_free.set()
        await told.until("ended")

        assert steps == ["cancelled"]
        assert [(each.levelname, each.message) for each in caplog.records] == [
            (
                "WARNING",
                f"lifespan {describe(life)} did not end in time; it is left behind",
            )
        ]

    async def test_end_that_is_cut(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An end that takes too long is cancelled and named, and the stop ends."""
        monkeypatch.setattr(wsappy, "LIFESPAN_GRACE", 0.01)
        app, told = make_app(), Told()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            yield
            try:
                await asyncio.Event().wait()
            finally:
                told("cut")

        async with asyncio.timeout(LIMIT), app.serve("127.0.0.1", 0):
            pass

        assert told.steps == ["cut"]
        assert [each.levelname for each in caplog.records] == ["WARNING"]
        assert caplog.messages[0].startswith(f"lifespan {describe(life)} ")

    @pytest.mark.parametrize("name", RAISED)
    async def test_exception_before_the_yield(self, name: str) -> None:
        """Entering raises it: no port is open, and the app can be served again."""
        app, ports = make_app(), list[Any]()
        failures = [RAISED[name]()]

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            if failures:
                raise failures.pop()
            yield

        with pytest.raises(raised_by(name)):
            async with app.serve("127.0.0.1", 0) as serving:
                ports.append(serving.port)
        async with talking(app) as talk:
            answer = await talk.call("$.ping")

        assert (ports, result_of(answer)) == ([], {})

    @pytest.mark.parametrize("name", RAISED)
    async def test_exception_after_the_yield(self, name: str) -> None:
        """It is raised by leaving, and the app can be served again."""
        app, failures = make_app(), [RAISED[name]()]

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            yield
            if failures:
                raise failures.pop()

        serving = app.serve("127.0.0.1", 0)
        await serving.__aenter__()
        with pytest.raises(raised_by(name)):
            await serving.__aexit__()
        async with talking(app) as talk:
            answer = await talk.call("$.ping")

        assert result_of(answer) == {}

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_exception_with_test_clients(self, when: str) -> None:
        """A test client raises it, too, and the next one is served again."""
        app, failures = make_app(), [Own(when)]

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            if when == "before" and failures:
                raise failures.pop()
            yield
            if failures:
                raise failures.pop()

        with pytest.raises(Own, match=when):
            async with app.test_client("/api"):
                pass
        async with app.test_client("/api") as api:
            assert await api.call("$", "ping") == {}

    @pytest.mark.parametrize("count", [0, 2])
    async def test_number_of_yields(self, count: int) -> None:
        """One that doesn't yield can't be entered, and of two yields none is left."""
        app, is_entered = make_app(), []

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            for _ in range(count):
                yield

        with pytest.raises(RuntimeError):
            async with app.serve("127.0.0.1", 0):
                is_entered.append(True)

        assert is_entered == [True] * (count > 0)

    async def test_port_that_is_taken(self) -> None:
        """Where the port can't be opened the lifespan ends all the same."""
        app, told = make_app(), Told()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            told("begun")
            yield
            told("ended")

        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(OSError, match="cannot listen"),
        ):
            await start_up(app, port=taken.getsockname()[1])

        assert told.steps == ["begun", "ended"]

    async def test_start_of_a_test_client_that_is_cancelled(self) -> None:
        """A test client that is cancelled while the app starts holds no other up."""
        app, told, may_start = make_app(), Told(), asyncio.Event()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            told("begun")
            await may_start.wait()
            yield
            told("ended")

        async def visit() -> Any:
            async with app.test_client("/api") as api:
                return await api.call("$", "ping")

        first, second = (asyncio.create_task(visit()) for _ in range(2))
        await told.until("begun")
        first.cancel()
        await asyncio.wait([first])
        may_start.set()

        assert await second == {}
        assert told.steps == ["begun", "begun", "ended"]

    async def test_start_that_is_cancelled(self) -> None:
        """Who enters the serving may be cancelled; the start ends in its own task."""
        app, told = make_app(), Told()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            with Scope():
                told("begun")
                try:
                    await asyncio.Event().wait()
                    yield
                finally:
                    await asyncio.sleep(0)
                    told("ended")

        task = asyncio.create_task(start_up(app))
        await told.until("begun")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert told.steps == ["begun", "ended"]


def raised_by(name: str) -> type[BaseException]:
    """Return what becomes of an exception in an asynchronous generator (PEP 525)."""
    kind = type(RAISED[name]())
    is_stop = issubclass(kind, StopIteration | StopAsyncIteration)
    return RuntimeError if is_stop else kind


# -- Loops --------------------------------------------------------------------


class TestLoops:
    """An app isn't bound to a loop: it may be served in one after the other."""

    @staticmethod
    def app() -> App:
        """Make an app, outside of any loop, whose clients are in the group `all`."""
        app = App()

        @app.client("/api")
        def api(client: Client) -> None:
            client.join("all")

        @app.module("m")
        @app.method(thread=True)
        def thread(request: Request, value: int) -> int:
            request.response("note")
            return value

        @app.module("m")
        @app.method
        async def count(request: Request) -> int:
            return len(app.to("all").members)

        return app

    @staticmethod
    def run(work: Any) -> Any:
        """Run in a loop of its own, for a while at most."""

        async def limited() -> Any:
            async with asyncio.timeout(LIMIT):
                return await work

        return asyncio.run(limited())

    def test_test_clients_that_come_at_once(self) -> None:
        """Test clients that come and go at once find one server in each loop."""
        app = self.app()

        async def visit(at: int, come: asyncio.Barrier) -> Any:
            async with app.test_client("/api") as api:
                value = await api.call("m", "thread", value=at)
                await come.wait()
                count = await api.call("m", "count")
                await come.wait()
            return value, count

        async def visits() -> Any:
            come = asyncio.Barrier(5)
            return await asyncio.gather(*[visit(each, come) for each in range(5)])

        answers = [self.run(visits()) for _ in range(3)]

        assert answers == [[(each, 5) for each in range(5)]] * 3
        assert app.stats()["clients"] == 0

    def test_pushes(self) -> None:
        """A push to a group reaches its members in the loop that runs."""
        app = self.app()

        async def visit(text: str) -> Any:
            async with app.test_client("/api") as api:
                app.to("all").push("chat", "here", text=text)
                await asyncio.to_thread(app.to("all").push, "chat", "thread", text=text)
                pushes = [
                    await api.push_received("chat", each) for each in ("here", "thread")
                ]
                await api.nothing_received()
            return [each.data for each in pushes]

        answers = []
        for text in "ab":
            answers.append(self.run(visit(text)))
            # Nobody is there, and no loop.
            app.to("all").push("chat", "lost")

        assert answers == [[{"text": text}] * 2 for text in "ab"]

    def test_stats(self) -> None:
        """Counters go on in the next loop, gauges begin anew."""
        app = self.app()

        async def visit() -> Any:
            async with app.test_client("/api") as api:
                await api.call("m", "count")
                return app.stats()

        stats = [self.run(visit()) for _ in range(2)]

        assert [each["calls"] for each in stats] == [1, 2]
        assert [each["clients"] for each in stats] == [1, 1]
        assert app.stats()["closed"] == {"1000": 2}

    def test_serve(self) -> None:
        """`serve` works in a second `asyncio.run`, with everything."""
        app = self.app()

        async def visit() -> Any:
            async with talking(app) as talk:
                app.to("all").push("chat", "hello")
                push = await talk.receive()
                note = await talk.call("m.thread", 1, value=5)
                return push["event"], note["event"], result_of(await talk.receive())

        answers = [self.run(visit()) for _ in range(2)]

        assert answers == [("hello", "note", 5)] * 2

    def test_loop_that_was_left_in_a_hurry(self) -> None:
        """A loop that ended by an exception leaves nothing behind for the next one."""
        app = self.app()

        async def hurry() -> None:
            async with app.test_client("/api") as api:
                await api.call("m", "count")
                raise Own

        async def visit() -> Any:
            async with app.test_client("/api") as api:
                return await api.call("m", "count")

        with pytest.raises(Own):
            self.run(hurry())

        assert self.run(visit()) == 1

    def test_loop_that_stands_still(self) -> None:
        """A loop that stands still while the app is served holds no other one up."""
        app = self.app()
        loop = asyncio.new_event_loop()

        async def enter() -> Any:
            return await app.serve("127.0.0.1", 0).__aenter__()

        async def visit() -> Any:
            async with talking(app) as talk:
                app.to("all").push("chat", "hello")
                return (await talk.receive())["event"]

        serving = loop.run_until_complete(enter())
        answers = [self.run(visit()) for _ in range(2)]
        loop.run_until_complete(serving.__aexit__())
        loop.close()

        assert answers == ["hello", "hello"]

    async def test_two_apps_at_once(self) -> None:
        """Two apps in one loop have nothing in common."""
        apps = [self.app(), self.app()]

        async with (
            apps[0].test_client("/api") as one,
            apps[1].test_client("/api") as two,
            apps[1].test_client("/api") as three,
        ):
            apps[0].to("all").push("chat", "hello")
            await one.push_received("chat", "hello")
            await two.nothing_received()
            counts = [await each.call("m", "count") for each in (one, two, three)]
            clients = [each.stats()["clients"] for each in apps]

        assert (counts, clients) == ([1, 2, 2], [1, 2])

    async def test_one_app_served_twice(self) -> None:
        """An app may be served at two ports at once: a group is one."""
        app = self.app()

        async with talking(app) as one:
            async with talking(app) as two:
                counts = [result_of(await each.call("m.count")) for each in (one, two)]
            app.to("all").push("chat", "hello")
            push = await one.receive()

        assert (counts, push["event"]) == ([2, 2], "hello")


class TestEnteringTwice:
    """What `App.serve` returns is entered once."""

    @pytest.mark.parametrize("is_over", [False, True])
    async def test_second_time(self, is_over: bool) -> None:
        """Entering it again is a RuntimeError, also after it has ended."""
        serving = make_app().serve("127.0.0.1", 0)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(serving)
            if is_over:
                await stack.aclose()

            with pytest.raises(RuntimeError) as caught:
                await serving.__aenter__()

        assert str(caught.value) == (
            "serving must be entered once; write app.serve() again"
        )

    async def test_first_one_goes_on(self) -> None:
        """The serving that was entered first isn't harmed by it."""
        serving = make_app().serve("127.0.0.1", 0)

        async with serving:
            with pytest.raises(RuntimeError):
                await serving.__aenter__()
            async with ws_connect(serving.url("/api"), proxy=None) as ws:
                answer = await Talk(ws).call("$.ping")

        assert result_of(answer) == {}


# -- Running ------------------------------------------------------------------


def run_with(app: App, visit: Callable[[str], Awaitable[None]], **options: Any) -> None:
    """Run an app until SIGTERM, which comes when *visit* to the URL has returned."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    async def visit_and_stop() -> None:
        try:
            async with asyncio.timeout(LIMIT):
                await visit(f"ws://127.0.0.1:{port}")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    @app.lifespan
    async def life(app: App) -> AsyncIterator[None]:
        task = asyncio.create_task(visit_and_stop())
        yield
        await task

    app.run("127.0.0.1", port, **options)


async def connect_soon(url: str) -> ClientConnection:
    """Connect as soon as the server listens."""
    while True:
        with contextlib.suppress(OSError):
            return await ws_connect(url, proxy=None)
        await asyncio.sleep(0)


class TestRun:
    """`App.run` serves until a signal, in a loop of its own."""

    @pytest.mark.parametrize("kind", ["plain", "task"])
    def test_exit_in_a_handler(
        self, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """SystemExit stops it in order: unfinished calls have their grace."""
        app = make_app(grace=0.1)
        seen: list[str] = []
        module = app.module("m")

        @module.method
        def plain(request: Request) -> None:
            raise SystemExit(7)

        @module.method
        async def task(request: Request) -> None:
            raise SystemExit(7)

        module.method(asleep)

        async def visit(url: str) -> None:
            talk = Talk(await connect_soon(f"{url}/api"))
            message = {"module": "m", "data": {}}
            await talk.send({**message, "method": "asleep", "request_id": "asleep"})
            assert result_of(await talk.call("$.ping")) == {}
            await talk.send({**message, "method": kind, "request_id": kind})
            for _ in range(2):
                answer = await talk.receive()
                seen.append(f"{answer['request_id']} {answer['data']['message']}")
            await talk.closed()

        with pytest.raises(SystemExit) as caught:
            run_with(app, visit)

        assert caught.value.code == 7
        assert seen == [f"{kind} internal error", "asleep the server is stopping"]
        assert "unfinished calls: " in caplog.text

    def test_loop_factory(self) -> None:
        """`loop_factory` makes the loop."""
        loops: list[Any] = []
        made: list[Any] = []

        def make() -> asyncio.AbstractEventLoop:
            made.append(asyncio.new_event_loop())
            return made[0]  # type: ignore[no-any-return]

        app = make_app()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            loops.append(asyncio.get_running_loop())
            os.kill(os.getpid(), signal.SIGINT)
            yield

        app.run("127.0.0.1", 0, loop_factory=make)

        assert loops == made

    def test_signal(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Start-up prints one line for each route; SIGTERM ends it, politely."""
        app = make_app()
        app.client("/rooms/{room}")(lambda client: None)
        urls = []

        async def visit(url: str) -> None:
            urls.extend([f"{url}/api", f"{url}/rooms/{{room}}"])
            await (await connect_soon(f"{url}/api")).close()

        run_with(app, visit)

        assert capsys.readouterr().out.splitlines() == urls

    def test_signal_while_it_starts(self) -> None:
        """A signal ends a start that hangs."""
        app, seen = make_app(), []

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.Event().wait()
                yield
            finally:
                seen.append("ended")

        app.run("127.0.0.1", 0)

        assert seen == ["ended"]

    def test_signal_that_the_lifespan_swallows(self) -> None:
        """A signal isn't lost in a start that swallows its cancellation."""
        app, seen = make_app(), []

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            os.kill(os.getpid(), signal.SIGINT)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield
            seen.append("ended")

        app.run("127.0.0.1", 0)

        assert seen == ["ended"]

    def test_second_signal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A second signal leaves at once with 130."""
        app = make_app()
        codes: list[int] = []
        monkeypatch.setattr(os, "_exit", codes.append)

        async def visit(url: str) -> None:
            await (await connect_soon(f"{url}/api")).close()
            os.kill(os.getpid(), signal.SIGINT)

        run_with(app, visit)

        assert codes == [130]

    def test_signal_handlers(self) -> None:
        """The signals belong to their former handlers again."""
        before = [signal.getsignal(each) for each in wsappy.STOP_SIGNALS]

        async def visit(url: str) -> None: ...

        run_with(make_app(), visit)

        assert [signal.getsignal(each) for each in wsappy.STOP_SIGNALS] == before

    def test_port_in_use(self) -> None:
        """A port in use is one line and exit code 1."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]

            with pytest.raises(SystemExit) as caught:
                make_app().run("127.0.0.1", port)

        assert caught.value.code == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use"
        )

    def test_unknown_host(self) -> None:
        """A host that has no address is one line, too."""
        with pytest.raises(SystemExit) as caught:
            make_app().run("no.such.host.invalid", 8008)

        assert str(caught.value.code).startswith(
            "cannot listen on no.such.host.invalid:8008: [Errno "
        )

    def test_task_that_swallows_its_cancellation(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A task of users' own that can't be stopped is named and left behind."""
        monkeypatch.setattr(wsappy, "LAST_GRACE", 0.05)
        app, tasks = make_app(), []

        async def swallow() -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

        async def visit(url: str) -> None:
            tasks.append(asyncio.create_task(swallow(), name="endless"))
            await asyncio.sleep(0)

        run_with(app, visit)

        named = [each for each in caplog.messages if "'endless'" in each]
        assert [each[-38:] for each in named] == [
            "did not end in time; it is left behind"
        ]
        tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]
        tasks[0].get_coro().close()

    async def test_inside_a_loop(self) -> None:
        """Inside a running loop it names `serve`."""
        with pytest.raises(RuntimeError) as caught:
            make_app().run()

        assert str(caught.value) == (
            "run must be called in the main thread and outside of a loop; write async "
            "with app.serve(host, port)"
        )

    def test_no_route(self) -> None:
        """Without a route the port isn't opened."""
        with pytest.raises(ValueError, match="no route") as caught:
            App().run("127.0.0.1", 0)

        assert str(caught.value) == (
            "no route is registered; write @app.client('/api')"
        )


SCRIPT = """
import asyncio, contextlib, threading
from wsappy import App

app = App(grace=0)

@app.client("/api")
class Api(__import__("wsappy").Client):
    async def on_disconnected(self):
        {hook}

entity = app.module("a")

@entity.method
async def swallow(request):
    await request.response("began")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

@entity.method(thread=True)
def block(request):
    request.response("began")
    threading.Event().wait()

@entity.method
async def executor(request):
    await request.response("began")
    await asyncio.to_thread(threading.Event().wait)

app.run("127.0.0.1", 0, {options})
"""


def start_server(
    hook: str = "pass", options: str = "", script: str = ""
) -> tuple[Any, str]:
    """Start a server in a process of its own; return it and its URL, "" for none."""
    script = script or SCRIPT.format(hook=hook, options=options)
    # Without it Python keeps what is printed into a pipe, until it is flushed.
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    is_printed, _, _ = select.select([process.stdout], [], [], 2 * LIMIT)
    return process, process.stdout.readline().strip() if is_printed else ""


class TestProcess:
    """A process ends with the exit code of its signal, whatever it left behind."""

    def test_url(self) -> None:
        """The URL of a route is printed at once, into a pipe, too."""
        process, url = start_server()

        process.terminate()
        process.communicate(timeout=LIMIT)

        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+/api", url)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_exit_code(self, number: int) -> None:
        """The exit code after a signal is 0, and nothing is printed."""
        process, _ = start_server()

        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT)

        assert (process.returncode, errors) == (0, "")

    @pytest.mark.parametrize("method", ["swallow", "block", "executor"])
    async def test_what_can_not_be_stopped(self, method: str) -> None:
        """What can't be stopped doesn't hold the process."""
        process, url = start_server()
        async with ws_connect(url, proxy=None) as ws:
            await Talk(ws).call(f"a.{method}")

            process.send_signal(signal.SIGTERM)
            answer = await Talk(ws).receive()
        process.communicate(timeout=LIMIT)

        assert (error_of(answer), process.returncode) == (STOPPED, 0)

    async def test_second_signal(self) -> None:
        """A second signal leaves at once with 130, in a handler that blocks, too."""
        # In short pieces: a signal right before a sleep doesn't interrupt it.
        naps = "[__import__('time').sleep(0.1) for _ in range(600)]"
        process, url = start_server(naps)
        async with ws_connect(url, proxy=None) as ws:
            process.send_signal(signal.SIGTERM)
            await Talk(ws).closed()

            process.send_signal(signal.SIGINT)
            process.communicate(timeout=LIMIT)

        assert process.returncode == 130


EXIT_SERVER = """
import asyncio, sys
from wsappy import App, Client

place, code = sys.argv[1:]
app = App(grace=5)

def leave(here):
    if here == place:
        raise SystemExit(int(code)) if code else KeyboardInterrupt

@app.lifespan
async def life(app):
    yield
    print("lifespan", flush=True)

@app.client("/bystander")
class Bystander(Client):
    async def on_disconnected(self):
        await asyncio.sleep(0)
        print("goodbye", flush=True)

@app.client("/leaving")
class Leaving(Client):
    async def on_connecting(self):
        leave("on_connecting")

    async def on_connected(self):
        await asyncio.sleep(0)
        leave("on_connected")

    async def on_disconnected(self):
        leave("on_disconnected")

@app.client("/raw")
class Raw(Client):
    async def on_message(self, message):
        leave("on_message")

@app.client("/function")
def function(client):
    leave("client function")

m = app.module("m")

@m.method
async def wait(request):
    return await request.client.call("ui", "go_on")

@m.method
def echo(request):
    pass

@m.method("def")
def plain(request):
    leave("def")

@m.method("async def")
async def task(request):
    leave("async def")

@m.method("late async def")
async def late(request):
    await asyncio.sleep(0)
    leave("late async def")

@m.method("awaitable")
def awaitable(request):
    async def work():
        leave("awaitable")
    return work()

@m.method("stream")
async def stream(request):
    yield 1
    leave("stream")

app.run("127.0.0.1", 0)
print("returned", flush=True)
"""
# Where it is raised, and where a client has to go for that.
EXITS = {
    "def": "leaving",
    "async def": "leaving",
    "late async def": "leaving",
    "awaitable": "leaving",
    "stream": "leaving",
    "client function": "function",
    "on_connecting": "leaving",
    "on_connected": "leaving",
    "on_message": "raw",
    "on_disconnected": "leaving",
}


async def exit_by(base: str, place: str) -> None:
    """Be the client for whom SystemExit or KeyboardInterrupt is raised."""
    with contextlib.suppress(OSError, ConnectionClosed, websockets.InvalidHandshake):
        async with ws_connect(f"{base}/{EXITS[place]}", proxy=None) as ws:
            await Talk(ws).send({"module": "m", "method": place, "request_id": 1})
            if place != "on_disconnected":
                await ws.wait_closed()


async def exit_seen(base: str, place: str) -> list[Any]:
    """Return what another client sees of it, who has an unfinished call."""
    seen = list[Any]()
    async with ws_connect(f"{base}/bystander", proxy=None) as ws:
        talk = Talk(ws)
        call = await talk.call("m.wait", "wait")
        leaving = asyncio.create_task(exit_by(base, place))
        with contextlib.suppress(ConnectionClosed):
            while (answer := await talk.call("m.echo"))["event"] != "error":
                pass
            seen.append(error_of(answer))
            await talk.send({**call, "event": "result", "data": "done"})
            seen.append(result_of(await talk.receive()))
        seen.append(await talk.closed())
    await leaving
    return seen


@contextlib.contextmanager
def exit_server(place: str, code: str) -> Iterator[tuple[Any, str]]:
    """Run a server that ends itself at a place; give it and the base of its URLs."""
    with example_process("-c", EXIT_SERVER, place, code) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        yield process, lines[0].rpartition("/")[0]


class TestExit:
    """SystemExit and KeyboardInterrupt in users' code end `App.run`."""

    @pytest.mark.parametrize("place", EXITS)
    async def test_exit_code(self, place: str) -> None:
        """The exit code is that of the SystemExit."""
        with exit_server(place, "3") as (process, base):
            await exit_by(base, place)
            await asyncio.to_thread(process.communicate, timeout=LIMIT)

        assert process.returncode == 3

    @pytest.mark.parametrize(
        ("place", "code"),
        [*((each, "3") for each in EXITS), ("def", ""), ("on_message", "")],
    )
    async def test_order(self, place: str, code: str) -> None:
        """The stop is that of a signal: calls, clients, goodbyes, the lifespan."""
        with exit_server(place, code) as (process, base):
            seen = await exit_seen(base, place)
            rest, _ = await asyncio.to_thread(process.communicate, timeout=LIMIT)

        assert seen == [STOPPED, "done", (1001, "the server is stopping")]
        said = [each for each in rest.splitlines() if "unfinished" not in each]
        assert said[:2] == ["goodbye", "lifespan"]


# -- Who holds the loop -------------------------------------------------------


def dog_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged about who holds the loop."""
    records = [each for each in caplog.records if "held the loop" in each.message]
    assert all(each.levelno == logging.WARNING for each in records)
    assert all(each.name == "wsappy" for each in records)
    return [each.message for each in records]


def dog_line(function: Any) -> str:
    """Return the warning that names a function, at its last line."""
    code = function.__code__
    line = max(line for _, _, line in code.co_lines() if line)
    return dog_text(f"{code.co_qualname!r} ({__file__}:{line})")


def dog_text(who: str, seconds: str = "0.25") -> str:
    """Return the warning that names somebody."""
    return (
        f"{who} held the loop for over {seconds} s; await what it waits for, or add "
        f"thread=True"
    )


def dog_hold() -> None:
    """Hold the loop for longer than allowed."""
    time.sleep(0.4)


def dog_methods(app: App) -> dict[str, Any]:
    """Add methods that hold the loop; return those whose names are in the warning."""
    module = app.module("m")

    def plain(request: Any) -> None:
        time.sleep(0.4)

    async def task(request: Any) -> None:
        time.sleep(0.4)  # noqa: ASYNC251

    def items(request: Any) -> Iterator[None]:
        yield
        time.sleep(0.4)

    async def waits(request: Any) -> None:
        await asyncio.sleep(0.6)

    def works(request: Any) -> None:
        time.sleep(0.4)

    functions = {each.__name__: each for each in (plain, task, items, waits, works)}
    for name, function in functions.items():
        module.method(name, thread=name == "works")(function)
    return functions


def dog_check(value: int) -> Any:
    """Hold the loop for longer than allowed, and pass."""
    return time.sleep(0.4)


def dog_seconds(work: Callable[[], Any]) -> float:
    """Return how many seconds of the processor some work takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def dog_count(work: Callable[[int], Any], count: int) -> int:
    """Return with which count some work takes half a second; about *count* is tried."""
    work(count)
    return int(count * 0.5 / dog_seconds(lambda: work(count)))


DogChecked = typing.Annotated[int, pydantic.AfterValidator(dog_check)]


class DogMember(enum.Enum):
    """What takes long to be written, for its size."""

    ONE = 1


class TestWatchdog:
    """Who holds the loop for over 0.25 s is named in the log."""

    @pytest.mark.parametrize("name", ["plain", "task", "items"])
    async def test_handler(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """File, line and function of a handler of every kind are named, once."""
        app = make_app()
        handlers = dog_methods(app)

        async with talking(app) as talk:
            await talk.call(f"m.{name}")

        assert dog_warnings(caplog) == [dog_line(handlers[name])]

    @pytest.mark.parametrize("name", ["waits", "works"])
    async def test_nobody(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """Who awaits, or runs in a thread, holds nothing."""
        app = make_app()
        dog_methods(app)

        async with talking(app) as talk:
            await talk.call(f"m.{name}")

        assert dog_warnings(caplog) == []

    @pytest.mark.parametrize(
        "name", ["on_connecting", "on_connected", "on_message", "on_disconnected"]
    )
    async def test_hook(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """So is a hook."""
        app = App()

        async def hook(client: Client, *args: Any) -> None:
            time.sleep(0.4)  # noqa: ASYNC251

        app.client("/api")(type("Held", (Client,), {name: hook}))

        async with talking(app) as talk:
            await talk.send("hello")

        assert dog_warnings(caplog) == [dog_line(hook)]

    async def test_route_function(self, caplog: pytest.LogCaptureFixture) -> None:
        """So is the function of a route."""
        app = App()

        @app.client("/api")
        def api(client: Client) -> None:
            time.sleep(0.4)

        async with talking(app):
            pass

        assert dog_warnings(caplog) == [dog_line(api)]

    @pytest.mark.parametrize("name", ["loads", "dumps"])
    async def test_codec(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """So is a codec of the application's."""
        functions = {"loads": orjson.loads, "dumps": orjson.dumps}

        def codec(value: Any) -> Any:
            time.sleep(0.4)
            return functions[name](value)

        app = make_app(**{name: codec})
        app.module("m")(app.method(echo))

        async with talking(app) as talk:
            await talk.call("m.echo")

        line = codec.__code__.co_firstlineno + 1
        where = f"{codec.__code__.co_qualname!r} ({__file__}:{line})"
        assert dog_warnings(caplog) == [dog_text(where)]

    async def test_page(self, caplog: pytest.LogCaptureFixture) -> None:
        """So is a page."""
        app = make_app()

        @app.http("/page")
        def page(request: Any) -> None:
            time.sleep(0.4)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            dialled(serving, request_by_hand("/page")) as wire,
        ):
            await wire.head()

        assert dog_warnings(caplog) == [dog_line(page)]

    async def test_error_function(self, caplog: pytest.LogCaptureFixture) -> None:
        """So is what turns an exception into an `Error`."""
        app = make_app()

        @app.error(KeyError)
        def missing(request: Any, exc: KeyError) -> Any:
            answer: Any = time.sleep
            return answer(0.4) or Error("missing")

        @app.module("m")
        @app.method
        def get(request: Any) -> None:
            raise KeyError

        async with talking(app) as talk:
            await talk.call("m.get")

        assert dog_warnings(caplog) == [dog_line(missing)]

    async def test_validator(self, caplog: pytest.LogCaptureFixture) -> None:
        """So is a validator."""
        app = make_app()

        @app.module("m")
        @app.method
        def get(request: Any, n: DogChecked) -> None:
            pass

        async with talking(app) as talk:
            await talk.call("m.get", n=1)

        assert dog_warnings(caplog) == [dog_line(dog_check)]

    async def test_inside_a_library(self, caplog: pytest.LogCaptureFixture) -> None:
        """Below frames of libraries it is the user's innermost function."""
        app = make_app()

        @app.module("m")
        @app.method
        def get(request: Any) -> None:
            threading.Event().wait(0.4)

        async with talking(app) as talk:
            await talk.call("m.get")

        assert dog_warnings(caplog) == [dog_line(get)]

    async def test_user_inside_a_library(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A function of the user's that a library calls is the innermost."""
        app = make_app()

        def hook(value: Any) -> None:
            time.sleep(0.4)

        @app.module("m")
        @app.method
        def get(request: Any) -> None:
            json.loads('{"a": 1}', object_hook=hook)

        async with talking(app) as talk:
            await talk.call("m.get")

        assert dog_warnings(caplog) == [dog_line(hook)]

    @pytest.mark.parametrize("name", ["get", "later"])
    async def test_frame_of_a_call(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where no frame is the user's, the method is named."""
        library: dict[str, Any] = {"time": time, "json": json}
        code = compile(DOG_LIBRARY, json.__file__, "exec")
        exec(code, library)  # noqa: S102
        app = make_app(dumps=library["dumps"])
        module = app.module("m")

        @module.method
        def get(request: Any) -> list[int]:
            return [1]

        @module.method
        async def later(request: Any) -> list[int]:
            return [1]

        async with talking(app) as talk:
            await talk.call(f"m.{name}")

        assert dog_warnings(caplog) == [dog_text(f"handler 'm.{name}'")]

    async def test_huge_result(self, caplog: pytest.LogCaptureFixture) -> None:
        """So is the method whose result orjson takes long to write."""
        app, one, shares = make_app(), DogMember.ONE, list[float]()
        rows = [one] * dog_count(lambda count: orjson.dumps([one] * count), 10**5)

        @app.module("m")
        @app.method
        def get(request: Any) -> Any:
            began = time.process_time(), time.monotonic()
            request.client.share = lambda: (
                (time.process_time() - began[0]) / (time.monotonic() - began[1])
            )
            return rows

        async with wired(app) as wire:
            # The thread may look too late, when it is over; or on a busy machine.
            for _ in range(5):
                wire.send(wire_frame(json.dumps(dog_call("get")).encode()))
                await wire.frame()
                client: Any = wire.client
                shares.append(client.share())
                if dog_warnings(caplog):
                    break

        if not dog_warnings(caplog):
            pytest.skip("it was over whenever the thread got to look")
        assert dog_warnings(caplog) == [dog_text("handler 'm.get'")]

    async def test_no_frame_of_the_users(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where no frame is the user's the method is named; where there is none, no."""
        dog = wsappy.Watchdog(wsappy.Runtime(wsappy.Threads(1)))
        request = Request("m", "get", {}, ABSENT, 1)
        code = wsappy.Calls.run.__code__
        frame: Any = types.SimpleNamespace(f_locals={"request": request}, f_code=code)

        dog.report([], time.monotonic())
        dog.report([frame], time.monotonic())

        assert dog_warnings(caplog) == [dog_text("handler 'm.get'")]

    @pytest.mark.parametrize("was_suspended", [False, True])
    async def test_late_look(
        self, was_suspended: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A look that comes late itself names who holds the loop, unless suspended."""
        dog = wsappy.Watchdog(wsappy.Runtime(wsappy.Threads(1)))

        for _ in range(2):
            dog.look(time.monotonic(), True, was_suspended)

        assert len(dog_warnings(caplog)) == (0 if was_suspended else 1)

    @pytest.mark.parametrize("name", ["total", "match"])
    async def test_c_code(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """C code that keeps the interpreter to itself is named by who calls it."""
        app, shares = make_app(), [0.0]
        count = dog_count(lambda count: sum(range(count)), 10**6)
        text = "a" * 15 + "b"
        while dog_seconds(functools.partial(re.match, "(a+)+$", text)) < 0.3:
            text = f"a{text}"

        def total(request: Any) -> None:
            sum(range(count))

        def match(request: Any) -> None:
            re.match("(a+)+$", text)

        functions = {"total": total, "match": match}

        @app.module("m")
        @app.method
        def get(request: Any) -> None:
            began = time.process_time(), time.monotonic()
            functions[name](request)
            used, took = time.process_time() - began[0], time.monotonic() - began[1]
            shares[0] = used / took

        async with talking(app) as talk:
            # On a busy machine it looks like a process that was suspended.
            for _ in range(5):
                if not dog_warnings(caplog):
                    await talk.call("m.get")

        if not dog_warnings(caplog):
            pytest.skip("the machine is too busy")
        assert dog_warnings(caplog) == [dog_line(functions[name])]

    async def test_each_place_once_a_minute(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One place is named once a minute, another one at once."""
        app = make_app()
        handlers = dog_methods(app)

        async with talking(app) as talk:
            for name in ("plain", "plain", "task"):
                await talk.call(f"m.{name}")

        lines = [dog_line(handlers[name]) for name in ("plain", "task")]
        assert dog_warnings(caplog) == lines

    async def test_again_after_a_minute(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a minute a place is named again."""
        app, ahead = make_app(), [0.0]
        handlers = dog_methods(app)
        monkeypatch.setattr(wsappy, "monotonic", lambda: time.monotonic() + ahead[0])

        async with talking(app) as talk:
            await talk.call("m.plain")
            ahead[0] = 61.0
            await asyncio.sleep(0.2)
            await talk.call("m.plain")

        assert dog_warnings(caplog) == [dog_line(handlers["plain"])] * 2

    async def test_suspended(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that was suspended while it was busy held nothing."""
        app, ahead = make_app(), [0.0]
        monkeypatch.setattr(wsappy, "monotonic", lambda: time.monotonic() + ahead[0])

        @app.module("m")
        @app.method
        def get(request: Any) -> None:
            time.sleep(0.08)
            ahead[0] += 100.0
            time.sleep(0.08)

        async with talking(app) as talk:
            await talk.call("m.get")
            ahead[0] += 100.0
            await asyncio.sleep(0.1)

        assert dog_warnings(caplog) == []

    @pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
    @pytest.mark.parametrize("name", ["idle", "busy"])
    async def test_stopped_process(self, name: str) -> None:
        """Nor does a process that was stopped and goes on."""
        process, url = start_server(script=DOG_SERVER)

        async with ws_connect(url, proxy=None) as ws:
            talk = Talk(ws)
            answer = await talk.call(f"m.{name}")
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(0.6)
            os.kill(process.pid, signal.SIGCONT)
            await asyncio.sleep(0.1)
            last = await talk.call("$.ping", 2)
        process.terminate()
        _, errors = process.communicate(timeout=LIMIT)

        assert answer["event"] == "began"
        assert (last["event"], errors) == ("result", "")

    async def test_debugger(self, caplog: pytest.LogCaptureFixture) -> None:
        """A handler that is debugged holds nothing."""
        app = make_app()
        # A debugger itself would end the tracing of coverage.
        names = {"__name__": "bdb", "time": time}
        interact = types.FunctionType(dog_hold.__code__, names)

        @app.module("m")
        @app.method
        def get(request: Any) -> None:
            interact()

        async with talking(app) as talk:
            await talk.call("m.get")

        assert dog_warnings(caplog) == []

    async def test_one_line_for_one_hold(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What runs briefly after what held the loop, in the same turn, isn't named."""
        app = make_app()

        def brief() -> None:
            time.sleep(0.15)

        @app.module("m")
        @app.method
        def get(request: Any) -> None:
            dog_hold()
            brief()

        async with talking(app) as talk:
            await talk.call("m.get")

        assert dog_warnings(caplog) == [dog_line(dog_hold)]

    async def test_process_that_is_waited_for(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handler that waits for a selector of its own isn't idle."""
        app = make_app()
        command = [sys.executable, "-c", "import time; time.sleep(0.5)"]

        @app.module("m")
        @app.method
        def get(request: Any) -> None:
            subprocess.run(command, capture_output=True, check=True)  # noqa: S603

        async with talking(app) as talk:
            await talk.call("m.get")

        assert dog_warnings(caplog) == [dog_line(get)]

    @pytest.mark.parametrize("fails", [False, True])
    async def test_end_of_the_thread(self, fails: bool) -> None:
        """The thread ends with the server, also where that doesn't come up."""
        app = make_app()
        seen: list[str] = []

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            seen.extend(each.name for each in threading.enumerate())
            if fails:
                raise KeyError
            yield

        before = set(threading.enumerate())
        with contextlib.suppress(KeyError):
            await start_up(app)
        for thread in set(threading.enumerate()) - before:
            if "watchdog" in thread.name:
                await asyncio.to_thread(thread.join, LIMIT)

        assert "wsappy watchdog" in seen
        assert [each for each in threading.enumerate() if "watchdog" in each.name] == []


def dog_call(name: str) -> Any:
    """Return a call of the module `m`."""
    return {"module": "m", "method": name, "data": {}, "request_id": 1}


DOG_LIBRARY = """
def dumps(value):
    time.sleep(0.4)
    return json.dumps(value)
"""

DOG_SERVER = """
import asyncio, time
from wsappy import App

app = App(grace=0)
app.client("/api")(lambda client: None)
module = app.module("m")

@module.method
async def idle(request):
    await request.response("began")

@module.method
async def busy(request):
    await request.response("began")
    await asyncio.sleep(0)
    # Less than is allowed, but for the time in which the process is stopped.
    for _ in range(15):
        time.sleep(0.01)

app.run("127.0.0.1", 0)
"""


# -- Types --------------------------------------------------------------------


TYPED = """
from collections.abc import AsyncIterator
from typing import Any, assert_type

from wsappy import App, Client, Error, Module, Peer, Request, connect, handler_method

app = App()
entity = Module("entity")


def get(request: Request, item_id: int) -> dict[str, Any]:
    return {}


def missing(request: Request, exc: KeyError) -> Error:
    return Error("not_found", str(exc))


async def life(app: App) -> AsyncIterator[None]:
    yield


def page(request: Any) -> str:
    return ""


async def enter(client: Client, room: str) -> None: ...


class Room(Client):
    async def on_connecting(self, room: str) -> None: ...


class Entities: ...


Item = dict[str, Any]
nobody: Any = None
request = Request("", "", {}, nobody, 1)
assert_type(app.method("get")(get)(request, item_id=1), Item)
assert_type(app.method(get)(request, item_id=1), Item)
assert_type(app.module("a")(get)(request, item_id=1), Item)
assert_type(app.module("a", clients=["/api"])(get)(request, item_id=1), Item)
assert_type(app.module("a"), Module)
assert_type(app.module(), Module)
assert_type(app.module(Entities), type[Entities])
assert_type(app.module("a")(Entities), type[Entities])
assert_type(app.module("a")(Entities()), Entities)
assert_type(app.module(Entities()), Entities)
assert_type(entity.method(get)(request, item_id=1), Item)
assert_type(entity.method(timeout=1.0)(get)(request, item_id=1), Item)
assert_type(entity.method("get", thread=True)(page)(1), str)
assert_type(app.client("/rooms")(Room), type[Room])
app.client("/rooms/{room}")(enter)
assert_type(app.error(KeyError)(missing)(request, KeyError()), Error)
assert_type(app.lifespan(life)(app), AsyncIterator[None])
assert_type(app.http("/")(page)(1), str)
assert_type(app.method("page")(page)(1), str)
assert_type(handler_method(page)(1), str)


def heard(text: str) -> int:
    return 1


def log_in() -> int:
    return 1


api = connect("ws://localhost")
assert_type(api, Peer)
assert_type(api.on("chat", "message")(heard)("x"), int)
assert_type(api.method("ui", "get")(get)(request, item_id=1), Item)
assert_type(api.on_connected(log_in)(), int)
assert_type(api.on_gap(heard)("x"), int)
assert_type(request.data["key"], Any)


async def values(client: Client) -> None:
    assert_type(await client.call("ui", "confirm"), Any)
    assert_type(await api.call("entity", "get"), Any)
    assert_type(await api.module("entity").get(item_id=1), Any)
    async for item in api.stream("entity", "watch"):
        assert_type(item, Any)
    async for push in api.pushes():
        assert_type(push.data, Any)
    async with app.test_client("/api") as tested:
        assert_type((await tested.push_received("chat", "message")).data, Any)
    for figure in app.stats().values():
        assert_type(figure, Any)


@app.module("typed")
@app.method
def find(request: Request, name: str) -> int:
    return 1


assert_type(find(request, "x"), int)
find(request, 5)  # type: ignore[arg-type]
"""


class TestTypes:
    """Every decorator gives back exactly the type that it got."""

    root = pathlib.Path(wsappy.__file__).parent

    def said(self, folder: pathlib.Path, path: str, *options: str) -> str:
        """Return what mypy says of the file, with *path* beside it."""
        (folder / "typed.py").write_text(TYPED)
        strict = ["--strict", f"--cache-dir={self.root}/.mypy_cache"]
        result = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "mypy", *strict, *options, "typed.py"],
            cwd=folder,
            env={**os.environ, "MYPYPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        return result.stdout

    def test_mypy(self, tmp_path: pathlib.Path) -> None:
        """`mypy --strict` accepts a file of `assert_type`s."""
        said = self.said(tmp_path, str(self.root), "--config-file=")

        assert said == "Success: no issues found in 1 source file\n"

    def test_mypy_where_it_is_installed(self, tmp_path: pathlib.Path) -> None:
        """It does so where wsappy is installed, with the README's lines for it."""
        where = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
        packages = pathlib.Path(sysconfig.get_path("purelib", "venv", where))
        venv.create(where["base"], with_pip=False)
        shutil.copy(wsappy.__file__, packages)
        (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
        (lines,) = example_blocks("ini", "Types")
        (tmp_path / "setup.cfg").write_text(lines)
        python = tmp_path / "env" / "bin" / "python"

        said = self.said(
            tmp_path, "", "--config-file=setup.cfg", f"--python-executable={python}"
        )

        assert said == "Success: no issues found in 1 source file\n"

    def test_mypy_where_it_is_editable(self, tmp_path: pathlib.Path) -> None:
        """It does so from anywhere after `pip install -e .`."""
        self.need_editable()
        (lines,) = example_blocks("ini", "Types")
        (tmp_path / "setup.cfg").write_text(lines)

        said = self.said(tmp_path, "", "--config-file=setup.cfg")

        assert said == "Success: no issues found in 1 source file\n"

    def test_pyright_where_it_is_editable(self, tmp_path: pathlib.Path) -> None:
        """So does pyright."""
        self.need_editable()
        need(importlib.util.find_spec("basedpyright"), "basedpyright")
        (tmp_path / "typed.py").write_text(TYPED)
        # It is no `py.typed` package: a module of its own can't be.
        rules = {"typeCheckingMode": "strict", "reportMissingTypeStubs": False}
        (tmp_path / "pyrightconfig.json").write_text(json.dumps(rules))

        result = subprocess.run(
            [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

        assert result.stdout == "0 errors, 0 warnings, 0 notes\n"

    def need_editable(self) -> None:
        """Go on only where wsappy was installed with `pip install -e .`."""
        packages = pathlib.Path(sysconfig.get_path("purelib"))
        need([*packages.glob("__editable__*wsappy*")], "`pip install -e .`")


# -- Figures ------------------------------------------------------------------


class TestStats:
    """`app.stats()`: counters since the start, and gauges of this moment."""

    COUNTERS = (
        "calls",
        "pushes",
        "deliveries",
        "bytes_in",
        "bytes_out",
        "bad_messages",
        "dropped_event",
        "dropped_push",
        "slow_clients_dropped",
        "stalled_clients_dropped",
        "handshakes_dropped",
        "pauses",
    )

    async def test_before_anything(self) -> None:
        """Every counter is there from the start."""
        app = make_app()

        stats = app.stats()

        assert (stats["clients"], stats["unfinished"], stats["stopping"]) == (
            0,
            0,
            False,
        )
        assert (stats["errors"], stats["refused"], stats["closed"]) == ({}, {}, {})
        assert {stats[name] for name in self.COUNTERS} == {0}

    async def test_calls_and_errors(self) -> None:
        """Calls, errors by code and bad messages are counted as they come."""
        app = make_app()
        app.module("m")(app.method("fail")(lambda request: 1 / 0))

        async with talking(app) as talk:
            await talk.call("m.fail")
            await talk.call("m.nothing")
            await talk.send("?")
            await talk.receive()
            stats = app.stats()

        assert (stats["clients"], stats["calls"], stats["bad_messages"]) == (1, 2, 1)
        assert stats["errors"] == {
            "internal": 1,
            "unknown_method": 1,
            "bad_message": 1,
        }

    async def test_unfinished(self) -> None:
        """Calls are unfinished from their beginning to their end."""
        app, go_on = make_app(), asyncio.Event()
        app.module("m")(app.method("wait")(lambda request: go_on.wait()))

        async with talking(app) as talk:
            await talk.send({"module": "m", "method": "wait", "request_id": 1})
            await talk.call("$.ping", 2)
            before = app.stats()["unfinished"]
            go_on.set()
            await talk.receive()
            after = app.stats()["unfinished"]

        assert (before, after) == (1, 0)

    async def test_bytes(self) -> None:
        """Every byte is counted, in both directions, also when the client is gone."""
        app = wire_app()
        clients = clients_of(app, "/listed")
        request = wire_request("/listed")
        frames = [
            wire_call(),
            wire_frame(b"hi", FIN | PING),
            wire_call("fill", size=300),
        ]

        async with (
            app.serve("127.0.0.1", 0) as serving,
            Hand(serving, request + b"".join(frames)) as hand,
        ):
            taken = await hand.reader.readuntil(b'x"}')
            (client,) = clients
            client.join("all")
            app.to("all").push("m", "hello")
            client.push("m", "hello")
            app.to("all").push("m", "hello again")
            taken += await hand.reader.readuntil(b'again","data":{},"group":"all"}')
            before = app.stats()
            hand.writer.write(wire_close())
            taken += await hand.rest()
            hand.writer.close()
            await wire_until(lambda: app.stats()["closed"])
            after = app.stats()

        sizes = len(request + b"".join(frames)), len(taken) - 4
        assert (before["bytes_in"], before["bytes_out"]) == sizes
        assert after["bytes_in"] == sizes[0] + len(wire_close())
        assert after["bytes_out"] == len(taken)

    async def test_result_that_can_not_be_written(self) -> None:
        """What can't be written is counted as `internal`."""
        app = make_app()
        app.module("m")(app.method("bad")(lambda request: object()))

        async with talking(app) as talk:
            await talk.call("m.bad")

        assert app.stats()["errors"] == {"internal": 1}

    async def test_member_that_is_left_out(self) -> None:
        """A push is not delivered to whom `without` leaves out."""
        app = App()
        app.client("/api")(lambda client: client.join("all"))

        async with app.test_client("/api"), app.test_client("/api"):
            (one, _) = app.to("all").members
            app.to("all").without(one).push("m", "hello")

            assert app.stats()["deliveries"] == 1

    async def test_closed(self) -> None:
        """Connections are counted by the code that they were closed with."""
        app = make_app()

        async with talking(app, serve={"max_size": 100}) as talk:
            await talk.send("x" * 101)
            await talk.closed()
            url = f"ws://127.0.0.1:{talk.ws.remote_address[1]}/api"
            async with ws_connect(url, proxy=None):
                pass
            async with ws_connect(url, proxy=None) as ws:
                ws.transport.abort()
            await wire_until(lambda: len(app.stats()["closed"]) == 3)

        assert app.stats()["closed"] == {"1009": 1, "1000": 1, "1006": 1}

    async def test_handshake_that_gets_nowhere(self) -> None:
        """Connections that end before their handshake is answered are counted."""
        app = make_app()

        async with app.serve("127.0.0.1", 0) as serving:
            _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            writer.write(b"GET /api HT")
            writer.close()
            await wire_until(lambda: app.stats()["handshakes_dropped"])

        assert app.stats()["handshakes_dropped"] == 1

    async def test_pushes(self) -> None:
        """A push to a group is one push, and a delivery for each member."""
        app = App()

        @app.client("/api")
        def api(client: Client) -> None:
            client.join("all")

        async with talking(app) as talk:
            app.to("all").push("m", "hello")
            await talk.receive()
            stats = app.stats()

        assert (stats["pushes"], stats["deliveries"]) == (1, 1)

    @pytest.mark.parametrize(
        ("origin", "status"), [(None, "401"), ("https://example.org", "401")]
    )
    async def test_refused(self, origin: Any, status: str) -> None:
        """Refusals are counted by status, also of a browser that was let in for it."""
        app = App(origins=["https://example.org"])

        @app.client("/api")
        def api(client: Client) -> None:
            raise Refused(401)

        with contextlib.suppress(websockets.InvalidStatus):
            async with talking(app, origin=origin) as talk:
                await talk.closed()

        assert app.stats()["refused"] == {status: 1}

    @pytest.mark.parametrize(
        ("path", "origin", "status"),
        [
            ("/api", "http://evil.example", "403"),
            ("/other", None, "404"),
            ("/api", None, "503"),
        ],
    )
    async def test_refused_by_the_server(
        self, path: str, origin: Any, status: str
    ) -> None:
        """What the server itself refuses is counted, too."""
        app = make_app(max_clients=1)

        async with talking_server(app) as (server, _):
            with pytest.raises(websockets.InvalidStatus):
                await ws_connect(server.url(path), proxy=None, origin=origin)

        assert app.stats()["refused"] == {status: 1}


class TestStatsOfPeers:
    """`app.stats()` whoever asks, and whatever peers do."""

    async def test_from_another_thread(self) -> None:
        """It may be asked in another thread while clients come and go."""
        app, is_over = make_app(), threading.Event()
        app.client("/rooms/{room}")(lambda client: client.join("all"))
        app.module("m")(app.method(asleep))
        app.module("m")(app.method("fail")(lambda request, code: fail_with(code)))

        def look() -> int:
            most = 0
            while not is_over.is_set():
                most = max(most, app.stats()["clients"])
            return most

        async def visit(serving: Any, at: int) -> None:
            async with dialled(serving, wire_request(f"/rooms/{at}")) as wire:
                await wire.head()
                call = {"module": "m", "method": "asleep", "request_id": 1}
                fail = {"module": "m", "method": "fail", "data": {"code": f"e{at}"}}
                for message in (call, {**fail, "request_id": 2}):
                    wire.send(wire_frame(json.dumps(message).encode()))
                await wire.answer()
                wire.send(wire_close(1000 if at % 2 else 1001))
                await wire.rest()

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            async with app.serve("127.0.0.1", 0) as serving:
                looking = asyncio.create_task(asyncio.to_thread(look))
                for first in range(0, 400, 40):
                    batch = range(first, first + 40)
                    await asyncio.gather(*[visit(serving, at) for at in batch])
                is_over.set()
                most = await looking
        finally:
            is_over.set()
            sys.setswitchinterval(interval)

        assert 0 < most <= 40
        assert sum(app.stats()["closed"].values()) == 400
        assert len(app.stats()["errors"]) == 400

    @staticmethod
    async def labels_of(app: App, *codes: int | None) -> dict[str, int]:
        """Connect for each code, close with it, and return the labels of `closed`."""
        async with app.serve("127.0.0.1", 0) as serving:
            for code in codes:
                async with dialled(serving, wire_request()) as wire:
                    await wire.head()
                    empty = wire_frame(b"", FIN | CLOSE)
                    wire.send(empty if code is None else wire_close(code))
                    await wire.rest()
        labels: dict[str, int] = app.stats()["closed"]
        return labels

    async def test_codes_that_peers_make_up(self) -> None:
        """Codes that peers choose are one label, however many there are."""
        codes = [3000, 3008, 3999, 4000, 4001, 4123, 4400, 4508, 4999]

        labels = await self.labels_of(make_app(), *codes)

        assert labels == {"other": len(codes)}

    async def test_codes_of_the_rfc(self) -> None:
        """Those that the RFC and its registry name have their own."""
        codes = [1000, 1001, 1008, 1011, 1014]

        labels = await self.labels_of(make_app(), *codes, None, 1000)

        assert labels == {
            "1000": 2,
            **{str(code): 1 for code in codes[1:]},
            "1005": 1,
        }

    @pytest.mark.parametrize("code", [1005, 1006, 1015, 1016, 2999, 0, 999, 5000])
    async def test_codes_that_are_not_allowed(self, code: int) -> None:
        """One that no peer may send is a violation of the protocol: 1002."""
        assert await self.labels_of(make_app(), code) == {"1002": 1}

    @pytest.mark.parametrize("answer", [4123, 4999, 1000])
    async def test_codes_of_the_server(self, answer: int) -> None:
        """Those that the server chose have their own, whatever the peer answers."""
        app = make_app()
        app.module("e")(app.method("leave")(lambda request: request.client.close(4123)))

        async with wired(app) as wire:
            wire.send(wire_call("leave"))
            frame = await wire.closed()
            wire.send(wire_close(answer))
            await wire.rest()

        assert frame == (4123, "")
        assert app.stats()["closed"] == {"4123": 1}

    async def test_codes_of_refusals(self) -> None:
        """Those of refusals have their own."""
        app = App()

        @app.client("/api")
        class Late(Client):
            async def on_connected(self) -> None:
                raise Refused(429)

        async with talking(app) as talk:
            await talk.closed()

        assert app.stats()["closed"] == {"4429": 1}


def fail_with(code: str) -> None:
    """Raise an error of that code."""
    raise Error(code)


# -- Limits -------------------------------------------------------------------


def limits_of(pattern: str) -> dict[str, float | None]:
    """Return the defaults that the README lists, of the options that match."""
    readme = pathlib.Path(wsappy.__file__).with_name("README.md")
    listed: dict[str, float | None] = {}
    columns: list[str] = []
    for line in readme.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif "option" in cells and "default" in cells:
            columns = cells
        elif columns:
            row = dict(zip(columns, cells, strict=True))
            for name in re.findall(pattern, row["option"]):
                listed[name] = limit_of(row["default"])
    return listed


def limit_of(text: str) -> float | None:
    """Return the number that a default of the README is."""
    if text.startswith("none"):
        return None
    if more := re.fullmatch(r"processors \+ (\d+), at most (\d+)", text):
        return min((os.cpu_count() or 1) + int(more[1]), int(more[2]))
    return float(text.replace(",", ""))


class TestLimits:
    """The limits that the README lists are those that hold."""

    def test_options_of_the_app(self) -> None:
        """Every option of `App` that is a limit is listed, with its default."""
        options = dict(inspect.signature(App).parameters)
        del options["proxies"]
        defaults = {name: each.default for name, each in options.items()}
        numbers = {name for name in defaults if type(defaults[name]) in (int, float)}

        listed = limits_of(r"\bApp\((\w+)=")

        names = {"max_clients", "timeout", *numbers, *listed}
        assert listed == {name: defaults[name] for name in names}

    async def test_options_of_the_library(self) -> None:
        """Options of `websockets.serve` are listed with the defaults that they get."""
        app = make_app()
        clients = clients_of(app, "/listed")
        options = inspect.signature(websockets.serve).parameters
        listed = limits_of(r"\b(?:run|serve)\((\w+)=")
        real = {name: options[name].default for name in listed}

        async with (
            app.serve("127.0.0.1", 0) as serving,
            ws_connect(serving.url("/listed"), proxy=None) as ws,
        ):
            assert ws.response is not None
            headers = ws.response.headers
            real["compression"] = headers.get("Sec-WebSocket-Extensions")
            low_and_high = clients[0].connection.transport.get_write_buffer_limits()
            real["write_limit"] = low_and_high[1]

        assert listed == real

    def test_constants(self) -> None:
        """What has no option is listed with the value of its constant."""
        listed = limits_of("`([A-Z][A-Z_]+)`")

        names = {"MAX_BAD_MESSAGES", "MAX_FRAGMENTS", "TURN", *listed}
        assert listed == {name: getattr(wsappy, name) for name in names}


# --- 9. connect --------------------------------------------------------------

# -- A server by hand ---------------------------------------------------------


class PeerWire:
    """The server's end of one connection."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws

    async def read(self) -> Any:
        """Read a message."""
        async with asyncio.timeout(LIMIT):
            return json.loads(await self.ws.recv())

    async def write(self, *messages: Any) -> Any:
        """Write messages in one go, so that the client reads them at once."""
        for message in messages:
            text = message if isinstance(message, str | bytes) else json.dumps(message)
            self.ws.protocol.send_text(text.encode() if isinstance(text, str) else text)
        writes = b"".join(self.ws.protocol.data_to_send())
        self.ws.transport.write(writes)

    async def answer(self, call: Any, data: Any = None, event: Any = "result") -> Any:
        """Write an event of a call."""
        await self.write(event_of(call, data, event))

    async def shut(self, code: int) -> None:
        """Begin the close; leave the socket open when the client has agreed."""
        agreed = asyncio.Event()
        # The library's server would close it. Uvloop looks at methods only here.
        self.ws.data_received = lambda data: agreed.set()
        self.ws.transport.set_protocol(self.ws)
        self.ws.protocol.send_close(code)
        self.ws.transport.write(b"".join(self.ws.protocol.data_to_send()))
        await done(agreed.wait())

    async def gone(self) -> Any:
        """Wait for the end; return the code and the reason that the client sent."""
        async with asyncio.timeout(LIMIT):
            await self.ws.wait_closed()
        return self.ws.close_code, self.ws.close_reason


def event_of(call: Any, data: Any = None, event: Any = "result") -> Any:
    """Make an event of a call."""
    head = {key: call[key] for key in ("request_id", "module", "method")}
    return {**head, "event": event, "data": {} if data is None else data}


def push_of(text: Any, **more: Any) -> Any:
    """Make a push."""
    return {
        "request_id": None,
        "module": "chat",
        "method": None,
        "event": "message",
        "data": {"text": text},
        **more,
    }


class Fake:
    """A server whose connections a test takes one by one."""

    def __init__(self, **options: Any) -> None:
        self.options = {"compression": None, **options}
        self.wires: asyncio.Queue[Any] = asyncio.Queue()
        self.port = 0

    async def __aenter__(self) -> Any:
        await self.start()
        return self

    async def start(self) -> Any:
        """Listen, on the same port each time."""
        self.server = await serve(self.take, "127.0.0.1", self.port, **self.options)
        self.port = self.server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_: Any) -> Any:
        self.server.close()
        await self.server.wait_closed()

    async def take(self, ws: Any) -> Any:
        """Hold a connection until it ends."""
        self.wires.put_nowait(PeerWire(ws))
        await ws.wait_closed()

    async def accept(self) -> Any:
        """Wait for the next connection."""
        async with asyncio.timeout(LIMIT):
            return await self.wires.get()

    @property
    def url(self) -> Any:
        """Return where it listens."""
        return f"ws://127.0.0.1:{self.port}/api"


@contextlib.asynccontextmanager
async def pair(prepare: Any = None, server: Any = None, **options: Any) -> Any:
    """Give a peer, the server's end of its connection, and the server."""
    async with Fake(**(server or {})) as fake:
        api = connect(fake.url, proxy=None, **options)
        if prepare is not None:
            prepare(api)
        async with api:
            yield api, await fake.accept(), fake


class PairSocket(socket.socket):
    """The socket of a peer, which a test looks at.

    Attributes:
        writes: What was written, a system call each.
    """

    writes: list[bytes]

    def send(self, data: Any, *flags: Any) -> int:
        """Write, and keep what was written."""
        self.writes.append(bytes(data))
        return super().send(data, *flags)

    def has_arrived(self) -> None:
        """Block until something has come, which the loop reads in its next turn."""
        assert select.select([self], [], [], LIMIT)[0]


@contextlib.asynccontextmanager
async def pair_by_hand(**options: Any) -> Any:
    """Give a peer, the server's end of its connection, and the peer's own socket."""
    async with Fake(**options) as fake:
        sock = PairSocket()
        sock.writes = []
        sock.connect(("127.0.0.1", fake.port))
        sock.setblocking(False)
        async with connect(fake.url, sock=sock) as api:
            yield api, await fake.accept(), sock


# Before `quick` makes it short.
FIRST_WAIT = wsappy.__dict__["FIRST_WAIT"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: Any) -> Any:
    """Reconnect without a wait that anybody would notice."""
    monkeypatch.setattr(wsappy, "FIRST_WAIT", 0.001)


def start(awaitable: Any) -> Any:
    """Begin what is awaited later."""
    return asyncio.ensure_future(awaitable)


async def done(task: Any) -> Any:
    """Wait for a result, but not for ever."""
    task = start(task)
    ended, _ = await asyncio.wait([task], timeout=LIMIT)
    assert ended, "it took too long"
    return task.result()


async def peer_error_of(task: Any, kind: Any) -> Any:
    """Wait for an error."""
    with pytest.raises(kind) as caught:
        await done(task)
    return caught.value


async def settled(api: Peer, wire: Any) -> Any:
    """Wait until the peer has read all that was written before."""
    ping = start(api.call("$", "ping"))
    await wire.answer(await wire.read())
    await done(ping)


# -- Calls --------------------------------------------------------------------


PEER_ERROR = {"code": "busy", "message": "later", "details": [1], "retry": True}


class TestCall:
    """`Peer.call` pairs an answer with its call."""

    async def test_message(self) -> None:
        """A call is one JSON object with an id of its own."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get", {"a": 1}, item_id=42))

            message = await wire.read()

            assert message == {
                "module": "entity",
                "method": "get",
                "data": {"a": 1, "item_id": 42},
                "request_id": 1,
            }
            await wire.answer(message)
            await done(task)

    async def test_masked_text(self) -> None:
        """Frames are masked text, whatever their length."""
        async with pair(server={"max_size": None}) as (api, wire, _):
            for size in (1, 125, 126, 65535, 65536, 2**17):
                task = start(api.call("entity", "set", text="x" * size))
                message = await wire.read()
                await wire.answer(message, len(message["data"]["text"]))

                assert await done(task) == size

    @pytest.mark.parametrize(
        ("events", "result"),
        [
            ([{"event": "result", "data": {"items": []}}], {"items": []}),
            ([{"event": "result"}], None),
            ([{"event": "progress", "data": 1}, {"event": "result", "data": 2}], 2),
        ],
        ids=["data", "no data", "after another event"],
    )
    async def test_result(self, events: Any, result: Any) -> None:
        """A call returns the data of its result, None where that has none."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get"))
            head = {"request_id": (await wire.read())["request_id"]}
            await wire.write(*({**head, **event} for event in events))

            assert await done(task) == result

    @pytest.mark.parametrize(
        ("data", "raised"),
        [
            (PEER_ERROR, PEER_ERROR),
            ("no", {"code": "internal", "message": "no"}),
        ],
        ids=["whole", "no object"],
    )
    async def test_error(self, data: Any, raised: Any) -> None:
        """An `error` is raised with all its parts, whatever its data is."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get"))
            await wire.answer(await wire.read(), data, "error")

            error = await peer_error_of(task, Error)

            assert error.as_data() == raised

    async def test_side_by_side(self) -> None:
        """Answers find their calls in whatever order they come."""
        async with pair() as (api, wire, _):
            tasks = [start(api.call("entity", "get", n=n)) for n in range(300)]
            calls = [await wire.read() for _ in tasks]
            await wire.write(
                *(event_of(each, each["data"]["n"]) for each in calls[::-1])
            )

            assert [await done(task) for task in tasks] == list(range(300))

    async def test_answered_twice(self) -> None:
        """The second answer to a call is dropped and counted."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get"))
            call = await wire.read()
            await wire.write(event_of(call, 1), event_of(call, 2))

            assert await done(task) == 1
            await settled(api, wire)
            assert api.counts["dropped_event"] == 1

    async def test_unknown_id(self) -> None:
        """Answers with ids that no call has are dropped and counted."""
        async with pair() as (api, wire, _):
            call = {"module": "entity", "method": "get"}
            await wire.write(
                *(event_of({**call, "request_id": each}) for each in (7, "x"))
            )

            await settled(api, wire)

            assert api.counts["dropped_event"] == 2

    async def test_no_json(self) -> None:
        """Data that can't be written raises, and leaves nothing behind."""
        async with pair() as (api, wire, _):
            with pytest.raises(TypeError):
                await api.call("entity", "set", thing=object())

            await settled(api, wire)

    async def test_what_orjson_needs_told(self) -> None:
        """Keys that are no strings are written as on the server."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "set", {1: 2}))
            call = await wire.read()

            assert call["data"] == {"1": 2}
            await wire.answer(call)
            await done(task)

    async def test_timeout(self) -> None:
        """A call that has no answer in time is cancelled on the server too."""
        async with pair() as (api, wire, _):
            error = await peer_error_of(
                api.call("entity", "get", timeout=0.01), TimeoutError
            )

            assert str(error) == "no answer to entity.get in time; it was sent"
            await wire.read()
            assert await wire.read() == {
                "module": "$",
                "method": "cancel",
                "data": {"request_id": 1},
            }

    async def test_timeout_of_the_peer(self) -> None:
        """The peer's timeout is that of every call."""
        async with pair(timeout=0.01) as (api, _, _):
            await peer_error_of(api.call("entity", "get"), TimeoutError)

    async def test_no_timeout(self) -> None:
        """With None a call waits without a limit."""
        async with pair(timeout=0.01) as (api, wire, _):
            task = start(api.call("entity", "get", timeout=None))
            call = await wire.read()
            await peer_error_of(api.call("entity", "get"), TimeoutError)
            await wire.answer(call, 1)

            assert await done(task) == 1

    async def test_late_answer(self) -> None:
        """An answer after the timeout is dropped and counted."""
        async with pair() as (api, wire, _):
            await peer_error_of(api.call("entity", "get", timeout=0.01), TimeoutError)
            await wire.answer(await wire.read())
            await wire.read()

            await settled(api, wire)

            assert api.counts["dropped_event"] == 1

    async def test_timeout_after_the_answer(
        self, monkeypatch: Any, caplog: Any
    ) -> None:
        """A timer that fires in the turn in which the answer came changes nothing."""
        async with pair_by_hand() as (api, wire, sock):
            loop = asyncio.get_running_loop()
            now = loop.time
            task = start(api.call("entity", "get", timeout=LIMIT))
            await wire.answer(await wire.read(), 1)
            sock.has_arrived()
            monkeypatch.setattr(loop, "time", lambda: now() + 2 * LIMIT)

            assert await done(task) == 1
        assert caplog.records == []

    async def test_cancelled(self) -> None:
        """A call whose task is cancelled is cancelled on the server."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get"))
            await wire.read()
            task.cancel()

            await peer_error_of(task, asyncio.CancelledError)

            assert (await wire.read())["data"] == {"request_id": 1}

    async def test_cancelled_in_the_turn_of_the_answer(self) -> None:
        """A call that is cancelled in the turn of its answer isn't on the server."""
        async with pair_by_hand() as (api, wire, sock):
            task = start(api.call("entity", "get"))
            await wire.answer(await wire.read())
            sock.has_arrived()
            # The loop goes on here first, and then reads.
            await asyncio.sleep(0)
            task.cancel()

            await peer_error_of(task, asyncio.CancelledError)

            ping = start(api.call("$", "ping"))
            call = await wire.read()
            assert call["method"] == "ping"
            await wire.answer(call)
            await done(ping)

    async def test_module(self) -> None:
        """A module's attributes are its methods."""
        async with pair() as (api, wire, _):
            task = start(api.module("entity").get(item_id=42))
            call = await wire.read()
            await wire.answer(call, 1)

            assert (call["module"], call["method"]) == ("entity", "get")
            assert await done(task) == 1

    @pytest.mark.parametrize("is_async", [False, True])
    async def test_on_event(self, is_async: bool) -> None:
        """`on_event` hears of each event before the result, in order."""
        seen: list[Any] = []

        async def hear(event: str, data: Any) -> None:
            seen.append((event, data))

        hears = hear if is_async else lambda *event: seen.append(event)
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get", on_event=hears))
            call = await wire.read()
            events = [event_of(call, n, "progress") for n in range(3)]
            await wire.write(*events, event_of(call, "all"))

            assert await done(task) == "all"
        assert seen == [("progress", 0), ("progress", 1), ("progress", 2)]

    async def test_on_event_that_raises(self, caplog: Any) -> None:
        """What `on_event` raises is logged, and the call goes on."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get", on_event=lambda *_: 1 / 0))
            call = await wire.read()
            await wire.write(event_of(call, 1, "progress"), event_of(call, "all"))

            assert await done(task) == "all"
        logged = [(each.levelname, each.getMessage()) for each in caplog.records]
        assert logged == [("ERROR", "on_event of entity.get failed")]

    async def test_stream(self) -> None:
        """A call of a stream raises at the first item, and is cancelled there."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "watch"))
            call = await wire.read()
            await wire.write(*(event_of(call, n, "item") for n in range(3)))

            await peer_error_of(task, TypeError)

            cancel = await wire.read()
            assert (cancel["method"], cancel["data"]) == ("cancel", {"request_id": 1})
            await settled(api, wire)

    async def test_another_loop(self) -> None:
        """Nothing is sent from another thread's loop."""
        async with pair() as (api, wire, _):
            for use in (
                lambda: api.call("entity", "get"),
                lambda: collect(api.stream("entity", "watch")),
                lambda: api.subscribe("room"),
                api.close,
            ):
                error = await peer_error_of(
                    asyncio.to_thread(asyncio.run, use()), RuntimeError
                )

                assert str(error) == (
                    "peer must be used in the loop in which it was entered; write "
                    "asyncio.run_coroutine_threadsafe(api.call(...), loop)"
                )
            await settled(api, wire)

    async def test_from_another_thread(self) -> None:
        """What that error says to write works."""
        async with pair() as (api, wire, _):
            loop = asyncio.get_running_loop()

            def work() -> Any:
                call = api.call("entity", "get")
                return asyncio.run_coroutine_threadsafe(call, loop).result(LIMIT)

            task = start(asyncio.to_thread(work))
            await wire.answer(await wire.read(), 1)

            assert await done(task) == 1

    @pytest.mark.parametrize("name", ["timeout", "window", "on_event", "self", "data"])
    async def test_keywords_of_a_module(self, name: str) -> None:
        """Every keyword of a module's method is an argument."""
        async with pair() as (api, wire, _):
            task = start(api.module("entity").get({"a": 1}, **{name: 5}))
            call = await wire.read()
            await wire.answer(call, 1)

            assert (call["data"], await done(task)) == ({"a": 1, name: 5}, 1)

    async def test_task_of_a_module(self) -> None:
        """A call of a module is a coroutine, and may become a task."""
        async with pair() as (api, wire, _):
            task = asyncio.create_task(api.module("entity").get())
            await wire.read()
            task.cancel()

            await peer_error_of(task, asyncio.CancelledError)

            assert (await wire.read())["method"] == "cancel"

    async def test_special_names(self) -> None:
        """A module has no methods that Python asks for by itself."""
        with pytest.raises(AttributeError, match="__wrapped__"):
            _ = connect("ws://localhost").module("entity").__wrapped__

    async def test_not_entered(self) -> None:
        """A peer that isn't entered says what to write."""
        error = await peer_error_of(
            connect("ws://localhost").call("a", "b"), RuntimeError
        )

        assert str(error) == "peer must be entered; write async with connect(...)"

    async def test_entered_twice(self) -> None:
        """A peer can't be entered again."""
        async with pair() as (api, _, _):
            error = await peer_error_of(api.__aenter__(), RuntimeError)

        assert str(error) == "peer must be entered once; write connect(...) again"


CONFUSIONS = [
    (
        "item",
        lambda api: api.call("entity", "watch"),
        "call of 'entity.watch' must have one result: got an item; write async for "
        "item in api.stream('entity', 'watch')",
    ),
    (
        "item",
        lambda api: api.module("entity").watch(),
        "call of 'entity.watch' must have one result: got an item; write async for "
        "item in api.stream('entity', 'watch')",
    ),
    (
        "result",
        lambda api: collect(api.stream("entity", "get")),
        "stream of 'entity.get' must have items: got a result; write await "
        "api.call('entity', 'get')",
    ),
    (
        "",
        lambda api: collect(api.module("entity").watch()),
        "call of 'entity.watch' must be awaited: got async for; write async for item "
        "in api.stream('entity', 'watch')",
    ),
]


class TestConfusions:
    """What is called, looped over or awaited the wrong way says what to write."""

    @pytest.mark.parametrize(
        ("event", "use", "text"),
        CONFUSIONS,
        ids=["call", "module", "stream", "loop over a module"],
    )
    async def test_text(self, event: str, use: Any, text: str) -> None:
        """Each names the other one."""
        async with pair() as (api, wire, _):
            task = start(use(api))
            if event:
                await wire.answer(await wire.read(), [], event)

            assert str(await peer_error_of(task, TypeError)) == text

    @pytest.mark.parametrize("result", [0, False, "", [], {"a": 1}])
    async def test_results(self, result: Any) -> None:
        """Any result but an empty one says that it was no stream."""
        async with pair() as (api, wire, _):
            task = start(collect(api.stream("entity", "get")))
            await wire.answer(await wire.read(), result)

            await peer_error_of(task, TypeError)

    @pytest.mark.parametrize("window", [0, -1, True, 1.0, None, "2"])
    async def test_window(self, window: Any) -> None:
        """A window must be an integer of at least 1."""
        async with pair() as (api, wire, _):
            stream = api.stream("entity", "watch", window=window)
            error = await peer_error_of(collect(stream), ValueError)

            assert str(error) == (
                f"window must be an integer of at least 1: got {window!r}; write "
                "window=1"
            )
            await settled(api, wire)


class TestWire:
    """What is no plain frame, and no message."""

    async def test_fragments(self) -> None:
        """Fragments are joined, with control frames between them."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get"))
            text = json.dumps(event_of(await wire.read(), "whole"))
            protocol = wire.ws.protocol
            protocol.send_text(text[:5].encode(), fin=False)
            protocol.send_ping(b"between")
            protocol.send_continuation(text[5:].encode(), fin=True)
            wire.ws.send_data()

            assert await done(task) == "whole"

    async def test_binary(self) -> None:
        """Binary frames that hold JSON are read."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get"))
            await wire.ws.send(json.dumps(event_of(await wire.read(), 1)).encode())

            assert await done(task) == 1

    @pytest.mark.parametrize("text", ["[]", "7", "null", "{", '{"event": 1}'])
    async def test_no_message(self, text: Any) -> None:
        """What is no message is answered as `bad_message`, as on the server."""
        async with pair() as (_, wire, _):
            await wire.write(text)

            answer = await wire.read()

            assert answer["request_id"] is None
            assert (answer["event"], answer["data"]["code"]) == ("error", "bad_message")

    async def test_no_utf8(self) -> None:
        """Text that isn't UTF-8 ends the connection for good."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get"))
            await wire.read()
            await wire.write(b"\xff")

            await peer_error_of(task, ConnectionClosed)

            code, reason = await wire.gone()
            assert (code, reason) == (1007, "invalid start byte at position 0")
            await peer_error_of(api.call("entity", "get"), ConnectionClosed)

    async def test_too_large(self) -> None:
        """A message above `max_size` ends the connection for good."""
        async with pair(max_size=100) as (api, wire, fake):
            await wire.write(push_of("x" * 100))

            assert (await wire.gone())[0] == 1009
            await peer_error_of(api.call("entity", "get"), ConnectionClosed)
            assert fake.wires.empty()

    async def test_large(self) -> None:
        """A message may have any size by default."""
        async with pair() as (api, wire, _):
            task = start(api.call("entity", "get"))
            await wire.answer(await wire.read(), "x" * 2**21)

            assert await done(task) == "x" * 2**21

    async def test_compression(self) -> None:
        """Compression is off, and works where it is asked for."""
        server = {"compression": "deflate"}
        async with pair(server=server, compression="deflate") as (api, wire, _):
            task = start(api.call("entity", "get", text="x" * 1000))
            call = await wire.read()
            await wire.answer(call, 1)

            assert wire.ws.protocol.extensions
            assert (await done(task), len(call["data"]["text"])) == (1, 1000)
        async with pair(server=server) as (_, wire, _):
            assert not wire.ws.protocol.extensions

    @pytest.mark.skipif(ON_UVLOOP, reason="uvloop writes past Python's socket")
    async def test_one_write(self) -> None:
        """Calls of one turn of the loop are written together."""
        async with pair_by_hand() as (api, wire, sock):
            await settled(api, wire)
            sock.writes.clear()
            tasks = [start(api.call("entity", "get")) for _ in range(50)]
            calls = [await wire.read() for _ in tasks]

            assert len(sock.writes) == 1
            await wire.write(*map(event_of, calls))
            await done(asyncio.gather(*tasks))

    async def test_options(self) -> None:
        """Other options go to `websockets.connect`."""
        options = {"additional_headers": {"X-Token": "t"}, "user_agent_header": "me"}
        async with pair(**options) as (_, wire, _):
            headers = wire.ws.request.headers

            assert (headers["X-Token"], headers["User-Agent"]) == ("t", "me")


# -- Streams and pushes -------------------------------------------------------


class TestStream:
    """`Peer.stream` loops over items, with credit."""

    async def test_items(self) -> None:
        """The items come in order, and the result ends the loop."""
        async with pair() as (api, wire, _):
            task = start(collect(api.stream("entity", "watch", {"a": 1}, b=2)))
            call = await wire.read()
            items = [event_of(call, n, "item") for n in range(3)]
            await wire.write(*items, event_of(call))

            assert await done(task) == [0, 1, 2]
            assert call == {
                "module": "entity",
                "method": "watch",
                "data": {"a": 1, "b": 2},
                "request_id": 1,
                "items": 100,
            }

    async def test_waits(self) -> None:
        """The loop waits for an item that isn't there yet."""
        async with pair() as (api, wire, _):
            stream = api.stream("entity", "watch")
            first = start(anext(stream))
            call = await wire.read()
            await wire.answer(call, 1, "item")
            assert await done(first) == 1
            second = start(anext(stream))
            await wire.answer(call, 2, "item")

            assert await done(second) == 2
            await stream.aclose()

    async def test_error(self) -> None:
        """An error is raised after the items that came before it."""
        async with pair() as (api, wire, _):
            seen: list[Any] = []
            task = start(collect(api.stream("entity", "watch"), seen))
            call = await wire.read()
            error = {"code": "gone", "message": "no more"}
            await wire.write(event_of(call, 1, "item"), event_of(call, error, "error"))

            assert str(await peer_error_of(task, Error)) == "gone: no more"
            assert seen == [1]

    async def test_other_event(self) -> None:
        """An event of the handler's own is no item."""
        async with pair() as (api, wire, _):
            task = start(collect(api.stream("entity", "watch")))
            call = await wire.read()
            await wire.write(event_of(call, 1, "progress"), event_of(call))

            assert await done(task) == []

    async def test_credit(self) -> None:
        """Every 50 items that the loop has taken allow 50 more."""
        async with pair() as (api, wire, _):
            task = start(collect(api.stream("entity", "watch")))
            call = await wire.read()
            await wire.write(*(event_of(call, n, "item") for n in range(100)))

            more = {
                "module": "$",
                "method": "more",
                "data": {"request_id": 1, "items": 50},
            }
            assert [await wire.read(), await wire.read()] == [more, more]
            await wire.answer(call)
            assert await done(task) == list(range(100))

    @pytest.mark.parametrize(
        ("window", "half"), [(1, 1), (2, 1), (3, 2), (4, 2), (7, 4), (100, 50)]
    )
    async def test_window(self, window: int, half: int) -> None:
        """Of a window's items half is allowed again, once the loop has had it."""
        async with pair() as (api, wire, _):
            stream = api.stream("entity", "watch", window=window)
            task = start(collect(stream))
            call = await wire.read()
            sent, credit, more = 0, call["items"], []
            while sent < 3 * window:
                while credit:
                    await wire.answer(call, sent, "item")
                    sent, credit = sent + 1, credit - 1
                more.append((await wire.read())["data"]["items"])
                credit += more[-1]
            await wire.answer(call)

            assert await done(task) == list(range(sent))
            assert (call["items"], set(more)) == (window, {half})

    async def test_one_at_a_time(self) -> None:
        """With a window of one the next item is asked for after the last one's turn."""
        async with pair() as (api, wire, _):
            stream = api.stream("entity", "watch", window=1)
            first = start(anext(stream))
            call = await wire.read()
            await wire.answer(call, 1, "item")
            assert await done(first) == 1
            await settled(api, wire)
            second = start(anext(stream))

            assert (await wire.read())["data"] == {"request_id": 1, "items": 1}
            await wire.write(*(event_of(call, n, "item") for n in (2, 3)))
            assert await done(second) == 2
            await stream.aclose()

    async def test_no_credit_while_unread(self) -> None:
        """A loop that doesn't go on gives no credit, and other calls go through."""
        async with pair() as (api, wire, _):
            stream = api.stream("entity", "watch")
            first = start(anext(stream))
            call = await wire.read()
            await wire.write(*(event_of(call, n, "item") for n in range(100)))
            assert await done(first) == 0
            other = start(api.call("entity", "get"))

            assert (await wire.read())["method"] == "get"
            await wire.answer({**call, "request_id": 2}, 1)
            assert await done(other) == 1
            await stream.aclose()

    async def test_more_than_asked_for(self) -> None:
        """A server that ignores the credit ends the stream, and fills no memory."""
        async with pair() as (api, wire, _):
            task = start(collect(api.stream("entity", "watch")))
            call = await wire.read()
            await wire.write(*(event_of(call, n, "item") for n in range(102)))

            error = await peer_error_of(task, Error)

            assert str(error) == "bad_message: more items than were asked for"
            methods = [(await wire.read())["method"] for _ in range(3)]
            assert methods == ["more", "more", "cancel"]

    async def test_left(self) -> None:
        """Leaving the loop cancels the call; its late events are dropped."""
        async with pair() as (api, wire, _):
            task = start(first_of(api.stream("entity", "watch")))
            call = await wire.read()
            await wire.answer(call, 1, "item")

            assert await done(task) == 1
            cancel = await wire.read()
            assert (cancel["method"], cancel["data"]) == ("cancel", {"request_id": 1})
            await wire.answer(call, {"code": "cancelled", "message": ""}, "error")
            await settled(api, wire)
            assert api.counts["dropped_event"] == 1

    async def test_cancelled(self) -> None:
        """A task that is cancelled in the loop cancels the call."""
        async with pair() as (api, wire, _):
            task = start(collect(api.stream("entity", "watch")))
            await wire.read()
            task.cancel()
            await peer_error_of(task, asyncio.CancelledError)

            assert (await wire.read())["method"] == "cancel"

    async def test_call_in_the_loop(self) -> None:
        """A call may be awaited in the loop."""
        async with pair() as (api, wire, _):

            async def loop() -> Any:
                return [
                    await api.call("entity", "get", item=item)
                    async for item in api.stream("entity", "watch")
                ]

            task = start(loop())
            call = await wire.read()
            await wire.write(event_of(call, 7, "item"), event_of(call))
            await wire.answer(await wire.read(), "seven")

            assert await done(task) == ["seven"]

    async def test_connection_lost(self) -> None:
        """A stream raises after its items when the connection goes."""
        async with pair() as (api, wire, _):
            seen: list[Any] = []
            task = start(collect(api.stream("entity", "watch"), seen))
            await wire.answer(await wire.read(), 1, "item")
            await wire.ws.close(4503)

            assert (await peer_error_of(task, ConnectionClosed)).rcvd.code == 4503
            assert seen == [1]

    async def test_no_connection(self) -> None:
        """A stream waits for a connection no longer than a call."""
        async with pair(timeout=0.01) as (api, wire, fake):
            await fake.__aexit__()
            await wire.gone()

            error = await peer_error_of(
                collect(api.stream("entity", "watch")), TimeoutError
            )

        assert str(error) == "no connection for entity.watch in time; it was not sent"


async def collect(stream: Any, seen: Any = None) -> Any:
    """Return the items of a loop."""
    seen = [] if seen is None else seen
    async for item in stream:
        seen.append(item)
    return seen


async def first_of(stream: Any) -> Any:
    """Leave a loop after its first item."""
    async for item in stream:
        return item
    return None


class TestOn:
    """`Peer.on` runs handlers of pushes."""

    async def test_arguments(self) -> None:
        """A handler's arguments come by name; it may be `def` or `async def`."""
        seen: asyncio.Queue[Any] = asyncio.Queue()

        def prepare(api: Peer) -> Any:
            @api.on("chat", "message")
            def plain(text: str) -> Any:
                seen.put_nowait(("def", text))

            @api.on("chat", "message")
            async def task(**data: Any) -> Any:
                seen.put_nowait(("async", data))

        async with pair(prepare) as (_, wire, _):
            await wire.write(push_of("hi"))

            assert await done(seen.get()) == ("def", "hi")
            assert await done(seen.get()) == ("async", {"text": "hi"})

    @pytest.mark.parametrize(
        "decorator",
        [
            lambda api: api.on("chat", "message"),
            lambda api: api.method("ui", "confirm"),
            lambda api: api.on_connected,
            lambda api: api.on_gap,
        ],
        ids=["on", "method", "on_connected", "on_gap"],
    )
    async def test_given_back(self, decorator: Any) -> None:
        """Every decorator gives the function back."""

        def handler(text: Any) -> Any:
            """Hear."""

        assert decorator(connect("ws://localhost"))(handler) is handler

    async def test_order(self) -> None:
        """Handlers run one at a time, in order of arrival, and may call."""
        seen: asyncio.Queue[Any] = asyncio.Queue()

        def prepare(api: Peer) -> Any:
            @api.on("chat", "message")
            async def handler(text: Any) -> Any:
                seen.put_nowait((text, await api.call("entity", "get")))

        async with pair(prepare) as (_, wire, _):
            await wire.write(push_of("a"), push_of("b"))
            await wire.answer(await wire.read(), 1)
            await wire.answer(await wire.read(), 2)

            assert [await done(seen.get()), await done(seen.get())] == [
                ("a", 1),
                ("b", 2),
            ]

    async def test_before_the_entry_ends(self) -> None:
        """A push that comes with the handshake meets the first handlers."""
        seen: asyncio.Queue[Any] = asyncio.Queue()

        async def greet(reader: Any, writer: Any) -> None:
            protocol = ServerProtocol()
            protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
            (request,) = protocol.events_received()
            protocol.send_response(protocol.accept(typing.cast("Any", request)))
            protocol.send_text(json.dumps(push_of("early")).encode())
            writer.write(b"".join(protocol.data_to_send()))
            await reader.read()
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with connect(url, proxy=None, close_timeout=0.01) as api:

                @api.on("chat", "message")
                def hear(text: Any) -> Any:
                    seen.put_nowait(text)

                pushes = api.pushes()

                assert await done(seen.get()) == "early"
                assert (await done(anext(pushes))).data == {"text": "early"}

    @pytest.mark.parametrize(
        "data", [{"text": 7}, {}, [1], None, {"text": "raises"}, {"text": "cancels"}]
    )
    async def test_failure(self, data: Any, caplog: Any) -> None:
        """What is wrong with a push or its handler is logged, and the next one runs."""
        seen: asyncio.Queue[Any] = asyncio.Queue()

        def prepare(api: Peer) -> Any:
            @api.on("chat", "message")
            async def handler(text: str) -> Any:
                if text == "raises":
                    raise KeyError(text)
                if text == "cancels":
                    raise asyncio.CancelledError
                seen.put_nowait(text)

        async with pair(prepare) as (_, wire, _):
            await wire.write({**push_of(""), "data": data}, push_of("next"))

            assert await done(seen.get()) == "next"
        assert [each.getMessage() for each in caplog.records] == [
            "handler of push chat.message failed"
        ]

    async def test_no_handler(self) -> None:
        """A push that has no handler is forgotten, whatever its parts."""
        async with pair() as (api, wire, _):
            odd = {"module": [1], "group": {}, "offset": "x"}
            await wire.write({**push_of("hi"), **odd}, push_of("hi"))

            await settled(api, wire)

    async def test_control(self) -> None:
        """An error that the server sends for a `$` call is no push."""
        async with pair() as (api, wire, _):
            pushes = api.pushes()
            error: Any = {"request_id": None, "module": "$", "event": "error"}
            error["data"] = {}
            await wire.write(error, push_of("hi"))

            assert (await done(anext(pushes))).module == "chat"
            assert api.counts["dropped_push"] == 1

    async def test_closing_handler(self) -> None:
        """A handler may close the peer."""
        ended = asyncio.Event()

        def prepare(api: Peer) -> Any:
            @api.on("chat", "message")
            async def handler(text: Any) -> Any:
                await api.close()
                ended.set()

        async with pair(prepare) as (_, wire, _):
            await wire.write(push_of("bye"))

            await done(ended.wait())
            assert (await wire.gone())[0] == 1000

    async def test_close_ends_a_handler(self, caplog: Any) -> None:
        """Closing the peer cancels the handler that runs."""
        seen: asyncio.Queue[Any] = asyncio.Queue()

        def prepare(api: Peer) -> Any:
            @api.on("chat", "message")
            async def handler(text: Any) -> Any:
                seen.put_nowait("begun")
                try:
                    await asyncio.Event().wait()
                finally:
                    seen.put_nowait("ended")

        async with pair(prepare) as (_, wire, _):
            await wire.write(push_of("hi"))
            assert await done(seen.get()) == "begun"

        assert (seen.get_nowait(), caplog.records) == ("ended", [])


class TestPushes:
    """`Peer.pushes` loops over all pushes."""

    async def test_push(self) -> None:
        """A push has its parts, absent ones as None."""
        async with pair() as (api, wire, _):
            pushes = api.pushes()
            await wire.write(push_of("a", group="room", offset=3), push_of("b"))

            assert await done(anext(pushes)) == Push(
                "chat", "message", {"text": "a"}, "room", 3
            )
            assert await done(anext(pushes)) == Push("chat", "message", {"text": "b"})

    async def test_two_loops(self) -> None:
        """Every loop gets every push."""
        async with pair() as (api, wire, _):
            loops = [api.pushes(), api.pushes()]
            await wire.write(push_of("a"))

            texts = [(await done(anext(each))).data["text"] for each in loops]

            assert texts == ["a", "a"]

    async def test_unread(self, monkeypatch: Any) -> None:
        """Too many unread pushes close the connection, which is then resumed."""
        monkeypatch.setattr(wsappy, "MAX_UNREAD", 3)
        async with pair() as (api, wire, fake):
            task = start(api.subscribe("room"))
            data = {"group": "room", "offset": 0, "epoch": "e"}
            await wire.answer(await wire.read(), data)
            await done(task)
            pushes = api.pushes()
            await wire.write(
                *(push_of("x", group="room", offset=n) for n in range(1, 6))
            )

            assert await wire.gone() == (4508, "too many unread pushes")
            again = await fake.accept()
            since = (await again.read())["data"]["since"]
            assert since == {"offset": 3, "epoch": "e"}
            assert [(await anext(pushes)).offset for _ in range(3)] == [1, 2, 3]

    async def test_forgotten_loop(self, monkeypatch: Any) -> None:
        """A loop that was left holds nothing up."""
        monkeypatch.setattr(wsappy, "MAX_UNREAD", 2)
        async with pair() as (api, wire, _):
            pushes = api.pushes()
            del pushes
            gc.collect()
            for text in "abc":
                await wire.write(push_of(text))
                await settled(api, wire)

            assert wire.ws.close_code is None

    async def test_end(self) -> None:
        """The loop ends when the server says that all is done."""
        async with pair() as (api, wire, _):
            task = start(collect(api.pushes()))
            await wire.write(push_of("last"))
            await wire.ws.close(1000)

            assert [each.data["text"] for each in await done(task)] == ["last"]

    async def test_end_of_the_peer(self) -> None:
        """A loop over a peer that has ended, ends."""
        async with pair() as (api, _, _):
            await api.close()

            assert await done(collect(api.pushes())) == []

    async def test_refused(self) -> None:
        """The loop raises where the peer has to stay away."""
        async with pair() as (api, wire, _):
            task = start(collect(api.pushes()))
            await wire.ws.close(4403, "members only")

            assert (await peer_error_of(task, ConnectionClosed)).rcvd.code == 4403

    async def test_refused_again(self) -> None:
        """The loop raises where the server doesn't let the peer in again."""
        is_over: list[Any] = []

        def decide(connection: Any, request: Any) -> Any:
            return connection.respond(403, "members only") if is_over else None

        async with pair(server={"process_request": decide}) as (api, wire, _):
            task = start(collect(api.pushes()))
            is_over.append(1)
            wire.ws.transport.abort()
            error = await peer_error_of(task, Refused)

        assert (error.status, error.message) == (403, "members only")


# -- Calls from the server ----------------------------------------------------


class TestMethod:
    """`Peer.method` answers calls from the server."""

    CALL: ClassVar = {"module": "ui", "method": "confirm", "data": {"text": "Delete?"}}

    async def test_def(self) -> None:
        """A `def` handler takes the request first, and its result is sent."""

        def prepare(api: Peer) -> Any:
            @api.method("ui", "confirm")
            def confirm(request: Any, text: str) -> Any:
                assert isinstance(request, Request)
                return [request.id, text]

        async with pair(prepare) as (_, wire, _):
            await wire.write({**self.CALL, "request_id": "c1"})

            assert await wire.read() == {
                "request_id": "c1",
                "module": "ui",
                "method": "confirm",
                "event": "result",
                "data": ["c1", "Delete?"],
            }

    async def test_async_def(self) -> None:
        """An `async def` handler may call the server and send events of its own."""

        def prepare(api: Peer) -> Any:
            @api.method("ui", "confirm")
            async def confirm(request: Any, text: Any) -> Any:
                await request.response("progress", n=1)
                return await api.call("entity", "get")

        async with pair(prepare) as (_, wire, _):
            await wire.write({**self.CALL, "request_id": 1})
            assert (await wire.read())["event"] == "progress"
            await wire.answer(await wire.read(), "yes")

            assert (await wire.read())["data"] == "yes"

    async def test_errors(self) -> None:
        """What goes wrong is answered as on the server."""

        def prepare(api: Peer) -> Any:
            @api.method("ui", "confirm")
            def confirm(request: Any, text: str) -> Any:
                raise Error("no", text)

        async with pair(prepare) as (_, wire, _):
            await wire.write(
                {**self.CALL, "request_id": 1},
                {**self.CALL, "request_id": 2, "data": {}},
                {**self.CALL, "request_id": 3, "method": "other"},
            )
            answers = [await wire.read() for _ in range(3)]

            assert [(each["request_id"], each["data"]["code"]) for each in answers] == [
                (1, "no"),
                (2, "bad_data"),
                (3, "unknown_method"),
            ]

    async def test_bug(self, caplog: Any) -> None:
        """An exception is `internal` and a log entry."""

        def prepare(api: Peer) -> Any:
            @api.method("ui", "confirm")
            async def confirm(request: Any, text: Any) -> Any:
                raise KeyError(text)

        async with pair(prepare) as (_, wire, _):
            await wire.write({**self.CALL, "request_id": 1})

            data = {"code": "internal", "message": "internal error"}
            assert (await wire.read())["data"] == data
        assert [each.getMessage() for each in caplog.records] == [
            "handler 'ui.confirm' failed"
        ]

    async def test_no_request_id(self) -> None:
        """A call without an id is answered only where there is something to say."""

        def prepare(api: Peer) -> Any:
            @api.method("ui", "confirm")
            def confirm(request: Any, text: Any) -> Any:
                return text or None

        async with pair(prepare) as (_, wire, _):
            await wire.write({**self.CALL, "data": {"text": ""}}, self.CALL)

            answer = await wire.read()

            assert (answer["request_id"], answer["data"]) == (None, "Delete?")

    async def test_thread(self) -> None:
        """What a handler sends from another thread is sent from the loop's."""
        sent = threading.Event()

        def prepare(api: Peer) -> Any:
            @api.method("ui", "confirm")
            async def confirm(request: Any, text: Any) -> Any:
                await asyncio.to_thread(request.response, "progress", text)
                sent.set()

        async with pair(prepare) as (_, wire, _):
            await wire.write({**self.CALL, "request_id": 1})

            assert (await wire.read())["data"] == "Delete?"
            assert (await wire.read())["event"] == "result"

    async def test_behind_a_slow_server(self) -> None:
        """Awaiting a response waits while the server doesn't read."""
        said: list[Any] = []

        async def confirm(request: Any, text: Any) -> None:
            said.append("begun")
            await request.response("progress", "x" * 2**24)
            # By now it has been written, as far as the server reads.
            await asyncio.sleep(0)
            await request.response("progress")
            said.append("ended")

        async with pair_by_hand(max_size=None) as (api, wire, _):
            api.method("ui", "confirm")(confirm)
            await wire.write({**self.CALL, "request_id": 1})
            wire.ws.transport.pause_reading()
            await wire_until(lambda: said)
            await turns()
            before = list(said)
            wire.ws.transport.resume_reading()
            for _ in range(3):
                await wire.read()

        assert (before, said) == (["begun"], ["begun", "ended"])

    async def test_large_response(self) -> None:
        """Awaiting a large response waits until the server has read most of it."""
        said: list[Any] = []

        async def confirm(request: Any, text: Any) -> None:
            said.append("begun")
            await request.response("progress", "x" * 2**24)
            said.append("ended")

        async with pair_by_hand(max_size=None) as (api, wire, _):
            api.method("ui", "confirm")(confirm)
            await wire.write({**self.CALL, "request_id": 1})
            wire.ws.transport.pause_reading()
            await wire_until(lambda: said)
            await turns()
            before = list(said)
            wire.ws.transport.resume_reading()
            for _ in range(2):
                await wire.read()

        assert (before, said) == (["begun"], ["begun", "ended"])

    async def test_connection_lost(self) -> None:
        """The handlers of a connection that goes are cancelled."""
        seen: asyncio.Queue[Any] = asyncio.Queue()

        def prepare(api: Peer) -> Any:
            @api.method("ui", "confirm")
            async def confirm(request: Any, text: Any) -> Any:
                seen.put_nowait("begun")
                try:
                    await asyncio.Event().wait()
                finally:
                    seen.put_nowait("ended")

        async with pair(prepare) as (_, wire, _):
            await wire.write({**self.CALL, "request_id": 1})
            assert await done(seen.get()) == "begun"
            wire.ws.transport.abort()

            assert await done(seen.get()) == "ended"


def peer_generator(text: Any) -> Any:
    """Yield, as no handler of pushes may."""
    yield text


def peer_positional(text: Any, /) -> Any:
    """Ask for an argument that can't come by name."""


def peer_unknown(request: Any, text: Any) -> Any:
    """Have an annotation that can't be resolved."""


peer_unknown.__annotations__["text"] = "Nowhere"


class TestPeerMistakes:
    """What is wrong with a handler is refused where it is written."""

    @pytest.mark.parametrize(
        ("verb", "handler", "text"),
        [
            (
                "on",
                peer_generator,
                "handler {} of pushes must not yield; write return",
            ),
            (
                "on",
                peer_positional,
                "handler {} must take 'text' by name; write it after the /, without "
                "a *",
            ),
            (
                "method",
                peer_unknown,
                "annotation 'Nowhere' of parameter 'text' of {} can't be checked: name "
                "'Nowhere' is not defined; write a type of its module",
            ),
        ],
    )
    async def test_handler(self, verb: str, handler: Any, text: str) -> None:
        """The text names the handler, and says what to write."""
        with pytest.raises(TypeError) as caught:
            getattr(connect("ws://localhost"), verb)("ui", "confirm")(handler)

        assert str(caught.value) == text.format(describe(handler))

    async def test_taken(self) -> None:
        """Two handlers can't have one name."""
        api = connect("ws://localhost")
        one, other = (lambda request: 1), (lambda request: 2)
        api.method("ui", "confirm")(one)

        with pytest.raises(ValueError, match="clashes") as caught:
            api.method("ui", "confirm")(other)

        assert str(caught.value) == (
            f"handler {describe(other)} clashes with {describe(one)}: both are "
            "'ui.confirm'; write another name, or clients=[...] for both"
        )

    async def test_control(self) -> None:
        """A module that is wsappy's own has no handlers of the application's."""
        with pytest.raises(ValueError, match="name of a module") as caught:
            connect("ws://localhost").method("$", "confirm")(lambda request: None)

        assert str(caught.value) == (
            "name of a module must not start with '$': got '$'; write it without"
        )


# -- Connecting, and again ----------------------------------------------------


class TestPeerOnConnected:
    """`Peer.on_connected` logs in."""

    async def test_before_other_calls(self) -> None:
        """Its calls go through at once, and other calls wait for its end."""
        async with Fake() as fake, connect(fake.url, proxy=None) as api:

            @api.on_connected
            async def log_in() -> Any:
                await api.call("auth", "log_in")

            task = start(api.call("entity", "get"))
            wire = await fake.accept()
            first = await wire.read()
            assert first["method"] == "log_in"
            await wire.answer(first)
            second = await wire.read()
            assert second["method"] == "get"
            await wire.answer(second)
            await done(task)

    async def test_after_each_connect(self) -> None:
        """It runs again after a reconnect."""
        runs = itertools.count(1)
        async with pair(lambda api: api.on_connected(lambda: next(runs))) as (
            api,
            wire,
            fake,
        ):
            await settled(api, wire)
            await wire.ws.close(4503)
            await settled(api, await fake.accept())

            assert next(runs) == 3

    async def test_failure(self, caplog: Any) -> None:
        """What it raises is logged, and the calls that wait are sent."""
        async with pair(lambda api: api.on_connected(lambda: 1 / 0)) as (api, wire, _):
            await settled(api, wire)

        assert [each.getMessage() for each in caplog.records] == ["on_connected failed"]

    async def test_connection_lost_meanwhile(self) -> None:
        """It is cancelled with its connection, and runs on the next one."""
        seen: asyncio.Queue[Any] = asyncio.Queue()

        def prepare(api: Peer) -> Any:
            @api.on_connected
            async def log_in() -> Any:
                try:
                    await api.call("auth", "log_in")
                finally:
                    seen.put_nowait("ended")

        async with pair(prepare) as (_, wire, fake):
            await wire.read()
            wire.ws.transport.abort()

            assert await done(seen.get()) == "ended"
            assert (await (await fake.accept()).read())["method"] == "log_in"

    async def test_task_that_outlives_it(self) -> None:
        """A task that it started waits for the next connection like any other."""
        tasks: list[Any] = []

        def prepare(api: Peer) -> Any:
            async def work() -> Any:
                with contextlib.suppress(ConnectionClosed):
                    await api.call("entity", "first")
                return await api.call("entity", "second")

            @api.on_connected
            async def begin() -> Any:
                if not tasks:
                    tasks.append(start(work()))

        async with pair(prepare) as (_, wire, fake):
            assert (await wire.read())["method"] == "first"
            wire.ws.transport.abort()
            again = await fake.accept()
            await again.answer(await again.read(), 1)

            assert await done(tasks[0]) == 1

    async def test_connection_closing_at_its_end(self) -> None:
        """Calls don't go out on a connection that is ending when it returns."""
        wires: list[Any] = []
        async with Fake() as fake, connect(fake.url, proxy=None) as api:

            @api.on_connected
            async def wait() -> None:
                wires.append(await fake.accept())
                if len(wires) == 1:
                    await wires[0].shut(1011)

            task = start(api.call("entity", "get"))
            await wire_until(lambda: wires)
            await turns()
            wires[0].ws.transport.abort()
            await wire_until(lambda: len(wires) == 2)
            await wires[1].answer(await wires[1].read(), 1)

            assert await done(task) == 1


class TestReconnect:
    """A connection that was open once is opened again."""

    @pytest.mark.parametrize("code", [1001, 1011, 4429, 4503, 4508, 3000])
    async def test_comes_back(self, code: Any) -> None:
        """It comes back after the codes of which the protocol says so."""
        async with pair() as (api, wire, fake):
            await wire.ws.close(code)

            await settled(api, await fake.accept())

    @pytest.mark.parametrize("code", [1000, 1007, 1009, 4400, 4401, 4403, 4404, 4499])
    async def test_stays_away(self, code: Any) -> None:
        """It stays away after the others, and calls raise what closed it."""
        async with pair() as (api, wire, fake):
            await wire.ws.close(code, "why")

            error = await peer_error_of(api.call("entity", "get"), ConnectionClosed)

            assert (error.rcvd.code, error.rcvd.reason) == (code, "why")
            assert fake.wires.empty()

    async def test_no_close_frame(self) -> None:
        """A connection that breaks is opened again."""
        async with pair() as (api, wire, fake):
            wire.ws.transport.abort()

            await settled(api, await fake.accept())

    async def test_not_wanted(self) -> None:
        """With `reconnect=False` it stays away in any case."""
        async with pair(reconnect=False) as (api, wire, fake):
            wire.ws.transport.abort()

            await peer_error_of(api.call("entity", "get"), ConnectionClosed)
            assert fake.wires.empty()

    async def test_unfinished(self) -> None:
        """Unfinished calls raise, and are never sent again."""
        async with pair() as (api, wire, fake):
            task = start(api.call("entity", "get", n=1))
            await wire.read()
            wire.ws.transport.abort()
            await peer_error_of(task, ConnectionClosed)
            again = await fake.accept()
            other = start(api.call("entity", "get", n=2))
            call = await again.read()

            assert call["data"] == {"n": 2}
            await again.answer(call)
            await done(other)

    @pytest.mark.skipif(ON_UVLOOP, reason="needs a loop that reads before its timers")
    async def test_unfinished_and_cancelled(self, caplog: Any) -> None:
        """A call that is cancelled in the turn in which the connection goes, is."""
        async with pair_by_hand() as (api, wire, sock):
            task = start(api.call("entity", "get"))
            await wire.read()
            end = wire.ws.transport.get_extra_info("socket")
            end.shutdown(socket.SHUT_RDWR)
            sock.has_arrived()
            # Timers come after what is read; the call hears of both in the next turn.
            asyncio.get_running_loop().call_later(0, task.cancel)

            await peer_error_of(task, asyncio.CancelledError)

        assert caplog.records == []

    async def test_call_in_the_gap(self) -> None:
        """A call that is made in the gap waits, and is sent once."""
        async with pair() as (api, wire, fake):
            await fake.__aexit__()
            await wire.gone()
            task = start(api.call("entity", "get"))
            await fake.start()
            again = await fake.accept()
            await again.answer(await again.read(), 1)

            assert await done(task) == 1

    async def test_timeout_in_the_gap(self) -> None:
        """A call in the gap waits no longer than its timeout, and is never sent."""
        async with pair() as (api, wire, fake):
            await fake.__aexit__()
            await wire.gone()
            error = await peer_error_of(
                api.call("entity", "get", timeout=0.01), TimeoutError
            )
            await fake.start()

            await settled(api, await fake.accept())
        assert str(error) == "no connection for entity.get in time; it was not sent"

    async def test_call_while_closing(self) -> None:
        """A call after the server's close frame waits for the next connection."""
        async with pair() as (api, wire, fake):
            await wire.shut(1001)
            task = start(api.call("entity", "get"))
            await turns()
            wire.ws.transport.abort()
            again = await fake.accept()
            await again.answer(await again.read(), 1)

            assert await done(task) == 1

    async def test_server_that_never_closes(self) -> None:
        """A server that leaves the socket open after its close is cut off."""
        async with pair(close_timeout=0.01) as (api, wire, fake):
            await wire.shut(1001)

            again = await fake.accept()

            await settled(api, again)

    @pytest.mark.parametrize("refusal", [401, 403])
    async def test_refused(self, refusal: int) -> None:
        """Such a status on a reconnect keeps the peer away, and calls raise it."""
        status: list[Any] = []

        def decide(connection: Any, request: Any) -> Any:
            return connection.respond(status[0], "members only") if status else None

        async with pair(server={"process_request": decide}) as (api, wire, _):
            status.append(refusal)
            wire.ws.transport.abort()

            error = await peer_error_of(api.call("entity", "get"), Refused)

            assert (error.status, error.message) == (refusal, "members only")

    async def test_tried_again(self) -> None:
        """Any other status on a reconnect is tried again."""
        status: list[Any] = []

        def decide(connection: Any, request: Any) -> Any:
            return connection.respond(status.pop(), "later") if status else None

        async with pair(server={"process_request": decide}) as (api, wire, fake):
            status += [503, 500, 429, 404, 400]
            wire.ws.transport.abort()

            await settled(api, await fake.accept())

    @pytest.mark.parametrize(
        "location",
        [
            "https://login.example/?next=api",
            "http://127.0.0.1/",
            "ws://127.0.0.1:99999/",
            "ws://127.0.0.1:port/",
            "ws://a..b/",
            f"ws://{'x' * 64}/",
            "ws://[::1/",
            "ws://",
            "/api",
        ],
    )
    async def test_redirected(self, location: str) -> None:
        """A redirect that leads nowhere is tried again, wherever it points."""
        places: list[Any] = []

        def decide(connection: Any, request: Any) -> Any:
            if not places:
                return None
            response = connection.respond(302, "")
            response.headers["Location"] = places.pop()
            return response

        async with pair(server={"process_request": decide}) as (api, wire, fake):
            # The library follows ten of them in one attempt.
            places += [location] * 12
            wire.ws.transport.abort()

            await settled(api, await fake.accept())

    @pytest.mark.parametrize("what", ["url", "additional_headers"])
    async def test_function_that_raises(self, what: str, caplog: Any) -> None:
        """A function that raises is asked again, and a warning says why."""
        raised = [KeyError("token"), OSError("later"), asyncio.CancelledError()]
        async with Fake() as fake:
            values: Any = {"url": fake.url, "additional_headers": {"X-Token": "t"}}
            failing: list[Any] = []

            async def ask() -> Any:
                if failing:
                    raise failing.pop(0)
                return values[what]

            options: Any = {**values, what: ask, "proxy": None}
            async with connect(options.pop("url"), **options) as api:
                wire = await fake.accept()
                await settled(api, wire)
                failing += raised
                wire.ws.transport.abort()
                await settled(api, await fake.accept())

        warnings = [each.getMessage() for each in caplog.records]
        place = fake.url
        assert warnings == [
            f"no connection to {place}: ConnectionError(\"can't connect to {place}: "
            f'{text}")'
            for text in ("KeyError('token')", "CancelledError()")
        ]

    async def test_function_that_refuses(self) -> None:
        """A function may raise `Refused(401)` to stay away."""
        async with Fake() as fake:
            answers = [fake.url]

            def url() -> Any:
                if not answers:
                    raise Refused(401, "no token")
                return answers.pop()

            async with connect(url, proxy=None) as api:
                (await fake.accept()).ws.transport.abort()
                error = await peer_error_of(api.call("a", "b"), Refused)

        assert str(error) == "401 no token"

    async def test_no_secrets_in_the_log(self, caplog: Any) -> None:
        """A URL is logged without its password and its query."""
        caplog.set_level("INFO")
        async with Fake() as fake:
            url = fake.url.replace("//", "//me:secret@") + "?token=secret"
            async with connect(url, proxy=None) as api:
                (await fake.accept()).ws.transport.abort()
                await settled(api, await fake.accept())

        mine = [each for each in caplog.records if "no connection" in each.message]
        assert [each.getMessage() for each in mine] == [
            f"no connection to {fake.url}: ConnectionClosedError(None, None, None)"
        ]

    async def test_bug(self, monkeypatch: Any, caplog: Any) -> None:
        """A bug in the client itself ends all waits, and is logged."""
        async with pair() as (api, wire, fake):
            pushes = start(collect(api.pushes()))
            await settled(api, wire)
            unfinished = start(api.call("entity", "get"))
            await wire.read()
            monkeypatch.setattr(random, "uniform", lambda *_: 1 / 0)
            wire.ws.transport.abort()
            waiting = [pushes, unfinished]
            for task in (*waiting, start(api.call("entity", "get"))):
                await peer_error_of(task, ConnectionClosed)

            assert fake.wires.empty()
        logged = [(each.levelname, each.getMessage()) for each in caplog.records]
        assert logged == [("ERROR", f"client of {fake.url} failed")]

    async def test_bug_while_connected(self, monkeypatch: Any, caplog: Any) -> None:
        """A bug beside an open connection closes it, with 1011."""
        async with pair() as (api, wire, fake):
            await TestSubscribe().join(api, wire, offset=1, epoch="e")
            monkeypatch.setattr(random, "uniform", lambda *_: 1 / 0)
            await wire.write(push_of("x", group="room", offset=9))

            assert await wire.gone() == (1011, "the client failed")
            await peer_error_of(api.call("entity", "get"), ConnectionClosed)
        logged = [(each.levelname, each.getMessage()) for each in caplog.records]
        assert logged == [("ERROR", f"client of {fake.url} failed")]

    def test_loop_that_ends(self, caplog: Any) -> None:
        """A loop that cancels every task, as `asyncio.run` does, logs nothing."""

        async def main() -> None:
            async with Fake() as fake:
                api = await connect(fake.url, proxy=None).__aenter__()
                await settled(api, await fake.accept())

        asyncio.run(main())

        assert caplog.records == []

    async def test_jitter(self, monkeypatch: Any) -> None:
        """The wait is random; its bound doubles, from 0.25 s up to 15 s."""
        bounds: list[Any] = []
        monkeypatch.setattr(wsappy, "FIRST_WAIT", FIRST_WAIT)

        def uniform(low: Any, high: Any) -> Any:
            bounds.append((low, high))
            if len(bounds) == 8:
                status.clear()
            return 0

        monkeypatch.setattr(random, "uniform", uniform)
        status: list[Any] = []

        def decide(connection: Any, request: Any) -> Any:
            return connection.respond(503, "later") if status else None

        async with pair(server={"process_request": decide}) as (api, wire, fake):
            status.append(503)
            wire.ws.transport.abort()
            await settled(api, await fake.accept())

        highs = [0.25, 0.5, 1, 2, 4, 8, 15, 15]
        assert bounds == [(0, high) for high in highs]

    @pytest.mark.parametrize(
        ("most", "highs"), [(15.0, [0.25, 0.5]), (1e-9, [1e-9 / 2] * 2)]
    )
    async def test_bound_again(self, most: Any, highs: Any, monkeypatch: Any) -> None:
        """A connection that lasted longer than any wait starts the bound again."""
        bounds: list[Any] = []
        monkeypatch.setattr(wsappy, "FIRST_WAIT", highs[0])
        monkeypatch.setattr(wsappy, "MAX_WAIT", most)

        def uniform(low: Any, high: Any) -> Any:
            bounds.append((low, high))
            return 0

        monkeypatch.setattr(random, "uniform", uniform)
        async with pair() as (api, wire, fake):
            wire.ws.transport.abort()
            (await fake.accept()).ws.transport.abort()
            await settled(api, await fake.accept())

        assert bounds == [(0, high) for high in highs]

    async def test_close_in_the_gap(self) -> None:
        """Closing in the gap ends the tries, and calls that wait raise."""
        async with pair() as (api, wire, fake):
            await fake.__aexit__()
            await wire.gone()
            task = start(api.call("entity", "get"))
            await peer_error_of(api.call("entity", "get", timeout=0.01), TimeoutError)
            await done(api.close())

            await peer_error_of(task, ConnectionClosed)


EXAMPLE_URL = "'ws://localhost:8008/api'"


class TestOpen:
    """The first connection raises at once where it fails."""

    async def test_nobody_there(self) -> None:
        """A port where nobody listens is an OSError."""
        async with Fake() as fake:
            url = fake.url

        await peer_error_of(
            connect(url, proxy=None).__aenter__(), ConnectionRefusedError
        )

    @pytest.mark.parametrize("status", [400, 403, 426, 503, 520])
    async def test_refused(self, status: Any) -> None:
        """An HTTP refusal is `Refused` with its status and its text."""

        def decide(connection: Any, request: Any) -> Any:
            response = connection.respond(403, "not today")
            response.status_code = status
            return response

        async with Fake(process_request=decide) as fake:
            api = connect(fake.url, proxy=None)
            error = await peer_error_of(api.__aenter__(), Refused)

        assert (error.status, error.message) == (status, "not today")
        await api.close()

    @pytest.mark.parametrize(
        ("said", "kind", "text"),
        [
            (
                b"220 smtp\r\n",
                ConnectionError,
                "can't connect to {}: InvalidMessage('did not receive a valid HTTP "
                "response')",
            ),
            (b"", TimeoutError, "timed out during opening handshake"),
        ],
        ids=["no HTTP", "nothing"],
    )
    async def test_no_websocket(self, said: bytes, kind: Any, text: str) -> None:
        """A server that says anything else, or nothing, is an OSError."""
        ended = asyncio.Event()

        async def speak(reader: Any, writer: Any) -> Any:
            writer.write(said)
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()
            ended.set()

        async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            # Long enough for the one that speaks.
            api = connect(url, proxy=None, open_timeout=LIMIT if said else 0.01)
            error = await peer_error_of(api.__aenter__(), kind)
            await done(ended.wait())

        assert str(error) == text.format(url)

    async def test_named(self) -> None:
        """What goes wrong has a note with the address, without what is secret."""
        async with Fake() as fake:
            url = fake.url

        peer = connect(f"{url}?token=secret", proxy=None)
        error = await peer_error_of(peer.__aenter__(), OSError)

        assert error.__notes__ == [f"while connecting to {url}"]

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("ws://a..b/", "Unicode"),
            (f"ws://{'x' * 64}/", "Unicode"),
            ("ws://127.0.0.1/", "InvalidProxy("),
        ],
        ids=["host", "long host", "proxy"],
    )
    async def test_anything(self, url: str, reason: str) -> None:
        """Whatever the library or the resolver raises is a ConnectionError."""
        proxy = "http://" if "127" in url else None
        error = await peer_error_of(
            connect(url, proxy=proxy).__aenter__(), ConnectionError
        )

        assert str(error).startswith(f"can't connect to {url}: {reason}")

    @pytest.mark.parametrize("kind", ["def", "async def"])
    async def test_functions(self, kind: str) -> None:
        """`url` and `additional_headers` may be functions, asked each time."""
        count = itertools.count()
        async with Fake() as fake:

            async def url() -> str:
                return f"{fake.url}?n={next(count)}"

            async def headers() -> Any:
                return {"X-Token": str(next(count))}

            options: Any = [url, headers]
            if kind == "def":
                options = [
                    lambda: f"{fake.url}?n={next(count)}",
                    lambda: {"X-Token": str(next(count))},
                ]
            seen = []
            async with connect(
                options[0], additional_headers=options[1], proxy=None
            ) as api:
                for _ in range(2):
                    wire = await fake.accept()
                    await settled(api, wire)
                    request = wire.ws.request
                    seen.append((request.path, request.headers["X-Token"]))
                    wire.ws.transport.abort()

        assert seen == [("/api?n=0", "1"), ("/api?n=2", "3")]

    async def test_wrong_url_of_a_function(self) -> None:
        """A function's URL is checked at the entry, and named."""
        error = await peer_error_of(
            connect(lambda: "http://x").__aenter__(), ConnectionError
        )

        assert isinstance(error.__cause__, ValueError)
        assert str(error).endswith(
            "ValueError(\"url must be that of a WebSocket: got 'http://x', scheme "
            "isn't ws or wss; write 'ws://x'\")"
        )

    @pytest.mark.parametrize(
        ("url", "text"),
        [
            (
                "http://x/api",
                "'http://x/api', scheme isn't ws or wss; write 'ws://x/api'",
            ),
            ("https://x?t=1", "'https://x', scheme isn't ws or wss; write 'wss://x'"),
            (
                "x:8008/api",
                f"'x:8008/api', scheme isn't ws or wss; write {EXAMPLE_URL}",
            ),
            ("httpd/a", f"'httpd/a', scheme isn't ws or wss; write {EXAMPLE_URL}"),
            ("/api", f"'/api', scheme isn't ws or wss; write {EXAMPLE_URL}"),
            ("", f"'', scheme isn't ws or wss; write {EXAMPLE_URL}"),
            ("ws://", f"'ws://', hostname isn't provided; write {EXAMPLE_URL}"),
            (
                "ws://x:99999/",
                f"'ws://x:99999/', Port out of range 0-65535; write {EXAMPLE_URL}",
            ),
            (
                "ws://x:port/",
                "'ws://x:port/', Port could not be cast to integer value as 'port'; "
                f"write {EXAMPLE_URL}",
            ),
        ],
    )
    async def test_wrong_url(self, url: str, text: str) -> None:
        """A URL that can't be one says what to write, at once."""
        with pytest.raises(ValueError, match="url must be") as raised:
            connect(url)

        assert str(raised.value) == f"url must be that of a WebSocket: got {text}"

    async def test_no_text(self) -> None:
        """A URL must be a string, or a function."""
        with pytest.raises(TypeError) as raised:
            connect(typing.cast("Any", b"ws://x"))

        assert (
            str(raised.value)
            == f"url must be a string: got b'ws://x'; write {EXAMPLE_URL}"
        )

    @pytest.mark.parametrize("make", [connect, App().test_client], ids=["c", "t"])
    @pytest.mark.parametrize(
        ("name", "instead"),
        [
            ("headers", "additional_headers={'X-Key': '1'}"),
            ("extra_headers", "additional_headers={'X-Key': '1'}"),
            ("cookies", "additional_headers={'Cookie': 'session=1'}"),
            ("auth", "additional_headers={'Authorization': 'Bearer 1'}"),
            ("create_connection", "@api.on and @api.method"),
            ("max_queue", "api.stream(..., window=1)"),
            ("process_exception", "reconnect=False"),
            ("reconnect_delays", "reconnect=False"),
            ("nonsense", "one of those of websockets.connect"),
        ],
    )
    async def test_unknown_option(self, make: Any, name: str, instead: str) -> None:
        """An option that isn't there raises at once, and names the right one."""
        with pytest.raises(TypeError) as raised:
            make("/" if make is not connect else "ws://x", **{name: 1})

        assert str(raised.value) == f"connect has no option {name!r}; write {instead}"

    @pytest.mark.parametrize(
        "name",
        ["origin", "subprotocols", "ssl", "host", "unix", "path", "proxy_ssl", "sock"],
    )
    async def test_known_option(self, name: str) -> None:
        """Those of the library and of the loop are there."""
        options: Any = {name: None}

        assert connect("wss://x", **options).timeout == 10

    async def test_let_in_and_closed(self) -> None:
        """One that is let in and closed at once goes by its close code."""

        async def refuse(ws: Any) -> Any:
            await ws.close(4403, "members only")

        async with serve(refuse, "127.0.0.1", 0) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with connect(url, proxy=None) as api:
                error = await peer_error_of(api.call("entity", "get"), ConnectionClosed)

        assert error.rcvd.code == 4403

    async def test_tls(self) -> None:
        """`ssl` is an option like the others."""
        with pytest.raises(ValueError, match="ssl argument is incompatible"):
            await connect(
                "ws://localhost", ssl=ssl.create_default_context()
            ).__aenter__()


class TestPeerClose:
    """`Peer.close` ends all that is the peer's."""

    async def test_code(self) -> None:
        """The connection is closed with 1000, after what waits to be written."""
        async with pair() as (api, wire, _):
            await settled(api, wire)
            task = start(api.call("entity", "get"))
            await asyncio.sleep(0)
            closing = start(api.close())

            assert (await wire.read())["method"] == "get"
            assert await wire.gone() == (1000, "")
            await done(closing)
            await peer_error_of(task, ConnectionClosed)

    async def test_twice(self) -> None:
        """Closing again does nothing."""
        async with pair() as (api, _, _):
            await done(api.close())

            await done(api.close())

    async def test_no_tasks(self) -> None:
        """No task is left behind."""
        async with Fake() as fake:
            before = asyncio.all_tasks()
            async with connect(fake.url, proxy=None) as api:
                api.on_connected(lambda: asyncio.Event().wait())
                await fake.accept()
            left = asyncio.all_tasks() - before

        assert {each for each in left if "take" not in repr(each)} <= set()

    async def test_user_socket(self) -> None:
        """A socket of the user's is used once."""
        async with Fake() as fake:
            sock = socket.create_connection(("127.0.0.1", fake.port))
            sock.setblocking(False)
            async with connect(fake.url, sock=sock) as api:
                (await fake.accept()).ws.transport.abort()

                await peer_error_of(api.call("entity", "get"), ConnectionClosed)


# -- Groups -------------------------------------------------------------------


class TestSubscribe:
    """Groups are joined again, from where they were."""

    async def join(self, api: Peer, wire: Any, **data: Any) -> Any:
        """Join a group; *data* is its position."""
        task = start(api.subscribe("room"))
        await wire.answer(await wire.read(), {"group": "room", **data})
        await done(task)

    async def test_message(self) -> None:
        """Joining is a call to the module `$`."""
        async with pair() as (api, wire, _):
            task = start(api.subscribe("room"))

            call = await wire.read()

            assert call == {
                "module": "$",
                "method": "subscribe",
                "data": {"group": "room"},
                "request_id": 1,
            }
            await wire.answer(call, {"group": "room"})
            assert await done(task) is None

    async def test_refused(self) -> None:
        """A group that refuses raises, and isn't joined again."""
        async with pair() as (api, wire, fake):
            task = start(api.subscribe("room"))
            error = {"code": "forbidden", "message": ""}
            await wire.answer(await wire.read(), error, "error")
            await peer_error_of(task, Error)
            await wire.ws.close(4503)

            await settled(api, await fake.accept())

    async def test_position(self) -> None:
        """After a reconnect it joins from the last message that it saw."""
        async with pair() as (api, wire, fake):
            # The pushes come in the same read as the position that they count from.
            task = start(api.subscribe("room"))
            call = await wire.read()
            data = {"group": "room", "offset": 19, "epoch": "e"}
            pushes = api.pushes()
            messages = [push_of("x", group="room", offset=n) for n in (20, 21)]
            await wire.write(event_of(call, data), *messages)
            await done(task)
            await wire.ws.close(4503)
            again = await fake.accept()
            call = await again.read()

            since = {"offset": 21, "epoch": "e"}
            assert call["data"] == {"group": "room", "since": since}
            replay = push_of("x", group="room", offset=22)
            data = {"group": "room", "offset": 22, "epoch": "e", "recovered": True}
            await again.write(replay, event_of(call, data))
            assert [(await done(anext(pushes))).offset for _ in range(3)] == [
                20,
                21,
                22,
            ]

    async def test_before_waiting_calls(self) -> None:
        """Groups are joined again before calls that wait are sent."""
        async with pair() as (api, wire, fake):
            await self.join(api, wire)
            await fake.__aexit__()
            await wire.gone()
            task = start(api.call("entity", "get"))
            await fake.start()
            again = await fake.accept()

            call = await again.read()
            assert (call["method"], call["data"]) == ("subscribe", {"group": "room"})
            await again.answer(call, {"group": "room"})
            await again.answer(await again.read(), 1)
            assert await done(task) == 1

    async def test_gap(self) -> None:
        """`on_gap` hears of lost messages, and the new position counts."""
        seen: asyncio.Queue[Any] = asyncio.Queue()
        async with pair(lambda api: api.on_gap(seen.put_nowait)) as (api, wire, fake):
            await self.join(api, wire, offset=19, epoch="e")
            await wire.ws.close(4503)
            again = await fake.accept()
            call = await again.read()
            data = {"group": "room", "offset": 5, "epoch": "f", "recovered": False}
            pushes = api.pushes()
            await again.write(
                event_of(call, data), push_of("x", group="room", offset=6)
            )

            assert await done(seen.get()) == "room"
            assert (await done(anext(pushes))).offset == 6

    async def test_gap_hook_that_raises(self, caplog: Any) -> None:
        """What `on_gap` raises is logged, and the group is joined all the same."""
        async with pair(lambda api: api.on_gap(lambda group: 1 / 0)) as (
            api,
            wire,
            fake,
        ):
            await self.join(api, wire, offset=19, epoch="e")
            await wire.ws.close(4503)
            again = await fake.accept()
            data = {"group": "room", "offset": 5, "epoch": "f", "recovered": False}
            await again.answer(await again.read(), data)
            await settled(api, again)

        assert [each.getMessage() for each in caplog.records] == ["on_gap failed"]

    async def test_seen_again(self) -> None:
        """A message that was seen is dropped and counted."""
        async with pair() as (api, wire, _):
            await self.join(api, wire, offset=19, epoch="e")
            pushes = api.pushes()
            messages = [push_of("x", group="room", offset=n) for n in (19, 20, 20, 21)]
            await wire.write(*messages)

            assert [(await done(anext(pushes))).offset for _ in range(2)] == [20, 21]
            assert api.counts["dropped_push"] == 2

    async def test_jump(self) -> None:
        """Where a message is missing it asks once for what came since."""
        async with pair() as (api, wire, _):
            await self.join(api, wire, offset=19, epoch="e")
            pushes = api.pushes()
            await wire.write(*(push_of("x", group="room", offset=n) for n in (22, 23)))
            call = await wire.read()
            assert call["data"]["since"] == {"offset": 19, "epoch": "e"}
            data = {"group": "room", "offset": 23, "epoch": "e", "recovered": True}
            replay = [push_of("x", group="room", offset=n) for n in range(20, 24)]
            await wire.write(*replay, event_of(call, data))

            offsets = [(await done(anext(pushes))).offset for _ in range(4)]
            assert offsets == [20, 21, 22, 23]
            await settled(api, wire)

    async def test_jump_after_the_answer(self) -> None:
        """Where the answer comes with a message and a jump it asks again, too."""
        async with pair() as (api, wire, _):
            task = start(api.subscribe("room"))
            call = await wire.read()
            data = {"group": "room", "offset": 5, "epoch": "e"}
            pushes = [push_of("x", group="room", offset=n) for n in (6, 9)]
            await wire.write(event_of(call, data), *pushes)
            await done(task)

            assert (await wire.read())["data"]["since"] == {"offset": 6, "epoch": "e"}

    async def test_server_that_always_jumps(self, monkeypatch: Any) -> None:
        """A group that jumps again and again is joined after ever longer waits."""
        bounds: list[Any] = []
        monkeypatch.setattr(wsappy, "FIRST_WAIT", FIRST_WAIT)

        def uniform(low: Any, high: Any) -> Any:
            bounds.append((low, high))
            return 0

        monkeypatch.setattr(random, "uniform", uniform)
        async with pair() as (api, wire, _):
            await self.join(api, wire, offset=0, epoch="e")
            for _ in range(8):
                await wire.write(push_of("x", group="room", offset=9))
                call = await wire.read()
                data = {"group": "room", "offset": 0, "epoch": "e"}
                await wire.answer(call, data)
            await settled(api, wire)

        assert bounds == [(0, high) for high in [0.25, 0.5, 1, 2, 4, 8, 15, 15]]

    @pytest.mark.parametrize("verb", ["subscribe", "unsubscribe"])
    async def test_no_need_after_the_wait(self, verb: str, monkeypatch: Any) -> None:
        """A group that was joined or left during the wait isn't joined once more."""
        waits = iter([0.01, 0.05])
        monkeypatch.setattr(random, "uniform", lambda *_: next(waits))
        async with pair() as (api, wire, _):
            for group in ("room", "other"):
                task = start(api.subscribe(group))
                data = {"group": group, "offset": 0, "epoch": "e"}
                await wire.answer(await wire.read(), data)
                await done(task)
            await wire.write(push_of("x", group="room", offset=9))
            await settled(api, wire)
            task = start(getattr(api, verb)("room"))
            await wire.answer(await wire.read())
            await done(task)
            # It waits longer, and begins later.
            await wire.write(push_of("x", group="other", offset=9))

            assert (await wire.read())["data"]["group"] == "other"

    async def test_progress(self) -> None:
        """Other events before the answer are passed over."""
        async with pair() as (api, wire, _):
            task = start(api.subscribe("room"))
            call = await wire.read()
            await wire.write(event_of(call, 1, "progress"), event_of(call))

            assert await done(task) is None

    async def test_odd_epoch(self) -> None:
        """An epoch that is no string is none."""
        async with pair() as (api, wire, fake):
            deep: Any = []
            for _ in range(200):
                deep = [deep]
            await self.join(api, wire, offset=1, epoch=deep)
            await wire.ws.close(4503)

            since = (await (await fake.accept()).read())["data"]["since"]
            assert since == {"offset": 1, "epoch": None}

    @pytest.mark.parametrize(
        "data", ["yes", {"group": "room"}, {"group": "room", "offset": "x", "epoch": 1}]
    )
    async def test_no_position(self, data: Any) -> None:
        """Where an answer tells no position, messages come as they come."""
        async with pair() as (api, wire, _):
            task = start(api.subscribe("room"))
            await wire.answer(await wire.read(), data)
            await done(task)
            pushes = api.pushes()
            await wire.write(*(push_of("x", group="room", offset=n) for n in (7, 7)))

            assert [(await done(anext(pushes))).offset for _ in range(2)] == [7, 7]

    @pytest.mark.parametrize("retry", [False, True])
    async def test_refused_later(self, retry: Any, caplog: Any) -> None:
        """A group that refuses to be joined again is forgotten, unless it may."""
        async with pair() as (api, wire, fake):
            await self.join(api, wire)
            await wire.ws.close(4503)
            again = await fake.accept()
            error = {"code": "no", "message": "", "retry": retry}
            await again.answer(await again.read(), error, "error")
            await settled(api, again)
            await again.ws.close(4503)
            last = await fake.accept()
            task = start(api.call("entity", "get"))

            call = await last.read()
            assert call["method"] == ("subscribe" if retry else "get")
            task.cancel()
        warnings = [each.getMessage() for each in caplog.records]
        assert warnings[0] == "group 'room' can't be joined again: Error('no', '')"

    @pytest.mark.parametrize("is_answered", [True, False])
    async def test_tried_again_later(self, is_answered: bool) -> None:
        """A group that may be joined later is tried until it lets the peer in."""
        async with pair(timeout=LIMIT if is_answered else 0.05) as (api, wire, fake):
            await self.join(api, wire)
            await wire.ws.close(4503)
            again = await fake.accept()
            for _ in range(2):
                call = await again.read()
                assert call["method"] == "subscribe"
                if is_answered:
                    error = {"code": "overloaded", "message": "", "retry": True}
                    await again.answer(call, error, "error")
                else:
                    assert (await again.read())["method"] == "cancel"
            call = await again.read()

            assert (call["method"], call["data"]) == ("subscribe", {"group": "room"})

    async def test_unsubscribe(self) -> None:
        """A group that was left isn't joined again."""
        async with pair() as (api, wire, fake):
            await self.join(api, wire)
            task = start(api.unsubscribe("room"))
            call = await wire.read()
            assert (call["method"], call["data"]) == ("unsubscribe", {"group": "room"})
            await wire.answer(call)
            await done(task)
            await wire.ws.close(4503)

            await settled(api, await fake.accept())


# -- With a server of wsappy's own --------------------------------------------


class TestBothSides:
    """`connect` with a server of wsappy's own."""

    async def test_calls(self) -> None:
        """Results and errors come as the handler gives them."""
        app = App()

        @app.client("/api")
        async def api(client: Any) -> Any:
            """Everyone may come in."""

        @app.module("entity")
        @app.method("get")
        def get(request: Any, item_id: int) -> Any:
            if item_id == 7:
                raise Error("not_found", "no item 7", details={"item_id": 7})
            return {"id": item_id}

        async with (
            app.serve("127.0.0.1", 0) as serving,
            connect(serving.url("/api"), proxy=None) as peer,
        ):
            entity = peer.module("entity")

            assert await entity.get(item_id=42) == {"id": 42}
            error = await peer_error_of(entity.get(item_id=7), Error)
            assert error.details == {"item_id": 7}

    async def test_both_ways(self) -> None:
        """Streams, cancelling and calls from the server work against one another."""
        app = App()
        ended = asyncio.Event()

        @app.client("/api")
        async def api(client: Any) -> Any:
            """Everyone may come in."""

        entity = app.module("entity")

        @entity.method("count")
        async def count(request: Any, to: int) -> Any:
            for number in range(to):
                yield number

        @entity.method("watch")
        async def watch(request: Any) -> Any:
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                ended.set()

        @entity.method("ask")
        async def ask(request: Any) -> Any:
            return await request.client.call("ui", "confirm", text="Delete?")

        async with (
            app.serve("127.0.0.1", 0) as serving,
            connect(serving.url("/api"), proxy=None) as peer,
        ):
            peer.method("ui", "confirm")(lambda request, text: text + " Yes.")

            numbers = await done(collect(peer.stream("entity", "count", to=1000)))
            assert numbers == list(range(1000))
            assert await done(first_of(peer.stream("entity", "watch"))) == 1
            await done(ended.wait())
            assert await done(peer.call("entity", "ask")) == "Delete? Yes."

    async def test_tls(self, tmp_path: pathlib.Path) -> None:
        """`ssl` is an option of both."""
        files = [tmp_path / "key.pem", tmp_path / "cert.pem"]
        make_certificate(*files)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[1], files[0])
        trust = ssl.create_default_context(cafile=files[1])

        async with (
            wire_app().serve("127.0.0.1", 0, ssl=context) as serving,
            connect(serving.url("/api"), ssl=trust, proxy=None) as peer,
        ):
            assert await done(peer.call("e", "echo", {"a": 1})) == {"a": 1}

    async def test_origin(self) -> None:
        """An unknown path refuses a program by HTTP, a browser by close code."""
        app = App(origins="*")

        @app.client("/api")
        async def api(client: Any) -> Any:
            """Everyone may come in."""

        async with app.serve("127.0.0.1", 0) as serving:
            url = serving.url("/nowhere")
            error = await peer_error_of(connect(url, proxy=None).__aenter__(), Refused)
            assert (error.status, error.message) == (404, "no such path")
            async with connect(url, proxy=None, origin="https://a.example") as peer:
                closed = await peer_error_of(peer.call("a", "b"), ConnectionClosed)
                assert closed.rcvd.code == 4404


HELLO = Push("chat", "hello", {"name": "you"})


async def refuses(api: Peer) -> None:
    """Check that nobody listens where a peer connected."""
    await peer_error_of(ws_connect(api.url, proxy=None), ConnectionRefusedError)


class TestTestClient:
    """`app.test_client`: the application and a client of its own in one loop."""

    @staticmethod
    def app() -> App:
        """Make an app that greets, adds, counts and hangs."""
        app = App()

        @app.client("/api")
        def api(client: wsappy.Client) -> None:
            client.join("all")
            client.push("chat", "hello", name="you")

        @app.module("m")
        @app.method
        def add(request: Request, a: int, b: int) -> int:
            return a + b

        @app.module("m")
        @app.method
        def count(request: Request, n: int) -> Any:
            yield from range(n)

        @app.module("m")
        @app.method
        async def hang(request: Request) -> None:
            await asyncio.get_running_loop().create_future()

        @app.module("m")
        @app.method
        async def halt(request: Request) -> Any:
            yield 1
            await asyncio.get_running_loop().create_future()

        return app

    async def test_call(self) -> None:
        """A call goes over the real wire."""
        async with self.app().test_client("/api") as api:
            assert await api.call("m", "add", a=1, b=2) == 3

    async def test_call_by_module(self) -> None:
        """It is a client as `connect` gives one."""
        async with self.app().test_client("/api") as api:
            assert await api.module("m").add(a=1, b=2) == 3

    async def test_stream(self) -> None:
        """A stream is looped over."""
        async with self.app().test_client("/api") as api:
            assert [item async for item in api.stream("m", "count", n=3)] == [0, 1, 2]

    async def test_push_received(self) -> None:
        """A push is waited for, and taken; others stay."""
        async with self.app().test_client("/api") as api:
            push = await api.push_received("chat", "hello")
            await api.nothing_received()

        assert push == HELLO

    async def test_limit(self) -> None:
        """Every wait has a limit of two seconds by default."""
        assert self.app().test_client("/api").timeout == 2.0

    @pytest.mark.parametrize(
        ("wait", "text"),
        [
            (
                lambda api: api.push_received("chat", "bye"),
                "push chat.bye must come within 0.25 s: got ",
            ),
            (
                lambda api: api.call("m", "hang"),
                "the answer to m.hang must come within 0.25 s: got ",
            ),
            (
                lambda api: collect(api.stream("m", "halt")),
                "an item of m.halt must come within 0.25 s: got ",
            ),
            (
                lambda api: collect(api.pushes()),
                "a push must come within 0.25 s: got ",
            ),
        ],
        ids=["push_received", "call", "stream", "pushes"],
    )
    @pytest.mark.parametrize("came", ["nothing", "the push chat.hello"])
    async def test_nothing_in_time(self, wait: Any, text: str, came: str) -> None:
        """A failure says what was waited for and what came instead."""
        async with self.app().test_client("/api", timeout=0.25) as api:
            if came == "nothing":
                await api.push_received("chat", "hello")
            with pytest.raises(TimeoutError) as raised:
                await wait(api)

        assert str(raised.value) == f"{text}{came} instead"

    async def test_no_connection(self) -> None:
        """The connection has the limit, where `on_connecting` hangs."""
        app = App(grace=0)

        @app.client("/api")
        async def api(client: wsappy.Client) -> None:
            await asyncio.Event().wait()

        client = app.test_client("/api", timeout=0.25)
        with pytest.raises(TimeoutError) as raised:
            await client.__aenter__()

        assert str(raised.value) == (
            "the connection to /api must come within 0.25 s: got nothing instead"
        )
        await refuses(client)

    async def test_no_connection_without_limit(self) -> None:
        """Without a limit the one of the handshake holds."""
        app = App(grace=0)

        @app.client("/api")
        async def api(client: wsappy.Client) -> None:
            await asyncio.Event().wait()

        with pytest.raises(TimeoutError) as raised:
            await app.test_client("/api", timeout=None, open_timeout=0.1).__aenter__()

        assert str(raised.value) == "timed out during opening handshake"

    def test_wrong_path(self) -> None:
        """A path that can't be one says what to write."""
        with pytest.raises(ValueError, match="path must") as raised:
            self.app().test_client("api")

        assert str(raised.value) == "path must start with '/': got 'api'; write '/api'"

    async def test_query(self) -> None:
        """A path may have a query."""
        async with self.app().test_client("/api?token=1") as api:
            assert api.url.endswith("/api?token=1")

    async def test_end_of_pushes(self) -> None:
        """The loop ends with the connection."""
        async with self.app().test_client("/api") as api:
            pushes = api.pushes()
            await api.push_received("chat", "hello")

        assert [push.event async for push in pushes] == ["hello"]

    @pytest.mark.parametrize(
        ("is_taken", "begin", "text"),
        [
            (False, None, f"[{HELLO}], and the calls [] are unfinished"),
            (False, "hang", f"[{HELLO}], and the calls [1] are unfinished"),
            (True, "hang", "[], and the calls [1] are unfinished"),
            (True, "halt", "[], and the calls [1] are unfinished"),
        ],
        ids=["push", "push and call", "call", "stream"],
    )
    async def test_something_received(
        self, is_taken: bool, begin: Any, text: str
    ) -> None:
        """`nothing_received` tells of pushes, and of unfinished calls and streams."""
        begin = {
            "hang": lambda api: api.call("m", "hang"),
            "halt": lambda api: collect(api.stream("m", "halt")),
            None: lambda api: asyncio.sleep(0),
        }[begin]

        async with self.app().test_client("/api") as api:
            if is_taken:
                await api.push_received("chat", "hello")
            task = start(begin(api))
            await asyncio.sleep(0)
            with pytest.raises(AssertionError) as raised:
                await api.nothing_received()
            task.cancel()

        assert str(raised.value) == f"nothing must have come: got the pushes {text}"

    async def test_several_at_once(self) -> None:
        """Several clients share one server, which ends with the last one."""
        app = self.app()

        async with app.test_client("/api") as one:
            async with app.test_client("/api") as two:
                assert one.url == two.url
                assert app.stats()["clients"] == 2
            assert await one.call("m", "add", a=1, b=2) == 3

        assert app.stats()["clients"] == 0
        await refuses(one)

    async def test_lifespan(self) -> None:
        """The first client begins the app's lifespan, and the last one ends it."""
        app, seen = self.app(), list[str]()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            seen.append("begun")
            yield
            seen.append("ended")

        async with app.test_client("/api"):
            async with app.test_client("/api"):
                pass
            before = list(seen)

        assert (before, seen) == (["begun"], ["begun", "ended"])

    async def test_no_grace(self) -> None:
        """The last client ends the others' calls without the app's grace."""
        async with (
            asyncio.timeout(LIMIT),
            self.app().test_client("/api") as api,
        ):
            talk = Talk(await ws_connect(api.url, proxy=None))
            await talk.receive()
            await talk.send({"module": "m", "method": "hang", "request_id": 1})
            await talk.call("$.ping", 2)
        answer = await talk.receive()

        assert error_of(answer) == ("overloaded", "the server is stopping")
        assert await talk.closed() == (1001, "the server is stopping")

    def test_one_loop_after_the_other(self) -> None:
        """An app may be tested in several loops, one after the other."""
        app = self.app()

        async def visit() -> Any:
            async with app.test_client("/api") as one, app.test_client("/api"):
                app.to("all").push("chat", "news")
                await one.push_received("chat", "news")
                return await one.call("m", "add", a=1, b=2)

        assert [asyncio.run(visit()) for _ in range(2)] == [3, 3]

    def test_several_at_once_in_one_loop_after_the_other(self) -> None:
        """Clients that come at the same moment belong to their own loop."""
        app = self.app()

        async def visit(a: int) -> Any:
            async with app.test_client("/api") as api:
                return await api.call("m", "add", a=a, b=1)

        async def visits() -> Any:
            return await asyncio.gather(*map(visit, range(3)))

        assert [asyncio.run(visits()) for _ in range(2)] == [[1, 2, 3]] * 2

    async def test_refused(self) -> None:
        """A client that isn't let in leaves nothing behind."""
        client = self.app().test_client("/nowhere")

        with pytest.raises(Refused) as raised:
            await client.__aenter__()

        assert raised.value.status == 404
        await refuses(client)

    async def test_headers(self) -> None:
        """Options go to `connect`: headers, origin and cookies can be tested."""
        app = App()
        seen: list[Any] = []

        @app.client("/api")
        def api(client: wsappy.Client) -> None:
            seen.append(client.headers["X-Token"])

        async with app.test_client("/api", additional_headers={"X-Token": "t"}):
            pass

        assert seen == ["t"]

    async def test_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy of the environment is passed by."""
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        for scheme in ("http", "https", "socks", "all"):
            monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")

        async with self.app().test_client("/api") as api:
            assert await api.call("m", "add", a=1, b=2) == 3

    async def test_end(self) -> None:
        """A connection that the server has closed isn't opened again."""
        app = self.app()

        @app.module("m")
        @app.method
        async def leave(request: Request) -> None:
            await request.client.close(4503, "full")

        async with app.test_client("/api") as api:
            with pytest.raises(ConnectionClosed):
                await api.call("m", "leave")
            with pytest.raises(ConnectionClosed) as raised:
                await api.call("m", "add", a=1, b=2)

        assert raised.value.rcvd is not None
        assert raised.value.rcvd.code == 4503

    async def test_nothing_received_after_the_end(self) -> None:
        """Where the connection is gone there is nothing to prove."""
        async with self.app().test_client("/api") as api:
            await api.close()
            with pytest.raises(ConnectionClosed):
                await api.nothing_received()


# --- 10. The classic API -----------------------------------------------------


class EntityHandler(Handler):
    """The handler of the seed document, and the other kinds of methods."""

    def __init__(self) -> None:
        super().__init__()
        self.data = [{"id": 42, "name": "a"}, {"id": 15, "name": "b"}]

    @handler_method
    def get(self, request: Request, item_id: int) -> Any:
        """Find items."""
        items = list(filter(lambda x: x["id"] == item_id, self.data))
        yield from request.response("result", items=items)

    @handler_method
    async def find(self, request: Request) -> str:
        """Answer as a coroutine."""
        await request.response("result", found=True)
        return "dropped"

    @handler_method
    def plain(self, request: Request) -> None:
        """Answer as a function."""
        request.response("result", plain=True)

    @handler_method
    def news(self, request: Request) -> Any:
        """Push."""
        yield from self.send_message(request.client, request.id, "news", text="hi")

    @handler_method
    def later(self, request: Request) -> Any:
        """Answer after a turn of the loop."""
        yield from self.helper()
        yield from request.response("result")

    def helper(self) -> Any:
        """Wait; it isn't marked."""
        pause: Any = asyncio.sleep(0)
        yield from pause

    @handler_method
    def broken(self, request: Request) -> Any:
        """Fail."""
        yield from request.response("progress")
        raise KeyError

    def hidden(self, request: Request) -> None:
        """Be out of reach."""


@contextlib.asynccontextmanager
async def classic_talk(server: Server, path: str = "/api") -> AsyncIterator[Talk]:
    """Run a classic server and connect to it."""
    await server.run("127.0.0.1", 0)
    assert server.serving is not None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(server.serving)
        async with ws_connect(server.serving.url(path), proxy=None) as ws:
            yield Talk(ws)


def make_classic(
    client: Any = Client, request: Any = Request, **options: Any
) -> Server:
    """Make a classic server with the seed's handler."""
    return Server(request, {"api": client}, {"entity": EntityHandler()}, **options)


class TestClassicMethods:
    """The handlers of wsappy 0.1.3 run on the same table."""

    @pytest.mark.parametrize(
        ("method", "data", "result"),
        [
            ("get", {"item_id": 42}, {"items": [{"id": 42, "name": "a"}]}),
            ("find", {}, {"found": True}),
            ("plain", {}, {"plain": True}),
            ("later", {}, {}),
        ],
    )
    async def test_kinds(self, method: str, data: Any, result: Any) -> None:
        """A generator, `async def` and `def` answer what they send themselves."""
        async with classic_talk(make_classic()) as talk:
            answer = await talk.call(f"entity.{method}", **data)

        assert result_of(answer) == result

    async def test_handler_send_message(self) -> None:
        """`Handler.send_message` writes `method` null."""
        async with classic_talk(make_classic()) as talk:
            answer = await talk.call("entity.news")

        assert answer == {
            "request_id": 1,
            "module": "entity",
            "method": None,
            "event": "news",
            "data": {"text": "hi"},
        }

    async def test_exception(self) -> None:
        """An exception alone adds `error`."""
        async with classic_talk(make_classic()) as talk:
            await talk.call("entity.broken")

            assert error_of(await talk.receive()) == ("internal", "internal error")

    @pytest.mark.parametrize("name", ["hidden", "__init__", "get_module_name"])
    async def test_unmarked(self, name: str) -> None:
        """A method that is not marked can't be called from outside."""
        async with classic_talk(make_classic()) as talk:
            answer = await talk.call(f"entity.{name}")

        assert error_of(answer) == ("unknown_method", "no such module or method")


class TestClassicServer:
    """The server of wsappy 0.1.3 with its two ways to name handlers."""

    def test_seed(self) -> None:
        """The server of the seed document runs as it stands there."""
        server = Server(Request, {"api": Client}, {"entity": EntityHandler()})
        loop = asyncio.get_event_loop()
        loop.run_until_complete(server.run("127.0.0.1", 0))
        assert server.serving is not None

        loop.run_until_complete(server.serving.__aexit__())

        loop.close()
        asyncio.set_event_loop(None)

    async def test_handlers_of_a_path(self) -> None:
        """The later form gives each path its own handlers."""
        handlers = {"other": EntityHandler()}
        server = Server(Request, {"api": (Client, handlers), "bare": (Client, {})})

        assert names_of(server.app) == [
            ("/api", "other", name)
            for name in ("broken", "find", "get", "later", "news", "plain")
        ]

    def test_outside_the_main_thread(self) -> None:
        """In another thread no loop is set."""
        servers: list[Server] = []
        thread = threading.Thread(target=lambda: servers.append(make_classic()))
        thread.start()
        thread.join()

        assert names_of(servers[0].app)[0] == ("/api", "entity", "broken")

    async def test_client_arguments(self) -> None:
        """A client is made as `factory(server, connection, handlers)`."""
        seen = []

        class Own(Client):
            def __init__(self, server: Any, connection: Any, handlers: Any) -> None:
                seen.extend([server, connection is self.connection, handlers])
                super().__init__(server, connection, handlers)

        server = make_classic(Own)
        async with classic_talk(server):
            pass

        assert seen == [server, True, server.handlers]

    async def test_encoder_and_decoder(self) -> None:
        """JSON encoder and decoder classes are those of the `json` module."""

        class Encoder(json.JSONEncoder):
            def default(self, o: Any) -> Any:
                return f"<{type(o).__name__}>"

        class Decoder(json.JSONDecoder):
            def decode(self, s: str, *args: Any) -> Any:
                return json.loads(s.replace("old", "entity"))

        server = make_classic(json_encoder=Encoder, json_decoder=Decoder)
        server.handlers["entity"].data = [{"id": 1, "name": {1, 2}}]  # type: ignore[index]
        async with classic_talk(server) as talk:
            answer = await talk.call("old.get", item_id=1)

        assert result_of(answer) == {"items": [{"id": 1, "name": "<set>"}]}


class _GeneratorClient(Client):
    """A client whose hooks are plain generators, as they were in 2018."""

    seen: typing.ClassVar[list[str]] = []

    def on_connected(self) -> Any:
        pause: Any = asyncio.sleep(0)
        yield from pause
        self.seen.append("connected")

    def process_message(self, request: Request) -> Any:
        self.seen.append(f"{request.module}.{request.method}")
        work: Any = super().process_message(request)
        yield from work

    def send_message(self, *head: Any, **data: Any) -> Any:
        self.seen.append(f"sent {head[3]}")
        yield from super().send_message(*head, **data)

    def on_disconnected(self) -> Any:
        pause: Any = asyncio.sleep(0)
        yield from pause
        self.seen.append("disconnected")


class _PlainClient(Client):
    """A client whose hooks are plain functions."""

    seen: typing.ClassVar[list[str]] = []

    def on_connected(self) -> Any:
        self.seen.append("connected")

    def process_message(self, request: Request) -> Any:
        self.seen.append(f"{request.module}.{request.method}")
        return super().process_message(request)

    def send_message(self, *head: Any, **data: Any) -> Any:
        self.seen.append(f"sent {head[3]}")
        return super().send_message(*head, **data)

    def on_disconnected(self) -> Any:
        self.seen.append("disconnected")


class _AsyncClient(Client):
    """A client whose hooks are `async def`."""

    seen: typing.ClassVar[list[str]] = []

    async def on_connected(self) -> None:
        self.seen.append("connected")

    async def process_message(self, request: Request) -> Any:
        self.seen.append(f"{request.module}.{request.method}")
        return await super().process_message(request)

    async def send_message(self, *head: Any, **data: Any) -> None:
        self.seen.append(f"sent {head[3]}")
        await super().send_message(*head, **data)

    async def on_disconnected(self) -> None:
        self.seen.append("disconnected")


class TestClassicHooks:
    """Hooks may be plain generators, `async def` or `def`; they see every message."""

    @pytest.mark.parametrize("kind", [_GeneratorClient, _PlainClient, _AsyncClient])
    async def test_hooks(self, kind: Any) -> None:
        """Every hook runs, and `send_message` sends what the handler answers."""
        kind.seen.clear()
        async with classic_talk(make_classic(kind)) as talk:
            await talk.call("entity.get", item_id=42)

        assert kind.seen == [
            "connected",
            "entity.get",
            "sent result",
            "disconnected",
        ]

    @pytest.mark.parametrize("kind", [_GeneratorClient, _PlainClient, _AsyncClient])
    async def test_errors(self, kind: Any) -> None:
        """`send_message` sends the errors of the framework, too."""
        kind.seen.clear()
        async with classic_talk(make_classic(kind)) as talk:
            await talk.call("entity.unknown")
            await talk.send("nonsense")
            await talk.receive()

        assert kind.seen == [
            "connected",
            "entity.unknown",
            "sent error",
            "sent error",
            "disconnected",
        ]

    @pytest.mark.parametrize("kind", [_GeneratorClient, _PlainClient, _AsyncClient])
    async def test_decorators(self, kind: Any) -> None:
        """Clients of the decorator API may have the same hooks."""
        kind.seen.clear()
        app = App()
        app.client("/api")(kind)
        app.module("entity")(EntityHandler())

        async with talking(app) as talk:
            await talk.call("entity.find")

        assert kind.seen == [
            "connected",
            "entity.find",
            "sent result",
            "disconnected",
        ]


class _GeneratorRequest(Request):
    """A request whose `response` is a plain generator."""

    def response(self, event: str, data: Any = None, /, **fields: Any) -> Any:
        yield from super().response(event, data, **fields, own=self.id)


class _AsyncRequest(Request):
    """A request with an `__init__` and a `response` of its own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.own = self.id

    async def response(self, event: str, data: Any = None, /, **fields: Any) -> None:  # type: ignore[override]
        await super().response(event, data, **fields, own=self.own)


class _PlainRequest(Request):
    """A request whose `response` is a plain function."""

    def response(self, event: str, data: Any = None, /, **fields: Any) -> Any:
        return super().response(event, data, **fields, own=self.id)


class TestClassicRequests:
    """An overridden `Request.response` is used for every answer."""

    @pytest.mark.parametrize("kind", [_GeneratorRequest, _AsyncRequest, _PlainRequest])
    async def test_answer(self, kind: Any) -> None:
        """It sends what a handler answers."""
        async with classic_talk(make_classic(request=kind)) as talk:
            answer = await talk.call("entity.get", 7, item_id=1)

        assert result_of(answer) == {"items": [], "own": 7}

    @pytest.mark.parametrize("kind", [_GeneratorRequest, _AsyncRequest, _PlainRequest])
    async def test_error(self, kind: Any) -> None:
        """It sends the errors of the framework."""
        async with classic_talk(make_classic(request=kind)) as talk:
            answer = await talk.call("entity.get", 7)

        assert (answer["data"]["code"], answer["data"]["own"]) == ("bad_data", 7)


# --- 12. For people ----------------------------------------------------------

SITE = {
    "index.html": "<p>home</p>",
    "app.js": "let x",
    "r\u00e4ume.txt": "gr\u00fcn",
    "image.JPG": "\0",
    "other": "other",
    ".env": "SECRET",
    "docs/index.html": "docs",
    "docs/page.html": "page",
    "docs/.git/config": "SECRET",
    "empty/file.map": "{}",
    "with space/index.html": "space",
    "api": "file",
    "page": "file",
    "folder.html/x.css": "p {}",
    "index/index.html/x.css": "",
}


@pytest.fixture
def site(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a folder with files, beside a secret, and links in and out of it."""
    root = tmp_path / "site"
    for name, text in SITE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (tmp_path / "site-secret").mkdir()
    for folder in (tmp_path, tmp_path / "site-secret"):
        (folder / "secret.txt").write_text("SECRET", encoding="utf-8")
    (root / "inside.js").symlink_to(root / "app.js")
    (root / "outside.txt").symlink_to(tmp_path / "secret.txt")
    (root / "sibling").symlink_to(tmp_path / "site-secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


def site_app(root: Any, path: str = "/") -> App:
    """Make an app with files."""
    app = make_app()
    app.static(path, root)
    return app


class Fetched(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


async def fetch(source: Any, path: str, method: str = "GET", **headers: Any) -> Fetched:
    """Ask an app, or what serves it, for a file."""
    async with contextlib.AsyncExitStack() as stack:
        serving = source
        if isinstance(source, App):
            serving = await stack.enter_async_context(source.serve("127.0.0.1", 0))
        request = request_by_hand(path, method, **headers)
        wire = await stack.enter_async_context(dialled(serving, request))
        return Fetched(*await wire.head(), await wire.ended())


class TestFiles:
    """Files of `App.static`."""

    @pytest.mark.parametrize(
        ("path", "content_type", "body"),
        [
            ("/", "text/html; charset=utf-8", "<p>home</p>"),
            ("/index.html", "text/html; charset=utf-8", "<p>home</p>"),
            ("/?a=/../x", "text/html; charset=utf-8", "<p>home</p>"),
            ("/app.js", "text/javascript; charset=utf-8", "let x"),
            ("/inside.js", "text/javascript; charset=utf-8", "let x"),
            ("/r%C3%A4ume.txt", "text/plain; charset=utf-8", "gr\u00fcn"),
            ("/image.JPG", "image/jpeg", "\0"),
            ("/other", "application/octet-stream", "other"),
            ("/docs/", "text/html; charset=utf-8", "docs"),
            ("/docs/page.html", "text/html; charset=utf-8", "page"),
            ("/with%20space/", "text/html; charset=utf-8", "space"),
            ("/empty/file.map", "application/json", "{}"),
            ("/folder.html/x.css", "text/css; charset=utf-8", "p {}"),
        ],
    )
    async def test_file(
        self, site: pathlib.Path, path: str, content_type: str, body: str
    ) -> None:
        """It is sent with its type, and the browser asks again each time."""
        status, headers, sent = await fetch(site_app(site), path)

        assert (status, sent.decode()) == (200, body)
        assert headers["Content-Type"] == content_type
        assert headers["Content-Length"] == str(len(sent))
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-cache"

    def test_content_types(self) -> None:
        """The types are those of a table, whatever the machine thinks."""
        suffixes = (
            ".html .css .js .mjs .json .svg .png .jpg .ico .wasm .woff2 .txt .map"
        )

        assert set(wsappy.CONTENT_TYPES) == set(suffixes.split())

    @pytest.mark.parametrize(
        ("path", "location"),
        [
            ("/docs", "docs/"),
            ("/docs?a=1&b=%26", "docs/?a=1&b=%26"),
            ("/with%20space", "with%20space/"),
            ("/empty", "empty/"),
            ("/index/index.html", "index.html/"),
        ],
    )
    async def test_slash(self, site: pathlib.Path, path: str, location: str) -> None:
        """The last slash of a folder is added by 308."""
        status, headers, _ = await fetch(site_app(site), path)

        assert (status, headers["Location"]) == (308, location)

    @pytest.mark.parametrize(
        "path",
        [
            "/none",
            "/none/",
            "/empty/",
            "/index.html/",
            "/index.html/x",
            "/index/",
            "/docs//page.html",
            "//docs/page.html",
            "//docs",
            "/../secret.txt",
            "/docs/../index.html",
            "/docs/..",
            "/..",
            "/.",
            "/./index.html",
            "/%2e%2e/secret.txt",
            "/..%2fsecret.txt",
            "/%2e%2e%2fsecret.txt",
            "/docs%2fpage.html",
            "/..%5csecret.txt",
            "/docs%5cpage.html",
            "/docs\\page.html",
            "/%00",
            "/index.html%00",
            "/C:/index.html",
            "/index.html::$DATA",
            "/.env",
            "/%2eenv",
            "/docs/.git/config",
            "/docs/.git/",
            "/outside.txt",
            "/sibling",
            "/sibling/",
            "/sibling/secret.txt",
            "/up/secret.txt",
            "/up",
            "/up/",
            "/up/site/index.html.",
            "/loop",
            "/pipe",
            "/%ff",
            "/" + "x" * 300,
            "/" + "x/" * 3000,
        ],
    )
    async def test_missing(self, site: pathlib.Path, path: str) -> None:
        """What leads out of the folder, is hidden or isn't there is 404."""
        status, headers, body = await fetch(site_app(site), path)

        assert (status, body) == (404, b"not found")
        assert "Location" not in headers

    def test_anything(self, site: pathlib.Path) -> None:
        """Whatever is asked for, nothing comes out that isn't in the folder."""
        pieces = ["/", "..", ".", "%2e", "%2F", "%5c", "\\", "%00", ":", "~", "docs"]
        pieces += ["secret.txt", "up", "sibling", "index.html", ".env", "site", "%25"]
        bodies = {each.encode() for each in SITE.values()} - {b"SECRET"}

        with asyncio.Runner() as runner:
            serving = site_app(site).serve("127.0.0.1", 0)
            runner.run(serving.__aenter__())

            @settings(max_examples=150, deadline=None, database=None)
            @given(st.lists(st.sampled_from(pieces), max_size=9))
            def ask(parts: list[str]) -> None:
                status, _, body = runner.run(fetch(serving, "/" + "".join(parts)))
                assert (status, body) in {(404, b"not found"), (308, b"")} or (
                    status == 200 and body in bodies
                )

            try:
                ask()
            finally:
                runner.run(serving.__aexit__())

    async def test_head(self, site: pathlib.Path) -> None:
        """HEAD has the headers, and no body."""
        status, headers, body = await fetch(site_app(site), "/app.js", "HEAD")

        assert (status, headers["Content-Length"], body) == (200, "5", b"")

    async def test_other_method(self, site: pathlib.Path) -> None:
        """Other methods are 405."""
        assert (await fetch(site_app(site), "/app.js", "PUT")).status == 405

    @pytest.mark.parametrize(
        ("known", "status"),
        [
            ("{}", 304),
            ("W/{}", 304),
            ('"x", {}', 304),
            (['"x"', "{}"], 304),
            ("*", 304),
            ('"x"', 200),
            ("", 200),
        ],
    )
    async def test_known(self, site: pathlib.Path, known: Any, status: int) -> None:
        """A browser that has the file gets 304."""
        app = site_app(site)
        _, headers, _ = await fetch(app, "/app.js")
        tag = headers["ETag"]
        lines = known if isinstance(known, list) else [known]
        told: Any = {"If-None-Match": [each.format(tag) for each in lines]}

        answer = await fetch(app, "/app.js", **told)

        assert (answer.status, answer.headers["ETag"]) == (status, tag)
        assert answer.body == (b"" if status == 304 else b"let x")

    async def test_changed(self, site: pathlib.Path) -> None:
        """A file that has changed, be it to the same size and time, is sent again."""
        app, file = site_app(site), site / "app.js"
        _, headers, _ = await fetch(app, "/app.js")
        times = file.stat()
        file.write_text("let y", encoding="utf-8")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

        answer = await fetch(app, "/app.js", **{"If-None-Match": headers["ETag"]})

        assert answer.body == b"let y"

    async def test_large(
        self, site: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file of 4 MiB is sent, a larger one is 500, and the log says what to do."""
        app = site_app(site)
        (site / "fits").write_bytes(bytes(2**22))
        (site / "large").write_bytes(bytes(2**22 + 1))

        fits, large = await fetch(app, "/fits"), await fetch(app, "/large")

        assert (fits.status, len(fits.body)) == (200, 2**22)
        assert (large.status, large.body) == (500, b"internal error")
        path = str(site / "large")
        assert caplog.messages == [f"{path!r} has over 4194304 bytes; use a web server"]

    async def test_order(self, site: pathlib.Path) -> None:
        """Pages and routes win over files, and the longest path over others."""
        app = site_app(site)
        app.static("/docs/", site / "empty")
        app.http("/page")(lambda request: "page")
        paths = [
            "/page",
            "/api",
            "/docs/file.map",
            "/docs/page.html",
            "/docsx",
            "/app.js",
        ]

        async with app.serve("127.0.0.1", 0) as serving:
            answers = [await fetch(serving, path) for path in paths]

        assert [each.status for each in answers] == [200, 426, 200, 404, 404, 200]
        assert answers[0].body == b"page"

    @pytest.mark.parametrize("path", ["/my files", "/my files/"])
    async def test_path(self, site: pathlib.Path, path: str) -> None:
        """Without its slash the path of a folder is 308; others aren't below it."""
        async with site_app(site, path).serve("127.0.0.1", 0) as serving:
            root = await fetch(serving, "/my%20files")
            index = await fetch(serving, "/my%20files/")
            other = await fetch(serving, "/my%20filesindex.html")
            outside = await fetch(serving, "/index.html")

        assert (root.status, root.headers["Location"]) == (308, "my%20files/")
        assert index.body == b"<p>home</p>"
        assert (other.status, outside.status) == (404, 404)

    async def test_upgrade(self, site: pathlib.Path) -> None:
        """Upgrades look at routes only."""
        assert (await shake_by_hand(site_app(site), "/app.js"))[0] == 404

    async def test_relative(
        self, site: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder is looked for in the current directory, once, at the start."""
        app = site_app("site")
        monkeypatch.chdir(site.parent)

        async with app.serve("127.0.0.1", 0) as serving:
            monkeypatch.chdir("/")
            answer = await fetch(serving, "/app.js")

        assert answer.body == b"let x"

    async def test_new_release(self, site: pathlib.Path) -> None:
        """A folder that is a link may be linked to another one meanwhile."""
        link = site.parent / "current"
        link.symlink_to(site / "docs")

        async with site_app(link).serve("127.0.0.1", 0) as serving:
            before = await fetch(serving, "/")
            link.unlink()
            link.symlink_to(site)
            after = await fetch(serving, "/")

        assert (before.body, after.body) == (b"docs", b"<p>home</p>")

    @pytest.mark.parametrize("name", ["none", "site/app.js"])
    async def test_no_folder(self, site: pathlib.Path, name: str) -> None:
        """A folder that isn't there is an error at the start."""
        folder = site.parent / name

        with pytest.raises(ValueError, match="folder") as caught:
            await start_up(site_app(folder, "/files"))

        assert str(caught.value) == (
            f"folder of app.static('/files', ...) must be there: got {str(folder)!r}; "
            f"make it"
        )

    def test_two_at_one_path(self, site: pathlib.Path) -> None:
        """Two folders at one path are an error."""
        app = site_app(site, "/files")

        with pytest.raises(ValueError, match="folder") as caught:
            app.static("/files/", site)

        assert str(caught.value) == (
            "folder '/files/' must be the only one there; write another"
        )

    def test_parameters(self, site: pathlib.Path) -> None:
        """A path with parameters is an error."""
        with pytest.raises(ValueError, match="folder") as caught:
            site_app(site, "/{x}")

        assert (
            str(caught.value) == "folder '/{x}' must have no parameters; use the query"
        )


# --- 13. ASGI ----------------------------------------------------------------


class Host:
    """The server of a host: a test plays it, one message after the other.

    Attributes:
        said: What the application has sent.
        is_blocked: Whether `send` waits, as for a client that doesn't read.
        exc: What `send` raises from now on.
    """

    def __init__(self, asgi: Any, kind: str = "websocket", **more: Any) -> None:
        self.scope: dict[str, Any] = {"type": kind, "path": "/api", "headers": []}
        self.scope |= {"query_string": b"", **more}
        self.asgi = asgi
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.said: list[Any] = []
        self.free, self.moved = asyncio.Event(), asyncio.Event()
        self.free.set()
        self.exc: BaseException | None = None
        self.tell("websocket.connect")

    def tell(self, kind: str, **more: Any) -> None:
        """Let the application receive an event."""
        self.heard.put_nowait({"type": kind, **more})

    def ask(self, name: str, request_id: Any = 1, **data: Any) -> None:
        """Let a client call a method of the module `m`."""
        message = {"module": "m", "method": name, "data": data}
        text = json.dumps({**message, "request_id": request_id})
        self.tell("websocket.receive", text=text)

    def leave(self, **more: Any) -> None:
        """Let the client go."""
        self.tell("websocket.disconnect", **more)

    async def send(self, event: Any) -> None:
        """Take what the application says, once there is room."""
        await self.free.wait()
        if self.exc is not None:
            raise self.exc
        self.said.append(event)
        self.moved.set()

    async def run(self) -> list[Any]:
        """Run the application to its end; return what it has sent."""
        async with asyncio.timeout(LIMIT):
            await self.asgi(self.scope, self.heard.get, self.send)
        return self.said

    def start(self) -> asyncio.Task[list[Any]]:
        """Run the application in a task."""
        return asyncio.create_task(self.run())

    async def saying(self, count: int) -> Any:
        """Wait until that many events were sent; return the last of them."""
        async with asyncio.timeout(LIMIT):
            while len(self.said) < count:
                self.moved.clear()
                await self.moved.wait()
        return self.said[count - 1]


def hosted_app(**options: Any) -> App:
    """Make an app with some methods in the module `m`."""
    app = make_app(**options)
    for handler in (echo, sleep_on, echo_later):
        app.module("m")(app.method()(handler))
    return app


ACCEPT = {"type": "websocket.accept"}
DENIAL: Any = {"extensions": {"websocket.http.response": {}}}


def hosted_close(code: int, reason: str) -> Any:
    """Return the event of a close."""
    return {"type": "websocket.close", "code": code, "reason": reason}


def hosted_text(event: Any) -> Any:
    """Return the message of a text that was sent."""
    assert list(event) == ["type", "text"], event
    assert event["type"] == "websocket.send"
    return json.loads(event["text"])


class TestAsgiScope:
    """What a host says of a connection is what a client has."""

    @pytest.mark.parametrize(
        ("path", "root", "seen"),
        [
            ("/api", "", "/api"),
            ("/ws/api", "/ws", "/api"),
            ("/ws/api", "/ws/", "/api"),
            ("/api", "/ws", "/api"),
            ("/api", "/a", "/api"),
        ],
    )
    async def test_path(self, path: str, root: str, seen: str) -> None:
        """The path begins after that of the mount, where it begins with it."""
        app = App()
        clients = clients_of(app)
        host = Host(app.asgi(), path=path, root_path=root)
        host.leave()

        assert await host.run() == [ACCEPT]
        assert clients[0].path == seen

    @pytest.mark.parametrize(
        ("more", "status"),
        [
            ({"path": "/ws", "root_path": "/ws"}, 200),
            ({"path": "/page/", "raw_path": b"/page"}, 200),
            ({"path": "/page/x", "raw_path": b"/page/x"}, 404),
            ({"path": "/gr\xfcn \ud800"}, 404),
        ],
    )
    async def test_page(self, more: Any, status: int) -> None:
        """A path is decoded already; a slash that a host has added doesn't count."""
        app = make_app()
        for path in ("/", "/page"):
            app.http(path)(lambda request: request.path)

        said = await Host(app.asgi(), "http", **more).run()

        assert said[0]["status"] == status

    async def test_attributes(self) -> None:
        """A client has the host's headers, query, address and scope."""
        app = App()
        clients = clients_of(app)
        headers = [(b"cookie", b"a=1"), (b"cookie", b"b=\xfc"), (b"x-a", b"1")]
        query, address = b"a=1&b=%C3%BC", ["127.0.0.1", 4]
        host = Host(app.asgi(), headers=headers, query_string=query, client=address)
        host.leave()

        await host.run()

        client = clients[0]
        assert client.headers["Cookie"] == "a=1; b=\xfc"
        assert client.query == {"a": "1", "b": "\xfc"}
        assert client.remote == ("127.0.0.1", 4)
        assert client.scope is host.scope

    async def test_no_scope(self) -> None:
        """Elsewhere a client has no scope."""
        app = App()
        clients = clients_of(app)

        async with talking(app) as talk:
            await talk.call("$.ping")

        assert clients[0].scope is None

    async def test_unknown(self) -> None:
        """Another type of scope is a ValueError."""
        with pytest.raises(ValueError, match="scope") as caught:
            await make_app().asgi()({"type": "x"}, None, None)

        assert str(caught.value) == (
            "scope must be of type websocket, http or lifespan: got 'x'; write an if "
            "before it"
        )

    def test_proxies(self) -> None:
        """An app with proxies is a ValueError: the host knows the address."""
        with pytest.raises(ValueError, match="proxies") as caught:
            App(proxies=2).asgi()

        assert str(caught.value) == (
            "proxies must be 0 in another server: got 2; that one knows the client's "
            "address, write uvicorn --forwarded-allow-ips=..., say"
        )


class TestAsgiAnswer:
    """A refusal is an answer where the host knows one, else a close: 403."""

    @staticmethod
    def app() -> App:
        """Make an app that lets nobody in."""
        app = App()

        @app.client("/api")
        def api(client: Client) -> None:
            raise Refused(401, "sign in")

        @app.http("/page")
        def page(request: Any) -> str:
            return "hello"

        return app

    async def test_denial(self) -> None:
        """With the extension it has the status and the reason."""
        said = await Host(self.app().asgi(), **DENIAL).run()

        kind = "websocket.http.response"
        headers = [(b"content-length", b"7")]
        headers += [(b"content-type", b"text/plain; charset=utf-8")]
        assert said == [
            {"type": f"{kind}.start", "status": 401, "headers": headers},
            {"type": f"{kind}.body", "body": b"sign in"},
        ]

    @pytest.mark.parametrize("more", [{}, {"extensions": None}])
    async def test_no_denial(self, more: Any) -> None:
        """Without it the close says why to who can read it."""
        app = self.app()

        said = await Host(app.asgi(), **more).run()

        assert said == [hosted_close(4401, "sign in")]
        assert app.stats()["refused"] == {"401": 1}

    async def test_browser(self) -> None:
        """A browser is let in and told, as everywhere."""
        headers = [(b"origin", b"http://a"), (b"host", b"a")]
        host = Host(self.app().asgi(), headers=headers, **DENIAL)
        running = host.start()
        await host.saying(2)
        host.leave(code=4401)

        assert await running == [ACCEPT, hosted_close(4401, "sign in")]

    async def test_fault(self) -> None:
        """A request with two origins is 400."""
        headers = [(b"origin", b"http://a"), (b"origin", b"http://b")]

        said = await Host(self.app().asgi(), headers=headers, **DENIAL).run()

        assert said[0]["status"] == 400

    async def test_head(self) -> None:
        """A page that is asked for its head has no body."""
        more = {"path": "/page", "method": "HEAD"}

        start, body = await Host(self.app().asgi(), "http", **more).run()

        assert (start["type"], start["status"]) == ("http.response.start", 200)
        assert body == {"type": "http.response.body", "body": b""}

    async def test_client_that_is_gone(self) -> None:
        """One that is gone when it is let in gets its goodbye, and counts as dropped."""
        app, gone = App(), list[Client]()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            yield
            gone.append(client)

        host = Host(app.asgi())
        host.exc = ConnectionResetError()

        await host.run()

        assert len(gone) == 1
        assert app.stats()["handshakes_dropped"] == 1

    async def test_hook_that_never_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A handshake has its limit here, too."""
        monkeypatch.setitem(wsappy.TIMEOUTS, "open_timeout", 0.08)
        app, ended = App(), asyncio.Event()

        @app.client("/api")
        async def api(client: Client) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        assert await Host(app.asgi()).run() == []
        assert ended.is_set()


class TestAsgiTalk:
    """Messages go both ways, one at a time."""

    async def test_call(self) -> None:
        """A call in a text is answered by a text."""
        host = Host(hosted_app().asgi())
        running = host.start()
        host.ask("echo", value="\xfc")

        answer = hosted_text(await host.saying(2))

        assert answer == calls_event("echo", "result", "\xfc")
        host.leave()
        await running

    async def test_binary(self) -> None:
        """Binary frames are read, too."""
        host = Host(hosted_app().asgi())
        running = host.start()
        message = json.dumps({"module": "m", "method": "echo", "request_id": 1})
        host.tell("websocket.receive", bytes=message.encode(), text=None)

        answer = hosted_text(await host.saying(2))

        assert answer == calls_event("echo", "result", {})
        host.leave()
        await running

    async def test_no_utf_8(self) -> None:
        """Text with half of a surrogate pair, which no server lets pass, is 1007."""
        host = Host(hosted_app().asgi())
        running = host.start()
        host.tell("websocket.receive", text="\ud800")

        close = await host.saying(2)

        assert close == hosted_close(1007, "invalid continuation byte at position 0")
        host.leave()
        await running

    async def test_order(self) -> None:
        """Calls of one read begin in order, also a `def` behind an `async def`."""
        host = Host(hosted_app().asgi())
        running = host.start()
        for request_id, name in enumerate(["echo_later", "echo"]):
            host.ask(name, request_id, value=0)

        await host.saying(3)

        ids = [hosted_text(each)["request_id"] for each in host.said[1:]]
        assert sorted(ids) == [0, 1]
        host.leave()
        await running

    async def test_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reading and writing give the loop its turns."""
        monkeypatch.setattr(wsappy, "TURN", 0.0)
        host = Host(hosted_app().asgi())
        running = host.start()
        for request_id in range(5):
            host.ask("echo", request_id)

        await host.saying(6)

        ids = [hosted_text(each)["request_id"] for each in host.said[1:]]
        assert ids == list(range(5))
        host.leave()
        await running

    async def test_raw_messages(self) -> None:
        """A route of another protocol sends text and bytes, and is read one by one."""
        app = App()

        @app.client("/api")
        class Raw(Client):
            async def on_message(self, message: str | bytes) -> None:
                await self.connection.send(message)

        host = Host(app.asgi())
        running = host.start()
        large = "x" * wsappy.MAX_RAW
        host.tell("websocket.receive", text=large)
        host.tell("websocket.receive", bytes=b"\xff")
        await host.saying(3)
        host.leave()

        assert await running == [
            ACCEPT,
            {"type": "websocket.send", "text": large},
            {"type": "websocket.send", "bytes": b"\xff"},
        ]
        assert app.stats()["pauses"] == 1


class TestAsgiSlowReaders:
    """What waits for a host that doesn't take it is bounded, and counted."""

    @staticmethod
    async def blocked(**options: Any) -> tuple[App, Host, Any, Client]:
        """Return an app, and a host with a client that doesn't read."""
        app = App(**options)
        clients = clients_of(app)
        for handler in (echo, sleep_on, echo_later):
            app.module("m")(app.method()(handler))

        @app.module("m")
        @app.method
        async def fresh(request: Request) -> AsyncIterator[int]:
            for number in range(2):
                await request.ready()
                yield number

        host = Host(app.asgi())
        running = host.start()
        host.ask("echo")
        await host.saying(2)
        host.free.clear()
        return app, host, running, clients[0]

    async def test_answers(self) -> None:
        """Reading stops while it is behind; what waits goes out when it catches up."""
        app, host, running, client = await self.blocked()
        sent = client.push("m", "large", "x" * 2**16)
        await turns()
        host.ask("echo", 2)
        await turns()
        seen = len(host.said), app.stats()["pauses"]

        host.free.set()
        await sent
        await host.saying(4)

        assert seen == (2, 1)
        assert hosted_text(host.said[3])["request_id"] == 2
        host.leave()
        await running

    async def test_burst(self) -> None:
        """What a host takes in the same turn is no pause."""
        app, host, running, client = await self.blocked()
        host.free.set()

        await client.push("m", "large", "x" * 2**16)
        await turns()

        assert app.stats()["pauses"] == 0
        host.leave()
        await running

    async def test_too_slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that is too far behind is closed with 4508, and left a second later."""
        monkeypatch.setattr(wsappy, "SLOW_GRACE", 0.0)
        app, host, running, client = await self.blocked(max_backlog=2**16)

        while client.is_open:
            client.push("m", "large", "x" * 2**16)
            await asyncio.sleep(0)
        await running

        stats = app.stats()
        assert stats["slow_clients_dropped"] == 1
        assert stats["closed"] == {"4508": 1}

    async def test_close_that_is_taken(self) -> None:
        """One that reads again gets what waited, and the close after it."""
        app, host, running, client = await self.blocked(max_backlog=2**16)
        while client.is_open:
            client.push("m", "large", "x" * 2**16)
            await asyncio.sleep(0)

        host.free.set()
        async with asyncio.timeout(LIMIT):
            while host.said[-1]["type"] != "websocket.close":
                host.moved.clear()
                await host.moved.wait()

        assert host.said[-1] == hosted_close(4508, "it reads too slowly")
        host.leave()
        await running

    async def test_ready(self) -> None:
        """`ready` waits until the host has taken what was sent."""
        app, host, running, client = await self.blocked()
        client.push("m", "first")
        host.ask("fresh", 2)
        await turns()
        seen = len(host.said)

        host.free.set()
        await host.saying(6)

        assert seen == 2
        assert [hosted_text(each)["event"] for each in host.said[2:]] == [
            *("first", "item", "item", "result"),
        ]
        host.leave()
        await running

    async def test_gone(self) -> None:
        """Who waits for a client hears that it is gone."""
        app, host, running, client = await self.blocked()
        sent = client.push("m", "large", "x" * 2**16)
        waiting = asyncio.ensure_future(sent)
        await turns()
        host.exc = BrokenPipeError()

        host.free.set()

        with pytest.raises(ConnectionClosed, match="no close frame"):
            await waiting
        await running
        assert app.stats()["closed"] == {"1006": 1}


class TestAsgiEnd:
    """A client gets its goodbye once, however its connection ends."""

    @staticmethod
    def app(told: list[str], **options: Any) -> App:
        """Make an app that tells of its goodbyes, and of calls that were cut."""
        app = App(**options)

        @app.client("/api")
        class Api(Client):
            async def on_disconnected(self) -> None:
                await asyncio.sleep(0)
                told.append("goodbye")

        @app.module("m")
        @app.method
        async def wait(request: Request) -> None:
            told.append("began")
            try:
                await asyncio.Event().wait()
            finally:
                told.append("cut")

        @app.module("m")
        @app.method
        async def leave(request: Request) -> None:
            await request.client.close(4001, "bye")

        return app

    @pytest.mark.parametrize(
        ("more", "label"),
        [({"code": 1001}, "1001"), ({"code": 1006}, "1006"), ({}, "1005")],
    )
    async def test_disconnect(self, more: Any, label: str) -> None:
        """The end of the connection ends its calls."""
        told: list[str] = []
        app = self.app(told)
        host = Host(app.asgi())
        host.ask("wait")
        host.leave(reason=None, **more)

        await host.run()

        assert told in (["began", "cut", "goodbye"], ["goodbye"])
        assert app.stats()["closed"] == {label: 1}

    async def test_close(self) -> None:
        """A close of the server's waits for the host's word, messages in between don't
        count."""
        told: list[str] = []
        app = self.app(told)
        host = Host(app.asgi())
        running = host.start()
        host.ask("leave")
        await host.saying(2)
        host.ask("wait", 2)
        host.leave(code=4001)

        assert await running == [ACCEPT, hosted_close(4001, "bye")]
        assert told == ["goodbye"]
        assert app.stats()["closed"] == {"4001": 1}

    async def test_close_without_an_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host that says nothing more is left after `close_timeout`."""
        monkeypatch.setitem(wsappy.TIMEOUTS, "close_timeout", 0.0)
        monkeypatch.setitem(wsappy.TIMEOUTS, "open_timeout", 0.08)
        told: list[str] = []
        host = Host(self.app(told).asgi())
        host.ask("leave")

        await host.run()

        assert told == ["goodbye"]

    async def test_host_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """What a host raises ends the connection, and is logged."""
        told: list[str] = []
        host = Host(self.app(told).asgi())
        running = host.start()
        await host.saying(1)
        host.exc = RuntimeError("no")
        host.tell("websocket.receive", text="{}")

        await running

        assert told == ["goodbye"]
        assert "the host's server failed" in caplog.messages

    @pytest.mark.parametrize("times", [1, 3])
    async def test_cancelled(self, times: int) -> None:
        """A host that cancels, or goes on cancelling, cuts no goodbye."""
        told: list[str] = []
        host = Host(self.app(told).asgi())
        running = host.start()
        host.ask("wait")
        async with asyncio.timeout(LIMIT):
            while not told:
                await asyncio.sleep(0)

        for _ in range(times):
            running.cancel()
            await asyncio.sleep(0)

        with pytest.raises(asyncio.CancelledError):
            await running
        assert told == ["began", "cut", "goodbye"]

    async def test_cancelled_handshake(self) -> None:
        """A handshake that the host cancels ends where it stands."""
        app, told = App(), list[str]()
        begun = asyncio.Event()

        @app.client("/api")
        async def api(client: Client) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                told.append("cut")

        running = Host(app.asgi()).start()
        await happens(begun)
        running.cancel()

        with pytest.raises(asyncio.CancelledError):
            await running
        assert told == ["cut"]

    async def test_goodbye_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A goodbye that hangs doesn't hold a host that cancels."""
        monkeypatch.setattr(wsappy, "CANCEL_GRACE", 0.0)
        monkeypatch.setattr(wsappy, "GOODBYE_GRACE", 0.0)
        app, go = App(), asyncio.Event()

        @app.client("/api")
        async def api(client: Client) -> AsyncIterator[None]:
            yield
            await go.wait()

        host = Host(app.asgi())
        running = host.start()
        await host.saying(1)
        running.cancel()

        with pytest.raises(asyncio.CancelledError):
            await running
        go.set()
        await turns()

    async def test_bug(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bug of the framework's is the host's to log."""

        async def fail(session: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(wsappy.Session, "depart", fail)

        with pytest.raises(ZeroDivisionError):
            await Host(make_app().asgi(), "http", path="/x").run()


class TestAsgiLifespan:
    """An app starts and stops with its host."""

    @staticmethod
    def app(told: list[str]) -> App:
        """Make an app with a lifespan that tells."""
        app = make_app()

        @app.lifespan
        async def life(app: App) -> AsyncIterator[None]:
            told.append("start")
            yield
            told.append("stop")

        return app

    async def test_events(self) -> None:
        """A host that sends the events of a lifespan starts and stops it."""
        told: list[str] = []
        host = Host(self.app(told).asgi(), "lifespan")
        running = host.start()
        await host.saying(1)
        assert told == ["start"]
        host.tell("lifespan.shutdown")

        said = await running

        kinds = ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert [each["type"] for each in said] == kinds
        assert told == ["start", "stop"]

    async def test_failure(self, caplog: pytest.LogCaptureFixture) -> None:
        """A start that fails is told to the host."""
        said = await Host(App().asgi(), "lifespan").run()

        assert [each["type"] for each in said] == ["lifespan.startup.failed"]
        assert said[0]["message"].startswith("ValueError(")
        assert "the start failed" in caplog.messages

    async def test_by_hand(self) -> None:
        """What mounts it enters its lifespan; at the end clients are told."""
        told: list[str] = []
        asgi = self.app(told).asgi()
        host = Host(asgi)

        async with asgi.lifespan():
            running = host.start()
            await host.saying(1)
            host.heard.put_nowait = None  # type: ignore[method-assign]
            leaving = asyncio.create_task(host.saying(2))
            leaving.add_done_callback(
                lambda _: asyncio.Queue.put_nowait(
                    host.heard, {"type": "websocket.disconnect"}
                )
            )

        assert await running == [ACCEPT, hosted_close(1001, "the server is stopping")]
        assert told == ["start", "stop"]

    async def test_after_the_end(self) -> None:
        """Who comes after the end is refused."""
        asgi = make_app().asgi()
        async with asgi.lifespan():
            pass

        said = await Host(asgi, **DENIAL).run()

        assert said[0]["status"] == 503

    async def test_nobody_has_started_it(self) -> None:
        """Without its lifespan the first client fails with the line to write."""
        asgi = self.app([]).asgi()

        with pytest.raises(RuntimeError, match="lifespan") as caught:
            await Host(asgi).run()

        assert re.sub("'.*'", "'life'", str(caught.value)) == (
            "lifespan 'life' must have started before a client comes; write async "
            "with asgi.lifespan(): in that of the other application"
        )

    def test_loops(self) -> None:
        """Without one the first client starts everything, and the loop's end stops it."""
        app = make_app()
        asgi = app.asgi()
        before = threading.active_count()

        async def visit() -> int:
            host = Host(asgi)
            host.leave()
            await host.run()
            return len(app.servings)

        assert [asyncio.run(visit()), asyncio.run(visit())] == [1, 1]
        assert len(app.servings) == 0
        for thread in threading.enumerate():
            if thread.name == "wsappy watchdog":
                thread.join(LIMIT)
        assert threading.active_count() <= before


# --- Examples ----------------------------------------------------------------

EXAMPLE_ROOT = pathlib.Path(__file__).resolve().parent


def example_module(path: str) -> ModuleType:
    """Import an example, as a module of its own each time."""
    file = EXAMPLE_ROOT / "examples" / path
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example_output(module: ModuleType) -> str:
    """Return what the docstring says that the example prints."""
    shown = str(module.__doc__).partition("prints:\n\n")[2]
    return re.sub("^    ", "", shown, flags=re.M)


async def example_said(folder: str, capsys: Any, path: str = "/api") -> tuple[str, str]:
    """Run an example's client against its server; return what it prints, and should."""
    server = example_module(f"{folder}/server.py")
    client = example_module(f"{folder}/client.py")
    async with server.app.serve("127.0.0.1", 0) as serving, asyncio.timeout(LIMIT):
        await client.main(serving.url(path))
    return capsys.readouterr().out, example_output(client)


def example_environment() -> dict[str, str]:
    """Return an environment in which a process finds this wsappy."""
    return {**os.environ, "PYTHONPATH": str(EXAMPLE_ROOT), "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def example_process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python in a process; end it if the test doesn't."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-W", "error", *command],
        cwd=EXAMPLE_ROOT,
        env=example_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def example_conversation(folder: str) -> tuple[str, str]:
    """Run the commands of an example; return what its client prints, and should."""
    with example_process(f"examples/{folder}/server.py", "0") as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with example_process(f"examples/{folder}/client.py", url) as client:
            said = client.communicate(timeout=LIMIT)[0]
    return said, example_output(example_module(f"{folder}/client.py"))


class ExampleNetwork:
    """What tests of examples share: the examples' clients would go through a proxy."""

    @pytest.fixture(autouse=True)
    def _no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_PROXY", "*")


class TestSimpleExample(ExampleNetwork):
    """`examples/simple`: the conversation that the first version of wsappy held."""

    async def test_conversation(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The client prints what its docstring shows."""
        said, shown = await example_said("simple", capsys)

        assert said == shown

    def test_commands(self) -> None:
        """The commands in the docstrings start the server and hold the conversation."""
        said, shown = example_conversation("simple")

        assert said == shown

    def test_stop(self) -> None:
        """Ctrl+C ends the server with exit code 0, and nothing more is printed."""
        with example_process("examples/simple/server.py", "0") as server:
            assert server.stdout is not None
            server.stdout.readline()
            server.send_signal(signal.SIGINT)
            rest = server.communicate(timeout=LIMIT)[0]

        assert (server.returncode, rest) == (0, "")


# Stands before the classic example in its process: it listens on a free port instead of
# 8008, and says which.
EXAMPLE_FREE_PORT = """
import asyncio, runpy, socket, wsappy
run = wsappy.Server.run
async def run_on_free_port(server, host, port):
    sock = socket.create_server(("127.0.0.1", 0))
    await run(server, host, port, sock=sock)
    print(f"ws://127.0.0.1:{sock.getsockname()[1]}/api")
wsappy.Server.run = run_on_free_port
runpy.run_path("examples/classic/server.py", run_name="__main__")
"""


class TestClassicExample(ExampleNetwork):
    """`examples/classic`: the server as it was written for wsappy 0.1.3."""

    def test_conversation(self) -> None:
        """The client of `examples/simple` holds its conversation with it."""
        with example_process("-c", EXAMPLE_FREE_PORT) as server:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            with example_process("examples/simple/client.py", url) as client:
                said = client.communicate(timeout=LIMIT)[0]

        assert said == example_output(example_module("simple/client.py"))


class TestOtherExamples(ExampleNetwork):
    """The other examples: each client against its server."""

    @pytest.mark.parametrize(
        ("folder", "path"),
        [("auth", "/api"), ("chat", "/chat"), ("confirm", "/api"), ("stream", "/api")],
    )
    async def test_conversation(
        self, folder: str, path: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The client prints what its docstring shows."""
        said, shown = await example_said(folder, capsys, path)

        assert said == shown

    async def test_chat_without_a_name(self) -> None:
        """Whoever has no name doesn't get into the chat."""
        app = example_module("chat/server.py").app

        with pytest.raises(websockets.InvalidStatus) as caught:
            async with talking(app, "/chat"):
                pass

        assert caught.value.response.body == b"come with a name: /chat?name=ada"

    @pytest.mark.parametrize("method", ["leave", "say"])
    async def test_chat_from_outside(self, method: str) -> None:
        """Whoever isn't in a room can't speak there, nor leave it."""
        app = example_module("chat/server.py").app
        data = {"room": "kitchen"} | ({"text": "hi"} if method == "say" else {})

        async with talking(app, "/chat?name=ada") as talk:
            answer = await talk.call(f"chat.{method}", **data)

        assert error_of(answer) == ("forbidden", "enter 'kitchen' first")

    async def test_confirm_of_no_file(self) -> None:
        """Nobody is asked about a file that isn't there."""
        async with talking(example_module("confirm/server.py").app) as talk:
            answer = await talk.call("files.delete", file="novel.txt")

        assert error_of(answer) == ("not_found", "no file 'novel.txt'")


class TestDashboardExample(ExampleNetwork):
    """`examples/dashboard`: figures that change, at each viewer's own interval."""

    def test_commands(self) -> None:
        """The client, run as its docstring says, prints what is shown there."""
        said, shown = example_conversation("dashboard")

        assert said == shown

    @pytest.mark.parametrize(
        ("query", "headers"),
        [
            ("", {}),
            ("?token=nettle", {}),
            ("", {"Authorization": "Bearer nettle"}),
            ("", {"Authorization": "Bearer tul\xed\xadp"}),
        ],
    )
    async def test_stranger(self, query: str, headers: dict[str, str]) -> None:
        """Whoever has no known token, in query or header, is refused with 401."""
        app = example_module("dashboard/server.py").app

        with pytest.raises(websockets.InvalidStatus) as caught:
            async with talking(app, f"/api{query}", additional_headers=headers):
                pass

        response = caught.value.response
        assert (response.status_code, response.body) == (401, b"unknown token")

    async def test_guard(self) -> None:
        """A viewer may not set the temperature, and it stays."""
        app = example_module("dashboard/server.py").app

        async with talking(app, "/api?token=daisy") as talk:
            answer = await talk.call("dashboard.aim", degrees=40)
            item = await talk.call("dashboard.watch", 2, interval=1)

        assert error_of(answer) == ("forbidden", "not allowed")
        assert item["data"] == {"degrees": 20, "target": 20}

    async def test_intervals(self) -> None:
        """Each viewer has an interval of its own, on one connection too."""
        app = example_module("dashboard/server.py").app

        async with talking(app, "/api?token=daisy") as talk:
            hourly = await talk.call("dashboard.watch", "hourly", interval=3600)
            first = await talk.call("dashboard.watch", "quick", interval=0)
            ids = [(await talk.receive())["request_id"] for _ in range(5)]

        assert (hourly["request_id"], first["request_id"]) == ("hourly", "quick")
        assert ids == ["quick"] * 5

    async def test_slow_viewer(self) -> None:
        """Whoever reads slowly gets the newest figures next, and no older ones."""
        app = example_module("dashboard/server.py").app
        watch = {"module": "dashboard", "method": "watch", "data": {"interval": 0}}
        more = {"module": "$", "method": "more"}

        async with talking(app, "/api?token=tulip") as talk:
            await talk.send({**watch, "request_id": "slow", "items": 1})
            old = await talk.receive()
            await talk.call("dashboard.aim", degrees=25)
            await talk.send({**watch, "request_id": "quick"})
            messages = [await talk.receive()]
            while messages[-1]["data"]["degrees"] < 25:
                messages.append(await talk.receive())
            await talk.send({**more, "data": {"request_id": "slow", "items": 1}})
            while (new := await talk.receive())["request_id"] != "slow":
                pass

        assert {message["request_id"] for message in messages} == {"quick"}
        assert (old["data"]["degrees"], new["data"]["degrees"]) == (20, 25)

    async def test_stop(self) -> None:
        """What heats the greenhouse ends with the server."""
        app = example_module("dashboard/server.py").app

        async with app.serve("127.0.0.1", 0):
            names = [str(task.get_coro()) for task in asyncio.all_tasks()]
        await turns()

        assert any("heat" in name for name in names)
        assert asyncio.all_tasks() == {asyncio.current_task()}


class TestTokensExample(ExampleNetwork):
    """`examples/tokens`: answers word by word, for those who have logged in."""

    @staticmethod
    def logged_in(server: ModuleType) -> Any:
        """Serve the example, and connect with a token of ada's."""
        token = server.login(ABSENT, "ada", "tulip")
        headers = {"Authorization": f"Bearer {token}"}
        return talking(server.app, additional_headers=headers)

    def test_commands(self) -> None:
        """The client, run as its docstring says, prints what is shown there."""
        said, shown = example_conversation("tokens")

        assert said == shown

    @pytest.mark.parametrize(
        ("name", "password"), [("ada", "daisy"), ("bob", "tulip"), ("bob", "")]
    )
    async def test_wrong_password(self, name: str, password: str) -> None:
        """A login with another name or password is `unauthorized`."""
        data = {"name": name, "password": password}
        call = {"module": "user", "method": "login", "data": data, "request_id": 1}

        async with talking(example_module("tokens/server.py").app) as talk:
            await talk.send(call)
            answer = await talk.receive()

        assert error_of(answer) == ("unauthorized", "wrong name or password")

    async def test_without_token(self) -> None:
        """Whoever hasn't logged in is let in, and can't ask."""
        app = example_module("tokens/server.py").app

        async with talking(app) as talk:
            answer = await talk.call("model.answer", prompt="hi")

        said = "log in, and connect with the token"
        assert error_of(answer) == ("unauthorized", said)

    @pytest.mark.parametrize(
        ("seconds", "change", "reason"),
        [
            (60, ("ada", "bob"), b"this token is not ours"),
            (60, (".", ""), b"this token is not ours"),
            (60, (".", "\xed\xad."), b"this token is not ours"),
            (0, ("", ""), b"this token has expired"),
        ],
    )
    async def test_bad_token(
        self, seconds: int, change: tuple[str, str], reason: bytes
    ) -> None:
        """A token that is forged, cut, odd or old is refused with 401."""
        server = example_module("tokens/server.py")
        token = server.login(ABSENT, "ada", "tulip", seconds).replace(*change)
        headers = {"Authorization": f"Bearer {token}"}

        with pytest.raises(websockets.InvalidStatus) as caught:
            async with talking(server.app, additional_headers=headers):
                pass

        response = caught.value.response
        assert (response.status_code, response.body) == (401, reason)

    async def test_expired_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the token expires during a connection, the next prompt is refused."""
        server = example_module("tokens/server.py")
        later = types.SimpleNamespace(time=lambda: time.time() + 3600)

        async with self.logged_in(server) as talk:
            monkeypatch.setattr(server, "time", later)
            answer = await talk.call("model.answer", prompt="hi")

        assert error_of(answer)[0] == "unauthorized"

    async def test_longest_life(self) -> None:
        """No token is good for more than an hour."""
        token = example_module("tokens/server.py").login(ABSENT, "ada", "tulip", 10**9)

        assert int(token.split(".")[1]) <= time.time() + 3600

    async def test_words(self) -> None:
        """The answer comes word by word, and its end is noticed."""
        async with self.logged_in(example_module("tokens/server.py")) as talk:
            await talk.send(self.prompt("hello there"))
            said = [await talk.receive() for _ in range(6)]

        assert [(each["event"], each["data"]) for each in said] == [
            *(("item", word) for word in ["ada", "said:", "hello", "there"]),
            ("ended", {"complete": True}),
            ("result", {}),
        ]

    async def test_failure(self) -> None:
        """An answer may fail in the middle; the words before stand."""
        async with self.logged_in(example_module("tokens/server.py")) as talk:
            await talk.send(self.prompt("a unicorn came"))
            said = [await talk.receive() for _ in range(5)]

        assert [each["data"] for each in said[:4]] == [
            *("ada", "said:", "a"),
            {"complete": False},
        ]
        text = "nothing is known about a unicorn"
        assert error_of(said[4]) == ("no_answer", text)

    async def test_side_by_side(self) -> None:
        """A short answer doesn't wait for the end of a long one."""
        async with self.logged_in(example_module("tokens/server.py")) as talk:
            await talk.send(self.prompt("la " * 1000, "long"))
            await talk.receive()
            await talk.send(self.prompt("hi", "short"))
            while (message := await talk.receive())["event"] != "result":
                pass

        assert message["request_id"] == "short"

    async def test_stop(self) -> None:
        """The server notices that a client stops an answer."""
        async with self.logged_in(example_module("tokens/server.py")) as talk:
            await talk.send(self.prompt("la " * 1000))
            await talk.receive()
            cancel = {"module": "$", "method": "cancel", "data": {"request_id": 1}}
            await talk.send(cancel)
            while (message := await talk.receive())["event"] == "item":
                pass
            ended = message if message["event"] == "ended" else await talk.receive()

        assert ended["data"] == {"complete": False}

    @staticmethod
    def prompt(text: str, request_id: Any = 1) -> dict[str, Any]:
        """Return the call for an answer."""
        call = {"module": "model", "method": "answer", "data": {"prompt": text}}
        return {**call, "request_id": request_id}


class TestMetricsExample:
    """`examples/metrics`: what the app counts, for Prometheus."""

    @staticmethod
    async def page(serving: Any, path: str) -> tuple[int, str]:
        """Return status and body of a page."""
        async with Hand(serving, request_by_hand(path)) as hand:
            status, _ = await hand.head()
            return status, (await hand.rest()).decode()

    async def test_metrics(self) -> None:
        """Prometheus reads every figure of `app.stats()`."""
        app = example_module("metrics/server.py").app

        async with (
            app.serve("127.0.0.1", 0) as serving,
            ws_connect(serving.url("/api"), proxy=None) as ws,
        ):
            await Talk(ws).call("m.nothing")
            _, body = await self.page(serving, "/metrics")

        lines = body.splitlines()
        assert 'wsappy_clients{kind=""} 1.0' in lines
        assert 'wsappy_errors{kind="unknown_method"} 1.0' in lines

    async def test_health(self) -> None:
        """`/health` is 200, and 503 while the server is stopping."""
        app, go_on = example_module("metrics/server.py").app, asyncio.Event()
        app.module("e")(app.method("wait")(lambda request: go_on.wait()))

        async with contextlib.AsyncExitStack() as stack:
            serving = await stack.enter_async_context(app.serve("127.0.0.1", 0))
            async with ws_connect(serving.url("/api"), proxy=None) as ws:
                await Talk(ws).send({"module": "e", "method": "wait", "request_id": 1})
                await Talk(ws).call("$.ping", 2)
                before = await self.page(serving, "/health")
                stop = asyncio.create_task(stack.aclose())
                await load_until(lambda: app.stats()["stopping"])
                after = await self.page(serving, "/health")
                go_on.set()
                await stop

        assert (before, after) == ((200, "ok"), (503, "stopping"))


class TestBenchmark:
    """`examples/benchmark.py`: servers are measured, and ratios have limits."""

    @staticmethod
    def lines(*options: str) -> dict[str, list[str]]:
        """Run one round; return the words of each line by what stands first."""
        command = [sys.executable, "examples/benchmark.py", "--rounds", "1", *options]
        done = subprocess.run(  # noqa: S603
            command,
            cwd=EXAMPLE_ROOT,
            env=example_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        lines = re.findall(r"^(\S.*?)  +(.+)$", done.stdout, flags=re.M)
        return {first: rest.split() for first, rest in lines}

    @pytest.mark.skipif(sys.platform != "linux", reason="reads clocks of Linux")
    def test_servers(self) -> None:
        """Every server has its memory, and CPU and user time for push and calls."""
        lines = self.lines("--only", "wsappy-def", "websockets")

        assert [len(lines[name]) for name in ("wsappy-def", "websockets")] == [7, 7]
        assert lines["16 in flight, cpu: wsappy-def / websockets"][0] == "0.26"

    @pytest.mark.skipif(sys.platform != "linux", reason="reads clocks of Linux")
    def test_visits(self) -> None:
        """Connecting and closing is compared with a server that does nothing else."""
        lines = self.lines("--only", "wsappy-hello", "websockets-bare")

        assert lines["visit, cpu: wsappy-hello / websockets-bare"][:2] == [
            "1.30",
            "1.10",
        ]

    @pytest.mark.skipif(sys.platform != "linux", reason="reads clocks of Linux")
    def test_clients(self) -> None:
        """The Python client is compared with one that is written by hand."""
        lines = self.lines("--client")

        assert lines["client, cpu: wsappy-client / websockets-client"][0] == "1.10"


# --- README ------------------------------------------------------------------

EXAMPLE_README = EXAMPLE_ROOT / "README.md"


def example_section(heading: str) -> str:
    """Return what stands in the README under a heading, up to the next one."""
    text = EXAMPLE_README.read_text(encoding="utf-8")
    section = re.split(rf"^#+ {heading}$", text, flags=re.M)[1]
    return re.split(r"^###? ", section, flags=re.M)[0]


def example_blocks(language: str, heading: str = "wsappy") -> list[str]:
    """Return the code blocks of a language that stand under a heading of the README."""
    section = example_section(heading)
    return re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.M | re.S)


def example_conversations(heading: str) -> list[str]:
    """Return the blocks under a heading that show messages."""
    return [block for block in example_blocks("text", heading) if "\n<-- " in block]


def example_run(block: str, name: str = "readme") -> ModuleType:
    """Run a block of the README as a module."""
    module = ModuleType(name)
    text = EXAMPLE_README.read_text(encoding="utf-8")
    # Empty lines before it: a traceback names the line of the README.
    source = "\n" * text[: text.index(block)].count("\n") + block
    code = compile(source, EXAMPLE_README, "exec", dont_inherit=True)
    exec(code, vars(module))  # noqa: S102
    return module


def example_paste(folder: pathlib.Path, block: str, port: int) -> str:
    """Save a block in the file that its first line names; return the file's path."""
    named = re.match(r"# (\w+\.py)\n", block)
    file = folder / (named[1] if named else "hello.py")
    file.write_text(block.replace("8008", str(port)), encoding="utf-8")
    return str(file)


@contextlib.contextmanager
def example_server(folder: pathlib.Path, heading: str) -> Iterator[int]:
    """Run the server under a heading as it is pasted, on a port that it yields."""
    blocks = example_blocks("python", heading)
    paths = {example_paste(folder, block, 0): block for block in blocks}
    (path,) = [path for path, block in paths.items() if "app.run(" in block]
    with example_process(path) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline().rpartition(":")[2].partition("/")[0])


async def example_replay(port: int, shown: str) -> str:
    """Hold the conversations that are shown; return them as they went.

    A line with an address connects, one with `-->` sends, one with `<--` receives.
    """
    conversations = re.split(r"^(?=ws:)", shown, flags=re.M)[1:]
    return "".join([await example_talk(port, each) for each in conversations])


async def example_talk(port: int, shown: str) -> str:
    """Hold one conversation of `example_replay`."""
    address, *lines = shown.splitlines()
    went = [address]
    url = address.replace("8008", str(port))
    try:
        async with ws_connect(url, proxy=None) as ws, asyncio.timeout(LIMIT):
            for line in lines:
                if line.startswith("-->"):
                    await ws.send(line.removeprefix("--> "))
                    went.append(line)
                else:
                    went.append(f"<-- {await ws.recv()!s}")
    except websockets.InvalidStatus as exc:
        body = bytes(exc.response.body).decode()
        went.append(f"<-- HTTP {exc.response.status_code}: {body}")
    return "".join(f"{line}\n" for line in went)


def example_limits(kind: str) -> dict[str, str]:
    """Return the defaults in the tables of limits, of one kind of option."""
    text = EXAMPLE_README.read_text(encoding="utf-8")
    row = rf"^\|.*\|.*\|.*?`{kind}`.*\|.*\| (\S[^|]*) \|[^|]*\|$"
    return dict(re.findall(row, text, flags=re.M))


def example_default(value: float | None) -> str:
    """Return a default as the README writes it."""
    return "none" if value is None else f"{value:,}".removesuffix(".0")


EXAMPLE_SIGNING = "Signing in, and who may call what"
# Headings with a server, and the address where a conversation doesn't begin with one.
EXAMPLE_SERVERS = [
    ("wsappy", "ws://localhost:8008/api\n"),
    ("Two minutes", "ws://localhost:8008/tasks\n"),
    (EXAMPLE_SIGNING, ""),
    ("Several files", ""),
    ("Start and stop", ""),
]


class TestReadmePrograms(ExampleNetwork):
    """The programs of the README run when they are pasted, and do what is shown."""

    @pytest.mark.parametrize(("heading", "address"), EXAMPLE_SERVERS)
    async def test_conversation(
        self, heading: str, address: str, tmp_path: pathlib.Path
    ) -> None:
        """A server answers as shown."""
        shown = address + "".join(example_conversations(heading))

        with example_server(tmp_path, heading) as port:
            said = await example_replay(port, shown)

        assert said == shown

    @pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
    @pytest.mark.parametrize("heading", ["Start and stop", "Pages"])
    def test_stop(self, heading: str, tmp_path: pathlib.Path) -> None:
        """SIGTERM ends a server with exit code 0, and nothing more is printed."""
        paths = [
            example_paste(tmp_path, block, 0)
            for block in example_blocks("python", heading)
        ]

        with example_process(*paths) as server:
            assert server.stdout is not None
            server.stdout.readline()
            server.send_signal(signal.SIGTERM)
            rest = server.communicate(timeout=LIMIT)[0]

        assert (server.returncode, rest) == (0, "")

    async def test_client(self, tmp_path: pathlib.Path) -> None:
        """The client prints what is shown, after the conversation before it."""
        heading, address = EXAMPLE_SERVERS[1]
        client = example_blocks("python", heading)[-1]
        conversation = address + "".join(example_conversations(heading))

        with example_server(tmp_path, heading) as port:
            await example_replay(port, conversation)
            with example_process(example_paste(tmp_path, client, port)) as process:
                said = process.communicate(timeout=LIMIT)[0]

        assert said == example_blocks("text", heading)[-1]

    @pytest.mark.parametrize(
        "header", [{"Authorization": "Bearer tulip"}, {"Cookie": "a=b; token=tulip"}]
    )
    async def test_signing_in(self, header: dict[str, str]) -> None:
        """The token may come in a header or in a cookie, too."""
        app = example_run(*example_blocks("python", EXAMPLE_SIGNING)).app

        async with talking(app, "/notes", additional_headers=header) as talk:
            answer = await talk.call("notes.clear")

        assert result_of(answer) == "cleared by ada"

    async def test_signing_in_from_a_browser(self) -> None:
        """A browser with an unknown token is let in, and closed with 4401."""
        app = example_run(*example_blocks("python", EXAMPLE_SIGNING)).app

        async with app.serve("127.0.0.1", 0) as serving:
            origin: Any = f"http://127.0.0.1:{serving.port}"
            url = serving.url("/notes")
            async with ws_connect(url, proxy=None, origin=origin) as ws:
                closed = await Talk(ws).closed()

        assert closed == (4401, "unknown token")

    async def test_pages(self, tmp_path: pathlib.Path) -> None:
        """The pages are those that `curl` shows."""
        (shown,) = example_blocks("text", "Pages")
        asked = re.findall(r"^\$ curl http://localhost:8008(.*)$", shown, flags=re.M)
        lines = []

        with example_server(tmp_path, "Pages") as port:
            for path in asked:
                serving = types.SimpleNamespace(port=port)
                _, body = await TestMetricsExample.page(serving, path)
                lines += [f"$ curl http://localhost:8008{path}\n", f"{body}\n"]

        assert "".join(lines) == shown

    def test_test_of_an_application(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The test of the first server passes."""
        (server,) = example_blocks("python")
        hello = example_run(server, "hello")
        monkeypatch.setitem(sys.modules, "hello", hello)
        (block,) = example_blocks("python", "Test your own application")

        result = example_run(block).test_get()

        assert result is None

    def test_all_blocks_are_run(self) -> None:
        """No Python block stands elsewhere."""
        others = ("Pages", "Test your own application")
        headings = [*dict(EXAMPLE_SERVERS), *others]

        count = sum(len(example_blocks("python", heading)) for heading in headings)

        assert count == EXAMPLE_README.read_text(encoding="utf-8").count("```python\n")


class TestReadme:
    """What the README says of the file, its limits and its examples is so."""

    def test_first_code(self) -> None:
        """The first code begins in one of the first twelve lines."""
        lines = EXAMPLE_README.read_text(encoding="utf-8").splitlines()

        assert "```python" in lines[:12]

    def test_sections_of_the_file(self) -> None:
        """The sections that are listed are those of `wsappy.py`."""
        source = (EXAMPLE_ROOT / "wsappy.py").read_text(encoding="utf-8")
        section = example_section("How the file is laid out")

        listed = re.findall(r"^\| (\d+\. .*?) \|", section, flags=re.M)

        assert listed == re.findall(r"^# --- (\d+\. .*?) -+$", source, flags=re.M)

    def test_sections_of_the_protocol(self) -> None:
        """The sections of the protocol that docstrings cite are listed."""
        source = (EXAMPLE_ROOT / "wsappy.py").read_text(encoding="utf-8")
        section = example_section("The protocol")

        listed = re.findall(r"^\| (\d+)\. ", section, flags=re.M)

        cited = set(re.findall(r"protocol,\s+section\s+(\d+)", source))
        assert listed == [str(number) for number in range(1, 9)]
        assert cited <= set(listed)

    def test_limits_that_people_set(self) -> None:
        """Eight limits are shown, the others are folded."""
        shown = example_section("Limits and defaults").partition("<details>")[0]

        options = re.findall(r"^\|.*\| `(.*?)\(.*=\)`", shown, flags=re.M)

        assert len(options) == 8

    def test_limits_of_the_app(self) -> None:
        """The options of `App` that are limits are listed, each with its default."""
        options = dict(inspect.signature(App).parameters)
        del options["proxies"]
        names = {"max_clients", "timeout"} | {
            name for name, each in options.items() if type(each.default) in (int, float)
        }

        listed = example_limits(r"App\((\w+)=\)")

        listed.pop("origins")
        defaults = {name: options[name].default for name in names}
        assert listed == {name: example_default(defaults[name]) for name in names}

    def test_limits_of_the_library(self) -> None:
        """The options of `websockets.serve` are listed with the defaults they have."""
        options = inspect.signature(websockets.serve).parameters
        listed = example_limits(r"run\((\w+)=\)")

        defaults = {name: options[name].default for name in listed}

        defaults["compression"] = None  # What wsappy sets.
        assert listed == {name: example_default(defaults[name]) for name in listed}

    def test_limits_without_an_option(self) -> None:
        """The constants are listed with their values."""
        listed = example_limits("([A-Z_]+)")

        values = {name: example_default(getattr(wsappy, name)) for name in listed}

        values["MAX_THREADS"] = "processors + 4, at most 32"
        assert listed == values

    def test_limits_of_calls(self) -> None:
        """The limits of calls in both directions are listed with their defaults."""
        functions: list[Callable[..., Any]] = [wsappy.connect, Client.call]
        defaults = [inspect.signature(each).parameters["timeout"] for each in functions]

        listed = [
            example_limits(rf"{name}\((\w+)=\)")["timeout"]
            for name in ("connect", r"client\.call")
        ]

        assert listed == [example_default(each.default) for each in defaults]

    def test_counters_of_limits(self) -> None:
        """The counters that the tables of limits name are those of `app.stats()`."""
        section = example_section("Limits and defaults")

        cells = re.findall(r"\| ([^|]*) \|$", section, flags=re.M)
        cells = [cell for cell in cells if not cell.startswith("counter in ")]
        named = re.findall(r"`(\w+)", " ".join(cells))

        assert "stalled_clients_dropped" in named
        assert set(named) <= App().stats().keys()

    def test_deployment_waits_for_a_stop(self) -> None:
        """Systemd and Docker wait for as long as the README says, and a stop less."""
        section = example_section("Deployment")

        waits = re.findall(r"^TimeoutStopSec=(\d+)$", section, flags=re.M)
        waits += re.findall(r"^ *stop_grace_period: (\d+)s$", section, flags=re.M)

        assert waits == ["30", "30"]
        assert App().grace + 14 == 24

    def test_deployment_installs_what_is_needed(self) -> None:
        """The image gets the packages that `setup.cfg` requires."""
        config = configparser.ConfigParser()
        config.read(EXAMPLE_ROOT / "setup.cfg")
        needed = config["options"]["install_requires"].split()

        (image,) = example_blocks("dockerfile", "Deployment")

        (line,) = re.findall(r"^RUN python -m pip install (.*)$", image, flags=re.M)
        assert line == " ".join(f"'{each}'" for each in needed)

    def test_examples(self) -> None:
        """The examples that are listed are those that there are."""
        readme = EXAMPLE_README.read_text(encoding="utf-8")
        folders = (EXAMPLE_ROOT / "examples").glob("*/server.py")

        listed = re.findall(r"^- `examples/(\w+)/`", readme, flags=re.M)

        assert sorted(listed) == sorted(file.parent.name for file in folders)


# --- Layout ------------------------------------------------------------------

LAYOUT_FILES = [pathlib.Path(wsappy.__file__), pathlib.Path(__file__)]
LAYOUT_MODULE, LAYOUT_TESTS = (
    each.read_text(encoding="utf-8") for each in LAYOUT_FILES
)
LAYOUT_TREE = ast.parse(LAYOUT_MODULE)
LAYOUT_BANNER = r"^# --- (?:(\d+)\. )?(.+?) -+$"
# The last section of the story, and the appendix that the others may use.
STORY_END, SHARED_APPENDIX = 8, 9
# Public methods of the story that hand over to an appendix, in three statements.
HANDS_OVER = {"App.asgi", "App.static", "App.test_client"}
# What users import beside `__all__`, or get.
LAYOUT_USERS = {
    *("connect", "Peer", "Push", "RemoteModule", "TestedPeer"),
    *("Server", "Handler", "handler_method", "Group", "Serving", "Sent", "Marking"),
}


@functools.cache
def layout_sections() -> list[tuple[int, int]]:
    """Return the first line and the number of each section of the module."""
    lines = LAYOUT_MODULE.splitlines()
    found = [(at, re.match(LAYOUT_BANNER, each)) for at, each in enumerate(lines, 1)]
    return [(0, 0), *((at, int(match[1])) for at, match in found if match)]


def layout_section(node: ast.AST) -> int:
    """Return the number of the section in which a node stands."""
    line: int = node.lineno  # type: ignore[attr-defined]
    return [number for at, number in layout_sections() if at <= line][-1]


def layout_homes() -> dict[str, int]:
    """Return the section of each top-level name that the module defines."""
    homes = {}
    for node in LAYOUT_TREE.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            homes[node.name] = layout_section(node)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            for each in ast.walk(target) if target is not None else ():
                if isinstance(each, ast.Name):
                    homes.setdefault(each.id, layout_section(node))
    return homes


def layout_names(tree: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yield what a piece of code names, in the annotations that are text, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node, node.id
        elif isinstance(node, ast.Attribute) and not layout_is_elsewhere(node):
            yield node, node.attr
        elif isinstance(node, ast.alias):
            yield node, node.name
        for name in "annotation", "returns":
            yield from layout_words(getattr(node, name, None))


def layout_words(annotation: ast.AST | None) -> Iterator[tuple[Any, str]]:
    """Yield the words of what an annotation has in quotes."""
    for each in ast.walk(annotation) if annotation is not None else ():
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            for word in re.findall(r"\w+", each.value):
                yield each, word


@functools.cache
def layout_attributes() -> set[str]:
    """Return the names of what belongs to modules that are imported or to classes."""
    names = set()
    for node in ast.walk(LAYOUT_TREE):
        if isinstance(node, ast.Import):
            names |= {f"{each.asname or each.name}." for each in node.names}
        elif isinstance(node, ast.ClassDef):
            nodes: Iterator[Any] = ast.walk(node)
            names |= {each.id for each in nodes if layout_is_set(each)}
    return names


def layout_is_set(node: ast.AST) -> Any:
    """Tell whether a node is a name that is given a value, or a type."""
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def layout_is_elsewhere(node: ast.Attribute) -> bool:
    """Tell whether an attribute is that of another module, or one of a class's own."""
    root = node.value.id if isinstance(node.value, ast.Name) else ""
    return not {f"{root}.", node.attr}.isdisjoint(layout_attributes())


def layout_methods(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield the functions of a module with their names, and those of its classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for each, method in layout_methods(node):
                yield f"{node.name}.{each}", method


def layout_code(node: Any) -> set[int]:
    """Return the lines of a function that are code: no docstring, no comment."""
    has_doc = ast.get_docstring(node) is not None
    lines = LAYOUT_MODULE.splitlines()
    inside = set(range(node.lineno, node.end_lineno + 1))
    doc = node.body[0]
    documented = set(range(doc.lineno, doc.end_lineno + 1)) if has_doc else set()
    return {
        at
        for at in inside - documented
        if lines[at - 1].strip() and not lines[at - 1].lstrip().startswith("#")
    }


class TestLayout:
    """`wsappy.py` is a story and its appendices, and the tests follow it."""

    def test_banners(self) -> None:
        """Sections are numbered from 1, each under a banner of 79 columns."""
        banners = re.findall("^# ---.*$", LAYOUT_MODULE, flags=re.M)

        assert {len(each) for each in banners} == {79}
        numbers = [number for _, number in layout_sections()]
        assert numbers == sorted(set(numbers))
        assert len(banners) >= STORY_END

    def test_contents(self) -> None:
        """The contents in the docstring have the numbers and titles of the banners."""
        text = ast.get_docstring(LAYOUT_TREE) or ""

        listed = re.findall(r"^ +(\d+)\. (\S+(?: \S+)*)(?:  |$)", text, flags=re.M)

        banners = re.findall(LAYOUT_BANNER, LAYOUT_MODULE, flags=re.M)
        assert listed == banners

    def test_story(self) -> None:
        """No line of the story names what an appendix defines."""
        homes = layout_homes()
        methods = dict(layout_methods(LAYOUT_TREE))
        allowed = {
            line
            for name in HANDS_OVER
            for line in range(methods[name].lineno, methods[name].end_lineno + 1)
        }

        named = [
            f"{node.lineno}: {name}"
            for node, name in layout_names(LAYOUT_TREE)
            if homes.get(name, 0) > STORY_END
            and layout_section(node) <= STORY_END
            and node.lineno not in allowed
        ]

        assert named == []

    @pytest.mark.parametrize("name", sorted(HANDS_OVER))
    def test_what_hands_over(self, name: str) -> None:
        """A public method hands over to an appendix in at most three statements."""
        owner, _, method = name.partition(".")
        body = dict(layout_methods(LAYOUT_TREE))[name].body

        statements = [
            each
            for each in body
            if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        ]

        assert owner in {"App", "Client"}
        assert not method.startswith("_")
        assert len(statements) <= 3

    def test_appendices(self) -> None:
        """An appendix names nothing of another one but of section 9."""
        homes = layout_homes()

        named = [
            f"{node.lineno}: {name}"
            for node, name in layout_names(LAYOUT_TREE)
            if homes.get(name, 0) > SHARED_APPENDIX
            and STORY_END < layout_section(node) != homes[name]
        ]

        assert named == []

    def test_functions_are_short(self) -> None:
        """No function has more than 40 lines of code."""
        sizes = {
            name: len(layout_code(node)) for name, node in layout_methods(LAYOUT_TREE)
        }

        assert {name: size for name, size in sizes.items() if size > 40} == {}

    def test_classes(self) -> None:
        """No class has more than 35 methods."""
        classes = [each for each in LAYOUT_TREE.body if isinstance(each, ast.ClassDef)]

        counts = {each.name: len(list(layout_methods(each))) for each in classes}

        assert {name: count for name, count in counts.items() if count > 35} == {}

    def test_documentation(self) -> None:
        """Every class, and what is public of those for users, has a docstring."""
        classes = [each for each in LAYOUT_TREE.body if isinstance(each, ast.ClassDef)]
        users = {*wsappy.__all__, *LAYOUT_USERS}
        nodes = {
            name: node
            for name, node in layout_methods(LAYOUT_TREE)
            if name.split(".")[0] in users and not re.search(r"(^|\.)_", name)
        }

        silent = [
            name
            for name, node in {**nodes, **{each.name: each for each in classes}}.items()
            if not ast.get_docstring(node)
        ]

        assert len(nodes) > 50
        assert silent == []

    def test_tests(self) -> None:
        """`test_wsappy.py` has the same sections in the same order, then its own."""
        sections = re.findall(LAYOUT_BANNER, LAYOUT_MODULE, flags=re.M)

        chapters = re.findall(LAYOUT_BANNER, LAYOUT_TESTS, flags=re.M)

        own = ["Examples", "README", "Layout", "Load"]
        assert chapters == [*sections, *(("", each) for each in own)]


# --- Load --------------------------------------------------------------------

# Connects and disconnects after which nothing may be left; `WSAPPY_LOAD=1` for more.
LOAD_VISITS = 5_000 if os.environ.get("WSAPPY_LOAD") == "1" else 500
# Examples of each property.
LOAD_EXAMPLES = 80


def load_reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a crash does."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def load_until(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def load_app(**options: Any) -> tuple[App, list[Client]]:
    """Make the app `wire_app`; return the clients of its route `/kept`, too."""
    app, clients = wire_app(**options), list[Client]()
    app.client("/kept")(clients.append)
    return app, clients


def load_narrow(client: Client) -> None:
    """Make the kernel's buffer of the server's end small."""
    server_end = client.connection.transport.get_extra_info("socket")
    server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def load_deserted(app: App, before: set[Any], *others: set[Any]) -> None:
    """Wait until nothing is left of any connection: no client, no task, no member.

    Args:
        app: What is served.
        before: The tasks that there were before, which may stay.
        *others: Tasks of the test's own, which may stay.
    """
    await load_until(
        lambda: (
            not app.stats()["clients"] and asyncio.all_tasks() <= before.union(*others)
        )
    )
    assert not list(app.to("room").members)


async def load_alone(app: App) -> None:
    """Wait until this task is the only one, and nothing is left of any connection."""
    await load_deserted(app, {asyncio.current_task()})


@contextlib.asynccontextmanager
async def load_dialled(port: int, request: bytes = b"") -> AsyncIterator[Wire]:
    """Connect to a port of the loopback, and send a request."""
    ends = await asyncio.open_connection("127.0.0.1", port)
    wire = Wire(None, ends)
    wire.send(request)
    try:
        yield wire
    finally:
        wire.writer.transport.abort()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def load_shaken(port: int, path: str = "/api") -> AsyncIterator[Wire]:
    """Connect to a port of the loopback, and shake hands."""
    async with load_dialled(port, wire_request(path)) as wire:
        async with asyncio.timeout(LIMIT):
            head = await wire.reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head, head
        yield wire


@contextlib.asynccontextmanager
async def load_silent(app: App) -> AsyncIterator[tuple[Wire, Client]]:
    """Serve an app; give a client that reads nothing, and its object on the server.

    At the end the client crashes; nothing may be left of it.
    """
    clients: list[Client] = []
    app.client("/silent")(clients.append)
    async with app.serve("127.0.0.1", 0) as serving:
        before = asyncio.all_tasks()
        ends = await wire_dial(serving)
        wire = Wire(serving, ends)
        wire.send(wire_request("/silent"))
        async with asyncio.timeout(LIMIT):
            await wire.reader.readuntil(b"\r\n\r\n")
        wire.writer.transport.pause_reading()
        load_narrow(*clients)
        try:
            yield wire, clients[0]
        finally:
            load_reset(wire.writer)
        await load_deserted(app, before)


@pytest.fixture
def load_quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail where anything above INFO is logged."""
    yield
    loud = [each for each in caplog.records if each.levelno > logging.INFO]
    assert [each.getMessage() for each in loud] == []


@pytest.fixture
def load_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every limit of an end."""
    for name in ("SLOW", "CLOSE", "CANCEL", "GOODBYE", "LAST"):
        monkeypatch.setattr(wsappy, f"{name}_GRACE", 0.05)


class FaultyProxy:
    """A TCP proxy that hurts the connections that go through it.

    Args:
        serving: The server that it leads to.
        fault: What `hurt` does: `reset` both ends; `end` what the server reads; `drop`
            what the client sends, from then on; `half_open`: never say anything to the
            server again, and take nothing from it.
        cut_at: Bytes of the client's after which it hurts by itself.
        chunk: Bytes that are passed on at a time.
        delay: Seconds between these.
    """

    faults = ("reset", "end", "drop", "half_open")

    def __init__(
        self,
        serving: Any,
        fault: str = "",
        *,
        cut_at: int = 2**40,
        chunk: int = 2**16,
        delay: float = 0.0,
    ) -> None:
        self.serving = serving
        self.fault = fault
        self.cut_at = cut_at
        self.chunk = chunk
        self.delay = delay
        self.is_dropping = False
        self.has_hurt = asyncio.Event()
        self.pumps: set[asyncio.Task[Any]] = set()
        self.writers: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.link, "127.0.0.1", 0)
        self.port: int = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.stop()
        for pair in self.writers:
            for writer in pair:
                writer.transport.abort()
        await asyncio.gather(*self.pumps, return_exceptions=True)
        # What was aborted is closed in the loop's next turn.
        await asyncio.sleep(0)

    async def link(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Connect a client to the server."""
        own: Any = asyncio.current_task()
        self.keep(own)
        # A small buffer of the kernel's: what the client doesn't read isn't sent.
        sock = socket.socket(proto=socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
        sock.setblocking(False)
        address = ("127.0.0.1", self.serving.port)
        await asyncio.get_running_loop().sock_connect(sock, address)
        server_reader, server_writer = await asyncio.open_connection(sock=sock)
        self.writers.append((writer, server_writer))
        for pump in (self.up(reader, server_writer), self.down(server_reader, writer)):
            self.keep(asyncio.create_task(pump))

    def keep(self, pump: asyncio.Task[Any]) -> None:
        """Hold a task until it ends."""
        self.pumps.add(pump)
        pump.add_done_callback(self.pumps.discard)

    async def up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on what the client sends, as far as the cut."""
        left = self.cut_at
        with contextlib.suppress(OSError):
            while data := await reader.read(min(self.chunk, left or self.chunk)):
                if self.is_dropping:
                    continue
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(self.delay)
                left -= len(data)
                if not left:
                    self.hurt()
            writer.write_eof()

    async def down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on what the server sends."""
        with contextlib.suppress(OSError):
            while data := await reader.read(self.chunk):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(self.delay)
        writer.close()

    def stop(self) -> None:
        """Pass on nothing from now on."""
        for pump in self.pumps:
            pump.cancel()

    def hurt(self) -> None:
        """Let the fault happen to every connection."""
        self.has_hurt.set()
        for client, server in self.writers:
            if self.fault == "reset":
                load_reset(client)
                load_reset(server)
            elif self.fault == "end":
                server.write_eof()
            elif self.fault == "drop":
                self.is_dropping = True
            else:
                self.stop()
                server.transport.pause_reading()  # type: ignore[attr-defined]


class FaultyStates:
    """Handlers and hooks that stay in one state of a connection, and tell it.

    Attributes:
        reached: Whether that state is reached.
        goodbyes: Clients that `on_disconnected` ran for.
    """

    marks = App()

    def __init__(self, state: str) -> None:
        self.state = state
        self.reached = asyncio.Event()
        self.goodbyes: list[str] = []

    async def stay(self, here: str) -> None:
        """Stay for ever, where the state is this one."""
        if here == self.state:
            self.reached.set()
            await asyncio.Event().wait()

    @marks.method
    async def handler(self, request: wsappy.Request) -> None:
        """Stay in a handler."""
        await self.stay("handler")

    @marks.method
    async def call(self, request: wsappy.Request) -> None:
        """Stay in a call to the client."""
        self.reached.set()
        await request.client.call("ui", "confirm", timeout=None)

    @marks.method
    async def stream(self, request: wsappy.Request, size: int) -> AsyncIterator[str]:
        """Stay in a stream."""
        self.reached.set()
        while True:
            yield "x" * size
            await asyncio.sleep(0.002)

    @marks.method
    async def close(self, request: wsappy.Request) -> None:
        """Stay in a close."""
        self.reached.set()
        await request.client.close()


def load_faulty_app(state: str) -> tuple[App, asyncio.Event, list[str]]:
    """Make an app that tells when a connection is in a state, and lists goodbyes."""
    app, states = App(grace=0), FaultyStates(state)
    app.module("e")(states)

    @app.client("/api")
    class Visitor(Client):
        async def on_connecting(self) -> None:
            self.join("room")
            await states.stay("on_connecting")

        async def on_connected(self) -> None:
            await states.stay("on_connected")

        async def on_disconnected(self) -> None:
            states.goodbyes.append(self.id)

    return app, states.reached, states.goodbyes


# What a client says to bring its connection into a state.
LOAD_STATES = {
    "handshake": b"",
    "on_connecting": b"",
    "on_connected": b"",
    "handler": wire_call("handler"),
    "call": wire_call("call"),
    "stream": wire_call("stream", size=10),
    "full_stream": wire_call("stream", size=2**18),
    "close": wire_call("close"),
}
LOAD_LIMITS: dict[str, Any] = {
    "open_timeout": 0.15,
    "ping_interval": 0.05,
    "ping_timeout": 0.1,
    "close_timeout": 0.1,
}


@pytest.mark.usefixtures("load_quiet", "load_hasty")
class TestFaults:
    """The network may do what it likes: nothing stays, and nothing is logged."""

    @pytest.mark.parametrize("fault", FaultyProxy.faults)
    @pytest.mark.parametrize("state", LOAD_STATES)
    async def test_in_every_state(self, state: str, fault: str) -> None:
        """A connection that is hurt ends by itself, and says goodbye once."""
        app, reached, goodbyes = load_faulty_app(state)
        request = wire_request() + LOAD_STATES[state]
        is_early = state == "handshake"
        cut_at = len(wire_request()) - 9 if is_early else 2**40

        async with app.serve("127.0.0.1", 0, **LOAD_LIMITS) as serving:
            before = asyncio.all_tasks()
            async with (
                FaultyProxy(serving, fault, cut_at=cut_at) as proxy,
                load_dialled(proxy.port, request[:cut_at]),
            ):
                async with asyncio.timeout(LIMIT):
                    await (proxy.has_hurt if is_early else reached).wait()
                if not is_early:
                    proxy.hurt()
                await load_deserted(app, before, proxy.pumps)

        assert len(goodbyes) == (state not in {"handshake", "on_connecting"})

    async def test_cut_anywhere(self) -> None:
        """A reset after any byte, in the middle of a frame too, is no error."""
        payload = wire_json(x="y" * 200)
        pieces = [
            wire_request(),
            wire_call("handler"),
            wire_frame(payload[:90], TEXT),
            wire_frame(b"hi", FIN | PING),
            wire_frame(payload[90:], FIN | CONT),
            wire_close(),
        ]
        talk = b"".join(pieces)
        app, _, _ = load_faulty_app("handler")

        async with app.serve("127.0.0.1", 0) as serving:
            before = asyncio.all_tasks()
            for cut_at in range(1, len(talk), 5):
                async with (
                    FaultyProxy(serving, "reset", cut_at=cut_at) as proxy,
                    load_dialled(proxy.port, talk) as wire,
                ):
                    await wire.ended()
            await load_deserted(app, before)

    async def test_delay(self) -> None:
        """What arrives byte by byte is answered as what arrives at once."""
        frames = [wire_call(request_id=each, x="y" * 30 * each) for each in range(5)]

        async with (
            wire_app().serve("127.0.0.1", 0) as serving,
            FaultyProxy(serving, chunk=1) as proxy,
            load_shaken(proxy.port) as wire,
        ):
            wire.send(*frames, wire_close(1000, b"bye"))

            for each in range(5):
                assert await wire.answer() == wire_result(each, {"x": "y" * 30 * each})
            assert await wire.closed() == (1000, "bye")

    async def test_honest_client_on_a_slow_line(self) -> None:
        """One that takes seconds for one answer of 8 MB stays, with short pings."""
        size = 8_000_000
        app, clients = load_app()
        limits: Any = {"ping_interval": 0.05, "ping_timeout": 0.4}

        async with (
            app.serve("127.0.0.1", 0, **limits) as serving,
            FaultyProxy(serving, chunk=2**16, delay=0.008) as proxy,
            ws_connect(
                f"ws://127.0.0.1:{proxy.port}/kept",
                proxy=None,
                compression=None,
                max_size=None,
                ping_interval=None,
            ) as ws,
        ):
            load_narrow(*clients)
            answer = await Talk(ws).call("e.fill", size=size)
            pauses = app.stats()["pauses"]
            again = await Talk(ws).call("e.echo", x=1)

        assert len(result_of(answer)) == size
        assert pauses == 1
        assert result_of(again) == {"x": 1}
        assert not app.stats()["stalled_clients_dropped"]


class WalkHandlers:
    """Handlers of every kind."""

    marks = App()

    @marks.method
    def echo(self, request: wsappy.Request, n: int) -> int:
        """Return at once."""
        return n

    @marks.method
    async def wait(self, request: wsappy.Request, n: int) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    @marks.method
    async def nap(self, request: wsappy.Request, n: int) -> None:
        """Return some turns later."""
        for _ in range(n):
            await asyncio.sleep(0)

    @marks.method
    async def swallow(self, request: wsappy.Request, n: int) -> None:
        """End late when cancelled."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    @marks.method(thread=True)
    def thread(self, request: wsappy.Request, n: int) -> int:
        """Return from a thread."""
        return n

    @marks.method
    async def fail(self, request: wsappy.Request, n: int) -> None:
        """Raise, now or later."""
        if n > 1:
            await asyncio.sleep(0)
        raise Error("no", "no")

    @marks.method(timeout=0.05)
    async def late(self, request: wsappy.Request, n: int) -> None:
        """Take too long."""
        await asyncio.Event().wait()

    @marks.method
    async def own(self, request: wsappy.Request, n: int) -> None:
        """Send its own events."""
        await request.response("progress", n=n)
        await asyncio.sleep(0)
        await request.response("result", n=n)

    @marks.method
    async def watch(self, request: wsappy.Request, n: int) -> AsyncIterator[int]:
        """Yield some items."""
        for each in range(4 * n):
            yield each

    @marks.method
    async def ask(self, request: wsappy.Request, n: int) -> Any:
        """Call the client."""
        return await request.client.call("ui", "confirm", n=n, timeout=None)

    @marks.method
    async def push(self, request: wsappy.Request, n: int) -> None:
        """Push to the client and to its group."""
        request.client.join("room")
        await request.client.push("e", "one")
        await request.client.app.to("room").push("e", "all")


def load_walk_app() -> App:
    """Make an app with handlers of every kind, on routes of every kind."""
    app = App(grace=0, max_in_flight=6)
    for path, is_ordered in (("/api", False), ("/ordered", True)):
        app.client(path, ordered=is_ordered)(lambda client: None)

    @app.client("/wrapped")
    class Wrapped(Client):
        async def process_message(self, request: wsappy.Request) -> Any:
            return await super().process_message(request)

    app.module("e")(WalkHandlers())
    return app


LOAD_KINDS = [
    "echo",
    "wait",
    "nap",
    "swallow",
    "thread",
    "fail",
    "late",
    "own",
    "watch",
    "ask",
    "push",
]


class Walker:
    """A client that does what it is told, and checks what the server says.

    Attributes:
        unfinished: How many calls of each id have no terminal event yet.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.unfinished: collections.Counter[Any] = collections.Counter()
        self.faults: list[Any] = []
        self.listener = asyncio.create_task(self.listen())

    async def listen(self) -> None:
        """Take every message of the server's."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                first, payload = await self.wire.frame()
                if first == FIN | TEXT:
                    self.take(json.loads(payload))

    def take(self, message: Any) -> None:
        """Count a terminal event, and answer a call."""
        request_id = message["request_id"]
        if "event" not in message:
            self.answer(request_id, message["data"]["n"])
        elif request_id is not None:
            if not self.unfinished[request_id]:
                self.faults.append(message)
            if message["event"] in {"result", "error"}:
                self.unfinished[request_id] -= 1

    def answer(self, request_id: int, n: int) -> None:
        """Answer a call of the server's, in one of three ways, or never."""
        event = {"module": "ui", "method": "confirm", "request_id": request_id}
        answers: list[Any] = [("result", {}), ("error", {"code": "x"}), ("item", 1)]
        for name, data in [answers[n - 1], *answers[:1]] if n < 3 else answers[2:]:
            event |= {"event": name, "data": data}
            self.wire.send(wire_frame(json.dumps(event).encode()))

    def call(self, name: str, request_id: Any, data: Any, **more: Any) -> None:
        """Send a call."""
        module, _, method = name.partition(".")
        message = {"module": module, "method": method, "data": data, **more}
        self.unfinished[request_id] += 1
        text = json.dumps({**message, "request_id": request_id})
        self.wire.send(wire_frame(text.encode()))

    def step(self, verb: str, request_id: int, n: int) -> None:
        """Make one step of a walk."""
        if verb == "cancel":
            self.call("$.cancel", f"c{n}", {"request_id": request_id})
        elif verb == "more":
            self.call("$.more", f"m{n}", {"request_id": request_id, "items": n})
        elif verb == "credit":
            self.call("e.watch", request_id, {"n": n}, items=n)
        else:
            self.call(f"e.{verb}", request_id, {"n": n})

    async def finish(self) -> None:
        """Cancel all that is unfinished, and wait for the last terminal event."""
        for _ in range(100):
            for request_id in [*+self.unfinished]:
                self.call("$.cancel", "end", {"request_id": request_id})
            await load_until(lambda: self.faults or not self.unfinished["end"])
            if self.faults or not +self.unfinished:
                break
        assert not +self.unfinished
        # What comes after the end would come before the answer to this.
        self.call("$.ping", "last", {})
        await load_until(lambda: self.faults or not self.unfinished["last"])
        assert self.faults == []

    async def leave(self, *, is_reset: bool) -> None:
        """Go, politely or not."""
        if is_reset:
            load_reset(self.wire.writer)
        else:
            self.wire.send(wire_close())
            await self.wire_ended()
        self.listener.cancel()
        await asyncio.wait([self.listener])
        assert self.faults == []

    async def wire_ended(self) -> None:
        """Wait until the server has closed."""
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([self.listener])
        self.wire.writer.transport.abort()


LOAD_STEPS = st.tuples(
    st.sampled_from(
        [*LOAD_KINDS, *["credit", "cancel", "more"] * 2, "turn", "leave", "reset"]
    ),
    st.integers(0, 1),
    st.integers(1, 4),
    st.integers(1, 3),
)


async def load_walk(app: App, port: int, path: str, steps: list[Any]) -> None:
    """Walk with two clients; at the end nothing may be left."""
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:

        async def enter() -> Walker:
            wire = await stack.enter_async_context(load_shaken(port, path))
            return Walker(wire)

        walkers = [await enter(), await enter()]
        for verb, who, request_id, n in steps:
            if verb == "turn":
                for _ in range(n):
                    await asyncio.sleep(0)
            elif verb in {"leave", "reset"}:
                await walkers[who].leave(is_reset=verb == "reset")
                walkers[who] = await enter()
            else:
                walkers[who].step(verb, request_id, n)
        for walker in walkers:
            await walker.finish()
            await walker.leave(is_reset=False)
    await load_deserted(app, before)


@pytest.mark.usefixtures("load_quiet", "load_hasty")
class TestWalks:
    """Whatever comes in whatever order: each call has one end, and none stays."""

    @pytest.mark.parametrize("path", ["/api", "/ordered", "/wrapped"])
    def test_random_walk(self, path: str) -> None:
        """Each call with an id has exactly one terminal event, after all others."""
        app = load_walk_app()

        with asyncio.Runner() as runner:
            serving = app.serve("127.0.0.1", 0)
            runner.run(serving.__aenter__())

            @settings(max_examples=LOAD_EXAMPLES // 2, deadline=None, database=None)
            @given(st.lists(LOAD_STEPS, max_size=30))
            def walk(steps: list[Any]) -> None:
                runner.run(load_walk(app, serving.port, path, steps))

            try:
                walk()
            finally:
                runner.run(serving.__aexit__())


# Codes of closes that a peer can bring about (RFC 6455, section 7.4; protocol.md, 8).
LOAD_CLOSE_CODES = {1000, 1002, 1007, 1009, 4400}
LOAD_ERRORS = {"bad_message", "unknown_method", "bad_data", "overloaded"}


def load_check(message: Any) -> None:
    """Check that a message is an answer of the protocol."""
    assert list(message) == ["request_id", "module", "method", "event", "data"]
    if message["event"] == "error":
        assert message["data"]["code"] in LOAD_ERRORS
        assert isinstance(message["data"]["message"], str)
    else:
        assert message["event"] == "result"


def load_flip(data: bytes, spots: list[int]) -> bytes:
    """Flip some bits."""
    damaged = bytearray(data)
    for spot in spots:
        damaged[spot // 8 % len(damaged)] ^= 1 << spot % 8
    return bytes(damaged)


LOAD_FRAMES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.builds(wire_frame, st.binary(max_size=140), st.integers(0, 255)),
    st.builds(
        load_flip,
        st.sampled_from([wire_call(), wire_frame(b"hi", FIN | PING), wire_close()]),
        st.lists(st.integers(0), min_size=1, max_size=4),
    ),
    st.sampled_from(
        [
            wire_call(),
            wire_frame(b"{}", FIN | BINARY),
            wire_frame(b'{"module":', TEXT),
            wire_frame(b'"e"}', FIN | CONT),
            wire_frame(b"", FIN | PONG),
            wire_frame(b"x" * 4097),
            wire_call()[:9],
            b"\x81\xff" + b"\xff" * 8 + MASK,
        ]
    ),
)


async def load_fuzz(serving: Any, frames: list[bytes]) -> None:
    """Send frames and the end; check all that comes back until the end."""
    async with load_shaken(serving.port) as wire:
        wire.send(*frames)
        wire.writer.write_eof()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while True:
                first, payload = await wire.frame()
                if first == FIN | TEXT:
                    load_check(json.loads(payload))
                elif first == FIN | CLOSE:
                    code = int.from_bytes(payload[:2], "big") if payload else 1000
                    is_echo = 3000 <= code < 5000 or 1000 <= code < 1015
                    assert code in LOAD_CLOSE_CODES or is_echo
                else:
                    assert first == FIN | PONG


LOAD_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
LOAD_IDS = st.one_of(
    st.integers(-2, 9),
    st.sampled_from([None, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, "", True, 1.0]),
    st.sampled_from(["x" * 128, "x" * 129]),
    LOAD_JSON,
)
LOAD_NAMES = st.sampled_from(["e", "e", "echo", "echo", "__class__", "", 1, None])
LOAD_MESSAGES = LOAD_JSON | st.fixed_dictionaries(
    {"module": LOAD_NAMES, "method": LOAD_NAMES, "request_id": LOAD_IDS},
    optional={
        "data": st.dictionaries(st.text(max_size=4), LOAD_JSON, max_size=3) | LOAD_JSON,
        "items": st.sampled_from([None, 1, 0, True, "1"]),
        "event": st.sampled_from(["result", "x", None, 1]),
        "more": LOAD_JSON,
    },
)


def load_is_id(value: Any) -> bool:
    """Tell whether the protocol allows a `request_id`."""
    if isinstance(value, str):
        return len(value) <= 128
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return value is None or (is_int and -(2**63) <= value < 2**63)


def load_expected(message: Any) -> Any:
    """Return id and outcome of the answer that protocol.md asks for; None for none."""
    if not isinstance(message, dict):
        return None, "bad_message"
    request_id, items = message.get("request_id"), message.get("items")
    if not load_is_id(request_id) or not isinstance(message.get("event", ""), str):
        return None, "bad_message"
    if items is not None and (type(items) is not int or items < 1):
        return request_id, "bad_message"
    if "event" in message:
        return None
    names, data = [message.get("module"), message.get("method")], message.get("data")
    is_call = all(isinstance(name, str) for name in names)
    if not is_call or not isinstance(data, dict | None):
        return request_id, "bad_message"
    return request_id, (data or {}) if names == ["e", "echo"] else "unknown_method"


async def load_compare(serving: Any, messages: list[Any]) -> None:
    """Send messages; compare each answer with what the protocol says."""
    expected = [load_expected(each) for each in messages]
    async with load_shaken(serving.port) as wire:
        frames = [wire_frame(json.dumps(each).encode()) for each in messages]
        wire.send(*frames, wire_close())
        for each in expected:
            if each is not None:
                answer = await wire.answer()
                load_check(answer)
                data = answer["data"]
                is_error = answer["event"] == "error"
                outcome = data["code"] if is_error else data
                assert (answer["request_id"], outcome) == each
        assert await wire.closed() == (1000, "")


async def load_knock(serving: Any, request: bytes) -> None:
    """Send a request and the end; check that a status comes back, or nothing."""
    async with load_dialled(serving.port, request) as wire:
        wire.writer.write_eof()
        answer = await wire.ended()
        statuses = b"101 400 404 405 414 426 431 501 505"
        assert not answer or answer[9:12] in statuses.split()


# What is sent in place of frames, of messages and of a handshake, and what checks it.
LOAD_FUZZING: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "frames": (st.lists(LOAD_FRAMES, min_size=1, max_size=12), load_fuzz),
    "messages": (st.lists(LOAD_MESSAGES, min_size=3, max_size=8), load_compare),
    "requests": (
        st.binary(min_size=1, max_size=99)
        | st.builds(
            load_flip,
            st.just(wire_request()),
            st.lists(st.integers(0), min_size=1, max_size=4),
        ),
        load_knock,
    ),
}


@pytest.mark.usefixtures("load_quiet", "load_hasty")
class TestFuzzing:
    """Bad input gets an answer of the protocol or a documented close code."""

    @pytest.mark.parametrize("kind", LOAD_FUZZING)
    def test_anything(self, kind: str) -> None:
        """Whatever is sent in place of what the protocol asks for spoils nothing."""
        app, (strategy, check) = wire_app(), LOAD_FUZZING[kind]

        with asyncio.Runner() as runner:
            serving = app.serve("127.0.0.1", 0, max_size=4096, close_timeout=0.2)
            runner.run(serving.__aenter__())

            @settings(max_examples=LOAD_EXAMPLES, deadline=None, database=None)
            @given(strategy)
            def run(example: Any) -> None:
                runner.run(check(serving, example))

            try:
                run()
                runner.run(load_alone(app))
            finally:
                runner.run(serving.__aexit__())


@pytest.mark.usefixtures("load_quiet", "load_hasty")
class TestHostilePeers:
    """What spoils a server with the bare library does nothing to this one."""

    @pytest.mark.parametrize("path", ["/ordered", "/raw"])
    async def test_calls_after_a_slow_one(self, path: str) -> None:
        """A client with 17 messages after a slow one stays, with short pings."""
        app, began, go_on = App(grace=0), asyncio.Event(), asyncio.Event()
        app.client("/ordered", ordered=True)(lambda client: None)

        async def slow() -> None:
            began.set()
            await go_on.wait()

        @app.client("/raw")
        class Raw(Client):
            async def on_message(self, message: str | bytes) -> None:
                await slow()
                await self.connection.send(b'{"event": "result", "data": {}}')

        app.module("e")(app.method("work")(lambda request: slow()))
        limits: Any = {"ping_interval": 0.01, "ping_timeout": LIMIT}

        async with (
            app.serve("127.0.0.1", 0, **limits) as serving,
            load_shaken(serving.port, path) as wire,
        ):
            wire.send(*[wire_call("work", each) for each in range(18)])
            await happens(began)
            for _ in range(3):
                first, payload = await wire.frame()
                assert first == FIN | PING
                wire.send(wire_frame(payload, FIN | PONG))
            go_on.set()

            answers = 0
            while answers < 18:
                first, payload = await wire.frame()
                if first != FIN | PING:
                    assert result_of(json.loads(payload)) == {}
                    answers += 1

    @pytest.mark.parametrize("name", ["echo", "wait", "none"])
    async def test_flood_of_calls(self, name: str) -> None:
        """100,000 calls whose answers nobody reads fill no memory."""
        app = wire_app()

        @app.module("w")
        @app.method
        async def wait(request: wsappy.Request) -> None:
            await asyncio.Event().wait()

        calls = wire_call(name) * 100_000
        if name == "wait":
            calls = wire_frame(wire_json("wait").replace(b'"e"', b'"w"')) * 100_000

        async with load_silent(app) as (wire, client):
            wire.send(calls)
            tracemalloc.start()
            await load_until(lambda: client.connection.paused)
            await turns()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()

            assert peak < 2**21
            assert app.stats()["unfinished"] <= 100

    async def test_flood_of_calls_that_is_read(self) -> None:
        """20,000 calls in one go are all answered, in order."""
        call = wire_frame(wire_json("echo", None, x=1))

        async with wired(wire_app()) as wire:
            wire.send(call * 20_000, wire_close())
            size = len(await wire.reader.readuntil(b"}}")) - 2
            rest = 0
            while data := await wire.reader.read(2**16):
                rest += len(data)

        assert rest == 19_999 * (size + 2) + 4

    async def test_thread_jobs_of_clients_that_are_gone(self) -> None:
        """Jobs that no worker has begun go with their client."""
        app, gate, begun = make_app(grace=0), threading.Event(), list[int]()
        module, busy = app.module("e"), wsappy.__dict__["MAX_THREADS"]

        @module.method(thread=True)
        def hold(request: wsappy.Request) -> None:
            gate.wait(LIMIT)

        @module.method(thread=True)
        def work(request: wsappy.Request) -> None:
            begun.append(1)

        async with (
            app.serve("127.0.0.1", 0) as serving,
            load_shaken(serving.port) as holder,
        ):
            holder.send(wire_call("hold") * busy, wire_frame(b"", FIN | PING))
            await holder.frame()
            before = asyncio.all_tasks()
            for _ in range(5):
                async with load_shaken(serving.port) as wire:
                    wire.send(wire_call("work") * 99, wire_frame(b"", FIN | PING))
                    await wire.frame()
                    load_reset(wire.writer)
            await load_until(lambda: asyncio.all_tasks() <= before)
            gate.set()
            for _ in range(busy):
                await holder.answer()

        assert begun == []

    @pytest.mark.parametrize("is_async", [False, True])
    async def test_large_answers_that_nobody_reads(self, is_async: bool) -> None:
        """Answers of 1 MiB to a client that doesn't read wait in bounded number."""
        app = make_app(grace=0, max_in_flight=5)
        module = app.module("e")

        @module.method("fill")
        async def fill_later(request: wsappy.Request) -> str:
            await asyncio.sleep(0)
            return "x" * 2**20

        @module.method("fill_now")
        def fill_now(request: wsappy.Request) -> str:
            return "x" * 2**20

        most = 5 if is_async else 1

        async with load_silent(app) as (wire, client):
            wire.send(wire_call("fill" if is_async else "fill_now") * 1_000)
            await load_until(lambda: client.connection.paused)
            await turns()

            backlog = client.connection.transport.get_write_buffer_size()
            assert backlog < (most + 1) * 2**20

    @pytest.mark.parametrize("is_async", [True, False])
    async def test_stream_that_nobody_reads(self, is_async: bool) -> None:
        """A million items to a client that doesn't read fill no memory."""
        app, made = make_app(grace=0), itertools.count()

        def count(request: wsappy.Request) -> Iterator[int]:
            for _ in range(1_000_000):
                yield next(made)

        async def acount(request: wsappy.Request) -> AsyncIterator[int]:
            for _ in range(1_000_000):
                yield next(made)

        app.module("e")(app.method("count")(acount if is_async else count))

        async with load_silent(app) as (wire, client):
            tracemalloc.start()
            wire.send(wire_call("count"))
            await load_until(lambda: client.connection.paused)
            count_then = next(made)
            await turns()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()

            assert next(made) == count_then + 1
            assert peak < 2**21

    async def test_half_of_a_surrogate_pair(self) -> None:
        """Text that UTF-8 can't hold ends no connection."""
        async with wired(wire_app()) as wire:
            wire.send(wire_frame(rb'{"data": "\ud800"}'))
            wire.send(wire_call())

            assert error_of(await wire.answer()) == ("bad_message", UNREADABLE)
            assert await wire.answer() == wire_result(1, {})

    async def test_one_does_not_read(self) -> None:
        """While one client doesn't read the others are answered and pushed to."""
        app = wire_app(max_backlog=2**16)
        app.client("/joined")(lambda client: client.join("room"))

        async with load_silent(app) as (slow, client):
            client.join("room")
            slow.send(wire_call("fill", size=2**23))
            await load_until(lambda: client.connection.paused)
            async with load_shaken(slow.serving.port, "/joined") as wire:
                wire.send(wire_call())
                assert await wire.answer() == wire_result(1, {})
                app.to("room").push("e", "hello")

                assert (await wire.answer())["event"] == "hello"
        assert app.stats()["slow_clients_dropped"] == 1

    async def test_others_meanwhile(self) -> None:
        """Every call of another is answered while a slow client is pushed to."""
        app = wire_app(max_backlog=2**22)

        async with load_silent(app) as (slow, client):
            client.join("room")
            async with load_shaken(slow.serving.port) as wire:
                for each in range(200):
                    wire.send(wire_call(request_id=each))
                    app.to("room").push("e", "hello", "x" * 2**16)
                    assert await wire.answer() == wire_result(each, {})
        assert app.stats()["slow_clients_dropped"] == 1


LOAD_SERVER = """
import asyncio, time
from wsappy import App

app = App(grace=0.5)
app.client("/api")(lambda client: None)
module = app.module("e")

@module.method
async def brief(request):
    await request.response("began")
    await asyncio.sleep(0.2)

@module.method
async def endless(request):
    await request.response("began")
    await asyncio.Event().wait()

@module.method(thread=True)
def thread(request):
    request.response("began")
    time.sleep(0.2)

@module.method
async def stream(request):
    await request.response("began")
    while True:
        yield 1
        await asyncio.sleep(0.01)

app.run("127.0.0.1", 0)
"""


LOAD_HOSTILE_SERVER = """
import asyncio, contextlib, time
from wsappy import App, Client

app = App(grace=0.3)

async def swallow():
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

@app.client("/{state}")
class Visitor(Client):
    async def on_connecting(self, state):
        if state == "on_connecting":
            await swallow()

    async def on_connected(self):
        self.push("e", "hello")
        if self.params["state"] == "on_connected":
            await swallow()

    async def on_disconnected(self):
        if self.params["state"] == "on_disconnected":
            await swallow()

module = app.module("e")

@module.method("handler")
async def handler(request):
    await swallow()

@module.method("thread", thread=True)
def thread(request):
    time.sleep(60)

@module.method("fill")
def fill(request):
    return "x" * 2**23

app.run("127.0.0.1", 0)
"""


async def load_terminals(wire: Wire) -> list[tuple[int, str]]:
    """Read until the end; return id and event of each terminal event."""
    ends: list[tuple[int, str]] = []
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
        while True:
            first, payload = await wire.frame()
            if first == FIN | CLOSE:
                assert payload == b"\x03\xe9the server is stopping"
                wire.send(wire_close(1001))
                continue
            message = json.loads(payload)
            if message["event"] in {"result", "error"}:
                ends.append((message["request_id"], message["event"]))
            else:
                assert message["request_id"] not in dict(ends)
    return ends


@contextlib.asynccontextmanager
async def load_process(source: str) -> AsyncIterator[tuple[Any, int, Any]]:
    """Run a server in a process; give it, its port, and what enters a connection."""
    async with contextlib.AsyncExitStack() as stack:
        process = stack.enter_context(example_process("-c", source))
        assert process.stdout is not None
        port = int(process.stdout.readline().split(":")[2].split("/")[0])
        yield process, port, stack.enter_async_context


class TestStopUnderLoad:
    """A stop leaves no call without its end, and is over in time."""

    async def test_unfinished_calls(self) -> None:
        """200 unfinished calls over 50 connections have one terminal event each."""
        names = ["brief", "endless", "thread", "stream"]

        async with load_process(LOAD_SERVER) as (process, port, dial):
            wires = [await dial(load_shaken(port)) for _ in range(50)]
            for wire in wires:
                wire.send(*[wire_call(name, at) for at, name in enumerate(names)])
                assert (await wire.answer())["event"] == "began"
            process.send_signal(signal.SIGTERM)
            ends = await asyncio.gather(*map(load_terminals, wires))
            rest, _ = process.communicate(timeout=LIMIT)

        assert [sorted(dict(each)) for each in ends] == [[0, 1, 2, 3]] * 50
        assert [len(each) for each in ends] == [4] * 50
        assert {dict(each)[1] for each in ends} == {"error"}
        assert (process.returncode, rest) == (
            0,
            "unfinished calls: 200, for 0.5 s; a second signal leaves at once\n",
        )

    async def test_time(self) -> None:
        """It takes the grace and 4 s at most, whatever is there that won't end."""
        hooks = ["on_connecting", "on_connected", "on_disconnected"]

        async with load_process(LOAD_HOSTILE_SERVER) as (process, port, dial):
            for request in (b"", b"GET /api HTT", wire_request("/on_connecting")):
                await dial(load_dialled(port, request))
            for state in ("handler", "thread", "fill", *hooks[1:]):
                wire = await dial(load_shaken(port, f"/{state}"))
                await wire.answer()
                wire.writer.transport.pause_reading()
                wire.send(wire_call(state), wire_frame(b"", FIN | PING))
            # Its answer says that the others were read: they came before it.
            last = await dial(load_shaken(port, "/last"))
            await last.answer()
            process.send_signal(signal.SIGTERM)
            # Two seconds for a machine that is busy with other things.
            limit = 0.3 + 4 + 2
            rest, _ = await asyncio.to_thread(process.communicate, timeout=limit)

        left = [line for line in rest.splitlines() if "left behind" in line]
        assert (process.returncode, len(left)) == (0, 5)

    @pytest.mark.usefixtures("load_hasty")
    async def test_hostile_peers(self, caplog: pytest.LogCaptureFixture) -> None:
        """Full buffers, half-open handshakes and hooks that hang hold nothing up."""
        app = wire_app()

        @app.client("/hang")
        class Hang(Client):
            async def on_connecting(self) -> None:
                await asyncio.Event().wait()

        @app.client("/bye")
        class Bye(Client):
            async def on_disconnected(self) -> None:
                await asyncio.Event().wait()

        async with contextlib.AsyncExitStack() as stack:
            before, serving = asyncio.all_tasks(), app.serve("127.0.0.1", 0)
            await serving.__aenter__()
            dial, port = stack.enter_async_context, serving.port
            for request in (b"", b"GET /api HTT", wire_request("/hang")):
                for _ in range(10):
                    await dial(load_dialled(port, request))
            for path in ["/bye", "/api"] * 5:
                wire = await dial(load_shaken(port, path))
                wire.writer.transport.pause_reading()
                wire.send(wire_call("fill", size=2**23))
            await load_until(lambda: app.stats()["pauses"] == 10)
            async with asyncio.timeout(LIMIT):
                await serving.__aexit__()

            await load_deserted(app, before)
        assert set(caplog.messages) == {"on_disconnected failed"}

    @pytest.mark.usefixtures("load_quiet", "load_hasty")
    async def test_clients_that_keep_coming(self) -> None:
        """Handshakes and calls that go on during the stop hold nothing up."""
        app = wire_app()

        async def visit(port: int) -> None:
            while True:
                async with load_shaken(port) as wire:
                    wire.send(wire_call())
                    await wire.frame()

        before = asyncio.all_tasks()
        async with asyncio.timeout(LIMIT):
            async with app.serve("127.0.0.1", 0) as serving:
                visits = [asyncio.create_task(visit(serving.port)) for _ in range(20)]
                await load_until(lambda: app.stats()["clients"] > 5)
            await asyncio.wait(visits)

        assert None not in [each.exception() for each in visits]
        await load_deserted(app, before)


async def load_visit(port: int, kind: int) -> None:
    """Come and go: politely, by a reset, within a call, a stream, or a handshake."""
    if kind == 4:
        async with load_dialled(port, wire_request()[:60]) as wire:
            load_reset(wire.writer)
        return
    async with load_shaken(port) as wire:
        name = ["echo", "echo", "wait", "watch"][kind]
        wire.send(wire_call("join", None), wire_call(name))
        if kind == 0:
            await wire.answer()
            wire.send(wire_close())
            await wire.ended()
        else:
            if kind != 2:
                await wire.answer()
            load_reset(wire.writer)


def load_leavings() -> dict[str, int]:
    """Count what a visit could leave behind."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each).__module__ == "wsappy"]
    return {
        "tasks": len(asyncio.all_tasks()),
        "files": len(os.listdir("/dev/fd")),
        "objects": len(found),
    }


@pytest.mark.usefixtures("load_quiet")
class TestLeaks:
    """What comes and goes leaves nothing behind."""

    async def test_visits(self) -> None:
        """Tasks, files, clients, groups and memory are back where they were."""
        app = wire_app()
        module = app.module("e")

        @module.method
        def join(request: wsappy.Request) -> None:
            request.client.join("room")
            request.client.join(request.client.id)

        @module.method
        async def wait(request: wsappy.Request) -> None:
            await asyncio.Event().wait()

        @module.method
        async def watch(request: wsappy.Request) -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        async with app.serve("127.0.0.1", 0) as serving:
            tasks = asyncio.all_tasks()

            async def visits(count: int) -> None:
                for _ in range(count // 10):
                    each = (load_visit(serving.port, at % 5) for at in range(10))
                    await asyncio.gather(*each)
                await load_deserted(app, tasks)

            await visits(50)
            before, blocks = load_leavings(), sys.getallocatedblocks()
            await visits(LOAD_VISITS)

            assert load_leavings() == before
            assert sys.getallocatedblocks() - blocks < LOAD_VISITS


LOAD_FLOODS = {
    "lines": (wire_request()[:-2] + b"X: y\r\n" * 100_000, 431),
    "line": (wire_request()[:-2] + b"X: " + b"y" * 2**20, 431),
    "address": (b"GET /" + b"y" * 2**20, 414),
    "body": (
        b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n"
        + b"y" * 2**20,
        None,
    ),
    "chunks": (
        b"GET /api HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\ny\r\n" * 2**17,
        None,
    ),
    "behind": (wire_request("/hang") + wire_call() * 10_000, None),
    "zeros": (bytes(2**20), None),
}


@pytest.mark.usefixtures("load_hasty")
class TestNothingGetsIn:
    """What a client may not do it can't do."""

    @pytest.mark.usefixtures("load_quiet")
    @pytest.mark.parametrize("name", LOAD_FLOODS)
    async def test_flood_before_the_handshake(self, name: str) -> None:
        """A flood of headers, or of anything else, ends in bounded memory."""
        app = wire_app()
        flood, status = LOAD_FLOODS[name]

        @app.client("/hang")
        async def hang(client: Client) -> None:
            await asyncio.Event().wait()

        async with app.serve("127.0.0.1", 0, **LOAD_LIMITS) as serving:
            before = asyncio.all_tasks()
            async with load_dialled(serving.port) as wire:
                tracemalloc.start()
                wire.send(flood)
                answer = await wire.ended()
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            await load_deserted(app, before)

        # Its own end keeps what it hasn't sent yet.
        assert peak < len(flood) + 2**20
        if status and answer:
            assert int(answer[9:12]) == status

    @pytest.mark.usefixtures("load_quiet")
    async def test_drip(self) -> None:
        """A request that never ends is ended by `open_timeout`."""
        app = wire_app()

        async with app.serve("127.0.0.1", 0, open_timeout=0.1) as serving:
            before = asyncio.all_tasks()
            async with (
                FaultyProxy(serving, chunk=1, delay=0.02) as proxy,
                load_dialled(proxy.port, wire_request()) as wire,
            ):
                assert await wire.ended() == b""
                await load_deserted(app, before, proxy.pumps)

    @pytest.mark.usefixtures("load_quiet")
    @pytest.mark.parametrize(
        "name",
        [
            "e.__init__",
            "e.__class__",
            "e.hidden",
            "e._own",
            "e.get.__call__",
            "__main__.get",
            "e.",
            ".get",
            "$.__init__",
            "$.perform",
        ],
    )
    async def test_name_that_nobody_registered(self, name: str) -> None:
        """Only what is marked can be called, whatever else the object has."""
        app = make_app(grace=0)

        @app.module("e")
        class Entities:
            @app.method
            def get(self, request: wsappy.Request) -> None: ...

            def hidden(self, request: wsappy.Request) -> None: ...

            def _own(self, request: wsappy.Request) -> None: ...

        async with talking(app) as talk:
            code, _ = error_of(await talk.call(name))

        assert code == "unknown_method"

    async def test_forged_log_lines(self, caplog: pytest.LogCaptureFixture) -> None:
        """Names and texts of a client's can't begin a line of the log."""
        app, forged = wire_app(), "x\nERROR forged\r\u2028\x1b[2J"
        caplog.set_level(logging.INFO)

        @app.client("/{name}")
        class Room(Client):
            async def process_message(self, request: wsappy.Request) -> Any:
                if request.id == 1:
                    return b""
                if request.id == 2:
                    raise LookupError
                await request.response("result")
                raise Error("not_found", f"no {request.module}")

            async def on_disconnected(self) -> None:
                raise LookupError

        @app.client("/refusing/{name}")
        def refuse(client: Client, name: str) -> None:
            raise Refused(403, name)

        path = "/x%0AERROR%20forged%0D"
        origin = b"Origin: http://x\x85ERROR\tforged\r\n\r\n"

        async with wired(app, path=path) as wire:
            port = wire.serving.port
            for each in range(1, 4):
                call = {"module": forged, "method": forged, "request_id": each}
                wire.send(wire_frame(json.dumps(call).encode()))
                await wire.answer()
            wire.send(wire_close(3000, b"x\nERROR forged"))
            await wire.closed()
            for request in (
                wire_request(f"/refusing{path}"),
                wire_request()[:-2] + origin,
                wire_request("/x\x0bERROR forged"),
            ):
                async with load_dialled(port, request) as other:
                    other.writer.write_eof()
                    await other.ended()
        texts = caplog.messages

        assert len(texts) > 6
        assert [each for each in texts if not each.isprintable()] == []
