"""Files appear whole or not at all; models come back as they were written."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from unimind.errors import InputError
from unimind.storage import content_hash, file_hash, load_model, read_json, save_model, whole_directory, whole_file, write_json


def test_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "new" / "table.csv"
    with whole_file(target) as temporary:
        temporary.write_text("a")
        assert temporary.parent == target.parent and not target.exists()
    assert target.read_text() == "a" and os.listdir(target.parent) == ["table.csv"]


def test_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["table.csv"]


def test_directory_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "model"
    for name in ("first", "second"):
        with whole_directory(target) as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(target) == ["second"] and os.listdir(tmp_path) == ["model"]
    with pytest.raises(RuntimeError), whole_directory(target) as temporary:
        raise RuntimeError
    assert os.listdir(target) == ["second"] and os.listdir(tmp_path) == ["model"]


def test_killed_writer_leaves_no_finished_looking_file(tmp_path):
    code = (
        "import sys, time; from unimind.storage import whole_file\n"
        "with whole_file(sys.argv[1]) as path:\n"
        "    path.write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out.h5")], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    time.sleep(0.1)
    assert not (tmp_path / "out.h5").exists()


def test_permissions_follow_the_umask(tmp_path):
    """Whoever writes below: `save_model` calls safetensors, which keeps its file to its owner; the group of a shared folder is handed on."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2770)
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "file") as temporary:
            temporary.write_text("")
        with whole_directory(tmp_path / "shared/model") as folder:
            save_model(folder, {"weight": torch.zeros(2)}, {})
            (folder / "deeper").mkdir(mode=0o700)
            os.close(os.open(folder / "deeper/losses.csv", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o7777 for path in tmp_path.rglob("*")}
    assert modes == {
        "file": 0o640, "shared": 0o2770, "shared/model": 0o2750, "shared/model/model.safetensors": 0o640, "shared/model/config.json": 0o640,
        "shared/model/deeper": 0o2750, "shared/model/deeper/losses.csv": 0o640,
    }  # fmt: skip


def test_json_round_trip_and_refusals(tmp_path):
    write_json(tmp_path / "a.json", {"value": 1.5})
    assert read_json(tmp_path / "a.json") == {"value": 1.5}
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        read_json(tmp_path / "c.json")
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "d.json")


def test_hashes(tmp_path):
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 1, "b": 3})
    (tmp_path / "file").write_bytes(b"abc")
    assert file_hash(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_model_round_trip(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"plain": shared, "view": shared.t(), "again": shared, "whole": torch.tensor([1, 2])}
    with whole_directory(tmp_path / "model") as folder:
        save_model(folder, state, {"kind": "test", "width": 3})
    loaded, config = load_model(tmp_path / "model")
    assert config == {"kind": "test", "width": 3}
    assert set(loaded) == set(state) and all(torch.equal(loaded[name], state[name]) for name in state)


def test_broken_model_is_refused(tmp_path):
    with whole_directory(tmp_path / "model") as folder:
        save_model(folder, {"weight": torch.zeros(100)}, {})
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(tmp_path / "model")
    weights.unlink()
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text()) == {}
