"""Downloads against a server of our own: whole, broken off and resumed, wrong, refused, offline."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edgepose import EdgePoseError
from edgepose.download import download

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; breaks off where the server says so."""

    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        if self.path == "/missing.pth":
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if self.headers.get("If-Range") != self.server.tag:
            start = 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        stop = self.server.break_after.pop() if self.server.break_after else len(CONTENT)
        self.wfile.write(CONTENT[start:stop])
        self.close_connection = True

    def log_message(self, *_args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ranges, server.break_after, server.tag = [], [], '"one"'
        server.url = f"http://127.0.0.1:{server.server_port}/model.pth"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_download_is_checked_and_its_hash_recorded(server, tmp_path):
    seen = []
    path = download(server.url, tmp_path / "new", SHA256, lambda *done: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert (tmp_path / "new" / "model.pth.sha256").read_text() == f"{SHA256}  model.pth\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.pth", "model.pth.sha256"]
    download(server.url, tmp_path / "new", SHA256)
    assert len(server.ranges) == 1  # it is there already


def test_a_broken_download_is_continued(server, tmp_path):
    server.break_after.append(300_000)
    with pytest.raises(EdgePoseError, match=r"model.pth: cannot be reached \(broke off after 300,000 of 512,000 bytes"):
        download(server.url, tmp_path)
    assert not (tmp_path / "model.pth").exists()
    assert download(server.url, tmp_path, SHA256).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_a_file_that_changed_in_between_is_fetched_anew(server, tmp_path):
    server.break_after.append(300_000)
    with pytest.raises(EdgePoseError):
        download(server.url, tmp_path)
    (tmp_path / "model.pth.part").write_bytes(b"old" * 100_000)
    server.tag = '"two"'
    assert download(server.url, tmp_path, SHA256).read_bytes() == CONTENT


def test_a_leftover_of_unknown_origin_is_thrown_away(server, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(b"x" * 1000)
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_leftover_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "model.pth.part.etag").write_text(server.tag)
    assert download(server.url, tmp_path, SHA256).read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(EdgePoseError, match=r"SHA-256 .*, expected 000000000000: not the file of"):
        download(server.url, tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_since_its_hash_was_recorded(server, tmp_path):
    download(server.url, tmp_path)
    (tmp_path / "model.pth").write_bytes(b"changed")
    with pytest.raises(EdgePoseError, match=r"model.pth: SHA-256 .*: not the file of"):
        download(server.url, tmp_path)


def test_an_answer_that_is_no_file(server, tmp_path):
    with pytest.raises(EdgePoseError, match="the server answered 404 Not Found: try later"):
        download(server.url.replace("model", "missing"), tmp_path)


def test_offline(tmp_path):
    with pytest.raises(EdgePoseError, match=r"cannot be reached \(.*\): go online, or copy the file to .*model.pth"):
        download("http://127.0.0.1:9/model.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []
