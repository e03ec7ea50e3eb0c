"""Models that travel: out of a study into a bundle, and from there to a subject of one's own."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from hub_standin import COMMIT, Hub
from PIL import Image
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

import unimind
from unimind.bundle import SCHEMA, read_bundle, write_manifest
from unimind.cli import main
from unimind.data.overview import overview
from unimind.data.prepare import prepare
from unimind.data.prepared import PreparedSubject, Stimuli, write_prepared, write_stimuli
from unimind.data.sources.base import Stimulus
from unimind.errors import InputError
from unimind.foundations.embed import embed
from unimind.models.embedding_prior import load_embedding_prior
from unimind.reconstruction.decoder import Decoder
from unimind.reconstruction.predict import predict_pictures
from unimind.serving import decoder as decoder_module
from unimind.serving.export import export
from unimind.storage import load_model
from unimind.streams import generator
from unimind.study import parse_study
from unimind.training.align import align
from unimind.training.embedding_prior import embedding_prior
from unimind.training.enter import enter, teach
from unimind.training.foundations.build import foundation

ROOT = Path(__file__).parents[2]
SHORT = {"steps": 4, "batch_size": 8, "validate_every": 2}
IMAGES, TEST = 60, 12
VOXELS = {"subj01": 30, "subj02": 25, "subj03": 35}
WORDS = ["V1", "V2"]
CONTENT = {
    "name": "home", "picture_size": 32, "threads": 1,
    "datasets": {"d": {"source": "simulated", "training_subjects": ["subj01", "subj02"], "new_subjects": ["subj03"]}},
    "foundations": {
        "drawn": {"count": 64},
        "embedding": {"kind": "study-clip", "dim": 12, "training": SHORT},
        "autoencoder": {"kind": "study", "latent_channels": 4, "downsampling": 4, "width": 16, "training": SHORT},
        "diffusion": {"kind": "study", "channels": [16], "blocks": 1, "context_dim": 16, "context_tokens": 2, "training": SHORT},
    },
    "methods": {
        "unimind": {"enter": {"kind": "decoded"}, "body": {"kind": "mlp", "width": 16, "depth": 1}, "align": {"training": SHORT},
                    "sampling": {"steps": 2, "samples": 2}},
        "ridge": {"scope": "subject", "enter": {"kind": "ridge"}},
    },
}  # fmt: skip
CONTENT["methods"]["sampled"] = CONTENT["methods"]["unimind"] | {"embedding_prior": {"width": 8, "depth": 1, "training": SHORT}}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which a study's training has run, and bundles of its methods: `away/b`, and, of that with a prior over embeddings, `away/p`."""
    root = tmp_path_factory.mktemp("home")
    study, results = parse_study(CONTENT), root / "results/home"
    for name in ("embedding", "autoencoder", "diffusion"):
        foundation(study, name, results / "foundations/embedding", results / "foundations/autoencoder", [], [], None, results / "foundations" / name)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    stimuli, targets = results / "prepared/d/stimuli.h5", results / "embeddings/d/stimuli.h5"
    write_stimuli(stimuli, [Stimulus.from_pixels(str(k), one, k < TEST, 32) for k, one in enumerate(pixels)], IMAGES, 32, {"dataset": "d", "sources": {}})
    targets.parent.mkdir(parents=True)
    embed(study, stimuli, results / "foundations/embedding", results / "foundations/autoencoder", targets)
    with h5py.File(targets) as file:
        features = file["latent"][:].reshape(IMAGES, -1)
    features = (features - features.mean(0)) / features.std(0)
    for subject, voxels in VOXELS.items():
        stimulus = np.tile(np.arange(IMAGES), 2)
        split = np.where(stimulus < TEST, 2, np.where(stimulus < TEST + 5, 1, 0))
        responses = features[stimulus] @ random.standard_normal((features.shape[1], voxels)) / features.shape[1] ** 0.5
        responses += 0.5 * random.standard_normal(responses.shape)
        responses = (responses - responses[split == 0].mean(0)) / responses[split == 0].std(0)
        write_prepared(
            results / f"prepared/d/{subject}.h5", responses.astype(np.float32), stimulus=stimulus, session=np.zeros(len(stimulus)), split=split,
            stimuli=IMAGES, dataset="d", subject=subject, roi=np.arange(voxels) % 2, roi_names=WORDS,
        )  # fmt: skip
    files = [results / f"prepared/d/{subject}.h5" for subject in VOXELS]
    models = results / "models/unimind"
    teach(study, "unimind", "d", files[:2], [targets] * 2, models / "teach/d")
    for subject, file in zip(VOXELS, files, strict=True):
        enter(study, "unimind", "d", subject, file, targets, models / "teach/d", models / f"enter/d-{subject}")
    align(study, "unimind", "d", None, [targets] * 2, [models / f"enter/d-{subject}" for subject in ("subj01", "subj02")], None, root / "c", models / "align/d")
    shutil.copytree(models, results / "models/sampled")  # the same method but for its prior
    entered = [models / f"enter/d-{subject}" for subject in ("subj01", "subj02")]
    embedding_prior(study, "sampled", "d", [targets] * 2, entered, models / "align/d", root / "c", results / "models/sampled/embedding-prior/d")
    export(study, "unimind", root / "away/b", directory=root, licence="mit")
    export(study, "sampled", root / "away/p", directory=root)
    return root


@pytest.fixture
def bundle(home, tmp_path):
    """A copy of the bundle, to be damaged."""
    return shutil.copytree(home / "away/b", tmp_path / "b")


def away(bundle, **changes):
    """A study of one new subject from the bundle."""
    return {"name": "away", "bundle": str(bundle), "datasets": {"d": {"source": "simulated", "new_subjects": ["subj03"]}}} | changes


def trials(home, split):
    """Responses and pictures of the new subject's trials of a split, those of a picture averaged, ascending."""
    with PreparedSubject(home / "results/home/prepared/d/subj03.h5") as data, Stimuli(home / "results/home/prepared/d/stimuli.h5") as stimuli:
        images, responses, _ = data.by_picture(np.flatnonzero(np.isin(data.split, split)), "stored")
        return responses[:, 0], stimuli.read(images)


def predicted(results, subject="subj03", shared=None, own=None):
    decoder = Decoder(shared, own, "d", subject).to(torch.device("cpu"))
    with PreparedSubject(results / f"prepared/d/{subject}.h5") as data:
        return predict_pictures(decoder, data, "test", 64)[1]


# --- what is in it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_predictions_from_a_bundle_are_those_inside_the_study_bit_for_bit(home, tmp_path, form):
    """The parts taken by the real stage, with the bundle and the new subject's own two files alone."""
    results = home / "results/home"
    place = home / "away/b"
    if form == "zip":
        place = tmp_path / "b.zip"
        export(parse_study(CONTENT), "unimind", place, directory=home)
    (tmp_path / "away.yaml").write_text(yaml.safe_dump(away(place)))
    for part in ("teach", "align"):
        assert main(["take", "--study", str(tmp_path / "away.yaml"), "--part", part, "--out", str(tmp_path / part)]) == 0
    enter(
        parse_study(away(place)), "unimind", "d", "subj03", results / "prepared/d/subj03.h5", results / "embeddings/d/stimuli.h5", tmp_path / "teach",
        tmp_path / "own",
    )  # fmt: skip
    inside = predicted(results, shared=results / "models/unimind/align/d", own=results / "models/unimind/enter/d-subj03")
    outside = predicted(results, shared=tmp_path / "align", own=tmp_path / "own")
    assert all(torch.equal(outside.targets[name], inside.targets[name]) for name in ("embedding", "latent"))
    assert inside.embedding.std(0).max() > 0


@pytest.mark.parametrize("name", ["b", "p"])
def test_nothing_of_a_training_subject_is_in_it(home, name):
    """No run of 32 bytes of a response or a picture; no tensor row near one; none of the priors without a subject, none of a subject's maps."""
    results, folder = home / "results/home", home / "away" / name
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in content} == {".json", ".safetensors", ".md"}
    rows = []
    for subject in ("subj01", "subj02"):
        with h5py.File(results / f"prepared/d/{subject}.h5") as file:
            rows += list(file["responses"][:])
    with h5py.File(results / "prepared/d/stimuli.h5") as file:
        rows += list(file["images"][:].reshape(IMAGES, -1))
    for row in rows:
        piece = row.tobytes()[:32]
        assert not any(piece in held for held in content.values())
    responses = {len(row): [] for row in rows if row.dtype == np.float32}
    for row in rows:
        if row.dtype == np.float32:
            responses[len(row)].append(row)
    for name in content:
        if name.endswith("model.safetensors"):
            for key, tensor in load_file(folder / name).items():
                for matrix in (tensor.flatten(1), tensor.flatten(1).T) if tensor.ndim > 1 else (tensor[None],):
                    if (own := responses.get(matrix.shape[-1])) and matrix.is_floating_point():
                        alike = np.corrcoef(np.concatenate([matrix.double().numpy(), np.array(own)]))[: len(matrix), len(matrix) :]
                        assert not np.nanmax(np.abs(alike)) > 0.95, (name, key)
    taught = load_file(folder / "teach/model.safetensors")
    assert "prior.prior..mean" in taught and not any("subj0" in key for key in taught)
    assert not any("subject" in key or ".maps." in key for key in load_file(folder / "align/model.safetensors"))
    assert json.loads((folder / "align/config.json").read_text())["encoder"]["n_voxels"] == {}


def test_a_prior_over_embeddings_travels(home, tmp_path):
    """Taken, it is the one that was trained; in Python, samples are drawn of the embeddings that it makes of the predictions."""
    (tmp_path / "away.yaml").write_text(yaml.safe_dump(away(home / "away/p")))
    assert main(["take", "--study", str(tmp_path / "away.yaml"), "--part", "embedding-prior", "--out", str(tmp_path / "prior")]) == 0
    taken, prior = load_embedding_prior(tmp_path / "prior"), load_embedding_prior(home / "results/home/models/sampled/embedding-prior/d")
    assert taken.arguments == prior.arguments and all(torch.equal(value, prior.state_dict()[name]) for name, value in taken.state_dict().items())
    known, new = trials(home, [0, 1]), trials(home, [2])[0][:2]
    by_mean, sampled = (unimind.load(home / "away" / name, seed=3).fit(*known) for name in "bp")
    assert np.array_equal(sampled.predict(new), by_mean.predict(new))
    noise = torch.stack([torch.randn(prior.size, generator=generator("embedding prior", 3, row, k)) for row in range(2) for k in range(2)])
    wanted = prior.sample(torch.from_numpy(sampled.predict(new)).repeat_interleave(2, 0), noise)
    given = []
    with pytest.MonkeyPatch.context() as patch:
        drawing = decoder_module._loaded(str(home / "away/p")).generator
        patch.setattr(drawing, "draw", lambda inputs, *others, draw=drawing.draw: given.append(inputs["embedding"]) or draw(inputs, *others))
        drawn = sampled.draw(new, samples=2)
    torch.testing.assert_close(torch.cat(given), wanted)
    pairs = zip(sum(drawn, []), sum(by_mean.draw(new, samples=2), []), strict=True)
    assert all(one.tobytes() != other.tobytes() for one, other in pairs)


def test_the_card_and_the_content_say_what_it_is(home):
    content, card = read_bundle(home / "away/b").content, (home / "away/b/README.md").read_text()
    assert content["responses"]["rois"] == WORDS and content["voxel_weights"] is True
    assert [(one["subject"], one["voxels"]) for one in content["trained_on"]] == [("subj01", 30), ("subj02", 25)]
    assert card.startswith("---\nlicense: mit\n") and "| d (simulated) | subj01 | 30 |" in card and "encoding weights of training subjects' voxels" in card


def test_without_voxels_one_gaussian_stands_for_the_mixture(home, tmp_path):
    export(parse_study(CONTENT), "unimind", tmp_path / "b", directory=home, without_voxels=True)
    state, with_voxels = (load_model(folder / "teach")[0] for folder in (tmp_path / "b", home / "away/b"))
    assert state["prior.prior..components"].shape[1] == 0 < with_voxels["prior.prior..components"].shape[1]
    assert torch.equal(state["prior.prior..covariance"], with_voxels["prior.prior..covariance"])
    assert parse_study(away(tmp_path / "b")).methods["unimind"].enter.mixed is False
    assert "is one Gaussian" in (tmp_path / "b/README.md").read_text()
    given = trials(home, [0, 1])
    found = [unimind.load(folder).fit(*given).predict(given[0]) for folder in (tmp_path / "b", home / "away/b")]
    assert np.isfinite(found[0]).all() and not np.allclose(*found)


def test_a_bundle_is_pushed_to_a_hub_and_got_from_it(home, tmp_path):
    """By huggingface_hub itself, against a stand-in on loopback."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(CONTENT))
    read = "import sys; from unimind.bundle import read_bundle\nfor name in sys.argv[1:]: read_bundle(name).check()"
    with Hub() as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_TELEMETRY": "1"}

        def run(*words):
            return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)

        given = ["--study", tmp_path / "s.yaml", "--directory", home, "--method", "unimind", "--out", tmp_path / "b"]
        done = run("-m", "unimind", "export", *given, "--push", "lab/unimind")
        assert done.returncode == 0 and f"pushed to lab/unimind @ {COMMIT}" in done.stderr, done.stderr
        held = hub.repositories["lab/unimind"]
        assert held == {path.relative_to(tmp_path / "b").as_posix(): path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}
        done = run("-c", read, "lab/unimind", f"lab/unimind @ {COMMIT}")
        assert done.returncode == 0, done.stderr
        done = run("-m", "unimind", "take", "--study", write_study(tmp_path, "lab/nothing @ main"), "--part", "teach", "--out", tmp_path / "t")
        assert done.returncode == 2 and "lab/nothing @ main: neither a file here nor to be had from the hub" in done.stderr


def write_study(folder, place):
    (folder / "away.yaml").write_text(yaml.safe_dump(away(place)))
    return folder / "away.yaml"


def test_export_refuses_in_words(home, tmp_path):
    study = parse_study(CONTENT)
    for method, options, words in (
        ("unimnd", {}, "--method: unimnd given, no such method in the study; there are unimind, ridge, sampled"),
        ("ridge", {}, "it shares nothing"),
        ("unimind", {"group": "other"}, "--group: other given; unimind has d"),
        ("unimind", {"directory": tmp_path}, "no such file"),
    ):
        with pytest.raises(InputError, match=words):
            export(study, method, tmp_path / "b", **({"directory": home} | options))
    assert list(tmp_path.iterdir()) == []


# --- a study from it --------------------------------------------------------------------------------------------------


def test_a_study_from_a_bundle_trains_nothing(home, tmp_path):
    ridge = {"ridge": {"scope": "subject", "enter": {"kind": "ridge"}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(away(home / "away/p", methods=ridge, transfer={"trials": [25, "all"]})))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-n", "--cores", "1", "--configfile", "s.yaml"],
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    table = done.stdout.rpartition("job ")[2]
    planned = {line.split()[0] for line in table.splitlines()[2:] if len(line.split()) == 2}
    assert done.returncode == 0 and {"take_model", "take_foundation", "enter_subject", "compare_budgets", "write_report"} <= planned, done.stderr
    trainings = {"teach_closed_form", "align_subjects", "condition_diffusion", "learn_embedding_prior", "pretrain_encoder", "adapt_subject", "train_foundation"}
    assert not planned & trainings
    assert re.search(r"take_model +3\n", table)


def test_what_a_study_may_not_say_beside_a_bundle(home):
    place = home / "away/b"
    convmixer = {"enter": {"kind": "adapter"}, "body": {"kind": "convmixer"}, "align": {"training": {"steps": 4}}}
    for changes, words in (
        ({"picture_size": 64}, "picture_size: 64 given, but .* was trained with 32"),
        ({"methods": {"unimnd": {"enter": {"kind": "decoded"}}}}, "methods.unimnd: no such method in"),
        ({"methods": {"unimind": {"body": {"kind": "mlp", "width": 32}}}}, "methods.unimind.body.width: 32 given"),
        ({"methods": {"other": convmixer | {"scope": "subject"}}}, "methods.other: would have to be trained"),
        ({"methods": {"ridge": CONTENT["methods"]["ridge"] | {"embedding_prior": {}}}}, "methods.ridge: would have to be trained"),
        ({"methods": {"unimind": {"embedding_prior": {}}}}, "methods.unimind.embedding_prior: {} given, but .* was trained with None"),
        ({"datasets": {"d": {"source": "simulated", "training_subjects": ["subj01"]}}}, "training_subjects: subj01 given, but the bundle has been trained"),
        ({"foundations": {"embedding": {"kind": "open-clip"}}}, "foundations.embedding.kind"),
        ({"bundle": str(home / "nowhere")}, "no such bundle"),
    ):
        with pytest.raises(InputError, match=words):
            parse_study(away(place) | changes)
    assert parse_study(away(place, methods={"unimind": {"sampling": {"samples": 3}}})).methods["unimind"].sampling.samples == 3


def test_other_roi_words_are_refused(home, tmp_path):
    with PreparedSubject(home / "results/home/prepared/d/subj03.h5") as data:
        given = {"stimulus": data.stimulus, "session": data.session, "split": data.split, "roi": data.roi}
        write_prepared(tmp_path / "s.h5", data.responses[:], stimuli=IMAGES, dataset="d", subject="subj03", roi_names=["V1", "FFA"], **given)
    with pytest.raises(InputError, match="d subj03: ROI words FFA, but .* was trained on V1, V2"):
        overview(parse_study(away(home / "away/b")), [tmp_path / "s.h5"], None, tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()


def test_pictures_of_the_training_are_no_test_pictures_of_a_new_subject(home, tmp_path, monkeypatch):
    """As inside a study: by the hash of the pixels, through the bundle alone."""
    monkeypatch.chdir(tmp_path)
    with Stimuli(home / "results/home/prepared/d/stimuli.h5") as stimuli:
        images, sha256 = stimuli.read(np.arange(IMAGES)), stimuli.sha256
    assert read_bundle(home / "away/b").pictures() == {"tests": set(sha256[:TEST].tolist()), "trained": set(sha256[TEST:].tolist())}
    random = np.random.default_rng(1)
    shown = np.concatenate([images[TEST : TEST + 6], random.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)])  # half of them trained on
    np.save(tmp_path / "r.npy", random.standard_normal((12, 5)))
    lab = {"source": "arrays", "root": str(tmp_path), "new_subjects": ["a"], "responses": "r.npy", "images": "i.npy", "split": {"every": 3}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(away(home / "away/b", datasets={"d": lab})))
    given = ["--study", "s.yaml", "--dataset", "d"]

    def prepared(pictures, name):
        np.save(tmp_path / "i.npy", pictures)
        assert main(["fetch", *given, "--stimuli", "--out", "p.json"]) == main(["fetch", *given, "--subject", "a", "--out", "a.json"]) == 0
        assert main(["stimuli", *given, "--fetched", "p.json", "--out", f"{name}-p.h5"]) == 0
        study = parse_study(yaml.safe_load((tmp_path / "s.yaml").read_text()))
        prepare(study, "d", "a", tmp_path / "a.json", tmp_path / f"{name}-p.h5", [], tmp_path / f"{name}.h5")

    prepared(shown, "half")
    with PreparedSubject(tmp_path / "half.h5") as data:
        assert data.images("test").tolist() == [6, 9]
    with pytest.raises(InputError, match="the test split is empty: 4 pictures that the data set's test rule asks for are training pictures of the training"):
        prepared(images[TEST : TEST + 12], "all")


# --- what is no bundle ------------------------------------------------------------------------------------------------


def wrong_hash(folder):
    with open(folder / "align/model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")


def short(folder):
    path = folder / "align/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lacking(folder):
    (folder / "teach/config.json").unlink()


def foreign(folder):
    (folder / "extra.pkl").write_bytes(b"x")


def named_foreign(folder):
    foreign(folder)
    write_manifest(folder, "0")


def other_version(folder):
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"schema": SCHEMA + 1}))


def no_bundle(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (wrong_hash, "align/model.safetensors has SHA-256"),
        (short, "cut short: .* bytes of align/model.safetensors"),
        (lacking, "cut short: 0 of"),
        (foreign, "holds extra.pkl, a foreign file"),
        (named_foreign, "names extra.pkl, which no bundle may hold"),
        (other_version, f"schema version {SCHEMA + 1}, and this Unimind reads version {SCHEMA}"),
        (no_bundle, "no bundle there"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(bundle, damage, words, capsys, tmp_path):
    damage(bundle)
    with pytest.raises(InputError, match=words) as refused:
        unimind.load(bundle)
    assert "\n" not in str(refused.value)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(away(bundle)))
    assert main(["take", "--study", str(tmp_path / "s.yaml"), "--part", "align", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_zip_that_is_cut_short_is_refused(bundle, tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(bundle / "manifest.json", "manifest.json")
    with pytest.raises(InputError, match="cut short"):
        read_bundle(tmp_path / "b.zip")
    (tmp_path / "b.zip").write_bytes((tmp_path / "b.zip").read_bytes()[:-30])
    with pytest.raises(InputError, match="not a whole zip file"):
        read_bundle(tmp_path / "b.zip")


def test_other_weights_of_a_network_that_is_not_included_are_refused(bundle):
    content = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(content | {"obtained": {"embedding": {"name": "CLIP", "sources": {"a": "1" * 64}}}}))
    write_manifest(bundle, "0")
    with pytest.raises(InputError, match="foundations.embedding: CLIP of .*2222.* found"):
        read_bundle(bundle).require_foundation("embedding", {"name": "CLIP", "sources": {"a": "2" * 64}})


# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(home):
    return unimind.load(home / "away/b").fit(*trials(home, [0, 1]))


def test_the_estimator_predicts_what_the_study_predicts(home, decoder):
    results = home / "results/home"
    inside = predicted(results, shared=results / "models/unimind/align/d", own=results / "models/unimind/enter/d-subj03").embedding.numpy()
    np.testing.assert_allclose(decoder.predict(trials(home, [2])[0]), inside, atol=1e-3)  # pictures stand in another order, and folds choose penalties
    assert decoder.n_features_in_ == VOXELS["subj03"] and decoder.n_pictures_ == IMAGES - TEST


def test_trials_of_one_picture_are_averaged_and_their_order_is_kept(home, decoder):
    responses, pictures = trials(home, [0, 1])
    noise = np.random.default_rng(0).standard_normal(responses.shape).astype(np.float32)
    twice = clone(decoder).fit(np.concatenate([responses + noise, responses - noise]), [Image.fromarray(one) for one in np.concatenate([pictures] * 2)])
    given = trials(home, [2])[0]
    np.testing.assert_allclose(twice.predict(given), decoder.predict(given), atol=1e-4)


def test_pictures_and_candidates(home, decoder):
    responses, pictures = trials(home, [2])
    drawn = decoder.draw(responses[:2], samples=3)
    assert [[one.size for one in row] for row in drawn] == [[(32, 32)] * 3] * 2 and drawn[0][0].tobytes() != drawn[0][1].tobytes()
    assert all(one.tobytes() == again.tobytes() for one, again in zip(drawn[0], decoder.draw(responses[:1], samples=3)[0], strict=True))
    found = decoder.identify(responses, pictures)
    assert found.index.shape == (TEST, TEST) and (np.diff(found.similarity, axis=1) <= 0).all()
    own, mean = decoder.predict(responses), decoder.mean_embedding_
    a, b = own[3] - mean, decoder.embed(pictures)[found.index[3, 0]] - mean
    assert found.similarity[3, 0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-4)


def test_scikit_learn_can_take_it(home, decoder):
    responses, pictures = trials(home, [0, 1])
    assert clone(decoder).get_params() == {"bundle": str(home / "away/b"), "seed": 0}
    scores = cross_val_score(decoder, responses, pictures, cv=3)
    assert len(scores) == 3 and ((scores >= 0) & (scores <= 1)).all()

    def error(estimator, responses, pictures):
        return -((estimator.predict(responses) - estimator.embed(pictures)) ** 2).mean()

    assert (cross_val_score(decoder, responses, pictures, cv=3, scoring=error) < 0).all()
    with pytest.raises(NotFittedError):
        clone(decoder).predict(responses)


def test_the_estimator_refuses_in_words(home, decoder):
    responses, pictures = trials(home, [0, 1])
    raw = 40 + 8 * responses
    for call, words in (
        (lambda: decoder.predict(responses[:, :-1]), "34 voxels given, but it was fitted to 35"),
        (lambda: decoder.fit(raw, pictures), "not normalised .* z-score every voxel within its session"),
        (lambda: decoder.predict(raw[:1]), "not normalised"),
        (lambda: decoder.fit(responses + 1, pictures), "not normalised"),
        (lambda: decoder.fit(responses, pictures[1:]), "47 pictures for 48 responses"),
        (lambda: decoder.fit(responses, pictures, rois=["V1"] * 34 + ["FFA"]), "ROI words FFA"),
        (lambda: decoder.fit(responses[:1], pictures[:1]), "1 picture; at least two"),
        (lambda: decoder.predict(np.full((2, 35), np.nan)), "missing or infinite"),
        (lambda: decoder.fit(responses, pictures.astype(float)), "give PIL images"),
        (lambda: decoder.draw(responses[:1], samples=0), "samples=0 given"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_import_is_fast():
    code = "import sys, unimind; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_adapted_methods_are_sent_to_a_study(bundle):
    content = json.loads((bundle / "bundle.json").read_text())
    method = content["study"]["methods"]["unimind"]
    method["enter"] = {"kind": "adapter", "size": 32, "order": "anatomical", "repeats": "draw", "dropout": 0.0}
    method |= {"adapt": {"training": {"steps": 4}}}
    (bundle / "bundle.json").write_text(json.dumps(content))
    write_manifest(bundle, "0")
    with pytest.raises(InputError, match="adapted by gradient steps; give `bundle: .*` to a study"):
        unimind.load(bundle)


PAGE, FRONT = (ROOT / "docs/python.md").read_text(), (ROOT / "README.md").read_text()


def test_the_page_runs(home, tmp_path, monkeypatch):
    """docs/python.md, from its first block to its last, with a laboratory's arrays in place, and the lines on the first page."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "away/b", tmp_path / "unimind-nsd")
    (responses, pictures), (seen, shown) = trials(home, [0, 1]), trials(home, [2])
    np.savez(tmp_path / "mine.npz", responses=responses * 3 + 2, pictures=pictures, new_responses=seen * 3 + 2, candidates=shown)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), scope)
    assert scope["embeddings"].shape == (TEST, 12) and len(list(tmp_path.glob("drawn-*.png"))) > 0
    (name,), (lines,) = re.findall(r"--out (\S+)", FRONT)[:1], re.findall(r"```python\n(.*?)```", FRONT, re.DOTALL)
    (tmp_path / "unimind-nsd").rename(name)
    exec(compile(lines, "README.md", "exec"), {"responses": responses, "pictures": pictures, "new_responses": seen})
    with Image.open(tmp_path / "seen.png") as drawn:
        assert drawn.size == (32, 32)
