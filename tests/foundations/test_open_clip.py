"""CLIP embeddings equal open_clip's own, from its own preprocessing on."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unimind.errors import InputError
from unimind.foundations import external
from unimind.storage import read_json
from unimind.study import OpenClipEmbedding

TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(tmp_path):
    """A random CLIP saved as open_clip keeps local models."""
    torch.manual_seed(0)
    folder = tmp_path / "tiny"
    folder.mkdir()
    model = open_clip.CLIP(**TINY).eval()
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def test_equals_open_clips_encode_image(tiny, tmp_path):
    name = f"local-dir:{tiny}"
    external.build(OpenClipEmbedding(kind="open-clip", model=name), tmp_path)
    module = external.load_external(tmp_path)
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    theirs.eval()
    assert module.dim == 12 and not module.training and not any(value.requires_grad for value in module.parameters())
    for side in (32, 48, 21):
        pixels = np.random.default_rng(side).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
        with torch.no_grad():
            expected = theirs.encode_image(torch.stack([preprocess(Image.fromarray(picture)) for picture in pixels]), normalize=True)
        given = module.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
        # resizing rounds to 8 bits there and not here; without resizing nothing differs
        assert torch.nn.functional.cosine_similarity(given, expected).min() > (1 - 1e-6 if side == 32 else 0.999)
        if side == 32:
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_on_disk_only_the_image_tower(tiny, tmp_path):
    external.build(OpenClipEmbedding(kind="open-clip", model=f"local-dir:{tiny}"), tmp_path)
    config = read_json(tmp_path / "config.json")
    assert config["kind"] == "open-clip" and config["model"]["quick_gelu"] is True and "text_cfg" not in config["model"]
    assert config["preprocess"]["mean"] == [0.5, 0.4, 0.3] and config["preprocess"]["size"] in (32, [32, 32])
    assert all(key.startswith("visual.") for key in external.load_external(tmp_path).state_dict())


@pytest.fixture
def registered(monkeypatch):
    """A tiny architecture under a name of open_clip's registry, with a tag trained with quick GELU and other colours."""
    from open_clip import factory, pretrained

    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-clip", TINY | {"quick_gelu": False})
    tag = {
        "hf_hub": "nobody/tiny-clip/",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "resize_mode": "shortest",
        "quick_gelu": True,
    }
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-clip", {"quick": tag})
    return "tiny-clip"


def test_a_tag_decides_activation_and_preprocessing(registered, tiny, tmp_path):
    """An architecture's name implies plain GELU; the tag (as OpenAI's) was trained with quick GELU, and the embedding follows the tag."""
    weights = str(tiny / "open_clip_model.safetensors")
    external.build(OpenClipEmbedding(kind="open-clip", model=registered, pretrained="quick", weights=weights), tmp_path)
    module = external.load_external(tmp_path)
    quick = open_clip.create_model(f"local-dir:{tiny}").eval()
    images = torch.rand(3, 3, 32, 32)
    normalised = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    with torch.no_grad():
        expected = quick.encode_image(normalised, normalize=True)
        plain = open_clip.create_model(registered, weights).eval().encode_image(normalised, normalize=True)
    torch.testing.assert_close(module.encode(images), expected, rtol=1e-4, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-3
    assert module.name == "CLIP tiny-clip (quick)" and read_json(tmp_path / "config.json")["sources"].keys() == {"open_clip_model.safetensors"}


def test_openais_tag_of_the_default_model_is_quick():
    """The default of the study is the pair that open_clip's name alone would give the wrong activation."""
    from open_clip.pretrained import get_pretrained_cfg

    default = OpenClipEmbedding(kind="open-clip")
    assert get_pretrained_cfg(default.model, default.pretrained)["quick_gelu"] is True
    assert not open_clip.get_model_config(default.model).get("quick_gelu", False)


def test_offline_and_absent_says_what_and_where(registered, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"tiny-clip \(quick\): nobody/tiny-clip/ is not in the cache .*hub.*network.*foundations.embedding.weights") as raised:
        external.build(OpenClipEmbedding(kind="open-clip", model=registered, pretrained="quick"), tmp_path)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_unknown_names_and_foreign_weights(registered, tmp_path):
    with pytest.raises(InputError, match="did you mean ViT-L-14"):
        external.build(OpenClipEmbedding(kind="open-clip", model="ViT-L14"), tmp_path)
    with pytest.raises(InputError, match="openai given; for tiny-clip open_clip knows quick"):
        external.build(OpenClipEmbedding(kind="open-clip", model=registered), tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="other.safetensors: open_clip cannot read"):
        external.build(OpenClipEmbedding(kind="open-clip", model=registered, weights=str(tmp_path / "other.safetensors")), tmp_path)
    with pytest.raises(InputError, match="absent.bin: no such file"):
        external.build(OpenClipEmbedding(kind="open-clip", weights=str(tmp_path / "absent.bin")), tmp_path)
