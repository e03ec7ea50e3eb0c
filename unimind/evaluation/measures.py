"""The one registry of measures: what each is called, how it is shown, what it needs and what it means.

Study, tables, page, figures and documentation read it; it imports nothing slow. A further measure is an entry here and, where
its kind has none yet, its function in `unimind/evaluation/metrics.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["pixels", "maps", "two-way", "distance", "class", "set", "embedding"]
#: The function of `metrics` that a kind is computed by, where a measure names none; for pixels, the method of `LowLevel` of its name.
FUNCTIONS: dict[Kind, str] = {"maps": "squared_distance", "two-way": "two_way", "distance": "correlation_distance"}
#: Networks that a study trains or names itself; all others are files of `config/weights.tsv`.
OF_THE_STUDY = ("study-clip", "classifier", "target")


#: Where measures of reconstructions were compared with the judgement of people.
RATED_IN = "SEED, ICLR 2026"


@dataclass(frozen=True)
class Measure:
    """A measure.

    Attributes
    ----------
    name, title : str
        In files, and where it is shown.
    meaning : str
        What it says, in one line.
    kind : str
        What it compares: `pixels` of two pictures, feature `maps` of two pictures, feature vectors (`two-way`, `distance`),
        a classifier's answers (`class`), two sets of pictures (`set`), or predicted with true image embeddings (`embedding`).
    better : str
        `higher` or `lower`.
    unit : str
        `percent` for shares, shown times 100; else none.
    digits : int
        After the point, as shown.
    chance : float, optional
        What pictures score that have nothing to do with the truths; retrieval's depends on the pool (`level_of_chance`).
    network : str, optional
        A name of `config/weights.tsv`; `study-clip` or `classifier` of the study; `target`, the network whose embedding is predicted.
    group : str
        Columns of the tables under one heading.
    function : str
        Of `metrics`.
    raters : float, optional
        Its agreement with people who rated reconstructions, where that was measured (`RATED_IN`); 1 is full agreement.
    """

    name: str
    title: str
    meaning: str
    kind: Kind
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["percent", ""] = ""
    digits: int = 3
    chance: float | None = None
    network: str | None = None
    group: str = "panel"
    function: str = ""
    raters: float | None = None

    @property
    def percent(self) -> bool:
        return self.unit == "percent"

    @property
    def computed_by(self) -> str:
        return self.function or FUNCTIONS.get(self.kind, self.name)

    def level_of_chance(self, pool: int) -> float | None:
        """Chance among `pool` test pictures."""
        return 1 / pool if self.group == "retrieval" else self.chance

    @property
    def agreement(self) -> str:
        """Its agreement with raters in words; empty where nobody measured it."""
        return "" if self.raters is None else f"agreement with human raters {self.raters:.2f} ({RATED_IN})"

    def shown(self, value: float) -> str:
        """A value with the digits it deserves, without its unit."""
        return f"{100 * value:.1f}" if self.percent else f"{value:.{self.digits}f}"


def _two_way(name: str, title: str, network: str, features: str, group: str = "panel", raters: float | None = None) -> Measure:
    meaning = f"how often the reconstruction is closer to the seen picture than to another test picture, in the features of {features}"
    return Measure(name, title, meaning, "two-way", unit="percent", chance=0.5, network=network, group=group, raters=raters)


def _registry(*measures: Measure) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


#: In the order shown: what tells whether the right picture was read, distances, whole sets, low level last.
MEASURES = _registry(
    _two_way("clip", "CLIP", "clip", "OpenAI's CLIP ViT-L/14", raters=0.44),
    _two_way("study_clip", "Own CLIP", "study-clip", "the small CLIP trained in the study, which saw none of these pictures", group="own"),
    _two_way("squeezenet", "SqueezeNet", "squeezenet", "SqueezeNet 1.1", group="own"),
    _two_way("inception", "Inception", "inception", "Inception-v3"),
    _two_way("alexnet5", "AlexNet(5)", "alexnet", "AlexNet, fifth convolution"),
    _two_way("alexnet2", "AlexNet(2)", "alexnet", "AlexNet, second convolution"),
    Measure(
        "identification", "Identification",
        "how often the embedding predicted from the brain, before any picture is drawn, is closer to the seen picture's than to another test picture's",
        "embedding", unit="percent", chance=0.5, network="target", group="own", function="two_way",
    ),
    Measure(
        "embedding_error", "Embedding error",
        "mean squared distance of the predicted embedding from the seen picture's, in units of the variance over the training pictures (1 - R²); "
        "their mean, which knows nothing, has about 1",
        "embedding", "lower", chance=1.0, network="target", group="own",
    ),
    Measure(
        "retrieval_forward", "Retrieval (image to brain)", "how often the right one of many predicted embeddings is the nearest to the picture's embedding",
        "embedding", unit="percent", network="target", group="retrieval", function="retrieval",
    ),
    Measure(
        "retrieval_backward", "Retrieval (brain to image)", "how often the seen picture, among many test pictures, is the nearest to the predicted embedding",
        "embedding", unit="percent", network="target", group="retrieval", function="retrieval",
    ),
    Measure(
        "classifier", "Object class", "how often the study's own classifier sees the same object in the reconstruction as in the seen picture",
        "class", unit="percent", network="classifier", group="own", function="same_class",
    ),
    Measure(
        "nway_top1", "50-way top-1", "how often the seen picture's class wins against 49 random other classes in the reconstruction",
        "class", unit="percent", chance=0.02, network="vit_h_14",
    ),
    Measure("effnet", "EffNet-B", "correlation distance of EfficientNet features", "distance", "lower", network="effnet", raters=0.75),
    Measure("swav", "SwAV", "correlation distance of SwAV ResNet-50 features", "distance", "lower", network="swav"),
    Measure("lpips", "LPIPS", "learned perceptual distance by AlexNet", "maps", "lower", network="alexnet", group="high level"),
    Measure(
        "lpips_squeeze", "LPIPS-squeeze", "learned perceptual distance by SqueezeNet 1.1; does not compare with LPIPS by AlexNet",
        "maps", "lower", network="squeezenet", group="own",
    ),
    Measure(
        "perceptual_distance", "Perceptual distance", "distance of the feature maps of the study's own classifier",
        "maps", "lower", network="classifier", group="own",
    ),
    Measure("fid", "FID", "distance of the two sets' feature distributions, by the Inception of 2015", "set", "lower", digits=2, network="inception_2015"),
    Measure(
        "fid_torchvision", "FID (torchvision)", "the same distance by torchvision's Inception-v3; does not compare with FID",
        "set", "lower", digits=2, network="inception", function="fid",
    ),
    Measure(
        "inception_score", "Inception Score", "sharpness and variety of the pictures by the Inception of 2015; knows nothing of what was seen",
        "set", digits=2, network="inception_2015", group="high level",
    ),
    Measure(
        "inception_score_torchvision", "Inception Score (torchvision)", "the same score by torchvision's Inception-v3; does not compare with Inception Score",
        "set", digits=2, network="inception", group="high level", function="inception_score",
    ),
    Measure(
        "classifier_score", "Classifier score", "sharpness and variety of the pictures by the study's own classifier; knows nothing of what was seen",
        "set", digits=2, network="classifier", group="own", function="inception_score",
    ),
    Measure("pixcorr", "PixCorr", "correlation of pixel values", "pixels", raters=0.12),
    Measure("ssim", "SSIM", "structural similarity of the grey pictures", "pixels", group="low level"),
    Measure("mse", "MSE", "mean squared difference of pixel values in [0, 1]", "pixels", "lower", digits=4, group="low level"),
)  # fmt: skip
NAMES = tuple(MEASURES)
#: The field's panel; the others are of our own, named for the network that computes them, never as its stand-in.
PANEL = tuple(name for name, measure in MEASURES.items() if measure.group != "own")
#: Columns of the tables: the thesis's two groups, the field's panel, measures of our own.
GROUPS = {group: tuple(name for name, measure in MEASURES.items() if measure.group == group) for group in ("low level", "high level", "panel", "own")}
RETRIEVAL_GROUPS = {"retrieval": ("retrieval_forward", "retrieval_backward"), "two-way": ("identification",), "error": ("embedding_error",)}
#: Measures that say whether the right picture was read, in the order in which one becomes the headline. The study's own classifier, which
#: few pictures leave at chance, comes after the pixels.
HEADLINES = ("clip", "study_clip", "squeezenet", "inception", "alexnet5", "pixcorr", "classifier", "nway_top1", "identification")
#: Measures in whose network's features the similarity of a picture to its truth is taken, best first.
SIMILARITY = ("clip", "study_clip", "squeezenet", "inception", "alexnet5")
#: Measures that see what is shown, best first.
SEMANTIC = (*SIMILARITY, "classifier")
#: Scores of whole sets are unstable below.
FEW_FOR_A_SET = 5000


def of_kind(*kinds: Kind) -> tuple[str, ...]:
    """Names of the measures of some kinds."""
    return tuple(name for name, measure in MEASURES.items() if measure.kind in kinds)


def measure_of(name: str) -> Measure:
    """A measure by its name; one that is not registered is shown under its own name."""
    return MEASURES.get(name) or Measure(name, name, "", "pixels")


def ordered(names: Iterable[str]) -> list[str]:
    """Names in the order shown, unregistered ones last."""
    return sorted(set(names), key=lambda name: (NAMES.index(name) if name in MEASURES else len(NAMES), name))


#: In names of repositories whose image encoder is OpenAI's CLIP ViT-L/14: its own, and of the smaller unCLIP.
OPENAI_VIT_L_14 = ("clip-vit-large-patch14", "unclip-small")


def circular(embedding: Any) -> frozenset[str]:
    """Measures computed by the network that is also the target of the prediction, and by which samples are chosen.

    Parameters
    ----------
    embedding : Section
        `foundations.embedding` of a study.
    """
    clip = getattr(embedding, "model", "").startswith("ViT-L-14") and getattr(embedding, "pretrained", "") == "openai"
    clip |= any(name in getattr(embedding, "repository", "").lower() for name in OPENAI_VIT_L_14)
    network = {"study-clip": "study-clip", "squeezenet": "squeezenet"}.get(embedding.kind, "clip" if clip else None)
    return frozenset(name for name, measure in MEASURES.items() if measure.network in ("target", network) and measure.network)


def headline(present: Iterable[str], embedding: Any) -> str | None:
    """The measure to lead with: the best known one by another network than the target's; one by the target's where there is no other."""
    own, found = circular(embedding), set(present)
    known = [name for name in HEADLINES if name in found]
    return next((name for name in known if name not in own), next(iter(known), None))
