"""Follow a job on the server of `examples/stream/server.py`, and lose interest.

    python examples/stream/client.py [url]

It prints:

    1 of 1000
    2 of 1000
    3 of 1000
    the job has ended: {'complete': False}
    1 of 2
    2 of 2
    the job has ended: {'complete': True}
"""

import asyncio
import sys

from wsappy import connect


async def main(url: str = "ws://localhost:8008/api") -> None:
    """Leave one stream in its midst, and read another one to its end."""
    async with connect(url) as api:
        pushes = api.pushes()

        async for step in api.stream("job", "start", steps=1000):
            print(f"{step['done']} of {step['of']}")
            if step["done"] == 3:
                break  # This cancels the call, and with it the job on the server.
        print("the job has ended:", (await anext(pushes)).data)

        async for step in api.stream("job", "start", steps=2):
            print(f"{step['done']} of {step['of']}")
        print("the job has ended:", (await anext(pushes)).data)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
