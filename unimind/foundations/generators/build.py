"""Frozen generators from their repositories: only what drawing needs, checked key by key, in the project's form.

`model.safetensors` holds the networks' weights as distributed (`unet.`, `vae.` or `movq.`, `image_normalizer.`, `adapter.`) and what
the pipeline makes of no input (`null.`): so neither text nor image encoders are kept, and no pickle is ever read.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimind.errors import InputError
from unimind.foundations.clip_vision import of_zero_picture, quiet, read_encoder, safetensors_of
from unimind.foundations.hub import network_files, read_text_encoder, refuse_other_keys, repository_folder, text_encoder_files
from unimind.foundations.weights import read_safetensors
from unimind.storage import file_hash, read_json, write_json
from unimind.study import AutoencoderAlone, Frozen, IpAdapterGenerator, KandinskyGenerator, UnclipGenerator

_WHERE = "foundations.diffusion"
#: Layers of the resampler of every published Plus adapter; diffusers builds no other number.
_PLUS_LAYERS = 4


def build_generator(settings: Frozen | AutoencoderAlone, directory: Path) -> None:
    """Get a generator from the hub, its cache or local folders, and write it into `directory` (an open `whole_directory`).

    Raises
    ------
    InputError
        One line: what cannot be had, lacks a weight, has a foreign one or one of another shape.
    """
    if isinstance(settings, AutoencoderAlone):
        return _save(directory, {}, {"kind": settings.kind, "role": "diffusion", "name": "none", "sources": {}})
    repository = _Repository(settings)
    with quiet():
        state, config = _taken(settings, repository)
    kept = settings.model_dump(mode="json", exclude={"sha256"})
    _save(
        directory,
        state,
        {"kind": kept.pop("kind"), "role": "diffusion", **config, "settings": kept, "networks": repository.networks, "sources": repository.sources},
    )


def _taken(settings: Frozen, repository: "_Repository") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights to keep, and what the configuration says of the generator."""
    if isinstance(settings, IpAdapterGenerator):
        return _ip_adapter(settings, repository)
    if isinstance(settings, UnclipGenerator):
        return _unclip(repository)
    assert isinstance(settings, KandinskyGenerator)
    return _kandinsky(settings, repository)


def _save(directory: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    """As `storage.save_model`, but without a second copy of gigabytes in memory."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, directory / "model.safetensors")
    write_json(directory / "config.json", config)


class _Repository:
    """A pipeline's repository: its networks, and what was taken from where.

    Attributes
    ----------
    networks : dict
        Class and configuration by name.
    sources : dict
        SHA-256 of every file of weights, by its path in its repository.
    """

    def __init__(self, settings: Frozen) -> None:
        assert isinstance(settings, IpAdapterGenerator | UnclipGenerator | KandinskyGenerator)
        self.variant = settings.variant
        self.networks: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        names = {"ip-adapter": ("unet", "vae"), "unclip": ("unet", "vae", "image_normalizer"), "kandinsky-2.2": ("unet", "movq")}[settings.kind]
        patterns = [pattern for name in names for pattern in network_files(name, self.variant)]
        patterns += ["scheduler/scheduler_config.json", "image_noising_scheduler/scheduler_config.json", "model_index.json"]
        for number in ("", "_2") if settings.kind != "kandinsky-2.2" else ():
            patterns += text_encoder_files(number, self.variant)
        self.folder = repository_folder(settings.repository, settings.revision, patterns, "unet/config.json")
        self.name = Path(settings.repository).name if Path(settings.repository).is_dir() else settings.repository

    def hashed(self, folder: Path, subfolder: str, stem: str) -> None:
        """Note the files of a network's weights."""
        for file in safetensors_of(folder / subfolder, stem, self.variant):
            self.sources[f"{subfolder}/{file.name}"] = file_hash(file)

    def network(self, name: str, *classes: str) -> tuple[Any, dict[str, Tensor]]:
        """One of the pipeline's networks, on the CPU, and its weights under `<name>.`."""
        import diffusers
        from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

        folder = self.folder / name
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json there; name a repository with {name} as {_WHERE}.repository")
        given = read_json(folder / "config.json").get("_class_name")
        if given not in classes:
            raise InputError(f"{folder}/config.json: describes {given}; {_WHERE} needs {' or '.join(classes)} there")
        cls = StableUnCLIPImageNormalizer if given == "StableUnCLIPImageNormalizer" else getattr(diffusers, given)
        try:
            network, found = cls.from_pretrained(
                folder,
                variant=self.variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                torch_dtype=torch.float16 if self.variant else None,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"{folder}: no whole {given} in safetensors{f' of variant {self.variant}' if self.variant else ''} there ({reason}); get the repository again"
            ) from None
        refuse_other_keys(folder, found)
        self.hashed(self.folder, name, "diffusion_pytorch_model")
        self.networks[name] = {"class": given, "config": {key: value for key, value in dict(network.config).items() if not key.startswith("_")}}
        return network.eval(), {f"{name}.{key}": value for key, value in network.state_dict().items()}

    def scheduler(self, name: str = "scheduler") -> dict[str, Any]:
        """The configuration of a noise schedule."""
        import diffusers

        try:
            found = diffusers.DDIMScheduler.load_config(self.folder / name)
        except (OSError, ValueError):
            raise InputError(f"{self.folder / name}/scheduler_config.json: missing or broken; get the repository again") from None
        return {key: value for key, value in dict(found).items() if not key.startswith("_")}

    def text(self, number: str, projected: bool) -> tuple[Any, Any]:
        """A text encoder, in single precision, and its tokenizer."""
        found = read_text_encoder(self.folder, number, projected, self.variant)
        self.hashed(self.folder, f"text_encoder{number}", "model")
        return found


def _ip_adapter(settings: IpAdapterGenerator, repository: _Repository) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import diffusers

    unet, state = repository.network("unet", "UNet2DConditionModel")
    vae, more = repository.network("vae", "AutoencoderKL")
    state |= more
    needed = [settings.weights, *(network_files(settings.encoder, None, "model") if settings.target == "tokens" else [])]
    folder = repository_folder(settings.adapter, settings.adapter_revision, needed, settings.weights)
    file = folder / settings.weights
    if not file.is_file():
        raise InputError(f"{file}: no such file; name the adapter's file as {_WHERE}.weights")
    adapter = read_safetensors(file)
    dim = adapter_width(adapter, unet, settings.target, file)
    repository.sources[settings.weights] = file_hash(file)
    state |= {f"adapter.{key}": value for key, value in adapter.items()}
    xl = unet.config.addition_embed_type == "text_time"
    scheduler = diffusers.DDIMScheduler.from_config(repository.scheduler())
    first, tokenizer = repository.text("", False)
    if xl:
        second, tokenizer_2 = repository.text("_2", True)
        zeros = bool(read_json(repository.folder / "model_index.json").get("force_zeros_for_empty_prompt", True))
        pipe: Any = diffusers.StableDiffusionXLPipeline(vae, first, second, tokenizer, tokenizer_2, unet, scheduler, None, None, zeros, False)
        names: tuple[str, ...] = ("prompt", "negative", "pooled", "negative_pooled")
    else:
        pipe = diffusers.StableDiffusionPipeline(vae, first, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
        names = ("prompt", "negative")
    state |= _of_empty_prompt(pipe, names)
    if settings.target == "tokens":
        repository.hashed(folder, settings.encoder, "model")
        _, null = of_zero_picture(read_encoder(folder / settings.encoder, None, f"{_WHERE}.encoder"))
        if null.shape[1] != dim:
            raise InputError(
                f"{folder / settings.encoder}: its tokens are {null.shape[1]} wide, but {settings.weights} takes {dim}; name another as {_WHERE}.encoder"
            )
    else:
        null = torch.zeros(dim)
    state[f"null.{settings.target}"] = null
    name = f"{'SDXL' if xl else 'Stable Diffusion'} {repository.name} with {Path(settings.weights).stem}"
    return state, {"name": name, "takes": {settings.target: list(null.shape)}, "xl": xl, "scheduler": repository.scheduler()}


def _unclip(repository: _Repository) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import diffusers

    unet, state = repository.network("unet", "UNet2DConditionModel")
    vae, more = repository.network("vae", "AutoencoderKL")
    normalizer, last = repository.network("image_normalizer", "StableUnCLIPImageNormalizer")
    dim = normalizer.config.embedding_dim
    labels = unet.config.projection_class_embeddings_input_dim
    if unet.config.class_embed_type != "projection" or labels != 2 * dim:
        raise InputError(
            f"{repository.folder}/unet: takes class labels of {labels}, not of the embedding and its noise level (2 x {dim}); name an unCLIP repository"
        )
    encoder, tokenizer = repository.text("", False)
    noising, scheduler = repository.scheduler("image_noising_scheduler"), repository.scheduler()
    pipe = diffusers.StableUnCLIPImg2ImgPipeline(
        None, None, normalizer, diffusers.DDPMScheduler.from_config(noising), tokenizer, encoder, unet, diffusers.DDIMScheduler.from_config(scheduler), vae
    )
    state |= more | last | _of_empty_prompt(pipe, ("prompt", "negative"))
    return state, {"name": f"unCLIP {repository.name}", "takes": {"embedding": [dim]}, "noising": noising, "scheduler": scheduler}


def _kandinsky(settings: KandinskyGenerator, repository: _Repository) -> tuple[dict[str, Tensor], dict[str, Any]]:
    unet, state = repository.network("unet", "UNet2DConditionModel")
    _, more = repository.network("movq", "VQModel")
    folder = repository_folder(settings.prior, settings.prior_revision, network_files("image_encoder", settings.variant, "model"), "image_encoder/config.json")
    null, _ = of_zero_picture(read_encoder(folder / "image_encoder", settings.variant, f"{_WHERE}.prior"))
    repository.hashed(folder, "image_encoder", "model")
    if unet.config.addition_embed_type != "image" or unet.config.encoder_hid_dim != len(null):
        raise InputError(
            f"{repository.folder}/unet: takes embeddings of {unet.config.encoder_hid_dim}, but the image encoder of {settings.prior} gives {len(null)}; "
            f"name Kandinsky 2.2's decoder as {_WHERE}.repository and its prior as {_WHERE}.prior"
        )
    # The pipeline splits the predicted variance off the noise where the schedule has no use for it, which no sampler of the study has.
    scheduler = {key: value for key, value in repository.scheduler().items() if key != "variance_type"}
    state |= more | {"null.embedding": null}
    return state, {"name": f"Kandinsky 2.2 {repository.name}", "takes": {"embedding": [len(null)]}, "scheduler": scheduler}


@torch.no_grad()
def _of_empty_prompt(pipe: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What a pipeline conditions on with the prompt "" and no negative prompt, one row each."""
    found = pipe.encode_prompt(prompt="", device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=True)
    return {f"null.{name}": value[0].float().clone() for name, value in zip(names, found, strict=True)}


def adapter_width(adapter: dict[str, Tensor], unet: Any, target: str, file: Path) -> int:
    """Width of what an IP-Adapter takes, after all of its keys and shapes have been found to be those of an adapter of `unet`.

    Raises
    ------
    InputError
        One line: the first key that is missing, foreign or of another shape, or that it takes another target.
    """
    shape = {key: tuple(value.shape) for key, value in adapter.items()}
    crossed = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    cross = unet.config.cross_attention_dim
    modules = dict(unet.named_modules())
    expected: dict[str, tuple[int, ...]] = {
        f"ip_adapter.{1 + 2 * k}.to_{part}_ip.weight": (modules[name.removesuffix(".processor")].to_q.out_features, cross)
        for k, name in enumerate(crossed)
        for part in "kv"
    }
    if "image_proj.latents" in shape:
        taken, width = "tokens", shape.get("image_proj.proj_in.weight", (0, 0))[1]
        expected |= _resampler(shape, width, cross)
    else:
        taken = "embedding"
        tokens, width = shape.get("image_proj.proj.weight", (0, 0))
        count = tokens // cross
        expected |= {
            "image_proj.proj.weight": (count * cross, width), "image_proj.proj.bias": (count * cross,),
            "image_proj.norm.weight": (cross,), "image_proj.norm.bias": (cross,),
        }  # fmt: skip
    for what, keys in (("lacks", expected.keys() - shape.keys()), ("has the foreign", shape.keys() - expected.keys())):
        if keys:
            raise InputError(f"{file}: no IP-Adapter of this UNet: it {what} {min(keys)} ({len(keys)} such); name the adapter made for {_WHERE}.repository")
    for key, wanted in expected.items():
        if shape[key] != wanted:
            raise InputError(f"{file}: {key} is {shape[key]}, this UNet's adapter has {wanted}; name the adapter made for {_WHERE}.repository")
    if taken != target:
        raise InputError(f"{_WHERE}.target: {target} given, but {file.name} takes {taken}")
    return width


def _resampler(shape: dict[str, tuple[int, ...]], width: int, cross: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the resampler that Plus adapters read tokens by; its own sizes are read off two of its weights."""
    _, tokens, inner = shape["image_proj.latents"]
    heads = shape.get("image_proj.layers.0.0.to_q.weight", (0, 0))[0]
    expected = {
        "latents": (1, tokens, inner), "proj_in.weight": (inner, width), "proj_in.bias": (inner,), "proj_out.weight": (cross, inner), "proj_out.bias": (cross,),
        "norm_out.weight": (cross,), "norm_out.bias": (cross,),
    }  # fmt: skip
    for k in range(_PLUS_LAYERS):
        expected |= {f"layers.{k}.0.norm{i}.{part}": (inner,) for i in (1, 2) for part in ("weight", "bias")}
        expected |= {
            f"layers.{k}.0.to_q.weight": (heads, inner),
            f"layers.{k}.0.to_kv.weight": (2 * heads, inner),
            f"layers.{k}.0.to_out.weight": (inner, heads),
        }
        expected |= {f"layers.{k}.1.0.{part}": (inner,) for part in ("weight", "bias")}
        expected |= {f"layers.{k}.1.1.weight": (4 * inner, inner), f"layers.{k}.1.3.weight": (inner, 4 * inner)}
    return {f"image_proj.{key}": value for key, value in expected.items()}
