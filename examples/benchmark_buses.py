"""Measure pushes between two processes: workers, Redis, and python-socketio over Redis.

    python examples/benchmark_buses.py [--rounds N]

It needs Linux, `redis-server` and `pip install -e '.[redis]'`, with `.[bench]` for the
third. A client of one process calls a handler that pushes; one of the other process
receives. Each figure is the best of all rounds, which go A B, then B A: a busy machine
only ever adds to it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# This tree, whether or not another wsappy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.benchmark import (
    CHANGE,
    ENGINE_IO,
    HOST,
    ITEMS,
    PATIENCE,
    Kind,
    Server,
    expect,
    links_to,
    serve_app,
    serve_asgi,
)
from wsappy import App, Client, Request

__all__ = ["main"]

# Pushes of a throughput, and how many are awaited together; pushes of a latency; groups
# that are followed again.
BURST, AT_ONCE, TIMES, GROUPS = 10_000, 100, 300, 10_000


def app_on(url: str | None) -> App:
    """Make an app whose groups are those of all its processes."""
    app = App() if url is None else App(bus=url, namespace="benchmark")
    app.group("kept{i}", history=100)(lambda client: True)
    module = app.module("entity")

    @app.client("/{group}")
    def enter(client: Client, group: str) -> None:
        client.join(group)

    @module.method
    def worker(request: Request) -> int:
        return app.worker or 0

    @module.method
    async def push(request: Request, group: str, count: int) -> None:
        to = app.to(group)
        for first in range(0, count, AT_ONCE):
            many = range(first, min(count, first + AT_ONCE))
            await asyncio.gather(*(to.push("m", "e", ITEMS[0]) for _ in many))

    @module.method
    async def follow(request: Request, count: int) -> float:
        """Return how long it takes to follow all groups again after an outage."""
        groups: Any = app.groups
        for i in range(count):
            request.client.join(f"kept{i}")
        await asyncio.gather(*(each.known.wait() for each in groups.feeds.values()))
        await groups.bus.stop()
        groups.lose()
        began = time.monotonic()
        await groups.bus.start()
        await asyncio.gather(*(each.known.wait() for each in groups.feeds.values()))
        return time.monotonic() - began

    return app


async def serve_socketio() -> None:
    """Serve python-socketio with its manager for several processes."""
    socketio = import_module("socketio")
    manager = socketio.AsyncRedisManager(os.environ["BENCHMARK_REDIS"])
    options = {"async_mode": "asgi", "transports": ["websocket"]}
    server = socketio.AsyncServer(client_manager=manager, **options)

    async def push(sid: str, call: Any) -> Any:
        count = call["data"].get("count", 0)
        for first in range(0, count, AT_ONCE):
            many = range(first, min(count, first + AT_ONCE))
            await asyncio.gather(*(server.emit("e", ITEMS[0]) for _ in many))
        return {}

    server.on("call", push)
    await serve_asgi(socketio.ASGIApp(server))


def serve(name: str) -> None:
    """Be a server's process."""
    url = os.environ["BENCHMARK_REDIS"]
    if name == "relay":
        app_on(None).run(HOST, 0, workers=2)
    elif name == "redis":
        asyncio.run(serve_app(partial(app_on, url)))
    else:
        uvloop = import_module("uvloop")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_socketio())


@contextlib.contextmanager
def run_redis() -> Iterator[None]:
    """Run a Redis of our own, without a memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", ""]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=quiet, cwd=folder) as process:  # noqa: S603
            try:
                end = time.monotonic() + PATIENCE
                while not Path(path).exists() and time.monotonic() < end:
                    time.sleep(0.01)
                os.environ["BENCHMARK_REDIS"] = f"unix://{path}"
                yield
            finally:
                process.terminate()


@contextlib.contextmanager
def run_server(name: str, path: bytes) -> Iterator[Server]:
    """Run one server, and tell where it is."""
    form = ENGINE_IO if name == "socketio" else (path,)
    command, pipe = [sys.executable, __file__, "--serve", name], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:  # noqa: S603
        try:
            stdout: Any = process.stdout
            found = re.search(r"\d{4,}", stdout.readline()) or sys.exit("no server")
            yield Server(Kind(serve_app, (), *form), process.pid, int(found[0]))  # type: ignore[arg-type]
        finally:
            process.terminate()


@contextlib.contextmanager
def two_links(
    name: str, path: bytes
) -> Iterator[tuple[socket.socket, socket.socket, Server]]:
    """Connect to both processes of a server."""
    with contextlib.ExitStack() as stack:
        start = partial(run_server, name, path)
        servers = [stack.enter_context(start()) for _ in range(1 + (name != "relay"))]
        if name != "relay":
            links = [stack.enter_context(links_to(each, 1))[0] for each in servers]
            yield links[0], links[1], servers[0]
            return
        found: dict[bytes, socket.socket] = {}
        while len(found) < 2:
            [link] = stack.enter_context(links_to(servers[0], 1))
            link.sendall(servers[0].kind.frame(call_of("worker")))
            found[link.recv(2**12)[-2:]] = link
        yield *found.values(), servers[0]  # type: ignore[misc]


def call_of(method: str, **data: Any) -> str:
    """Return the parts of a call but its id."""
    pairs = ",".join(f'"{key}":{value}' for key, value in data.items())
    return f'"module":"entity","method":"{method}","data":{{{pairs}}}'


def measure_latency(one: socket.socket, other: socket.socket, call: bytes) -> float:
    """Return the milliseconds from a call at one process to its push at the other."""
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        one.sendall(call)
        expect(other, CHANGE)
        times.append(time.perf_counter() - began)
        # Its own push, and the answer.
        expect(one, CHANGE, b"10")
    return statistics.median(times) * 1000


def measure_rate(one: socket.socket, other: socket.socket, call: bytes) -> float:
    """Return how many pushes a second reach both processes."""
    missing, rests = {one: BURST, other: BURST}, {one: b"", other: b""}
    began = time.perf_counter()
    one.sendall(call)
    while max(missing.values()) > 0:
        readable, _, _ = select.select([one, other], [], [], PATIENCE)
        for link in readable or sys.exit("the server doesn't push"):
            data = rests[link] + (link.recv(2**18) or sys.exit("the server has closed"))
            missing[link] -= data.count(CHANGE)
            rests[link] = data[data.rfind(CHANGE) + 1 :][-len(CHANGE) + 1 :]
    return BURST / (time.perf_counter() - began)


def measure(name: str, group: str) -> dict[str, float]:
    """Return the figures of a server's group."""
    with two_links(name, group.encode()) as (one, other, server):
        calls = [
            server.kind.frame(call_of("push", group=f'"{group}"', count=count))
            for count in (1, BURST)
        ]
        # Until the other is in the group, too.
        time.sleep(0.5)
        figures = {
            f"{group}, ms": measure_latency(one, other, calls[0]),
            f"{group}, pushes/s": -measure_rate(one, other, calls[1]),
        }
        if group != "plain":
            time.sleep(0.5)
            while select.select([one], [], [], 0)[0]:
                one.recv(2**18)
            one.settimeout(10 * PATIENCE)
            one.sendall(server.kind.frame(call_of("follow", count=GROUPS), 77))
            found = re.search(rb'"data":([\d.e-]+)', one.recv(2**12))
            figures["followed again, s"] = float(found[1]) if found else 0.0
    return figures


def measure_all(rounds: int) -> dict[str, dict[str, float]]:
    """Return the least of each figure; rates are negative."""
    plan = [
        (name, group) for name in ("relay", "redis") for group in ("plain", "kept1")
    ]
    if all(map(find_spec, ("socketio", "uvicorn", "uvloop"))):
        plan.append(("socketio", "plain"))
    figures: dict[str, dict[str, float]] = {}
    with run_redis():
        for number in range(rounds):
            for name, group in plan[:: -1 if number % 2 else 1]:
                row = figures.setdefault(name, {})
                for what, figure in measure(name, group).items():
                    row[what] = min(figure, row.get(what, figure))
    return figures


def main() -> None:
    """Serve, where this is the process of a server; else measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if not shutil.which("redis-server"):
        sys.exit("the benchmark needs redis-server")
    figures = measure_all(options.rounds)
    for name, row in figures.items():
        for what, figure in row.items():
            print(f"{name:9} {what:20} {abs(figure):12.2f}")
    if "socketio" in figures:
        rates = (figures[name]["plain, pushes/s"] for name in ("redis", "socketio"))
        ratio = next(rates) / next(rates)
        print(f"pushes/s, redis / socketio: {ratio:.2f} (at least 1.5)")


if __name__ == "__main__":
    main()
