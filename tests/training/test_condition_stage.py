"""The stage condition on tiny files: its batches, what is random about them, what it trains, and the subject token."""

import csv
import itertools
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image
from tiny_training import ADAPTER, DIM, TRAINING, VOXELS, make_study
from torch import nn

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.foundations import load_autoencoder, load_diffusion
from unimind.foundations.diffusion import Diffusion, noised
from unimind.foundations.study_autoencoder import SpaceToDepthAutoencoder
from unimind.models.encoder import load_encoder
from unimind.reconstruction.decoder import Decoder
from unimind.storage import load_model, save_model, whole_directory
from unimind.study import parse_study, resolved
from unimind.training import loop
from unimind.training.adapt import adapt
from unimind.training.align import align
from unimind.training.condition import condition

UNET = {
    "sample_size": 2, "in_channels": 2, "out_channels": 2, "block_out_channels": [16], "layers_per_block": 1, "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"], "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 8,
}  # fmt: skip
SHORT = {"steps": 6, "batch_size": 12, "learning_rate": 1e-3, "validate_every": 3}
SUBJECTS = [f"subj0{number + 1}" for number in range(len(VOXELS))]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """A foundation that was never trained."""
    torch.manual_seed(0)
    model = Diffusion("tiny", UNET, {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}, (2, 2, 2), None)
    with whole_directory(folder := tmp_path_factory.mktemp("foundations") / "diffusion") as temporary:
        save_model(temporary, model.state_dict(), {"kind": "study", "name": "tiny", "arguments": model.arguments})
    return folder


def study_of(training, subjects=2, aligned=False, **changes):
    """The first so many subjects are trained on; without alignment, condition trains the encoder too."""
    content = resolved(make_study(pretrain=None, condition={"train_encoder": not aligned, "training": SHORT | training} | changes))
    content["methods"]["m"] |= {} if aligned else {"align": None, "adapt": None}
    content["datasets"]["sim"] |= {"training_subjects": SUBJECTS[:subjects], "new_subjects": SUBJECTS[subjects:] if aligned else []}
    return parse_study(content)


def files_of(files, subjects=2):
    return [files / f"{name}.h5" for name in SUBJECTS[:subjects]], [files / "embeddings.h5"] * subjects


def conditioned(study, files, diffusion, out, subjects=2, encoder=None):
    condition(study, "m", "sim", *files_of(files, subjects), None, encoder, diffusion, None, None, out.with_name(f"{out.name}.checkpoints"), out)


class Watched(Exception):
    pass


def watch(look, study, files, diffusion, tmp_path, subjects=2):
    """Look at the module, and at the functions that the stage gives the training loop."""

    def train(module, *, draw, losses, **more):
        look(module, draw, losses)
        raise Watched

    with patch("unimind.training.condition.train", train), pytest.raises(Watched):
        conditioned(study, files, diffusion, tmp_path / "out", subjects)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_batch_has_its_size_whatever_the_number_of_subjects(files, diffusion, tmp_path, size):
    """Subjects take turns: over three steps of any size all three give as many rows, and every picture comes before any comes again."""
    batches = []
    watch(
        lambda module, draw, losses: batches.extend(draw(step) for step in range(3 * 44)),
        study_of({"batch_size": size}, subjects=3), files, diffusion, tmp_path, subjects=3,
    )  # fmt: skip
    with h5py.File(files / "embeddings.h5") as file:
        latents = torch.from_numpy(file["latent"][:])
    for batch in batches:
        assert {key: len(column) for key, column in batch.items()} == dict.fromkeys(batch, size)
        for name, responses, index, latent in zip(batch["subject"], batch["responses"], batch["index"], batch["latent"], strict=True):
            assert responses.shape == (1, list(VOXELS.values())[SUBJECTS.index(name.removeprefix("sim-"))])
            assert torch.equal(latent, latents[index])
    for first in range(0, 3 * 44, 3):
        names = [name for batch in batches[first : first + 3] for name in batch["subject"]]
        assert all(names.count(f"sim-{name}") == size for name in SUBJECTS)
    for name in SUBJECTS:
        seen = [int(index) for batch in batches for own, index in zip(batch["subject"], batch["index"], strict=True) if own == f"sim-{name}"]
        assert len(seen) == 44 * size and all(seen.count(picture) == size for picture in set(seen))


def test_two_rows_of_three_subjects_are_trained_in_two_micro_batches(files, diffusion, tmp_path):
    conditioned(study_of({"batch_size": 2, "accumulate": 2}, subjects=3), files, diffusion, tmp_path / "out", subjects=3)
    assert load_model(tmp_path / "out")[1]["kind"] == "conditioned"


def losses_of(folder):
    with open(folder / "losses.csv") as stream:
        return {(int(row["step"]), row["split"]): float(row["value"]) for row in csv.DictReader(stream)}


def test_micro_batches_change_nothing(files, diffusion, tmp_path):
    """Noise, timesteps and dropped conditions belong to rows, however rows are shared out."""
    for accumulate in (1, 4):
        conditioned(study_of({"accumulate": accumulate, "batch_size": 20}, drop=0.3), files, diffusion, tmp_path / str(accumulate))
    whole, shared = losses_of(tmp_path / "1"), losses_of(tmp_path / "4")
    assert shared == pytest.approx(whole, rel=1e-4)
    one, other = load_model(tmp_path / "1")[0], load_model(tmp_path / "4")[0]
    start = load_model(diffusion)[0]
    moved = max((one[name] - start[name]).abs().max().item() for name in one if name.startswith("unet."))
    apart = max((one[name] - other[name]).abs().max().item() for name in one if one[name].numel())
    assert apart < moved / 10


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(files, diffusion, tmp_path):
    study = tmp_path / "study.json"
    study.write_text(json.dumps(resolved(study_of({"batch_size": 20}, drop=0.3))))
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_condition_stage import conditioned
        from unimind.study import read_study
        conditioned(read_study({str(study)!r}), Path({str(files)!r}), Path({str(diffusion)!r}), Path({str(tmp_path / "two")!r}))
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[2])}
    done = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    conditioned(study_of({"batch_size": 20}, drop=0.3), files, diffusion, tmp_path / "one")
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)


def test_every_parameter_of_the_unet_moves_as_it_should(files, diffusion, tmp_path):
    """In memory: cross-attention and its norms, found by their modules, change; all others stay bit for bit."""
    found = {}

    def train(module, **more):
        before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        trained = loop.train(module, **more | {"validate": None})  # the last weights are kept
        found.update({name: torch.equal(before[name], parameter) for name, parameter in module.named_parameters()})
        return trained

    with patch("unimind.training.condition.train", train):
        conditioned(study_of({"steps": 2}), files, diffusion, tmp_path / "out")
    unet = load_diffusion(diffusion).unet
    adaptable = set()
    for name, block in unet.named_modules():
        if isinstance(block, BasicTransformerBlock):
            adaptable |= {f"unet.{name}.{part}.{own}" for part in ("attn2", "norm2") for own, _ in getattr(block, part).named_parameters()}
    assert len(adaptable) == 4 * 7
    same = {name for name, equal in found.items() if equal and name.startswith("unet.")}
    assert same == {f"unet.{name}" for name, _ in unet.named_parameters()} - adaptable
    assert not any(equal for name, equal in found.items() if name.startswith("condition.to_"))


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_dropped_rows_get_the_null_condition_in_training(files, diffusion, tmp_path, drop):
    dropped = []

    def look(module, draw, losses):
        null, seen = module.condition.null(), []
        module.unet.register_forward_pre_hook(lambda unet, given, named: seen.append((given[2], named["class_labels"])), with_kwargs=True)
        for step in range(20):
            batch = draw(step)
            with torch.no_grad():
                losses(module, batch)
            context, time = seen.pop()
            without = (context == null.context).flatten(1).all(1)
            assert torch.equal(without, ~batch["kept"]) and torch.equal((time == 0).all(1), without)
            dropped.append(int(without.sum()))

    watch(look, study_of({"batch_size": 30}, drop=drop), files, diffusion, tmp_path)
    assert len(dropped) == 20 and abs(sum(dropped) - 600 * drop) <= 4 * math.sqrt(600 * drop * (1 - drop))


@pytest.fixture(scope="module")
def with_token(files, diffusion, tmp_path_factory):
    """Aligned with a subject classifier, conditioned with its token, adapted to a new subject."""
    folder = tmp_path_factory.mktemp("token")
    training = TRAINING | {"steps": 150, "validate_every": 50}
    losses = {"siamese": 0.0, "embedding": 1.0, "subject": 1.0}
    method = {"align": {"losses": losses, "training": training}, "enter": ADAPTER | {"repeats": "mean"}}
    study = make_study(pretrain=None, **method, adapt={"training": SHORT}, condition={"train_encoder": False, "training": SHORT})
    with patch.dict(os.environ, {"UNIMIND_DEVICE": "cpu"}), patch("unimind.training.align.held_out", lambda subjects: {}):
        align(study, "m", "sim", *files_of(files), None, None, folder / "c", folder / "aligned")
        conditioned(study, files, diffusion, folder / "conditioned", encoder=folder / "aligned")
        adapt(study, "m", "sim", "subj03", files / "subj03.h5", files / "embeddings.h5", folder / "conditioned", folder / "c", folder / "adapted")
    return folder


def token_by_hand(folder, responses, subject):
    """Layer norm, linear map, GELU of the classifier that alignment left, then the map to the context's width."""
    state, encoder = load_model(folder)[0], load_encoder(folder)[0]
    classifier = {name.removeprefix("subject."): tensor for name, tensor in load_model(folder.with_name("aligned"))[0].items()}
    pooled = encoder(torch.from_numpy(responses)[:, None], f"sim-{subject}").pooled
    hidden = nn.functional.layer_norm(pooled, pooled.shape[1:], classifier["hidden.0.weight"], classifier["hidden.0.bias"])
    hidden = nn.functional.gelu(hidden @ classifier["hidden.1.weight"].T + classifier["hidden.1.bias"])
    return hidden @ state["condition.to_subject.weight"].T + state["condition.to_subject.bias"]


@pytest.mark.parametrize(("model", "subject"), [("conditioned", "subj01"), ("conditioned", "subj02"), ("adapted", "subj01"), ("adapted", "subj03")])
def test_the_subject_token_reaches_the_context(with_token, files, model, subject):
    """As sampling sees it: one token more than asked for, of training subjects and of a new one."""
    with PreparedSubject(files / f"{subject}.h5") as data:
        responses = data.by_picture(data.trials("test"))[1][:, 0]
    decoder = Decoder(with_token / model, None, "sim", subject).to(torch.device("cpu"))
    context = decoder.predict(responses[:, None]).condition.context
    assert context.shape == (len(responses), 8 + 1, 8) and decoder.stage.null().context.shape == (1, 8 + 1, 8)
    with torch.no_grad():
        torch.testing.assert_close(context[:, -1], token_by_hand(with_token / model, responses, subject))


def test_the_subject_token_tells_subjects_apart(with_token, files):
    """Most tokens of a subject are nearer to the mean of its tokens than to the other subject's."""
    tokens = []
    for subject in ("subj01", "subj02"):
        with PreparedSubject(files / f"{subject}.h5") as data:
            responses = data.by_picture(data.trials("train"))[1][:, 0]
        decoder = Decoder(with_token / "conditioned", None, "sim", subject).to(torch.device("cpu"))
        tokens.append(decoder.predict(responses[:, None]).condition.context[:, -1])
    centres = [own.mean(0) for own in tokens]
    right = [((own - centres[number]).norm(dim=1) < (own - centres[1 - number]).norm(dim=1)).float().mean() for number, own in enumerate(tokens)]
    assert min(right) > 0.8


def test_the_classifier_stays_as_alignment_left_it(with_token):
    aligned = {name: tensor for name, tensor in load_model(with_token / "aligned")[0].items() if name.startswith("subject.")}
    for model in ("conditioned", "adapted"):
        state = load_model(with_token / model)[0]
        assert aligned and all(torch.equal(tensor, state[f"condition.{name}"]) for name, tensor in aligned.items())


def test_without_a_subject_classifier_there_is_no_token(files, diffusion, tmp_path):
    conditioned(study_of({"steps": 2}), files, diffusion, tmp_path / "out")
    state, config = load_model(tmp_path / "out")
    assert config["condition"]["subjects"] == 0 and state["condition.null_context"].shape[1] == 8
    assert not any("subject" in name for name in state if name.startswith("condition."))


def test_latents_of_another_network_are_refused_in_words(files, diffusion, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["embedding"], file["latent"] = torch.randn(60, DIM).numpy(), torch.randn(60, 5, 2, 2).numpy()
    with pytest.raises(InputError, match="latents have 5 channels"):
        condition(
            study_of({}), "m", "sim", files_of(files)[0], [tmp_path / "other.h5"] * 2, None, None, diffusion, None, None, tmp_path / "c", tmp_path / "out"
        )


@pytest.mark.parametrize("path", ["cross_attention", "time"])
def test_either_path_can_be_left_out_of_a_training(files, diffusion, tmp_path, path):
    conditioned(study_of({"steps": 2}, **{path: False}), files, diffusion, tmp_path / "out")
    state, config = load_model(tmp_path / "out")
    assert config["condition"][path] is False and all(torch.isfinite(tensor).all() for tensor in state.values())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An autoencoder that was never trained, the pictures of 60 stimuli, and their latents and embeddings."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(2)
    coder = SpaceToDepthAutoencoder(latent_channels=2, downsampling=4, width=16)
    with whole_directory(folder / "autoencoder") as temporary:
        save_model(temporary, coder.state_dict(), {"kind": "study", "name": "tiny", "arguments": coder.arguments})
    random = np.random.default_rng(0)
    with h5py.File(folder / "stimuli.h5", "w") as file:
        file["images"] = random.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
        file["id"], file["sha256"], file["test"] = [str(i) for i in range(60)], [f"{i:064d}" for i in range(60)], np.arange(60) >= 52
    return folder


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_latents_of_crops_are_the_autoencoder_s(files, diffusion, tmp_path, pictures, share):
    """Each of a share of the samples is the latent of four fifths of the picture's side, brought back to size; without crops nothing is encoded."""
    encodings, batches, trained = [], [], []
    encode = SpaceToDepthAutoencoder.encode

    def counted(self, images):
        encodings.append(images)
        return encode(self, images)

    def noised_latent(latent, *more):
        trained.append(latent)
        return noised(latent, *more)

    def look(module, *, draw, losses, **more):
        for step in range(4):
            batches.append(draw(step))
            assert not encodings or step, "pictures are encoded where batches are drawn, away from the device"
            losses(module.train(), batches[-1])
        raise Watched

    places = [pictures / "autoencoder", [pictures / "stimuli.h5"] * 2] if share else [None, None]
    study = study_of({"batch_size": 50}, crop=share)
    watched = patch("unimind.training.condition.train", look), patch("unimind.training.condition.noised", noised_latent)
    with patch.object(SpaceToDepthAutoencoder, "encode", counted), watched[0], watched[1], pytest.raises(Watched):
        condition(study, "m", "sim", *files_of(files), None, None, diffusion, *places, tmp_path / "c", tmp_path / "out")
    with h5py.File(files / "embeddings.h5") as file, h5py.File(pictures / "stimuli.h5") as stimuli:
        whole, images = torch.from_numpy(file["latent"][:]), stimuli["images"][:]
    if not share:
        assert not encodings and all(torch.equal(latents, whole[batch["index"]]) for latents, batch in zip(trained, batches, strict=True))
        return
    coder, cropped, corners = load_autoencoder(pictures / "autoencoder"), 0, set()
    for latents, batch in zip(trained, batches, strict=True):
        for latent, index in zip(latents, batch["index"].tolist(), strict=True):
            if torch.equal(latent, whole[index]):
                continue
            found = []
            for top, left in itertools.product(range(3), repeat=2):  # six of eight pixels
                cut = Image.fromarray(images[index][top : top + 6, left : left + 6]).resize((8, 8), Image.Resampling.BILINEAR)
                pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None].float() / 255
                with torch.no_grad():
                    found.append(((coder.encode(pixels)[0] - latent).abs().max().item(), (top, left)))
            distance, corner = min(found)
            assert distance < 0.05, found  # Pillow rounds to 8 bits
            corners.add(corner)
            cropped += 1
    assert abs(cropped - 100) <= 4 * math.sqrt(200 * 0.25) and len(corners) == 9


def test_crops_without_pictures_are_refused_in_words(files, diffusion, tmp_path):
    with pytest.raises(InputError, match="condition.crop: 0.5 given, so crops are encoded while training; give --autoencoder and --stimuli"):
        conditioned(study_of({}, crop=0.5), files, diffusion, tmp_path / "out")
