"""Run one app in each server and each framework, by ASGI; `.ci/asgi` calls this."""
# ruff: noqa: S101, T201

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect as connect_plainly
from websockets.exceptions import ConnectionClosed, InvalidStatus

from wsappy import Error, Peer, connect

# Seconds for one server, from its start to its end.
LIMIT = 30
SERVERS = {
    "uvicorn": "uvicorn {app} --host 127.0.0.1 --port {port} --ws websockets-sansio",
    "uvicorn, wsproto": "uvicorn {app} --host 127.0.0.1 --port {port} --ws wsproto",
    "hypercorn": "hypercorn {app} --bind 127.0.0.1:{port}",
    "granian": "granian --interface asgi {app} --host 127.0.0.1 --port {port}",
    "daphne": "daphne {app} -b 127.0.0.1 -p {port}",
}
# It knows no denial response, sends no lifespan, and cuts what is open when it stops.
ONLY_403 = NO_LIFESPAN = NO_STOP = {"daphne"}
FRAMEWORKS = ("alone", "fastapi_app", "starlette_app", "litestar_app", "django_app")
PROGRAM = """
import asyncio
import contextlib
import os
import pathlib

from wsappy import App, Client, Error, Refused

LOG = pathlib.Path(os.environ["SITE_LOG"])
FILES = pathlib.Path(os.environ["SITE_FILES"])


def note(text):
    with LOG.open("a") as file:
        file.write(text + "\\n")


app = App()
app.static("/files", FILES)


@app.client("/api/{room}")
class Api(Client):
    async def on_connecting(self, room):
        note("connecting")
        if self.query.get("token") == "bad":
            raise Refused(401, "sign in")

    async def on_disconnected(self):
        await asyncio.sleep(0.01)
        note("disconnected")


@app.group("room:{id}", history=10)
def may_join(client, id):
    return client.params["room"] == id


def is_admin(request):
    return request.client.query.get("token") == "admin"


entity = app.module("entity")


@entity.method("get")
def get(request, item_id: int):
    if item_id < 0:
        raise Error("not_found", "no such item")
    return {"id": item_id}


@entity.method("who")
def who(request):
    client = request.client
    return {"cookie": client.headers["Cookie"], "path": client.path,
            "query": client.query, "scope": client.scope["type"],
            "host": client.remote[0]}


@entity.method("watch")
async def watch(request, count: int):
    for number in range(count):
        yield number


@entity.method("ask")
async def ask(request):
    return await request.client.call("ui", "confirm", text="sure?")


@entity.method("secret", allow=is_admin)
def secret(request):
    return "the secret"


@entity.method("sleep")
async def sleep(request):
    try:
        await asyncio.sleep(60)
    finally:
        note("sleep ended")


@entity.method("say")
async def say(request, text):
    room = "room:" + request.client.params["room"]
    await app.to(room).push("room", "said", text=text)


@entity.method("leave")
async def leave(request):
    await request.client.close(4001, "bye")


@app.http("/hello")
def hello(request):
    return f"hello {request.query['name']}"


if "SITE_LIFESPAN" in os.environ:
    @app.lifespan
    async def life(app):
        note("started")
        yield
        note("stopped")


asgi = app.asgi()


@contextlib.asynccontextmanager
async def inside(_):
    async with asgi.lifespan():
        yield


def alone_():
    return asgi


def fastapi_app_():
    import fastapi

    api = fastapi.FastAPI(lifespan=inside)
    api.mount("/ws", asgi)
    return api


def starlette_app_():
    from starlette.applications import Starlette
    from starlette.routing import Mount

    return Starlette(routes=[Mount("/ws", asgi)], lifespan=inside)


def litestar_app_():
    import litestar

    mounted = litestar.asgi("/ws", is_mount=True, copy_scope=True)(asgi)
    return litestar.Litestar([mounted], lifespan=[inside])


def django_app_():
    from django.conf import settings
    from django.core.asgi import get_asgi_application

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="s")
    django_asgi = get_asgi_application()

    async def application(scope, receive, send):
        is_ours = scope["type"] != "http" or scope["path"].startswith("/ws/")
        if scope["type"] != "lifespan" and is_ours:
            scope = {**scope, "root_path": "/ws"}
        await (asgi if is_ours else django_asgi)(scope, receive, send)

    return application


urlpatterns = []
made = globals()[os.environ["SITE_APP"] + "_"]()
"""


async def expect(what: str, actual: Awaitable[Any], expected: Any) -> None:
    """Compare what comes with what should; an error counts as its code."""
    try:
        got = await asyncio.wait_for(actual, 5)
    except Error as exc:
        got = exc.code
    except TimeoutError:
        got = "nothing"
    if got != expected:
        raise AssertionError(f"{what}: {got!r}, not {expected!r}")


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    """Return all items of a stream."""
    return [item async for item in items]


async def refused(url: str, **options: Any) -> int:
    """Return the status, or the close code, that a client is refused with."""
    try:
        async with connect_plainly(url, proxy=None, **options) as ws:
            await ws.recv()
    except InvalidStatus as exc:
        return exc.response.status_code
    except ConnectionClosed as exc:
        return exc.rcvd.code if exc.rcvd else 1006
    return 0


async def fetch(url: str) -> tuple[int, str]:
    """Return status and body of a page."""

    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    return await asyncio.to_thread(get)


def answer_confirm(request: Any, text: str) -> str:
    """Answer a call from the server."""
    return f"{text} yes"


async def talk(server: str, base: str) -> None:
    """Have every kind of conversation."""
    headers = {"Cookie": "a=1; b=2"}
    url = f"ws://{base}/api/42?token=t%C3%A9"
    async with connect(url, additional_headers=headers, proxy=None) as api:
        api.method("ui", "confirm")(answer_confirm)
        await expect("call", api.call("entity", "get", item_id=1), {"id": 1})
        await expect("error", api.call("entity", "get", item_id=-1), "not_found")
        await expect("unknown", api.call("entity", "no"), "unknown_method")
        told = {"cookie": "a=1; b=2", "path": "/api/42", "query": {"token": "té"}}
        told |= {"scope": "websocket", "host": "127.0.0.1"}
        await expect("request", api.call("entity", "who"), told)
        numbers = collect(api.stream("entity", "watch", count=3000, window=7))
        await expect("stream", numbers, list(range(3000)))
        await expect("asking", api.call("entity", "ask"), "sure? yes")
        await expect("guard", api.call("entity", "secret"), "forbidden")
        await say_in_group(api)
        await cancel_call(api)
        large = {"text": "x" * 200_000}
        await expect("large", api.call("entity", "say", large), {})
    refusal = 403 if server in ONLY_403 else 401
    bad = f"ws://{base}/api/42?token=bad"
    await expect("refusal", refused(bad), refusal)
    origin = "http://" + base.partition("/")[0]
    await expect("refusal of a browser", refused(bad, origin=origin), 4401)
    await expect("origin", refused(url, origin="http://example.org"), 403)


async def say_in_group(api: Peer) -> None:
    """Join a group, and hear what is said there."""
    pushes = api.pushes()
    await api.subscribe("room:42")
    await expect("foreign group", api.subscribe("room:43"), "forbidden")
    for text in ("one", "two"):
        await api.call("entity", "say", text=text)
        push = await anext(pushes)
        assert push.data == {"text": text}, push


async def cancel_call(api: Peer) -> None:
    """End a call from outside."""
    call = asyncio.ensure_future(api.call("entity", "sleep"))
    await asyncio.sleep(0.05)
    call.cancel()
    await expect("ping", api.call("$", "ping"), {})


async def look(base: str) -> None:
    """Look at pages and files."""
    await expect("page", fetch(f"http://{base}/hello?name=you"), (200, "hello you"))
    await expect("file", fetch(f"http://{base}/files/a.txt"), (200, "a file"))
    await expect("route", fetch(f"http://{base}/api/42"), (426, NO_PAGE))


NO_PAGE = "this address is for WebSocket clients"


async def leave(base: str) -> None:
    """Be closed by the server with a code."""
    url = f"ws://{base}/api/42"
    async with connect_plainly(url, proxy=None) as ws:
        await ws.send('{"module":"entity","method":"leave"}')
        try:
            while True:
                await asyncio.wait_for(ws.recv(), 5)
        except ConnectionClosed as exc:
            code = exc.rcvd.code if exc.rcvd else 1006
    assert code == 4001, f"close code: {code}"


async def vanish(base: str) -> None:
    """Go without a word while the server sends."""
    async with connect_plainly(f"ws://{base}/api/42", proxy=None) as ws:
        data = {"count": 10**9}
        call = {"module": "entity", "method": "watch", "data": data, "request_id": 1}
        await ws.send(json.dumps(call))
        await ws.recv()
        ws.transport.abort()


async def check(server: str, framework: str, folder: Path) -> None:
    """Start a server, talk to it, and stop it while a call is unfinished."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = folder / "log"
    environment = {**os.environ, "SITE_LOG": str(log), "SITE_FILES": str(folder)}
    environment |= {"SITE_APP": framework, "PYTHONPATH": str(folder)}
    if server not in NO_LIFESPAN:
        environment["SITE_LIFESPAN"] = "1"
    words = SERVERS[server].format(app="program:made", port=port).split()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words),
        cwd=folder,
        env=environment,
        stdout=(folder / "output").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        base = f"127.0.0.1:{port}" + ("" if framework == "alone" else "/ws")
        await opened(port)
        await talk(server, base)
        await look(base)
        await leave(base)
        await vanish(base)
        # The clients that were let in: one talked, one was closed, one has vanished.
        while log.read_text().count("disconnected") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await stop(process, base)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    output = (folder / "output").read_text()
    assert "failed" not in output, "something was logged as a failure"
    notes = log.read_text().splitlines()
    connected, gone = notes.count("connecting"), notes.count("disconnected")
    # Two were refused.
    cut = 1 if server in NO_STOP else 0
    assert connected - 2 - cut == gone, f"{connected} came, {gone} goodbyes"
    assert notes.count("sleep ended") == 2 - cut, "a call outlived its client"
    if server not in NO_LIFESPAN:
        assert notes[0] == "started", notes
        assert notes[-1] == "stopped", notes


async def opened(port: int) -> None:
    """Wait until a port is open."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


async def stop(process: asyncio.subprocess.Process, base: str) -> None:
    """Stop a server while a call is unfinished."""
    async with connect_plainly(f"ws://{base}/api/42", proxy=None) as ws:
        await ws.send('{"module":"entity","method":"sleep","request_id":1}')
        await ws.send('{"module":"$","method":"ping","request_id":2}')
        await ws.recv()
        process.send_signal(signal.SIGTERM)
        try:
            while True:
                await asyncio.wait_for(ws.recv(), 15)
        except ConnectionClosed as exc:
            print(f"  stop: {exc}", end="")
    await asyncio.wait_for(process.wait(), 15)


async def main(*only: str) -> int:
    """Check all of them, one after the other; return the exit code."""
    failed = 0
    for server in SERVERS:
        for framework in FRAMEWORKS:
            if only and not {server, framework} >= set(only):
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "program.py").write_text(PROGRAM)
                (folder / "a.txt").write_text("a file")
                print(f"{server}, {framework}:", end="", flush=True)
                try:
                    await asyncio.wait_for(check(server, framework, folder), LIMIT)
                    print("  ok")
                except Exception as exc:  # noqa: BLE001
                    failed += 1
                    print(f"  {type(exc).__name__}: {exc}")
                    print((folder / "output").read_text()[-3000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
