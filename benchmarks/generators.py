"""What frozen generators need at their true size, counted without weights and without a GPU: tensors without contents are drawn from.

    python benchmarks/generators.py             # a row for each generator
    python benchmarks/generators.py SDXL --batch 1   # of those with this in their names

Parameters are those kept for drawing (text and image encoders are not). Memory is that of a GPU in fp16: the weights, and the peak
while a batch of pictures is drawn with guidance; CUDA's context and its libraries' workspaces add about 1 GB. Operations are
those of one picture in 20 steps. The networks' configurations are those of the named repositories.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from stages import Alive
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from unimind.foundations.generators.build import adapter_width
from unimind.foundations.generators.frozen import FrozenGenerator, IpAdapter, Kandinsky, Unclip
from unimind.foundations.generators.samplers import build_scheduler
from unimind.study import Sampling

SD: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}  # diffusers' defaults are otherwise Stable Diffusion 1's
XL: dict[str, Any] = {
    "sample_size": 128, "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD2: dict[str, Any] = {
    "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "class_embed_type": "projection",
}  # fmt: skip
KANDINSKY: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 8, "block_out_channels": [384, 768, 1152, 1536], "layers_per_block": 3, "cross_attention_dim": 768,
    "attention_head_dim": 64, "addition_embed_type": "image", "encoder_hid_dim": 1280, "encoder_hid_dim_type": "image_proj",
    "resnet_time_scale_shift": "scale_shift", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
}  # fmt: skip
KL: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "sample_size": 512,
}  # fmt: skip
MOVQ: dict[str, Any] = {
    "block_out_channels": [128, 256, 256, 512], "layers_per_block": 2, "latent_channels": 4, "num_vq_embeddings": 16384, "vq_embed_dim": 4,
    "norm_type": "spatial", "down_block_types": [*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3],
}  # fmt: skip
SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _networks(**given: tuple[type, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    made = {}
    with torch.device("meta"):
        for name, (cls, config) in given.items():
            made[name] = cls.from_config(config)  # type: ignore[attr-defined]
    state = {f"{name}.{key}": value for name, network in made.items() for key, value in network.state_dict().items()}
    return {name: {"class": cls.__name__, "config": dict(made[name].config)} for name, (cls, _) in given.items()}, state, made


def _adapter(unet: Any, tokens: bool, width: int) -> dict[str, Tensor]:
    cross, modules = unet.config.cross_attention_dim, dict(unet.named_modules())
    found: dict[str, Tensor] = {}
    for k, name in enumerate(name for name in unet.attn_processors if name.endswith("attn2.processor")):
        hidden = modules[name.removesuffix(".processor")].to_q.out_features
        found |= {f"ip_adapter.{1 + 2 * k}.to_{part}_ip.weight": _empty(hidden, cross) for part in "kv"}
    if not tokens:
        found |= {"image_proj.proj.weight": _empty(4 * cross, width), "image_proj.proj.bias": _empty(4 * cross)}
        return found | {f"image_proj.norm.{part}": _empty(cross) for part in ("weight", "bias")}
    inner, heads = (768, 768) if cross == 768 else (1280, 1280)
    found |= {"image_proj.latents": _empty(1, 16, inner), "image_proj.proj_in.weight": _empty(inner, width), "image_proj.proj_in.bias": _empty(inner)}
    found |= {"image_proj.proj_out.weight": _empty(cross, inner)} | {
        f"image_proj.{name}": _empty(cross) for name in ("proj_out.bias", "norm_out.weight", "norm_out.bias")
    }
    for k in range(4):
        layer = f"image_proj.layers.{k}"
        found |= {f"{layer}.{name}.{part}": _empty(inner) for name in ("0.norm1", "0.norm2", "1.0") for part in ("weight", "bias")}
        found |= {
            f"{layer}.0.to_q.weight": _empty(heads, inner),
            f"{layer}.0.to_kv.weight": _empty(2 * heads, inner),
            f"{layer}.0.to_out.weight": _empty(inner, heads),
        }
        found |= {f"{layer}.1.1.weight": _empty(4 * inner, inner), f"{layer}.1.3.weight": _empty(inner, 4 * inner)}
    return found


def _made(
    kind: type[FrozenGenerator], networks: dict[str, Any], state: dict[str, Tensor], target: tuple[str, list[int]], size: int, **more: Any
) -> FrozenGenerator:
    settings = {"precision": "fp16", "memory": "whole", "size": size, "scale": 1.0, "noise_level": 0}
    config = {"kind": "", "name": "", "networks": networks, "takes": dict([target]), "scheduler": SCHEDULE, "settings": settings, "sources": {}, **more}
    return kind(state, config, None, 256, torch.device("meta"))


def ip_adapter(unet: dict[str, Any], xl: bool, tokens: bool, width: int, size: int) -> FrozenGenerator:
    networks, state, made = _networks(unet=(diffusers.UNet2DConditionModel, unet), vae=(diffusers.AutoencoderKL, KL))
    target = ("tokens", [257, width]) if tokens else ("embedding", [width])
    adapter = _adapter(made["unet"], tokens, width)
    assert adapter_width(adapter, made["unet"], target[0], "") == width  # type: ignore[arg-type]
    state |= {f"adapter.{key}": value for key, value in adapter.items()} | {f"null.{target[0]}": _empty(*target[1])}
    state |= {f"null.{name}": _empty(77, unet["cross_attention_dim"]) for name in ("prompt", "negative")}
    state |= {f"null.{name}": _empty(1280) for name in ("pooled", "negative_pooled")} if xl else {}
    return _made(IpAdapter, networks, state, target, size, xl=xl)


def unclip(dim: int) -> FrozenGenerator:
    unet = SD2 | {"projection_class_embeddings_input_dim": 2 * dim}
    normalizer = (StableUnCLIPImageNormalizer, {"embedding_dim": dim})
    networks, state, _ = _networks(unet=(diffusers.UNet2DConditionModel, unet), vae=(diffusers.AutoencoderKL, KL), image_normalizer=normalizer)
    state |= {"null.prompt": _empty(77, 1024), "null.negative": _empty(77, 1024)}
    return _made(Unclip, networks, state, ("embedding", [dim]), 768, noising={"beta_schedule": "squaredcos_cap_v2"})


def kandinsky() -> FrozenGenerator:
    networks, state, _ = _networks(unet=(diffusers.UNet2DConditionModel, KANDINSKY), movq=(diffusers.VQModel, MOVQ))
    return _made(Kandinsky, networks, state | {"null.embedding": _empty(1280)}, ("embedding", [1280]), 512)


GENERATORS: dict[str, Callable[[], FrozenGenerator]] = {
    "SD 1.5, ip-adapter_sd15": lambda: ip_adapter(SD, False, False, 1024, 512),
    "SD 1.5, ip-adapter-plus_sd15": lambda: ip_adapter(SD, False, True, 1280, 512),
    "SDXL, ip-adapter_sdxl_vit-h, at 768": lambda: ip_adapter(XL, True, False, 1024, 768),
    "SDXL, ip-adapter_sdxl (bigG)": lambda: ip_adapter(XL, True, False, 1280, 1024),
    "SDXL, ip-adapter-plus_sdxl_vit-h": lambda: ip_adapter(XL, True, True, 1280, 1024),
    "SD 2.1 unCLIP": lambda: unclip(1024),
    "SD 2.1 unCLIP small": lambda: unclip(768),
    "Kandinsky 2.2": kandinsky,
}


def flash(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
    """Attention as a GPU computes it, without its map."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def draw(generator: FrozenGenerator, batch: int) -> tuple[int, int, int]:
    """Bytes of the weights, bytes at most while drawing, operations of one picture in 20 steps."""
    for network in generator.pipe.components.values():
        if isinstance(network, torch.nn.Module) and not isinstance(network, StableUnCLIPImageNormalizer):
            network.half()
    generator.dtype = torch.float16
    generator._null = {name: value.half() for name, value in generator._null.items()}
    generator._scheduler = _on_cpu(generator)  # type: ignore[assignment,method-assign]
    if isinstance(generator, Unclip):  # the level of its noise has no contents here: embedding and level's code side by side, null and given
        generator.pipe._encode_image = lambda image_embeds, do_classifier_free_guidance, **_: image_embeds.half().repeat(1 + do_classifier_free_guidance, 2)
    weights = sum(p.numel() * 2 for network in generator.pipe.components.values() if isinstance(network, torch.nn.Module) for p in network.parameters())
    inputs = {name: torch.empty(batch, *shape, device="meta") for name, shape in generator.takes.items()}
    alive, counts = Alive(None), []
    with patch.object(functional, "scaled_dot_product_attention", flash):
        for steps in (1, 2):  # a picture takes 20 of the same
            with FlopCounterMode(display=False) as counter, alive if steps == 1 else nullcontext():
                pictures = generator.draw(inputs, [(0, k, 0) for k in range(batch)], Sampling(sampler="ddim", steps=steps, guidance=5.0))
            counts.append(counter.get_total_flops() / batch)
    assert pictures.shape == (batch, 3, 256, 256)
    return weights, weights + alive.peak, int(counts[0] + 19 * (counts[1] - counts[0]))


def _on_cpu(generator: FrozenGenerator) -> Callable[[Sampling], Any]:
    """The steps' numbers have contents."""

    def scheduler(sampling: Sampling) -> Any:
        found = build_scheduler(sampling, generator.config["scheduler"], torch.device("cpu"))
        whole = found.set_timesteps
        found.set_timesteps = lambda steps, device=None: whole(steps, device="cpu")
        return found

    return scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="pictures drawn at once")
    parser.add_argument("--sliced", action="store_true", help="as with foundations.diffusion.memory: sliced")
    parser.add_argument("name", nargs="?", default="", help="only generators with this in their names")
    given = parser.parse_args()
    batch = given.batch
    print(
        f"| generator | takes | drawn at | million parameters | weights, GB | drawing {batch} at once, GB | 10^12 operations a picture |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, make in GENERATORS.items():
        if given.name not in name:
            continue
        generator = make()
        if given.sliced:
            generator._slice()
        weights, peak, operations = draw(generator, batch)
        takes = ", ".join(f"{key} {' x '.join(map(str, shape))}" for key, shape in generator.takes.items())
        print(
            f"| {name} | {takes} | {generator.settings['size']} | {weights / 2e6:.0f} | {weights / 1e9:.1f} | {peak / 1e9:.1f} | {operations / 1e12:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
