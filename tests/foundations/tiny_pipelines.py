"""Tiny random pipelines in the layouts of their repositories."""

import json
from pathlib import Path

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

#: Side of the drawn pictures; sides of the image encoder's, width of its tokens and of its embedding.
SIZE, ENCODER, WIDTH, DIM = 32, 16, 24, 20
BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}


def image_encoder(folder: Path) -> None:
    """CLIP with a projection, as transformers keeps it."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=32, projection_dim=DIM, num_hidden_layers=3, num_attention_heads=2, image_size=ENCODER, patch_size=8
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)


def text(folder: Path, number: str = "", projected: bool = False) -> None:
    """A text encoder of width 12 and its tokenizer."""
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8, "projection_dim": 12}
    config = CLIPTextConfig(vocab_size=4, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes)
    (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).save_pretrained(folder / f"text_encoder{number}")
    tokenizer = folder / f"tokenizer{number}"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(tokenizer / "vocab.json"), str(tokenizer / "merges.txt"), model_max_length=8).save_pretrained(tokenizer)


def kl(folder: Path) -> None:
    both = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(**BLOCKS, **both, latent_channels=4, sample_size=SIZE).save_pretrained(folder / "vae")


def unet(folder: Path, cross: int, **more) -> diffusers.UNet2DConditionModel:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    network = diffusers.UNet2DConditionModel(
        **BLOCKS,
        **(blocks | more),
        sample_size=SIZE // 2,
        in_channels=4,
        out_channels=more.pop("out_channels", 4),
        cross_attention_dim=cross,
        attention_head_dim=2,
    )
    network.save_pretrained(folder / "unet")
    return network


def adapter(path: Path, network: diffusers.UNet2DConditionModel, tokens: bool) -> None:
    """An IP-Adapter of a UNet under the names of its published files."""
    cross, crossed = network.config.cross_attention_dim, [name for name in network.attn_processors if name.endswith("attn2.processor")]
    modules = dict(network.named_modules())
    shapes = {
        f"ip_adapter.{1 + 2 * k}.to_{part}_ip.weight": (modules[name.removesuffix(".processor")].to_q.out_features, cross)
        for k, name in enumerate(crossed)
        for part in "kv"
    }
    if tokens:
        inner = 16
        shapes |= {"image_proj.latents": (1, 3, inner), "image_proj.proj_in.weight": (inner, WIDTH), "image_proj.proj_in.bias": (inner,)}
        shapes |= {"image_proj.proj_out.weight": (cross, inner), "image_proj.proj_out.bias": (cross,)}
        shapes |= {f"image_proj.norm_out.{part}": (cross,) for part in ("weight", "bias")}
        for k in range(4):
            shapes |= {f"image_proj.layers.{k}.{part}": (inner,) for name in ("0.norm1", "0.norm2", "1.0") for part in (f"{name}.weight", f"{name}.bias")}
            shapes |= {f"image_proj.layers.{k}.0.to_q.weight": (64, inner), f"image_proj.layers.{k}.0.to_kv.weight": (128, inner)}
            shapes |= {f"image_proj.layers.{k}.0.to_out.weight": (inner, 64)}
            shapes |= {f"image_proj.layers.{k}.1.1.weight": (4 * inner, inner), f"image_proj.layers.{k}.1.3.weight": (inner, 4 * inner)}
    else:
        shapes |= {"image_proj.proj.weight": (4 * cross, DIM), "image_proj.proj.bias": (4 * cross,)}
        shapes |= {f"image_proj.norm.{part}": (cross,) for part in ("weight", "bias")}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: 0.3 * torch.randn(shape) for key, shape in shapes.items()}, path)


def stable_diffusion(folder: Path, xl: bool) -> None:
    """Stable Diffusion 1.5 or XL in `base`, h94's adapters of it in `adapters`."""
    base = folder / "base"
    kl(base)
    text(base)
    if xl:
        text(base, "_2", projected=True)
        more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 12}
        network = unet(base, 24, **more)
        parts = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
        index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **parts}
    else:
        network = unet(base, 12)
        index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None], "requires_safety_checker": False}
    diffusers.DDIMScheduler(**SCHEDULE).save_pretrained(base / "scheduler")
    index |= {"feature_extractor": [None, None], "image_encoder": [None, None], "scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], "_diffusers_version": diffusers.__version__}
    (base / "model_index.json").write_text(json.dumps(index))
    image_encoder(folder / "adapters/models/image_encoder")
    for tokens, name in ((False, "plain"), (True, "plus")):
        adapter(folder / f"adapters/models/{name}.safetensors", network, tokens)


def unclip(folder: Path) -> None:
    """Stable Diffusion 2.1 unCLIP."""
    kl(folder)
    text(folder)
    unet(folder, 12, class_embed_type="projection", projection_class_embeddings_input_dim=2 * DIM, use_linear_projection=True)
    diffusers.DDIMScheduler(**SCHEDULE, prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "image_noising_scheduler")
    normalizer = StableUnCLIPImageNormalizer(DIM)
    normalizer.mean.data, normalizer.std.data = torch.randn(1, DIM), torch.rand(1, DIM) + 0.5
    normalizer.save_pretrained(folder / "image_normalizer")
    image_encoder(folder / "image_encoder")
    processor = {
        "crop_size": {"height": ENCODER, "width": ENCODER},
        "size": {"shortest_edge": ENCODER},
        "resample": 3,
        "image_processor_type": "CLIPImageProcessor",
    }
    flags = dict.fromkeys(("do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb"), True)
    colours = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711], "rescale_factor": 1 / 255}
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor/preprocessor_config.json").write_text(json.dumps(processor | flags | colours))
    index = {"_class_name": "StableUnCLIPImg2ImgPipeline", "_diffusers_version": diffusers.__version__}
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"], "image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    index |= {"image_noising_scheduler": ["diffusers", "DDPMScheduler"], "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}))


def kandinsky(folder: Path) -> None:
    """Kandinsky 2.2's `decoder`, and the image encoder of its `prior`."""
    decoder = folder / "decoder"
    network = diffusers.UNet2DConditionModel(
        **BLOCKS, in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim=DIM, encoder_hid_dim_type="image_proj", cross_attention_dim=12,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", attention_head_dim=4, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    network.save_pretrained(decoder / "unet")
    both = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")}
    wide = {"block_out_channels": (32, 32), "norm_num_groups": 8}  # spatial norms have 32 groups
    diffusers.VQModel(**both, **wide, latent_channels=4, vq_embed_dim=4, num_vq_embeddings=12, norm_type="spatial").save_pretrained(decoder / "movq")
    # Less noise than the real schedule's 0.012: from almost pure noise, steps of a random network multiply rounding errors.
    diffusers.DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.004, variance_type="learned_range").save_pretrained(decoder / "scheduler")
    index = {"_class_name": "KandinskyV22Pipeline", "_diffusers_version": diffusers.__version__, "scheduler": ["diffusers", "DDPMScheduler"]}
    (decoder / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet2DConditionModel"], "movq": ["diffusers", "VQModel"]}))
    image_encoder(folder / "prior/image_encoder")
