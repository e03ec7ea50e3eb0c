"""A stand-in on loopback for the parts of a hub's HTTP interface by which a folder is pushed and got."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "c0ffee" + 34 * "0"


class Hub(ThreadingHTTPServer):
    """Holds the files of one commit of every repository; `with Hub() as hub: hub.address`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *words: object) -> None:
        pass

    def answer(self, content: bytes | dict | list, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlparse(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault(repository, {})
            return self.answer({"url": f"{self.server.address}/{repository}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            return self.answer({"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]})
        for line in body.decode().splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                self.server.repositories[repository][said["value"]["path"]] = base64.b64decode(said["value"]["content"])
        return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.address}/{repository}/commit/{COMMIT}"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = unquote(urlparse(self.path).path).strip("/").split("/")
        repository = "/".join(words[2:4] if words[0] == "api" else words[:2])
        files = self.server.repositories.get(repository)
        if files is None or (words[0] == "api" and "revision" in words and words[-1] not in ("main", COMMIT)):
            return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound" if files is None else "RevisionNotFound")
        if words[0] == "api" and "tree" in words:
            found = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()} for name, content in files.items()]
            return self.answer(found, Content_Type="application/json")
        if words[0] == "api":
            return self.answer({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "tags": [],
                                "downloads": 0, "likes": 0, "private": False})  # fmt: skip
        content = files["/".join(words[4:])]
        return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
