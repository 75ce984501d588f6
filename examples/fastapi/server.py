"""FastAPI with wsappy beside it, in one process on one port.

    python examples/fastapi/server.py [port]

Open http://localhost:8008/, sign in as ada with the password tulip, and keep it open:
what `POST /notes` adds is pushed to every page of the same user.
"""

import contextlib
import secrets
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
from fastapi import Body, Cookie, FastAPI, HTTPException, Response
from fastapi.responses import HTMLResponse

from wsappy import App, Client, Refused, Request

# A real server keeps none of them in its source, or in memory alone.
PASSWORDS = {"ada": "tulip", "bob": "daisy"}
SESSIONS: dict[str, str] = {}
notes: dict[str, list[str]] = {name: [] for name in PASSWORDS}

ws = App()
asgi = ws.asgi()


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Start and stop wsappy with FastAPI, which doesn't tell what it mounts."""
    async with asgi.lifespan():
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/ws", asgi)


def user_of(session: str | None) -> str | None:
    """Return whose session it is: the same for HTTP and for WebSockets."""
    return SESSIONS.get(session or "")


@ws.client("/api")
class User(Client):
    """Somebody who has signed in."""

    name: str

    async def on_connecting(self, **params: Any) -> None:
        """Find out who it is by the cookie, as `POST /login` has set it."""
        cookies = dict(
            each.strip().split("=", 1)
            for each in self.headers.get("Cookie", "").split(";")
            if "=" in each
        )
        name = user_of(cookies.get("session"))
        if name is None:
            raise Refused(401, "sign in first")
        self.name = name
        self.join(f"user:{name}")


@ws.module("notes")
@ws.method("read")
def read(request: Request[User]) -> list[str]:
    """Return the notes of who asks."""
    return notes[request.client.name]


@app.post("/login")
async def login(
    response: Response, name: Annotated[str, Body()], password: Annotated[str, Body()]
) -> dict[str, str]:
    """Sign in: a script of the page can't read the cookie, and it is sent anyway."""
    known = PASSWORDS.get(name, "")
    if not known or not secrets.compare_digest(known.encode(), password.encode()):
        raise HTTPException(401, "wrong name or password")
    session = secrets.token_urlsafe()
    SESSIONS[session] = name
    response.set_cookie("session", session, httponly=True, samesite="strict")
    return {"name": name}


@app.post("/notes")
async def add(
    text: Annotated[str, Body(embed=True)],
    session: Annotated[str | None, Cookie()] = None,
) -> dict[str, int]:
    """Add a note, and push it to every connection of the same user."""
    name = user_of(session)
    if name is None:
        raise HTTPException(401, "sign in first")
    notes[name].append(text)
    await ws.to(f"user:{name}").push("notes", "added", text=text)
    return {"count": len(notes[name])}


@app.get("/")
async def page() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(PAGE)


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Notes</title>
<form id="login"><input name="name" value="ada"> <input name="password" type="password">
<button>Sign in</button></form>
<form id="add" hidden><input name="text"> <button>Add</button></form>
<ul id="notes"></ul>
<script type="module">
import { connect } from "/ws/wsappy.js"
const post = (path, form) => fetch(path, {
  method: "POST", headers: {"Content-Type": "application/json"},
  body: JSON.stringify(Object.fromEntries(new FormData(form)))})
const login = document.getElementById("login"), add = document.getElementById("add")
const show = text => {
  const item = document.createElement("li")
  item.textContent = text
  document.getElementById("notes").append(item)
}
const open = async () => {
  const api = connect("/ws/api")
  api.on("notes", "added", ({text}) => show(text))
  // It fails, and the client stays away, where nobody has signed in.
  const notes = await api.call("notes", "read").catch(() => null)
  if (!notes) return
  login.hidden = true; add.hidden = false
  notes.forEach(show)
}
login.onsubmit = async event => {
  event.preventDefault()
  if ((await post("login", login)).ok) open()
}
add.onsubmit = event => { event.preventDefault(); post("notes", add); add.reset() }
open()
</script>
"""

if __name__ == "__main__":
    uvicorn.run(app, port=int((*sys.argv, "8008")[1]))
