"""An S3 server that costs next to nothing: what a run's uploader is measured against.

    python light_s3.py PORT

moto's takes 27 CPU-seconds per GiB, seven times what the uploader does, and on a machine of two cores
there is no third for it. This one answers the requests that `pyarrow.fs` makes, checks no signature and
computes no checksum. It keeps a large object until it has been read back once, then only its size.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

KEPT_BYTES = 1 << 20
"""Objects up to this size stay."""
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Stored:
    """An object: its parts in order, None once they were read."""

    def __init__(self, parts: list[memoryview]) -> None:
        self.parts: list[memoryview] | None = parts
        self.size = sum(len(part) for part in parts)
        self.etag = f'"{uuid.uuid4().hex}"'
        self.time_s = time.time()

    def read(self, start: int, stop: int) -> list[memoryview]:
        """Bytes `start` to `stop`; the last ones of a large object let go of it."""
        assert self.parts is not None
        found, at = [], 0
        for part in self.parts:
            low, high = max(start - at, 0), min(stop - at, len(part))
            if low < high:
                found.append(part[low:high])
            at += len(part)
        if stop == self.size > KEPT_BYTES:
            self.parts = None
        return found


class Store:
    """Buckets, objects by bucket/key, uploads that are not complete."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.buckets: set[str] = set()
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, dict[int, list[memoryview]]] = {}


STORE = Store()


def decoded(body: memoryview) -> list[memoryview]:
    """The bytes of an aws-chunked body: `hex size;signature CRLF bytes CRLF`, until a size of 0."""
    found, at = [], 0
    while True:
        end = bytes(body[at : at + 200]).index(b"\r\n") + at
        size = int(bytes(body[at:end]).split(b";")[0], 16)
        if size == 0:
            return found
        found.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def do_PUT(self) -> None:
        body = self._body()
        with STORE.lock:
            if not self._key:
                STORE.buckets.add(self._bucket)
            elif "uploadId" in self._query:
                upload = STORE.uploads[self._query["uploadId"]]
                upload[int(self._query["partNumber"])] = body
            else:
                STORE.objects[self._name] = Stored(body)
        self._answer(200, ETag=f'"{uuid.uuid4().hex}"')

    def do_POST(self) -> None:
        body = self._body()
        with STORE.lock:
            if "uploads" in self._query:
                upload = uuid.uuid4().hex
                STORE.uploads[upload] = {}
                return self._answer(
                    200,
                    f'<InitiateMultipartUploadResult xmlns="{_NAMESPACE}"><Bucket>{self._bucket}</Bucket>'
                    f"<Key>{escape(self._key)}</Key><UploadId>{upload}</UploadId>"
                    "</InitiateMultipartUploadResult>",
                )
            if "uploadId" in self._query:
                parts = STORE.uploads.pop(self._query["uploadId"])
                made = STORE.objects[self._name] = Stored(
                    [piece for n in sorted(parts) for piece in parts[n]]
                )
                return self._answer(
                    200,
                    f'<CompleteMultipartUploadResult xmlns="{_NAMESPACE}"><Bucket>{self._bucket}</Bucket>'
                    f"<Key>{escape(self._key)}</Key><ETag>{escape(made.etag)}</ETag>"
                    "</CompleteMultipartUploadResult>",
                )
            for key in ElementTree.fromstring(b"".join(body)).iter():
                if key.tag.endswith("Key"):
                    STORE.objects.pop(f"{self._bucket}/{key.text}", None)
        self._answer(200, f'<DeleteResult xmlns="{_NAMESPACE}"></DeleteResult>')

    def do_DELETE(self) -> None:
        with STORE.lock:
            STORE.objects.pop(self._name, None)
            STORE.uploads.pop(self._query.get("uploadId", ""), None)
        self._answer(204)

    def do_HEAD(self) -> None:
        stored = STORE.objects.get(self._name)
        if stored is None and (self._key or self._bucket not in STORE.buckets):
            return self._answer(404)
        self._answer(200, length=stored.size if stored else 0, **self._about(stored))

    def do_GET(self) -> None:
        if not self._key:
            return self._answer(200, self._listing())
        with STORE.lock:
            stored = STORE.objects.get(self._name)
            start, stop = 0, stored.size if stored else 0
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or stop) + 1, stop)
            pieces = stored.read(start, stop) if stored and stored.parts is not None else None
        if stored is None or pieces is None:
            return self._answer(404, "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
        about = self._about(stored)
        if wanted:
            about["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
        self._answer(206 if wanted else 200, length=stop - start, **about)
        for piece in pieces:
            self.wfile.write(piece)

    def handle_expect_100(self) -> bool:
        went_on = super().handle_expect_100()
        self.wfile.flush()
        return went_on

    def log_message(self, *_: object) -> None:
        """Nothing."""

    @property
    def _query(self) -> dict[str, str]:
        found = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in found.items()}

    @property
    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    @property
    def _bucket(self) -> str:
        return self._name.partition("/")[0]

    @property
    def _key(self) -> str:
        return self._name.partition("/")[2]

    def _body(self) -> list[memoryview]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            whole = self._chunks(int(self.headers["X-Amz-Decoded-Content-Length"]))
        else:
            whole = memoryview(bytearray(int(self.headers.get("Content-Length") or 0)))
            self._read_into(whole)
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            return decoded(whole)
        return [whole]

    def _chunks(self, expected: int) -> memoryview:
        """A body in chunks of HTTP: `hex size CRLF bytes CRLF`, until a size of 0."""
        whole, at = memoryview(bytearray(expected + (expected >> 6) + (1 << 16))), 0
        while size := int(self.rfile.readline().split(b";")[0], 16):
            self._read_into(whole[at : at + size])
            at += size
            self.rfile.readline()
        self.rfile.readline()
        return whole[:at]

    def _read_into(self, target: memoryview) -> None:
        at = 0
        while at < len(target):
            count = self.rfile.readinto(target[at:])  # type: ignore[attr-defined]
            if not count:
                raise ConnectionError("it ended within a body")
            at += count

    def _listing(self) -> str:
        prefix = self._query.get("prefix", "")
        with STORE.lock:
            found = {
                name.partition("/")[2]: stored
                for name, stored in sorted(STORE.objects.items())
                if name.startswith(f"{self._bucket}/{prefix}")
            }
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{stored.size}</Size><ETag>{escape(stored.etag)}</ETag>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(stored.time_s))}"
            "</LastModified></Contents>"
            for key, stored in found.items()
        )
        return (
            f'<ListBucketResult xmlns="{_NAMESPACE}"><Name>{self._bucket}</Name>'
            f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount><MaxKeys>1000000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )

    def _about(self, stored: Stored | None) -> dict[str, str]:
        if stored is None:
            return {}
        return {"ETag": stored.etag, "Last-Modified": formatdate(stored.time_s, usegmt=True)}

    def _answer(
        self, status: int, text: str = "", *, length: int | None = None, **headers: str
    ) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if text:
            self.send_header("Content-Type", "application/xml")
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
