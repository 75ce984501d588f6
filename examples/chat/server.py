"""Keep rooms: who is in a room hears what is said there, also after having been away.

    python examples/chat/server.py [port]

Open http://localhost:8008/ in two windows; `examples/chat/client.py` holds a
conversation, too. A client subscribes to the group `room:kitchen`, and then enters the
room `kitchen`.

Two processes serve it, so none of them knows who is in a room. Its members do: whoever
enters is announced, and each of the others answers with `greet`.
"""

import os
import pathlib
import sys
from collections.abc import AsyncIterator

from wsappy import JSON, App, Client, Error, Refused, Request

app = App()
chat = app.module("chat")


def name_of(client: Client) -> str:
    """Return the name in the query of the URL."""
    return client.query.get("name", "")


@app.client("/chat")
async def guest(client: Client) -> AsyncIterator[None]:
    """Let in who has a name: `/chat?name=ada`; when they go, tell all their rooms."""
    if not name_of(client):
        raise Refused(403, "come with a name: /chat?name=ada")
    client.join(f"guest:{name_of(client)}")
    yield
    # It is in no group any more, but `groups` still names them.
    for group in sorted(client.groups):
        kind, _, room = group.partition(":")
        if kind == "room":
            await tell(client, room, "left")


@app.group("room:{room}", history=100, ttl=3600)
def may_join(client: Client, room: str) -> bool:
    """Let everybody hear every room; who comes back within an hour misses nothing."""
    return True


@chat.method
async def enter(request: Request, room: str) -> None:
    """Tell a room who has come."""
    check_member(request.client, room)
    await tell(request.client, room, "entered")


@chat.method
async def greet(request: Request, room: str, guest: str) -> None:
    """Tell one who has entered that one is there, whichever process has them."""
    check_member(request.client, room)
    here = {"room": room, "name": name_of(request.client)}
    await app.to(f"guest:{guest}").push("chat", "here", here)


@chat.method
async def leave(request: Request, room: str) -> None:
    """Leave a room."""
    check_member(request.client, room)
    request.client.leave(f"room:{room}")
    await tell(request.client, room, "left")


@chat.method
async def say(request: Request, room: str, text: str) -> None:
    """Say something in a room."""
    check_member(request.client, room)
    await tell(request.client, room, "said", text=text)


@chat.method
async def move(request: Request) -> None:
    """Cut the connection as a server that stops does: the client comes back."""
    await request.client.close(1001, "come back")


def check_member(client: Client, room: str) -> None:
    """Raise an `Error` where the client isn't in the room."""
    if f"room:{room}" not in client.groups:
        raise Error("forbidden", f"subscribe to 'room:{room}' first")


async def tell(client: Client, room: str, event: str, **more: JSON) -> None:
    """Tell a room what one of its guests does; it is on its way when this returns."""
    # To all: a group with history counts its messages, and leaves nobody out.
    group, name = app.to(f"room:{room}"), name_of(client)
    await group.push("chat", event, room=room, name=name, **more)


@app.http("/")
def index(request: object) -> tuple[str, str]:
    """Answer with the page."""
    page = pathlib.Path(__file__).with_name("index.html")
    return page.read_text(encoding="utf-8"), "text/html; charset=utf-8"


if __name__ == "__main__":
    port = int(sys.argv[1]) if sys.argv[1:] else 8008
    # Windows can't fork.
    app.run("localhost", port, workers=2 if hasattr(os, "fork") else 1)
