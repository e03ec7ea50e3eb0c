"""Every way to enter with every body: trained for two steps, written, loaded, and drawn from in the same way."""

import pytest
import torch
from test_condition_stage import diffusion  # noqa: F401 - fixture
from tiny_training import CONVMIXER, MLP, VIT, study_of_methods

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.models.encoder import load_encoder
from unimind.reconstruction.decoder import Decoder
from unimind.training.align import align
from unimind.training.condition import condition
from unimind.training.enter import enter, teach

TWO = {"steps": 2, "batch_size": 8, "validate_every": 2}
ENTERS = {"interpolate": {}, "wrap": {}, "max-pool": {}, "adapter": {}, "ridge": {"alphas": [10.0, 100.0], "folds": 2}, "decoded": {}}
BODIES = {"identity": {"kind": "identity"}, "mlp": MLP, "convmixer": CONVMIXER, "vit": VIT}
COMBINATIONS = [(enter, body) for enter in ENTERS for body in BODIES if body != "identity" or enter in ("ridge", "decoded")]
#: What single systems have: each in one combination.
ENTERS |= {"embedder": {"pooled": 16, "bottleneck": 4}, "voxel-tokens": {"queries": 4}}
BODIES |= {"residual": {"kind": "residual", "depth": 1}}
COMBINATIONS += [("embedder", "residual"), ("ridge", "residual"), ("voxel-tokens", "mlp"), ("voxel-tokens", "vit")]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


def responses(files, subject="subj01", channels=1, order="anatomical"):
    with PreparedSubject(files / f"{subject}.h5") as data:
        return data.by_picture(data.trials("test"), order, channels)[1]


@pytest.mark.parametrize(("way", "body"), COMBINATIONS)
def test_every_combination_runs(files, diffusion, tmp_path, monkeypatch, way, body):  # noqa: F811
    """With and without a condition stage, from noise and from the predicted latent; the body in the path, the closed form too."""
    monkeypatch.setattr("unimind.training.align.held_out", lambda subjects: {})  # the last weights are kept, whatever they are
    closed = way in ("ridge", "decoded")
    form = {"kind": way, **ENTERS[way]} | ({} if closed else {"size": 32, "repeats": "mean"})
    method = {"enter": form, "body": BODIES[body], "condition": {"training": TWO}, "sampling": {"strength": 0.5}}
    if body != "identity":
        method["align"] = {"losses": {"latent": 1.0}, "training": TWO}
    if not closed:
        method["adapt"] = {"strategy": "everything", "training": TWO}
    study = study_of_methods(m=method)
    prepared, embeddings = [files / f"{name}.h5" for name in ("subj01", "subj02")], [files / "embeddings.h5"] * 2
    own: list = [None, None]
    if closed:
        teach(study, "m", "sim", prepared, embeddings, tmp_path / "taught")
        for number, subject in enumerate(("subj01", "subj02")):
            own[number] = tmp_path / f"entered{number}"
            enter(study, "m", "sim", subject, prepared[number], embeddings[number], tmp_path / "taught", own[number])
    entered = own if closed else None
    group = ("sim", None if closed else prepared, embeddings, entered)
    if body != "identity":
        align(study, "m", *group, None, tmp_path / "c", tmp_path / "aligned")
    with_stage = (study, "m", *group, tmp_path / "aligned" if body != "identity" else None, diffusion, None, None, tmp_path / "c", tmp_path / "conditioned")
    condition(*with_stage)

    given = responses(files)
    models = [tmp_path / "conditioned", *([tmp_path / "aligned"] if body != "identity" else [own[0]])]
    for model in models:
        one, other = (Decoder(model, own[0] if closed else None, "sim", "subj01").to(torch.device("cpu")) for _ in range(2))
        found, again = one.predict(given), other.predict(given)
        assert found.embedding.shape == (8, 12) and found.latent.shape == (8, 2, 2, 2) and set(found.targets) == {"embedding", "latent"}
        assert (found.condition is None) == (model != tmp_path / "conditioned") and (found.condition is None or len(found.condition.context) == 8)
        parts = [*found.targets.values(), *(found.condition or ())]
        assert all(map(torch.equal, parts, [*again.targets.values(), *(again.condition or ())])) and all(torch.isfinite(part).all() for part in parts)
        assert found.embedding.std(0).max() > 1e-6 and one.body == (body != "identity")
        if one.body:
            without = one.predict(given, cut=True)
            shift = (found.embedding - without.embedding).std(0).max()
            assert shift > 0 and (closed or without.embedding.std(0).max() < 1e-5)
    encoder, config = load_encoder(models[0])
    assert config["encoder"]["enter"]["kind"] == way and config["encoder"]["body"]["kind"] == body and encoder.targets == ("embedding", "latent")


def test_a_model_without_the_subject_s_closed_form_says_so(files, tmp_path):
    study = study_of_methods(m={"scope": "subject", "enter": {"kind": "ridge", "alphas": [10.0]}, "sampling": {"strength": 0}})
    enter(study, "m", "sim", "subj02", files / "subj02.h5", files / "embeddings.h5", None, tmp_path / "own")
    decoder = Decoder(tmp_path / "own", None, "sim", "subj01").to(torch.device("cpu"))
    with pytest.raises(InputError, match="run the stage `enter`"):
        decoder.predict(responses(files))
    with pytest.raises(InputError, match="sim-subj01: this model has no decoder of that subject"):
        Decoder(tmp_path / "own", tmp_path / "own", "sim", "subj01")
