"""Studies drawn by pipelines taken as they are, and by the autoencoder alone: from pictures and responses to scores."""

import json

import h5py
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch

from unimind.data.prepared import PreparedSubject, write_prepared
from unimind.errors import InputError
from unimind.foundations import load_autoencoder
from unimind.foundations.generators import as_bytes, load_generator
from unimind.reconstruction.decoder import Decoder
from unimind.stages import STAGES
from unimind.storage import read_json
from unimind.study import parse_study
from unimind.training.foundations.build import foundation

SIDE, IMAGES, TEST = tiny.SIZE // 2, 40, 6
SUBJECTS = {"subj01": 30, "subj02": 25, "subj03": 27}
TRAINING = {"steps": 4, "batch_size": 8, "validate_every": 2}


def content_of(folder, **diffusion):
    """A study of two training subjects and a new one, as plain types."""
    plain = {"kind": "ip-adapter", "repository": f"{folder}/base", "adapter": f"{folder}/adapters", "weights": "models/plain.safetensors", "size": tiny.SIZE}
    sampling = {"steps": 3, "guidance": 2.0, "samples": 2, "strength": 0.7}
    align = {"losses": {"siamese": 0.0, "softclip": 0.5}, "noise": 0.4, "training": TRAINING}
    return {
        "name": "drawn", "picture_size": SIDE,
        "datasets": {"d": {"source": "simulated", "training_subjects": ["subj01", "subj02"], "new_subjects": ["subj03"]}},
        "foundations": {
            "embedding": {"kind": "clip-vision", "repository": f"{folder}/adapters"},
            "autoencoder": {"kind": "hub", "repository": f"{folder}/base"},
            "diffusion": diffusion or plain,
        },
        "methods": {
            "unimind": {"enter": {"kind": "decoded"}, "body": {"kind": "mlp", "width": 16, "depth": 1}, "align": align, "sampling": sampling},
            "ridge": {"scope": "subject", "enter": {"kind": "ridge", "alphas": [1.0, 10.0], "folds": 2}, "sampling": {**sampling, "strength": 1.0}},
        },
        "transfer": {"trials": [30, "all"], "seeds": 1},
        "evaluation": {"batch_size": 8, "metrics": ["pixcorr", "identification"], "bootstrap": 50},
    }  # fmt: skip


def run(study, stage, **given):
    """A stage with the view of the study that it declares."""
    declared = STAGES[stage]
    keys = {key.replace("-", "_"): key for key in declared.arguments}
    files = {name: ([] if declared.arguments[key] == "files?" else None) for name, key in keys.items()}
    names = {name: value for name, value in given.items() if declared.arguments.get(keys.get(name)) in ("text", "text?")}
    declared.load()(declared.view(study, **names), **{**files, **given})


def networks(folder):
    return {name: folder / name for name in ("diffusion", "autoencoder", "embedding")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Foundations, targets and prepared subjects whose responses are linear in the pictures' embeddings."""
    root, random = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    torch.manual_seed(0)
    tiny.stable_diffusion(root, xl=False)
    study = parse_study(content_of(root))
    for name in networks(root):
        foundation(study, name, root / "embedding", root / "autoencoder", [], [], None, root / name)
    coarse = random.integers(0, 256, (IMAGES, 4, 4, 3), dtype=np.uint8)
    with h5py.File(root / "stimuli.h5", "w") as file:
        file["images"] = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
        file["id"], file["sha256"], file["test"] = [str(i) for i in range(IMAGES)], [f"{i:064d}" for i in range(IMAGES)], np.arange(IMAGES) < TEST
    run(study, "embed", stimuli=root / "stimuli.h5", embedding=root / "embedding", autoencoder=root / "autoencoder", out=root / "e.h5")
    with h5py.File(root / "e.h5") as file:
        embedding = file["embedding"][:]
    features = (embedding - embedding.mean(0)) / embedding.std(0)
    stimulus = np.repeat(np.arange(IMAGES), 2)
    split = np.where(stimulus < TEST, 2, np.where(stimulus < TEST + 6, 1, 0))
    for subject, voxels in SUBJECTS.items():
        responses = features[stimulus] @ random.standard_normal((tiny.DIM, voxels)) / 4 + random.standard_normal((len(stimulus), voxels)) / 2
        write_prepared(
            root / f"{subject}.h5", responses.astype(np.float32), stimulus=stimulus, session=np.zeros(len(stimulus)), split=split, stimuli=IMAGES,
            dataset="d", subject=subject,
        )  # fmt: skip
    training = [root / "subj01.h5", root / "subj02.h5"]
    run(study, "teach", method="unimind", group="d", prepared=training, embeddings=[root / "e.h5"] * 2, out=root / "taught")
    for subject in SUBJECTS:
        one = {"dataset": "d", "subject": subject, "prepared": root / f"{subject}.h5", "embeddings": root / "e.h5"}
        run(study, "enter", method="unimind", taught=root / "taught", out=root / "entered" / subject, **one)
    run(study, "enter", method="ridge", out=root / "ridge", **one)
    entered = [root / "entered" / path.stem for path in training]
    run(
        study, "align", method="unimind", group="d", embeddings=[root / "e.h5"] * 2, entered=entered, checkpoints=root / "c", out=root / "aligned",
    )  # fmt: skip
    return root


def reconstruct(root, study, method, out, diffusion=None):
    """The new subject's pictures, and the file's attributes."""
    model = {"unimind": {"model": root / "aligned", "entered": root / "entered/subj03"}, "ridge": {"model": root / "ridge"}}[method]
    files = networks(root) | ({"diffusion": diffusion} if diffusion else {})
    one = {"dataset": "d", "subject": "subj03", "prepared": root / "subj03.h5", "embeddings": root / "e.h5", "stimuli": root / "stimuli.h5"}
    run(study, "reconstruct", method=method, out=out, **one, **model, **files)
    with h5py.File(out) as file:
        return {key: value[:] for key, value in file.items()}, dict(file.attrs)


def brought(targets, predicted):
    """Predictions brought to the lengths and the deviation of targets, in numpy."""
    flat, x = (values.reshape(len(values), -1).astype(np.float64) for values in (targets, predicted))
    mean, lengths = flat.mean(0), np.linalg.norm(flat, axis=1)
    away = x - mean
    found = mean + away * (((flat - mean) ** 2).sum(1).mean() ** 0.5 / np.linalg.norm(away, axis=1, keepdims=True))
    own = np.linalg.norm(found, axis=1, keepdims=True)
    return torch.from_numpy(found * own.clip(lengths.min(), lengths.max()) / own).float().view(predicted.shape)


def by_hand(root, predicted):
    """Predictions of unit vectors, as training pictures' embeddings lie."""
    with h5py.File(root / "e.h5") as file:
        raw = (file["embedding"][:] * file["norm"][:][:, None])[TEST + 6 :]
    return brought(raw, predicted * np.linalg.norm(raw, axis=1).mean())


def latent_by_hand(root, decoder):
    """Predicted latents of the new subject's test pictures, as training pictures' latents lie."""
    with PreparedSubject(root / "subj03.h5") as data, h5py.File(root / "e.h5") as file:
        return brought(file["latent"][TEST + 6 :], decoder.predict(data.by_picture(data.trials("test"))[1]).latent.numpy())


@pytest.mark.parametrize("method", ["unimind", "ridge"])
def test_a_pipeline_draws_the_normed_prediction_from_the_predicted_latent(world, tmp_path, method):
    study = parse_study(content_of(world))
    found, said = reconstruct(world, study, method, tmp_path / "r.h5")
    generator = load_generator(world / "diffusion", load_autoencoder(world / "autoencoder"), SIDE)
    start = None
    if method == "unimind":
        decoder = Decoder(world / "aligned", world / "entered/subj03", "d", "subj03").to(torch.device("cpu"))
        start = latent_by_hand(world, decoder)
    sampling = study.methods[method].sampling
    drawn = generator.draw({"embedding": by_hand(world, found["predicted"])}, [(study.seed, image, 1) for image in range(TEST)], sampling, start)
    difference = abs(as_bytes(drawn).astype(int) - found["samples"][:, 1])  # sums in another order
    assert found["samples"].shape == (TEST, 2, SIDE, SIDE, 3) and difference.max() <= 2 and difference.mean() < 0.1
    assert found["samples"].astype(float).std(0).max() > 1 and (found["samples"][:, 0] != found["samples"][:, 1]).any()
    assert said["generator"] == generator.name and (said["strength"], said["drawn_at"], said["resized_to"]) == (sampling.strength, tiny.SIZE, SIDE)
    norms = json.loads(said["norms"])
    assert set(norms) == ({"embedding", "latent"} if method == "unimind" else {"embedding"}) and "deviation" in norms["embedding"]
    assert "models/plain.safetensors" in json.loads(said["weights"])


def test_scores_and_budgets_of_a_pipeline(world, tmp_path):
    study = parse_study(content_of(world))
    drawn = [tmp_path / f"{method}.h5" for method in study.methods]
    for method, out in zip(study.methods, drawn, strict=True):
        reconstruct(world, study, method, out)
    files = {"embeddings": world / "e.h5", "stimuli": world / "stimuli.h5"}
    run(study, "reconstruct-controls", out=tmp_path / "controls.h5", **files, **networks(world))
    with h5py.File(tmp_path / "controls.h5") as file, h5py.File(world / "e.h5") as targets:
        raw = torch.from_numpy(targets["embedding"][:TEST] * targets["norm"][:TEST][:, None])
        ceiling, unconditional, said = file["embedding_ceiling"][:].astype(int), file["unconditional"][:].astype(int), dict(file.attrs)
    generator = load_generator(world / "diffusion", load_autoencoder(world / "autoencoder"), SIDE)
    sampling = study.methods["unimind"].sampling.model_copy(update={"strength": 1.0})
    keys = [[(study.seed, image, k) for image in range(TEST)] for k in range(2)]
    own = [as_bytes(generator.draw({"embedding": raw}, given, sampling)).astype(int) for given in keys]
    assert np.min([abs(one - ceiling).max((1, 2, 3)) for one in own], 0).max() <= 2
    assert abs(as_bytes(generator.draw(None, keys[0], sampling)).astype(int) - unconditional).max() <= 2
    assert said["absent"] == "{}" and said["generator"] == generator.name
    one = {"dataset": "d", "subject": "subj03", "prepared": world / "subj03.h5", **files}
    run(study, "features", stimuli=world / "stimuli.h5", embedding=world / "embedding", out=tmp_path / "features.h5")
    score = {"reconstructions": drawn, "controls": tmp_path / "controls.h5", "features": tmp_path / "features.h5", "embedding": world / "embedding"}
    run(study, "score", out=tmp_path / "metrics", **one, **score)
    rows = read_json(tmp_path / "metrics/unimind.json")
    assert {"pixcorr", "identification"} <= set(rows["rows"]["reconstruction"]) and rows["sampling"]["generator"] == generator.name
    networks_and = {**networks(world), "features": tmp_path / "features.h5", "checkpoints": tmp_path / "budgets"}
    run(study, "transfer", method="unimind", shared=world / "aligned", taught=world / "taught", out=tmp_path / "curve.json", **one, **networks_and)
    entries = read_json(tmp_path / "curve.json")["entries"]
    assert [entry["budget"] for entry in entries] == ["30", "all"]
    assert all(set(entry["rows"]["reconstruction"]) == {"pixcorr", "identification"} and entry["costs"]["parameters"] > 10_000 for entry in entries)


def test_unclip_draws_too(world, tmp_path):
    torch.manual_seed(1)
    tiny.unclip(tmp_path / "unclip")
    study = parse_study(content_of(world, kind="unclip", repository=str(tmp_path / "unclip"), size=tiny.SIZE, noise_level=40))
    foundation(study, "diffusion", None, None, [], [], None, tmp_path / "diffusion")
    found, said = reconstruct(world, study, "unimind", tmp_path / "r.h5", tmp_path / "diffusion")
    assert found["samples"].shape == (TEST, 2, SIDE, SIDE, 3) and (said["kind"], said["noise_level"]) == ("unclip", 40) and "norms" in said


def test_the_autoencoder_alone_is_a_generator_with_neither_samples_nor_a_ceiling(world, tmp_path):
    content = content_of(world, kind="autoencoder")
    content["methods"] = {"ridge": content["methods"]["ridge"] | {"sampling": {"strength": 0}}}
    study = parse_study(content)
    foundation(study, "diffusion", None, None, [], [], None, tmp_path / "diffusion")
    found, said = reconstruct(world, study, "ridge", tmp_path / "r.h5", tmp_path / "diffusion")
    decoder = Decoder(world / "ridge", None, "d", "subj03").to(torch.device("cpu"))
    with torch.no_grad():
        expected = as_bytes(load_autoencoder(world / "autoencoder").decode(latent_by_hand(world, decoder)))
    assert abs(found["samples"][:, 0].astype(int) - expected).max() <= 1
    assert said["sampler"] == "none: the autoencoder alone" and set(json.loads(said["norms"])) == {"latent"}
    files = {"stimuli": world / "stimuli.h5", "embeddings": world / "e.h5", **networks(world), "diffusion": tmp_path / "diffusion"}
    run(study, "reconstruct-controls", out=tmp_path / "controls.h5", **files)
    with h5py.File(tmp_path / "controls.h5") as file:
        assert set(json.loads(file.attrs["absent"])) == {"embedding-ceiling", "unconditional"} and "autoencoder_ceiling" in file
        assert "unconditional" not in file


@pytest.mark.parametrize(
    ("diffusion", "sampling", "message"),
    [
        ({}, {"precision": "bf16"}, "sampling.precision: bf16 given, but a pipeline that is taken as it is draws in foundations.diffusion.precision"),
        ({"kind": "ip-adapter", "target": "tokens"}, {}, "foundations.diffusion.target tokens given, which no method predicts"),
        ({"kind": "autoencoder"}, {}, "sampling.strength: 0.7 given, but with foundations.diffusion.kind autoencoder nothing else is drawn"),
    ],
)
def test_what_a_generator_cannot_use_is_refused(diffusion, sampling, message):
    content = content_of("folder", **diffusion)
    content["methods"]["unimind"]["sampling"] |= sampling
    with pytest.raises(InputError, match=message):
        parse_study(content)
