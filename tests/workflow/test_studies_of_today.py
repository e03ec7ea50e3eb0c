"""config/nsd.yaml and god.yaml by Snakemake at reduced size: servers stand on loopback, the pipeline is tiny and random, all else is the studies' own."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from test_servers_to_prepared import nsd_bucket
from workflow_clone import ROOT, Clone

sys.path.insert(0, str(ROOT / "tests" / "foundations"))
sys.path.insert(0, str(ROOT / "tests" / "serving"))
sys.path.insert(0, str(ROOT / "tests" / "data"))
import tiny_pipelines as tiny
from hub_standin import Hub
from layouts import write_god_pictures, write_god_subject
from servers import http_site, s3_site

PEOPLE = ("subj01", "subj02", "subj07")  # the last one new
LICENCES = (
    "network embedding: OpenCLIP ViT-H/14 (laion2b_s32b_b79k) (models/image_encoder/model.safetensors), 2.53 GB, MIT",
    "network diffusion: Stable Diffusion 1.5 (unet, vae, text_encoder (fp16)), 2.1 GB, CreativeML-OpenRAIL-M",
    "network diffusion: IP-Adapter (SD 1.5) (models/ip-adapter_sd15.safetensors), 0.04 GB, Apache-2.0",
    "nsd (Natural Scenes Dataset): needs the NSD Data Access Agreement",
)


def reduced(name: str, **data) -> dict:
    """A study of config/ with other data, fewer trials, steps and samples, and without the measures whose networks are hundreds of megabytes."""
    study = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text()) | {"picture_size": tiny.SIZE // 2, "threads": 1}
    study["datasets"][name] |= data
    study["foundations"]["diffusion"]["size"] = tiny.SIZE
    study["methods"]["unimind"]["body"] |= {"width": 16, "depth": 1}
    study["methods"]["unimind"]["align"]["training"] |= {"steps": 20, "batch_size": 32, "validate_every": 10}
    for method in study["methods"].values():
        method["sampling"] = method["sampling"] | {"steps": 3, "samples": 2}
    study["transfer"] |= {"trials": [40, "all"], "seeds": 1}
    study["evaluation"] |= {"metrics": ["pixcorr", "ssim", "retrieval_forward", "retrieval_backward", "identification", "embedding_error"], "bootstrap": 50}
    return study


def repositories(folder) -> dict[str, dict[str, bytes]]:
    """A tiny Stable Diffusion 1.5 with its adapter under the names of the real repositories and files."""
    torch.manual_seed(0)
    tiny.stable_diffusion(folder, xl=False)
    found = {}
    for name, part in {"stable-diffusion-v1-5/stable-diffusion-v1-5": "base", "h94/IP-Adapter": "adapters"}.items():
        files = {file.relative_to(folder / part).as_posix(): file.read_bytes() for file in (folder / part).rglob("*") if file.is_file()}
        found[name] = files | {path.replace(".safetensors", ".fp16.safetensors"): content for path, content in files.items() if part == "base"}
    found["h94/IP-Adapter"]["models/ip-adapter_sd15.safetensors"] = found["h94/IP-Adapter"].pop("models/plain.safetensors")
    return found


@contextlib.contextmanager
def warm(clone: Clone, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Stages of a clone run in forks of one process for the time of the block; the environment to run Snakemake in."""
    here = Path(__file__).parent
    shutil.copy(here / "warm_main.py", clone.folder / "unimind" / "__main__.py")
    environment = environment | {"WARM_SOCKET": str(clone.folder / "warm")}
    command = [sys.executable, str(here / "warm_server.py"), environment["WARM_SOCKET"]]
    server = subprocess.Popen(command, cwd=clone.folder, env=os.environ | environment | {"PYTHONPATH": str(clone.folder)})
    try:
        while not (clone.folder / "warm").exists():
            assert server.poll() is None
            time.sleep(0.1)
        yield environment
    finally:
        server.terminate()
        server.wait()


@pytest.mark.longest
def test_the_study_of_nsd_runs_to_its_report(tmp_path):
    clone = Clone.make(tmp_path / "unimind", standin=False)
    configfile = clone.study(reduced("nsd", training_subjects=list(PEOPLE[:-1]), sessions=2))
    bucket = nsd_bucket(tmp_path / "nsd", training=PEOPLE[:-1], new=PEOPLE[-1:])
    with Hub() as hub, s3_site({"natural-scenes-dataset": bucket}) as s3:
        hub.repositories = repositories(tmp_path / "pipeline")
        servers = {"no_proxy": "127.0.0.1", "AWS_ENDPOINT_URL": s3, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
        with warm(clone, servers) as environment:
            done = clone.snakemake("--configfile", str(configfile), configfile=None, cores=1, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    said = done.stdout + done.stderr
    for line in LICENCES:
        assert line in said
    results = clone.folder / "results/nsd"
    page = (results / "report.html").read_text()
    assert "drawn by Stable Diffusion under IP-Adapter" in page and page.count("CreativeML-OpenRAIL-M") == 2
    assert "no two test pictures there are of different categories" in page and "It shows neither" in page
    for method in ("unimind", "ridge"):
        for subject in PEOPLE:
            with h5py.File(results / f"reconstructions/{method}/nsd/{subject}.h5") as file:
                said = dict(file.attrs)
                assert file["samples"].shape[1:] == (2, tiny.SIZE // 2, tiny.SIZE // 2, 3) and np.ptp(file["samples"][:], axis=0).max() > 0
            assert said["generator"] == "Stable Diffusion stable-diffusion-v1-5/stable-diffusion-v1-5 with ip-adapter_sd15"
            hashes = {name: hashlib.sha256(content).hexdigest() for files in hub.repositories.values() for name, content in files.items()}
            taken = json.loads(said["weights"])
            assert len(taken) == 4 and taken == {name: hashes[name] for name in taken}
            assert (results / f"figures/pictures_nsd_{subject}.png").exists()
    table = pd.read_csv(results / "tables/reconstruction.csv")
    assert {("unimind", "new"), ("ridge", "new"), ("unimind", "train")} <= set(zip(table.method, table.role, strict=True))
    budgets = pd.read_csv(results / "tables/adaptation.csv")
    assert set(budgets.method) == {"unimind", "ridge", "closed-form"} and set(budgets.trials.astype(str)) == {"40", "150"}


def god_site(root: Path, people: tuple[str, ...]) -> dict[str, bytes]:
    """Subjects' files of GOD by bdpy, and beside them the pictures: every voxel a linear sum of the picture's coarse colours, with noise."""
    random = np.random.default_rng(0)
    training, tests, repeats, voxels = 90, 12, 3, 60
    names = [(1443537 + 97 * k, 22563 + k) for k in range(training + tests)]
    values = np.array([float(f"{synset}.{number:06d}") for synset, number in names])
    coarse = random.integers(0, 256, (len(names), 4, 4, 3), dtype=np.uint8)
    write_god_pictures(root / "images", names, coarse.repeat(8, 1).repeat(8, 2), training)
    shown = np.r_[np.arange(training), np.tile(np.arange(training, training + tests), 2 * repeats)]
    kinds = np.r_[np.full(training, 1), np.full(tests * repeats, 2), np.full(tests * repeats, 3)]
    for person in people:
        signal = (coarse.reshape(len(names), -1) / 255 - 0.5) @ random.normal(size=(48, voxels))
        own = signal[shown] * np.where(kinds == 3, 0.5, 1)[:, None] + random.normal(size=(len(shown), voxels))
        write_god_subject(root / f"{person}.h5", kinds, values[shown], own, {"VC": range(voxels)})
    return {f"/{person}.h5": (root / f"{person}.h5").read_bytes() for person in people}


@pytest.mark.longest
def test_the_study_of_god_runs_to_its_report(tmp_path):
    pytest.importorskip("bdpy", reason="bdpy writes GOD's files here; it needs Python < 3.12")
    clone, people = Clone.make(tmp_path / "unimind", standin=False), ("Subject1", "Subject2", "Subject5")
    (tmp_path / "god").mkdir()
    served = god_site(tmp_path / "god", people)
    study = reduced("god", training_subjects=list(people[:-1]), images=str(tmp_path / "god" / "images"))
    study["evaluation"]["metrics"] = ["pixcorr", "ssim", "identification", "embedding_error"]
    configfile = clone.study(study)
    with Hub() as hub, http_site(files=served) as http:
        hub.repositories = repositories(tmp_path / "pipeline")
        servers = {"no_proxy": "127.0.0.1", "UNIMIND_MIRROR_GOD": http.address, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
        with warm(clone, servers) as environment:
            done = clone.snakemake("--configfile", str(configfile), configfile=None, cores=1, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    results = clone.folder / "results/god"
    assert "drawn by Stable Diffusion under IP-Adapter" in (results / "report.html").read_text()
    table = pd.read_csv(results / "tables/reconstruction.csv")
    assert {("unimind", "new"), ("closed-form", "new"), ("ridge", "train")} <= set(zip(table.method, table.role, strict=True))
    imagined = pd.read_csv(results / "tables/decoding.csv")
    assert set(imagined.method) >= {"unimind", "ridge"} and {"candidate_identification"} <= set(imagined.metric) and len(imagined.subject.unique()) == 3
    budgets = pd.read_csv(results / "tables/adaptation.csv")
    assert set(budgets.method) == {"unimind", "ridge", "closed-form"}
