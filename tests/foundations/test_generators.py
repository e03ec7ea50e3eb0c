"""Frozen generators draw from an embedding what diffusers' own pipelines draw from the picture it belongs to."""

import functools
import shutil
from unittest import mock

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from unimind.errors import InputError
from unimind.foundations import external
from unimind.foundations.generators import as_bytes, load_generator
from unimind.foundations.generators.samplers import starting_noise
from unimind.storage import read_json
from unimind.study import ClipVisionEmbedding, IpAdapterGenerator, KandinskyGenerator, Sampling, UnclipGenerator
from unimind.training.loop import generator as random_generator

SIZE = tiny.SIZE
KINDS = ("sd", "sd-plus", "xl", "xl-plus", "unclip", "kandinsky")
KEYS = [(3, 70, 0), (3, 71, 1)]
SAMPLING = Sampling(sampler="ddim", steps=3, guidance=2.0)
CLOSE = {"rtol": 0, "atol": 1e-5}


class Pixels:
    """An autoencoder of the study whose latents are small pictures."""

    name = "pixels"

    def decode(self, latents):
        return latents


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    torch.manual_seed(0)
    tiny.stable_diffusion(folder / "sd", xl=False)
    tiny.stable_diffusion(folder / "xl", xl=True)
    tiny.unclip(folder / "unclip")
    tiny.kandinsky(folder / "kandinsky")
    return folder


def settings(kind, repositories, **more):
    """The generator's section of the study, and its image encoder's."""
    name, _, plus = kind.partition("-")
    if name == "unclip":
        section = UnclipGenerator(kind="unclip", repository=str(repositories / name), size=SIZE, noise_level=40, **more)
        return section, {"repository": str(repositories / name), "subfolder": "image_encoder", "processor": "feature_extractor"}
    if name == "kandinsky":
        both = {key: str(repositories / name / part) for key, part in (("repository", "decoder"), ("prior", "prior"))}
        whole = KandinskyGenerator(kind="kandinsky-2.2", **both, **more)
        return whole.model_copy(update={"size": SIZE}), {"repository": both["prior"], "subfolder": "image_encoder"}  # real sides are multiples of 64
    both = {key: str(repositories / name / part) for key, part in (("repository", "base"), ("adapter", "adapters"))}
    target, file = ("tokens", "plus") if plus else ("embedding", "plain")
    section = IpAdapterGenerator(kind="ip-adapter", **both, weights=f"models/{file}.safetensors", target=target, size=SIZE, **more)
    return section, {"repository": both["adapter"]}


@pytest.fixture(scope="module")
def ready(repositories, tmp_path_factory):
    """Generators by kind, with their image encoders; made once."""
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            section, encoder = settings(kind, repositories)
            for name, part in (("generator", section), ("encoder", ClipVisionEmbedding(kind="clip-vision", **encoder))):
                (folder / name).mkdir()
                external.build(part, folder / name)
            made[kind] = load_generator(folder / "generator", Pixels(), SIZE), external.load_external(folder / "encoder"), folder
        return made[kind]

    return make


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (2, tiny.ENCODER, tiny.ENCODER, 3), dtype=np.uint8)


def inputs(generator, encoder, pictures):
    """What the generator takes, of pictures that need no resizing."""
    with torch.no_grad():
        embedding, tokens = encoder.raw_and_tokens(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)
    return {name: {"embedding": embedding, "tokens": tokens}[name] for name in generator.takes}


@functools.cache
def stock(kind, repositories, pipeline=None):
    """diffusers' own pipeline, loaded as its documentation says."""
    name, _, plus = kind.partition("-")
    if name in ("sd", "xl"):
        default = diffusers.StableDiffusionXLPipeline if name == "xl" else diffusers.StableDiffusionPipeline
        pipe = (pipeline or default).from_pretrained(repositories / name / "base")
        pipe.load_ip_adapter(str(repositories / name / "adapters"), subfolder="models", weight_name="plus.safetensors" if plus else "plain.safetensors")
    elif name == "unclip":
        pipe = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(repositories / name)
    else:
        pipe = (pipeline or diffusers.KandinskyV22Pipeline).from_pretrained(repositories / name / "decoder")
    schedule = {key: value for key, value in pipe.scheduler.config.items() if key != "variance_type"}
    pipe.scheduler = diffusers.DDIMScheduler.from_config(schedule, clip_sample=False, set_alpha_to_one=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def of_kandinskys_encoder(repositories, picture):
    """Embeddings of a picture and of the zero picture, as Kandinsky's prior makes them."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(repositories / "kandinsky/prior/image_encoder")
    processor = diffusers.loaders.ip_adapter.CLIPImageProcessor(size=tiny.ENCODER, crop_size=tiny.ENCODER)
    with torch.no_grad():
        own = encoder(processor(picture, return_tensors="pt").pixel_values).image_embeds
        return own, encoder(torch.zeros(1, 3, tiny.ENCODER, tiny.ENCODER)).image_embeds


def of_picture(kind, repositories, pipe, picture, key, guidance):
    """What diffusers draws from a picture; (1, 3, SIZE, SIZE)."""
    picture = Image.fromarray(picture)
    latents = starting_noise((4, SIZE // 2, SIZE // 2), [key])
    given = {"num_inference_steps": 3, "guidance_scale": guidance, "latents": latents, "height": SIZE, "width": SIZE, "output_type": "np"}
    if kind == "kandinsky":
        own, nothing = of_kandinskys_encoder(repositories, picture)
        drawn = pipe(own, nothing, **given)
    elif kind == "unclip":
        drawn = pipe(picture, "", noise_level=40, generator=random_generator("embedding noise", *key), **given)
    else:
        drawn = pipe("", ip_adapter_image=picture, **given)
    return torch.from_numpy(drawn.images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_draws_what_diffusers_draws_from_its_picture(kind, ready, repositories, pictures):
    generator, encoder, _ = ready(kind)
    given, pipe = inputs(generator, encoder, pictures), stock(kind, repositories)
    for guidance in (2.0, 1.0):
        expected = torch.cat([of_picture(kind, repositories, pipe, *pair, guidance) for pair in zip(pictures, KEYS, strict=True)])
        drawn = generator.draw(given, KEYS, SAMPLING.model_copy(update={"guidance": guidance}))
        torch.testing.assert_close(drawn, expected, **CLOSE)
        assert drawn.shape == (2, 3, SIZE, SIZE) and (drawn[0] - drawn[1]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing_and_seeds_everything(kind, ready, pictures):
    generator, encoder, _ = ready(kind)
    given, start = inputs(generator, encoder, pictures), torch.rand(2, 3, 8, 8)
    for sampling in (SAMPLING.model_copy(update={"sampler": "dpm-solver++"}), SAMPLING.model_copy(update={"strength": 0.5})):
        both = generator.draw(given, KEYS, sampling, start)
        alone = [generator.draw({name: x[row : row + 1] for name, x in given.items()}, KEYS[row : row + 1], sampling, start[row : row + 1]) for row in (1, 0)]
        torch.testing.assert_close(both, torch.cat(alone[::-1]), **CLOSE)
        assert torch.equal(both, generator.draw(given, KEYS, sampling, start))
        assert (both - generator.draw(given, [(4, *key[1:]) for key in KEYS], sampling, start)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_without_inputs_the_null_condition_draws(kind, ready, repositories):
    """What the unconditional half of guidance sees: guidance from the null condition to itself changes nothing."""
    generator, _, _ = ready(kind)
    drawn = generator.draw(None, KEYS[:1], SAMPLING)
    pipe = stock(kind, repositories)
    nothing = {"num_inference_steps": 3, "latents": starting_noise((4, SIZE // 2, SIZE // 2), KEYS[:1]), "height": SIZE, "width": SIZE, "output_type": "np"}
    name, _, plus = kind.partition("-")
    if kind == "kandinsky":
        _, zero = of_kandinskys_encoder(repositories, Image.new("RGB", (tiny.ENCODER, tiny.ENCODER)))
        expected = pipe(zero, zero, guidance_scale=1.0, **nothing).images
    elif kind == "unclip":
        with mock.patch.object(pipe, "_encode_image", lambda **_: torch.zeros(1, 2 * tiny.DIM)):
            expected = pipe(None, "", image_embeds=torch.zeros(1, tiny.DIM), guidance_scale=1.0, **nothing).images
    else:
        pixels = torch.zeros(1, 3, tiny.ENCODER, tiny.ENCODER)
        _, null = pipe.encode_image(pixels, torch.device("cpu"), 1, output_hidden_states=bool(plus))
        if name == "xl":  # "" as negative prompt stands for zeros in XL
            _, negative, _, pooled = pipe.encode_prompt("", do_classifier_free_guidance=True)
            nothing |= {"prompt_embeds": negative, "pooled_prompt_embeds": pooled}
        else:
            nothing |= {"prompt": ""}
        expected = pipe(ip_adapter_image_embeds=[null[:, None]], guidance_scale=1.0, **nothing).images
    torch.testing.assert_close(drawn, torch.from_numpy(expected).permute(0, 3, 1, 2), **CLOSE)


@pytest.mark.parametrize(("kind", "sampler"), [("sd", "ddim"), ("sd", "dpm-solver++"), ("xl-plus", "ddim"), ("kandinsky", "ddim")])
def test_a_start_is_diffusers_image_to_image(kind, sampler, ready, repositories, pictures, monkeypatch):
    generator, encoder, _ = ready(kind)
    classes = {"sd": diffusers.StableDiffusionImg2ImgPipeline, "xl-plus": diffusers.StableDiffusionXLImg2ImgPipeline}
    pipe = stock(kind, repositories, classes.get(kind, diffusers.KandinskyV22Img2ImgPipeline))
    start = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    if sampler == "dpm-solver++":
        monkeypatch.setattr(pipe, "scheduler", diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="dpmsolver++"))
    sampling = SAMPLING.model_copy(update={"sampler": sampler, "steps": 4, "strength": 0.5})
    own = {"strength": 0.5, "num_inference_steps": 4, "guidance_scale": 2.0, "generator": [random_generator("noise", *KEYS[0])], "output_type": "np"}
    picture = Image.fromarray(pictures[0])
    if kind == "kandinsky":
        embedding, nothing = of_kandinskys_encoder(repositories, picture)
        expected = pipe(embedding, start, nothing, height=SIZE, width=SIZE, **own).images
    else:
        with torch.no_grad():
            latents = pipe.vae.encode(2 * start - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        expected = pipe("", image=latents, ip_adapter_image=picture, **own).images
    given = inputs(generator, encoder, pictures[:1])
    drawn = generator.draw(given, KEYS[:1], sampling, start)
    torch.testing.assert_close(drawn, torch.from_numpy(expected).permute(0, 3, 1, 2), **CLOSE)
    assert (drawn - generator.draw(given, KEYS[:1], sampling)).abs().max() > 1e-3
    torch.testing.assert_close(generator.draw(given, KEYS[:1], sampling.model_copy(update={"strength": 0.0}), start), start)


def test_a_start_of_unclip_is_the_rest_of_its_schedule(ready, repositories, pictures):
    """diffusers has no image-to-image form of it: the steps are made by hand."""
    generator, encoder, _ = ready("unclip")
    pipe = stock("unclip", repositories)
    start = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    pipe.scheduler.set_timesteps(4)
    times = pipe.scheduler.timesteps[2:]
    with torch.no_grad():
        latents = pipe.vae.encode(2 * start - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        latents = pipe.scheduler.add_noise(latents, starting_noise((4, SIZE // 2, SIZE // 2), KEYS[:1]), times[:1])
        labels = pipe._encode_image(Image.fromarray(pictures[0]), "cpu", 1, 1, False, 40, random_generator("embedding noise", *KEYS[0]), None)
        text, _ = pipe.encode_prompt("", "cpu", 1, False)
        for time in times:
            latents = pipe.scheduler.step(pipe.unet(latents, time, text, class_labels=labels).sample, time, latents).prev_sample
        expected = (pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    sampling = SAMPLING.model_copy(update={"steps": 4, "strength": 0.5, "guidance": 1.0})
    torch.testing.assert_close(generator.draw(inputs(generator, encoder, pictures[:1]), KEYS[:1], sampling, start), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["sd", "xl", "unclip", "kandinsky"])
def test_slices_draw_the_same_pictures_in_the_studys_size(kind, ready, repositories, pictures, tmp_path):
    generator, encoder, folder = ready(kind)
    shutil.copytree(folder / "generator", tmp_path / "sliced")
    text = (tmp_path / "sliced/config.json").read_text()
    (tmp_path / "sliced/config.json").write_text(text.replace('"memory": "whole"', '"memory": "sliced"'))
    sliced = load_generator(tmp_path / "sliced", Pixels(), SIZE // 2)
    given = inputs(generator, encoder, pictures)
    whole = generator.draw(given, KEYS, SAMPLING)
    small = torch.nn.functional.interpolate(whole, size=(SIZE // 2,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(sliced.draw(given, KEYS, SAMPLING), small, **CLOSE)
    assert as_bytes(small).shape == (2, SIZE // 2, SIZE // 2, 3)


def test_the_protocol_says_what_was_done_and_inputs_are_checked(ready, pictures):
    generator, encoder, folder = ready("sd-plus")
    said = generator.protocol(SAMPLING)
    assert said["generator"] == "Stable Diffusion base with plus" and said["steps"] == 3 and said["drawn_at"] == SIZE and said["scale"] == 1.0
    assert set(said["weights"]) == {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "models/plus.safetensors",
        "models/image_encoder/model.safetensors",
    }  # fmt: skip
    kept = load_file(folder / "generator/model.safetensors")
    assert {name.partition(".")[0] for name in kept} == {"unet", "vae", "adapter", "null"} and generator.takes == {"tokens": (5, tiny.WIDTH)}
    with pytest.raises(InputError, match=r"plus takes tokens \(2, 5, 24\); embedding \(2, 20\) given: choose foundations.embedding"):
        generator.draw({"embedding": torch.zeros(2, tiny.DIM)}, KEYS, SAMPLING)


def copied(repositories, tmp_path, kind):
    section, _ = settings(kind, repositories)
    shutil.copytree(repositories / kind.partition("-")[0], tmp_path / "copy")
    found = {}
    for key in ("repository", "adapter", "prior"):
        if hasattr(section, key):
            found[key] = getattr(section, key).replace(str(repositories / kind.partition("-")[0]), str(tmp_path / "copy"))
    return section.model_copy(update=found)


def rewrite(file, change):
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})


REFUSED = {
    "foreign of the UNet": (
        "sd",
        "base/unet/diffusion_pytorch_model.safetensors",
        lambda s: s.update(odd=torch.zeros(1)),
        r"unet: .*has the foreign odd \(1 such\)",
    ),
    "missing of the UNet": ("kandinsky", "decoder/unet/diffusion_pytorch_model.safetensors", lambda s: s.pop("conv_in.bias"), r"unet: .*lacks conv_in.bias"),
    "other shape": ("unclip", "vae/diffusion_pytorch_model.safetensors", lambda s: s.update({"quant_conv.bias": torch.zeros(3)}), "vae: .*quant_conv.bias"),
    "missing of the adapter": ("sd", "adapters/models/plain.safetensors", lambda s: s.pop("ip_adapter.3.to_v_ip.weight"), r"lacks ip_adapter.3.to_v_ip.weight"),
    "adapter of a face": (
        "sd",
        "adapters/models/plain.safetensors",
        lambda s: s.update({"image_proj.proj.3.weight": torch.zeros(1)}),
        "foreign image_proj.proj.3",
    ),
    "adapter of another UNet": (
        "sd-plus",
        "adapters/models/plus.safetensors",
        lambda s: s.update({"image_proj.proj_out.bias": torch.zeros(99)}),
        "proj_out.bias is",
    ),
    "encoder": ("kandinsky", "prior/image_encoder/model.safetensors", lambda s: s.pop("visual_projection.weight"), "image_encoder: .*lacks visual_projection"),
    "text": ("xl", "base/text_encoder_2/model.safetensors", lambda s: s.update(odd=torch.zeros(1)), "text_encoder_2: .*foreign odd"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_missing_or_foreign_key_is_refused_in_one_line(case, repositories, tmp_path):
    kind, file, change, words = REFUSED[case]
    section = copied(repositories, tmp_path, kind)
    rewrite(tmp_path / "copy" / file, change)
    with pytest.raises(InputError, match=words) as raised:
        external.build(section, tmp_path)
    assert "\n" not in str(raised.value) and not (tmp_path / "model.safetensors").exists()


def test_pickles_wrong_targets_and_wrong_files_are_refused(repositories, tmp_path):
    section = copied(repositories, tmp_path, "sd")
    with pytest.raises(InputError, match="target: tokens given, but plain.safetensors takes embedding"):
        external.build(section.model_copy(update={"target": "tokens"}), tmp_path)
    with pytest.raises(InputError, match="sha256.models/plain.safetensors: 00 expected, but found"):
        external.build(section.model_copy(update={"sha256": {"models/plain.safetensors": "00"}}), tmp_path)
    with pytest.raises(InputError, match="no whole UNet2DConditionModel in safetensors of variant fp16"):
        external.build(section.model_copy(update={"variant": "fp16"}), tmp_path)
    unet = tmp_path / "copy/base/unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(unet), unet.with_suffix(".bin"))
    unet.unlink()
    with pytest.raises(InputError, match="no whole UNet2DConditionModel in safetensors"):
        external.build(section, tmp_path)


def test_half_precision_files_stay_in_half_precision(repositories, tmp_path):
    section = copied(repositories, tmp_path, "sd")
    for name, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = tmp_path / f"copy/base/{name}/{stem}.safetensors"
        save_file({key: value.half() for key, value in load_file(file).items()}, file.with_name(f"{stem}.fp16.safetensors"), {"format": "pt"})
        file.unlink()
    external.build(section.model_copy(update={"variant": "fp16"}), tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for key, value in kept.items() if key.startswith(("unet.", "vae."))} == {torch.float16}
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in read_json(tmp_path / "config.json")["sources"]
    drawn = load_generator(tmp_path, Pixels(), SIZE).draw({"embedding": torch.zeros(2, tiny.DIM)}, KEYS, SAMPLING)
    assert drawn.dtype == torch.float32 and drawn.isfinite().all()


def test_offline_and_absent_says_what_and_where(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for section, name in (
        (IpAdapterGenerator(kind="ip-adapter", repository="nobody/sd"), "nobody/sd"), (UnclipGenerator(kind="unclip", repository="nobody/u"), "nobody/u"),
        (ClipVisionEmbedding(kind="clip-vision", repository="nobody/e"), "nobody/e"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"{name} \(.*revision main\): not in the cache .*local folder"):
            external.build(section, tmp_path)


@pytest.mark.parametrize("processor", [None, "feature_extractor"])
def test_the_encoders_embedding_is_transformers_own(processor, repositories, tmp_path):
    folder = repositories / "unclip"
    external.build(ClipVisionEmbedding(kind="clip-vision", repository=str(folder), subfolder="image_encoder", processor=processor), tmp_path)
    module, theirs = external.load_external(tmp_path), CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    process = diffusers.loaders.ip_adapter.CLIPImageProcessor(size=tiny.ENCODER, crop_size=tiny.ENCODER)
    for shape in ((tiny.ENCODER, tiny.ENCODER), (40, 30)):
        pixels = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
        with torch.no_grad():
            expected = theirs(process([Image.fromarray(p) for p in pixels], return_tensors="pt").pixel_values, output_hidden_states=True)
            raw, tokens = module.raw_and_tokens(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
        near = CLOSE if shape == (tiny.ENCODER,) * 2 else {"rtol": 0, "atol": 0.05}  # resizing rounds to 8 bits there and not here
        torch.testing.assert_close(raw, expected.image_embeds, **near)
        torch.testing.assert_close(tokens, expected.hidden_states[-2], **near)
        assert module.encode(torch.rand(2, 3, 16, 16)).norm(dim=1).sub(1).abs().max() < 1e-5 and module.tokens_shape == tokens.shape[1:]
