"""How long one trial takes from its response to a predicted embedding, ranked candidates, and a picture.

    python benchmarks/one_trial.py
    python benchmarks/one_trial.py --study config/config.yaml --dataset simulated --subject subj01

The first measures a closed form and a shared body (MLP, width 1024, depth 2) of NSD's size: 15 724 voxels, 512 + 128 coordinates, an
image embedding of 768 dimensions, against 982 and 73 000 candidates; weights are random, their sizes count. The second takes the models of a
finished run, and draws one picture as well. Median and 95th percentile of trials that come one by one, after five to warm up.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from unimind.data.normalise import scaled
from unimind.data.prepared import PreparedSubject
from unimind.device import on_device
from unimind.foundations import load_autoencoder
from unimind.foundations.targets import Targets
from unimind.models.encoder import Encoder
from unimind.models.enter import Context, subject_key
from unimind.models.prior import LinearMap
from unimind.models.space import PictureSpace
from unimind.reconstruction.agreement import BLOCK, directions, ranked
from unimind.reconstruction.decode import training_mean
from unimind.reconstruction.decoder import Decoder, Prediction
from unimind.reconstruction.draw import draw, generator_for, norms_for
from unimind.storage import save_model
from unimind.study import read_study

VOXELS, DIM, LATENT, COMPONENTS, CANDIDATES = 15724, 768, (4, 32, 32), {"embedding": 512, "latent": 128}, (982, 73000)
WARM_UP, TRIALS = 5, 100


def timed(label: str, work: Callable[[int], object], trials: int) -> None:
    """Print median and 95th percentile of the milliseconds that `work` takes for one trial, and the median of its processor time."""
    seconds, worked = [], []
    for trial in range(WARM_UP + trials):
        begun, busy = time.perf_counter(), time.process_time()
        work(trial)
        seconds.append(time.perf_counter() - begun)
        worked.append(time.process_time() - busy)
    middle, most = np.percentile(seconds[WARM_UP:], [50, 95]) * 1000
    print(f"{label}: {middle:.2f} ms, 95 % below {most:.2f} ms; processor time {1000 * np.median(worked[WARM_UP:]):.2f} ms")


def of_nsds_size(folder: Path) -> Decoder:
    """A decoder with random weights of NSD's sizes."""
    space = PictureSpace(DIM, LATENT, COMPONENTS)
    body = {"kind": "mlp", "width": 1024, "depth": 2, "dropout": 0.0}
    encoder = Encoder({"kind": "decoded", "mixed": True}, body, space, ("embedding", "latent"), {})
    random = np.random.default_rng(0)
    weight = random.normal(size=(VOXELS, space.size)).astype(np.float32)
    zeros, ones = np.zeros(space.size, np.float32), np.ones(space.size, np.float32)
    encoder.take_map(subject_key("nsd", "subj01"), LinearMap(weight, zeros), Context(9000, zeros, ones, np.ones(DIM, np.float32)))
    folder.mkdir()
    save_model(folder, {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, {"encoder": encoder.arguments})
    return Decoder(folder, None, "nsd", "subj01")


def measured_at_nsds_size(trials: int) -> None:
    device, random = on_device(), np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        decoder = of_nsds_size(Path(folder) / "model").to(device)
    responses = random.normal(size=(WARM_UP + trials, 1, VOXELS)).astype(np.float32)
    mean, deviation, training = np.zeros(VOXELS, np.float32), np.ones(VOXELS, np.float32), torch.zeros(DIM, device=device)

    def predicted(trial: int) -> Prediction:
        return decoder.predict(scaled(responses[trial], mean, deviation)[0][None])

    timed("response to predicted embedding", predicted, trials)
    for count in CANDIDATES:
        blocks = directions(torch.from_numpy(random.normal(size=(count, DIM)).astype(np.float32)).to(device), training).split(BLOCK)

        def both(trial: int, blocks: tuple[torch.Tensor, ...] = blocks) -> object:
            return ranked(directions(predicted(trial).features, training), blocks, 10)

        timed(f"response to ten of {count} candidates", both, trials)


def measured_in_a_run(given: argparse.Namespace) -> None:
    study, device = read_study(given.study), on_device()
    method, results = given.method or next(iter(study.methods)), Path(study.results)
    pictures = study.stimuli(given.dataset, given.subject)
    targets = results / f"embeddings/{given.dataset}/{pictures}.h5"
    model, entered = results / study.serving_model(method, given.dataset, given.subject), study.entered(method, given.dataset, given.subject)
    decoder = Decoder(model, results / entered if entered and results / entered != model else None, given.dataset, given.subject).to(device)
    coder = load_autoencoder(results / "foundations/autoencoder").to(device)
    generator = generator_for(results / "foundations/diffusion", coder, study.picture_size, targets, device)
    decoder.prepare(generator)
    sampling = study.methods[method].sampling
    with PreparedSubject(results / f"prepared/{given.dataset}/{given.subject}.h5") as data:
        tests, training = data.trials("test"), data.images("train")
        responses = data.read(np.resize(tests, WARM_UP + given.trials), decoder.order)[:, None].repeat(decoder.channels, 1)
    norms, mean = norms_for(generator, sampling, targets, training), training_mean(targets, training).to(device)
    with Targets(targets) as file:
        blocks = directions(torch.from_numpy(file.read("embedding", np.arange(len(file)))).to(device), mean).split(BLOCK)

    def candidates(trial: int) -> object:
        return ranked(directions(decoder.predict(responses[trial : trial + 1]).features, mean), blocks, 10)

    def drawn(trial: int) -> object:
        return draw(generator, decoder.predict(responses[trial : trial + 1]), norms, sampling, [(study.seed, trial, 0)])

    print(f"{study.name}: {study.methods[method].label or method}, {given.subject}, {responses.shape[-1]} voxels, {device}")
    timed(f"response to ten of {sum(map(len, blocks))} candidates", candidates, given.trials)
    timed(f"response to a picture of {study.picture_size} px, {sampling.sampler} with {sampling.steps} steps", drawn, min(given.trials, 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path)
    parser.add_argument("--method")
    parser.add_argument("--dataset")
    parser.add_argument("--subject")
    parser.add_argument("--trials", type=int, default=TRIALS)
    given = parser.parse_args()
    if given.study is None:
        measured_at_nsds_size(given.trials)
    else:
        measured_in_a_run(given)


if __name__ == "__main__":
    main()
