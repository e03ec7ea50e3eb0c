"""Samplers on the same model and the same noise: measures with intervals, paired differences, and time.

    python benchmarks/samplers.py config/config.yaml --dataset simulated --subject subj01
    python benchmarks/samplers.py config/config.yaml --dataset simulated --subject subj01 --ways plms:250 dpm-solver++:20 ddim:50

Needs a finished run of the study. The first way is what the others are compared with; each draws one picture per test stimulus.
"""

import argparse
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from unimind.data.prepared import PreparedSubject
from unimind.device import on_device
from unimind.evaluation.panel import Panel, measure
from unimind.evaluation.pictures import PictureSet
from unimind.evaluation.score import rows_at
from unimind.evaluation.statistics import bootstrap
from unimind.foundations import load_autoencoder
from unimind.reconstruction.decoder import Decoder
from unimind.reconstruction.draw import draw_pictures, generator_for, norms_for
from unimind.reconstruction.predict import predict_pictures
from unimind.study import Sampling, read_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--method")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--ways", nargs="+", default=["plms:250", "dpm-solver++:20"], help="sampler:steps")
    parser.add_argument("--guidance", type=float, default=1.0)
    given = parser.parse_args()
    study = read_study(given.study)
    method = given.method or next(iter(study.methods))
    results, device = Path(study.results), on_device()
    own = f"{given.dataset}/{study.stimuli(given.dataset, given.subject)}.h5"
    model = results / study.serving_model(method, given.dataset, given.subject)
    entered = study.entered(method, given.dataset, given.subject)
    own_map = results / entered if entered and results / entered != model else None
    decoder = Decoder(model, own_map, given.dataset, given.subject).to(device)
    coder = load_autoencoder(results / "foundations/autoencoder").to(device)
    generator = generator_for(results / "foundations/diffusion", coder, study.picture_size, results / "embeddings" / own, device)
    decoder.prepare(generator)
    settings = study.methods[method]
    with PreparedSubject(results / f"prepared/{given.dataset}/{given.subject}.h5") as data:
        stimulus, prediction = predict_pictures(decoder, data, "test", study.evaluation.batch_size)
        norms = norms_for(generator, settings.sampling, results / "embeddings" / own, data.images("train"))
    with h5py.File(results / "prepared" / own) as file:
        truths = PictureSet(rows_at(file["images"], stimulus))
    classifier = results / "foundations/classifier" if study.foundations.classifier else None
    panel = Panel.of(study.evaluation.metrics, study.evaluation.weights, study.evaluation.squeezenet, results / "foundations/embedding", classifier)
    keys = [(study.seed, int(image), 0) for image in stimulus]

    pictures, seconds = [], []
    for way in given.ways:
        sampler, steps = way.rsplit(":", 1)
        sampling = Sampling(sampler=sampler, steps=int(steps), guidance=given.guidance, samples=1)
        torch.manual_seed(study.seed)
        begun = time.perf_counter()
        drawn = draw_pictures(generator, prediction, norms, sampling, keys, study.evaluation.batch_size, device, way)
        pictures.append(drawn)
        seconds.append(time.perf_counter() - begun)
    n = len(stimulus)
    rows = {way: np.arange(n) + n * place for place, way in enumerate(given.ways)}
    found = measure(panel, truths, PictureSet(np.concatenate(pictures)), rows, study.evaluation.batch_size)

    first = given.ways[0]
    print(f"{study.title or study.name}: {settings.label or method}, {given.subject}, {n} test pictures, guidance {given.guidance}, {device}\n")
    print("| | " + " | ".join(given.ways) + " | " + " | ".join(f"{way} minus {first}" for way in given.ways[1:]) + " |")
    print("|" + "---|" * (2 * len(given.ways)))
    print("| seconds | " + " | ".join(f"{s:.1f}" for s in seconds) + " | " + " | ".join(f"{seconds[0] / s:.1f} times as fast" for s in seconds[1:]) + " |")

    def interval(values: np.ndarray) -> str:
        low, high = bootstrap(values, study.evaluation.bootstrap, study.seed)
        return f"{values.mean():.4f} [{float(low):.4f}, {float(high):.4f}]"

    for name in study.evaluation.metrics:
        values = [value for way in given.ways if isinstance(value := found[way].get(name), np.ndarray)]
        if len(values) < len(given.ways):
            continue
        cells = [interval(value) for value in values] + [interval(value - values[0]) for value in values[1:]]
        print(f"| {name} | " + " | ".join(cells) + " |")
    apart = [np.abs(own.astype(float) - pictures[0]).mean() for own in pictures[1:]]
    print(f"| mean difference of pixels (0 to 255) | {'| ' * len(given.ways)}" + " | ".join(f"{value:.2f}" for value in apart) + " |")


if __name__ == "__main__":
    main()
