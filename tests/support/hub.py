"""A hub on this machine: as much of its API as pushing a folder needs, and the files that arrived."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_test"


@dataclass
class Hub:
    """`files`: what was committed, by repository and path. `made`: the requests that made one. `broken` fails commits."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    made: list[dict[str, object]] = field(default_factory=list)
    broken: bool = False


@contextmanager
def running() -> Iterator[Hub]:
    """Serve a hub while the body runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def answer(self, status: int, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while length := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def is_known(self) -> bool:
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                return True
            self.answer(401, {"error": "Invalid credentials"})
            return False

        def do_GET(self) -> None:
            if self.is_known():
                self.answer(200, {"name": "me", "type": "user"} if self.path == "/api/whoami-v2" else {})

        def do_POST(self) -> None:
            body = self.body()
            if not self.is_known():
                return
            path = self.path.split("/")
            if self.path == "/api/repos/create":
                request = json.loads(body)
                hub.made.append(request)
                name = f"{request.get('organization') or 'me'}/{request['name']}"
                self.answer(200, {"url": f"{hub.url}/{name}", "name": name})
            elif self.path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif path[5:6] == ["preupload"]:
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                self.answer(200, {"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]})
            elif path[5:6] == ["commit"] and not hub.broken:
                name = "/".join(path[3:5])
                repo = hub.files.setdefault(name, {})
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        repo[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer(200, {"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": "1", "success": True})
            else:
                self.answer(507, {"error": "no space"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
