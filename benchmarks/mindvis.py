"""What MinD-Vis's random crops are worth, and what a linear way around its ViT does: one subject of a finished study, over seeds.

    python benchmarks/mindvis.py config/config.yaml [--method mindvis] [--subject subj01] [--seeds 3] [--only NAME ...]

Reads the study's prepared files and foundations, runs the stages `pretrain`, `condition` and `reconstruct` anew for every variant and
seed, scores all variants of a seed together (the stage `score`), and prints each measure's mean over seeds and, in brackets, the spread
(standard deviation) between them. The way around is a linear map from the entered signal to every token, added to the ViT's own; it
starts at zero.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from unimind.models.bodies import TRUNKS
from unimind.models.vit import ViTTrunk
from unimind.stages import STAGES
from unimind.study import Study, layout, parse_study, read_study, resolved

#: Name -> share of crops (None: the study's), and whether there is a way around.
VARIANTS: dict[str, tuple[float | None, bool]] = {
    "as in the study": (None, False),
    "without crops": (0.0, False),
    "with a linear way around": (None, True),
    "without crops, with a linear way around": (0.0, True),
}


class Bypassed(ViTTrunk):
    """A ViT and, around it, a linear map from the signal to all its tokens."""

    def __init__(self, channels: int, size: int, **settings: Any) -> None:
        super().__init__(channels, size, **settings)
        self.around = nn.Linear(channels * size, self.n_tokens * self.width)
        nn.init.zeros_(self.around.weight)
        nn.init.zeros_(self.around.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As the ViT; signals with hidden patches have no way around."""
        tokens = super().forward(x, mask)
        return tokens if mask is not None else tokens + self.around(x.flatten(1)).unflatten(1, (self.n_tokens, self.width))


def of_seed(study: Study, method: str, names: list[str], seed: int) -> Study:
    """The study with the variants for methods, and another seed."""
    content = resolved(study)
    original = content["methods"][method]
    content["methods"] = {}
    for name in names:
        crop = VARIANTS[name][0]
        content["methods"][_key(name)] = original | ({} if crop is None else {"condition": original["condition"] | {"crop": crop}})
    content |= {"seed": study.seed + seed, "transfer": None}
    return parse_study(content)


def _key(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--method", default="mindvis")
    parser.add_argument("--subject")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args()
    study = read_study(given.study)
    (dataset,) = study.datasets
    subject = given.subject or next(iter(study.pairs("train")))[1]
    results, stimuli = Path(study.results), study.stimuli(dataset, subject)

    def there(pattern: str, **names: str) -> Path:
        return results / layout.path(pattern, dataset=dataset, subject=subject, stimuli=stimuli, **names)

    pictures = {name: there(layout.FOUNDATION, name=name) for name in ("diffusion", "autoencoder", "embedding")}
    unpaired = [there(layout.UNPAIRED).with_name(f"{name}.h5") for name in (study.unpaired.subjects if study.unpaired else ())]
    classifier = there(layout.FOUNDATION, name="classifier")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in given.only}
    for seed in range(given.seeds):
        own = of_seed(study, given.method, given.only, seed)
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for name in given.only:
                key, place = _key(name), Path(folder, _key(name))
                place.mkdir()

                def run(stage: str, files: dict[str, Any], names: dict[str, str]) -> None:
                    STAGES[stage].load()(STAGES[stage].view(own, **names), **names, **files)  # noqa: B023

                with patch.dict(TRUNKS, {"vit": Bypassed} if VARIANTS[name][1] else {}):
                    pretrained = place / "pretrained" if own.methods[key].pretrain else None
                    if pretrained:
                        run("pretrain", {"prepared": unpaired, "checkpoints": place / "c", "out": pretrained}, {"method": key})
                    run(
                        "condition",
                        {"prepared": [there(layout.PREPARED)], "embeddings": [there(layout.EMBEDDINGS)], "entered": None, "encoder": pretrained,
                         "diffusion": pictures["diffusion"], "autoencoder": pictures["autoencoder"], "stimuli": [there(layout.STIMULI)],
                         "checkpoints": place / "c", "out": place / "model"},
                        {"method": key, "group": f"{dataset}-{subject}"},
                    )  # fmt: skip
                    files.append(place / "pictures.h5")
                    run(
                        "reconstruct",
                        {"prepared": there(layout.PREPARED), "embeddings": there(layout.EMBEDDINGS), "model": place / "model", "entered": None, **pictures,
                         "stimuli": there(layout.STIMULI), "out": files[-1], "grid": None},
                        {"method": key, "dataset": dataset, "subject": subject},
                    )  # fmt: skip
            run(
                "score",
                {"reconstructions": files, "controls": there(layout.CONTROLS), "features": there(layout.FEATURES), "stimuli": there(layout.STIMULI),
                 "prepared": there(layout.PREPARED), "embeddings": there(layout.EMBEDDINGS), "embedding": pictures["embedding"],
                 "classifier": classifier if classifier.exists() else None, "out": Path(folder, "metrics")},
                {"dataset": dataset, "subject": subject},
            )  # fmt: skip
            for name in given.only:
                rows = json.loads(Path(folder, "metrics", f"{_key(name)}.json").read_text())["rows"]
                found[name].append({measure: value["value"] for measure, value in rows["reconstruction"].items()})
    measures = list(next(iter(found.values()))[0])
    print(f"| {given.study.stem}, {given.method}, {subject} | " + " | ".join(measures) + " |\n|---|" + "---|" * len(measures))
    for name, runs in found.items():
        cells = [f"{np.mean([one[m] for one in runs]):.3f} [{np.std([one[m] for one in runs]):.3f}]" for m in measures]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
