"""Latent-diffusion checkpoints in CompVis naming, converted to diffusers: the UNet and the VQ first stage.

Both networks are the same arithmetic under other names (Rombach et al. 2022); `tests/foundations/test_ldm.py` holds the
conversion to numbers of the original networks. Sizes are read off the tensors' shapes, so any checkpoint of that
architecture converts; what shapes do not tell (the number of attention heads) is a parameter.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimind.errors import InputError
from unimind.foundations.hub import save_autoencoder, save_unet
from unimind.foundations.weights import local_file, read_checkpoint
from unimind.storage import file_hash
from unimind.study import LdmAutoencoder, LdmDiffusion

if TYPE_CHECKING:
    from torch import Tensor

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
CLASSES, IMAGENET = "cond_stage_model.embedding.weight", 1000
#: Noise schedule of cin256-v2. CompVis's "linear" interpolates the square roots of beta, which diffusers calls "scaled_linear";
#: its samplers begin one step late and end at the first step's alpha.
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
#: Left behind on purpose: the class embedder but for its null class (fMRI takes its place), the discriminator and perceptual loss the first stage was trained
#: with, tables derived from the noise schedule, counters of the moving average.
UNUSED = re.compile(
    r"cond_stage_model\.|first_stage_model\.loss\.|model_ema\.(decay|num_updates)$"
    r"|(betas|logvar|scale_factor|lvlb_weights|posterior_\w+|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?)$"
)
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ENDS = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "out.0": "conv_norm_out", "out.2": "conv_out"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def convert_unet(state: "dict[str, Tensor]", heads: int = 1) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """The UNet of a CompVis checkpoint as diffusers' `UNet2DConditionModel`.

    Parameters
    ----------
    state : dict of str to torch.Tensor
        The whole checkpoint. Where it keeps a moving average of the weights, that is taken, as CompVis's samplers do.
    heads : int
        Attention heads of every attention layer; 1 in cin256-v2.

    Returns
    -------
    weights, config : dict, dict
        `UNet2DConditionModel.from_config(config).load_state_dict(weights)` works strictly.

    Raises
    ------
    InputError
        When the checkpoint holds no such UNet.
    """
    shape = {key.removeprefix(UNET): value.shape for key, value in state.items() if key.startswith(UNET)}
    try:
        layers = _layers_per_block(shape)
        first = [key for key in (f"input_blocks.{i}.0.out_layers.3.weight" for i in range(1, len(shape), layers + 1)) if key in shape]
        attended = [key.replace("0.out_layers.3", "1.proj_in") in shape for key in first]
        transformer = next(key for key in shape if key.endswith("transformer_blocks.0.attn2.to_k.weight"))
        depth = 1 + max(int(found[1]) for key in shape if (found := re.search(r"transformer_blocks\.(\d+)\.", key)))
        config = {
            "sample_size": 64,  # side of cin256-v2's latents; a UNet takes others too
            "in_channels": shape["input_blocks.0.0.weight"][1],
            "out_channels": shape["out.2.weight"][0],
            "block_out_channels": [shape[key][0] for key in first],
            "layers_per_block": layers,
            "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attended],
            "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)],
            "transformer_layers_per_block": depth,
            "cross_attention_dim": shape[transformer][1],
            "attention_head_dim": heads,  # diffusers' name for the number of heads
            "use_linear_projection": len(shape[transformer.split("transformer_blocks")[0] + "proj_in.weight"]) == 2,
        }
    except (KeyError, StopIteration, ValueError):
        raise InputError(f"no latent-diffusion UNet with cross-attention under {UNET}* in this checkpoint") from None
    names = {UNET + key: _unet_name(key, layers) for key in shape}
    return {name: state[_averaged(key, state)] for key, name in names.items() if name is not None}, config


def convert_vq(state: "dict[str, Tensor]") -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """The VQ first stage of a CompVis checkpoint as diffusers' `VQModel`, whose latent needs no scaling.

    Returns
    -------
    weights, config : dict, dict
        `VQModel.from_config(config).load_state_dict(weights)` works strictly.

    Raises
    ------
    InputError
        When the checkpoint holds no VQ first stage, or one with attention outside its middle block.
    """
    shape = {key.removeprefix(FIRST_STAGE): value.shape for key, value in state.items() if key.startswith(FIRST_STAGE)}
    try:
        levels, layers = _levels(shape), 1 + max(int(found[1]) for key in shape if (found := re.match(r"encoder\.down\.0\.block\.(\d+)\.", key)))
        codes, width = shape["quantize.embedding.weight"]
        config = {
            "in_channels": shape["encoder.conv_in.weight"][1],
            "out_channels": shape["decoder.conv_out.weight"][0],
            "block_out_channels": [shape[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": layers,
            "latent_channels": shape["encoder.conv_out.weight"][0],
            "num_vq_embeddings": codes,
            "vq_embed_dim": width,
            "scaling_factor": 1.0,
        }
    except (KeyError, ValueError):
        raise InputError(f"no VQ first stage under {FIRST_STAGE}* in this checkpoint") from None
    if any(re.match(r"(en|de)coder\.(down|up)\.\d+\.attn\.", key) for key in shape):
        raise InputError("the first stage of this checkpoint has attention outside its middle block; VQ-f4 has none")
    weights = {}
    for key in shape:
        name = _vq_name(key, levels)
        if name is not None:
            value = state[FIRST_STAGE + key]
            weights[name] = value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 else value
    return weights, config


def account(state: "dict[str, Tensor] | dict[str, Any]") -> tuple[list[str], list[str]]:
    """Sort a checkpoint's keys into those the conversion uses and those it leaves behind on purpose.

    Returns
    -------
    used, unused : list of str, list of str

    Raises
    ------
    InputError
        When a key is neither: the checkpoint is of an architecture this conversion does not know.
    """
    unet = [key.removeprefix(UNET) for key in state if key.startswith(UNET)]
    stage = [key.removeprefix(FIRST_STAGE) for key in state if key.startswith(FIRST_STAGE)]
    layers = _layers_per_block(unet) if unet else 0
    levels = _levels(stage) if stage else 0
    known = {UNET + key for key in unet if _unet_name(key, layers)}
    used = {_averaged(key, state) for key in known} | {FIRST_STAGE + key for key in stage if _vq_name(key, levels)}
    left = [key for key in state if key not in used]
    unknown = [key for key in left if key not in known and not UNUSED.match(key)]
    if unknown:
        raise InputError(f"{len(unknown)} keys of the checkpoint belong to no known part of latent diffusion, the first is {unknown[0]}")
    return [key for key in state if key in used], left


def build_ldm_autoencoder(settings: LdmAutoencoder, directory: Path) -> None:
    """Convert the first stage of `settings.checkpoint` into `directory` (an open `whole_directory`); InputError when it cannot be."""
    from diffusers import VQModel

    file = local_file(settings.checkpoint, "a latent-diffusion checkpoint")
    network = _filled(VQModel, file, read_checkpoint(file), convert_vq)
    save_autoencoder(directory, settings.kind, f"VQ-f{2 ** (len(network.config.block_out_channels) - 1)} of {file.stem}", network, {file.name: file_hash(file)})


def build_ldm_unet(settings: LdmDiffusion, directory: Path) -> None:
    """Convert the UNet of `settings.checkpoint` into `directory` (an open `whole_directory`); InputError when it cannot be."""
    from diffusers import UNet2DConditionModel

    file = local_file(settings.checkpoint, "a latent-diffusion checkpoint")
    state = read_checkpoint(file)
    unet = _filled(UNet2DConditionModel, file, state, convert_unet)
    save_unet(directory, settings.kind, f"latent diffusion {file.stem}", unet, SCHEDULER, {file.name: file_hash(file)}, null_class(state))


def null_class(state: "dict[str, Tensor]") -> "Tensor | None":
    """Context (1, d) that a class-conditional UNet learned for no class: of cin256-v2's classes, ImageNet's 1000 and one more, the last; None without it."""
    classes = state.get(CLASSES)
    return classes[-1:].float() if classes is not None and len(classes) == IMAGENET + 1 else None


def _filled(network: Any, file: Path, state: "dict[str, Tensor]", convert: Any) -> Any:
    """The diffusers network with the checkpoint's weights in it."""
    try:
        account(state)
        _check_schedule(state)
        weights, config = convert(state)
        module = network.from_config(config)
        module.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{file}: {error}; name a checkpoint such as cin256-v2") from None
    except RuntimeError as error:
        raise InputError(f"{file}: does not fit {network.__name__} ({' '.join(str(error).split())[:200]}); get the checkpoint again") from None
    return module


def _check_schedule(state: "dict[str, Tensor]") -> None:
    """A checkpoint that carries its table of betas must have been trained on the schedule written beside the UNet."""
    import torch

    if "betas" in state:
        ends = SCHEDULER["beta_start"], SCHEDULER["beta_end"]
        expected = torch.linspace(ends[0] ** 0.5, ends[1] ** 0.5, SCHEDULER["num_train_timesteps"], dtype=torch.float64) ** 2
        if state["betas"].shape != expected.shape or not torch.allclose(state["betas"].double(), expected, rtol=1e-4):
            raise InputError(f"trained on another noise schedule than {ends[0]} to {ends[1]} in {len(expected)} steps")


def _averaged(key: str, state: Collection[str]) -> str:
    """The key of a UNet weight's moving average where the checkpoint keeps one, else the weight's own."""
    average = "model_ema." + key.removeprefix("model.").replace(".", "")
    return average if average in state else key


def _layers_per_block(keys: Collection[str]) -> int:
    """Residual blocks per resolution: what stands before the first downsampling."""
    steps = [int(found[1]) for key in keys if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.", key))]
    return min(steps) - 1 if steps else max(int(key.split(".")[1]) for key in keys if key.startswith("input_blocks."))


def _levels(keys: Collection[str]) -> int:
    return 1 + max(int(found[1]) for key in keys if (found := re.match(r"encoder\.down\.(\d+)\.", key)))


def _unet_name(key: str, layers: int) -> str | None:
    """diffusers' name of a UNet weight; None for a name the architecture does not have.

    CompVis numbers all blocks in a row: `layers` residual blocks (each with its attention) and a downsampling per level going
    down, `layers + 1` residual blocks going up, the last with the upsampling.
    """
    stem, _, leaf = key.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{leaf}"
    if stem == "input_blocks.0.0":
        return f"conv_in.{leaf}"
    if found := re.fullmatch(r"middle_block\.([012])\.(.+)", key):
        part = int(found[1])
        return _inner(f"mid_block.attentions.0.{found[2]}" if part == 1 else f"mid_block.resnets.{part // 2}.{found[2]}")
    if found := re.fullmatch(r"(in|out)put_blocks\.(\d+)\.(\d)\.(.+)", key):
        down, number, part, rest = found[1] == "in", int(found[2]), int(found[3]), found[4]
        block, layer = divmod(number - down, layers + 1)
        path = f"{'down' if down else 'up'}_blocks.{block}"
        if rest.startswith(("op.", "conv.")):
            return f"{path}.{'down' if down else 'up'}samplers.0.conv.{leaf}"
        return _inner(f"{path}.{'attentions' if part else 'resnets'}.{layer}.{rest}")
    return None


def _inner(name: str) -> str | None:
    """A residual block's weight under diffusers' name; an attention's keep theirs."""
    head, kind, tail = name.partition(".resnets.")
    if not kind:
        return name
    layer, _, rest = tail.partition(".")
    stem, _, leaf = rest.rpartition(".")
    return f"{head}.resnets.{layer}.{_RESNET[stem]}.{leaf}" if stem in _RESNET else None


def _vq_name(key: str, levels: int) -> str | None:
    """diffusers' name of a first-stage weight; None for a name the architecture does not have."""
    if re.match(r"quantize\.embedding\.weight$|(post_)?quant_conv\.|(en|de)coder\.conv_(in|out)\.", key):
        return key
    if found := re.fullmatch(r"(en|de)coder\.norm_out\.(.+)", key):
        return f"{found[1]}coder.conv_norm_out.{found[2]}"
    if found := re.fullmatch(r"(en|de)coder\.mid\.block_([12])\.(.+)", key):
        return f"{found[1]}coder.mid_block.resnets.{int(found[2]) - 1}.{found[3]}"
    if (found := re.fullmatch(r"(en|de)coder\.mid\.attn_1\.(\w+)\.(\w+)", key)) and found[2] in _ATTENTION:
        return f"{found[1]}coder.mid_block.attentions.0.{_ATTENTION[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"(en|de)coder\.(down|up)\.(\d+)\.(block\.(\d+)|(down|up)sample)\.(.+)", key):
        level = int(found[3]) if found[2] == "down" else levels - 1 - int(found[3])  # CompVis counts from the finest, diffusers from where it begins
        inner = f"resnets.{found[5]}" if found[5] else f"{found[6]}samplers.0"
        return f"{found[1]}coder.{found[2]}_blocks.{level}.{inner}.{found[7].replace('nin_shortcut', 'conv_shortcut')}"
    return None
