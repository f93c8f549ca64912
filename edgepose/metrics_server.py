"""What a pipeline measures of itself, over HTTP for Prometheus."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from edgepose.errors import SinkError
from edgepose.metrics import Metrics

__all__ = ["MetricsServer"]


class MetricsServer:
    """Answers ``GET /metrics`` until it is closed.

    Args:
        url: ``prometheus://host:port``; without a host this machine alone can ask, ``0.0.0.0`` is every address.
        metrics: What is told.

    Raises:
        SinkError: The address is none, or in use.
    """

    def __init__(self, url: str, metrics: Metrics) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "127.0.0.1", parts.port
        except ValueError:
            port = None
        if port is None or parts.scheme != "prometheus":
            raise SinkError(f"{url}: expected prometheus://:9100 or prometheus://0.0.0.0:9100") from None
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(metrics))
        except OSError as error:
            raise SinkError(f"{url}: cannot listen ({error.strerror}): choose another port") from None
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="edgepose-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(metrics: Metrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "the figures are at /metrics")
                return
            body = metrics.prometheus().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing: requests are no news."""

    return Handler
