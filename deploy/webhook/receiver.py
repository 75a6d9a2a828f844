"""Prints what Alertmanager sends: stands in for chat or a pager until there is one."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer


class Receiver(BaseHTTPRequestHandler):
    """One line for each alert of a message."""

    def do_POST(self) -> None:
        """Print and accept."""
        message = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        for alert in message["alerts"]:
            print(alert["status"], alert["labels"]["alertname"], alert["annotations"]["description"], flush=True)
        self.send_response(200)
        self.end_headers()


if __name__ == "__main__":
    HTTPServer(("", 8080), Receiver).serve_forever()
