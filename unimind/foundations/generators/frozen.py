"""Pipelines of diffusers taken as they are, drawing from a predicted embedding where they were made for a picture.

Each is diffusers' own pipeline, called with the embedding, the null condition it would have made itself, and noise of each picture's
own. What they lack for that is added by overriding one method each: the IP-Adapter's pipelines repeat a batch of embeddings by
its own length, and unCLIP's asks for the image encoder. A start enters in one way for all: the scheduler begins at its share of
the steps, with the start noised to there, which is what diffusers' image-to-image pipelines do where it has them.

Text encoders and image encoders are not needed for drawing and not kept: what they make of the empty prompt and of the zero
picture is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import Tensor
from torch.nn import functional

from unimind.errors import InputError
from unimind.foundations.clip_vision import quiet
from unimind.foundations.generators import check_inputs
from unimind.foundations.generators.latent import decoded_latents
from unimind.foundations.generators.samplers import begin, build_scheduler, starting_noise
from unimind.storage import load_model
from unimind.study import Sampling
from unimind.training.loop import generator as random_generator


class _ByRow:
    """IP-Adapter's embeddings as given, (2 n, 1, ...) with guidance: one row a picture."""

    def prepare_ip_adapter_image_embeds(self, ip_adapter_image, ip_adapter_image_embeds, device, num_images_per_prompt, do_classifier_free_guidance):
        return [values.to(device) for values in ip_adapter_image_embeds]


class _IpAdapterPipeline(_ByRow, diffusers.StableDiffusionPipeline):
    pass


class _IpAdapterXLPipeline(_ByRow, diffusers.StableDiffusionXLPipeline):
    pass


class _UnclipPipeline(diffusers.StableUnCLIPImg2ImgPipeline):
    """unCLIP from embeddings alone, or, where `unconditional`, from the null condition."""

    unconditional = False

    def _encode_image(self, image, device, batch_size, num_images_per_prompt, do_classifier_free_guidance, noise_level, generator, image_embeds):
        labels = self.noise_image_embeddings(image_embeds=image_embeds, noise_level=int(noise_level), generator=generator).to(self.unet.dtype)
        if self.unconditional:
            labels = torch.zeros_like(labels)
        return torch.cat([torch.zeros_like(labels), labels]) if do_classifier_free_guidance else labels


def _network(config: dict[str, Any], name: str, state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """One network of the pipeline, without a second copy of weights that lie in the file as they are wanted."""
    cls = StableUnCLIPImageNormalizer if name == "image_normalizer" else getattr(diffusers, config["networks"][name]["class"])
    with torch.device("meta"):
        network = cls.from_config(config["networks"][name]["config"])
    prefix = f"{name}."
    network.load_state_dict({key.removeprefix(prefix): value.to(dtype) for key, value in state.items() if key.startswith(prefix)}, assign=True)
    return network.eval().requires_grad_(False)


class FrozenGenerator(ABC):
    """What all frozen pipelines share; see `foundations.generators`.

    Parameters
    ----------
    state, config : dict
        What `generators.build` wrote.
    autoencoder
        The study's, which made the latents of a start.
    picture_size : int
    device : torch.device
    """

    raw = True
    null_words = ""

    def __init__(self, state: dict[str, Tensor], config: dict[str, Any], autoencoder, picture_size: int, device: torch.device) -> None:
        self.config, self.settings, self.name = config, config["settings"], config["name"]
        self.autoencoder, self.picture_size, self.device = autoencoder, picture_size, device
        self.takes = {name: tuple(shape) for name, shape in config["takes"].items()}
        (self.target,) = self.takes
        precision = self.settings["precision"] if device.type == "cuda" else "fp32"
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        with quiet():
            self.pipe: Any = self._pipeline(state)
        self.pipe.set_progress_bar_config(disable=True)
        self._null = {key.removeprefix("null."): value.to(device, self.dtype) for key, value in state.items() if key.startswith("null.")}
        self.coder = self.pipe.movq if hasattr(self.pipe, "movq") else self.pipe.vae
        if device.type == "cuda" and self.settings["memory"] == "offload":
            self.pipe.enable_model_cpu_offload(device=device)
        else:
            self.pipe.to(device)
        if self.settings["memory"] == "sliced":
            self._slice()
        side = self.settings["size"] // 2 ** (len(self.coder.config.block_out_channels) - 1)
        self.latent_shape = (self.pipe.unet.config.in_channels, side, side)

    @abstractmethod
    def _pipeline(self, state: dict[str, Tensor]) -> Any:
        """The pipeline of diffusers, with the networks of the state in it."""

    def _slice(self) -> None:
        self.pipe.enable_attention_slicing("max")
        if hasattr(self.coder, "use_slicing"):  # Kandinsky's has none
            self.coder.enable_slicing()

    @abstractmethod
    def _call(self, given: Tensor | None, n: int, guided: bool, keys: Sequence[tuple]) -> dict[str, Any]:
        """Arguments of the pipeline that say what to draw; given None, the null condition."""

    def _scheduler(self, sampling: Sampling) -> Any:
        return build_scheduler(sampling, self.config["scheduler"], self.device)

    @torch.no_grad()
    def draw(self, inputs: Mapping[str, Tensor] | None, keys: Sequence[tuple], sampling: Sampling, start: Tensor | None = None) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1]; see `foundations.generators`."""
        check_inputs(self, inputs, keys)
        if start is not None and sampling.strength == 0:
            return self._resized(decoded_latents(self.autoencoder, start), self.picture_size)
        n, guided = len(keys), inputs is not None and sampling.guidance > 1
        scheduler = self._scheduler(sampling)
        latents = starting_noise(self.latent_shape, keys).to(self.device, self.dtype)
        if start is not None and sampling.strength < 1:
            pictures = self._resized(decoded_latents(self.autoencoder, start), self.settings["size"])
            first = begin(scheduler, sampling)[:1]
            latents = scheduler.add_noise(self.encode(pictures), latents, first.expand(n))
            _shorten(scheduler, sampling)
        self.pipe.scheduler = scheduler
        given = None if inputs is None else inputs[self.target].to(self.device, self.dtype)
        drawn = self.pipe(
            **self._call(given, n, guided, keys), latents=latents, height=self.settings["size"], width=self.settings["size"],
            num_inference_steps=sampling.steps, guidance_scale=sampling.guidance if guided else 1.0, output_type="pt",
        ).images  # fmt: skip
        return self._resized(self._finished(drawn).float(), self.picture_size)

    def _finished(self, drawn: Tensor) -> Tensor:
        return drawn

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, size, size) in [0, 1] as the latents of the pipeline's image-to-image form, but for the posterior's mode in place of a draw."""
        upcast = self.coder.dtype == torch.float16 and self.coder.config.get("force_upcast", False)
        if upcast:
            self.coder.to(torch.float32)
        encoded = self.coder.encode((2 * pictures - 1).to(self.device, self.coder.dtype))
        if upcast:
            self.coder.to(self.dtype)
        latents = encoded.latents if "latents" in encoded else encoded.latent_dist.mode() * self.coder.config.scaling_factor
        return latents.to(self.dtype)

    def _resized(self, pictures: Tensor, side: int) -> Tensor:
        if pictures.shape[-1] == side:
            return pictures
        return functional.interpolate(pictures.float(), size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)

    def protocol(self, sampling: Sampling) -> dict[str, Any]:
        """What was done."""
        alone = {"sampler": "none: the autoencoder alone", "steps": 0}
        drawn = {
            "sampler": sampling.sampler, "steps": sampling.steps, "guidance": sampling.guidance, "null": self.null_words,
            "drawn_at": self.settings["size"], "resized_to": self.picture_size, "precision": str(self.dtype).removeprefix("torch."),
            **{key: self.settings[key] for key in ("scale", "noise_level") if key in self.settings},
        }  # fmt: skip
        said = {"generator": self.name, "kind": self.config["kind"], "weights": self.config["sources"]}
        said |= {"autoencoder": self.autoencoder.name, "strength": sampling.strength}
        return said | (drawn if sampling.strength else alone)


def _shorten(scheduler: Any, sampling: Sampling) -> None:
    """Make a scheduler begin at the share `sampling.strength` of the steps whenever a pipeline sets its timesteps."""
    whole = scheduler.set_timesteps

    def set_timesteps(*arguments: Any, **named: Any) -> None:
        whole(*arguments, **named)
        kept = begin(scheduler, sampling)
        if hasattr(scheduler, "sigmas"):  # DPM-Solver++ counts its steps by them, and knows the last one by the number of timesteps
            scheduler.sigmas = scheduler.sigmas[len(scheduler.timesteps) - len(kept) :]
            scheduler.set_begin_index(0)
        scheduler.timesteps = kept

    scheduler.set_timesteps = set_timesteps


class IpAdapter(FrozenGenerator):
    """Stable Diffusion 1.5 or XL under an IP-Adapter."""

    null_words = "empty prompt; zeros for the pooled embedding, the zero picture's tokens for tokens"

    def _pipeline(self, state: dict[str, Tensor]) -> Any:
        networks = {name: _network(self.config, name, state, self.dtype) for name in ("unet", "vae")}
        networks |= {"text_encoder": None, "tokenizer": None, "scheduler": diffusers.DDIMScheduler.from_config(self.config["scheduler"])}
        if self.config["xl"]:
            pipe: Any = _IpAdapterXLPipeline(**networks, text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
        else:
            pipe = _IpAdapterPipeline(**networks, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        split: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for key, value in state.items():
            if key.startswith("adapter."):
                part, _, rest = key.removeprefix("adapter.").partition(".")
                split[part][rest] = value.to(self.dtype)
        pipe.load_ip_adapter(split, subfolder="", weight_name="", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(self.settings["scale"])
        return pipe

    def _slice(self) -> None:
        self.coder.enable_slicing()  # attention in slices would leave the adapter out, and torch's own attention keeps no large map

    def _call(self, given: Tensor | None, n: int, guided: bool, keys: Sequence[tuple]) -> dict[str, Any]:
        nothing = self._null[self.target].expand(n, *self.takes[self.target])[:, None]
        picture = nothing if given is None else given[:, None]
        prompt, negative = self._null["negative" if given is None else "prompt"], self._null["negative"]
        said = {"prompt_embeds": prompt.expand(n, -1, -1), "negative_prompt_embeds": negative.expand(n, -1, -1)}
        if self.config["xl"]:
            pooled = self._null["negative_pooled" if given is None else "pooled"]
            said |= {"pooled_prompt_embeds": pooled.expand(n, -1), "negative_pooled_prompt_embeds": self._null["negative_pooled"].expand(n, -1)}
        return said | {"ip_adapter_image_embeds": [torch.cat([nothing, picture]) if guided else picture]}


class Unclip(FrozenGenerator):
    """Stable Diffusion 2.1 unCLIP."""

    null_words = "empty prompt; zeros for the embedding and its noise level"

    def _pipeline(self, state: dict[str, Tensor]) -> Any:
        networks = {name: _network(self.config, name, state, self.dtype) for name in ("unet", "vae", "image_normalizer")}
        return _UnclipPipeline(
            **networks, feature_extractor=None, image_encoder=None, tokenizer=None, text_encoder=None,
            image_noising_scheduler=diffusers.DDPMScheduler.from_config(self.config["noising"]),
            scheduler=diffusers.DDIMScheduler.from_config(self.config["scheduler"]),
        )  # fmt: skip

    def _call(self, given: Tensor | None, n: int, guided: bool, keys: Sequence[tuple]) -> dict[str, Any]:
        self.pipe.unconditional = given is None
        prompt, nothing = self._null["prompt"].expand(n, -1, -1), self._null["prompt"].new_zeros(n, *self.takes[self.target])
        return {
            "prompt_embeds": prompt, "negative_prompt_embeds": prompt, "image_embeds": nothing if given is None else given,
            "noise_level": self.settings["noise_level"],
            "generator": [random_generator("embedding noise", *key) for key in keys],
        }  # fmt: skip


class Kandinsky(FrozenGenerator):
    """Kandinsky 2.2's decoder."""

    null_words = "the zero picture's embedding"

    def _pipeline(self, state: dict[str, Tensor]) -> Any:
        networks = {name: _network(self.config, name, state, self.dtype) for name in ("unet", "movq")}
        return diffusers.KandinskyV22Pipeline(**networks, scheduler=diffusers.DDIMScheduler.from_config(self.config["scheduler"]))

    def _call(self, given: Tensor | None, n: int, guided: bool, keys: Sequence[tuple]) -> dict[str, Any]:
        nothing = self._null["embedding"].expand(n, -1)
        return {"image_embeds": nothing if given is None else given, "negative_image_embeds": nothing}

    def _finished(self, drawn: Tensor) -> Tensor:
        return (drawn / 2 + 0.5).clamp(0, 1)  # this pipeline's tensors are not brought to [0, 1]


def load_frozen(directory: Path, autoencoder, picture_size: int, device: torch.device) -> FrozenGenerator:
    """What `generators.build` wrote."""
    state, config = load_model(directory)
    if "takes" not in config:
        raise InputError(f"{directory}/config.json: no frozen generator; delete the directory and run the foundation stage again")
    kinds: dict[str, type[FrozenGenerator]] = {"ip-adapter": IpAdapter, "unclip": Unclip, "kandinsky-2.2": Kandinsky}
    return kinds[config["kind"]](state, config, autoencoder, picture_size, device)
