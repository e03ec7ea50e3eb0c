"""Networks of diffusers repositories: the same numbers as diffusers' own, and clear words when they cannot be had."""

import hashlib
import shutil

import diffusers
import pytest
import tiny_pipelines
import torch
import transformers
from safetensors.torch import load_file, save_file

from unimind.errors import InputError
from unimind.foundations import external, load_diffusion
from unimind.storage import read_json, write_json
from unimind.study import HubAutoencoder, HubDiffusion

BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture
def repository(tmp_path):
    """A tiny latent-diffusion pipeline as diffusers lays it out."""
    torch.manual_seed(0)
    folder = tmp_path / "tiny-diffusion"
    both = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(**BLOCKS, **both, latent_channels=4, scaling_factor=0.18215).save_pretrained(folder / "vae")
    diffusers.AutoencoderKL(**BLOCKS, **both, latent_channels=4, scaling_factor=0.36, shift_factor=0.1).save_pretrained(folder / "shifted")
    diffusers.VQModel(**BLOCKS, **both, latent_channels=3, num_vq_embeddings=16, scaling_factor=0.5).save_pretrained(folder / "vqvae")
    diffusers.UNet2DConditionModel(
        **BLOCKS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
    ).save_pretrained(folder / "unet")
    diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True).save_pretrained(folder / "scheduler")
    return folder


def built(settings, directory):
    directory.mkdir()
    external.build(settings, directory)
    return external.load_external(directory), read_json(directory / "config.json")


@pytest.mark.parametrize("subfolder", ["vae", "shifted"])
def test_kl_autoencoder_scales_its_latent_as_its_pipeline_does(repository, tmp_path, subfolder):
    module, config = built(HubAutoencoder(kind="hub", repository=str(repository), subfolder=subfolder), tmp_path / "out")
    theirs = diffusers.AutoencoderKL.from_pretrained(repository / subfolder)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        mode = theirs.encode(images * 2 - 1).latent_dist.mode()
        decoded = theirs.decode(mode).sample
    expected = mode * 0.18215 if subfolder == "vae" else (mode - 0.1) * 0.36
    latent = module.encode(images)
    torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(module.decode(latent), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert module.name == config["name"] == f"tiny-diffusion {subfolder}" and not module.training
    weights = repository / subfolder / "diffusion_pytorch_model.safetensors"
    assert config["sources"] == {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert not any(value.requires_grad for value in module.parameters())
    with pytest.raises(InputError, match="multiples of 2; 15 x 16 given"):
        module.encode(torch.rand(1, 3, 15, 16))


def test_another_file_than_the_one_expected_is_refused(repository, tmp_path):
    right = hashlib.sha256((repository / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    built(HubAutoencoder(kind="hub", repository=str(repository), sha256=right.upper()), tmp_path / "out")
    with pytest.raises(InputError, match=f"foundations.autoencoder.sha256: {'0' * 64} expected, but diffusion_pytorch_model.safetensors has {right}; get"):
        built(HubAutoencoder(kind="hub", repository=str(repository), sha256="0" * 64), tmp_path / "other")


def test_vq_autoencoder_quantises_when_decoding(repository, tmp_path):
    module, _ = built(HubAutoencoder(kind="hub", repository=str(repository), subfolder="vqvae"), tmp_path / "out")
    theirs = diffusers.VQModel.from_pretrained(repository / "vqvae")
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        latent = theirs.encode(images * 2 - 1).latents
        decoded = theirs.decode(latent).sample
    torch.testing.assert_close(module.encode(images), latent * 0.5, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(module.decode(latent * 0.5), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_unet_keeps_its_weights_and_schedule(repository, tmp_path):
    unet, config = built(HubDiffusion(kind="hub", repository=str(repository)), tmp_path / "out")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(repository / "unet")
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t, context).sample, theirs(x, t, context).sample)
    assert config["kind"] == "hub" and config["unet"]["cross_attention_dim"] == 6 and not any(key.startswith("_") for key in config["unet"])
    schedule = diffusers.DDIMScheduler.from_config(config["scheduler"])
    torch.testing.assert_close(schedule.betas, diffusers.PNDMScheduler.from_pretrained(repository / "scheduler").betas)


def test_without_a_condition_a_unet_draws_from_its_pipelines_empty_prompt(tmp_path):
    torch.manual_seed(1)
    folder = tmp_path / "sd"
    tiny_pipelines.text(folder)
    tiny_pipelines.unet(folder, 12)
    schedule = diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True)
    schedule.save_pretrained(folder / "scheduler")
    text = {"tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")}
    text["text_encoder"] = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    pipe = diffusers.StableDiffusionPipeline(vae=None, unet=None, scheduler=schedule, safety_checker=None, feature_extractor=None, **text)
    _, negative = pipe.encode_prompt("a", torch.device("cpu"), 1, True)
    _, config = built(HubDiffusion(kind="hub", repository=str(folder)), tmp_path / "out")
    torch.testing.assert_close(load_diffusion(tmp_path / "out").null().context, negative)
    weights = folder / "text_encoder" / "model.safetensors"
    assert config["sources"]["text_encoder/model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    state = load_file(weights)
    save_file({name: value for name, value in state.items() if "final_layer_norm" not in name}, weights, {"format": "pt"})
    with pytest.raises(InputError, match="text_encoder: its weights' file lacks .*final_layer_norm"):
        built(HubDiffusion(kind="hub", repository=str(folder)), tmp_path / "broken")
    shutil.rmtree(folder / "text_encoder")
    unet, _ = built(HubDiffusion(kind="hub", repository=str(folder)), tmp_path / "without")
    assert load_diffusion(tmp_path / "without").null() is None and unet.config.cross_attention_dim == 12


def test_the_hubs_cache_is_used_offline(repository, tmp_path, monkeypatch):
    """A repository in the cache, laid out as huggingface_hub keeps it, serves a node without a network."""
    import huggingface_hub.constants

    cache, commit = tmp_path / "cache", "a" * 40
    kept = cache / "models--nobody--tiny"
    shutil.copytree(repository, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    unet, config = built(HubDiffusion(kind="hub", repository="nobody/tiny"), tmp_path / "out")
    assert config["name"] == "nobody/tiny unet"
    shutil.rmtree(kept / "snapshots" / commit / "vae")
    with pytest.raises(InputError, match=r"nobody/tiny \(vae, revision main\).*not whole.*network"):
        external.build(HubAutoencoder(kind="hub", repository="nobody/tiny"), tmp_path)


def test_offline_and_absent_says_what_and_where(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for settings in (HubAutoencoder(kind="hub", repository="nobody/nothing"), HubDiffusion(kind="hub", repository="nobody/nothing")):
        with pytest.raises(InputError, match=r"nobody/nothing \(.*revision main\): not in the cache .*HF_HOME.*local folder") as raised:
            external.build(settings, tmp_path)
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_repositories_that_do_not_fit_are_named(repository, tmp_path):
    with pytest.raises(InputError, match="UNet2DConditionModel; foundations.autoencoder takes AutoencoderKL or VQModel"):
        external.build(HubAutoencoder(kind="hub", repository=str(repository), subfolder="unet"), tmp_path)
    with pytest.raises(InputError, match="AutoencoderKL; foundations.diffusion takes UNet2DConditionModel"):
        external.build(HubDiffusion(kind="hub", repository=str(repository), subfolder="vae"), tmp_path)
    with pytest.raises(InputError, match="absent: no network of a diffusers repository"):
        external.build(HubDiffusion(kind="hub", repository=str(repository), subfolder="absent"), tmp_path)
    (repository / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(InputError, match="scheduler_config.json: missing"):
        external.build(HubDiffusion(kind="hub", repository=str(repository)), tmp_path)
    (repository / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="no whole diffusion_pytorch_model.safetensors"):
        external.build(HubDiffusion(kind="hub", repository=str(repository)), tmp_path)


def test_weights_in_pickles_are_not_read(repository, tmp_path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(repository / "unet")
    shutil.rmtree(repository / "unet")
    unet.save_pretrained(repository / "unet", safe_serialization=False)
    with pytest.raises(InputError, match="safetensors"):
        external.build(HubDiffusion(kind="hub", repository=str(repository)), tmp_path)


def test_a_directory_of_no_known_kind_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {"role": "embedding", "kind": "palantir"})
    with pytest.raises(InputError, match="no known foundation .role embedding, kind palantir"):
        external.load_external(tmp_path)
