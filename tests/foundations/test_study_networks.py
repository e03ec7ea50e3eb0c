"""Foundations trained in a study: the arithmetic of their losses, their latents' scale, what they are trained on."""

import csv
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from unimind.data.drawn import ATTRIBUTES, BACKGROUNDS, CLASSES, COLOURS, N_KINDS, N_REST, combinations, kinds, render
from unimind.data.prepare import assign_splits
from unimind.errors import InputError
from unimind.foundations import load_autoencoder, load_classifier, load_diffusion, load_embedding
from unimind.foundations.diffusion import Conditioning
from unimind.study import parse_study
from unimind.training.foundations.build import foundation
from unimind.training.foundations.captioned import CONTEXT, Words
from unimind.training.foundations.classifier import TOLD
from unimind.training.foundations.diffusion import _training_targets
from unimind.training.foundations.embedding import contrastive
from unimind.training.foundations.pictures import attribute_accuracy, attribute_loss, drawn_pictures


@pytest.fixture(scope="module")
def study():
    short = {"steps": 6, "batch_size": 8, "validate_every": 3}
    return parse_study({
        "name": "networks", "picture_size": 32,
        "datasets": {"d": {"source": "simulated", "training_subjects": ["subj01"]}},
        "methods": {"ridge": {"scope": "subject", "enter": {"kind": "ridge"}}},
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
    told = classifier.attribute_logits(images)
    assert {name: logits.shape for name, logits in told.items()} == {name: (5, len(ATTRIBUTES[name])) for name in TOLD}
    assert torch.equal(classifier(images), told["class"]) and classifier.classes == list(CLASSES)
    condition = diffusion.conditioner(vectors)
    assert diffusion(latents, torch.tensor([3]), condition).shape == latents.shape
    assert not any(parameter.requires_grad for network in (embedding, autoencoder, classifier, diffusion) for parameter in network.parameters())


def test_embedding_a_picture_loads_nothing_for_captions(built):
    code = (
        "import sys, torch; from unimind.foundations import load_embedding; "
        "load_embedding(sys.argv[1]).encode(torch.rand(1, 3, 32, 32)); print([name for name in ('open_clip', 'diffusers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(built / "embedding")], capture_output=True, text=True, check=False)
    assert (ran.stdout.strip(), ran.returncode) == ("[]", 0), ran.stderr


def test_the_unet_sees_a_sketch_that_training_brings_nearer_to_the_latent(study, built):
    images = drawn_pictures(study).images.float() / 255
    embedding, autoencoder, diffusion = load_embedding(built / "embedding"), load_autoencoder(built / "autoencoder"), load_diffusion(built / "diffusion")
    latents, condition, null = autoencoder.encode(images), diffusion.conditioner(embedding.encode(images)), diffusion.null()
    sketch = diffusion.sketch(condition.time)
    assert sketch.shape == latents.shape and not diffusion.sketch(null.time).any()
    assert (sketch[0] - sketch[1]).abs().max() > 1e-4
    timestep, noise = torch.full((2,), 900), torch.randn(2, *latents.shape[1:])
    same, other = (Conditioning(null.context.expand(2, -1, -1), time) for time in (condition.time[[0, 0]], condition.time[[0, 1]]))
    seen, drawn = sketch[:2], diffusion(noise, timestep, other)
    torch.testing.assert_close(drawn, diffusion(noise, timestep, other, seen))
    assert (drawn - diffusion(noise, timestep, other, seen.flip(0))).abs().max() > 1e-4  # the sketch alone differs
    torch.testing.assert_close(diffusion(noise, timestep, null.expand(2)), diffusion(noise, timestep, null.expand(2), torch.zeros_like(seen)))
    rows = csv.DictReader((built / "diffusion" / "losses.csv").open())
    error = [float(row["value"]) for row in rows if (row["split"], row["term"]) == ("validation", "sketch")]
    assert len(error) > 1 and error[-1] < error[0], error


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


def test_attributes_are_weighed_alike_and_counted_one_by_one():
    torch.manual_seed(0)
    logits, attributes = (torch.randn(7, 4), torch.randn(7, 3)), torch.stack([torch.randint(0, 4, (7,)), torch.randint(0, 3, (7,))], 1)
    expected = -sum(one.softmax(1)[row, attributes[row, k]].log() for k, one in enumerate(logits) for row in range(7)) / 7
    torch.testing.assert_close(attribute_loss(logits, attributes), expected)
    right = [sum(int(one[row].argmax()) == int(attributes[row, k]) for row in range(7)) / 7 for k, one in enumerate(logits)]
    assert attribute_accuracy(logits, attributes) == pytest.approx(right)


def test_words_close_with_the_largest_number():
    words = Words.of(["a red disc", "a blue disc"])
    tokens = words(["a red disc"])
    assert tokens.shape == (1, CONTEXT) and tokens[0].argmax() == 4 and tokens[0, 4] == words.size - 1 and tokens[0, 5:].sum() == 0


def test_training_targets_leave_every_test_and_validation_picture_out(tmp_path):
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
    files = [tmp_path / "one.h5", tmp_path / "two.h5"], [tmp_path / "one.e.h5", tmp_path / "two.e.h5"]
    assert _training_targets(*files, 0.0, 0)[1].ravel().tolist() == [1.0, 4.0, 5.0]
    many = [str(number) for number in range(200)]
    write("many", many, [False] * 200)
    split = assign_splits(np.array(many), np.zeros(200, int), [], [], 0.3, 7).split
    kept = _training_targets([tmp_path / "many.h5"], [tmp_path / "many.e.h5"], 0.3, 7)[1].ravel().long().tolist()
    assert kept == np.flatnonzero(split == 0).tolist() and 100 < len(kept) < 180, "a validation picture of a subject trains the UNet"


def test_drawn_pictures_are_what_the_captions_say():
    numbers = combinations("training", 3, 400)
    drawn = render(numbers, 48)
    assert drawn.images.shape == (400, 48, 48, 3) and np.array_equal(render(numbers[::-1], 48).images[::-1], drawn.images)
    tones, seen = np.array(list(COLOURS.values())), 0
    solid = [CLASSES.index(name) for name in ("box", "pyramid")]  # at their middle
    for picture, caption, centres, values in zip(drawn.images, drawn.captions, drawn.centres, drawn.attributes, strict=True):
        is_a = {name: ATTRIBUTES[name][value] for name, value in zip(ATTRIBUTES, values, strict=True)}
        said = re.fullmatch(r"a (\w+) (\w+) (\w+) (left of|above|in front of|inside) a (\w+) (\w+) (\w+) at the (\w+) (\w+) ([\w ]+)", caption)
        assert said and [said[8], said[9], said[10]] == [is_a["row"], is_a["column"], BACKGROUNDS[is_a["background"]]]
        expected = [[is_a[f"{prefix}{name}"] for name in ("colour", "texture", "class")] for prefix in ("", "second ")]
        assert list(said.groups()[:3]) == expected[0] and list(said.groups()[4:7]) == expected[1]
        first, second = centres
        between = second - first
        relation = {"left of": between[0] > 0.3, "above": between[1] > 0.3, "in front of": 0.2 < np.hypot(*between) < 0.4, "inside": not between.any()}
        assert relation[said[4]] and sum(relation.values()) == 1
        for prefix, (column, row) in (("", first), ("second ", second)):
            hidden = prefix and is_a["relation"] in ("front", "inside")
            if values[list(ATTRIBUTES).index(f"{prefix}class")] in solid and is_a[f"{prefix}texture"] == "plain" and not hidden:
                there = picture[int(row * 48), int(column * 48)].astype(int)
                assert list(COLOURS)[np.abs(tones - there).sum(1).argmin()] == is_a[f"{prefix}colour"]
                seen += 1
    assert seen > 50


def test_what_follows_the_kind_in_a_number_can_all_be_seen():
    """Of two objects in a relation, all textures, places and backgrounds give pictures of their own."""
    kind = kinds(combinations("training", 3, 1))[0]
    drawn = render(kind * N_REST + np.arange(N_REST), 32)
    assert len(np.unique(drawn.attributes, axis=0)) == N_REST and len(np.unique(drawn.attributes[:, [0, 1, 3, 4, 5]], axis=0)) == 1
    assert len(np.unique(drawn.images.reshape(N_REST, -1), axis=0)) == N_REST


def test_foundations_training_and_test_never_share_a_kind():
    parts = {name: combinations(name, 0, count) for name, count in {"foundations": 20000, "training": 20000, "test": 4000}.items()}
    subjects = parts["training"]
    assert all(len(set(numbers)) == len(numbers) for numbers in parts.values())
    of_part = {name: set(kinds(numbers)) for name, numbers in parts.items()}
    assert sum(map(len, of_part.values())) == len(set.union(*of_part.values())) == N_KINDS, "all kinds, each in one part"
    assert set(kinds(combinations("training", 5, 20000))) == of_part["training"], "whatever the seed"
    with pytest.raises(InputError, match="50000 drawn pictures asked for, but there are 46080 of the part foundations"):
        combinations("foundations", 0, 50000)
    images = render(subjects[:2000], 32).images.reshape(2000, -1)
    assert len(np.unique(images, axis=0)) == 2000
