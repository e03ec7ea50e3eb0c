"""Stage `reconstruct`: test trials in, pictures out, with the shuffled-fMRI control."""

from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.data.hdf5 import NewFile
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.device import on_device
from unimind.errors import InputError
from unimind.foundations import load_autoencoder, load_diffusion, load_embedding
from unimind.foundations.diffusion import Condition, Diffusion
from unimind.progress import say, track
from unimind.reconstruction.agreement import agreement, best_sample
from unimind.reconstruction.decoder import Decoder, Prediction
from unimind.reconstruction.grid import write_grid
from unimind.reconstruction.samplers import sample
from unimind.reconstruction.tested import derangement
from unimind.storage import file_hash, whole_file
from unimind.study import Sampling, Study, Voxels

#: Pictures per pass through the autoencoder on a CPU: full-size maps then stay in its caches.
DECODED_AT_ONCE = 8
#: What every method gets of a test picture, in the protocol's words: `responses_by_image` leaves no trial out.
REPEATS = "all test trials of a picture"


def choice_of_sample(samples: int) -> str:
    """How one of a picture's samples is chosen to be shown, in the protocol's words."""
    return "agrees best with the method's own predicted embedding; the first where it predicts none" if samples > 1 else "the only one"


def trials_per_picture(prepared: PreparedSubject) -> str:
    """How many test trials a picture has, such as `3`, or `2 to 3` where they differ."""
    counts = np.unique(prepared.stimulus[prepared.trials("test")], return_counts=True)[1]
    return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def responses_by_image(prepared: PreparedSubject, split: Literal["train", "validation", "test"], voxels: Voxels, channels: int) -> tuple[NDArray, NDArray]:
    """Responses to each picture of a split as a method wants them; every trial counts.

    Parameters
    ----------
    prepared : PreparedSubject
    split : str
    voxels : study.Voxels
        Its order of voxels and its repeats. `channels`: dealt out in turn to `channels` means, side by side; repeats of a
        picture with fewer stand several times. Otherwise the mean of all.
    channels : int

    Returns
    -------
    stimulus : int (n,)
    responses : float32 (n, R, V)
    """
    trials = prepared.trials(split)
    stimulus = prepared.stimulus[trials]
    values = prepared.read(trials, voxels.order)
    images = np.unique(stimulus)
    count = channels if voxels.repeats == "channels" else 1
    rows = [np.flatnonzero(stimulus == image) for image in images]
    rows = [own if len(own) >= count else np.resize(own, count) for own in rows]
    return images, np.stack([np.stack([values[own[channel::count]].mean(0) for channel in range(count)]) for own in rows])


def _pictures(latents: Tensor, autoencoder, batch: int) -> NDArray[np.uint8]:
    """Latents to uint8 (n, H, W, 3)."""
    with torch.no_grad():
        parts = [autoencoder.decode(part) for part in latents.split(batch if latents.is_cuda else min(batch, DECODED_AT_ONCE))]
    return (torch.cat(parts).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)).cpu().numpy()


def draw_pictures(
    diffusion: Diffusion,
    autoencoder,
    condition: Condition,
    null: Condition,
    sampling: Sampling,
    keys: list[tuple],
    batch: int,
    label: str,
    start: Tensor | None = None,
) -> NDArray[np.uint8]:
    """One picture per row of the condition, in batches: uint8 (n, H, W, 3)."""
    latents = []
    for rows in track(torch.arange(len(keys)).split(batch), label):
        part = Condition(condition.context[rows], condition.time[rows])
        latents.append(sample(diffusion, part, null, sampling, [keys[row] for row in rows], None if start is None else start[rows]))
    return _pictures(torch.cat(latents), autoencoder, batch)


def _repeated(prediction: Prediction, times: int) -> tuple[Condition, Tensor | None]:
    return prediction.condition.repeat(times), None if prediction.latent is None else prediction.latent.repeat_interleave(times, 0)


def reconstruct(
    study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path, model: Path, diffusion: Path, autoencoder: Path, embedding: Path,
    stimuli: Path, out: Path, grid: Path | None,
) -> None:  # fmt: skip
    """Write samples, the one shown, the shuffled-fMRI control and the encoder's own predictions for every test picture.

    In the shuffled control every picture gets all responses to another one. The sample shown is the one whose image
    embedding agrees best with the embedding predicted from fMRI; the truth is never looked at. A method without a
    predicted embedding shows its first sample.
    """
    settings = study.methods[method]
    sampling, batch = settings.sampling, study.evaluation.batch_size
    device = on_device()
    network = load_diffusion(diffusion)
    with h5py.File(embeddings) as targets:
        network.take_latents(targets["latent"].shape[1:], str(embeddings))
    decoder = Decoder(model, network, dataset, subject).to(device)
    coder, embedder = load_autoencoder(autoencoder).to(device), load_embedding(embedding).to(device)
    channels = decoder.encoder.channels if decoder.encoder is not None else 1
    with PreparedSubject(prepared) as data:
        stimulus, responses = responses_by_image(data, "test", settings.voxels, channels)
        if len(stimulus) < 2:
            raise InputError(f"{prepared}: {len(stimulus)} test pictures; at least 2 are needed to compare anything")
        trials = trials_per_picture(data)
        train_stimulus, train_responses = responses_by_image(data, "train", settings.voxels, channels)
    count = sampling.samples
    drawn = count if sampling.strength else 1  # nothing is drawn by chance then, and all samples are equal
    prediction, shuffled = decoder.predict(responses), decoder.predict(responses[derangement(len(stimulus), (study.seed, 7))])
    condition, start = _repeated(prediction, drawn)
    keys = [(study.seed, int(image), k) for image in stimulus for k in range(drawn)]
    label = f"{settings.label or method}, {dataset} {subject}"
    pictures = draw_pictures(network, coder, condition, decoder.null(), sampling, keys, batch, f"{label}: {len(keys)} pictures", start)
    control = draw_pictures(
        network,
        coder,
        shuffled.condition,
        decoder.null(),
        sampling,
        [(study.seed, int(i), 0) for i in stimulus],
        batch,
        f"{label}: shuffled fMRI",
        shuffled.latent,
    )
    if prediction.embedding is not None:
        with h5py.File(embeddings) as targets:
            reference = torch.from_numpy(targets["embedding"][:][train_stimulus]).to(device)
    else:
        reference = decoder.predict(train_responses).features
    shown = np.zeros(len(stimulus), np.int64)
    if prediction.embedding is not None and drawn > 1:
        shown = best_sample(embedder, pictures, prediction.embedding, reference.mean(0), batch)
    nearest = train_stimulus[agreement(prediction.features[:, None], reference[None], reference.mean(0)).argmax(1).cpu().numpy()]
    samples = pictures.reshape(len(stimulus), drawn, *pictures.shape[1:]).repeat(count // drawn, axis=1)
    with whole_file(out) as temporary, NewFile(temporary) as file:
        file["stimulus"], file["shown"], file["predicted_train_nearest"] = stimulus, shown, nearest
        for name, values in (("samples", samples), ("shuffled", control)):
            file.create_dataset(name, data=values, compression="lzf", chunks=(1, *values.shape[1:]))
        if prediction.embedding is not None:
            file["predicted"], file["predicted_shuffled"] = prediction.embedding.cpu().numpy(), shuffled.embedding.cpu().numpy()
        file["features"] = prediction.features.cpu().numpy()
        chosen = "agreement with the predicted embedding" if drawn > 1 and prediction.embedding is not None else "first"
        file.attrs.update({
            "method": method, "dataset": dataset, "subject": subject, "guidance": sampling.guidance,
            "sampler": sampling.sampler if sampling.strength else "none: the autoencoder alone", "steps": sampling.steps if sampling.strength else 0,
            "samples": count, "strength": sampling.strength, "shown": chosen, "choice": choice_of_sample(count),
            "repeats": REPEATS, "trials_per_picture": trials, "repeats_as": settings.voxels.repeats,
            "model_sha256": file_hash(model / "model.safetensors"),
            "diffusion": network.name, "autoencoder": coder.name, "embedding": embedder.name,
        })  # fmt: skip
    if grid is not None:
        with Stimuli(stimuli) as pictures_seen:
            truths = pictures_seen.read(stimulus[:24])
        write_grid(grid, [("seen", truths), *((f"sample {k + 1}", samples[:24, k]) for k in range(count)), ("shuffled fMRI", control[:24])])
    say(f"{label}: {len(stimulus)} test pictures reconstructed")
