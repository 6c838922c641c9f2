"""A server on this machine that speaks the HTTP of the Hugging Face Hub, for tests of downloads and uploads."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories as files, and what was asked for.

    ``broken`` counts how many answers of a file end in the middle. ``stated`` replaces the checksum that is stated.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # "OWNER/REPO" or "datasets/OWNER/REPO"
    plain: dict[str, bytes] = field(default_factory=dict)  # other addresses
    broken: Counter = field(default_factory=Counter)
    stated: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    url: str = ""

    def environment(self, home):
        """Return the variables of a process that uses this server, with an empty cache below ``home``."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "HF_TOKEN": "hf_test",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", headers=None, cut=False):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def reply_json(self, content, status=200):
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def missing(self, code):
        self.reply(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path).lstrip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if path in self.hub.plain:
            self.send(path, self.hub.plain[path], {"ETag": '"1"'})
        elif found := re.fullmatch(r"((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = found.groups()
            if repo not in self.hub.files:
                self.missing("RepoNotFound")
            elif revision != "main" and not re.fullmatch("[0-9a-f]{40}", revision):
                self.missing("RevisionNotFound")
            elif name not in self.hub.files[repo]:
                self.missing("EntryNotFound")
            else:
                body = self.hub.files[repo][name]
                etag = self.hub.stated.get(name, hashlib.sha256(body).hexdigest())
                commit = COMMIT if revision == "main" else revision
                headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}
                self.send(name, body, headers | {"X-Linked-Size": str(len(body))})
        elif found := re.fullmatch(r"api/(?:models/|(datasets/))([^/]+/[^/]+)/(tree|revision)/([^/]+)(?:/.*)?", path):
            repo = f"{found[1] or ''}{found[2]}"
            if repo not in self.hub.files:
                self.missing("RepoNotFound")
            elif found[3] == "revision":
                self.reply_json({"id": found[2], "sha": COMMIT, "siblings": []})
            else:
                self.reply_json([self.entry(*item) for item in self.hub.files[repo].items()])
        elif path == "api/whoami-v2":
            self.reply_json({"type": "user", "name": "owner"})
        else:
            self.missing("RepoNotFound")

    def entry(self, name, body):
        sha256 = self.hub.stated.get(name, hashlib.sha256(body).hexdigest())
        lfs = {"oid": sha256, "size": len(body), "pointerSize": 130}
        return {"type": "file", "oid": sha256[:40], "size": len(body), "path": name, "lfs": lfs}

    def send(self, name, body, headers):
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = headers | {"Accept-Ranges": "bytes"}
        cut = self.command == "GET" and self.hub.broken[name] > 0
        if cut:
            self.hub.broken[name] -= 1
        if start:
            first = int(start[1])
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self.reply(206, body[first:], headers, cut)
        else:
            self.reply(200, body, headers, cut)

    def do_POST(self):
        path = unquote(urlparse(self.path).path).lstrip("/")
        self.hub.requests.append((self.command, path, ""))
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.reply_json({"error": "no token"}, 401)
        elif path == "api/repos/create":
            asked = json.loads(content)
            repo = f"{asked.get('organization', 'owner')}/{asked['name']}"
            self.hub.files.setdefault(repo, {})
            self.reply_json({"url": f"{self.hub.url}/{repo}", "id": repo})
        elif path == "api/validate-yaml":
            self.reply_json({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(content)["files"]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply_json({"files": [{"path": file["path"], **how} for file in files]})
        elif found := re.fullmatch(r"api/models/([^/]+/[^/]+)/commit/main", path):
            for line in content.decode().splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.hub.files[found[1]][part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            url = f"{self.hub.url}/{found[1]}/commit/{COMMIT}"
            self.reply_json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self.reply_json({"error": path}, 404)


@contextmanager
def serve():
    """Run a hub in a thread."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
