"""Stage `decode`: trials of which nobody knows what was seen; predictions, pictures, ranked candidates, and how sure all that is."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.blocks import Blocks, Work
from unimind.data.hdf5 import NewFile
from unimind.data.prepared import FurtherTrials, Order, PreparedSubject, Stimuli
from unimind.device import on_device
from unimind.errors import InputError
from unimind.foundations import load_autoencoder, load_embedding
from unimind.foundations.targets import Targets
from unimind.models.embedding_prior import load_embedding_prior
from unimind.progress import say
from unimind.reconstruction.agreement import BLOCK, agreement, directions, embeddings_of, mean_of_pairs, mutual, ranked
from unimind.reconstruction.choice import SubjectEncoding
from unimind.reconstruction.decoder import Decoder, Prediction
from unimind.reconstruction.draw import draw, drawing_protocol, generator_for, norms_for
from unimind.reconstruction.predict import joined_predictions, taken
from unimind.reconstruction.tested import choice_of_sample, pictures_tested, rule_of_choice
from unimind.storage import file_hash, whole_file
from unimind.study import Decode, Study
from unimind.training.checkpoint import fingerprint

#: Candidates that are named of each prediction.
NAMED = 10
#: What candidates are compared with, in the protocol's words.
PREDICTED, OF_SAMPLES = "the predicted image embedding", "the mean image embedding of the drawn samples"


class Candidates(NamedTuple):
    """Pictures that predictions are ranked against: rows of a file of pictures and of the file of their embeddings."""

    pictures: Path
    embeddings: Path
    rows: NDArray[np.int64]

    @classmethod
    def of(
        cls, asked: Decode, stimuli: Path, prepared: Path, embeddings: Path, own: Path | None = None, own_embeddings: Path | None = None
    ) -> "Candidates":  # fmt: skip
        """The candidates of a set: a subject's test pictures, all of its data set's, or those of files of their own."""
        if own is not None and own_embeddings is not None:
            with Stimuli(own) as pictures:
                return cls(own, own_embeddings, np.arange(len(pictures)))
        if asked.candidates == "test":
            return cls(stimuli, embeddings, pictures_tested(stimuli, [prepared]))
        with Stimuli(stimuli) as pictures:
            return cls(stimuli, embeddings, np.arange(len(pictures)))

    def directions(self, mean: Tensor) -> Iterator[Tensor]:
        """Their embeddings as they are compared, (m, d) at a time."""
        with Targets(self.embeddings) as targets:
            for part in targets.in_pieces("embedding", self.rows, BLOCK):
                yield directions(torch.from_numpy(part), mean)

    def names(self) -> list[str]:
        with Stimuli(self.pictures) as pictures:
            return pictures.id[self.rows].tolist()


def named(labels: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Place among the candidates' names of the one that each label is the name of, with or without folder and ending; -1 for none or several."""
    places: dict[str, int] = {}
    for forms in (lambda name: [name], lambda name: {PurePosixPath(name).name, PurePosixPath(name).stem, str(PurePosixPath(name).with_suffix(""))}):
        found: dict[str, int] = {}
        for place, name in enumerate(names):
            for form in forms(name):
                found[form] = place if found.get(form, place) == place else -1
        places = found | places  # a whole name goes before a part of another
    return np.array([places.get(label, -1) if label else -1 for label in labels], np.int64)


def training_mean(embeddings: Path, rows: NDArray) -> Tensor:
    """Mean (d,) of some pictures' embeddings, read in blocks."""
    with Targets(embeddings) as targets:
        total = sum(part.sum(0, dtype=np.float64) for part in targets.in_pieces("embedding", rows, BLOCK))
    return torch.from_numpy((total / len(rows)).astype(np.float32))


def by_groups(
    trials: FurtherTrials, group: NDArray[np.int64], batch: int, voxels: Order, channels: int = 1
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Mean responses (n, channels, V) of `batch` groups of trials at a time, and how many trials each group has."""
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(group.max() + 2))
    for first in range(0, len(ends) - 1, batch):
        rows = np.sort(order[ends[first] : ends[min(first + batch, len(ends) - 1)]])
        yield trials.averaged(rows, group[rows], voxels, channels)[1:]


def predict_groups(decoder: Decoder, trials: FurtherTrials, group: NDArray[np.int64], batch: int) -> tuple[Prediction, NDArray[np.int64]]:
    """Prediction of every group of trials, from the mean of its responses, on the CPU; and how many trials each has."""
    parts, counts = [], []
    for responses, repeats in by_groups(trials, group, batch, decoder.order, decoder.channels):
        parts.append(decoder.predict(responses).each(Tensor.cpu))
        counts.append(repeats)
    return joined_predictions(parts), np.concatenate(counts)


def trials_agree(decoder: Decoder, trials: FurtherTrials, group: NDArray[np.int64], mean: Tensor, batch: int) -> Tensor:
    """Mean agreement of the embeddings predicted from the single trials of every group: (n,), NaN for a group of one."""
    groups = int(group.max()) + 1
    total, count = torch.zeros(groups, len(mean)), torch.from_numpy(np.bincount(group, minlength=groups))
    several = np.flatnonzero(count.numpy()[group] > 1)
    for start in range(0, len(several), batch):
        rows = several[start : start + batch]
        _, responses, _ = trials.averaged(rows, np.arange(len(rows)), decoder.order, decoder.channels)
        total.index_add_(0, torch.from_numpy(group[rows]), directions(decoder.predict(responses).features.cpu(), mean))
    return mean_of_pairs(total, count)


def decode(
    study: Study, method: str, dataset: str, subject: str, further: str, prepared: Path, trials: Path, embeddings: Path, stimuli: Path, model: Path,
    entered: Path | None, diffusion: Path, autoencoder: Path, embedding: Path, out: Path, candidates: Path | None = None,
    candidate_embeddings: Path | None = None, embedding_prior: Path | None = None,
) -> None:  # fmt: skip
    """Write what a method makes of a set of further trials: a row for every group of trials that are decoded together.

    Nothing of the set is looked at but responses and labels; a label names the group, and, where it is a candidate's name, that
    candidate, which is written down as `imagined` and plays no part in any prediction.

    Parameters
    ----------
    prepared, trials : Path
        The subject's prepared file, and what `prepare-further` wrote of the set.
    candidates, candidate_embeddings : Path, optional
        Pictures to rank, and their targets, where they are not the data set's.
    embedding_prior : Path, optional
        The method's prior over embeddings, where it has one: every sample is drawn from another embedding, and candidates are ranked by the regressed one.

    Raises
    ------
    InputError
        The trials are of another subject, or of other voxels than its prepared file.
    """
    settings, asked = study.methods[method], study.decode[further]
    sampling, batch = settings.sampling, study.evaluation.batch_size
    label = f"{settings.label or method}, {dataset} {subject} {further}"
    device = on_device()
    decoder = Decoder(model, entered, dataset, subject).to(device)
    coder, embedder = load_autoencoder(autoencoder).to(device), load_embedding(embedding).to(device)
    generator = generator_for(diffusion, coder, study.picture_size, embeddings, device)
    decoder.prepare(generator)
    prior = None if embedding_prior is None else load_embedding_prior(embedding_prior).to(device)
    ranking = Candidates.of(asked, stimuli, prepared, embeddings, candidates, candidate_embeddings)
    with PreparedSubject(prepared) as own, FurtherTrials(trials) as data:
        if (data.dataset, data.subject) != (dataset, subject):
            raise InputError(f"{trials}: is of {data.dataset} {data.subject}, expected {dataset} {subject}")
        if not np.array_equal(own.stored, data.stored):
            raise InputError(f"{trials}: holds other voxels than {prepared}; run prepare-further again")
        training = own.images("train")
        mean, norms = training_mean(embeddings, training), norms_for(generator, sampling, embeddings, training)
        group, called = data.groups(asked.average)
        normalisation = str(data.attributes["normalisation"])
        prediction, repeats = predict_groups(decoder, data, group, batch)
        rule = rule_of_choice(sampling, prediction.embedding is not None)
        if rule == "encoding":
            encoding = SubjectEncoding.fitted(prepared, embeddings)
            told = np.concatenate([encoding.told(responses[:, 0]) for responses, _ in by_groups(data, group, batch, "stored")])
        agree = trials_agree(decoder, data, group, mean, batch) if prediction.embedding is not None else torch.full((len(called),), torch.nan)
    drawn = sampling.drawn

    def block(rows: NDArray[np.int64]) -> dict[str, NDArray]:
        part = taken(prediction, rows, drawn, device)
        pictures = draw(generator, part, norms, sampling, [(study.seed, further, int(row), k) for row in rows for k in range(drawn)], prior)
        samples = embeddings_of(embedder, pictures, device, batch).view(len(rows), drawn, -1)
        shown = np.zeros(len(rows), np.int64)
        if rule == "encoding":
            shown = encoding.likelihood(samples.flatten(0, 1), pictures, coder, told[rows], batch).argmax(1)
        elif prediction.embedding is not None and drawn > 1:
            assert part.embedding is not None
            shown = agreement(samples, part.embedding[::drawn, None], mean.to(device)).argmax(1).cpu().numpy()
        return {
            "samples": pictures.reshape(len(rows), drawn, *pictures.shape[1:]),
            "shown": shown,
            "mean": samples.mean(1).cpu().numpy(),
            "agreement": mutual(samples, mean.to(device)).cpu().numpy(),
        }

    folder = out.with_name(f".{out.name}.partial")
    files = [prepared, trials, embeddings, model, *(path for path in (entered, embedding_prior) if path), diffusion, autoencoder, embedding]
    mark = fingerprint(study, files, __name__, batch, dataset, subject, further)
    what = "groups of trials" if asked.average else "trials"
    blocks = Blocks(folder, mark)
    work = Work("pictures", len(called), max(1, batch // drawn), block, f"{label}: {len(called)} {what} x {drawn} samples")
    blocks.make(work)
    if not blocks.all_made():
        return
    kept: dict[str, list[NDArray]] = {"mean": [], "agreement": [], "shown": []}
    with whole_file(out) as temporary, NewFile(temporary) as file:
        for rows, content in blocks.read(work):
            if "samples" not in file:
                shape = content["samples"].shape[1:]
                file.create_dataset("samples", (len(called), *shape), np.uint8, compression="lzf", chunks=(1, 1, *shape[1:]))
            file["samples"][rows] = content["samples"]
            for name, parts in kept.items():
                parts.append(content[name])
            file.check()
        of_samples, sure, chosen = (np.concatenate(parts) for parts in kept.values())
        compared, regressed = (torch.from_numpy(of_samples),) * 2 if prediction.embedding is None else (prediction.features, prediction.embedding)
        places, values = ranked(directions(compared, mean), ranking.directions(mean), NAMED)
        names = ranking.names()
        file["condition"], file["label"], file["trials"] = [one for one, _ in called], [one for _, one in called], repeats
        file["shown"], file["embedding"] = chosen, regressed.numpy()
        if decoder.retrieval:
            file["retrieval"] = compared.numpy()
        file["sample_agreement"], file["trial_agreement"] = sure, agree.numpy()
        file["candidate"], file["similarity"] = ranking.rows[places], values
        found = np.array([[names[place] for place in line] for line in places.tolist()], object)
        file.create_dataset("candidate_id", data=found, dtype=h5py.string_dtype())
        imagined = named([one for _, one in called], names)
        file["imagined"] = np.where(imagined < 0, -1, ranking.rows[imagined])
        file.attrs.update({
            **drawing_protocol(generator, sampling, norms, prior),
            "method": method, "dataset": dataset, "subject": subject, "set": further, "samples": drawn, "normalisation": normalisation,
            "candidates": asked.candidates, "pool": len(ranking.rows), "compared": PREDICTED if prediction.embedding is not None else OF_SAMPLES,
            "choice": choice_of_sample(drawn, rule),
            "model_sha256": file_hash(model / "model.safetensors"), "autoencoder": coder.name, "embedding": embedder.name,
        })  # fmt: skip
    blocks.remove()
    say(f"{label}: {len(called)} {what} decoded, {int((imagined >= 0).sum())} of them called as one of {len(names)} candidates")
