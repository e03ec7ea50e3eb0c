"""The conversion of latent-diffusion checkpoints gives the original networks' numbers and forgets no weight."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unimind.errors import InputError
from unimind.foundations import external, parameters_of
from unimind.foundations.generators import load_generator
from unimind.foundations.ldm import SCHEDULER, account, build_ldm_unet, convert_unet, convert_vq
from unimind.foundations.weights import read_checkpoint
from unimind.storage import read_json, whole_directory
from unimind.study import LdmAutoencoder, LdmDiffusion, Sampling

REFERENCE = Path(os.environ.get("UNIMIND_REAL_DATA", "")) / "reference" / "ldm"
needs_reference = pytest.mark.skipif(not (REFERENCE / "README.md").exists(), reason="reference/ldm is absent (UNIMIND_REAL_DATA)")


def relative(given, expected):
    return ((given - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def unet_state():
    return load_file(REFERENCE / "unet_small.checkpoint.safetensors")


@pytest.fixture(scope="module")
def vq_state():
    return load_file(REFERENCE / "vq_small.checkpoint.safetensors")


@pytest.fixture(scope="module")
def checkpoint(unet_state, vq_state, tmp_path_factory):
    """Both small networks in one file as torch writes it, with what stands beside the weights in a real checkpoint."""
    extra = {"cond_stage_model.embedding.weight": torch.zeros(5, 24), "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(1)}
    path = tmp_path_factory.mktemp("weights") / "small.ckpt"
    torch.save({"epoch": 3, "global_step": 7, "state_dict": unet_state | vq_state | extra}, path)
    return path


@needs_reference
def test_unet_reproduces_the_original_network(unet_state):
    weights, config = convert_unet(unet_state)
    unet = UNet2DConditionModel.from_config(config).eval()
    unet.load_state_dict(weights, strict=True)
    io = load_file(REFERENCE / "unet_small.io.safetensors")
    with torch.no_grad():
        y = unet(io["x"], io["timesteps"], io["context"]).sample
    assert relative(y, io["y"]) < 2e-5
    with safe_open(REFERENCE / "unet_small.checkpoint.safetensors", "pt") as file:
        original = json.loads(file.metadata()["config"])
    assert config["block_out_channels"] == [original["model_channels"] * times for times in original["channel_mult"]]
    assert config["layers_per_block"] == original["num_res_blocks"] and config["cross_attention_dim"] == original["context_dim"]


@needs_reference
def test_first_stage_reproduces_the_original_network(vq_state):
    weights, config = convert_vq(vq_state)
    vq = VQModel.from_config(config).eval()
    vq.load_state_dict(weights, strict=True)
    io = load_file(REFERENCE / "vq_small.io.safetensors")
    with torch.no_grad():
        assert relative(vq.encode(io["x"]).latents, io["h"]) < 2e-5
        assert relative(vq.quantize(io["h"])[0], io["z_quantised"]) < 1e-6
        assert relative(vq.decode(io["h"]).sample, io["y_from_quantised"]) < 2e-5
        assert relative(vq.decode(io["h"], force_not_quantize=True).sample, io["y_from_h"]) < 2e-5


@needs_reference
def test_every_key_of_the_full_checkpoint_is_used_or_left_on_purpose():
    shapes = json.loads((REFERENCE / "cin256.keys.json").read_text())
    used, unused = account(shapes)
    assert unused == ["cond_stage_model.embedding.weight"]
    assert sorted(used + unused) == sorted(shapes)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    for convert, network, count in ((convert_unet, UNet2DConditionModel, 688), (convert_vq, VQModel, 205)):
        weights, config = convert(state)
        with torch.device("meta"):
            expected = network.from_config(config).state_dict()
        assert {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in expected.items()}
        assert len(weights) == count
        if network is UNet2DConditionModel:
            assert round(sum(value.numel() for value in weights.values()) / 1e6, 1) == 400.9
    assert config["block_out_channels"] == [128, 256, 512] and config["num_vq_embeddings"] == 8192


@needs_reference
def test_the_null_class_is_the_last_of_1001(checkpoint, unet_state, vq_state, tmp_path):
    """The published checkpoint's class embedder has a row more than ImageNet has classes; one of other classes says nothing of none."""
    shapes = json.loads((REFERENCE / "cin256.keys.json").read_text())
    assert shapes["cond_stage_model.embedding.weight"] == [1001, 512]
    classes = torch.randn(1001, 24)
    torch.save({"state_dict": unet_state | vq_state | {"cond_stage_model.embedding.weight": classes}}, tmp_path / "null.ckpt")
    for file, expected in ((checkpoint, None), (tmp_path / "null.ckpt", classes[None, 1000:])):
        with whole_directory(tmp_path / file.stem) as temporary:
            build_ldm_unet(LdmDiffusion(kind="ldm", checkpoint=str(file)), temporary)
        generator = load_generator(tmp_path / file.stem, None, 8)
        if expected is None:
            assert generator.null() is None
            with pytest.raises(InputError, match="came without what it learned to draw from without a condition"):
                generator.draw(None, [(1,)], Sampling(steps=2))
        else:
            torch.testing.assert_close(generator.null().context, expected)
            assert not generator.null().time.any() and parameters_of(tmp_path / file.stem) == sum(p.numel() for p in generator.diffusion.parameters())


@needs_reference
def test_a_key_of_no_known_part_is_refused(unet_state):
    for odd in ("model.diffusion_model.label_emb.0.weight", "something.else", "first_stage_model.encoder.mid.attn_2.q.weight"):
        with pytest.raises(InputError, match=re.escape(odd)):
            account(unet_state | {"first_stage_model.encoder.down.0.block.0.norm1.weight": torch.zeros(1), odd: torch.zeros(1)})


@needs_reference
def test_the_moving_average_is_taken_where_there_is_one(unet_state):
    averaged = {"model_ema." + key.removeprefix("model.").replace(".", ""): value + 1 for key, value in unet_state.items()}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
    state = unet_state | averaged | counters
    plain, _ = convert_unet(unet_state)
    weights, _ = convert_unet(state)
    assert all(torch.equal(weights[key], plain[key] + 1) for key in plain)
    used, unused = account(state)
    assert set(used) == set(averaged) and set(unused) == set(unet_state) | set(counters)


def test_schedule_is_compvis_linear():
    """CompVis: betas = linspace(sqrt(start), sqrt(end), T)^2; its DDIM visits steps 1, 1 + T/S, ... and ends at the first alpha."""
    scheduler = DDIMScheduler.from_config(SCHEDULER)
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    np.testing.assert_allclose(scheduler.betas.numpy(), betas, rtol=1e-5)
    np.testing.assert_allclose(float(scheduler.final_alpha_cumprod), 1 - betas[0], rtol=1e-6)
    scheduler.set_timesteps(50)
    np.testing.assert_array_equal(np.sort(scheduler.timesteps.numpy()), np.arange(0, 1000, 20) + 1)


@needs_reference
def test_builds_what_can_be_loaded(checkpoint, tmp_path):
    for kind in ("autoencoder", "diffusion"):
        (tmp_path / kind).mkdir()
    external.build(LdmAutoencoder(kind="ldm", checkpoint=str(checkpoint)), tmp_path / "autoencoder")
    external.build(LdmDiffusion(kind="ldm", checkpoint=str(checkpoint)), tmp_path / "diffusion")
    autoencoder, unet = external.load_external(tmp_path / "autoencoder"), external.load_external(tmp_path / "diffusion")
    io = load_file(REFERENCE / "vq_small.io.safetensors")
    latent = autoencoder.encode(io["x"] / 2 + 0.5)
    assert relative(latent, io["h"]) < 2e-5
    assert relative(autoencoder.decode(io["h"]), (io["y_from_quantised"] / 2 + 0.5).clamp(0, 1)) < 2e-5
    io = load_file(REFERENCE / "unet_small.io.safetensors")
    assert relative(unet(io["x"], io["timesteps"], io["context"]).sample, io["y"]) < 2e-5
    config = read_json(tmp_path / "diffusion" / "config.json")
    assert config["kind"] == "ldm" and config["scheduler"] == SCHEDULER and len(config["sources"]["small.ckpt"]) == 64
    assert autoencoder.name == "VQ-f4 of small" and config["name"] == "latent diffusion small"
    assert not any(value.requires_grad for value in [*autoencoder.parameters(), *unet.parameters()])
    with pytest.raises(InputError, match="multiples of 4"):
        autoencoder.encode(torch.rand(1, 3, 30, 32))


@needs_reference
def test_another_noise_schedule_is_refused(unet_state, tmp_path):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    save_file(unet_state | {"betas": betas}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="another noise schedule"):
        external.build(LdmDiffusion(kind="ldm", checkpoint=str(tmp_path / "other.safetensors")), tmp_path)
    save_file(unet_state | {"betas": torch.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2}, tmp_path / "same.safetensors")
    external.build(LdmDiffusion(kind="ldm", checkpoint=str(tmp_path / "same.safetensors")), tmp_path)


@needs_reference
def test_a_checkpoint_without_the_network_is_refused(unet_state, vq_state, tmp_path):
    save_file(vq_state, tmp_path / "vq.safetensors")
    with pytest.raises(InputError, match="vq.safetensors: no latent-diffusion UNet"):
        external.build(LdmDiffusion(kind="ldm", checkpoint=str(tmp_path / "vq.safetensors")), tmp_path)
    save_file(unet_state, tmp_path / "unet.safetensors")
    with pytest.raises(InputError, match="unet.safetensors: no VQ first stage"):
        external.build(LdmAutoencoder(kind="ldm", checkpoint=str(tmp_path / "unet.safetensors")), tmp_path)
    with pytest.raises(InputError, match="absent.ckpt: no such file"):
        external.build(LdmDiffusion(kind="ldm", checkpoint=str(tmp_path / "absent.ckpt")), tmp_path)


class Callback:
    """Stands for an object a training framework leaves in its checkpoints."""

    def __init__(self):
        self.best = 3

    def __setstate__(self, state):
        raise AssertionError("code of a checkpoint's object was run")


class Attack:
    def __reduce__(self):
        return (os.mkdir, (os.environ["UNIMIND_TEST_TARGET"],))


def test_foreign_objects_of_a_checkpoint_stay_inert(tmp_path):
    torch.save({"callbacks": {Callback: Callback()}, "state_dict": {"a": torch.ones(2)}}, tmp_path / "a.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt")["a"], torch.ones(2))


def test_no_pickle_is_run(tmp_path, monkeypatch):
    target = tmp_path / "made_by_the_pickle"
    monkeypatch.setenv("UNIMIND_TEST_TARGET", str(target))
    torch.save({"state_dict": {"a": torch.ones(1)}, "attack": Attack()}, tmp_path / "zip.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Attack()))
    for name in ("zip.ckpt", "plain.ckpt"):
        try:
            read_checkpoint(tmp_path / name)
        except InputError as error:
            assert "safetensors" in str(error)
        assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 cut off"])
def test_broken_checkpoints_are_named(tmp_path, content):
    (tmp_path / "broken.ckpt").write_bytes(content)
    with pytest.raises(InputError, match="broken.ckpt: cannot be read as tensors only"):
        read_checkpoint(tmp_path / "broken.ckpt")
