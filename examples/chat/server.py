"""Keep rooms: everybody in a room hears what the others say there.

    python examples/chat/server.py [port]

`examples/chat/client.py` holds a conversation in it.
"""

import sys
from collections.abc import AsyncIterator

from wsappy import App, Client, Error, Refused, Request

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
    for room in sorted(client.groups):
        app.to(room).push("chat", "left", room=room, name=name_of(client))


@chat.method
def enter(request: Request, room: str) -> list[str]:
    """Enter a room, and return who else is in it."""
    others = app.to(room).without(request.client)
    others.push("chat", "entered", room=room, name=name_of(request.client))
    request.client.join(room)
    return sorted(map(name_of, others.members))


@chat.method
def leave(request: Request, room: str) -> None:
    """Leave a room."""
    check_member(request.client, room)
    request.client.leave(room)
    app.to(room).push("chat", "left", room=room, name=name_of(request.client))


@chat.method
def say(request: Request, room: str, text: str) -> None:
    """Say something to the others in a room."""
    check_member(request.client, room)
    others = app.to(room).without(request.client)
    others.push("chat", "said", room=room, name=name_of(request.client), text=text)


def check_member(client: Client, room: str) -> None:
    """Raise an `Error` where the client isn't in the room."""
    if room not in client.groups:
        raise Error("forbidden", f"enter {room!r} first")


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
