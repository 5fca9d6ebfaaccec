"""Local stand-in of the Hub's HTTP interface: repositories with branches, commits, LFS uploads and downloads."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

_LFS_SIZE = 2_000  # bytes; larger files are uploaded by the LFS protocol, as on the Hub


class HubServer(ThreadingHTTPServer):
    """Server with its repositories.

    Attributes:
        branches: Content of each file by path, by branch and name of the repository.
        blobs: Uploaded LFS objects by SHA-256.
        messages: Commit messages, in order.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.messages: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return commit and files of a branch or commit."""
        for (repository, branch), files in self.branches.items():
            commit = commit_of(repository, branch, files)
            if repository == name and revision in (branch, commit):
                return commit, files
        return None


def commit_of(name: str, branch: str, files: dict[str, bytes]) -> str:
    """Return the hash of the files of a branch, of the length of a Git commit."""
    digest = hashlib.sha1(f"{name} {branch}".encode())
    for path, content in sorted(files.items()):
        digest.update(path.encode() + content)
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, body = unquote(self.path.partition("?")[0]), self.body()
        branches = self.server.branches
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}"
            if "Bearer token" not in self.headers.get("Authorization", ""):
                return self.reply(401, {"error": "Invalid credentials"})
            if (name, "main") in branches:
                return self.reply(409, {"error": "exists", "url": f"{self.server.url}/{name}"})
            branches[name, "main"] = {}
            return self.reply(200, {"url": f"{self.server.url}/{name}", "name": name})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            if match.groups() in branches:
                return self.reply(409, {"error": "exists"})
            branches[match[1], match[2]] = dict(branches[match[1], "main"])
            return self.reply(200, {})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": file["path"], "uploadMode": modes[file["size"] > _LFS_SIZE], "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            files = branches[match[1], match[2]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.server.messages.append(value["summary"])
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                else:
                    files[value["path"]] = self.server.blobs[value["oid"]]
            commit = commit_of(match[1], match[2], files)
            url = f"{self.server.url}/{match[1]}/commit/{commit}"
            return self.reply(200, {"success": True, "commitOid": commit, "commitUrl": url})
        return self.reply(404, {"error": f"unknown: {path}"})

    def do_PUT(self) -> None:
        content = self.body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.blobs[oid] = content
        self.reply(200, {})

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            found = self.server.find(match[1], match[2])
            if found is None:
                return self.reply(404, {}, X_Error_Code="RevisionNotFound")
            commit, files = found
            if match[3] not in files:
                return self.reply(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            content = files[match[3]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.reply(200, content, ETag=etag, X_Repo_Commit=commit)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            found = self.server.find(match[1], match[2] or "main")
            if found is None:
                return self.reply(404, {}, X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": name} for name in found[1]]
            return self.reply(200, {"id": match[1], "sha": found[0], "siblings": siblings})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", path):
            return self.reply(404, {}, X_Error_Code="EntryNotFound")
        return self.reply(404, {"error": f"unknown: {path}"})

    do_HEAD = do_GET


@contextmanager
def serve_hub() -> Generator[HubServer]:
    """Run a server in a thread, in a `with` block."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
