"""A bucket of Google Cloud Storage in memory, for Orbax, TensorStore and epath as they are.

TensorStore speaks to a server on this machine, by the JSON API; epath to a file system of fsspec
in the place of gcsfs. Both see the same objects. As in a real bucket, an object appears whole,
nothing is appended to, and there are no directories: only names with slashes.
"""

import contextlib
import io
import json
import sys
import threading
import types
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
from etils.epath import backend
from fsspec.registry import _registry
from orbax.checkpoint._src.path import gcs_utils

BUCKET = "bucket"


class Objects(dict):
    """{name: (content, generation)} of one bucket; `refuse` makes it refuse writes."""

    refuse = False
    written: list[str]

    def __init__(self):
        super().__init__()
        self.lock, self.generation, self.written = threading.RLock(), 0, []

    def put(self, name: str, content: bytes) -> None:
        with self.lock:
            if self.refuse:
                raise OSError("the quota is used up")
            self.generation += 1
            self[name] = content, self.generation
            self.written.append(name)

    def below(self, prefix: str) -> list[str]:
        with self.lock:
            return sorted(name for name in self if name.startswith(prefix))


def served(objects: Objects) -> type[BaseHTTPRequestHandler]:
    """Returns the server's answers, for what TensorStore asks."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(
            self, code: int, content: bytes = b"{}", generation: int = 0, part: str = ""
        ) -> None:
            self.send_response(code)
            if part:
                self.send_header("Content-Range", part)
            self.send_header("Content-Length", str(len(content)))
            if generation:
                self.send_header("x-goog-generation", str(generation))
            self.end_headers()
            self.wfile.write(content)

        def asked(self) -> tuple[str, dict[str, str]]:
            url = urllib.parse.urlparse(self.path)
            query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
            name = url.path.partition("/o/")[2]
            return urllib.parse.unquote(name), query

        def stale(self, name: str, query: dict[str, str]) -> bool:
            wanted = query.get("ifGenerationMatch")
            return wanted is not None and int(wanted) != objects.get(name, (b"", 0))[1]

        def do_GET(self):
            name, query = self.asked()
            if not name:
                low, high = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
                found = [n for n in objects.below("") if low <= n < high]
                items = [{"name": n, "size": str(len(objects[n][0]))} for n in found]
                self.answer(200, json.dumps({"items": items}).encode())
            elif name not in objects:
                self.answer(404)
            else:
                content, generation = objects[name]
                code, part, ranged = 200, "", self.headers.get("Range", "")
                if ranged:
                    size = len(content)
                    low, _, high = ranged.removeprefix("bytes=").partition("-")
                    first, last = int(low), min(int(high or size - 1), size - 1)
                    content = content[first : last + 1]
                    code, part = 206, f"bytes {first}-{last}/{size}"
                self.answer(code, content, generation, part)

        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            _, query = self.asked()
            name = query["name"]
            with objects.lock:
                if self.stale(name, query):
                    self.answer(412)
                    return
                objects.put(name, content)
                generation = objects[name][1]
            self.answer(200, json.dumps({"name": name, "generation": str(generation)}).encode())

        def do_DELETE(self):
            name, query = self.asked()
            with objects.lock:
                code = 412 if self.stale(name, query) else 204 if objects.pop(name, None) else 404
            self.answer(code, b"")

    return Handler


def file_system(objects: Objects) -> type[fsspec.AbstractFileSystem]:
    """Returns what takes the place of gcsfs."""

    class Bucket(fsspec.AbstractFileSystem):
        protocol = ("gcs", "gs")
        cachable = False

        def _key(self, path: str) -> str:
            return self._strip_protocol(path).removeprefix(BUCKET).strip("/")

        def ls(self, path, detail=True, **_):
            key = self._key(path)
            prefix = f"{key}/" if key else ""
            found: dict[str, dict] = {}
            for name in objects.below(prefix):
                head, slash, _rest = name.removeprefix(prefix).partition("/")
                kind = "directory" if slash else "file"
                one = f"{BUCKET}/{prefix}{head}"
                size = 0 if slash else len(objects[name][0])
                found[one] = {"name": one, "type": kind, "size": size}
            if key in objects:
                size = len(objects[key][0])
                found[key] = {"name": f"{BUCKET}/{key}", "type": "file", "size": size}
            if not found:
                raise FileNotFoundError(path)
            return list(found.values()) if detail else list(found)

        def info(self, path, **_):
            key = self._key(path)
            if key in objects:
                size = len(objects[key][0])
                return {"name": f"{BUCKET}/{key}", "type": "file", "size": size}
            if not key or objects.below(f"{key}/"):
                return {"name": f"{BUCKET}/{key}", "type": "directory", "size": 0}
            raise FileNotFoundError(path)

        def makedirs(self, path, exist_ok=False):
            pass

        def mkdir(self, path, create_parents=True, **_):
            pass

        def rmdir(self, path):
            pass

        def rm_file(self, path):
            if objects.pop(self._key(path), None) is None:
                raise FileNotFoundError(path)

        def rm(self, path, recursive=False, maxdepth=None):
            names = objects.below(f"{self._key(path)}/") if recursive else []
            for name in [*names, *([self._key(path)] if self._key(path) in objects else [])]:
                objects.pop(name)

        def rename(self, *_, **__):
            raise AssertionError("nothing is renamed in a bucket")

        mv = rename

        def open(self, path, mode="rb", **_):
            assert "a" not in mode and "+" not in mode, "nothing is appended to in a bucket"
            key = self._key(path)
            if "r" in mode:
                if key not in objects:
                    raise FileNotFoundError(path)
                content = io.BytesIO(objects[key][0])
                return content if "b" in mode else io.TextIOWrapper(content, "utf-8")

            class Written(io.BytesIO):
                def close(self):
                    if not self.closed:
                        objects.put(key, self.getvalue())
                    super().close()

            return Written() if "b" in mode else io.TextIOWrapper(Written(), "utf-8")

    return Bucket


@contextlib.contextmanager
def bucket(monkeypatch) -> Iterator[Objects]:
    """Puts a bucket in memory in the place of Google's; yields its objects."""
    objects = Objects()
    server = ThreadingHTTPServer(("127.0.0.1", 0), served(objects))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    monkeypatch.setitem(_registry, "gcs", file_system(objects))
    backend.fsspec_backend._get_filesystem.cache_clear()
    # The client library, of which Orbax asks for the kind of a bucket.
    client = types.SimpleNamespace(get_bucket=lambda name: types.SimpleNamespace(name=name))
    storage, cloud = types.ModuleType("google.cloud.storage"), types.ModuleType("google.cloud")
    storage.Client = lambda: client
    cloud.storage = storage
    monkeypatch.setitem(sys.modules, "google.cloud", cloud)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", storage)
    gcs_utils.get_bucket.cache_clear()
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        backend.fsspec_backend._get_filesystem.cache_clear()
        gcs_utils.get_bucket.cache_clear()
