"""Measure wsappy against the loop that you would write by hand, and frameworks.

    python examples/benchmark.py                                 all that is installed
    python examples/benchmark.py --only wsappy-def websockets    these alone
    python examples/benchmark.py --json                          the figures as JSON
    python examples/benchmark.py --scaling                       more clients, methods
    python examples/benchmark.py --client                        the Python client

`pip install aiohttp picows python-socketio starlette uvicorn uvloop` adds the others.

Each server runs in turn, in a process of its own on one core, and is driven from
another core. All of them answer the same call from the same data:

    {"module": "entity", "method": "get", "data": {"item_id": 42}, "request_id": 10}

The driver must be cheaper than any of them: it sends frames that are prepared once, and
counts the bytes that come back; one answer has been read and checked before. How busy
it was stands beside how busy the server was, with a warning where it was the busier.

The figure that counts is the CPU time of the server's process for each call. What a
busy machine adds to it is never less than nothing. So each measurement is cut into
slices that are shorter than the moods of a shared core, the rounds go A B, then B A,
the least slice of all stands, and a ratio is least over least. The kernel counts CPU
time exactly, but only samples whose it is, some 250 times a second: user time is the
least sum, times the user's share of all the samples. Two page faults for each call mean
bad luck: malloc fetches the 256 KiB that asyncio reads into from the kernel, each time
anew. All this is read from outside of the server, as only Linux lets one.

    1. The servers     the same call, answered by each of them
    2. The protocols   frames and messages as a client sends them
    3. The driver      many connections, driven as cheaply as Python can
    4. One server      its process, what it used, and what that makes for each call
    5. Rounds          all the servers in turn; ratios and scaling
    6. The clients     the Python client against one that is written by hand
    7. Tables          what is printed
    8. Command line    the options
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, Self, cast

import orjson
from websockets.asyncio.client import connect as open_connection
from websockets.asyncio.server import ServerConnection, broadcast, serve

# The file beside this one's folder, whether or not another version is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsappy import App, Client, Request, connect

ITEMS = [{"id": 42, "name": "a"}, {"id": 15, "name": "b"}, {"id": 30, "name": "c"}]
HOST = "127.0.0.1"
CONNECTIONS = 64
# Calls in flight on each connection: one scenario for each number.
DEPTHS = (1, 16)
# The ids of calls have two digits, or frames and answers would differ in size.
FIRST_ID = 10
# Seconds of one slice, of the run before the first one, and that any answer may take.
SLICE, WARM_UP, PATIENCE = 0.02, 0.1, 10.0
# Seconds behind which no round ends that isn't the first.
LIMIT = 110.0
# Seconds of one measurement at most: servers ping after 20 s, and pings aren't counted.
MAX_SECONDS = 5.0
# Connections at most, which is far below the 28,000 that Linux has ports for.
MAX_CLIENTS = 5000
# Files that a process needs beside its connections.
SPARE_FILES = 100
# The first one is for the server, the second for what drives it.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

__all__ = ["main"]

JSON = Any

# --- 1. The servers ----------------------------------------------------------


def find(item_id: int) -> JSON:
    return {"items": [item for item in ITEMS if item["id"] == item_id]}


def serve_app(app: App) -> None:
    """Serve a wsappy app that has its `entity.get`, and push to all of its clients."""

    @app.client("/")
    def enter(client: Client) -> None:
        client.join("all")

    @app.module("bench")
    @app.method
    def push(request: Request) -> None:
        app.to("all").push("entity", "changed", ITEMS[0])

    async def main() -> None:
        async with app.serve(HOST, 0) as serving:
            await announce(serving.port)

    asyncio.run(main())


def add_other_methods(app: App, methods: int) -> None:
    """Register other modules, and other methods of the module that is called."""
    for number in range(1, methods):
        for module, method in ("entity", f"get_{number}"), (f"entity_{number}", "get"):
            app.module(module)(app.method(method)(lambda request, item_id: None))


def serve_wsappy_def(methods: int) -> None:
    app = App()
    add_other_methods(app, methods)

    @app.module("entity")
    @app.method("get")
    def get(request: Request, item_id: int) -> JSON:
        return {"items": [item for item in ITEMS if item["id"] == item_id]}

    serve_app(app)


def serve_wsappy_async(methods: int) -> None:
    app = App()
    add_other_methods(app, methods)

    @app.module("entity")
    @app.method("get")
    async def get(request: Request, item_id: int) -> JSON:
        return {"items": [item for item in ITEMS if item["id"] == item_id]}

    serve_app(app)


Handlers = dict[tuple[str, str], Callable[..., JSON]]
# What every server but wsappy and Socket.IO pushes.
CHANGED = {
    "request_id": None,
    "module": "entity",
    "method": None,
    "event": "changed",
    "data": ITEMS[0],
    "group": "all",
}


def handlers_of(methods: int, push: Callable[[], object]) -> Handlers:
    """Return the dict that stands for wsappy in the servers without it."""
    handlers: Handlers = {}
    for number in range(1, methods):
        handlers["entity", f"get_{number}"] = handlers[f"entity_{number}", "get"] = find
    handlers["entity", "get"] = find
    handlers["bench", "push"] = push
    return handlers


def answer(handlers: Handlers, message: str | bytes | memoryview) -> bytes:
    """Do by hand, without a single check, what wsappy does for each call."""
    call = orjson.loads(message)
    module, method = call["module"], call["method"]
    result = {
        "request_id": call.get("request_id"),
        "module": module,
        "method": method,
        "event": "result",
        "data": handlers[module, method](**call["data"]),
    }
    return orjson.dumps(result)


def serve_websockets(methods: int) -> None:
    """Serve the loop that one writes by hand."""
    connections: set[ServerConnection] = set()

    def push() -> None:
        broadcast(connections, orjson.dumps(CHANGED), text=True)

    handlers = handlers_of(methods, push)

    async def talk(ws: ServerConnection) -> None:
        connections.add(ws)
        try:
            async for message in ws:
                await ws.send(answer(handlers, message), text=True)
        finally:
            connections.discard(ws)

    async def main() -> None:
        async with serve(talk, HOST, 0, compression=None) as server:
            await announce(server.sockets[0].getsockname()[1])

    asyncio.run(main())


class Crowd:
    """The connections of a framework that has no broadcast: sends to each in turn."""

    def __init__(self, send: Callable[[Any, str], Any]) -> None:
        self.send = send
        self.members: set[Any] = set()
        self.task: asyncio.Task[None] | None = None

    def push(self) -> None:
        self.task = asyncio.ensure_future(self._push())

    async def _push(self) -> None:
        text = orjson.dumps(CHANGED).decode()
        for member in list(self.members):
            await self.send(member, text)


def serve_aiohttp(methods: int) -> None:
    web = importlib.import_module("aiohttp.web")
    crowd = Crowd(web.WebSocketResponse.send_str)
    handlers = handlers_of(methods, crowd.push)

    async def talk(request: Any) -> Any:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        crowd.members.add(ws)
        async for message in ws:
            await ws.send_str(answer(handlers, message.data).decode())
        crowd.members.discard(ws)
        return ws

    async def main() -> None:
        app = web.Application()
        app.add_routes([web.get("/", talk)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        listener = listen()
        await web.SockSite(runner, listener).start()
        await announce(listener.getsockname()[1])

    asyncio.run(main())


def serve_starlette(methods: int) -> None:
    starlette = importlib.import_module("starlette.applications")
    routing = importlib.import_module("starlette.routing")
    websockets = importlib.import_module("starlette.websockets")
    crowd = Crowd(websockets.WebSocket.send_text)
    handlers = handlers_of(methods, crowd.push)

    async def talk(ws: Any) -> None:
        await ws.accept()
        crowd.members.add(ws)
        with contextlib.suppress(websockets.WebSocketDisconnect):
            while True:
                message = await ws.receive_text()
                await ws.send_text(answer(handlers, message).decode())
        crowd.members.discard(ws)

    serve_asgi(starlette.Starlette(routes=[routing.WebSocketRoute("/", talk)]))


def serve_socketio(methods: int) -> None:
    """Serve python-socketio as it comes, with the JSON of the standard library."""
    socketio = importlib.import_module("socketio")
    server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"])
    emits: list[asyncio.Future[None]] = []

    def push() -> None:
        emits[:] = [asyncio.ensure_future(server.emit("changed", ITEMS[0]))]

    handlers = handlers_of(methods, push)

    async def talk(sid: str, call: JSON) -> JSON:
        return handlers[call["module"], call["method"]](**call["data"]) or {}

    server.on("call", talk)
    serve_asgi(socketio.ASGIApp(server))


def serve_asgi(app: Any) -> None:
    """Serve on uvicorn with uvloop; the port is open before it starts."""
    uvicorn = importlib.import_module("uvicorn")
    listener = listen()
    tell(listener.getsockname()[1])
    config = uvicorn.Config(app, loop="uvloop", lifespan="off", log_level="error")
    uvicorn.Server(config).run(sockets=[listener])


def serve_picows(methods: int) -> None:
    picows: Any = importlib.import_module("picows")
    text = picows.WSMsgType.TEXT
    transports: set[Any] = set()

    def push() -> None:
        payload = orjson.dumps(CHANGED)
        for transport in transports:
            transport.send(text, payload)

    handlers = handlers_of(methods, push)

    class Listener(picows.WSListener):  # type: ignore[misc]
        def on_ws_connected(self, transport: Any) -> None:
            transports.add(transport)

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type is text:
                message = frame.get_payload_as_memoryview()
                transport.send(text, answer(handlers, message))

        def on_ws_disconnected(self, transport: Any) -> None:
            transports.discard(transport)

    async def main() -> None:
        server = await picows.ws_create_server(lambda _: Listener(), HOST, 0)
        await announce(server.sockets[0].getsockname()[1])

    asyncio.run(main())


def listen() -> socket.socket:
    return socket.create_server((HOST, 0), backlog=CONNECTIONS)


async def announce(port: int) -> None:
    """Tell the port, and serve until the process ends."""
    tell(port)
    await asyncio.Event().wait()


def tell(port: int) -> None:
    print(port, flush=True)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> NoReturn:
    sys.stdin.read()
    os._exit(0)


# --- 2. The protocols --------------------------------------------------------

MASK = b"\x37\xfa\x21\x3d"


def frame_of(payload: bytes, first: int = 0x81) -> bytes:
    """Return a short frame as a client sends it (RFC 6455, section 5.2)."""
    masked = bytes(each ^ MASK[i % 4] for i, each in enumerate(payload))
    return bytes((first, 128 + len(payload))) + MASK + masked


CLOSE = frame_of(b"\x03\xe8", 0x88)


class Plain:
    """The protocol of wsappy, which all but Socket.IO speak here."""

    path = "/"

    def open(self, link: Link) -> None:
        """Do what comes behind the handshake."""

    def call(
        self, module: str, method: str, data: dict[str, JSON], request_id: int
    ) -> bytes:
        """Return the frame of a call."""
        message = {
            "module": module,
            "method": method,
            "data": data,
            "request_id": request_id,
        }
        return frame_of(orjson.dumps(message))

    def data_of(self, payload: bytes) -> JSON:
        """Return the data of an answer or a push."""
        return orjson.loads(payload)["data"]


class SocketIO(Plain):
    """Socket.IO 5 in packets of Engine.IO 4; a call is an event with an ack."""

    path = "/socket.io/?EIO=4&transport=websocket"

    def open(self, link: Link) -> None:
        link.read()
        link.socket.sendall(frame_of(b"40"))
        link.read()

    def call(
        self, module: str, method: str, data: dict[str, JSON], request_id: int
    ) -> bytes:
        event = ["call", {"module": module, "method": method, "data": data}]
        return frame_of(b"42%d%b" % (request_id, orjson.dumps(event)))

    def data_of(self, payload: bytes) -> JSON:
        return orjson.loads(payload[payload.index(b"[") :])[-1]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a server is started and spoken to, and what has to be installed for it."""

    serve: Callable[[int], None]
    needs: tuple[str, ...] = ()
    dialect: Plain = field(default_factory=Plain)

    @property
    def is_installed(self) -> bool:
        return all(importlib.util.find_spec(name) for name in self.needs)


KINDS = {
    "wsappy-def": Kind(serve_wsappy_def),
    "wsappy-async": Kind(serve_wsappy_async),
    "websockets": Kind(serve_websockets),
    "picows": Kind(serve_picows, ("picows",)),
    "aiohttp": Kind(serve_aiohttp, ("aiohttp",)),
    "starlette": Kind(serve_starlette, ("starlette", "uvicorn", "uvloop")),
    "socketio": Kind(serve_socketio, ("socketio", "uvicorn", "uvloop"), SocketIO()),
}
PACKAGES = (
    "orjson",
    "websockets",
    "picows",
    "aiohttp",
    "starlette",
    "python-socketio",
    "uvicorn",
    "uvloop",
)

# --- 3. The driver -----------------------------------------------------------


class Link:
    """A connection to a server; `open` reads the answer to its handshake."""

    def __init__(self, port: int, dialect: Plain) -> None:
        self.dialect = dialect
        self.socket = socket.create_connection((HOST, port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")
        lines = [
            f"GET {dialect.path} HTTP/1.1",
            f"Host: {HOST}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def open(self) -> Self:
        """Finish the handshake."""
        status = self.stream.readline()
        if b" 101 " not in status:
            raise RuntimeError(f"status of the handshake must be 101: got {status!r}")
        while self.stream.readline().strip():
            pass
        self.dialect.open(self)
        return self

    def read(self) -> bytes:
        """Read the payload of one frame of less than 64 KiB."""
        length = self.stream.read(2)[1]
        if length == 126:
            length = int.from_bytes(self.stream.read(2), "big")
        return self.stream.read(length)

    def leave(self) -> None:
        """Begin to close."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(PATIENCE)
            self.socket.sendall(CLOSE)
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Wait until the server has closed too."""
        with contextlib.suppress(OSError):
            while self.socket.recv(4096):
                pass
        self.stream.close()
        self.socket.close()


@contextlib.contextmanager
def link_to(server: Server) -> Iterator[Link]:
    link = Link(server.port, server.kind.dialect)
    try:
        yield link.open()
    finally:
        link.leave()
        link.close()


class Caller:
    """One connection's calls that are in flight together."""

    __slots__ = ("missing", "receive", "send", "sent")

    def __init__(self, link: Link) -> None:
        link.socket.setblocking(False)
        self.receive = link.socket.recv_into
        self.send = link.socket.send
        self.missing = 0
        self.sent = 0.0


class Load:
    """Connections to one server, all driven from one loop; entered, it opens them."""

    def __init__(self, server: Server, connections: int) -> None:
        self.server = server
        self.connections = connections
        self.links: list[Link] = []
        self.callers: list[Caller] = []
        self.selector = selectors.DefaultSelector()
        self.buffer = bytearray(2**16)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.push(self)
            while len(self.links) < self.connections:
                self._open_some()
            stack.pop_all()
        return self

    def _open_some(self) -> None:
        """Open connections side by side: as many as a server lets wait."""
        first = len(self.links)
        for _ in range(min(CONNECTIONS, self.connections - first)):
            self.links.append(Link(self.server.port, self.server.kind.dialect))
        for link in self.links[first:]:
            caller = Caller(link.open())
            self.callers.append(caller)
            self.selector.register(link.socket, selectors.EVENT_READ, caller)

    def __exit__(self, *_: object) -> None:
        self.selector.close()
        for link in self.links:
            link.leave()
        for link in self.links:
            link.close()

    def call(self, burst: bytes, size: int, seconds: float) -> list[float]:
        """Send *burst* on each connection, again whenever all of its answers are there.

        Args:
            burst: The calls that are in flight together.
            size: Bytes of all their answers.
            seconds: When no new burst begins.

        Returns:
            Seconds that each burst took.
        """
        clock, buffer = time.perf_counter, self.buffer
        took: list[float] = []
        end = clock() + seconds
        busy = len(self.callers)
        for caller in self.callers:
            caller.missing, caller.sent = size, clock()
            caller.send(burst)
        while busy:
            for caller in self._ready():
                if not (received := caller.receive(buffer)):
                    raise self._failure("has closed a connection")
                caller.missing -= received
                if caller.missing:
                    continue
                now = clock()
                took.append(now - caller.sent)
                if now < end:
                    caller.missing, caller.sent = size, now
                    caller.send(burst)
                else:
                    busy -= 1
        return took

    def push(self, trigger: bytes, size: int, seconds: float) -> list[float]:
        """Let one connection call for a push to all, again whenever all have it.

        Args:
            trigger: The call.
            size: Bytes of all the pushes, and of the call's answer.
            seconds: When no new push begins.

        Returns:
            Seconds that each push took.
        """
        clock, buffer = time.perf_counter, self.buffer
        took: list[float] = []
        end = clock() + seconds
        while not took or clock() < end:
            missing, sent = size, clock()
            self.callers[0].send(trigger)
            while missing:
                for caller in self._ready():
                    if not (received := caller.receive(buffer)):
                        raise self._failure("has closed a connection")
                    missing -= received
            took.append(clock() - sent)
        return took

    def _ready(self) -> list[Caller]:
        keys = self.selector.select(PATIENCE)
        if not keys:
            raise self._failure("has stopped answering")
        return [key.data for key, _ in keys]

    def _failure(self, what: str) -> RuntimeError:
        return RuntimeError(f"server {self.server.name!r} {what}")


# --- 4. One server -----------------------------------------------------------


class Usage(NamedTuple):
    """What a process has used.

    Attributes:
        cpu: Seconds of CPU.
        user: Those of `sampled` that were spent in its own code.
        sampled: Seconds of CPU by the kernel's samples, 4 ms or so each.
        faults: Pages of memory that it got from the kernel.
        resident: Bytes of memory that it holds.

    Source:
        proc(5); CPUCLOCK_SCHED, _VIRT and _PROF in include/linux/posix-timers_types.h.
    """

    cpu: float
    user: float
    sampled: float
    faults: int
    resident: int


def usage_of(process: int) -> Usage:
    # `utime` and `stime` in this file are no use: both are scaled from the process'
    # beginning, and neither may shrink, so that one of them may stand still for long.
    stat = Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2].split()
    clock = ~process << 3
    return Usage(
        cpu=time.clock_gettime(clock | 2),
        user=time.clock_gettime(clock | 1),
        sampled=time.clock_gettime(clock),
        faults=int(stat[7]),
        resident=int(stat[21]) * resource.getpagesize(),
    )


class Server:
    """A server in a process of its own, on a core of its own."""

    def __init__(self, name: str, methods: int = 1) -> None:
        self.name = name
        self.kind = KINDS[name]
        self.command = [sys.executable, __file__, "--serve", name]
        self.command += ["--methods", str(methods)]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(  # noqa: S603
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.stdin = cast(IO[str], self.process.stdin)
        self.stdout = cast(IO[str], self.process.stdout)
        with contextlib.ExitStack() as stack:
            stack.push(self)
            pin(self.process.pid, 0)
            self.port = self._read_port()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: it does so itself once nobody can write to it."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.stdout.close()

    def usage(self) -> Usage:
        """Return what the process has used so far."""
        return usage_of(self.process.pid)

    def _read_port(self) -> int:
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            is_ready = selector.select(PATIENCE)
        line = self.stdout.readline() if is_ready else ""
        if not line:
            raise RuntimeError(f"server {self.name!r} must tell its port: it has not")
        return int(line)

    def check_call(self) -> int:
        """Make the call and check its answer; return the bytes of the frame."""
        dialect = self.kind.dialect
        with link_to(self) as link:
            link.socket.sendall(call_of(dialect, 0))
            payload = link.read()
        if dialect.data_of(payload) != find(42):
            raise RuntimeError(f"server {self.name!r} answers wrongly: {payload!r}")
        return size_of(payload)

    def check_push(self) -> tuple[int, int]:
        """Call for a push to one client; return the bytes of push and answer."""
        dialect = self.kind.dialect
        with link_to(self) as link:
            link.socket.sendall(dialect.call("bench", "push", {}, FIRST_ID))
            payloads = [link.read(), link.read()]
        pushes = [each for each in payloads if dialect.data_of(each) == ITEMS[0]]
        if len(pushes) != 1:
            raise RuntimeError(f"server {self.name!r} pushes wrongly: {payloads!r}")
        push = size_of(pushes[0])
        return push, sum(map(size_of, payloads)) - push


def call_of(dialect: Plain, number: int) -> bytes:
    """Return a call; all of them, and all of their answers, have the same size."""
    return dialect.call("entity", "get", {"item_id": 42}, FIRST_ID + number)


def size_of(payload: bytes) -> int:
    """Return the bytes of a server's frame."""
    return len(payload) + (2 if len(payload) < 126 else 4)


def pin(process: int, place: int) -> None:
    """Keep a process on one core, where the system can do that and has two."""
    if hasattr(os, "sched_setaffinity") and len(CORES) > 1:
        os.sched_setaffinity(process, {CORES[place]})


@dataclass(frozen=True, slots=True)
class Slice:
    """A short piece of a measurement.

    Attributes:
        count: Calls, or deliveries of a push.
        wall: Seconds that it took.
        cpu: CPU seconds of the server.
        user: Those of `sampled` that were spent in its own code.
        sampled: CPU seconds of the server, by samples.
        faults: Pages of memory that the server got from the kernel.
        driver: CPU seconds of what drove it.
        took: Seconds from sending calls until the last of their answers.
    """

    count: int
    wall: float
    cpu: float
    user: float
    sampled: float
    faults: int
    driver: float
    took: list[float]


def cut(
    server: Server, work: Callable[[float], list[float]], each: int, seconds: float
) -> list[Slice]:
    """Measure in slices.

    Args:
        server: What is driven.
        work: Drives it for some seconds.
        each: Calls or deliveries for each result of *work*.
        seconds: In all.
    """
    number = max(1, round(seconds / SLICE))
    work(WARM_UP)
    return [measure(server, work, each, seconds / number) for _ in range(number)]


def measure(
    server: Server, work: Callable[[float], list[float]], each: int, seconds: float
) -> Slice:
    before, own, began = server.usage(), time.process_time(), time.perf_counter()
    took = work(seconds)
    wall, own = time.perf_counter() - began, time.process_time() - own
    after = server.usage()
    return Slice(
        count=len(took) * each,
        wall=wall,
        cpu=after.cpu - before.cpu,
        user=after.user - before.user,
        sampled=after.sampled - before.sampled,
        faults=after.faults - before.faults,
        driver=own,
        took=took,
    )


Figures = dict[str, float]


def figures_of(visits: Sequence[Sequence[Slice]]) -> Figures:
    """Return the least of all slices; for a rate the most, for a share all together.

    Args:
        visits: The slices of each round.
    """
    slices = [each for visit in visits for each in visit]
    cpu = min(each.cpu / each.count for each in slices) * 1e6
    sampled = sum(each.sampled for each in slices) or 1.0
    wall = sum(each.wall for each in slices)
    took = [
        sorted(second for each in visit for second in each.took) for visit in visits
    ]
    figures = {
        "cpu_us": cpu,
        "user_us": cpu * sum(each.user for each in slices) / sampled,
        "faults": min(each.faults / each.count for each in slices),
        "per_second": max(each.count / each.wall for each in slices),
        "p50_us": min(each[len(each) // 2] for each in took) * 1e6,
        "p99_us": min(each[len(each) * 99 // 100] for each in took) * 1e6,
        "server_share": sum(each.cpu for each in slices) / wall,
        "driver_share": sum(each.driver for each in slices) / wall,
    }
    return {name: round(value, 3) for name, value in figures.items()}


class Record:
    """All that is measured of one server."""

    def __init__(self) -> None:
        self.visits: dict[str, list[list[Slice]]] = collections.defaultdict(list)
        self.idle: list[float] = []

    def figures(self) -> dict[str, Figures]:
        figures = {name: figures_of(visits) for name, visits in self.visits.items()}
        if self.idle:
            figures["idle"] = {"kib": round(min(self.idle) / 1024, 3)}
        return figures


def measure_calls(load: Load, record: Record, depth: int, seconds: float) -> None:
    server = load.server
    burst = b"".join(call_of(server.kind.dialect, number) for number in range(depth))
    size = server.check_call() * depth
    work = functools.partial(load.call, burst, size)
    record.visits[f"calls_{depth}"].append(cut(server, work, depth, seconds))


def measure_push(
    load: Load, record: Record, sizes: tuple[int, int], seconds: float
) -> None:
    server, clients = load.server, load.connections
    trigger = server.kind.dialect.call("bench", "push", {}, FIRST_ID)
    push, answer = sizes
    work = functools.partial(load.push, trigger, push * clients + answer)
    record.visits["push"].append(cut(server, work, clients, seconds))


def measure_server(name: str, record: Record, options: argparse.Namespace) -> None:
    """Go through all that is measured of one server."""
    with Server(name) as server:
        server.check_call()
        sizes = server.check_push()
        before = server.usage().resident
        with Load(server, options.clients) as load:
            server.check_call()
            growth = server.usage().resident - before
            record.idle.append(growth / options.clients)
            measure_push(load, record, sizes, options.seconds)
        with Load(server, CONNECTIONS) as load:
            for depth in DEPTHS:
                measure_calls(load, record, depth, options.seconds)


# --- 5. Rounds ---------------------------------------------------------------


def run_rounds(steps: Mapping[str, Callable[[], None]], rounds: int) -> int:
    """Run all the steps in each round, forwards, then backwards.

    Returns:
        The rounds that there was time for.
    """
    began, longest = time.monotonic(), 0.0
    for number in range(rounds):
        start = time.monotonic()
        if start - began + longest > LIMIT:
            print(f"{number} rounds have taken the time of {rounds}", file=sys.stderr)
            return number
        for name in list(steps)[:: -1 if number % 2 else 1]:
            print(f"round {number + 1}: {name}", file=sys.stderr)
            steps[name]()
        longest = max(longest, time.monotonic() - start)
    return rounds


def installed(names: Sequence[str]) -> list[str]:
    return [name for name in names if KINDS[name].is_installed]


def compare(options: argparse.Namespace) -> dict[str, JSON]:
    """Measure the servers, and set them against each other."""
    wanted = options.only or list(KINDS)
    names = installed(wanted)
    records = {name: Record() for name in names}
    steps = {
        name: functools.partial(measure_server, name, records[name], options)
        for name in names
    }
    rounds = run_rounds(steps, options.rounds)
    servers = {name: record.figures() for name, record in records.items()}
    return {
        **conditions(options, rounds),
        "servers": servers,
        "missing": [name for name in wanted if name not in names],
        "ratios": [target.reached(servers) for target in TARGETS],
        "warnings": list(warnings_about(servers)),
    }


def warnings_about(servers: dict[str, dict[str, Figures]]) -> Iterator[str]:
    for name, scenarios in servers.items():
        for scenario, figures in scenarios.items():
            if figures.get("driver_share", 0) > figures.get("server_share", 0):
                yield f"{name}, {scenario}: the driver was busier than the server"
            if figures.get("faults", 0) >= 1:
                yield f"{name}, {scenario}: page faults made it dearer; measure again"


class Case(NamedTuple):
    """What the cost of a call must not grow with."""

    callers: int = CONNECTIONS
    others: int = 0
    methods: int = 1


CASES = {
    "64 clients": Case(),
    "2,000 clients": Case(callers=2000),
    "64 of 2,000 clients": Case(others=2000 - CONNECTIONS),
    "1,000 modules and methods": Case(methods=1000),
}


def scale(options: argparse.Namespace) -> dict[str, JSON]:
    """Measure a call among more connections, and among more methods."""
    records = {
        (name, title): Record()
        for name in installed(options.only or ("wsappy-def", "websockets"))
        for title in CASES
    }
    steps = {
        f"{name}, {title}": functools.partial(
            measure_case, name, title, record, options
        )
        for (name, title), record in records.items()
    }
    rounds = run_rounds(steps, options.rounds)
    scaling: dict[str, dict[str, Figures]] = collections.defaultdict(dict)
    for (name, title), record in records.items():
        scaling[name][title] = record.figures()["calls_1"]
    return {**conditions(options, rounds), "scaling": scaling}


def measure_case(
    name: str, title: str, record: Record, options: argparse.Namespace
) -> None:
    case = CASES[title]
    with (
        Server(name, case.methods) as server,
        Load(server, case.others),
        Load(server, case.callers) as load,
    ):
        measure_calls(load, record, 1, options.seconds)


def conditions(options: argparse.Namespace, rounds: int) -> dict[str, JSON]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "rounds": rounds,
        "seconds": options.seconds,
        "clients": options.clients,
        "versions": dict(versions()),
    }


def versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure of wsappy, over the same of another server, may be at most."""

    name: str
    scenario: str
    figure: str
    against: str
    at_most: float
    aim: float | None = None

    def reached(self, servers: dict[str, dict[str, Figures]]) -> dict[str, JSON]:
        """Return the target, and the ratio that was measured, or None."""
        own, other = self._figure(servers, self.name), 1.0
        if self.against:
            other = self._figure(servers, self.against)
        measured = round(own / other, 3) if own and other else None
        return {**asdict(self), "measured": measured}

    def _figure(self, servers: dict[str, dict[str, Figures]], name: str) -> float:
        return servers[name][self.scenario][self.figure] if name in servers else 0.0


# An eager task needs no turn of the loop: Python has them since 3.12.
ASYNC_AT_MOST = 0.63 if sys.version_info >= (3, 12) else 0.73
TARGETS = (
    Target("wsappy-def", "calls_1", "cpu_us", "websockets", 0.56, 0.50),
    Target("wsappy-async", "calls_1", "cpu_us", "websockets", ASYNC_AT_MOST),
    Target("wsappy-def", "calls_1", "cpu_us", "aiohttp", 0.85),
    Target("wsappy-def", "calls_1", "cpu_us", "picows", 1.30, 1.10),
    Target("wsappy-def", "calls_16", "cpu_us", "websockets", 0.25),
    Target("wsappy-def", "calls_16", "cpu_us", "picows", 0.60, 0.50),
    # The kernel's part of a delivery is the same for all.
    Target("wsappy-def", "push", "user_us", "websockets", 0.60, 0.40),
    Target("wsappy-def", "idle", "kib", "", 20.0),
)

# --- 6. The clients ----------------------------------------------------------

# Calls that wait for their answers at a time, and calls of one measurement.
CLIENT_WIDTH, CLIENT_CALLS = 200, 10_000
CLIENT_AT_MOST = 1.10


class Paired:
    """A client written by hand on `websockets`: it pairs answers with futures."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[int, asyncio.Future[JSON]] = {}
        self.last_id = 0

    async def __aenter__(self) -> Self:
        self.ws = await open_connection(self.url, compression=None, proxy=None)
        self.reader = asyncio.create_task(self.read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.reader.cancel()
        await self.ws.close()

    async def read(self) -> None:
        """Give each answer to the call that waits for it."""
        while True:
            event = orjson.loads(await self.ws.recv(decode=False))
            self.answers.pop(event["request_id"]).set_result(event["data"])

    async def call(self, module: str, method: str, **data: JSON) -> JSON:
        """Call the server and wait for the answer."""
        self.last_id += 1
        answer: asyncio.Future[JSON] = asyncio.get_running_loop().create_future()
        self.answers[self.last_id] = answer
        call: JSON = {"module": module, "method": method, "data": data}
        call["request_id"] = self.last_id
        await self.ws.send(orjson.dumps(call), text=True)
        return await answer


CLIENTS: dict[str, Callable[[str], Any]] = {
    "wsappy": functools.partial(connect, proxy=None),
    "websockets": Paired,
}


async def use_client(client: Any) -> float:
    """Return the CPU seconds of a call, with hundreds of them at once."""

    async def caller() -> None:
        for _ in range(CLIENT_CALLS // CLIENT_WIDTH):
            await client.call("entity", "get", item_id=42)

    async with client:
        await client.call("entity", "get", item_id=42)
        began = time.process_time()
        await asyncio.gather(*(caller() for _ in range(CLIENT_WIDTH)))
        return (time.process_time() - began) / CLIENT_CALLS


def compare_clients(options: argparse.Namespace) -> dict[str, JSON]:
    """Measure the clients in turn, in this process, against one server."""
    best = dict.fromkeys(CLIENTS, float("inf"))
    with Server("wsappy-def") as server:
        for _ in range(options.rounds):
            for name, make in CLIENTS.items():
                client = make(f"ws://{HOST}:{server.port}/")
                best[name] = min(best[name], asyncio.run(use_client(client)))
    figures = {name: {"cpu_us": 1e6 * cost} for name, cost in best.items()}
    ratio = {
        "name": "wsappy",
        "scenario": "client",
        "figure": "cpu_us",
        "against": "websockets",
        "at_most": CLIENT_AT_MOST,
        "aim": None,
        "measured": round(best["wsappy"] / best["websockets"], 3),
    }
    return {
        **conditions(options, options.rounds),
        "client": figures,
        "ratios": [ratio],
    }


# --- 7. Tables ---------------------------------------------------------------

HEADS = {
    "cpu_us": "CPU µs",
    "user_us": "user µs",
    "faults": "page faults",
    "per_second": "a second",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "server_share": "server busy",
    "driver_share": "driver busy",
    "kib": "KiB",
}
TITLES = {
    "calls_1": "A call, 1 in flight on each of 64 connections",
    "calls_16": "A call, 16 in flight on each of 64 connections",
    "push": "A delivery of a push to all clients",
    "idle": "Memory for an idle client",
}


def show(result: dict[str, JSON]) -> None:
    """Print the tables for people."""
    packages = ", ".join(" ".join(pair) for pair in result["versions"].items())
    print(f"Python {result['python']}, {result['rounds']} rounds; {packages}")
    for name, cases in result.get("scaling", {}).items():
        show_figures(f"A call to {name}", cases)
    servers = result.get("servers", {})
    for scenario, title in TITLES.items() if servers else ():
        show_figures(title, {name: servers[name][scenario] for name in servers})
    if "client" in result:
        show_figures("A call, 200 at once from one client", result["client"])
    if "ratios" in result:
        show_ratios(result["ratios"])
    for name in result.get("missing", ()):
        print(f"not installed, hence not measured: {name}")
    for warning in result.get("warnings", ()):
        print(f"warning: {warning}")


def show_figures(title: str, rows: dict[str, Figures]) -> None:
    heads = [HEADS[figure] for figure in next(iter(rows.values()), {})]
    print(f"\n{title}\n{'':26}" + "".join(f"{head:>13}" for head in heads))
    for name, figures in rows.items():
        print(
            f"{name:26}" + "".join(f"{text_of(*pair):>13}" for pair in figures.items())
        )


def text_of(figure: str, value: float) -> str:
    if figure.endswith("_share"):
        return f"{value:.0%}"
    if figure in {"cpu_us", "user_us", "faults", "kib"}:
        return f"{value:.2f}"
    return f"{value:,.0f}"


def show_ratios(ratios: Sequence[dict[str, JSON]]) -> None:
    print("\nLeast over least" + f"{'at most':>45}{'aim':>9}{'measured':>10}")
    for ratio in ratios:
        against = ratio["against"] or "1 KiB"
        what = f"{ratio['scenario']} {ratio['figure']}: {ratio['name']} / {against}"
        aim, measured = (
            "" if ratio[key] is None else f"{ratio[key]:.2f}"
            for key in ("aim", "measured")
        )
        print(f"{what:52}{ratio['at_most']:9.2f}{aim:>9}{measured:>10}")


# --- 8. Command line ---------------------------------------------------------


def between(least: float, most: float, kind: type[float]) -> Callable[[str], float]:
    """Return what reads an option that has bounds."""

    def read(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
        return value

    return read


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--json", action="store_true", help="print the figures as JSON")
    add("--only", nargs="+", choices=KINDS, metavar="NAME", help=", ".join(KINDS))
    add("--scaling", action="store_true", help="more clients, more methods")
    add("--client", action="store_true", help="the Python client")
    add("--rounds", type=between(1, 100, int), default=4, help="at most; 4")
    seconds = between(SLICE, MAX_SECONDS, float)
    add("--seconds", type=seconds, default=0.4, help="of each measurement; 0.4")
    clients = between(2, MAX_CLIENTS, int)
    add("--clients", type=clients, default=1000, help="of a push; 1,000")
    add("--serve", choices=KINDS, help=argparse.SUPPRESS)
    add("--methods", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Serve, where this is the process of a server; else measure and print."""
    options = parse()
    if options.serve:
        KINDS[options.serve].serve(options.methods)
        return
    if sys.platform != "linux":
        sys.exit("the benchmark must run on Linux: no other lets it read the clocks")
    wanted = max(options.clients, 2000) + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    pin(os.getpid(), 1)
    measure_all = compare_clients if options.client else compare
    result = scale(options) if options.scaling else measure_all(options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
