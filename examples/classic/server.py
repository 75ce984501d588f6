"""Run a class-based server as it was written for wsappy 0.1.3, in 2018.

    python examples/classic/server.py

`examples/simple/client.py` talks to it. New code is better off with the decorators of
`examples/simple/server.py`; both stand on the same table and speak the same protocol.
"""

# The code stands as it was written then, neither typed nor formatted.
# ruff: noqa: D101, D102
# mypy: disable-error-code="no-untyped-call, no-untyped-def"
# fmt: off

import asyncio

from wsappy import Client, Handler, Request, Server, handler_method


class EntityHandler(Handler):
    def __init__(self):
        super().__init__()
        self.data = [{'id': 42, 'name': 'a'}, {'id': 15, 'name': 'b'}, {'id': 30, 'name': 'c'}]  # noqa: E501

    @handler_method
    def get(self, request, item_id):
        items = list(filter(lambda x: x['id'] == item_id, self.data))
        yield from request.response('result', items=items)


if __name__ == '__main__':
    client_factories = {'api': Client}
    handlers = {'entity': EntityHandler()}
    server = Server(Request, client_factories, handlers)
    loop = asyncio.get_event_loop()
    loop.run_until_complete(server.run('localhost', 8008))
    loop.run_forever()
