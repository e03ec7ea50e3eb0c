"""The panel's networks: real architectures, random weights, against the original networks' own forward."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch
from evaluation_fakes import scenes, write_foundations
from independent_table import network_of_2015, settled
from safetensors.torch import save_file

from unimind.errors import InputError
from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.features import stored_features
from unimind.evaluation.panel import Panel, measure, truth_features
from unimind.evaluation.pictures import PictureSet, resize

IMAGENET_MEAN, IMAGENET_STD = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(scenes(3, 64)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def unlisted(monkeypatch):
    """A manifest without hashes: the weights of these tests are random."""
    rows = {name: row | {"sha256": ""} for name, row in networks.manifest().items()}
    monkeypatch.setattr(networks, "manifest", lambda: rows)
    return rows


def random_weights(architecture, seed=0, **options):
    """A network of random weights, normalised by the statistics of some pictures: otherwise deep ones see no difference between any."""
    import torchvision.models

    torch.manual_seed(seed)
    model = getattr(torchvision.models, architecture)(weights=None, **options)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = None
        with torch.no_grad():
            model.train()(torch.from_numpy(scenes(6, 299, 5)).permute(0, 3, 1, 2).float() / 128 - 1)
    return model.eval()


def normalised(images, side, mode="bilinear"):
    return (resize(resize(images, 256), side, mode) - IMAGENET_MEAN) / IMAGENET_STD


def extracted(model, nodes, x):
    from torchvision.models.feature_extraction import create_feature_extractor

    with torch.inference_mode():
        return [value.flatten(1) for value in create_feature_extractor(model, {node: node for node in nodes})(x).values()]


@pytest.mark.parametrize(
    ("name", "architecture", "side", "nodes", "metrics"),
    [
        ("alexnet", "alexnet", 256, ("features.4", "features.11"), ("alexnet2", "alexnet5")),
        ("effnet", "efficientnet_b1", 255, ("avgpool",), ("effnet",)),
        ("swav", "resnet50", 224, ("avgpool",), ("swav",)),
    ],
)
def test_features_are_the_original_networks(name, architecture, side, nodes, metrics, images, tmp_path, unlisted):
    model = random_weights(architecture)
    state = model.state_dict()
    if name == "swav":  # its file has a prefix, no classifier, and heads that torchvision's network lacks
        state = {f"module.{key}": value for key, value in state.items() if not key.startswith("fc.")} | {"module.prototypes.weight": torch.zeros(2, 2)}
        state = {"state_dict": state}
    torch.save(state, tmp_path / unlisted[name]["file"])
    (network,), absent = networks.panel(list(metrics), tmp_path)
    assert not absent and network.measures == metrics
    ours = network(images)
    for metric, expected in zip(metrics, extracted(model, nodes, normalised(images, side)), strict=True):
        torch.testing.assert_close(ours[metric], expected, rtol=1e-4, atol=1e-5)


def test_inception_at_both_sizes(images, tmp_path, unlisted):
    model = random_weights("inception_v3", transform_input=True, init_weights=False)
    torch.save(model.state_dict(), tmp_path / unlisted["inception"]["file"])
    found, absent = networks.panel(["inception", "inception_score_torchvision", "fid_torchvision", "fid"], tmp_path)
    assert [network.name for network in found] == ["inception-299", "inception"] and "needs pt_inception-2015" in absent["fid"]
    score, two_way = (network(images[:2]) for network in found)
    torch.testing.assert_close(two_way["inception"], extracted(model, ["avgpool"], normalised(images[:2], 342))[0], rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(score["logits"], model(normalised(images[:2], 299)), rtol=1e-4, atol=1e-4)


def test_fid_and_inception_score_are_of_tensorflows_inception_of_2015(images, tmp_path, unlisted):
    import torchvision.models

    torch.manual_seed(0)
    model = settled(torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, transform_input=False, init_weights=False), 299)
    torch.save(model.eval().state_dict(), tmp_path / unlisted["inception_2015"]["file"])
    (network,), absent = networks.panel(["inception_score", "fid"], tmp_path)
    ours = network(images[:2])
    pooled, logits = network_of_2015(model, resize(resize(images[:2], 256), 299).permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(ours["pooled"], pooled, atol=1e-4 * np.abs(pooled).max())
    np.testing.assert_allclose(ours["logits"], logits, atol=1e-4 * np.abs(logits).max())
    assert not absent and logits.shape == (2, 1008) and network.protocol()["network"].startswith("Inception of 2015")


def test_clip_is_open_clips_own_forward(images, tmp_path, unlisted, monkeypatch):
    import open_clip

    real, asked = open_clip.create_model, []

    def small(name, **options):
        asked.append(name)
        return real("ViT-S-32-alt", **options)  # of the same class

    monkeypatch.setattr(open_clip, "create_model", small)
    torch.manual_seed(1)
    model = real("ViT-S-32-alt", pretrained=None).eval()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / unlisted["clip"]["file"])
    (network,), _ = networks.panel(["clip"], tmp_path)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    x = (resize(resize(images, 256), 224) - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(network(images)["clip"], model.encode_image(x), rtol=1e-4, atol=1e-5)
    assert asked == ["ViT-L-14-quickgelu"], "OpenAI's CLIPs were trained with the quick GELU"
    config = open_clip.get_model_config(asked[0])
    assert config["embed_dim"] == 768 and config["quick_gelu"] and config["vision_cfg"] == {
        "image_size": 224, "layers": 24, "width": 1024, "patch_size": 14,
    }  # fmt: skip


def test_nway_through_the_panel_is_the_exact_expectation(tmp_path, unlisted, monkeypatch):
    from math import comb

    import torchvision.models

    def small(weights=None, image_size=518):
        return torchvision.models.VisionTransformer(image_size=image_size, patch_size=74, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)

    monkeypatch.setattr(torchvision.models, "vit_h_14", small)
    torch.manual_seed(2)
    model = small().eval()
    torch.nn.init.normal_(model.heads.head.weight)
    torch.save(model.state_dict(), tmp_path / unlisted["vit_h_14"]["file"])
    truths, pictures = scenes(6, 40), np.concatenate([scenes(6, 40, 1), scenes(6, 40)])
    rows = {"reconstruction": np.arange(6), "truth": np.arange(6, 12)}
    panel = Panel.of(["nway_top1"], tmp_path, None)
    theirs = torchvision.models.ViT_H_14_Weights.DEFAULT.transforms()  # what MinD-Vis gives its classifier

    def prepared(images):
        return theirs((resize(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, 256) * 255).round().byte())

    found = measure(panel, PictureSet(truths), PictureSet(pictures), rows, 4)
    with torch.inference_mode():
        inputs = [normalised(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255, 518, "bicubic") for x in (truths, pictures)]
        logits = [model(x).numpy() for x in inputs]
    for x, given in zip(inputs, (truths, pictures), strict=True):
        torch.testing.assert_close(x, prepared(given), atol=1.5 / 255 / 0.224, rtol=0)  # theirs are rounded to whole numbers twice
    for row, index in rows.items():
        for value, truth, own in zip(found[row]["nway_top1"], logits[0], logits[1][index], strict=True):
            below = int((own < own[truth.argmax()]).sum())
            assert value == pytest.approx(comb(below, 49) / comb(999, 49), rel=1e-3, abs=1e-9)
    assert (found["truth"]["nway_top1"] == 1).all() and found["reconstruction"]["nway_top1"].mean() < 1
    assert panel.protocol()["nway_top1"]["network"].startswith("ViT-H/14") and panel.similarity is None


def test_inception_score_and_fid_through_the_panel(tmp_path, unlisted):
    model = random_weights("inception_v3", transform_input=True, init_weights=False)
    torch.nn.init.normal_(model.fc.weight, std=0.05)
    torch.save(model.state_dict(), tmp_path / unlisted["inception"]["file"])
    truths, pictures = scenes(12, 40), scenes(12, 40, 1)  # ten parts, two of which hold two pictures
    names = ["inception_score_torchvision", "fid_torchvision"]
    found = measure(Panel.of(names, tmp_path, None), PictureSet(truths), PictureSet(pictures), {"reconstruction": np.arange(12)}, 5)
    x, y = (normalised(torch.from_numpy(v).permute(0, 3, 1, 2).float() / 255, 299) for v in (truths, pictures))
    a, b = (extracted(model, ["avgpool"], v)[0].double().numpy() for v in (x, y))
    with torch.inference_mode():
        p = model(y).double().softmax(1).numpy()
    means = [np.exp((part * np.log(part / part.mean(0))).sum(1).mean()) for part in np.array_split(p, 10)]
    assert found["reconstruction"]["inception_score_torchvision"].value == pytest.approx(np.mean(means), rel=1e-4)
    assert found["reconstruction"]["fid_torchvision"].value == pytest.approx(m.fid(a, b), rel=1e-3)  # against scipy's root in test_metrics_independent
    assert np.mean(means) > 1.001 and m.fid(a, b) > 1, "pictures this network cannot tell apart prove nothing"


@pytest.mark.parametrize(
    ("kind", "architecture", "name"), [("alex", "alexnet", "alexnet"), ("squeeze", "squeezenet1_1", "squeezenet"), ("vgg", "vgg16", "vgg16")]
)
def test_lpips_is_the_packages(kind, architecture, name, images, tmp_path):
    import lpips as package

    model = random_weights(architecture)
    file = tmp_path / f"{architecture}.pth"
    torch.save(model.state_dict(), file)
    theirs = package.LPIPS(net=kind, pnet_rand=True, verbose=False).eval()
    own = theirs.net.state_dict()
    images = images[:2]
    theirs.net.load_state_dict({key: model.state_dict()["features." + key.split(".", 1)[1]] for key in own})
    ours = networks.lpips(kind, file, "-")
    other = images.flip(0)
    a, b = resize(images, 256), resize(other, 256)
    with torch.inference_mode():
        expected = theirs(a * 2 - 1, b * 2 - 1).flatten()
    torch.testing.assert_close(m.squared_distance(ours(images)[0], ours(other)[0]), expected, rtol=1e-3, atol=1e-6)


def test_squeezenet_alone_is_what_it_is_beside_its_maps_and_takes_truths_from_the_features(tiny, tmp_path, monkeypatch):
    torch.save(random_weights("squeezenet1_1").state_dict(), tmp_path / "squeezenet.pth")
    changed = {"metrics": ["squeezenet", "lpips_squeeze"], "squeezenet": str(tmp_path / "squeezenet.pth")}
    tiny.study = tiny.study.model_copy(update={"evaluation": tiny.study.evaluation.model_copy(update=changed)})
    features = tiny.features()
    pictures, truths = PictureSet(tiny.noisy(40, 0)), PictureSet(tiny.images[tiny.test])
    panels = [Panel.of(wanted, None, str(tmp_path / "squeezenet.pth")) for wanted in (["squeezenet"], ["squeezenet", "lpips_squeeze"])]
    assert panels[0].protocol()["squeezenet"] == panels[1].protocol()["squeezenet"]
    rows = {"all": np.arange(tiny.n_test)}
    with_maps = measure(panels[1], truths, pictures, rows)["all"]
    with monkeypatch.context() as context:
        context.setattr(truths, "batch", None)
        alone = measure(panels[0], truths, pictures, rows, 64, lambda network: stored_features(features, tiny.test, network))["all"]
    np.testing.assert_array_equal(alone["squeezenet"], with_maps["squeezenet"])
    np.testing.assert_allclose(alone["similarity"], with_maps["similarity"], atol=1e-4)
    assert 0.5 < alone["squeezenet"].mean() and alone["similarity"].std() > 0


def test_perceptual_distance_is_unweighted_lpips(images, tmp_path, fakes):
    from evaluation_fakes import Classifier
    from lpips import normalize_tensor

    ours = networks.of_classifier(write_foundations(tmp_path) / "classifier")
    a, b = Classifier().features(images), Classifier().features(images.flip(0))
    expected = sum((normalize_tensor(x) - normalize_tensor(y)).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True))
    torch.testing.assert_close(m.squared_distance(ours(images)[0], ours(images.flip(0))[0]), expected, rtol=1e-4, atol=1e-6)


def test_missing_and_foreign_weights_make_a_measure_absent(tmp_path, monkeypatch):
    monkeypatch.delenv("UNIMIND_WEIGHTS", raising=False)
    assert "is not set" in networks.panel(["alexnet2"], None)[1]["alexnet2"]
    assert "is not in" in networks.panel(["alexnet2"], tmp_path)[1]["alexnet2"]
    (tmp_path / networks.manifest()["alexnet"]["file"]).write_bytes(b"something else")
    found, absent = networks.panel(["alexnet2", "alexnet5"], tmp_path)
    assert not found and "is not the listed file" in absent["alexnet2"]


def test_a_file_nobody_published_a_hash_of_is_called_unverified(tmp_path):
    """Its SHA-256 is in the protocol; a listed one that is longer must agree to the last digit."""
    weights = random_weights("resnet50")
    torch.save(weights.state_dict(), tmp_path / networks.manifest()["swav"]["file"])
    panel = Panel.of(["swav"], tmp_path, None)
    assert panel.protocol()["swav"]["network"] == "SwAV ResNet-50 (800 epochs), unverified"
    assert panel.protocol()["swav"]["sha256"] == hashlib.sha256((tmp_path / networks.manifest()["swav"]["file"]).read_bytes()).hexdigest()


def test_squeezenet_weights_other_than_the_listed_are_called_unverified(tmp_path, monkeypatch):
    torch.save(random_weights("squeezenet1_1").state_dict(), tmp_path / "other.pth")
    monkeypatch.delenv("UNIMIND_WEIGHTS", raising=False)
    networks_used = Panel.of(["lpips_squeeze", "squeezenet"], None, str(tmp_path / "other.pth")).protocol()
    assert networks_used["lpips_squeeze"]["network"] == "LPIPS-squeeze (SqueezeNet 1.1 (ONNX zoo), unverified, heads 0.1)"
    assert networks_used["squeezenet"]["network"] == "SqueezeNet 1.1 (ONNX zoo), unverified, pooled features"
    listed = networks.manifest()["squeezenet"]["sha256"]
    assert networks.shown_as("squeezenet", listed) == "SqueezeNet 1.1 (ONNX zoo)"


def test_lpips_is_by_alexnet_or_absent(tmp_path, unlisted):
    torch.save(random_weights("squeezenet1_1").state_dict(), tmp_path / "squeezenet.pth")
    without = Panel.of(["lpips", "lpips_squeeze"], tmp_path, str(tmp_path / "squeezenet.pth"))
    assert set(without.protocol()) == {"lpips_squeeze"} and unlisted["alexnet"]["file"] in without.absent["lpips"]
    torch.save(random_weights("alexnet").state_dict(), tmp_path / unlisted["alexnet"]["file"])
    used = Panel.of(["lpips", "lpips_squeeze"], tmp_path, str(tmp_path / "squeezenet.pth")).protocol()
    assert used["lpips"]["network"].startswith("LPIPS-alex") and used["lpips_squeeze"]["network"].startswith("LPIPS-squeeze")


def test_broken_weights_are_refused_in_one_line(tmp_path):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(InputError, match="not readable as weights"):
            networks.read_weights(tmp_path / name)


@pytest.mark.parametrize(("kind", "name"), [("squeezenet", "SqueezeNet 1.1 features"), ("open-clip", "CLIP ViT-B-32-quickgelu (openai)")])
def test_no_other_network_stands_in_for_clip(tmp_path, fakes, kind, name):
    folder = write_foundations(tmp_path)
    own = Panel.of(["clip", "study_clip"], tmp_path, None, folder / "embedding")
    assert set(own.absent) == {"clip"} and own.protocol()["study_clip"]["network"] == "tiny embedding"
    (folder / "embedding" / "config.json").write_text(json.dumps({"kind": kind, "name": name}))
    panel = Panel.of(["clip", "study_clip"], tmp_path, None, folder / "embedding")
    assert not panel.vectors and "needs clip-vit-l-14-openai.safetensors" in panel.absent["clip"] and name in panel.absent["study_clip"]


def test_the_manifest_names_source_and_licence_of_every_file():
    with open(networks.MANIFEST.parents[2] / "config" / "weights.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert {row["name"] for row in rows} >= set(networks.WEIGHTS_OF.values())
    for row in rows:
        assert row["source"].startswith("https://") and row["licence"] and row["file"]
        published = row["sha256"]
        assert len(published) == 64 and int(published, 16) or published in row["file"] or published == networks.UNVERIFIED, row
        if row["source"].startswith("https://download.pytorch.org"):
            assert f"-{published[:8]}.pth" in row["file"], "torchvision's file names carry the first digits"


def test_batches_of_any_size_and_many_rows_give_what_one_pair_gives(images, tmp_path, unlisted):
    torch.save(random_weights("alexnet").state_dict(), tmp_path / unlisted["alexnet"]["file"])
    truths = scenes(5, 40)
    others = scenes(5, 40, 7)
    pictures = np.concatenate([others, truths])
    rows = {"a": np.arange(5), "truth": np.arange(5, 10), "samples": np.stack([np.arange(5), np.arange(5, 10)], 1)}
    wanted = ["mse", "ssim", "lpips", "alexnet2", "alexnet5"]
    single = 3e-4  # features of random weights vary little about a large mean: their correlations lose digits
    results = []
    for size in (1, 3, 64):
        panel = Panel.of(wanted, tmp_path, None)
        results.append(measure(panel, PictureSet(truths), PictureSet(pictures), rows, size))
    for other in results[1:]:
        for row in rows:
            assert set(other[row]) == {"alexnet2", "alexnet5", "similarity", *(set(wanted) - ({"ssim", "lpips"} if row == "samples" else set()))}
            for name in other[row]:
                np.testing.assert_allclose(other[row][name], results[0][row][name], atol=single if name == "similarity" else 1e-5)
    first = results[0]
    np.testing.assert_allclose(first["samples"]["alexnet2"], np.stack([first["a"]["alexnet2"], first["truth"]["alexnet2"]], 1))
    for name, best in (("mse", 0), ("ssim", 1), ("lpips", 0), ("alexnet2", 1), ("alexnet5", 1), ("similarity", 1)):
        np.testing.assert_allclose(first["truth"][name], best, atol=single if name == "similarity" else 1e-5)
    stored = truth_features(Panel.of(["alexnet2"], tmp_path, None), PictureSet(truths), 2)["alexnet"]
    r = np.corrcoef(stored["alexnet2"], truth_features(Panel.of(["alexnet2"], tmp_path, None), PictureSet(others), 2)["alexnet"]["alexnet2"])[:5, 5:]
    np.testing.assert_allclose(first["a"]["alexnet2"], m.two_way(r))
    deep = [truth_features(Panel.of(["alexnet5"], tmp_path, None), PictureSet(x), 2)["alexnet"]["alexnet5"] for x in (truths, others)]
    np.testing.assert_allclose(first["a"]["similarity"], [np.corrcoef(x, y)[0, 1] for x, y in zip(*deep, strict=True)], atol=single)
