"""Foundations trained in a study: the arithmetic of their losses, their latents' scale, what they are trained on."""

import h5py
import numpy as np
import pytest
import torch

from unimind.data.drawn import CLASSES, COLOURS, COLUMNS, HALF, ROWS, combinations, draw
from unimind.foundations import load_autoencoder, load_classifier, load_diffusion, load_embedding
from unimind.foundations.study_clip import CONTEXT, Words
from unimind.study import parse_study
from unimind.training.foundations.build import foundation
from unimind.training.foundations.diffusion import _training_targets
from unimind.training.foundations.embedding import contrastive
from unimind.training.foundations.pictures import drawn_pictures


@pytest.fixture(scope="module")
def study():
    short = {"steps": 6, "batch_size": 8, "validate_every": 3}
    return parse_study({
        "name": "networks", "picture_size": 32,
        "datasets": {"d": {"source": "simulated", "training_subjects": ["subj01"]}},
        "methods": {"ridge": {"scope": "subject", "encoder": {"kind": "ridge"}}},
        "foundations": {
            "drawn": {"count": 96},
            "embedding": {"kind": "study-clip", "dim": 16, "training": short},
            "autoencoder": {"kind": "study", "latent_channels": 4, "downsampling": 4, "width": 16, "training": short},
            "diffusion": {"kind": "study", "channels": [16, 32], "blocks": 1, "context_dim": 16, "context_tokens": 2, "training": {**short, "ema": 0.9}},
            "classifier": {"kind": "study", "training": short},
        },
    })  # fmt: skip


@pytest.fixture(scope="module")
def built(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foundations")
    for name in ("embedding", "autoencoder", "classifier", "diffusion"):
        foundation(study, name, folder / "embedding", folder / "autoencoder", [], [], folder / f"{name}.checkpoints", folder / name)
    return folder


def test_interfaces(study, built):
    images = drawn_pictures(study).images[:5].float() / 255
    embedding, autoencoder, classifier, diffusion = (
        load_embedding(built / "embedding"),
        load_autoencoder(built / "autoencoder"),
        load_classifier(built / "classifier"),
        load_diffusion(built / "diffusion"),
    )
    vectors = embedding.encode(images)
    assert vectors.shape == (5, 16) and torch.allclose(vectors.norm(dim=1), torch.ones(5))
    latents = autoencoder.encode(images)
    assert latents.shape == (5, 4, 8, 8) == (5, *diffusion.latent_shape)
    decoded = autoencoder.decode(latents)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert classifier(images).shape == (5, len(CLASSES)) and classifier.classes == list(CLASSES)
    condition = diffusion.conditioner(vectors)
    assert diffusion(latents, torch.tensor([3]), condition).shape == latents.shape
    assert not any(parameter.requires_grad for network in (embedding, autoencoder, classifier, diffusion) for parameter in network.parameters())


def test_latents_have_unit_scale(study, built):
    with torch.no_grad():
        latents = load_autoencoder(built / "autoencoder").encode(drawn_pictures(study).images.float() / 255)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_contrastive_is_clips_loss_where_captions_differ():
    torch.manual_seed(0)
    images, captions = (torch.nn.functional.normalize(torch.randn(6, 9), dim=1) for _ in range(2))
    logits = 10.0 * images @ captions.T
    expected = -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(contrastive(images, captions, torch.eye(6), torch.tensor(10.0)), expected)


def test_equal_captions_are_equally_right():
    images = torch.nn.functional.normalize(torch.randn(4, 5), dim=1)
    captions = images[[0, 0, 2, 3]]
    same = torch.eye(4)
    same[0, 1] = same[1, 0] = 1
    swapped = torch.tensor([1, 0, 2, 3])
    torch.testing.assert_close(
        contrastive(images, captions, same, torch.tensor(5.0)), contrastive(images, captions[swapped], same[:, swapped], torch.tensor(5.0))
    )


def test_words_close_with_the_largest_number():
    words = Words.of(["a red disc", "a blue disc"])
    tokens = words(["a red disc"])
    assert tokens.shape == (1, CONTEXT) and tokens[0].argmax() == 4 and tokens[0, 4] == words.size - 1 and tokens[0, 5:].sum() == 0


def test_training_targets_leave_every_test_picture_out(tmp_path):
    def write(name, hashes, test):
        n = len(hashes)
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["sha256"], file["test"] = hashes, np.array(test)
        with h5py.File(tmp_path / f"{name}.e.h5", "w") as file:
            file["latent"], file["embedding"] = (
                np.full((n, 1, 2, 2), [[[[int(h)]]] for h in hashes][0], np.float32),
                np.array([[int(h)] for h in hashes], np.float32),
            )

    write("one", ["1", "2", "3"], [False, True, False])
    write("two", ["3", "4", "5"], [True, False, False])
    _, vectors = _training_targets([tmp_path / "one.h5", tmp_path / "two.h5"], [tmp_path / "one.e.h5", tmp_path / "two.e.h5"])
    assert vectors.ravel().tolist() == [1.0, 4.0, 5.0]


def test_drawn_pictures_are_what_the_captions_say():
    numbers = combinations("subjects", 3)[:200]
    drawn = draw(numbers, 48)
    assert drawn.images.shape == (200, 48, 48, 3) and np.array_equal(draw(numbers, 48).images, drawn.images)
    found, said = [], []
    for image, caption, features, kind in zip(drawn.images, drawn.captions, drawn.features, drawn.classes, strict=True):
        assert f" {CLASSES[kind]} " in caption
        colour = list(COLOURS)[features[len(CLASSES) : len(CLASSES) + len(COLOURS)].argmax()]
        assert f" {colour} " in caption
        distance = np.abs(image.astype(int) - np.array(COLOURS[colour])).sum(-1)
        found.append(np.argwhere(distance <= np.quantile(distance, 0.02)).mean(0))
        row, column = caption.split(" at the ")[1].split(" on a ")[0].split(" ", 1)
        said.append((ROWS.index(row), COLUMNS.index(column)))
    for axis in (0, 1):
        assert np.corrcoef(np.array(found)[:, axis], np.array(said)[:, axis])[0, 1] > 0.8


def test_foundations_and_subjects_never_share_a_picture():
    subjects, foundations = combinations("subjects", 0), combinations("foundations", 1)
    assert len(subjects) == len(foundations) == HALF and not set(subjects) & set(foundations)
    assert set(combinations("subjects", 5)) == set(subjects) and not np.array_equal(combinations("subjects", 5), subjects)
    images = draw(subjects[:2000], 32).images.reshape(2000, -1)
    assert len(np.unique(images, axis=0)) == 2000
