"""Measure wsappy against the loop that you would write by hand, and frameworks.

    python examples/benchmark.py                                 all that is installed
    python examples/benchmark.py --only wsappy-def websockets    these alone
    python examples/benchmark.py --scaling                       more clients, methods
    python examples/benchmark.py --client                        the Python client
    python examples/benchmark.py --groups                        groups, with history
    python examples/benchmark.py --asgi                          in uvicorn

`pip install -e '.[bench]'` adds the others. Each server runs in a process of its own on
one core; what drives it, from another core, sends frames that are prepared once and
counts the bytes that come back. The figure is CPU time of the server's process, which
only Linux lets one read from outside. A busy machine only ever adds to it: so it is
measured in slices shorter than the moods of a shared core, the rounds go A B, then B A,
the least slice counts, and a ratio is least over least of one run. The kernel counts
CPU time exactly, but samples whose it is: user time is the least, times its share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import os
import resource
import select
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import orjson
from websockets.asyncio.client import connect as open_connection
from websockets.asyncio.server import ServerConnection, broadcast, serve

# This tree, whether or not another wsappy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsappy import App, Client, Request, connect

__all__ = ["main"]

Work = Callable[[], int]
# The first one is the servers', the last one the driver's.
CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
# Connections that call, or that are opened side by side: a server lets so many wait.
# Clients that are idle, and that get a push.
HOST, CONNECTIONS, CLIENTS = "127.0.0.1", 64, 1000
# Seconds of a slice, that any answer may take, and after which no round begins.
SLICE, PATIENCE, LIMIT = 0.02, 10.0, 150.0
# Slices of a measurement before the first one that counts, and those that do.
WARM_UP, SLICES = 3, 10

# --- 1. Servers --------------------------------------------------------------

ITEMS = [{"id": 42, "name": "a"}, {"id": 15, "name": "b"}, {"id": 30, "name": "c"}]
# What the servers without wsappy push.
CHANGED = (
    b'{"request_id":null,"module":"entity","method":null,"event":"changed",'
    b'"data":{"id":42,"name":"a"},"group":"all"}'
)


def get(request: Any, item_id: int) -> Any:
    return {"items": [item for item in ITEMS if item["id"] == item_id]}


async def get_async(request: Any, item_id: int) -> Any:
    return {"items": [item for item in ITEMS if item["id"] == item_id]}


# By hand: the methods, and the clients, of the one server that this process is.
handlers: dict[tuple[str, str], Callable[..., Any]] = {("entity", "get"): get}
members: set[Any] = set()
pushes: list[asyncio.Future[None]] = []


def answer(message: str | bytes | memoryview) -> bytes:
    """Do by hand, without a single check, what wsappy does for each call."""
    call = orjson.loads(message)
    module, method = call["module"], call["method"]
    result = {
        "request_id": call.get("request_id"),
        "module": module,
        "method": method,
        "event": "result",
        "data": handlers[module, method](call, **call["data"]),
    }
    return orjson.dumps(result)


def start(push: Coroutine[Any, Any, None]) -> None:
    pushes[:] = [asyncio.create_task(push)]


async def push_to_each(method: str) -> None:
    text = CHANGED.decode()
    for member in list(members):
        await getattr(member, method)(text)


async def serve_app(make: Callable[[], App]) -> None:
    async with make().serve(HOST, 0) as serving:
        await announce(serving.port)


def app_of(handler: Callable[..., Any]) -> App:
    app = App()
    for module, method in handlers:
        app.module(module)(app.method(method)(handler))

    @app.client("/")
    def enter(client: Client) -> None:
        client.join("all")

    @app.module("bench")
    @app.method
    def push(request: Request) -> None:
        app.to("all").push("entity", "changed", ITEMS[0])

    return app


def app_with_history(groups: int = 1) -> App:
    """Make an app that pushes to *groups* in turn; their messages are kept."""
    app, names = App(), [f"all{i:05}" for i in range(groups)]
    turn = itertools.cycle(names)
    app.group("all{i}", history=100)(lambda client: True)
    for name in names:
        log: Any = app.groups.open(name).log
        # So that all messages are equally long.
        log.offset = 9 * 10**6

    @app.client("/")
    def enter(client: Client) -> None:
        for name in names:
            client.join(name)

    @app.module("bench")
    @app.method
    def push(request: Request) -> None:
        app.to(next(turn)).push("entity", "changed", ITEMS[0])

    return app


async def talk(ws: ServerConnection) -> None:
    """Handle a connection in the loop that one writes by hand."""
    members.add(ws)
    try:
        async for message in ws:
            await ws.send(answer(message), text=True)
    finally:
        members.discard(ws)


async def serve_websockets(handler: Callable[[ServerConnection], Any]) -> None:
    handlers["bench", "push"] = lambda _: broadcast(members, CHANGED, text=True)
    async with serve(handler, HOST, 0) as server:
        await announce(server.sockets[0].getsockname()[1])


async def serve_picows() -> None:
    picows: Any = import_module("picows")
    text, close = picows.WSMsgType.TEXT, picows.WSMsgType.CLOSE

    class Listener(picows.WSListener):  # type: ignore[misc]
        def on_ws_connected(self, transport: Any) -> None:
            members.add(transport)

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type is text:
                transport.send(text, answer(frame.get_payload_as_memoryview()))
            elif frame.msg_type is close:
                members.discard(transport)
                transport.disconnect()

    def push(_: Any) -> None:
        for transport in members:
            transport.send(text, CHANGED)

    handlers["bench", "push"] = push
    server = await picows.ws_create_server(lambda _: Listener(), HOST, 0)
    await announce(server.sockets[0].getsockname()[1])


async def serve_aiohttp() -> None:
    web: Any = import_module("aiohttp.web")
    handlers["bench", "push"] = lambda _: start(push_to_each("send_str"))

    async def talk(request: Any) -> Any:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        members.add(ws)
        async for message in ws:
            await ws.send_str(answer(message.data).decode())
        members.discard(ws)
        return ws

    app = web.Application()
    app.add_routes([web.get("/", talk)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    await announce(runner.addresses[0][1])


async def serve_hosted() -> None:
    await serve_asgi(app_of(get).asgi())


async def serve_starlette() -> None:
    handlers["bench", "push"] = lambda _: start(push_to_each("send_text"))

    async def talk(ws: Any) -> None:
        await ws.accept()
        members.add(ws)
        async for message in ws.iter_text():
            await ws.send_text(answer(message).decode())
        members.discard(ws)

    route = import_module("starlette.routing").WebSocketRoute("/", talk)
    starlette = import_module("starlette.applications").Starlette
    await serve_asgi(starlette(routes=[route]))


async def serve_socketio() -> None:
    """Serve python-socketio as it comes, with the JSON of the standard library."""
    socketio = import_module("socketio")
    server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"])
    handlers["bench", "push"] = lambda _: start(server.emit("changed", ITEMS[0]))

    async def talk(sid: str, call: Any) -> Any:
        return handlers[call["module"], call["method"]](call, **call["data"]) or {}

    server.on("call", talk)
    await serve_asgi(socketio.ASGIApp(server))


async def serve_asgi(app: Any) -> None:
    """Serve on uvicorn; the port is open before it starts."""
    uvicorn = import_module("uvicorn")
    listener = socket.create_server((HOST, 0), backlog=CONNECTIONS)
    config = uvicorn.Config(app, lifespan="off", log_level="error")
    serving = uvicorn.Server(config).serve(sockets=[listener])
    await asyncio.gather(serving, announce(listener.getsockname()[1]))


async def announce(port: int) -> None:
    """Tell the port, and serve until the process that drives this one has ended."""
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


# --- 2. Links to a server ----------------------------------------------------

# A call of wsappy, or of Socket.IO 5 on Engine.IO 4; all ids have two digits.
PLAIN, SOCKETIO = '{%(call)s,"request_id":%(id)d}', '42%(id)d["call",{%(call)s}]'
GET = '"module":"entity","method":"get","data":{"item_id":42}'
PUSH = '"module":"bench","method":"push","data":{}'
ANSWER, CHANGE = orjson.dumps(get(None, 42)), orjson.dumps(ITEMS[0])
HANDSHAKE = (
    b"GET /%b HTTP/1.1\r\nHost: local\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MASK = b"\x37\xfa\x21\x3d"


def frame_of(payload: bytes, first: int = 0x81) -> bytes:
    """Return a short frame as a client sends it (RFC 6455, section 5.2)."""
    masked = bytes(each ^ MASK[i % 4] for i, each in enumerate(payload))
    return bytes((first, 128 + len(payload))) + MASK + masked


def expect(link: socket.socket, *parts: bytes) -> int:
    """Receive until all of these parts have come; return the bytes of all."""
    data = b""
    while not all(part in data for part in parts):
        data += link.recv(2**16) or sys.exit(
            f"{parts} must come: the end came, {data!r}"
        )
    return len(data)


@contextlib.contextmanager
def links_to(server: Server, number: int) -> Iterator[list[socket.socket]]:
    """Open connections, not too many at a time, and close them in the end."""
    links: list[socket.socket] = []
    try:
        for first in range(0, number, CONNECTIONS):
            for _ in range(first, min(number, first + CONNECTIONS)):
                links.append(socket.create_connection((HOST, server.port), PATIENCE))
                links[-1].sendall(HANDSHAKE % server.kind.path)
            for link in links[first:]:
                expect(link, b" 101 ", b"\r\n\r\n")
                if server.kind.form is SOCKETIO:
                    link.sendall(frame_of(b"40"))
                    expect(link, b"40{")
        yield links
    finally:
        for link in links:
            link.settimeout(PATIENCE)
            link.sendall(frame_of(b"\x03\xe8", 0x88))
        for link in links:
            while link.recv(2**12):
                pass
            link.close()


def exchange(links: list[socket.socket], senders: int, calls: bytes, size: int) -> Work:
    """Return what drives calls during a slice, and counts how often they were sent.

    Each *sender*, of the first links, sends again once bytes of that *size* have come:
    on its own link if all of them send, on all links together if one does.
    """
    poll, ends, buffer = select.epoll(), {}, bytearray(2**16)
    for index, link in enumerate(links):
        link.setblocking(False)
        poll.register(link, select.EPOLLIN)
        sender = index % senders
        ends[link.fileno()] = sender, links[sender].send, link.recv_into

    def work() -> int:
        missing, busy, count = [size] * senders, senders, 0
        end = time.monotonic() + SLICE
        for link in links[:senders]:
            link.send(calls)
        while busy:
            for file, _ in poll.poll(PATIENCE) or sys.exit("the server doesn't answer"):
                sender, send, receive = ends[file]
                missing[sender] -= receive(buffer) or sys.exit("the server has closed")
                if missing[sender]:
                    continue
                count += 1
                if time.monotonic() < end:
                    missing[sender] = size
                    send(calls)
                else:
                    busy -= 1
        return count

    return work


# --- 3. Measurements ---------------------------------------------------------


class Cost(NamedTuple):
    """What a process uses: CPU seconds, also as the kernel samples them, and bytes.

    `user` is what of the samples was in its own code; `driver` is CPU of this process.
    """

    cpu: float
    sampled: float
    user: float
    driver: float
    memory: float


def used_by(process: int) -> Cost:
    # CPUCLOCK_SCHED, _PROF and _VIRT in include/linux/posix-timers_types.h. `utime` and
    # `stime` of proc(5) are scaled from the process' beginning, and may stand still.
    cpu, sampled, user = (time.clock_gettime(~process << 3 | i) for i in (2, 0, 1))
    pages = int(Path(f"/proc/{process}/statm").read_bytes().split()[1])
    return Cost(cpu, sampled, user, time.process_time(), pages * resource.getpagesize())


def cost_since(before: Cost, process: int, count: int) -> Cost:
    pairs = zip(before, used_by(process), strict=True)
    return Cost(*((after - before) / count for before, after in pairs))


class Server(NamedTuple):
    """A server that runs in a process of its own."""

    kind: Kind
    process: int
    port: int

    def cut(self, work: Work, each: int) -> list[Cost]:
        """Measure slices of work; what it counts is for *each* calls."""
        costs = []
        for _ in range(WARM_UP + SLICES):
            before = used_by(self.process)
            costs.append(cost_since(before, self.process, work() * each))
        return costs[WARM_UP:]

    def ask(self, call: str, *parts: bytes) -> int:
        """Return the bytes that come for one call, with these parts in them."""
        with links_to(self, 1) as [link]:
            link.sendall(self.kind.frame(call))
            return expect(link, *parts)


@contextlib.contextmanager
def run_server(name: str) -> Iterator[Server]:
    command, pipe = [sys.executable, __file__, "--serve", name], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:  # noqa: S603
        try:
            os.sched_setaffinity(process.pid, CORES[:1])
            stdout: Any = process.stdout
            ready, _, _ = select.select([stdout], [], [], PATIENCE)
            port = (ready and stdout.readline()) or sys.exit(f"{name} has not started")
            yield Server(KINDS[name], process.pid, int(port))
        finally:
            process.kill()


def measure_calls(
    server: Server, depth: int = 1, callers: int = CONNECTIONS, others: int = 0
) -> list[Cost]:
    size = server.ask(GET, ANSWER) * depth
    ids = (10 + index % 90 for index in range(depth))
    calls = b"".join(server.kind.frame(GET, each) for each in ids)
    with links_to(server, others), links_to(server, callers) as links:
        return server.cut(exchange(links, callers, calls, size), depth)


def measure_push(server: Server) -> list[Cost]:
    call = server.kind.frame(PUSH)
    with links_to(server, CLIENTS) as links:
        links[0].sendall(call)
        size = sum(expect(link, CHANGE) for link in links[1:])
        size += expect(links[0], CHANGE, b"10")
        return server.cut(exchange(links, 1, call, size), CLIENTS)


def measure_pushes(server: Server) -> list[Cost]:
    """Measure pushes to one client, to each of its groups in turn."""
    call = server.kind.frame(PUSH)
    with links_to(server, 1) as links:
        links[0].sendall(call)
        size = expect(links[0], CHANGE, b"10")
        return server.cut(exchange(links, 1, call, size), 1)


async def subscribe_all() -> None:
    """Print what history costs, and how long it takes to join 10,000 groups."""
    app = app_with_history()
    tracemalloc.start()
    for number in range(1000):
        app.groups.open(f"all{number}")
    idle, _ = tracemalloc.get_traced_memory()
    for number in range(100_000):
        app.to(f"all{number % 1000}").push("entity", "changed", ITEMS[0])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"bytes for an idle group {idle / 1000:.0f}, ", end="")
    print(f"for a kept message of {len(CHANGED) + 22}: {(kept - idle) / 1e5:.0f}")
    async with app_with_history().serve(HOST, 0) as serving, AsyncExitStack() as stack:
        make = partial(CONNECT, serving.url("/"))
        clients = [await stack.enter_async_context(make()) for _ in range(80)]
        began = time.monotonic()
        for number in range(125):
            await asyncio.gather(*(each.subscribe(f"all{number}") for each in clients))
        print(f"joining 10,000 groups: {time.monotonic() - began:.2f} s, both ends")


def measure_idle(server: Server) -> list[Cost]:
    server.ask(GET, ANSWER)
    before = used_by(server.process)
    with links_to(server, CLIENTS):
        # Its answer proves that the server has done all that it does for the others.
        server.ask(GET, ANSWER)
        return [cost_since(before, server.process, CLIENTS)]


def measure_client(server: Server) -> list[Cost]:
    """Measure this process, with 200 calls at once."""

    async def calls(client: Any) -> None:
        for _ in range(5 * SLICES):
            await client.call("entity", "get", item_id=42)

    async def use(make: Any) -> Cost:
        async with (
            asyncio.timeout(LIMIT),
            make(f"ws://{HOST}:{server.port}/") as client,
        ):
            before = used_by(os.getpid())
            await asyncio.gather(*(calls(client) for _ in range(200)))
            return cost_since(before, os.getpid(), 200 * 5 * SLICES)

    return [asyncio.run(use(server.kind.client))]


@contextlib.asynccontextmanager
async def connect_by_hand(url: str) -> AsyncIterator[SimpleNamespace]:
    """Pair calls with answers, on `websockets`."""
    waiting: dict[int, asyncio.Future[Any]] = {}
    ids = itertools.count()

    async def read() -> None:
        while True:
            event = orjson.loads(await ws.recv(decode=False))
            waiting.pop(event["request_id"]).set_result(event["data"])

    async def call(module: str, method: str, **data: Any) -> Any:
        request_id = next(ids)
        waiting[request_id] = future = asyncio.get_running_loop().create_future()
        call = {"module": module, "method": method, "data": data}
        await ws.send(orjson.dumps({**call, "request_id": request_id}), text=True)
        return await future

    async with open_connection(url, compression=None, proxy=None) as ws:
        reader = asyncio.create_task(read())
        yield SimpleNamespace(call=call)
        reader.cancel()


SCENARIOS: dict[str, Callable[[Server], list[Cost]]] = {
    "idle": measure_idle,
    "push": measure_push,
    "1 in flight": measure_calls,
    "16 in flight": partial(measure_calls, depth=16),
    "100 in flight": partial(measure_calls, depth=100),
    # Connect, shake hands and close, on 64 connections side by side.
    "visit": lambda server: server.cut(links_to(server, 64)(lambda: 64), 1),
    "client": measure_client,
    "push to one": measure_pushes,
    "2,000 callers": partial(measure_calls, callers=2000),
    "64 of 2,000": partial(measure_calls, others=2000 - CONNECTIONS),
}
USUAL, VISIT = ("idle", "push", "1 in flight", "16 in flight"), ("visit",)
PUSHES, ONE = ("push",), ("push to one",)
HOSTED = "1 in flight", "100 in flight"
CLIENT, SCALES = ("client",), ("1 in flight", "2,000 callers", "64 of 2,000")


@dataclass(frozen=True)
class Kind:
    """A server, or a client and its server; with *more* methods, and other modules."""

    serve: Callable[[], Coroutine[Any, Any, None]]
    needs: tuple[str, ...] = ("orjson", "websockets")
    path: bytes = b""
    form: str = PLAIN
    scenarios: tuple[str, ...] = USUAL
    more: int = 0
    client: Callable[[str], Any] | None = None

    def frame(self, call: str, request_id: int = 10) -> bytes:
        return frame_of((self.form % {"call": call, "id": request_id}).encode())

    def run(self) -> None:
        for i in range(self.more):
            handlers["entity", f"get_{i}"] = handlers[f"entity_{i}", "get"] = get
        loop = "uvloop" if "uvloop" in self.needs else "asyncio"
        factory = import_module(loop).new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(self.serve())


wsappy = partial(serve_app, partial(app_of, get))
by_hand = partial(serve_websockets, talk)
CONNECT = partial(connect, proxy=None)
ENGINE_IO = b"socket.io/?EIO=4&transport=websocket", SOCKETIO
HELLO, WAIT = (
    lambda: import_module("examples.simple.server").app,
    ServerConnection.wait_closed,
)
UVICORN = "uvicorn", "uvloop"
KINDS = {
    "wsappy-def": Kind(wsappy),
    "wsappy-async": Kind(partial(serve_app, partial(app_of, get_async))),
    "websockets": Kind(by_hand),
    "picows": Kind(serve_picows, ("picows",)),
    "aiohttp": Kind(serve_aiohttp, ("aiohttp",)),
    "starlette": Kind(serve_starlette, ("starlette", *UVICORN)),
    "socketio": Kind(serve_socketio, ("python-socketio", *UVICORN), *ENGINE_IO),
    "wsappy-hello": Kind(partial(serve_app, HELLO), path=b"api", scenarios=VISIT),
    "websockets-bare": Kind(partial(serve_websockets, WAIT), scenarios=VISIT),
    "wsappy-client": Kind(wsappy, scenarios=CLIENT, client=CONNECT),
    "websockets-client": Kind(wsappy, scenarios=CLIENT, client=connect_by_hand),
    "wsappy-history": Kind(partial(serve_app, app_with_history), scenarios=PUSHES),
    "wsappy-plain": Kind(wsappy, scenarios=PUSHES),
    "broadcast": Kind(by_hand, scenarios=PUSHES),
    "ten-groups": Kind(
        partial(serve_app, partial(app_with_history, 10)), scenarios=ONE
    ),
    "10000-groups": Kind(
        partial(serve_app, partial(app_with_history, 10_000)), scenarios=ONE
    ),
    "wsappy-asgi": Kind(serve_hosted, UVICORN, scenarios=HOSTED),
    "starlette-uvloop": Kind(
        serve_starlette, ("starlette", *UVICORN), scenarios=HOSTED
    ),
    "wsappy-uvloop": Kind(wsappy, UVICORN[1:], scenarios=HOSTED),
    "wsappy-scaled": Kind(wsappy, scenarios=SCALES),
    "websockets-scaled": Kind(by_hand, scenarios=SCALES),
    "wsappy-1000": Kind(wsappy, scenarios=SCALES[:1], more=1000),
    "websockets-1000": Kind(by_hand, scenarios=SCALES[:1], more=1000),
}
# --- 4. Goals, rounds, options -----------------------------------------------

# An eager task needs no turn of the loop: Python has them since 3.12.
ASYNC = 0.63 if sys.version_info >= (3, 12) else 0.73
# Scenario, figure, whose, over whose ("" for the figure itself), at most, aim. Of a
# push only user time counts, because the kernel's part is the same for all.
GOALS: list[tuple[str, str, str, str, float, float | None]] = [
    ("1 in flight", "cpu", "wsappy-def", "websockets", 0.56, 0.50),
    ("1 in flight", "cpu", "wsappy-async", "websockets", ASYNC, None),
    ("1 in flight", "cpu", "wsappy-def", "aiohttp", 0.85, None),
    ("1 in flight", "cpu", "wsappy-def", "picows", 1.30, 1.10),
    ("16 in flight", "cpu", "wsappy-def", "websockets", 0.26, None),
    ("16 in flight", "cpu", "wsappy-def", "picows", 0.60, 0.50),
    ("1 in flight", "cpu", "wsappy-asgi", "starlette-uvloop", 1.30, 1.00),
    ("100 in flight", "cpu", "wsappy-asgi", "starlette-uvloop", 1.10, 1.00),
    ("1 in flight", "cpu", "wsappy-asgi", "wsappy-uvloop", 2.30, None),
    ("100 in flight", "cpu", "wsappy-asgi", "wsappy-uvloop", 4.00, None),
    ("push", "user", "wsappy-def", "websockets", 0.60, 0.40),
    ("push", "user", "wsappy-plain", "broadcast", 0.70, None),
    ("push", "user", "wsappy-history", "broadcast", 0.70, None),
    ("push to one", "cpu", "10000-groups", "ten-groups", 1.50, None),
    ("visit", "cpu", "wsappy-hello", "websockets-bare", 1.30, 1.10),
    ("client", "cpu", "wsappy-client", "websockets-client", 1.10, None),
    ("idle", "memory", "wsappy-def", "", 13.0, None),
]


def run_rounds(names: list[str], limit: int) -> tuple[int, dict[str, Any]]:
    """Measure forwards, then backwards; return the rounds, and costs by server."""
    costs: Any = {name: {each: [] for each in KINDS[name].scenarios} for name in names}
    began, rounds = time.monotonic(), 0
    while rounds < limit and time.monotonic() - began < LIMIT:
        for name in names[:: -1 if rounds % 2 else 1]:
            print(f"round {rounds + 1}: {name}", file=sys.stderr)
            with run_server(name) as server:
                for scenario in costs[name]:
                    costs[name][scenario] += SCENARIOS[scenario](server)
        rounds += 1
    return rounds, costs


def figures_of(costs: list[Cost]) -> Cost:
    """Return the least of all slices in µs and KiB; the user's share is that of all."""
    least, total = (Cost(*map(of, zip(*costs, strict=True))) for of in (min, sum))
    cpu = least.cpu * 1e6
    user, kib = cpu * total.user / (total.sampled or 1.0), least.memory / 1024
    return least._replace(cpu=cpu, user=user, driver=least.driver * 1e6, memory=kib)


def show(servers: dict[str, Any]) -> None:
    """Print a line for each server, and the ratios."""
    heads = [each for each in SCENARIOS if any(each in row for row in servers.values())]
    print(f"{'CPU µs (user), KiB':18}" + "".join(f"{head:>18}" for head in heads))
    for name, row in servers.items():
        texts = (
            text_of(head, figures_of(row[head])) if head in row else ""
            for head in heads
        )
        print(f"{name:18}" + "".join(f"{text:>18}" for text in texts))
    print("* What drove the server was busier than the server.")
    print(f"\n{'Least over least':54}  at most    aim  measured")
    for scenario, figure, name, against, at_most, aim in GOALS:
        with contextlib.suppress(KeyError):
            ratio = getattr(figures_of(servers[name][scenario]), figure)
            if against:
                # The kernel may have sampled nothing in a short time.
                other = getattr(figures_of(servers[against][scenario]), figure)
                ratio /= other or math.nan
            what = f"{scenario}, {figure}: {name} / {against or '1 KiB'}"
            aimed, mark = f"{aim:.2f}" if aim else "", "  missed" * (ratio > at_most)
            print(f"{what:54}{at_most:9.2f}{aimed:>7}{ratio:10.2f}{mark}")


def text_of(scenario: str, cost: Cost) -> str:
    if scenario == "idle":
        return f"{cost.memory:.2f}"
    busier = "*" if cost.driver > cost.cpu and scenario != "client" else ""
    return f"{cost.cpu:.2f} ({cost.user:.2f}){busier}"


def main() -> None:
    """Serve, where this is the process of a server; else measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--only", nargs="+", choices=KINDS, metavar="NAME", help=", ".join(KINDS))
    plan = partial(add, dest="plan", action="store_const")
    plan("--scaling", const=(SCALES, SCALES[:1]), help="more clients, more methods")
    plan("--client", const=(CLIENT,), help="the Python client")
    plan("--groups", const=(PUSHES, ONE), help="groups with history")
    plan("--asgi", const=(HOSTED,), help="in another server")
    add("--rounds", type=int, choices=range(1, 101), metavar="N", help="at most; 8")
    parser.set_defaults(plan=(USUAL, VISIT), rounds=8)
    add("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("the benchmark must run on Linux: no other lets it read the clocks")
    if options.serve:
        KINDS[options.serve].run()
        return
    os.sched_setaffinity(0, CORES[-1:])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    chosen = [name for name in KINDS if KINDS[name].scenarios in options.plan]
    names = options.only or chosen
    versions = {each.name: each.version for each in distributions()}
    packages = sorted({package for name in names for package in KINDS[name].needs})
    names = [name for name in names if versions.keys() >= set(KINDS[name].needs)]
    rounds, servers = run_rounds(names, options.rounds)
    texts = (f"{package} {versions.get(package, 'is missing')}" for package in packages)
    print(f"Python {sys.version.split()[0]}, {rounds} rounds; {', '.join(texts)}\n")
    show(servers)
    if ONE in options.plan:
        asyncio.run(subscribe_all())


if __name__ == "__main__":
    main()
