"""`unimind doctor` on machines that lack something: what it finds, and what it tells to do."""

import builtins
import json
import os
import shutil
import sys
import types
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import try_to_load_from_cache
from open_clip.pretrained import get_pretrained_cfg

from unimind.report import doctor
from unimind.report.cost import costs
from unimind.report.downloads import needed
from unimind.study import AutoencoderAlone, Study, parse_study, read_study

ROOT = Path(__file__).parents[2]
TINY = yaml.safe_load((ROOT / "tests/workflow/studies/tiny.yaml").read_text())
REAL = {
    "name": "real",
    "datasets": {
        "nsd": {"source": "nsd", "training_subjects": ["subj01"], "sessions": 1},
        "god": {"source": "god", "training_subjects": ["Subject1"]},
    },
    "unpaired": {"source": "hcp", "subjects": ["100307"], "runs": ["rfMRI_REST1_LR"]},
    "foundations": {"embedding": {"kind": "open-clip", "model": "ViT-B-32-quickgelu"}, "autoencoder": {"kind": "hub"}, "diffusion": {"kind": "ldm"}},
    "methods": {"mindvis": TINY["methods"]["mindvis"]},
}

#: Of NSD all pictures and a session, of GOD its pictures and a subject, of HCP a run; prepared pictures, embeddings and what the study makes are less.
REAL_FILLS = "this study fills at least 56 GB (`unimind plan`), run elsewhere with --directory"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder and an empty home, and nothing said by the environment."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "HF_", "UNIMIND_", "XDG_")):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")


def study(content: dict, **changes) -> Study:
    return parse_study(json.loads(json.dumps(content | changes)))


def found(check, content: dict = TINY, **changes) -> dict[str, tuple[str, str]]:
    return {one.about: (one.state, one.words) for one in check(study(content, **changes))}


def put(*paths: str) -> None:
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# --- the machine ------------------------------------------------------------------------------------------------------


def test_a_good_machine_is_ok_and_a_lack_ends_with_status_1(capsys):
    content = TINY | {"threads": 1, "evaluation": {"metrics": ["mse"], "squeezenet": __file__}}
    assert doctor.doctor(study(content)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if not line[9:].startswith(("memory", "free disk"))} == {"ok"}
    lacking = content | {"foundations": TINY["foundations"] | {"embedding": {"kind": "squeezenet", "weights": "none.safetensors"}}}
    assert doctor.doctor(study(lacking)) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing")]
    assert "none.safetensors" in line and "put it in place or name another path" in line


def test_packages_that_are_missing_or_too_old(monkeypatch):
    def version(name):
        if name == "scikit-learn":
            raise PackageNotFoundError(name)
        return {"torch": "2.10.0"}.get(name, "99")

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=2.11", "h5py>=3.12", "scikit-learn>=1.5"])
    packages = found(doctor._versions)
    assert packages["scikit-learn"] == ("missing", "not installed; run `make install`")
    assert packages["torch"] == ("missing", "2.10.0, but >=2.11 is needed; run `make install`")
    assert packages["h5py"] == ("ok", "99")


def test_torchvision_of_another_release_than_torch(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy", "torch==2.4.0", "pillow"])
    monkeypatch.setattr(doctor, "version", lambda name: {"torch": "2.3.1+cu121", "torchvision": "0.19.0"}[name])
    state, words = found(doctor._pair)["torch + torchvision"]
    assert state == "missing" and words.startswith("torchvision 0.19.0 wants torch 2.4.0, torch 2.3.1+cu121 is installed; reinstall both")
    monkeypatch.setattr(doctor, "version", lambda name: {"torch": "2.4.0+cpu", "torchvision": "0.19.0"}[name])
    failed = types.SimpleNamespace(returncode=1, stderr="Traceback\nRuntimeError: operator torchvision::nms does not exist\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *arguments, **named: failed)
    state, words = found(doctor._pair)["torch + torchvision"]
    assert state == "missing" and "(RuntimeError: operator torchvision::nms does not exist); reinstall both" in words


Card = namedtuple("Card", ["name", "total_memory"])


def test_cards_and_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card(f"card {index}", 24 * doctor.GB))
    assert found(doctor._devices, processes=2) == {"GPU 0": ("ok", "card 0, 24 GB"), "GPU 1": ("ok", "card 1, 24 GB")}
    state, words = found(doctor._devices, processes=3)["processes"]
    assert state == "missing" and "processes: 3" in words and "2 here" in words


def test_no_card_or_one_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "cards", list)
    assert found(doctor._devices)["GPU"] == ("ok", "none; the CPU is used")
    assert found(doctor._devices, REAL)["GPU"][0] == "note"
    monkeypatch.setattr(doctor, "cards", lambda: [Path("/dev/nvidia0")])
    state, words = found(doctor._devices)["GPU"]
    assert state == "note" and "update the driver" in words


def test_torch_that_does_not_import(monkeypatch):
    def refuse(name, *rest):
        if name == "torch":
            raise ImportError("libcudart.so: cannot open shared object file")
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert found(doctor._devices)["torch"] == ("missing", "does not import (libcudart.so: cannot open shared object file); run `make install`")


def test_little_memory_few_cores(monkeypatch):
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 * doctor.GB // 4096}[name])
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda process: {0, 1})
    assert found(doctor._memory, threads=3) == {
        "memory": ("note", "4 GB; 8 GB are advised for this study (`unimind plan`)"),
        "cores": ("note", "2; the study asks for threads: 3, set it to 2"),
    }


def test_memory_is_held_against_the_plan(monkeypatch):
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 24 * doctor.GB // 4096}[name])
    asked = max(cost.host for cost in costs(study(REAL))) / doctor.GB
    assert asked > 24 and found(doctor._memory, REAL)["memory"] == ("note", f"24 GB; {asked:.0f} GB are advised for this study (`unimind plan`)")


def test_little_disk(monkeypatch):
    asked = []

    def usage(path):
        asked.append(Path(path))
        return types.SimpleNamespace(free=20 * doctor.GB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert found(doctor._disk)["free disk"] == ("ok", "20 GB here")
    assert found(doctor._disk, REAL)["free disk"] == ("note", f"20 GB here; {REAL_FILLS}")
    assert asked == [Path.cwd()] * 2  # where the results will be


@pytest.mark.parametrize(("said", "state"), [("conda 24.7.1", "ok"), ("conda 26.1.0", "ok"), ("conda 23.11.0", "note"), ("", "note")])
def test_age_of_conda(tmp_path, monkeypatch, said, state):
    (tmp_path / "conda").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / "conda").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    line = found(doctor._conda)["conda"]
    assert line[0] == state and (state == "ok" or "conda update -n base conda" in line[1])


def test_places_that_cannot_be_written(monkeypatch):
    put("results", "file")
    assert found(doctor._caches) == {"results": ("missing", "results/tiny cannot be written; run in a folder of yours, with --directory")}
    monkeypatch.setenv("HF_HOME", "file/cache")
    Path("results").unlink()
    caches = found(doctor._caches, REAL)
    assert caches["results"] == ("ok", "results/real")
    assert caches["Hugging Face cache"] == ("note", "file/cache/hub cannot be written; set HF_HOME to a folder of yours")


# --- data -------------------------------------------------------------------------------------------------------------


def test_data_that_are_not_there_and_how_they_are_had():
    data = found(doctor._data, REAL)
    state, words = data["data: nsd"]
    assert state == "note" and "files are not in data/nsd yet; the study fetches them" in words and "NSD Data Access Agreement" in words
    state, words = data["data: god"]
    assert state == "missing" and words.startswith("data/god/images: not there, and cannot be downloaded") and "https://forms.gle" in words
    state, words = data["data: unpaired"]
    assert state == "missing" and "1 of 1 files" in words and "no AWS keys" in words and "https://db.humanconnectome.org" in words
    assert {one[0] for one in found(doctor._data).values()} == {"ok"}  # simulated


def test_pictures_of_god_are_looked_for():
    put("data/god/images/n01443537_22563.JPEG")
    state, words = found(doctor._data, REAL)["data: god"]
    assert state == "note" and "1 of 2 files are not in data/god yet" in words
    put("data/god/Subject1.h5")
    assert found(doctor._data, REAL)["data: god"] == ("ok", "all 2 files in data/god")


def test_keys_of_hcp_may_be_in_the_environment_or_a_profile_and_are_not_shown(monkeypatch, tmp_path):
    keys = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "hush"}
    with monkeypatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name.upper(), value)
        by_environment = found(doctor._data, REAL)["data: unpaired"]
    (tmp_path / "home/.aws").mkdir()
    (tmp_path / "home/.aws/credentials").write_text("[default]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items()))
    by_profile = found(doctor._data, REAL)["data: unpaired"]
    assert by_environment == by_profile and by_profile[0] == "note"
    assert "AKIA" not in by_profile[1] and "hush" not in by_profile[1]
    monkeypatch.setenv("AWS_PROFILE", "another")
    assert found(doctor._data, REAL)["data: unpaired"][0] == "missing"


def test_own_data_and_unset_variables():
    own = {"source": "arrays", "training_subjects": ["S1"], "root": "$OWN_DATA", "responses": "{subject}.npy", "images": "pictures.npy"}
    alone = {"methods": {"ridge": TINY["methods"]["ridge"]}, "transfer": None}
    content = TINY | {"datasets": {"own": own}} | alone
    assert found(doctor._data, content)["data: own"] == ("missing", "$OWN_DATA: set the variable OWN_DATA, or write the folder into the study")
    content = TINY | {"datasets": {"own": own | {"root": "mine"}}} | alone
    put("mine/S1.npy")
    state, words = found(doctor._data, content)["data: own"]
    assert state == "missing" and words.startswith("mine/pictures.npy: not there")
    put("mine/pictures.npy")
    assert found(doctor._data, content)["data: own"] == ("ok", "all 2 files in mine")


def test_prepared_data_need_no_source():
    put("results/real/prepared/unpaired/100307.h5", "results/real/prepared/god/Subject1.h5")
    data = found(doctor._data, REAL)
    assert data["data: unpaired"] == ("ok", "prepared in results/real/prepared/unpaired") and data["data: god"][0] == "ok" and data["data: nsd"][0] == "note"


# --- weights ----------------------------------------------------------------------------------------------------------


def cache(home: Path, repository: str, file: str) -> None:
    stored = home / f"hub/models--{repository.replace('/', '--')}"
    put(str(stored / "snapshots/0123abc" / file))
    (stored / "refs").mkdir(exist_ok=True)
    (stored / "refs/main").write_text("0123abc")
    assert try_to_load_from_cache(repository, file, cache_dir=home / "hub") == str(stored / "snapshots/0123abc" / file)


def test_networks_of_the_hub_are_looked_for_in_its_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    clip, diffusion = get_pretrained_cfg("ViT-B-32-quickgelu", "openai")["hf_hub"].strip("/"), "stable-diffusion-v1-5/stable-diffusion-v1-5"
    before = found(doctor._weights, REAL)
    for name, repository in (("embedding", clip), ("autoencoder", diffusion)):
        state, words = before[f"network: {name}"]
        assert state == "note" and words.startswith(f"{repository} is not in {tmp_path}/hf/hub yet")
        assert f"snakemake --cores 1 results/real/foundations/{name}" in words
    cache(tmp_path / "hf", clip, "open_clip_model.safetensors")
    cache(tmp_path / "hf", diffusion, "unet/diffusion_pytorch_model.safetensors")  # not the autoencoder
    assert [found(doctor._weights, REAL)[f"network: {name}"][0] for name in ("embedding", "autoencoder")] == ["ok", "note"]
    cache(tmp_path / "hf", diffusion, "vae/diffusion_pytorch_model.safetensors")
    assert found(doctor._weights, REAL)["network: autoencoder"][0] == "ok"
    other = REAL | {"foundations": REAL["foundations"] | {"autoencoder": {"kind": "hub", "revision": "fp16"}}}
    assert found(doctor._weights, other)["network: autoencoder"][0] == "note"


@pytest.mark.parametrize(
    ("files", "gigabytes"),
    [(["nsd.yaml"], 2.53 + 0.33 + 2.1 + 0.04), (["god.yaml"], 2.53 + 0.33 + 2.1 + 0.04), (["nsd.yaml", "additions/nsd_sdxl.yaml"], 2.53 + 0.33 + 6.9 + 0.7),
     (["nsd.yaml", "additions/nsd_unclip.yaml"], 2.53 + 0.33 + 2.6), (["config.yaml"], None)],
)  # fmt: skip
def test_networks_to_fetch_are_listed_with_size_and_licence(files, gigabytes):
    given = read_study(*(ROOT / "config" / name for name in files))
    lines = needed(given, Path(given.results))
    if gigabytes is None:
        assert lines == []
        return
    *networks, total = lines
    assert total == f"networks to fetch: {gigabytes:.1f} GB" and all(line.rsplit(", ", 2)[1].endswith(" GB") for line in networks)
    assert any("MIT" in line for line in networks) and not any("NC" in line.rsplit(", ", 1)[1] for line in networks)
    put(*(f"{given.results}/foundations/{name}/model.safetensors" for name in ("embedding", "diffusion")))
    assert [line.partition(":")[0] for line in needed(given, Path(given.results))] == ["network autoencoder", "networks to fetch"]


def test_a_frozen_generator_and_its_adapter_are_looked_for_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    given = read_study(ROOT / "config/nsd.yaml")
    before = [one for one in doctor._weights(given) if one.about.startswith("network")]
    assert [(one.about, one.state) for one in before] == [(f"network: {name}", "note") for name in ("embedding", "autoencoder", "diffusion", "diffusion")]
    assert before[3].words.startswith("h94/IP-Adapter is not in") and "IP-Adapter (SD 1.5)" in before[3].words and "0.04 GB" in before[3].words
    cache(tmp_path / "hf", "h94/IP-Adapter", "models/ip-adapter_sd15.safetensors")
    cache(tmp_path / "hf", "stable-diffusion-v1-5/stable-diffusion-v1-5", "unet/diffusion_pytorch_model.fp16.safetensors")
    assert [one.state for one in doctor._weights(given) if one.about.startswith("network")] == ["note", "note", "ok", "ok"]
    alone = read_study(ROOT / "config/nsd.yaml").model_copy(
        update={"foundations": given.foundations.model_copy(update={"diffusion": AutoencoderAlone(kind="autoencoder")})}
    )
    assert [one.words for one in doctor._weights(alone) if one.about == "network: diffusion"] == ["none: the autoencoder alone decodes"]


def test_files_of_weights_are_looked_for():
    state, words = found(doctor._weights, REAL)["network: diffusion"]
    assert state == "missing" and words.startswith("data/weights/cin256-v2.ckpt: no such file")
    put("data/weights/cin256-v2.ckpt")
    assert found(doctor._weights, REAL)["network: diffusion"] == ("ok", "data/weights/cin256-v2.ckpt")
    assert found(doctor._weights)["network: diffusion"] == ("ok", "trained in the study")


def test_a_network_that_the_study_has_got_already():
    put("results/real/foundations/diffusion/model.safetensors")
    assert found(doctor._weights, REAL)["network: diffusion"] == ("ok", "in results/real/foundations/diffusion")


def test_measures_without_their_network_and_where_to_get_it(monkeypatch):
    content = TINY | {"evaluation": {"metrics": ["mse", "swav"], "squeezenet": None}}
    state, words = found(doctor._weights, content)["measure: swav"]
    assert state == "note" and "$UNIMIND_WEIGHTS" in words and "docs/metrics.md" in words and "swav will be left out" in words
    assert found(doctor._weights, content)["measure: squeezenet"][0] == "note"
    monkeypatch.setenv("UNIMIND_WEIGHTS", "weights")
    put("weights/swav_800ep_pretrain.pth.tar")
    _, words = found(doctor._weights, content)["measure: swav"]
    assert "swav_800ep_pretrain.pth.tar" in words and "not set" not in words
