import errno
import hashlib
import json
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from servers import http_site, s3_site

from unimind.cli import main
from unimind.data import transport
from unimind.data.fetch import agreements, fetch
from unimind.data.sources.base import RemoteFile
from unimind.data.transport import download
from unimind.errors import InputError
from unimind.study import parse_study

CONTENT = np.random.default_rng(0).bytes(3_000_000)
ACCESS = "sign the agreement at https://example.org"
METHOD = {"enter": {"kind": "ridge"}, "scope": "subject"}


def study_of(unpaired: dict | None = None, **datasets: dict):
    content = {"name": "s", "datasets": datasets, "methods": {"m": METHOD}, "foundations": {"diffusion": {"kind": "study"}}}
    return parse_study(content | ({"unpaired": unpaired} if unpaired else {}))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(transport, "BACKOFF", 0.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_arrives_alone(tmp_path):
    with http_site(files={"/a": CONTENT}) as site:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert left(tmp_path) == ["a"]


def test_cut_connections_are_continued_where_they_ended(tmp_path):
    with http_site(files={"/a": CONTENT}, cut_after=[1_000_000, 700_000, 1]) as site:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
        starts = [0 if asked is None else int(asked.split("=")[1].split("-")[0]) for _, _, asked in site.log]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert starts == sorted(starts) and starts[0] == 0 and starts[-1] > 1_500_000


def test_a_server_without_ranges_is_read_from_the_start_again(tmp_path):
    with http_site(files={"/a": CONTENT}, ranges=False, cut_after=[1_000_000]) as site:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_killed_download_goes_on_from_its_part(tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT[:2_000_000])
    with http_site(files={"/a": CONTENT}) as site:
        download(RemoteFile("a", f"{site.address}/a", sha256=hashlib.sha256(CONTENT).hexdigest()), tmp_path / "a", ACCESS)
        assert site.log == [("GET", "/a", "bytes=2000000-")]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_part_that_was_whole_already_is_recognised(tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT)
    with http_site(files={"/a": CONTENT}) as site:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_part_of_an_older_version_is_not_continued(tmp_path):
    (tmp_path / "a.part").write_bytes(b"old" * 1000)
    (tmp_path / "a.part.tag").write_text('"an older one"')
    with http_site(files={"/a": CONTENT}) as site:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert left(tmp_path) == ["a"]


def test_busy_servers_are_asked_again(tmp_path):
    with http_site(files={"/a": CONTENT}, statuses=[500, 503, 429]) as site:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"always": 500}, "failed 6 times"),
        ({"always": 403}, ACCESS),
        ({"always": 404}, "no such file"),
        ({"lie": len(CONTENT) + 5, "ranges": False}, "failed 6 times"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing_that_looks_whole(tmp_path, behaviour, words):
    with http_site(files={"/a": CONTENT}, **behaviour) as site, pytest.raises(InputError, match=words) as caught:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_server_that_is_not_there(tmp_path):
    with http_site() as site:
        address = site.address
    with pytest.raises(InputError, match="failed 6 times"):
        download(RemoteFile("a", f"{address}/a"), tmp_path / "a", ACCESS)
    assert left(tmp_path) == []


@pytest.mark.parametrize("published", [{"sha256": hashlib.sha256(CONTENT).hexdigest()}, {"md5": hashlib.md5(CONTENT).hexdigest()}])
def test_a_flipped_bit_is_found(tmp_path, published):
    flipped = bytearray(CONTENT)
    flipped[1_234_567] ^= 1
    with http_site(files={"/a": bytes(flipped)}) as site, pytest.raises(InputError, match="damaged on the way"):
        download(RemoteFile("a", f"{site.address}/a", **published), tmp_path / "a", ACCESS)
    assert left(tmp_path) == []


def test_a_file_of_another_size_than_published_is_refused(tmp_path):
    with http_site(files={"/a": CONTENT[:-1]}) as site, pytest.raises(InputError, match=f"{len(CONTENT)} are published"):
        download(RemoteFile("a", f"{site.address}/a", bytes=len(CONTENT)), tmp_path / "a", ACCESS)
    assert not (tmp_path / "a").exists()


def test_too_little_space_is_said_before_a_byte_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(transport.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with http_site(files={"/a": CONTENT}) as site, pytest.raises(InputError, match="needs 3.0 MB, but the disk of .* has 1.0 kB free"):
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert left(tmp_path) == []


def test_a_disk_that_fills_up_on_the_way_keeps_what_came(tmp_path, monkeypatch):
    def full(self, done, total):
        if done >= 2_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with http_site(files={"/a": CONTENT}) as site:
        with monkeypatch.context() as patch, pytest.raises(InputError, match="is full"):
            patch.setattr(transport._Progress, "at", full)
            download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
        assert not (tmp_path / "a").exists()
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
        assert site.log[-1][2] is not None
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_folder_one_may_not_write(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    tmp_path.chmod(0o755)
    if os.geteuid() == 0:
        os.chmod(tmp_path.parent, 0o755)
        os.seteuid(65534)
    try:
        with http_site(files={"/a": CONTENT}) as site, pytest.raises(InputError, match="no permission to write|Permission denied"):
            download(RemoteFile("a", f"{site.address}/a"), folder / "a", ACCESS)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def test_servers_are_asked_after_longer_and_longer_waits(tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(transport, "BACKOFF", 1.0)
    monkeypatch.setattr(transport.time, "sleep", waits.append)
    with http_site(files={"/a": CONTENT}, always=503) as site, pytest.raises(InputError, match="failed 6 times"):
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert waits == [1, 2, 4, 8, 16] and len(site.log) == transport.ATTEMPTS
    transport._wait(20)
    assert waits[-1] == 60


def test_waits_are_short_again_when_bytes_came(tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(transport, "BACKOFF", 1.0)
    monkeypatch.setattr(transport.time, "sleep", waits.append)
    with http_site(files={"/a": CONTENT}, statuses=[500, 500, 500, 200, 500], cut_after=[1_000_000]) as site:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    assert waits == [1, 2, 4, 1, 1] and (tmp_path / "a").read_bytes() == CONTENT


def test_progress_is_said_in_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transport._Progress.__init__, "__defaults__", (0.0,))
    with http_site(files={"/a": CONTENT}) as site:
        download(RemoteFile("folder/a", f"{site.address}/a"), tmp_path / "a", ACCESS)
    said = re.findall(r"^\d\d:\d\d:\d\d folder/a: ([\d.]+) ([kM]?)B of 3\.0 MB$", capsys.readouterr().err, re.MULTILINE)
    done = [float(number) * {"": 1, "k": 1e3, "M": 1e6}[unit] for number, unit in said]
    assert len(done) > 10 and done == sorted(done) and done[-1] == 3e6


def test_what_only_a_size_is_known_of_is_said_to_be_unverified(tmp_path, capsys):
    with http_site(files={"/a": CONTENT}) as site:
        download(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)
        assert "a: has no published checksum; only its size is verified" in capsys.readouterr().err
        download(RemoteFile("b", f"{site.address}/a", md5=hashlib.md5(CONTENT).hexdigest()), tmp_path / "b", ACCESS)
    assert capsys.readouterr().err == ""


# --- S3 ----------------------------------------------------------------------------------------------------------

BUCKET = "natural-scenes-dataset"
IN_BUCKET = f"s3://{BUCKET}/a"


def test_s3_that_cuts_and_is_busy_is_continued(tmp_path, monkeypatch):
    with http_site(files={f"/{BUCKET}/a": CONTENT}, statuses=[500, 503], cut_after=[1_000_000, 700_000]) as site:
        monkeypatch.setenv("AWS_ENDPOINT_URL", site.address)
        download(RemoteFile("a", IN_BUCKET), tmp_path / "a", ACCESS)
        starts = [int(asked.removeprefix("bytes=").rstrip("-")) for *_, asked in site.log if asked]
    assert len(starts) == 2 and 900_000 < starts[0] < starts[1] < 1_700_000
    assert (tmp_path / "a").read_bytes() == CONTENT and left(tmp_path) == ["a"]


@pytest.mark.parametrize(("behaviour", "words"), [({"always": 404}, "has no such file"), ({"always": 500}, "failed 6 times"), ({"always": 403}, ACCESS)])
def test_s3_that_refuses_is_one_line(tmp_path, monkeypatch, behaviour, words):
    with http_site(files={f"/{BUCKET}/a": CONTENT}, **behaviour) as site, pytest.raises(InputError, match=words) as caught:
        monkeypatch.setenv("AWS_ENDPOINT_URL", site.address)
        download(RemoteFile("a", IN_BUCKET), tmp_path / "a", ACCESS)
    assert "\n" not in str(caught.value) and left(tmp_path) == []


def test_a_part_from_s3_that_was_whole_already_is_not_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "a.part").write_bytes(CONTENT)
    with http_site(files={f"/{BUCKET}/a": CONTENT}) as site:
        monkeypatch.setenv("AWS_ENDPOINT_URL", site.address)
        download(RemoteFile("a", IN_BUCKET), tmp_path / "a", ACCESS)
        assert [asked for *_, asked in site.log] == [f"bytes={len(CONTENT) - 1}-"]
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [3_000_000, 5 << 20, 12_000_000])
def test_a_flipped_bit_of_what_was_uploaded_in_parts_is_found(tmp_path, monkeypatch, capsys, size):
    content = np.random.default_rng(1).bytes(size)
    flipped = bytearray(content[: size * 2 // 3])
    flipped[size // 2] ^= 1
    with s3_site({BUCKET: {"a": content}}, part=5 << 20) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        capsys.readouterr()
        download(RemoteFile("a", IN_BUCKET), tmp_path / "a", ACCESS)
        assert (tmp_path / "a").read_bytes() == content and "only its size" not in capsys.readouterr().err
        (tmp_path / "b.part").write_bytes(flipped)  # damaged on the way, then cut
        with pytest.raises(InputError, match=r"has the MD5 .* it was damaged on the way and is deleted, run again to get it anew"):
            download(RemoteFile("b", IN_BUCKET), tmp_path / "b", ACCESS)
        assert left(tmp_path) == ["a"]
        download(RemoteFile("b", IN_BUCKET), tmp_path / "b", ACCESS)
    assert (tmp_path / "b").read_bytes() == content


def test_parts_of_unknown_size_are_not_verified_and_that_is_said(tmp_path, monkeypatch, capsys):
    with s3_site({BUCKET: {"a": CONTENT}}, part=5 << 20) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setattr(transport, "_part_size", lambda *_: None)
        download(RemoteFile("a", IN_BUCKET), tmp_path / "a", ACCESS)
    assert (tmp_path / "a").read_bytes() == CONTENT and "only its size is verified" in capsys.readouterr().err


def test_two_processes_that_need_the_same_file_get_it_once(tmp_path):
    with http_site(files={"/a": CONTENT}) as site:
        threads = [threading.Thread(target=download, args=(RemoteFile("a", f"{site.address}/a"), tmp_path / "a", ACCESS)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(site.log) == 1
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_figshare_names_are_resolved_with_size_and_checksum(tmp_path, monkeypatch):
    listing = [{"name": "a.zip", "download_url": "HERE/files/7", "size": len(CONTENT), "computed_md5": hashlib.md5(CONTENT).hexdigest()}]
    with http_site(files={"/files/7": CONTENT}) as site:
        site.files["/14456124/files"] = json.dumps(listing).replace("HERE", site.address).encode()
        monkeypatch.setattr(transport, "FIGSHARE", site.address)
        file = RemoteFile("a.zip", "figshare://14456124/a.zip")
        assert transport.size_of(file, set()) == len(CONTENT)
        download(file, tmp_path / "a.zip", ACCESS)
        site.files["/files/7"] = CONTENT[:-1] + b"?"
        with pytest.raises(InputError, match="MD5"):
            download(file, tmp_path / "again.zip", ACCESS)
        with pytest.raises(InputError, match="no such file"):
            download(RemoteFile("b.zip", "figshare://14456124/b.zip"), tmp_path / "b.zip", ACCESS)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


# --- the stage ---------------------------------------------------------------------------------------------------


NSD = {"source": "nsd", "training_subjects": ["subj01"], "sessions": 2, "roi_labels": False}


def nsd_files() -> dict[str, bytes]:
    from unimind.data.sources import open_source

    source = open_source(study_of(nsd=NSD), "nsd", ".")
    return {file.path: f"content of {file.path}".encode() * 50 for who in (None, "subj01") for file in source.files(who)}


def test_nsd_comes_from_a_bucket_without_keys_and_its_manifest_lists_it(tmp_path, monkeypatch):
    files = nsd_files()
    study = study_of(nsd=NSD | {"root": str(tmp_path / "nsd")})
    with s3_site({"natural-scenes-dataset": files}) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        half = next(path for path in files if "session02" in path)
        (tmp_path / "nsd" / half).parent.mkdir(parents=True)
        (tmp_path / "nsd" / f"{half}.part").write_bytes(files[half][:100])
        fetch(study, dataset="nsd", subject="subj01", out=tmp_path / "subj01.json")
        fetch(study, dataset="nsd", stimuli=True, out=tmp_path / "stimuli.json")
    listed = {}
    for name in ("subj01", "stimuli"):
        manifest = json.loads((tmp_path / f"{name}.json").read_text())
        assert manifest["root"] == str(tmp_path / "nsd")
        listed |= {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in manifest["files"]}
    assert listed == {path: (len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()}
    for path, content in files.items():
        assert (tmp_path / "nsd" / path).read_bytes() == content


def test_a_local_folder_stands_in_for_the_servers(tmp_path, monkeypatch):
    files = nsd_files()
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    monkeypatch.setattr(transport, "download", lambda *_: pytest.fail("asked a server for a file that is here"))
    fetch(study_of(nsd=NSD | {"root": str(tmp_path)}), dataset="nsd", subject="subj01", out=tmp_path / "m.json")
    first = (tmp_path / "m.json").read_bytes()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed an unchanged file again"))
    fetch(study_of(nsd=NSD | {"root": str(tmp_path)}), dataset="nsd", subject="subj01", out=tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == first


def test_a_mirror_stands_in_for_the_bucket(tmp_path, monkeypatch):
    files = nsd_files()
    with http_site(files={f"/mirror/{path}": content for path, content in files.items()}) as site:
        monkeypatch.setenv("UNIMIND_MIRROR_NSD", f"{site.address}/mirror/")
        fetch(study_of(nsd=NSD | {"root": str(tmp_path / "nsd")}), dataset="nsd", subject="subj01", out=tmp_path / "m.json")
    for entry in json.loads((tmp_path / "m.json").read_text())["files"]:
        assert (tmp_path / "nsd" / entry["path"]).read_bytes() == files[entry["path"]]


def test_a_bucket_that_is_not_public(tmp_path, monkeypatch):
    with s3_site({"natural-scenes-dataset": nsd_files()}, public=False) as endpoint, pytest.raises(InputError, match="naturalscenesdataset.org"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        fetch(study_of(nsd=NSD | {"root": str(tmp_path / "nsd")}), dataset="nsd", subject="subj01", out=tmp_path / "m.json")


@pytest.mark.parametrize(("source", "words"), [("nsd", "naturalscenesdataset.org"), ("god", "forms.gle"), ("bold5000", "bold5000-dataset.github.io")])
def test_access_denied_says_where_to_sign(tmp_path, monkeypatch, source, words):
    subject = {"nsd": "subj01", "god": "Subject1", "bold5000": "CSI1"}[source]
    section = {"source": source, "training_subjects": [subject], "root": str(tmp_path / "d")}
    with http_site(always=403) as site, pytest.raises(InputError, match=words) as caught:
        monkeypatch.setenv(f"UNIMIND_MIRROR_{source.upper()}", site.address)
        fetch(study_of(**{source: section}), dataset=source, subject=subject, out=tmp_path / "m.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.json").exists()


def test_a_data_set_that_is_denied_leaves_the_others_unharmed(tmp_path, monkeypatch):
    god = {"source": "god", "training_subjects": ["Subject1", "Subject2"], "root": str(tmp_path / "god")}
    study = study_of(god=god, nsd=NSD | {"root": str(tmp_path / "nsd")})
    with http_site(files={"/Subject1.h5": CONTENT, "/Subject2.h5": CONTENT[:9]}) as open_site, http_site(always=403) as denied:
        monkeypatch.setenv("UNIMIND_MIRROR_GOD", open_site.address)
        monkeypatch.setenv("UNIMIND_MIRROR_NSD", denied.address)
        fetch(study, dataset="god", subject="Subject1", out=tmp_path / "1.json")
        before = (tmp_path / "1.json").read_bytes()
        with pytest.raises(InputError, match="access denied"):
            fetch(study, dataset="nsd", subject="subj01", out=tmp_path / "nsd.json")
        fetch(study, dataset="god", subject="Subject2", out=tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == before and (tmp_path / "god" / "Subject1.h5").read_bytes() == CONTENT
    assert (tmp_path / "god" / "Subject2.h5").read_bytes() == CONTENT[:9] and (tmp_path / "2.json").exists()
    assert not (tmp_path / "nsd.json").exists() and not [path for path in (tmp_path / "nsd").rglob("*") if path.is_file()]


HCP = {"source": "hcp", "subjects": ["100307"], "runs": ["rfMRI_REST1_LR"]}
ANY = {"source": "arrays", "training_subjects": ["s"], "responses": "r.npy", "images": "i.npy"}


def test_hcp_without_keys_says_how_to_get_them(tmp_path):
    study = study_of({**HCP, "root": str(tmp_path / "hcp")}, own=ANY)
    with pytest.raises(InputError, match="no AWS keys.*db.humanconnectome.org"):
        fetch(study, unpaired=True, subject="100307", out=tmp_path / "m.json")


def test_hcp_keys_are_used_and_never_written(tmp_path, monkeypatch, capfd):
    from unimind.data.sources.hcp import run_path

    content = b"resting" * 10_000
    path = run_path("100307", "rfMRI_REST1_LR")
    study = study_of({**HCP, "root": str(tmp_path / "hcp")}, own=ANY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOWNKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretkey")
    with s3_site({"hcp-openaccess": {path: content}}, public=False) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        capfd.readouterr()
        fetch(study, unpaired=True, subject="100307", out=tmp_path / "m.json")
        shown = "".join(capfd.readouterr())
    assert (tmp_path / "hcp" / path).read_bytes() == content
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()).decode(errors="replace")
    assert "verysecretkey" not in shown + written and "AKIAOWNKEY" not in shown + written


def test_a_bucket_that_refuses_the_keys(tmp_path, monkeypatch):
    study = study_of({**HCP, "root": str(tmp_path / "hcp")}, own=ANY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOWNKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretkey")
    with http_site(always=403) as site, pytest.raises(InputError, match="Open Access terms at https://db.humanconnectome.org") as caught:
        monkeypatch.setenv("AWS_ENDPOINT_URL", site.address)
        fetch(study, unpaired=True, subject="100307", out=tmp_path / "m.json")
    assert "secret" not in str(caught.value)


def test_list_prints_what_would_be_fetched_and_how_much(tmp_path, monkeypatch, capsys):
    files = nsd_files()
    here = next(path for path in files if "ncsnr" in path)
    (tmp_path / "nsd" / here).parent.mkdir(parents=True)
    (tmp_path / "nsd" / here).write_bytes(files[here])
    study = study_of(nsd=NSD | {"root": str(tmp_path / "nsd")})
    with s3_site({"natural-scenes-dataset": files}) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        capsys.readouterr()
        fetch(study, list=True)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    printed = {line[1]: (int(line[2]), line[3]) for line in lines if len(line) == 4}
    assert printed == {path: (len(content), "here" if path == here else "missing") for path, content in files.items()}
    assert "NSD Data Access Agreement" in lines[-2][0]
    missing = sum(len(content) for path, content in files.items() if path != here)
    assert lines[-1][0] == f"in all: {transport.human(missing)} to fetch"
    assert left(tmp_path) == ["nsd"]


def test_list_without_a_network_still_lists(tmp_path, monkeypatch, capsys):
    with http_site() as site:
        monkeypatch.setenv("AWS_ENDPOINT_URL", site.address)
    fetch(study_of(nsd=NSD | {"root": str(tmp_path / "nsd")}), list=True)
    out = capsys.readouterr().out
    assert "betas_session02" in out and "files of unknown size" in out


def test_agreements_are_named_for_data_that_are_not_here(tmp_path):
    study = study_of({**HCP, "root": str(tmp_path / "none")}, nsd=NSD | {"root": str(tmp_path / "none")}, own=ANY | {"root": str(tmp_path)})
    assert [line.split(" ")[0] for line in agreements(study)] == ["nsd", "unpaired"]


def test_agreements_are_named_until_every_file_is_here(tmp_path, monkeypatch):
    study = study_of(nsd=NSD | {"root": str(tmp_path / "nsd")})
    with http_site(always=403) as site, pytest.raises(InputError):
        monkeypatch.setenv("UNIMIND_MIRROR_NSD", site.address)
        fetch(study, dataset="nsd", subject="subj01", out=tmp_path / "m.json")
    assert len(agreements(study)) == 1
    files = list(nsd_files())
    for path in files:
        (tmp_path / "nsd" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nsd" / path).touch()
    assert agreements(study) == []
    (tmp_path / "nsd" / files[-1]).rename(tmp_path / "nsd" / f"{files[-1]}.part")
    assert [line.split(";")[0] for line in agreements(study)] == ["nsd (Natural Scenes Dataset): needs the NSD Data Access Agreement"]


def test_the_open_part_of_god_needs_no_agreement(tmp_path):
    study = study_of(god={"source": "god", "training_subjects": ["Subject1"], "root": str(tmp_path / "god")})
    (tmp_path / "god" / "images").mkdir(parents=True)
    assert [line.split(" ")[0] for line in agreements(study)] == ["god"]
    (tmp_path / "god" / "images" / "n01443537_22563.JPEG").touch()
    assert agreements(study) == []


def test_the_command_line_ends_with_two_and_one_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "study.json"
    path.write_text(
        json.dumps(
            {
                "name": "s",
                "datasets": {"nsd": NSD | {"root": str(tmp_path / "nsd")}},
                "methods": {"m": METHOD},
                "foundations": {"diffusion": {"kind": "study"}},
            }
        )
    )
    with http_site(always=403) as site:
        monkeypatch.setenv("UNIMIND_MIRROR_NSD", site.address)
        assert main(["fetch", "--study", str(path), "--dataset", "nsd", "--subject", "subj01", "--out", str(tmp_path / "m.json")]) == 2
        assert main(["fetch", "--study", str(path), "--dataset", "nsd", "--subject", "subj02", "--out", str(tmp_path / "m.json")]) == 2
        assert main(["fetch", "--study", str(path), "--dataset", "nsd"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3
    assert not (tmp_path / "m.json").exists()
