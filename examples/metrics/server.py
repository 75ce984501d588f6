"""Show Prometheus what the app counts, and a load balancer whether it is well.

    python -m pip install prometheus_client
    python examples/metrics/server.py [port]

`/metrics` is for Prometheus. `/health` is `ok` with 200, and 503 from the moment the
server has been told to stop, so that no new client is sent to it:

    curl http://localhost:8008/health
    curl http://localhost:8008/metrics
"""

import sys
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from wsappy import App, Client, PageRequest, Refused

app = App()


@app.client("/api")
def api(client: Client) -> None:
    """Everyone may come in."""


class Stats(Collector):
    """What the app counts; nothing is counted twice."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the figures of this moment."""
        for name, value in app.stats().items():
            by_label = value if isinstance(value, dict) else {"": value}
            metric = GaugeMetricFamily(f"wsappy_{name}", name, labels=["kind"])
            for label, count in by_label.items():
                metric.add_metric([label], count)
            yield metric


registry = CollectorRegistry()
registry.register(Stats())


@app.http("/metrics")
def metrics(request: PageRequest) -> tuple[bytes, str]:
    """Return all figures, as Prometheus reads them."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


@app.http("/health")
def health(request: PageRequest) -> str:
    """Return `ok`, or 503 while the server is stopping."""
    if app.stats()["stopping"]:
        raise Refused(503, "stopping")
    return "ok"


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
