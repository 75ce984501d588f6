"""Let in who has a token, and let through the calls that a user has the right to.

    python examples/auth/server.py [port]

`examples/auth/client.py` shows who gets how far.
"""

import secrets
import sys
from typing import Any

from wsappy import App, Client, Error, Refused, Request

# A real server keeps neither in its source.
TOKENS = {"ada": "tulip", "bob": "daisy"}
RIGHTS = {"ada": {"notes.read", "notes.add"}, "bob": {"notes.read"}}

app = App()
notes = ["water the plants"]


@app.client("/api")
class User(Client):
    """Somebody with a token: in the header `Authorization`, or in the query.

    A browser can't set headers of a WebSocket, and so writes `/api?token=tulip`. wsappy
    never logs the query; a proxy in front of it may.
    """

    name: str

    async def on_connecting(self, **params: Any) -> None:
        """Find out who it is, inside the handshake; nobody else gets a connection."""
        header = self.headers.get("Authorization", "")
        token = self.query.get("token") or header.removeprefix("Bearer ")
        for name, known in TOKENS.items():
            if secrets.compare_digest(token.encode(), known.encode()):
                self.name = name
                return
        raise Refused(401, "unknown token")

    async def process_message(self, request: Request) -> Any:
        """Run a call, if the user has the right to it."""
        call = f"{request.module}.{request.method}"
        if call not in RIGHTS[self.name]:
            raise Error("forbidden", f"{self.name} has no right to {call}")
        return await super().process_message(request)


@app.module
class Notes:
    """What is to be done."""

    @app.method
    def read(self, request: Request) -> list[str]:
        """Return all notes."""
        return notes

    @app.method
    def add(self, request: Request, text: str) -> None:
        """Add a note."""
        notes.append(text)


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
