"""The networks behind the panel: weights from a local folder, architectures from torchvision and open_clip, no network access.

`config/weights.tsv` lists every file with its source, licence and SHA-256 (or the leading digits its publisher puts
into the file name). A file that is missing, or is not the one listed, makes its measures absent; nothing stands in.
Where nobody publishes a SHA-256 the list says `unverified`, and so does the network's name wherever it is shown; the
protocol holds the full SHA-256 of every file used.
"""

import csv
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import avg_pool2d, max_pool2d

from unimind.device import on_device
from unimind.errors import InputError
from unimind.evaluation.measures import MEASURES, OF_THE_STUDY
from unimind.evaluation.metrics import perceptual_vectors
from unimind.evaluation.pictures import SIDE, resize
from unimind.storage import file_hash, read_json

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
MANIFEST = Path(__file__).with_name("weights.tsv")
UNVERIFIED = "unverified"
#: Pixels that pass through a network together on a CPU: eight pictures at 256 x 256. The maps of more leave its caches.
PIXELS_AT_ONCE = 8 * SIDE**2

HALF = ((0.5,) * 3, (0.5,) * 3)
#: Networks whose weights lie in the folder of weights, by the measures that need them.
WEIGHTS_OF = {name: measure.network for name, measure in MEASURES.items() if measure.network and measure.network not in (*OF_THE_STUDY, "squeezenet")}
#: Kinds of image embedding that are contrastive language-image models.
CONTRASTIVE = ("study-clip", "open-clip", "clip-vision")


#: Side at which MinD-Vis's classifier (torchvision's default weights of ViT-H/14) takes pictures.
NWAY_SIDE = 518


def device() -> torch.device:
    """The device of `unimind.device`; fp32 on a GPU means fp32 (no TF32), so that numbers agree with the CPU's."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return on_device()


@functools.cache
def manifest() -> dict[str, dict[str, str]]:
    """`config/weights.tsv`, by network name."""
    with open(MANIFEST, newline="") as stream:
        return {row["name"]: row for row in csv.DictReader(stream, delimiter="\t")}


def find_weights(name: str, folder: str | Path | None) -> tuple[Path, str] | str:
    """Where a network's weights are: (file, SHA-256), or the reason why they cannot be used, in one line."""
    row = manifest()[name]
    folder = os.path.expandvars(str(folder or "$UNIMIND_WEIGHTS"))
    if "$" in folder:
        return f"needs {row['file']}: the folder of weights, {folder}, is not set"
    path = Path(folder) / row["file"]
    return _checked(path, row) if path.exists() else f"needs {row['file']}, which is not in {folder}"


def find_squeezenet(file: str | None) -> tuple[Path, str] | str:
    """The SqueezeNet file of `evaluation.squeezenet`, whichever it is: (file, SHA-256), or why it cannot be used."""
    if not file:
        return "the study names no SqueezeNet weights (evaluation.squeezenet)"
    path = os.path.expandvars(file)
    if "$" in path:
        return f"the SqueezeNet weights {path} cannot be found: the variable is not set"
    if not Path(path).exists():
        return f"the SqueezeNet weights {path} do not exist"
    return Path(path), _hash_of(path, Path(path).stat().st_mtime_ns)


def _checked(path: Path, row: dict[str, str]) -> tuple[Path, str] | str:
    sha256 = _hash_of(str(path), path.stat().st_mtime_ns)
    if row["sha256"] != UNVERIFIED and not sha256.startswith(row["sha256"]):
        return f"{path.name} is not the listed file (SHA-256 {sha256[:16]}, expected {row['sha256'][:16]})"
    return path, sha256


def shown_as(name: str, sha256: str) -> str:
    """The name of a network of `config/weights.tsv`, and whether the file used is known to be the listed one."""
    row = manifest()[name]
    return row["shown_as"] + ("" if sha256.startswith(row["sha256"]) else f", {UNVERIFIED}")


@functools.lru_cache
def _hash_of(path: str, changed: int) -> str:
    return file_hash(path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a .safetensors file, or of a .pth read as plain tensors (nothing in it is executed)."""
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not readable as weights ({' '.join(str(error).split())[:120]}); fetch the file again") from None
    state = state.get("state_dict", state)
    return {key.removeprefix("module."): value for key, value in state.items()}


@dataclass
class Network:
    """A frozen network that turns pictures into feature vectors.

    Attributes
    ----------
    name : str
        Group of the features file.
    shown_as, sha256 : str
        What the protocol says.
    size : int or None
        Side the pictures are brought to (from 256); None where the network takes them as stored.
    measures : tuple of str
        Which it computes.
    load : callable
        Gives the function from normalised pictures (n, 3, size, size) to {feature name: (n, d)}. Called once, late.
    """

    name: str
    shown_as: str
    sha256: str
    size: int | None
    measures: tuple[str, ...]
    load: Callable[[], Callable[[torch.Tensor], dict[str, torch.Tensor]]]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    interpolation: str = "bilinear"
    _ready: Callable[[torch.Tensor], dict[str, torch.Tensor]] | None = field(default=None, repr=False)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of pictures (n, 3, H, W) in [0, 1], on the CPU."""
        if self._ready is None:
            self._ready = self.load()
        side = self.size or images.shape[-1]
        together = len(images) if device().type == "cuda" else max(1, PIXELS_AT_ONCE // side**2)
        parts = [self._features(part) for part in images.split(together)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self._ready is not None
        if self.size is not None:
            images = resize(resize(images, SIDE), self.size, self.interpolation)
        if self.normalisation is not None:
            images = normalise(images, self.normalisation).to(device()).contiguous(memory_format=torch.channels_last)
        return {key: value.detach().float().flatten(1).cpu() for key, value in self._ready(images).items()}

    def release(self) -> None:
        """Forget the weights: the panel holds one network at a time."""
        self._ready = None

    def protocol(self) -> dict[str, Any]:
        side = {"side": self.size or "as stored"}
        return {"network": self.shown_as, "sha256": self.sha256, **side, **({"resize": "bicubic"} if self.interpolation == "bicubic" else {})}


def normalise(images: torch.Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> torch.Tensor:
    """Channels brought to the mean and standard deviation a network was trained with."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    return (images - mean) / std


def _frozen(module: torch.nn.Module, state: dict[str, torch.Tensor], path: Path, ignore: tuple[str, ...] = ()) -> torch.nn.Module:
    state = {key: value for key, value in state.items() if not key.startswith(ignore)} if ignore else state
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: not this network's weights ({' '.join(str(error).split())[:160]}); fetch the file again") from None
    return module.eval().requires_grad_(False).to(device(), memory_format=torch.channels_last)


def _alexnet(path: Path) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    from torchvision.models import alexnet

    layers = _frozen(alexnet(weights=None), read_weights(path), path).features

    def features(x: torch.Tensor) -> dict[str, torch.Tensor]:
        early = layers[:5](x)
        return {"alexnet2": early, "alexnet5": layers[5:12](early)}

    return features


def _inception(path: Path, score: bool) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    from torchvision.models import inception_v3

    network = _frozen(inception_v3(weights=None, transform_input=True, init_weights=False), read_weights(path), path)
    classify, network.fc = network.fc, torch.nn.Identity()

    def features(x: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = network(x)
        return {"pooled": pooled, "logits": classify(pooled)} if score else {"inception": pooled}

    return features


def _inception_2015(path: Path) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """The Inception of FID and Inception Score: TensorFlow's weights of 2015, ported to torchvision's layers.

    TensorFlow's average pooling leaves the border out of its means, its last block pools by the maximum, there are 1008
    classes, and the score's logits are without the bias (Salimans et al. 2016).
    """
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    _frozen(network, read_weights(path), path, ignore=("AuxLogits",))
    for name, block in network.named_children():
        if hasattr(block, "branch_pool"):
            block.forward = functools.partial(_tensorflow_block, block, name == "Mixed_7c")
    classify, network.fc = network.fc.weight, torch.nn.Identity()

    def features(x: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = network(x)
        return {"pooled": pooled, "logits": pooled @ classify.T}

    return features


def _tensorflow_block(block: Any, maximum: bool, x: torch.Tensor) -> torch.Tensor:
    """A block of Inception whose pooling branch is TensorFlow's."""
    pooled = max_pool2d(x, 3, 1, 1) if maximum else avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return torch.cat([*block._forward(x)[:-1], block.branch_pool(pooled)], 1)


def _effnet(path: Path) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    from torchvision.models import efficientnet_b1

    network = _frozen(efficientnet_b1(weights=None), read_weights(path), path)
    return lambda x: {"effnet": network.avgpool(network.features(x))}


def _swav(path: Path) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    network.fc = torch.nn.Identity()
    _frozen(network, read_weights(path), path, ignore=("projection_head", "prototypes", "fc."))
    return lambda x: {"swav": network(x)}


def _vit_h_14(path: Path) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    from torchvision.models import vit_h_14

    with torch.device("meta"):
        network = vit_h_14(weights=None, image_size=NWAY_SIDE)
    network = _frozen(network.to_empty(device="cpu"), read_weights(path), path)
    return lambda x: {"logits": network(x)}


def _clip(path: Path) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    import open_clip

    network = _frozen(open_clip.create_model("ViT-L-14-quickgelu", pretrained=None), read_weights(path), path)
    return lambda x: {"clip": network.encode_image(x)}


def panel(metrics: list[str], folder: str | Path | None) -> tuple[list[Network], dict[str, str]]:
    """The field's networks that the wanted measures need and whose weights are there.

    Parameters
    ----------
    metrics : list of str
        Wanted measures; those without a network of the panel are passed over.
    folder : path, optional
        Folder with the files of `config/weights.tsv`; by default `$UNIMIND_WEIGHTS`.

    Returns
    -------
    networks : list of Network
    absent : dict
        Reason per measure that cannot be computed.
    """
    networks: list[Network] = []
    absent: dict[str, str] = {}
    for kind in BUILDERS:
        users = tuple(name for name in metrics if WEIGHTS_OF.get(name) == kind.weights and MEASURES[name].kind in kind.serves)
        place = find_weights(kind.weights, folder) if users else ""
        if isinstance(place, str):
            absent |= dict.fromkeys(users, place)
            continue
        path, sha256 = place
        load = functools.partial(kind.build, path)
        networks.append(Network(kind.name, shown_as(kind.weights, sha256), sha256, kind.size, users, load, kind.normalisation, kind.interpolation))
    return networks, absent


class Builder(NamedTuple):
    """How a network of the panel is made: its weights, the kinds of measures it serves, and how pictures enter."""

    name: str
    weights: str
    serves: tuple[str, ...]
    size: int
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    build: Callable[[Path], Callable[[torch.Tensor], dict[str, torch.Tensor]]]
    interpolation: str = "bilinear"


BUILDERS = (
    Builder("alexnet", "alexnet", ("two-way",), 256, IMAGENET, _alexnet),
    Builder("inception-2015", "inception_2015", ("set",), 299, HALF, _inception_2015),
    Builder("inception-299", "inception", ("set",), 299, IMAGENET, functools.partial(_inception, score=True)),
    Builder("inception", "inception", ("two-way",), 342, IMAGENET, functools.partial(_inception, score=False)),
    Builder("clip", "clip", ("two-way",), 224, OPENAI, _clip),
    Builder("effnet", "effnet", ("distance",), 255, IMAGENET, _effnet),
    Builder("swav", "swav", ("distance",), 224, IMAGENET, _swav),
    Builder("vit_h_14", "vit_h_14", ("class",), NWAY_SIDE, IMAGENET, _vit_h_14, "bicubic"),
)


# --- networks of the study --------------------------------------------------------------------------------------


def study_clip(directory: Path) -> Network | str:
    """The small CLIP trained in the study; the reason where the study's image embedding is another network."""
    if embedding_kind(directory) != "study-clip":
        return f"the study trains no CLIP of its own; its image embedding is {foundation_name(directory)}"

    def load() -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        from unimind.foundations import load_embedding

        embedding = load_embedding(directory)
        return lambda x: {"study_clip": embedding.encode(x)}

    return Network("study_clip", foundation_name(directory), model_hash(directory), None, ("study_clip",), load)


def study_classifier(directory: Path, measures: tuple[str, ...]) -> Network:
    """Logits of the study's own classifier."""

    def load() -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        from unimind.foundations import load_classifier

        classifier = load_classifier(directory)
        return lambda x: {"logits": classifier(x)}

    return Network("classifier", foundation_name(directory), model_hash(directory), None, measures, load)


def shown_pooled(sha256: str) -> str:
    """The name of SqueezeNet where its last maps are averaged."""
    return f"{shown_as('squeezenet', sha256)}, pooled features"


def pooled_squeezenet(path: Path, sha256: str) -> Network:
    """The averages of SqueezeNet 1.1's last maps, as `lpips("squeeze", ...)` gives them beside its distances."""

    def load() -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        from torchvision.models import squeezenet1_1

        layers = _frozen(squeezenet1_1(weights=None), read_weights(path), path).features
        return lambda x: {"squeezenet": layers(x).mean((2, 3))}

    return Network("squeezenet", shown_pooled(sha256), sha256, SIDE, ("squeezenet",), load, IMAGENET)


def embedding_kind(directory: Path) -> str:
    return str(read_json(directory / "config.json").get("kind", ""))


def foundation_name(directory: Path) -> str:
    """The name a foundation is shown under."""
    config = read_json(directory / "config.json")
    return str(config.get("name") or config.get("kind") or directory.name)


def model_hash(directory: Path) -> str:
    """SHA-256 of a foundation's weights, or of its description where the weights are in a hub's cache."""
    weights = directory / "model.safetensors"
    return file_hash(weights if weights.exists() else directory / "config.json")


# --- feature maps -----------------------------------------------------------------------------------------------


@dataclass
class Maps:
    """A network that turns pictures into feature maps for a perceptual distance.

    `lpips(...)` gives LPIPS itself, with the learned heads that ship in the `lpips` package; `of_classifier(...)` the same
    formula without learned weights on a classifier of the study.
    """

    shown_as: str
    sha256: str
    size: int | None
    load: Callable[[], Callable[[torch.Tensor], list[torch.Tensor]]]
    heads: list[torch.Tensor] | None = None
    _ready: Callable[[torch.Tensor], list[torch.Tensor]] | None = field(default=None, repr=False)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`perceptual_vectors` (n, d), and the last layer's average (n, c), of pictures (n, 3, H, W) in [0, 1]."""
        if self._ready is None:
            self._ready = self.load()
        if self.size is not None:
            images = normalise(resize(images, self.size), IMAGENET).to(device())
        maps = [m.detach().float() for m in self._ready(images)]
        return perceptual_vectors(maps, self.heads), maps[-1].mean((2, 3)).cpu()

    def protocol(self) -> dict[str, Any]:
        return {"network": self.shown_as, "sha256": self.sha256, "side": self.size or "as stored"}


#: Where LPIPS reads each backbone: the layers of torchvision's `features` after which a map is taken.
LPIPS_LAYERS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}
_BACKBONES = {"alex": ("alexnet", "alexnet"), "vgg": ("vgg16", "vgg16"), "squeeze": ("squeezenet1_1", "squeezenet")}


def lpips(kind: str, path: Path, sha256: str) -> Maps:
    """LPIPS 0.1 with an AlexNet (`alex`), VGG-16 (`vgg`) or SqueezeNet 1.1 (`squeeze`) backbone from a weights file.

    Its scaling layer on [-1, 1] is ImageNet's mean and standard deviation on [0, 1], so pictures enter normalised so.
    """
    architecture, name = _BACKBONES[kind]

    def load() -> Callable[[torch.Tensor], list[torch.Tensor]]:
        import torchvision.models

        layers = _frozen(getattr(torchvision.models, architecture)(weights=None), read_weights(path), path).features
        ends = LPIPS_LAYERS[kind]

        def maps(x: torch.Tensor) -> list[torch.Tensor]:
            result = []
            x = x.contiguous(memory_format=torch.channels_last)
            for start, end in zip((-1, *ends), ends, strict=False):
                x = layers[start + 1 : end + 1](x)
                result.append(x)
            return result

        return maps

    return Maps(f"LPIPS-{kind} ({shown_as(name, sha256)}, heads 0.1)", sha256, SIDE, load, lpips_heads(kind))


def lpips_heads(kind: str) -> list[torch.Tensor]:
    """The learned weights (c_l,) of every layer, as shipped in the `lpips` package."""
    import importlib.util

    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise InputError("the package lpips is not installed; install it with pip")
    state = torch.load(Path(spec.origin).parent / "weights" / "v0.1" / f"{kind}.pth", map_location="cpu", weights_only=True)
    return [state[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(LPIPS_LAYERS[kind]))]


def of_classifier(directory: Path) -> Maps:
    """Feature maps of the study's classifier, unweighted."""

    def load() -> Callable[[torch.Tensor], list[torch.Tensor]]:
        from unimind.foundations import load_classifier

        return load_classifier(directory).features

    return Maps(foundation_name(directory), model_hash(directory), None, load)
