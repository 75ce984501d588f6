"""Answer prompts word by word, as a language model would, to those who have logged in.

    python examples/tokens/server.py [port]

Open http://localhost:8008/, log in as ada with the password tulip, and ask.
`examples/tokens/client.py` does so, too. There is no model: it repeats the prompt.
"""

import asyncio
import hmac
import pathlib
import secrets
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from wsappy import App, Client, Error, Refused, Request

app = App()
SECRET = secrets.token_bytes()  # A new one for each run, so tokens end with it.


def sign(text: str) -> str:
    """Return a signature that only this server can make."""
    return hmac.digest(SECRET, text.encode(), "sha256").hex()


PASSWORDS = {"ada": sign("tulip")}  # A real server has salted hashes in a database.


@app.client("/api")
class User(Client):
    """Somebody with a token; without one, somebody who may only log in."""

    name, expires = "", 0

    async def on_connecting(self, **params: Any) -> None:
        """Read the token: in the header `Authorization`, or in the query."""
        header = self.headers.get("Authorization", "")
        token = self.query.get("token") or header.removeprefix("Bearer ")
        if token:
            text, _, signature = token.rpartition(".")
            if not hmac.compare_digest(sign(text).encode(), signature.encode()):
                raise Refused(401, "this token is not ours")
            self.name, _, expires = text.rpartition(".")
            self.expires = int(expires)
            if self.expires <= time.time():
                raise Refused(401, "this token has expired")


def is_logged_in(request: Request[User]) -> bool:
    """Guard each prompt: a connection may outlive its token."""
    if request.client.expires <= time.time():
        raise Error("unauthorized", "log in, and connect with the token")
    return True


@app.module("user")
@app.method
def login(request: Request, name: str, password: str, seconds: int = 3600) -> str:
    """Return a token for the next connection; it expires after so many seconds."""
    if not hmac.compare_digest(sign(password), PASSWORDS.get(name, "")):
        raise Error("unauthorized", "wrong name or password")
    text = f"{name}.{int(time.time()) + min(seconds, 3600)}"
    return f"{text}.{sign(text)}"


@app.module("model", allow=is_logged_in)
@app.method
async def answer(request: Request[User], prompt: str) -> AsyncIterator[str]:
    """Answer word by word; an `Error` in the middle leaves the words before it."""
    is_complete = False
    try:
        for word in [request.client.name, "said:", *prompt.split()]:
            await asyncio.sleep(0.01)  # The thinking.
            if word == "unicorn":
                raise Error("no_answer", f"nothing is known about a {word}")
            yield word
        is_complete = True
    finally:  # However it ends: also when the client stops it, or goes away.
        request.client.push("model", "ended", complete=is_complete)


@app.http("/")
def index(request: object) -> tuple[str, str]:
    """Answer with the page."""
    page = pathlib.Path(__file__).with_name("index.html")
    return page.read_text(encoding="utf-8"), "text/html; charset=utf-8"


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
