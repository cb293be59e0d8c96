"""A Hugging Face Hub on loopback: what huggingface_hub asks for to make repositories, push to them and pull from them.

Models only, all in memory, large files by LFS: clients need HF_HUB_DISABLE_XET=1. `point_hub_at` turns a running process
to it; another process wants HF_ENDPOINT.

    with Hub({"hf_ada": "ada"}) as hub:
        hub.fail("PUT", "/lfs/", times=6)
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (
    ".safetensors",
    ".bin",
    ".h5",
    ".hdf5",
    ".model",
    ".png",
)  # goes by LFS, and so does what is longer than this:
LARGE_BYTES = 10_000_000
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class File:
    """A file of a commit."""

    data: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What tells whether a file has changed: git's SHA-1, or SHA-256 for LFS."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Commit:
    """A state of a repository."""

    sha: str
    parent: str | None
    title: str
    files: dict[str, File]


@dataclass
class Repository:
    """Commits, and branches and tags that point to them."""

    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """The only user who may write."""
        return self.name.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or a hash."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    def add(self, branch: str, title: str, files: dict[str, File]) -> Commit:
        """Put a commit on a branch; `files` are all of it."""
        parent = self.branches.get(branch)
        sha = hashlib.sha1(f"{self.name} {parent} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, files)
        self.branches[branch] = sha
        return self.commits[sha]

    def history(self, branch: str = "main") -> list[Commit]:
        """The commits of a branch, newest first."""
        found, sha = [], self.branches[branch]
        while sha:
            found.append(self.commits[sha])
            sha = found[-1].parent
        return found


class Hub:
    """The server; a context manager that listens in threads of its own.

    Args:
        users: {token: user name}.

    Attributes:
        endpoint: what HF_ENDPOINT should be.
        repositories: {"user/name": Repository}.
        objects: {SHA-256: bytes}, large files that have arrived, whether or not a commit names them.
        requests: "METHOD /path" of all that came, in order.
        before: functions of (method, path) that are called before each request; a number is sent back as its status.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.before: list[Callable[[str, str], int | None]] = []
        self.lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, part: str, status: int = 500, after: int = 0, times: int = 1) -> None:
        """Answer requests with an error.

        Args:
            method: of the requests.
            part: of their paths.
            status: of the answer.
            after: so many such requests go through before.
            times: so many fail.
        """
        seen = 0

        def fault(found: str, path: str) -> int | None:
            nonlocal seen
            with self.lock:
                seen += found == method and part in path
                return status if found == method and part in path and after < seen <= after + times else None

        self.before.append(fault)


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: for people.
        code: X-Error-Code, by which huggingface_hub chooses its exception.
    """

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    hub: Hub

    def log_message(self, *_):
        """Keep quiet."""

    def answer(self):
        """Find the route of a request and run it."""
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        self.body = self._read()
        try:
            for before in list(self.hub.before):
                if status := before(self.command, path):
                    self.send(b"<html>Bad gateway</html>", status)  # what stands before a Hub knows no JSON
                    return
            for methods, pattern, route in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in methods.split():
                    route(
                        self, **{name: value and unquote(value) for name, value in found.groupdict().items()}
                    )
                    return
            raise Refusal(404, f"hub_server.py has no {self.command} {path}")
        except Refusal as error:
            headers = {"X-Error-Message": error.message} | (
                {"X-Error-Code": error.code} if error.code else {}
            )
            self.send({"error": error.message}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, answer, status: int = 200, headers: dict | None = None):
        """Send bytes, or something as JSON."""
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def user(self) -> str | None:
        """Whose token came with the request."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users[token]

    def repository(self, name: str, write: bool = False) -> Repository:
        """A repository that the user may see, or write to."""
        user, found = self.user(), self.hub.repositories.get(name)
        if found is None or (found.private and user != found.owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != found.owner:
            raise Refusal(403, "You don't have the rights to write to this repository")
        return found

    def commit(self, name: str, revision: str) -> Commit:
        """A commit of a repository that the user may see."""
        found = self.repository(name).find(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found


def whoami(request: Handler):
    if request.user() is None:
        raise Refusal(401, "Invalid username or password.")
    request.send({"type": "user", "name": request.user(), "orgs": [], "auth": {"type": "access_token"}})


def create(request: Handler):
    wanted, user = json.loads(request.body), request.user()
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    name = f"{wanted.get('organization') or user}/{wanted['name']}"
    answer = {"url": f"{request.hub.endpoint}/{name}", "name": name}
    with request.hub.lock:
        if name.split("/")[0] != user:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {name}")
        if name in request.hub.repositories:
            request.send({"error": "You already created this model repo", **answer}, 409)
            return
        made = Repository(name, private=wanted.get("visibility") == "private")
        made.add(
            "main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs -text\n", False)}
        )
        request.hub.repositories[name] = made
    request.send(answer)


def validate_card(request: Handler):
    found = re.match(r"---\n(.*?)\n---\n", json.loads(request.body)["content"], re.S)
    if found is None:
        request.send({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        return
    try:
        yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        request.send({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return
    request.send({"errors": [], "warnings": []})


def info(request: Handler, repo: str, revision: str | None = None):
    found, commit = request.repository(repo), request.commit(repo, revision or "main")
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    facts = {"id": repo, "modelId": repo, "author": found.owner, "sha": commit.sha, "private": found.private}
    request.send(
        {**facts, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings, "lastModified": DATE}
    )


def describe(path: str, file: File) -> dict:
    found = {"type": "file", "path": path, "size": len(file.data), "oid": file.oid}
    return found | (
        {"lfs": {"oid": file.oid, "size": len(file.data), "pointerSize": 130}} if file.large else {}
    )


def tree(request: Handler, repo: str, revision: str, folder: str | None = None):
    files = request.commit(repo, revision).files
    start = f"{folder.strip('/')}/" if folder else ""
    below = {path: file for path, file in files.items() if path.startswith(start)}
    if folder and not below:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    deep = "recursive=true" in urlsplit(request.path).query.lower()
    rows, folders = [], set()
    for path, file in sorted(below.items()):
        first, _, rest = path.removeprefix(start).partition("/")
        if rest and first not in folders:
            folders.add(first)
            rows.append({"type": "directory", "path": start + first, "oid": "0" * 40, "size": 0})
        if deep or not rest:
            rows.append(describe(path, file))
    request.send(rows)


def paths_info(request: Handler, repo: str, revision: str):
    files, text = request.commit(repo, revision).files, request.body.decode()
    paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
    request.send([describe(path, files[path]) for path in paths if path in files])


def references(request: Handler, repo: str):
    found = request.repository(repo)
    rows = {
        kind: [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in some.items()
        ]
        for kind, some in (("branches", found.branches), ("tags", found.tags))
    }
    request.send({**rows, "converts": []})


def commits(request: Handler, repo: str, revision: str):
    found = request.repository(repo).history(revision)
    request.send(
        [{"id": one.sha, "title": one.title, "message": "", "authors": [], "date": DATE} for one in found]
    )


def branch(request: Handler, repo: str, name: str):
    found = request.repository(repo, write=True)
    start = json.loads(request.body or b"{}").get("startingPoint", "main")
    if name in found.branches:
        raise Refusal(409, "Reference already exists")
    found.branches[name] = request.commit(repo, start).sha
    request.send({})


def tag(request: Handler, repo: str, revision: str):
    found = request.repository(repo, write=True)
    found.tags[json.loads(request.body)["tag"]] = request.commit(repo, revision).sha
    request.send({})


def preupload(request: Handler, repo: str, revision: str):
    request.repository(repo, write=True)
    files, rows = request.commit(repo, revision).files, []
    for wanted in json.loads(request.body)["files"]:
        path, old = wanted["path"], files.get(wanted["path"])
        mode = "lfs" if path.endswith(LARGE) or wanted["size"] > LARGE_BYTES else "regular"
        row = {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": old.oid if old else None}
        rows.append(row)
    request.send({"files": rows})


def lfs_batch(request: Handler, repo: str):
    request.repository(repo, write=True)
    rows = []
    for wanted in json.loads(request.body)["objects"]:
        row = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in request.hub.objects:
            upload, verify = (f"{request.hub.endpoint}/lfs/{path}" for path in (wanted["oid"], "verify"))
            row["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        rows.append(row)
    request.send({"transfer": "basic", "objects": rows})


def lfs_upload(request: Handler, oid: str):
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refusal(400, "the content does not have this SHA-256")
    request.hub.objects[oid] = request.body
    request.send({})


def lfs_verify(request: Handler):
    wanted = json.loads(request.body)
    if len(request.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refusal(404, "the object has not arrived")
    request.send({})


def make_commit(request: Handler, repo: str, revision: str):
    found = request.repository(repo, write=True)
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    with request.hub.lock:
        if revision not in found.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if header.get("parentCommit", found.branches[revision]) != found.branches[revision]:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(found.find(revision).files)
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif kind == "lfsFile":
                if value["oid"] not in request.hub.objects:
                    raise Refusal(400, f"{value['path']} has not been uploaded")
                files[value["path"]] = File(request.hub.objects[value["oid"]], True)
            elif kind == "deletedFile":
                del files[value["path"]]
        made = found.add(revision, header["summary"], files)
    request.send({"commitOid": made.sha, "commitUrl": f"{request.hub.endpoint}/{repo}/commit/{made.sha}"})


def resolve(request: Handler, repo: str, revision: str, path: str):
    commit = request.commit(repo, revision)
    file, headers = commit.files.get(path), {"X-Repo-Commit": commit.sha}
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    headers |= {"ETag": f'"{file.oid}"', "Accept-Ranges": "none"}
    if file.large:
        headers |= {"X-Linked-Size": len(file.data), "X-Linked-Etag": f'"{file.oid}"'}
    request.send(file.data, headers=headers)


NAME, REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
MODEL = f"/api/models/{NAME}"
ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("GET", "/api/agent-harnesses", lambda request: request.send({})),
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate_card),
    ("GET", MODEL, info),
    ("GET", f"{MODEL}/revision/{REVISION}", info),
    ("GET", f"{MODEL}/tree/{REVISION}(?P<folder>/.*)?", tree),
    ("POST", f"{MODEL}/paths-info/{REVISION}", paths_info),
    ("GET", f"{MODEL}/refs", references),
    ("GET", f"{MODEL}/commits/{REVISION}", commits),
    ("POST", f"{MODEL}/branch/(?P<name>[^/]+)", branch),
    ("POST", f"{MODEL}/tag/{REVISION}", tag),
    ("POST", f"{MODEL}/preupload/{REVISION}", preupload),
    ("POST", f"{MODEL}/commit/{REVISION}", make_commit),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", lfs_batch),
    ("POST", "/lfs/verify", lfs_verify),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", lfs_upload),
    ("GET HEAD", f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", resolve),
]


def point_hub_at(endpoint: str, token: str | None, cache: str, patch) -> None:
    """Turn huggingface_hub, which has read the environment when it was imported, to a server.

    Args:
        endpoint: of the server.
        token: of the user; None for nobody.
        cache: folder for downloads.
        patch: pytest's `monkeypatch`.
    """
    from huggingface_hub import constants, hf_api

    values = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": cache,
        "HF_TOKEN_PATH": f"{cache}/token",
    }
    for name, value in values.items():
        patch.setattr(constants, name, value)
    patch.setattr(hf_api.api, "endpoint", endpoint)
    if transformers := sys.modules.get("transformers.utils.hub"):
        patch.setattr(transformers, "_hf_api", None, raising=False)  # it may remember another endpoint
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)
