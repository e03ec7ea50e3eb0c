"""Do subjects represent the same pictures alike: representational similarity of responses and of predicted embeddings."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.report import results
from unimind.report.charts import panels, save
from unimind.report.pictures import ReportFiles
from unimind.report.results import Figure
from unimind.study import Study


def similarity(patterns: np.ndarray) -> np.ndarray:
    """Upper triangle of the representational similarity matrix: Pearson correlation between images' patterns (n_images, n_features)."""
    matrix = np.corrcoef(patterns.astype("float64"))
    return matrix[np.triu_indices(len(matrix), 1)]


def matrix_correlations(patterns: Sequence[np.ndarray]) -> np.ndarray:
    """Spearman correlation between subjects' similarity matrices (n_subjects, n_subjects); Kriegeskorte et al. 2008."""
    from scipy.stats import rankdata

    return np.corrcoef([rankdata(similarity(one)) for one in patterns])


def similarities(study: Study, files: ReportFiles, folder: Path) -> Iterator[Figure]:
    """How alike the subjects' representations of the same test pictures are, in raw responses and in predicted embeddings."""
    labels = results.labels(study)
    for dataset in study.datasets:
        subjects = [subject for name, subject in files.subjects() if name == dataset and (dataset, subject) in files.prepared]
        subjects = [subject for subject in subjects if study.stimuli(dataset, subject) == "stimuli"]
        if len(subjects) < 2:
            continue
        stimuli, predicted = {}, {}
        for (name, subject, method), path in files.reconstructions.items():
            if name == dataset and subject in subjects:
                with h5py.File(path) as file:
                    if "predicted" in file:
                        stimuli[subject] = file["stimulus"][()]
                        predicted[method, subject] = dict(zip(file["stimulus"][()].tolist(), file["predicted"][()], strict=True))
        subjects = [subject for subject in subjects if subject in stimuli]
        shared = sorted(set.intersection(*(set(stimuli[subject].tolist()) for subject in subjects))) if len(subjects) > 1 else []
        if len(shared) < 4:
            continue
        found = [("measured responses", matrix_correlations([_responses(files.prepared[dataset, subject], shared) for subject in subjects]))]
        for method in study.methods:
            if all((method, subject) in predicted and set(shared) <= set(predicted[method, subject]) for subject in subjects):
                found.append(
                    (labels[method], matrix_correlations([np.stack([predicted[method, subject][stimulus] for stimulus in shared]) for subject in subjects]))
                )
        if len(found) < 2:
            continue
        figure, axes = panels(len(found), 3, 0.9 + 0.5 * len(subjects) if len(subjects) < 6 else 3.6)
        upper = np.triu_indices(len(subjects), 1)
        for axis, (name, matrix) in zip(axes, found, strict=True):
            axis.imshow(np.ma.masked_array(matrix, np.eye(len(subjects), dtype=bool)), vmin=0, vmax=1, cmap="YlGnBu")
            for row, column in np.argwhere(~np.eye(len(subjects), dtype=bool)):
                value = matrix[row, column]
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "#1C1E22")
            axis.set_xticks(range(len(subjects)), subjects, rotation=30, ha="right", fontsize=8.5)
            axis.set_yticks(range(len(subjects)), subjects, fontsize=8.5)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(f"{name}: mean {matrix[upper].mean():.2f}", fontsize=9.5)
        file = f"similarity_{dataset}.png"
        save(figure, folder / file)
        yield Figure(
            file,
            "alignment",
            f"Do the subjects represent the same {len(shared)} test pictures alike? Spearman "
            f"correlation between two subjects' representational similarity matrices: "
            "of their measured responses (averaged over repeats), and of the embeddings that each method predicts from them.",
            "; ".join(f"{name}: mean agreement between subjects {matrix[upper].mean():.2f}" for name, matrix in found),
            dataset=dataset,
        )


def _responses(path: Path, stimuli: list[int]) -> np.ndarray:
    """Mean test response (n_stimuli, n_voxels) to each stimulus."""
    with PreparedSubject(path) as data:
        known, responses, _ = data.by_picture(data.trials("test")[np.isin(data.stimulus[data.trials("test")], stimuli)])
    missing = np.setdiff1d(stimuli, known)
    if len(missing):
        raise InputError(f"{path}: stimulus {missing[0]} was reconstructed but has no test trial; run reconstruct again")
    return responses[np.searchsorted(known, stimuli), 0]
