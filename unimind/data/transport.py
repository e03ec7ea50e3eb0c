"""Files over HTTP(S) and S3 that resume after a cut, are verified, and appear under their name only when whole."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from unimind.data.sources.base import RemoteFile
from unimind.errors import InputError
from unimind.progress import say

PIECE = 1 << 16  # what a cut may cost
_BLOCK = 1 << 20
ATTEMPTS = 6  # in a row without a new byte
BACKOFF = 1.0  # seconds before the second attempt; doubles each time, at most a minute
TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
PUBLIC_BUCKETS = frozenset({"natural-scenes-dataset", "laion-fmri"})
FIGSHARE = "https://api.figshare.com/v2/articles"


class Denied(Exception):
    """The server knows us not, or not well enough (401, 403, or no keys at all)."""


class Missing(Exception):
    """The server has no such file."""


class Passing(Exception):
    """A failure that may not happen again: a cut, a busy server."""


@dataclass
class _Stream:
    """An open download: where it starts, how long the whole file is, and what names this version of it."""

    start: int
    total: int | None
    tag: str | None
    pieces: Iterator[bytes]
    md5: str | None = None  # of the file, or of its parts as S3 writes it (`verify`)
    part: int | None = None  # bytes of a part


def human(count: float) -> str:
    """A number of bytes for people, such as 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def resolve(file: RemoteFile, attempts: int = ATTEMPTS) -> RemoteFile:
    """Turn `figshare://ARTICLE/NAME` into the file's own address, with the size and MD5 that figshare publishes."""
    if not (file.address or "").startswith("figshare://"):
        return file
    import requests

    article, name = file.address.removeprefix("figshare://").split("/", 1)  # type: ignore[union-attr]
    for attempt in range(attempts):
        try:
            answer = requests.get(f"{FIGSHARE}/{article}/files", params={"page_size": 1000}, timeout=TIMEOUT)
            _refuse_status(answer.status_code, answer.reason)
            listed = {entry["name"]: entry for entry in answer.json()}
            break
        except (requests.RequestException, Passing) as error:
            if attempt + 1 == attempts:
                raise Passing(_plain(error)) from None
            _wait(attempt)
    if name not in listed:
        raise Missing(f"article {article} has no file {name}")
    entry = listed[name]
    return replace(file, address=entry["download_url"], bytes=entry.get("size"), md5=entry.get("computed_md5") or file.md5)


def size_of(file: RemoteFile, unreachable: set[str]) -> int | None:
    """Bytes of a remote file, as published or as its server says; None where neither is known.

    Servers that do not answer are added to `unreachable` and not asked again.
    """
    import requests
    from botocore.exceptions import BotoCoreError, ClientError

    host = _host(file)
    if file.bytes is not None or file.address is None or host in unreachable:
        return file.bytes
    try:
        file = resolve(file, attempts=1)
        if file.bytes is not None:
            return file.bytes
        if file.address.startswith("s3://"):  # type: ignore[union-attr]
            bucket, key = _bucket_and_key(file.address)  # type: ignore[arg-type]
            return int(_s3(bucket).head_object(Bucket=bucket, Key=key)["ContentLength"])
        answer = requests.head(file.address, allow_redirects=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})  # type: ignore[arg-type]
        return int(answer.headers["Content-Length"]) if answer.ok and "Content-Length" in answer.headers else None
    except (ClientError, Denied, Missing, KeyError):
        return None
    except (requests.RequestException, BotoCoreError, Passing):
        unreachable.add(host)
        return None


def download(file: RemoteFile, target: Path, access: str) -> None:
    """Get a file, continuing what an earlier attempt left, and put it at `target` when it is whole and right.

    Parameters
    ----------
    file : RemoteFile
        With an address.
    target : Path
        Until the file is whole it is called `<target>.part`.
    access : str
        Which agreement gives access and where to sign it, for who has none.

    Raises
    ------
    InputError
        Access denied, no such file, wrong size or checksum, no disk space, no permission, or no answer after all attempts.
    """
    name = file.path
    try:
        file = resolve(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(_part(target)):
            if not target.exists():
                _fill(file, target)
    except Denied as error:
        raise InputError(f"{name}: access denied by {_host(file)} ({error}); {access}") from None
    except Missing as error:
        raise InputError(f"{name}: {_host(file)} has no such file ({error}); check the data set's version and address") from None
    except Passing as error:
        raise InputError(f"{name}: {_host(file)} failed {ATTEMPTS} times ({error}); what came is kept, run again to continue") from None
    except PermissionError as error:
        raise InputError(f"{error.filename or target}: no permission to write; change the folder's rights, or the study's `root:`") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{name}: the disk of {target.parent} is full; free some space and run again to continue") from None
        if error.errno == errno.EROFS:
            raise InputError(f"{target.parent}: is read-only; give the study another `root:`") from None
        raise InputError(f"{error.filename or target}: cannot be written ({error.strerror or error}); see the study's `root:`") from None


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


@contextlib.contextmanager
def _only_one(part: Path) -> Iterator[None]:
    """Let one process at a time fill a part file: several subjects may need the same file."""
    import fcntl

    with open(part, "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{part.name}: another process is getting it; waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            say(f"{part.name}: this file system has no locks; do not fetch the same file twice at a time")
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()


def _fill(file: RemoteFile, target: Path) -> None:
    part, tag_file = _part(target), target.with_name(target.name + ".part.tag")
    best, attempt = part.stat().st_size if part.exists() else 0, 0
    md5, part_size = file.md5, None
    with _Progress(file.path) as progress:
        while True:
            try:
                have = part.stat().st_size if part.exists() else 0
                tag = tag_file.read_text() if have and tag_file.exists() else None
                stream = _open(file.address, have, tag)  # type: ignore[arg-type]
                total = file.bytes if file.bytes is not None else stream.total
                if total is not None and stream.total is not None and total != stream.total:
                    what = f"{_host(file)} offers {stream.total} bytes, {total} are published"
                    raise InputError(f"{file.path}: {what}; the file there is another one or damaged, try another mirror")
                md5, part_size = (file.md5, None) if file.md5 else (stream.md5, stream.part)
                _check_space(file, target, (total or 0) - stream.start)
                if stream.tag:
                    tag_file.write_text(stream.tag)
                with open(part, "r+b" if part.exists() else "wb") as out:
                    out.seek(stream.start)
                    out.truncate()
                    progress.at(stream.start, total)
                    for piece in stream.pieces:
                        out.write(piece)
                        progress.at(out.tell(), total)
                have = part.stat().st_size
                if total is not None and have < total:
                    raise Passing(f"ended after {have} of {total} bytes")
                break
            except Passing as failure:
                have = part.stat().st_size if part.exists() else 0
                attempt = 0 if have > best else attempt + 1
                best = max(best, have)
                if attempt >= ATTEMPTS:
                    raise
                say(f"{file.path}: {failure}; trying again")
                _wait(max(0, attempt - 1))
    wrong = verify(part, file, total, md5, part_size)
    if wrong:
        part.unlink()
        tag_file.unlink(missing_ok=True)
        raise InputError(f"{file.path}: {wrong}; it was damaged on the way and is deleted, run again to get it anew")
    if not (file.sha256 or md5):
        say(f"{file.path}: has no published checksum; only its size is verified")
    os.replace(part, target)
    tag_file.unlink(missing_ok=True)


def verify(path: Path, file: RemoteFile, total: int | None = None, md5: str | None = None, part: int | None = None) -> str | None:
    """What is wrong with a file's size or checksum, in words; None where nothing is known to be wrong.

    With `part`, `md5` is that of the MD5s of all parts of so many bytes, then `-` and their number: the ETag that S3 gives
    to what was uploaded in parts.
    """
    total = file.bytes if file.bytes is not None else total
    size = path.stat().st_size
    if total is not None and size != total:
        return f"has {size} bytes instead of {total}"
    for kind, expected in (("sha256", file.sha256), ("md5", md5 or file.md5)):
        if expected:
            with open(path, "rb") as stream:
                found = _md5_of_parts(stream, part) if kind == "md5" and part else hashlib.file_digest(stream, kind).hexdigest()
            if found != expected.lower():
                return f"has the {kind.upper()} {found[:12]}... instead of {expected[:12]}..."
    return None


def _md5_of_parts(stream: BinaryIO, part: int) -> str:
    sums: list[bytes] = []
    piece = stream.read(min(part, _BLOCK))
    while piece:
        digest, left = hashlib.md5(), part
        while piece:
            digest.update(piece)
            left -= len(piece)
            piece = stream.read(min(left, _BLOCK))
        sums.append(digest.digest())
        piece = stream.read(min(part, _BLOCK))
    return f"{hashlib.md5(b''.join(sums)).hexdigest()}-{len(sums)}"


def _check_space(file: RemoteFile, target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        what = f"needs {human(needed)}, but the disk of {target.parent} has {human(free)} free"
        raise InputError(f"{file.path}: {what}; free some space or change the study's `root:`")


def _wait(attempt: int) -> None:
    time.sleep(min(60.0, BACKOFF * 2**attempt))


def _host(file: RemoteFile) -> str:
    return urlsplit(file.address or "").netloc or "the server"


def _plain(error: Exception) -> str:
    """An error in a few words, without addresses that may carry a signature."""
    text = re.sub(r"https?://\S+|\burl: \S+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


def _refuse_status(status: int, reason: str) -> None:
    if status in (401, 403):
        raise Denied(f"HTTP {status}")
    if status in (404, 410):
        raise Missing(f"HTTP {status}")
    if status in (408, 425, 429) or status >= 500:
        raise Passing(f"HTTP {status} {reason}")
    if status >= 400:
        raise Missing(f"HTTP {status} {reason}")


def _open(address: str, have: int, tag: str | None) -> _Stream:
    return _open_s3(address, have, tag) if address.startswith("s3://") else _open_http(address, have, tag)


def _open_http(address: str, have: int, tag: str | None) -> _Stream:
    import requests

    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {})
    try:
        answer = requests.get(address, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise Passing(_plain(error)) from None
    held = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if answer.status_code == 416:
        total = int(held[2]) if held and held[2] != "*" else None
        return _Stream(have, total, tag, iter(())) if total == have else _open_http(address, 0, None)
    _refuse_status(answer.status_code, answer.reason)
    start, total = 0, None
    if answer.status_code == 206:
        if held is None or held[1] is None or int(held[1]) != have:
            return _open_http(address, 0, None)
        start, total = have, int(held[2]) if held[2] != "*" else None
    if total is None and "Content-Length" in answer.headers:
        total = start + int(answer.headers["Content-Length"])
    found = answer.headers.get("ETag")
    strong = found if found and not found.startswith("W/") else answer.headers.get("Last-Modified")

    def pieces() -> Iterator[bytes]:
        try:
            yield from answer.iter_content(PIECE)
        except requests.RequestException as error:
            raise Passing(_plain(error)) from None
        finally:
            answer.close()

    return _Stream(start, total, strong, pieces())


def _bucket_and_key(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key


def _s3(bucket: str) -> Any:
    """An S3 client: anonymous for public buckets, else with the user's own keys from the environment or the AWS profile."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    settings: dict[str, Any] = {"retries": {"total_max_attempts": 1}, "connect_timeout": TIMEOUT[0], "read_timeout": TIMEOUT[1]}
    if bucket in PUBLIC_BUCKETS:
        settings["signature_version"] = UNSIGNED
    return boto3.client("s3", config=Config(**settings), region_name=os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1")))


def _open_s3(address: str, have: int, tag: str | None) -> _Stream:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    bucket, key = _bucket_and_key(address)
    asked = ({"Range": f"bytes={have - 1}-"} | ({"IfMatch": tag} if tag else {})) if have else {}  # the last byte again: there is always one to send
    client = _s3(bucket)
    try:
        answer = client.get_object(Bucket=bucket, Key=key, **asked)
    except (NoCredentialsError, PartialCredentialsError):
        raise Denied("no AWS keys in the environment or the AWS profile") from None
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status in (412, 416) and have:
            return _open_s3(address, 0, None)
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
            raise Denied(f"HTTP {status} {code}") from None
        _refuse_status(status, code)
        raise Passing(code or _plain(error)) from None
    except BotoCoreError as error:
        raise Passing(_plain(error)) from None
    start = have - 1 if "ContentRange" in answer else 0
    total = start + int(answer["ContentLength"])
    found = answer.get("ETag", "")
    summed = re.fullmatch(r'"?([0-9a-f]{32}(?:-(\d+))?)"?', found) if answer.get("ServerSideEncryption") in (None, "AES256") else None
    part = _part_size(client, bucket, key, int(summed[2]), total) if summed and summed[2] else None
    md5 = summed[1] if summed and (part or not summed[2]) else None

    def pieces() -> Iterator[bytes]:
        try:
            yield from answer["Body"].iter_chunks(PIECE)
        except (BotoCoreError, OSError) as error:
            raise Passing(_plain(error)) from None

    return _Stream(start, total, found or None, pieces(), md5, part)


def _part_size(client: Any, bucket: str, key: str, parts: int, total: int) -> int | None:
    """Bytes of every part but the last of what was uploaded in parts; None where the server does not say, or they differ."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        first, last = (int(client.head_object(Bucket=bucket, Key=key, PartNumber=number)["ContentLength"]) for number in (1, parts))
    except (BotoCoreError, ClientError):
        return None
    return first if last <= first and first * (parts - 1) + last == total else None


class _Progress:
    """Bytes on a terminal's bar, or a line now and then in a log."""

    def __init__(self, label: str, every: float = 15.0) -> None:
        self.label, self.every = label, every
        self.last = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> "_Progress":
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(desc=self.label, unit="B", unit_scale=True, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def at(self, done: int, total: int | None) -> None:
        if self.bar is not None:
            self.bar.total = total
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.last >= self.every:
            say(f"{self.label}: {human(done)}{f' of {human(total)}' if total else ''}")
            self.last = time.monotonic()
