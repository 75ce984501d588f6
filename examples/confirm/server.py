"""Ask the user, in the middle of a call.

    python examples/confirm/server.py [port]

`examples/confirm/client.py` is asked.
"""

import sys

from wsappy import App, Client, Error, Request

app = App()
files = {"draft.txt", "thesis.txt"}


@app.client("/api")
def api(client: Client) -> None:
    """Everyone may come in."""


@app.module("files")
@app.method("delete")
async def delete(request: Request, file: str) -> list[str]:
    """Delete a file, if the user is sure; return those that are left."""
    if file not in files:
        raise Error("not_found", f"no file {file!r}")
    if not await request.client.call("ui", "confirm", text=f"Delete {file}?"):
        raise Error("kept", f"{file} is kept")
    # Whoever answers takes time: somebody else may have deleted it meanwhile.
    files.discard(file)
    return sorted(files)


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
