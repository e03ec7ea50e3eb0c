"""Servers on loopback that behave as real ones do on bad days."""

import contextlib
import hashlib
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What an HTTP server holds, and how it behaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes after which the next answers are cut
    statuses: list[int] = field(default_factory=list)  # statuses of the next answers
    always: int | None = None  # status of every answer
    lie: int | None = None  # Content-Length to claim
    log: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    address: str = ""


@contextlib.contextmanager
def http_site(**behaviour) -> Iterator[Site]:
    """A real HTTP server on loopback for the time of the block."""
    site = Site(**behaviour)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            site.log.append((self.command, path, self.headers.get("Range")))
            status = site.always or (site.statuses.pop(0) if site.statuses else 200)
            content = site.files.get(path)
            if status == 200 and content is None:
                status = 404
            if status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            assert content is not None
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            asked = self.headers.get("Range")
            start = 0
            if asked and site.ranges and self.headers.get("If-Range", tag) == tag:
                start = int(asked.removeprefix("bytes=").split("-")[0])
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            part = content[start:]
            self.send_header("Content-Length", str(site.lie if site.lie is not None else len(part)))
            self.send_header("ETag", tag)
            self.end_headers()
            if not body:
                return
            if site.cut_after:
                part = part[: site.cut_after.pop(0)]
                self.close_connection = True
            if site.lie is not None:
                self.close_connection = True
            with contextlib.suppress(ConnectionError):
                self.wfile.write(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def s3_site(buckets: dict[str, dict[str, bytes]], public: bool | Collection[str] = True, part: int | None = None) -> Iterator[str]:
    """moto's S3 API on loopback with some buckets in it; all, none or those named are readable without keys. Yields the endpoint's address.

    With `part`, files are uploaded in parts of so many bytes (5 MiB is the least).
    """
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="writer", aws_secret_access_key="writer")
    try:
        for bucket, files in buckets.items():
            anybody = public if isinstance(public, bool) else bucket in public
            client.create_bucket(Bucket=bucket)
            for key, content in files.items():
                rights = "public-read" if anybody else "private"
                if part is None:
                    client.put_object(Bucket=bucket, Key=key, Body=content, ACL=rights)
                    continue
                upload = {"Bucket": bucket, "Key": key, "UploadId": client.create_multipart_upload(Bucket=bucket, Key=key, ACL=rights)["UploadId"]}
                parts = [
                    {"PartNumber": number, "ETag": client.upload_part(**upload, PartNumber=number, Body=content[start : start + part])["ETag"]}
                    for number, start in enumerate(range(0, len(content), part), 1)
                ]
                client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        yield endpoint
    finally:
        server.stop()
