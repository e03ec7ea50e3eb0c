"""Stage `reconstruct`: test trials in, pictures out, with the shuffled-fMRI control."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimind.blocks import Blocks, Work
from unimind.data.hdf5 import NewFile
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.device import on_device
from unimind.foundations import load_autoencoder, load_embedding
from unimind.models.embedding_prior import load_embedding_prior
from unimind.progress import say
from unimind.reconstruction.agreement import best_agreeing, best_sample, embeddings_of
from unimind.reconstruction.choice import SubjectEncoding
from unimind.reconstruction.decoder import Decoder
from unimind.reconstruction.draw import draw, drawing_protocol, generator_for, norms_for
from unimind.reconstruction.grid import write_grid
from unimind.reconstruction.predict import REPEATS, Tested, taken, training_features
from unimind.reconstruction.tested import choice_of_sample, rule_of_choice
from unimind.storage import file_hash, whole_file
from unimind.study import Study
from unimind.training.checkpoint import fingerprint

#: Columns of the grid.
SHOWN = 24


def reconstruct(
    study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path, model: Path, entered: Path | None, diffusion: Path,
    autoencoder: Path, embedding: Path, stimuli: Path, out: Path, grid: Path | None, embedding_prior: Path | None = None,
) -> None:  # fmt: skip
    """Write samples, the one shown, the shuffled-fMRI control and the encoder's own predictions for every test picture.

    The sample shown is the one whose image embedding agrees best with the embedding predicted from fMRI, or that under which the
    measured response is likeliest (`sampling.chosen_by`); the truth is never looked at. With a prior over embeddings every sample is drawn from another
    embedding; what is written as predicted, and what samples are chosen by, is the regressed one. In the shuffled control every picture gets all
    responses to another one; as many samples are drawn, and the one shown is chosen in the same way.

    Pictures are kept beside `out` as they are drawn, so that a run that was killed goes on where it was.

    Raises
    ------
    InputError
        Fewer than two test pictures.
    """
    settings = study.methods[method]
    sampling, batch = settings.sampling, study.evaluation.batch_size
    label = f"{settings.label or method}, {dataset} {subject}"
    device = on_device()
    decoder = Decoder(model, entered, dataset, subject).to(device)
    coder, embedder = load_autoencoder(autoencoder).to(device), load_embedding(embedding).to(device)
    generator = generator_for(diffusion, coder, study.picture_size, embeddings, device)
    decoder.prepare(generator)
    prior = None if embedding_prior is None else load_embedding_prior(embedding_prior).to(device)
    with PreparedSubject(prepared) as data:
        tested = Tested.of(decoder, data, batch, study.seed)
        stimulus, prediction, another = tested.stimulus, tested.prediction, tested.another
        training, reference = training_features(decoder, data, embeddings, prediction.embedding is not None, batch)
        norms = norms_for(generator, sampling, embeddings, data.images("train"))
        drawn = sampling.drawn
        rule = rule_of_choice(sampling, prediction.embedding is not None)
        if rule == "encoding":
            encoding = SubjectEncoding.fitted(prepared, embeddings)
            told = np.concatenate([encoding.told(responses[:, 0]) for _, responses, _ in data.by_pictures(data.trials("test"), batch, "stored")])
    mean = reference.mean(0)

    def made(rows: NDArray[np.int64], seen: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Samples (n, drawn, H, W, 3) of some test pictures, from the responses to the pictures `seen`, and the one of each that is shown."""
        part = taken(prediction, seen, drawn, device)
        keys = [(study.seed, int(stimulus[row]), k) for row in rows for k in range(drawn)]
        pictures = draw(generator, part, norms, sampling, keys, prior)
        chosen = np.zeros(len(rows), np.int64)
        if rule == "encoding":
            chosen = encoding.likelihood(embeddings_of(embedder, pictures, device, batch), pictures, coder, told[seen], batch).argmax(1)
        elif part.embedding is not None and drawn > 1:
            chosen = best_sample(embedder, pictures, part.embedding[::drawn], mean.to(device), batch)
        return pictures.reshape(len(rows), drawn, *pictures.shape[1:]), chosen

    def block(rows: NDArray[np.int64]) -> dict[str, NDArray]:
        samples, shown = made(rows, rows)
        control, control_shown = made(rows, another[rows])
        return {"samples": samples, "shown": shown, "shuffled": control[np.arange(len(rows)), control_shown]}

    folder = out.with_name(f".{out.name}.partial")
    files = [prepared, embeddings, model, *(path for path in (entered, embedding_prior) if path), diffusion, autoencoder, embedding]
    mark = fingerprint(study, files, __name__, batch, dataset, subject)
    blocks = Blocks(folder, mark)
    work = Work("pictures", len(stimulus), max(1, batch // drawn), block, f"{label}: {len(stimulus)} test pictures x {drawn} samples, twice")
    blocks.make(work)
    if not blocks.all_made():
        return
    first: dict[str, list[NDArray]] = {"samples": [], "shuffled": []}
    with whole_file(out) as temporary, NewFile(temporary) as file:
        file["stimulus"], file["predicted_train_nearest"] = stimulus, training[best_agreeing(prediction.features, reference, mean)]
        file["shown"] = np.zeros(len(stimulus), np.int64)
        for rows, content in blocks.read(work):
            for name in first:
                values = content[name]
                if name not in file:
                    chunks = (*[1] * (values.ndim - 3), *values.shape[-3:])
                    file.create_dataset(name, (len(stimulus), *values.shape[1:]), np.uint8, compression="lzf", chunks=chunks)
                file[name][rows] = values
                if rows.start < SHOWN:
                    first[name].append(values[: SHOWN - rows.start])
            file["shown"][rows] = content["shown"]
            file.check()
        tested.write(file)
        file["features"] = prediction.features.numpy()
        shown = {"encoding": "likelihood of the measured response", "prediction": "agreement with the predicted embedding", "first": "first"}
        file.attrs.update({
            **drawing_protocol(generator, sampling, norms, prior),
            "method": method, "dataset": dataset, "subject": subject, "samples": drawn, "shown": shown[rule] if drawn > 1 else "first",
            "shuffled_samples": drawn,
            "choice": choice_of_sample(drawn, rule), "repeats": REPEATS,
            "trials_per_picture": tested.trials,
            "model_sha256": file_hash(model / "model.safetensors"),
            "autoencoder": coder.name, "embedding": embedder.name,
        })  # fmt: skip
    if grid is not None:
        with Stimuli(stimuli) as pictures_seen:
            truths = pictures_seen.read(stimulus[:SHOWN])
        samples, control = (np.concatenate(first[name]) for name in ("samples", "shuffled"))
        write_grid(grid, [("seen", truths), *((f"sample {k + 1}", samples[:, k]) for k in range(drawn)), ("shuffled fMRI", control)])
    blocks.remove()
    say(f"{label}: {len(stimulus)} test pictures reconstructed")
