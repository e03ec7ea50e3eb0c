"""The stage `split`: which pictures are tested on, by a rule on the pictures themselves.

A rule is learned from the pictures of the data set's training subjects and decides of every picture alone, by its pixels, its
name or its embedding: so the same picture is on the same side for everybody, and a new subject changes no one's split.
"""

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from unimind.data.prepared import Stimuli
from unimind.errors import InputError
from unimind.progress import say
from unimind.storage import whole_file
from unimind.study import ByCategories, ByClusters, FarPictures, RandomPictures, Study

#: Pictures by which clusters are found.
_GROUPED = 20_000
_AT_ONCE = 2048  # rows of a product of embeddings in memory


def split(
    study: Study, dataset: str, pictures: Path, training_pictures: Sequence[Path], embeddings: Path | None, training_embeddings: Sequence[Path], out: Path
) -> None:
    """Write a stimulus file with its pictures' `test` by the data set's `test_pictures`, and `left_out`, those of no split.

    Parameters
    ----------
    pictures : path
        As the stage `stimuli` wrote it.
    training_pictures : sequence of paths
        Of the data set's training subjects, `pictures` among them or not.
    embeddings, training_embeddings : path and sequence of paths
        Of the same pictures in the same order; only read by rules that need them.

    Raises
    ------
    InputError
        The files do not belong together, or the rule leaves nothing to test on.
    """
    section = study.datasets[dataset]
    rule = section.test_pictures
    assert rule is not None
    files = [pictures, *training_pictures]
    hashes, names = zip(*map(_named, files), strict=True)
    if isinstance(rule, RandomPictures | FarPictures):
        tests = [_numbers("test", own, study.seed) < rule.share for own in hashes]
        if isinstance(rule, RandomPictures):
            test, left = tests[0], (_numbers("left out", hashes[0], study.seed) < rule.leave_out) & ~tests[0]
        else:
            vectors = _CentredEmbeddings([embeddings, *training_embeddings], files, [len(own) for own in hashes], hashes)
            test, left = _near(vectors, hashes, tests, rule.leave_out)
    elif isinstance(rule, ByClusters):
        vectors = _CentredEmbeddings([embeddings, *training_embeddings], files, [len(own) for own in hashes], hashes)
        test, left = _cluster(vectors, hashes, rule.count, study.seed) == rule.test, np.zeros(len(hashes[0]), bool)
    else:
        assert isinstance(rule, ByCategories) and section.categories is not None
        of = [[_category(section.categories, name) for name in own] for own in names]
        known = sorted({category for own in of[1:] for category in own if category is not None})
        order = np.argsort(_numbers("category", np.array(known, str), study.seed))
        held_out = {known[k] for k in order[: round(rule.share * len(known))]}
        test, left = np.array([category in held_out for category in of[0]]), np.array([category is None for category in of[0]])
    if not test.any() or (test | left).all():
        kind = "test pictures" if not test.any() else "training pictures"
        raise InputError(f"datasets.{dataset}.test_pictures: leaves no {kind} among the {len(test)} of {pictures}; choose another share, or number of clusters")
    with whole_file(out) as temporary:
        shutil.copyfile(pictures, temporary)
        with h5py.File(temporary, "a") as file:
            file["test"][:] = test
            file["left_out"] = left
    say(f"{dataset}: {test.sum()} of {len(test)} pictures to test on, {left.sum()} left out")


def _named(path: Path) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    with Stimuli(path) as file:
        return file.sha256, file.id


def _numbers(purpose: str, names: NDArray[np.str_], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each name, which depends on it, the purpose and the seed alone."""
    return np.array([int.from_bytes(hashlib.sha256(f"{purpose} {seed} {name}".encode()).digest()[:6]) / 2**48 for name in names.tolist()])


def _category(rule: str, name: str) -> str | None:
    match = re.search(rule, name)
    return match[1] if match else None


class _CentredEmbeddings:
    """Embeddings about the mean over the training subjects' pictures, of unit length, read by file."""

    def __init__(self, embeddings: Sequence[Path | None], files: Sequence[Path], counts: Sequence[int], hashes: Sequence[NDArray]) -> None:
        self.embeddings = embeddings
        total, count = 0.0, 0
        seen: set[str] = set()
        for number, (path, file) in enumerate(zip(embeddings, files, strict=True)):
            if path is None:
                raise InputError(f"{file}: its embeddings are missing; the rule of test_pictures needs them")
            with h5py.File(path) as opened:
                if len(opened["embedding"]) != counts[number]:
                    raise InputError(
                        f"{path}: has {len(opened['embedding'])} embeddings for the {counts[number]} pictures of {file}; run the embed stage again"
                    )
                if number and (fresh := self.fresh(hashes[number], seen)).any():
                    total, count = total + opened["embedding"][:][fresh].sum(0, dtype=np.float64), count + int(fresh.sum())
        self.mean = total / max(count, 1)

    @staticmethod
    def fresh(hashes: NDArray, seen: set[str]) -> NDArray[np.bool_]:
        """Which pictures are not among those seen before, to which they are added."""
        found = np.array([name not in seen for name in hashes.tolist()])
        seen.update(hashes.tolist())
        return found

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        path = self.embeddings[number]
        assert path is not None
        with h5py.File(path) as file:
            values = file["embedding"][:] - self.mean
        return (values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)


def _near(vectors: _CentredEmbeddings, hashes: Sequence[NDArray], tests: Sequence[NDArray], share: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Test pictures and pictures left out of the first file, so that no test picture is near to a training picture of anybody.

    Near is nearer than `share` of the training subjects' other pictures are to their test pictures. Of those, the others are left
    out; of a new subject's own test pictures those that are near to what training subjects train on.
    """
    against = np.concatenate([vectors[number][tests[number]] for number in range(1, len(hashes))])
    seen: set[str] = set()
    others = [(_likeness(vectors[k], against), vectors.fresh(hashes[k], seen) & ~tests[k]) for k in range(1, len(hashes))]
    limit = np.quantile(np.concatenate([values[own] for values, own in others]), 1 - share)
    kept = np.concatenate([vectors[k][own & (values <= limit)] for k, (values, own) in enumerate(others, 1)])
    own = vectors[0]
    theirs = np.isin(hashes[0], np.concatenate([hashes[k][tests[k]] for k in range(1, len(hashes))]))
    test = tests[0] & (theirs | (_likeness(own, kept) <= limit))
    near = _likeness(own, np.concatenate([against, own[test]])) > limit
    return test, ~test & (near | tests[0])


def _likeness(values: NDArray, others: NDArray) -> NDArray[np.float32]:
    """Of each row to the most alike of the others."""
    return np.concatenate([(values[start : start + _AT_ONCE] @ others.T).max(1) for start in range(0, len(values), _AT_ONCE)])


def _cluster(vectors: _CentredEmbeddings, hashes: Sequence[NDArray], count: int, seed: int) -> NDArray[np.int64]:
    """Cluster of every picture of the first file: k-means of the training subjects' pictures, clusters numbered from the largest."""
    from sklearn.cluster import KMeans

    seen: set[str] = set()
    known = []
    for number in range(1, len(hashes)):
        fresh = vectors.fresh(hashes[number], seen)
        known.append((hashes[number][fresh], vectors[number][fresh]))
    names, values = (np.concatenate(parts) for parts in zip(*known, strict=True))
    values = values[np.argsort(names)]  # the same clusters in whatever order the files come
    if len(values) < count:
        raise InputError(f"test_pictures: {count} clusters of {len(values)} pictures; choose fewer")
    sample = np.sort(np.random.default_rng(seed).permutation(len(values))[:_GROUPED])
    found = KMeans(count, n_init=4, random_state=seed).fit(values[sample])
    order = np.argsort(-np.bincount(found.labels_, minlength=count), kind="stable")
    return np.argsort(order)[found.predict(vectors[0])]
