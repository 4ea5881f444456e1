"""Shared by the tests of streams: documents, files of them, and a hub on loopback."""

import gzip
import hashlib
import http.server
import json
import re
import tempfile
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np

DOCUMENTS = [f"document {n}: " + "word " * (n * 7 % 23) + "." for n in range(600)]


def lines(documents, **more):
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in documents).encode()


@cache
def folder():
    """A folder with DOCUMENTS in four files of three kinds, no optional package needed. It lasts as long as this process."""
    made = tempfile.TemporaryDirectory()
    path = Path(made.name)
    (path / "a.jsonl").write_bytes(lines(DOCUMENTS[:200]))
    two = gzip.compress(lines(DOCUMENTS[200:300], url="x")), gzip.compress(lines(DOCUMENTS[300:350]))
    (path / "b.jsonl.gz").write_bytes(b"".join(two))
    (path / "c.json.gz").write_bytes(gzip.compress(lines(DOCUMENTS[350:400])))
    (path / "d.jsonl").write_bytes(lines(DOCUMENTS[400:]))
    folder.kept = made
    return path


def equal(pair, other):
    return all(np.array_equal(a, b) and a.dtype == b.dtype == np.int64 for a, b in zip(pair, other))


class Hub(http.server.BaseHTTPRequestHandler):
    """What `datasets` asks of huggingface.co for a public data set, answered from `server.files`."""

    protocol_version = "HTTP/1.1"
    commit = "c0ffee" + "0" * 34

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def file(self, name):
        body = self.server.files[name]
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X_Repo_Commit": self.commit, "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, body, **headers)
        start, stop = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        return self.answer(206, body[start : stop + 1], Content_Range=f"bytes {start}-{stop}/{len(body)}", **headers)

    def entries(self, under):
        files = [{"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                 for n, b in self.server.files.items() if n.startswith(under)]
        folders = {n.split("/")[0] for n in self.server.files if "/" in n} if not under else ()
        return [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in sorted(folders)] + files

    def do_GET(self):
        url, name = urlparse(self.path), self.server.name
        path = unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(rf"/datasets/{name}/resolve/\w+/(.*)", path):
            if found[1] in self.server.files:
                return self.file(found[1])
        elif re.fullmatch(rf"/api/datasets/{name}(/revision/\w+)?", path):
            return self.answer_json({"id": name, "sha": self.commit, "private": False, "gated": False, "disabled": False,
                                     "tags": [], "downloads": 0, "likes": 0, "lastModified": "2024-01-01T00:00:00.000Z",
                                     "siblings": [{"rfilename": n} for n in self.server.files]})
        elif found := re.fullmatch(rf"/api/datasets/{name}/tree/\w+(?:/(.*))?", path):
            return self.answer_json(self.entries(found[1] + "/" if found[1] else ""))
        elif re.fullmatch(rf"/api/datasets/{name}/paths-info/\w+", path):
            wanted = parse_qs(body.decode()).get("paths", [])
            return self.answer_json([entry for entry in self.entries("") if entry["path"] in wanted])
        return self.answer(200 if path == "/" else 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_POST = do_GET


@contextmanager
def hub(name, files):
    """A hub with one data set; yields the server, with `url` and `asked`, the requests so far."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.name, server.files, server.asked, server.daemon_threads = name, files, [], True
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
