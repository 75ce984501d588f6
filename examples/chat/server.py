"""Keep rooms: who is in a room hears what is said there, also after having been away.

    python examples/chat/server.py [port]

Open http://localhost:8008/ in two windows; `examples/chat/client.py` holds a
conversation, too. A client subscribes to the group `room:kitchen`, and then enters the
room `kitchen`.
"""

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
    yield
    # It is in no group any more, but `groups` still names them.
    for group in sorted(client.groups):
        tell(client, group.removeprefix("room:"), "left")


@app.group("room:{room}", history=100, ttl=3600)
def may_join(client: Client, room: str) -> bool:
    """Let everybody hear every room; who comes back within an hour misses nothing."""
    return True


@chat.method
def enter(request: Request, room: str) -> list[str]:
    """Tell a room who has come, and return who else is in it."""
    check_member(request.client, room)
    tell(request.client, room, "entered")
    members = app.to(f"room:{room}").members - {request.client}
    return sorted(map(name_of, members))


@chat.method
def leave(request: Request, room: str) -> None:
    """Leave a room."""
    check_member(request.client, room)
    request.client.leave(f"room:{room}")
    tell(request.client, room, "left")


@chat.method
def say(request: Request, room: str, text: str) -> None:
    """Say something in a room."""
    check_member(request.client, room)
    tell(request.client, room, "said", text=text)


@chat.method
async def move(request: Request) -> None:
    """Cut the connection as a server that stops does: the client comes back."""
    await request.client.close(1001, "come back")


def check_member(client: Client, room: str) -> None:
    """Raise an `Error` where the client isn't in the room."""
    if f"room:{room}" not in client.groups:
        raise Error("forbidden", f"subscribe to 'room:{room}' first")


def tell(client: Client, room: str, event: str, **more: JSON) -> None:
    """Tell a room what one of its guests does."""
    # To all: a group with history counts its messages, and leaves nobody out.
    app.to(f"room:{room}").push("chat", event, room=room, name=name_of(client), **more)


@app.http("/")
def index(request: object) -> tuple[str, str]:
    """Answer with the page."""
    page = pathlib.Path(__file__).with_name("index.html")
    return page.read_text(encoding="utf-8"), "text/html; charset=utf-8"


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
