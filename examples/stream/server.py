"""Tell a client how far a long job is, until it is done or nobody wants to know.

    python examples/stream/server.py [port]

`examples/stream/client.py` cancels one.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from wsappy import App, Client, Request

app = App()
job = app.module("job")


@app.client("/api")
def api(client: Client) -> None:
    """Everyone may come in."""


@job.method
async def start(request: Request, steps: int) -> AsyncIterator[dict[str, int]]:
    """Do the work step by step, and say so after each.

    However it ends, `finally` runs: after the last step, when the client cancels the
    call or goes away, and when the server stops.
    """
    done = 0
    try:
        while done < steps:
            await asyncio.sleep(0.01)  # The work.
            done += 1
            yield {"done": done, "of": steps}
    finally:
        request.client.push("job", "ended", complete=done == steps)


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
