"""Simulated brains looking at drawn pictures, in NSD's own layout, and simulated rest in HCP's.

Everything follows from the study's seed and the subject's name: a subject added later changes no other file. The
signal is what textbooks say of visual cortex, kept simple: early voxels pool normalised oriented energy, compressed,
and opponent colours in a retinotopic receptive field; later voxels respond to what is in the picture - the class and the
colour of each object, textures, places, relation, background - and to conjunctions of it - which object has the colour,
is at the place, lies in the relation - rectified and normalised. Both vary smoothly over the cortex. All brains follow these
laws, each with parameters of its own. In the embedded study the best linear decoder of noise-free responses misses 12 to 14 %
of the variance of the image embedding.
"""

import gzip
import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from unimind.data.drawn import ATTRIBUTES, Drawn, combinations, render
from unimind.data.sources import hcp, nsd
from unimind.data.sources.base import below, to_square
from unimind.data.sources.nsd import NsdSource
from unimind.storage import whole_file
from unimind.study import SimulatedData, Study

if TYPE_CHECKING:
    from nibabel.cifti2 import BrainModelAxis

BETAS, SPACE = "betas_fithrf_GLMdenoise_RR", "func1pt8mm"
N_SUBJECTS = 8  # NSD's; the design always describes all of them
_VOXEL = 1.8  # mm
_TAG = 0x5EED_B0A7  # keeps these random streams apart from those of other parts of a study
_EARLY = {"V1": 0.16, "V2": 0.12, "V3": 0.10, "hV4": 0.07}  # share of the ROI's voxels, from the occipital pole on
_LATE = {"ventral": 0.30, "lateral": 0.25}
_FIELD_SIZE = {"V1": 0.07, "V2": 0.10, "V3": 0.13, "hV4": 0.18}  # receptive field sigma, share of the picture's side
_NEARBY = 3.0  # pixels: sigma of the neighbourhood whose energy normalises
_SEMISATURATION = 1.0  # energy that halves the response, as a multiple of the mean energy
_COMPRESSION = 0.5  # exponent of summation
_CONJUNCTION = 0.8  # share of conjunctions in what drives a later voxel
_THRESHOLD = 0.0  # standard deviations of the drive
_WORKING_SIZE = 32  # pixels in which receptive fields pool
_NOISE = 2.5  # standard deviation of trial noise over that of the median voxel's signal, at noise = 1
_SHARED_NOISE = 0.6  # share of the noise variance that has the signal's own covariance, as if other pictures came to mind
_REPETITION_TIME = 0.72  # s, of HCP's resting runs
_MNI = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
_AMPLITUDE = 1.2  # percent signal change of a standard deviation of signal


class SimulatedSource(NsdSource):
    """Reader of what `simulate` wrote: NSD's reader, with the data set's own sizes."""

    def __init__(self, study: Study, dataset: str, root: Path) -> None:
        super().__init__(study, dataset, root)
        self.address = None

    @property
    def betas(self) -> str:
        return BETAS

    @property
    def space(self) -> str:
        return SPACE

    @property
    def form(self) -> str:
        return "nifti"

    def n_sessions(self, subject: str) -> int:
        return self.section.sessions


def simulate(study: Study, dataset: str, subject: str | None = None, root: str | Path | None = None) -> list[Path]:
    """Write a simulated data set's design and pictures (`subject` None), or one subject's betas and ROIs.

    Parameters
    ----------
    study : Study
    dataset : str
        A simulated data set of the study.
    subject : str, optional
        `subj01` to `subj08`.
    root : path, optional
        Where to; by default the study's root of the data set.

    Returns
    -------
    list of Path
        The files written.
    """
    section = study.datasets[dataset]
    assert isinstance(section, SimulatedData)
    root = Path(root or study.root(dataset))
    design = _design(section)
    return _write_common(section, study.picture_size, design, root) if subject is None else _write_subject(section, study.picture_size, design, root, subject)


def _random(section: SimulatedData, *key: int) -> np.random.Generator:
    return np.random.default_rng((_TAG, section.seed, *key))


def _pictures(section: SimulatedData, number: int) -> NDArray[np.int64]:
    """Numbers of the shared pictures (`number` 0), or of those only one subject sees."""
    seed = (_TAG, section.seed, 1)
    if number == 0:
        return combinations("test", seed, section.shared_images)
    own = section.sessions * section.trials_per_session // section.repeats - section.shared_images
    return combinations("training", seed, N_SUBJECTS * own)[(number - 1) * own : number * own]


# --- design and pictures ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Design:
    """0-based throughout; files are 1-based as NSD's.

    Attributes
    ----------
    order : int (n_trials,)
        Which of the subject's pictures is shown in each trial; the same for all subjects.
    shown : int (8, pictures per subject)
        Place in the brick of each subject's pictures, shared ones first.
    """

    order: NDArray[np.int64]
    shown: NDArray[np.int64]
    n_pictures: int


def _design(section: SimulatedData) -> _Design:
    trials = section.sessions * section.trials_per_session
    per_subject = trials // section.repeats
    own = per_subject - section.shared_images
    total = section.shared_images + N_SUBJECTS * own
    random = _random(section, 0)
    order = random.permutation(np.repeat(np.arange(per_subject), section.repeats))
    places = random.permutation(total)
    groups = np.split(places, section.shared_images + own * np.arange(N_SUBJECTS))
    shared, *owned = (np.sort(group) for group in groups)
    return _Design(order, np.stack([np.concatenate([shared, places]) for places in owned]), total)


def _write_common(section: SimulatedData, size: int, design: _Design, root: Path) -> list[Path]:
    import pandas as pd
    from scipy.io import savemat

    from unimind.data.hdf5 import NewFile

    shared = section.shared_images
    paths = [below(root, name) for name in (nsd.DESIGN, nsd.TABLE, nsd.PICTURES)]
    per_run = -(-section.trials_per_session // 12)
    pattern = np.zeros((section.sessions, 12, max(75, per_run)), np.uint8)
    for run, count in enumerate(np.bincount(np.arange(section.trials_per_session) % 12, minlength=12)):
        pattern[:, run, :count] = 1
    counts = [len(np.unique(design.order[: section.trials_per_session * n])) for n in range(1, section.sessions + 1)]
    with whole_file(paths[0]) as temporary:
        content = {
            "basiccnt": np.stack([np.asarray(counts)] * 3), "masterordering": design.order[None] + 1, "sharedix": design.shown[:1, :shared] + 1,
            "stimpattern": pattern, "subjectim": design.shown + 1,
        }  # fmt: skip
        with open(temporary, "wb") as stream:
            savemat(stream, {name: values.astype(np.float64) for name, values in content.items()}, do_compression=True)
            stream.seek(0)  # the header's free text holds the time of day, which would make every file another one
            stream.write(b"MATLAB 5.0 MAT-file, simulated".ljust(116))

    trials_of = np.argsort(design.order, kind="stable").reshape(-1, section.repeats) + 1
    picture = np.arange(design.n_pictures)
    table = {
        "cocoId": picture + 1, "cocoSplit": "drawn", "cropBox": "(0.0, 0.0, 0.0, 0.0)", "loss": 0.0, "nsdId": picture, "flagged": False, "BOLD5000": False,
        "shared1000": np.isin(picture, design.shown[0, :shared]),
    }  # fmt: skip
    seen = {f"subject{s + 1}": np.isin(picture, design.shown[s]).astype(int) for s in range(N_SUBJECTS)}
    repeats = {f"subject{s + 1}_rep{k}": np.zeros(design.n_pictures, int) for s in range(N_SUBJECTS) for k in range(section.repeats)}
    for s, k in itertools.product(range(N_SUBJECTS), range(section.repeats)):
        repeats[f"subject{s + 1}_rep{k}"][design.shown[s]] = trials_of[:, k]
    with whole_file(paths[1]) as temporary:
        pd.DataFrame({**table, **seen, **repeats}).to_csv(temporary)

    with whole_file(paths[2]) as temporary, NewFile(temporary) as file:
        brick = file.create_dataset("imgBrick", (design.n_pictures, size, size, 3), np.uint8, chunks=(1, size, size, 3))
        for number in range(N_SUBJECTS + 1):
            places = design.shown[0, :shared] if number == 0 else design.shown[number - 1, shared:]
            for place, image in zip(places, render(_pictures(section, number), size).images, strict=True):
                brick[place] = image
    return paths


# --- brains -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Brain:
    """A subject's anatomy.

    Attributes
    ----------
    brain, roi : bool (X, Y, Z)
        The brain; the voxels of nsdgeneral.
    xyz : float (n_voxels, 3)
        Grid coordinates of nsdgeneral's voxels, C order, as `area`.
    area : str (n_voxels,)
    """

    brain: NDArray[np.bool_]
    roi: NDArray[np.bool_]
    xyz: NDArray[np.float64]
    area: NDArray[np.str_]


def _brain(section: SimulatedData, number: int) -> _Brain:
    random = _random(section, 2, number)
    n_voxels = max(40, round(section.voxels * random.uniform(0.8, 1.2)))
    axes = np.array([1.0, 1.25, 0.9]) * random.uniform(0.95, 1.05, 3)
    axes *= (3.2 * n_voxels / (4 / 3 * np.pi * axes.prod())) ** (1 / 3)  # the visual voxels are about a third of the brain
    shape = tuple(int(n) for n in np.ceil(2 * axes) + random.integers(2, 5, 3))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    centred = (grid - (np.array(shape) - 1) / 2) / axes
    brain = (centred**2).sum(-1) <= 1
    pole = np.array([0.0, -1.0, 0.0]) + random.normal(0, 0.05, 3)
    distance = np.sqrt((((centred - pole) * random.uniform(0.9, 1.1, 3)) ** 2).sum(-1))  # shells about the occipital pole
    distance[~brain] = np.inf
    nearest = np.argsort(distance, axis=None, kind="stable")[:n_voxels]
    roi = np.zeros(shape, bool)
    roi.ravel()[nearest] = True
    area = np.empty(shape, "U8")
    bounds = np.round(np.cumsum(list(_EARLY.values())) * n_voxels).astype(int)
    for name, places in zip(_EARLY, np.split(nearest, bounds), strict=False):
        area.ravel()[places] = name
    late = nearest[bounds[-1] :]
    lower = np.argsort(centred[..., 2].ravel()[late], kind="stable")
    share = round(len(late) * _LATE["ventral"] / sum(_LATE.values()))
    area.ravel()[late[lower[:share]]], area.ravel()[late[lower[share:]]] = "ventral", "lateral"
    return _Brain(brain, roi, np.argwhere(roi).astype(float), area[roi])


def _smooth(random: np.random.Generator, xyz: NDArray, count: int, scale: float) -> NDArray[np.float32]:
    """Random fields over voxels, (n_voxels, count), unit variance, correlated over about `scale` voxels.

    Random Fourier features of the Gaussian kernel (Rahimi & Recht 2007).
    """
    features = 128
    frequency = random.normal(0, 1 / scale, (3, features))
    phase = random.uniform(0, 2 * np.pi, features)
    basis = np.sqrt(2 / features) * np.cos(xyz @ frequency + phase)
    return (basis @ random.normal(size=(features, count))).astype(np.float32)


def _standard(values: NDArray) -> NDArray[np.float32]:
    values = values - values.mean(axis=0)
    return (values / np.maximum(values.std(axis=0), 1e-6)).astype(np.float32)


def _channels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Oriented energy at two scales and four orientations, luminance and two opponent colours: (n, 11, 32, 32)."""
    side = _WORKING_SIZE
    small = np.stack([to_square(image, side) for image in images]).astype(np.float32) / 255
    red, green, blue = np.moveaxis(small, -1, 0)
    luminance = small.mean(-1)
    spectrum = np.fft.fft2(luminance - luminance.mean((1, 2), keepdims=True)).astype(np.complex64)
    fy, fx = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    channels = np.empty((len(images), 11, side, side), np.float32)
    for row, (frequency, angle) in enumerate(itertools.product((0.09, 0.2), np.arange(4) * np.pi / 4)):
        # A one-sided Gaussian in frequency is a Gabor pair in quadrature; the modulus of its output is the energy.
        passed = np.exp(-((fx - frequency * np.cos(angle)) ** 2 + (fy - frequency * np.sin(angle)) ** 2) / (2 * (0.45 * frequency) ** 2))
        channels[:, row] = abs(np.fft.ifft2(spectrum * passed.astype(np.float32)))
    channels[:, 8], channels[:, 9], channels[:, 10] = luminance, red - green, blue - (red + green) / 2
    return channels


def _early_signal(random: np.random.Generator, images: NDArray[np.uint8], xyz: NDArray, area: NDArray[np.str_]) -> NDArray[np.float32]:
    """Receptive fields laid out smoothly over each area, pooling normalised energy, compressed, and colour: (n_images, n_voxels).

    Energy is divided by that of all orientations and scales nearby (Heeger 1992), pooled, and raised to a power below 1
    (compressive spatial summation; Kay et al. 2013): two things in a field drive it less than the sum of both.
    """
    place = np.empty((len(xyz), 2))
    sigma = np.empty(len(xyz))
    for name in _EARLY:
        inside = np.flatnonzero(area == name)
        for axis, (coordinate, sign) in enumerate(((0, -1), (2, 1))):  # contralateral; the upper field lies below
            rank = np.argsort(np.argsort(xyz[inside, coordinate] + 1e-3 * random.normal(size=len(inside))))
            place[inside, axis] = 0.5 + sign * ((rank + 0.5) / max(1, len(inside)) - 0.5) * 0.96
        eccentricity = np.hypot(*(place[inside] - 0.5).T)
        sigma[inside] = _FIELD_SIZE[name] * (0.7 + eccentricity)
    pixels = (np.arange(_WORKING_SIZE) + 0.5) / _WORKING_SIZE
    across, down = (np.exp(-((pixels - place[:, k, None]) ** 2) / (2 * sigma[:, None] ** 2)) for k in (0, 1))
    fields = (down[:, :, None] * across[:, None, :]).reshape(len(xyz), -1)
    fields = (fields / fields.sum(1, keepdims=True)).astype(np.float32)
    channels = _channels(images)
    channels /= np.maximum(channels.std(axis=(0, 2, 3), keepdims=True), 1e-6)
    nearby = gaussian_filter(channels[:, :8].mean(axis=1), (0, _NEARBY, _NEARBY))[:, None]
    channels[:, :8] /= _SEMISATURATION * nearby.mean() + nearby
    pooled = (channels.reshape(-1, _WORKING_SIZE**2) @ fields.T).reshape(len(images), channels.shape[1], len(xyz))
    weights = _smooth(random, xyz, channels.shape[1], 2.0)
    energy = np.einsum("icv,vc->iv", pooled[:, :8], abs(weights[:, :8]), optimize=True)
    colour = np.einsum("icv,vc->iv", pooled[:, 8:], weights[:, 8:], optimize=True)
    return _standard(_standard(energy**_COMPRESSION) + _standard(colour))


def _parts(drawn: Drawn) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """What later areas respond to, one row per picture: what and where each by itself, then conjunctions of what and of where.

    The class and the colour of each of the two objects count apart. In textures and places both add up, so that only conjunctions say
    which of the two has the texture and which is at the place.
    """
    one_hot = {name: np.eye(len(values), dtype=np.float32)[drawn.attribute(name)] for name, values in ATTRIBUTES.items()}
    bumps = np.exp(-((drawn.centres[..., None] - np.linspace(0.2, 0.8, 4)) ** 2) / (2 * 0.15**2))  # (n, object, axis, 4)

    def times(first: NDArray, second: NDArray) -> NDArray[np.float32]:
        return (first[:, :, None] * second[:, None, :]).reshape(len(first), -1)

    def block(parts: list[NDArray]) -> NDArray[np.float32]:
        """Centred, each part of unit variance in all."""
        centred = [part - part.mean(0) for part in parts]
        return np.concatenate([part / np.sqrt(part.var(0).sum() + 1e-6) for part in centred], axis=1).astype(np.float32)

    places = [times(bumps[:, k, 1], bumps[:, k, 0]) for k in (0, 1)]
    objects = [{name: one_hot[prefix + name] for name in ("class", "colour", "texture")} for prefix in ("", "second ")]
    sums = {name: objects[0][name] + objects[1][name] for name in objects[0]}
    bound = [times(objects[0]["class"], objects[0][name]) + times(objects[1]["class"], objects[1][name]) for name in ("colour", "texture")]
    placed = [times(objects[0][name], places[0]) + times(objects[1][name], places[1]) for name in ("class", "colour")]
    related = [times(one_hot["relation"], objects[0][name]) for name in ("class", "colour")]
    what = [*(own[name] for own in objects for name in ("class", "colour")), sums["texture"]]
    where = [places[0] + places[1], one_hot["relation"], one_hot["background"]]
    return block(what), block(where), block(bound), block([*placed, *related])


def _late_signal(random: np.random.Generator, drawn: Drawn, xyz: NDArray, area: NDArray[np.str_]) -> NDArray[np.float32]:
    """Ventral voxels mix what is there, lateral ones where it is, both with conjunctions; rectified and normalised: (n_images, n_voxels)."""
    what, where, bound, placed = _parts(drawn)
    signal = np.empty((len(what), len(xyz)), np.float32)
    for name, single, conjunction in (("ventral", what, bound), ("lateral", where, placed)):
        inside = area == name
        drive = np.zeros((len(what), int(inside.sum())), np.float32)
        for part, share in ((single, 1 - _CONJUNCTION), (conjunction, _CONJUNCTION)):
            weights = _smooth(random, xyz[inside], part.shape[1], 1.5) + 0.5 * random.normal(size=(int(inside.sum()), part.shape[1]))
            drive += np.sqrt(share) * _standard(part @ weights.T.astype(np.float32))
        above = np.maximum(drive - _THRESHOLD, 0) ** 2
        signal[:, inside] = above / (1 + above.mean(axis=1, keepdims=True))
    return _standard(signal)


def _signal(random: np.random.Generator, drawn: Drawn, brain: _Brain) -> NDArray[np.float32]:
    """Responses to pictures without noise: (n_images, n_voxels)."""
    early = np.isin(brain.area, list(_EARLY))
    signal = np.empty((len(drawn.images), len(brain.xyz)), np.float32)
    signal[:, early] = _early_signal(random, drawn.images, brain.xyz[early], brain.area[early])
    signal[:, ~early] = _late_signal(random, drawn, brain.xyz[~early], brain.area[~early])
    return signal


def without_noise(section: SimulatedData, subject: str, drawn: Drawn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What a subject's brain would answer to pictures if it had no noise.

    Returns
    -------
    signal : float32 (n_images, n_voxels)
        Every voxel in units of its standard deviation over these pictures.
    early : bool (n_voxels,)
        Which voxels are of the early areas.
    """
    number = int(subject.removeprefix("subj0"))
    brain = _brain(section, number)
    return _signal(_random(section, 3, number), drawn, brain), np.isin(brain.area, list(_EARLY))


def _write_subject(section: SimulatedData, size: int, design: _Design, root: Path, subject: str) -> list[Path]:
    number = int(subject.removeprefix("subj0"))
    brain = _brain(section, number)
    random = _random(section, 3, number)
    signal = _signal(random, render(np.concatenate([_pictures(section, 0), _pictures(section, number)]), size), brain)
    ratio = np.exp(0.35 * _smooth(random, brain.xyz, 1, 3.0)[:, 0] + 0.25 * random.normal(size=len(brain.xyz))) / (_NOISE * section.noise)
    noise = _AMPLITUDE / ratio

    write = _Writer(root, subject)
    volume = np.where(brain.brain, 0, -1).astype(np.int16)
    labels = {
        "nsdgeneral": np.ones(len(brain.xyz)),
        "prf-visualrois": _numbers(brain, {"V1": (1, 2), "V2": (3, 4), "V3": (5, 6), "hV4": (7, 7)}),
        "streams": _numbers(brain, {**dict.fromkeys(_EARLY, (1, 1)), "ventral": (5, 5), "lateral": (6, 6)}),
    }
    for name, values in labels.items():
        volume[brain.roi] = values
        write(f"nsddata/ppdata/{subject}/{SPACE}/roi/{name}.nii.gz", volume)
    write(f"nsddata/ppdata/{subject}/{SPACE}/brainmask.nii.gz", brain.brain.astype(np.int16))
    ncsnr = np.zeros(brain.roi.shape, np.float32)
    ncsnr[brain.roi] = ratio
    write(f"nsddata_betas/ppdata/{subject}/{SPACE}/{BETAS}/ncsnr.nii.gz", ncsnr)

    elsewhere = brain.brain & ~brain.roi
    trials = section.trials_per_session
    for session in range(section.sessions):
        random = _random(section, 4, number, session)
        gain = np.exp(random.normal(0, 0.1))
        offset = random.normal(0, 0.6, len(noise)).astype(np.float32)
        drift = np.linspace(-1, 1, trials, dtype=np.float32)[:, None] * random.normal(0, 0.1, len(noise)).astype(np.float32)
        trial_noise = np.sqrt(1 - _SHARED_NOISE) * random.standard_normal((trials, len(noise)), np.float32)
        trial_noise += np.sqrt(_SHARED_NOISE / len(signal)) * random.standard_normal((trials, len(signal)), np.float32) @ signal
        shown = design.order[session * trials : (session + 1) * trials]
        percent = gain * (_AMPLITUDE * signal[shown] + noise * trial_noise) + offset + drift
        betas = np.zeros((*brain.roi.shape, trials), np.int16, order="F")
        betas[brain.roi] = _as_betas(percent).T
        betas[elsewhere] = _as_betas(random.standard_normal((int(elsewhere.sum()), trials), np.float32))
        write(f"nsddata_betas/ppdata/{subject}/{SPACE}/{BETAS}/betas_session{session + 1:02d}.nii.gz", betas)
    return write.paths


def _as_betas(percent: NDArray) -> NDArray[np.int16]:
    return np.clip(np.rint(percent * nsd.SCALE), -32768, 32767).astype(np.int16)


def _numbers(brain: _Brain, meaning: dict[str, tuple[int, int]]) -> NDArray[np.int64]:
    """Label of every voxel by its area: the first number below the middle of the brain, the second above it."""
    dorsal = brain.xyz[:, 2] >= np.median(brain.xyz[:, 2])
    values = np.zeros(len(brain.area), int)
    for name, (ventral, upper) in meaning.items():
        values[brain.area == name] = np.where(dorsal, upper, ventral)[brain.area == name]
    return values


class _Writer:
    """Writes NIfTI volumes of one grid, whole or not at all, with the same bytes every time."""

    def __init__(self, root: Path, subject: str) -> None:
        self.root, self.subject = root, subject
        self.paths: list[Path] = []

    def __call__(self, path: str, values: NDArray) -> None:
        import nibabel

        affine = np.diag([_VOXEL, _VOXEL, _VOXEL, 1.0])
        affine[:3, 3] = -_VOXEL * (np.array(values.shape[:3]) - 1) / 2
        image = nibabel.Nifti1Image(values, affine)
        with whole_file(below(self.root, path)) as temporary:
            temporary.write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))
        self.paths.append(below(self.root, path))


# --- rest -------------------------------------------------------------------------------------------------------


def simulate_unpaired(study: Study, subject: str, root: str | Path | None = None) -> list[Path]:
    """Write a subject's simulated resting runs in HCP's layout: CIFTI time series of the 91282 grayordinates.

    The study's visual areas fluctuate together, smoothly in time and over the surface, as if features of pictures came
    and went; elsewhere there is noise.

    Returns
    -------
    list of Path
        The files written.
    """
    import nibabel
    from nibabel.cifti2 import SeriesAxis

    section = study.unpaired
    assert section is not None
    root = Path(root or study.unpaired_root())
    key = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4])
    random = np.random.default_rng((_TAG, study.seed, 5, key))
    visual, _ = hcp.area_grayordinates(section.areas)
    weights = _smooth(random, _sphere()[visual], 39, 10.0)
    paths = []
    for number, run in enumerate(section.runs):
        random = np.random.default_rng((_TAG, study.seed, 6, key, number))
        latents = _standard(gaussian_filter1d(random.standard_normal((section.volumes + 60, weights.shape[1])), 5, axis=0)[30:-30])
        volumes = 10_000 + 50 * random.standard_normal((section.volumes, hcp.GRAYORDINATES), np.float32)
        volumes[:, visual] += 100 * _standard(latents @ weights.T)
        image = nibabel.Cifti2Image(volumes, (SeriesAxis(0, _REPETITION_TIME, section.volumes), _grayordinates()))
        image.nifti_header.set_intent("ConnDenseSeries")
        path = below(root, hcp.run_path(subject, run))
        with whole_file(path) as temporary:
            image.to_filename(temporary)
        paths.append(path)
    return paths


def _sphere() -> NDArray[np.float32]:
    """Places of the cortical grayordinates on the two spheres of 100 mm, left first, far apart: (59412, 3)."""
    import nibabel

    folder = hcp.atlas_folder()
    places = []
    with np.load(folder / "fMRI_vertex_info_32k.npz") as vertices:
        for side, key, offset in (("L", "grayl", -1000.0), ("R", "grayr", 1000.0)):
            surface: Any = nibabel.load(folder / f"S1200.{side}.sphere.32k_fs_LR.surf.gii")
            places.append(surface.agg_data("pointset")[vertices[key]] + [offset, 0, 0])
    return np.concatenate(places)


def _grayordinates() -> "BrainModelAxis":
    """HCP's 91282 grayordinates: cortical vertices, then voxels of the structures below."""
    from nibabel.cifti2 import BrainModelAxis

    folder = hcp.atlas_folder()
    with np.load(folder / "fMRI_vertex_info_32k.npz") as vertices:
        axis = BrainModelAxis.from_surface(vertices["grayl"], int(vertices["num_meshl"]), "CortexLeft")
        axis += BrainModelAxis.from_surface(vertices["grayr"], int(vertices["num_meshr"]), "CortexRight")
    with np.load(folder / "standard.npz") as standard:
        names = dict(zip(standard["ids"].tolist(), standard["labels"].tolist(), strict=True))
        below_cortex = standard["map_all"][hcp.LEFT + hcp.RIGHT :]
    spelt = {"brainStem": "BRAIN_STEM", "diencephalon_left": "DIENCEPHALON_VENTRAL_LEFT", "diencephalon_right": "DIENCEPHALON_VENTRAL_RIGHT"}
    structures = [f"CIFTI_STRUCTURE_{spelt.get(names[number], names[number].upper())}" for number in below_cortex.tolist()]
    shape = (91, 109, 91)  # the MNI grid of 2 mm
    voxels = np.stack(np.unravel_index(np.arange(len(structures)), shape), axis=1)
    return axis + BrainModelAxis(structures, voxel=voxels, affine=_MNI, volume_shape=shape)
