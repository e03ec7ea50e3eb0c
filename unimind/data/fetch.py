"""The stage `fetch`: a data set's files from its servers, a mirror or a local folder, and a manifest of what is there."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from unimind.data.manifest import file_entries, read_files
from unimind.data.sources import open_source
from unimind.data.sources.base import NOT_HERE, FurtherSource, RemoteFile, below
from unimind.data.sources.nsd import NsdSource
from unimind.data.sources.pictures import PICTURE_ENDINGS, pictures_in
from unimind.data.sources.trials import place
from unimind.errors import InputError
from unimind.progress import say
from unimind.storage import content_hash, write_json
from unimind.study import Study


@dataclass(frozen=True)
class Access:
    """How one gets a data set's files: what is to be agreed to, and where; whether for all of them, or those one must put in place oneself."""

    title: str
    agreement: str | None
    hint: str
    partly_open: bool = False


#: By source. `config/datasets.tsv` lists the same with addresses and sizes.
ACCESS = {
    "nsd": Access(
        "Natural Scenes Dataset",
        "the NSD Data Access Agreement",
        "agree to the NSD Terms and Conditions and fill in the NSD Data Access form, both linked at https://naturalscenesdataset.org",
    ),
    "god": Access(
        "Generic Object Decoding",
        "the request for the stimulus pictures",
        "the fMRI is open, the stimulus pictures are given on request: https://forms.gle/ujvA34948Xg49jdn9",
        partly_open=True,
    ),
    "bold5000": Access(
        "BOLD5000, release 2",
        None,
        "the data are open; see https://bold5000-dataset.github.io/website/download.html",
    ),
    "hcp": Access(
        "Human Connectome Project, S1200",
        "the WU-Minn HCP Open Access Data Use Terms",
        "accept the HCP Open Access terms at https://db.humanconnectome.org, create AWS keys there, and give them in the environment or an AWS profile",
    ),
    "arrays": Access("own data", None, "put the file there, or correct the study's `root:` and file names"),
    "bids": Access("own BIDS derivatives", None, "put the file there, or correct the study's `root:` and BIDS names"),
    "laion-fmri": Access(
        "LAION-fMRI",
        "the data use agreement for the pictures",
        "the betas are open; the pictures are given on request: https://laion-fmri.hebartlab.com/request",
        partly_open=True,
    ),
    "mosaic": Access(
        "MOSAIC",
        "the agreements of the data sets whose pictures were shown",
        "the responses are open; get the pictures from each data set's owner and put them where `images:` says",
        partly_open=True,
    ),
    "simulated": Access("simulated", None, "simulated by this stage"),
}


@dataclass(frozen=True)
class Need:
    """Files of one manifest: who needs them, what kind of source they are from, and the folder they belong in."""

    dataset: str
    subject: str | None
    source: str
    root: Path
    files: list[RemoteFile]


def fetch(
    study: Study,
    dataset: str | None = None,
    subject: str | None = None,
    stimuli: bool = False,
    unpaired: bool = False,
    list: bool = False,
    out: Path | None = None,
    further: str | None = None,
) -> None:
    """Get the files of a subject, of a data set's pictures, or of an unpaired subject, and write their manifest.

    Parameters
    ----------
    study : Study
    dataset, subject : str, optional
    stimuli : bool
        The pictures of the data set, or of `subject` where every subject has its own.
    unpaired : bool
        `subject` is one of the study's unpaired subjects.
    list : bool
        Only print which files are needed, how large they are and which are there; for all of the study that the other
        arguments do not narrow down.
    out : Path, optional
        Manifest to write: `{"root": folder, "files": [{"path", "bytes", "sha256"}]}`.
    further : str, optional
        A set of `decode:`: its trials of `subject`; with `stimuli` its candidates instead, those of `subject` where every subject has its own.

    Raises
    ------
    InputError
        Access denied, no such file, wrong size or checksum, no disk space, no permission, no answer.
    """
    if further is not None:
        if further not in study.decode:
            raise InputError(f"--further {further}: not in the study's decode, which has {', '.join(study.decode) or 'no set'}")
        dataset = study.decode[further].dataset
    _known(study, dataset, subject, unpaired)
    if list:
        _print_list(study, dataset, subject, stimuli, unpaired)
        return
    if out is None or (not unpaired and dataset is None) or not (stimuli or subject):
        raise InputError("fetch: needs --out, and --dataset with --subject or --stimuli, or --unpaired with --subject; or --list")
    need = _need(study, dataset, subject, stimuli, unpaired, write=True, further=further)
    for file in need.files:
        _get(file, need)
    write_json(out, {"root": str(need.root), "files": file_entries(need.root, need.files, out.parent)})


def agreements(study: Study) -> list[str]:
    """One line for each data set of the study that lacks a file which is not open to everybody."""
    lines = []
    for name, source in _sources(study).items():
        access = ACCESS[source]
        if access.agreement and _lacks(study, name, access):
            lines.append(f"{name} ({access.title}): needs {access.agreement}; {access.hint}")
    return lines


def _sources(study: Study) -> dict[str, str]:
    """Source of every data set, and of the fMRI without pictures."""
    return {**{name: section.source for name, section in study.datasets.items()}, **({"unpaired": study.unpaired.source} if study.unpaired else {})}


def _lacks(study: Study, name: str, access: Access) -> bool:
    unpaired = name == "unpaired"
    try:
        needs = list(_needs(study, None if unpaired else name, None, False, unpaired))
    except InputError:  # the job that needs the files says it
        return False
    files = ((need, file) for need in needs for file in need.files if not (access.partly_open and file.address))
    return any(not below(need.root, file.path).is_file() for need, file in files)


def _known(study: Study, dataset: str | None, subject: str | None, unpaired: bool) -> None:
    if unpaired and study.unpaired is None:
        raise InputError("--unpaired: the study has no `unpaired:` fMRI")
    if dataset is not None and dataset not in study.datasets:
        raise InputError(f"--dataset {dataset}: not in the study, which has {', '.join(study.datasets)}")
    if subject is not None and dataset is not None and subject not in study.datasets[dataset].subjects:
        raise InputError(f"--subject {subject}: not in datasets.{dataset}, which has {', '.join(study.datasets[dataset].subjects)}")
    if subject is not None and unpaired and study.unpaired is not None and subject not in study.unpaired.subjects:
        raise InputError(f"--subject {subject}: not in unpaired.subjects, which has {', '.join(study.unpaired.subjects)}")


def _need(
    study: Study, dataset: str | None, subject: str | None, stimuli: bool, unpaired: bool, write: bool = False, further: str | None = None
) -> Need:  # fmt: skip
    """Which files are needed; simulated ones are written first, if asked to."""
    if unpaired:
        assert study.unpaired is not None and subject is not None
        source: str = study.unpaired.source
        root = Path(study.unpaired_root())
        if source == "simulated":
            from unimind.data.sources.simulated import simulate_unpaired

            return Need("unpaired", subject, source, root, _written(root, simulate_unpaired(study, subject)) if write else [])
        from unimind.data.sources.hcp import HcpSource

        return Need("unpaired", subject, source, root, _mirrored(HcpSource(study, root).files(subject), source))
    assert dataset is not None
    source, root = study.datasets[dataset].source, Path(study.root(dataset))
    if further is not None:
        return Need(dataset, subject, source, root, _mirrored(_further_files(study, further, dataset, subject, stimuli, root), source))
    if source == "simulated":
        from unimind.data.sources.simulated import simulate

        return Need(dataset, subject, source, root, _written(root, simulate(study, dataset, None if stimuli else subject)) if write else [])
    per_subject = study.stimuli(dataset, subject or "") != "stimuli"
    files = open_source(study, dataset, root).files(subject if per_subject or not stimuli else None)
    return Need(dataset, subject, source, root, _mirrored(files, source))


def _further_files(study: Study, further: str, dataset: str, subject: str | None, candidates: bool, root: Path) -> list[RemoteFile]:
    """Files of a set of further trials of a subject, or of its candidates."""
    asked, source = study.decode[further], open_source(study, dataset, root)
    if candidates and asked.folder is not None:
        path = Path(place(root, asked.folder, None))
        paths = (pictures_in(path) if path.is_dir() else []) or [path]
        return [RemoteFile((one.relative_to(root) if one.is_relative_to(root) else one.absolute()).as_posix()) for one in paths]
    assert subject is not None
    return cast(NsdSource, source).shown_files(subject) if candidates else cast(FurtherSource, source).further_files(subject, asked)


def _written(root: Path, paths: list[Path]) -> list[RemoteFile]:
    return [RemoteFile(Path(path).relative_to(root).as_posix()) for path in paths]


def _mirrored(files: list[RemoteFile], source: str) -> list[RemoteFile]:
    """The same files at the mirror that `UNIMIND_MIRROR_<SOURCE>` names, such as UNIMIND_MIRROR_NSD=https://data.example.org/nsd."""
    mirror = os.environ.get(f"UNIMIND_MIRROR_{re.sub(r'[^A-Za-z0-9]', '_', source).upper()}", "").rstrip("/")
    return [replace(file, address=f"{mirror}/{file.path}") if mirror and file.address else file for file in files]


def _get(file: RemoteFile, need: Need) -> None:
    """Have one file in its place: verified where it is there already, downloaded where it is not."""
    from unimind.data import transport

    target = below(need.root, file.path)
    access = ACCESS[need.source].hint
    if target.is_dir() or not target.exists():
        if target.is_symlink() and not target.exists():
            raise InputError(f"{target}: {NOT_HERE}, or {access}")
        if file.address is None and target.is_dir():
            raise InputError(f"{target}: a folder, and no file in it ends like a picture ({', '.join(sorted(PICTURE_ENDINGS))}); {access}")
        if file.address is None:
            raise InputError(f"{target}: no such file, and it cannot be downloaded; {access}")
        transport.download(file, target, access)
        say(f"{need.dataset}: got {file.path}")
        return
    if not os.access(target, os.R_OK):
        raise InputError(f"{target}: no permission to read; change the file's rights")
    wrong = transport.verify(target, file)
    if wrong:
        raise InputError(f"{target}: {wrong}; delete it and fetch again")


def inputs(
    study: Study, dataset: str | None, subject: str | None, stimuli: bool = False, folder: Path | None = None, further: str | None = None
) -> list[dict[str, Any]]:  # fmt: skip
    """What a manifest would say at present of the laboratory's own files: those that are not downloaded, and that are there.

    Parameters
    ----------
    study : Study
    dataset : str or None
        None for the fMRI without pictures.
    subject, stimuli, further
        As for `fetch`.
    folder : Path, optional
        Where Snakemake was started; by default here.
    """
    need = _need(study, dataset, subject, stimuli, unpaired=dataset is None, further=further)
    folder = folder or Path()
    root = folder / need.root
    own = [file for file in need.files if file.address is None and below(root, file.path).is_file()]
    return file_entries(root, own, folder / study.results / "fetched" / ("candidates" if further and stimuli else dataset or "unpaired"))


def inputs_hash(study: Study, dataset: str | None, subject: str | None, stimuli: bool = False, further: str | None = None) -> str:
    """Hash of the content of `inputs`, by which a fetch is made again; of what is wrong where they cannot be listed."""
    try:
        found = inputs(study, dataset, subject, stimuli, further=further)
    except InputError as error:
        return content_hash(str(error))
    return content_hash(sorted([entry["path"], entry["sha256"]] for entry in found)) if found else ""


def is_stale(
    study: Study, dataset: str | None, subject: str | None, stimuli: bool, manifest: Path, folder: Path, further: str | None = None
) -> bool:  # fmt: skip
    """Whether the laboratory's own files are others, or have another content, than a manifest says."""
    try:
        need = _need(study, dataset, subject, stimuli, unpaired=dataset is None, further=further)
        if all(file.address for file in need.files):
            return False
        _, files = read_files(manifest)
        found = inputs(study, dataset, subject, stimuli, folder, further)
    except InputError:
        return True
    downloaded = {file.path for file in need.files if file.address is not None}
    before = {entry["path"]: entry["sha256"] for entry in files if entry["path"] not in downloaded}
    return before != {entry["path"]: entry["sha256"] for entry in found}


def _print_list(study: Study, dataset: str | None, subject: str | None, stimuli: bool, unpaired: bool) -> None:
    """Print `data set, path, bytes, here | missing | by hand` for every file, then a line per data set and the sum."""
    from unimind.data import transport

    sums: dict[str, tuple[int, int, int]] = {}
    seen: set[tuple[str, str]] = set()
    unreachable: set[str] = set()
    unknown = 0
    for need in _needs(study, dataset, subject, stimuli, unpaired):
        sums.setdefault(need.dataset, (0, 0, 0))
        for file in need.files:
            if (need.dataset, file.path) in seen:
                continue
            seen.add((need.dataset, file.path))
            local = below(need.root, file.path)
            here = local.is_file()
            size = local.stat().st_size if here else transport.size_of(file, unreachable)
            unknown += size is None
            state = "here" if here else "missing" if file.address else "by hand"
            print(f"{need.dataset}\t{file.path}\t{'?' if size is None else size}\t{state}")
            count, there, missing = sums[need.dataset]
            sums[need.dataset] = (count + 1, there + (size or 0) * here, missing + (size or 0) * (not here))
    names = _sources(study)
    for name, (count, there, missing) in sums.items():
        access = ACCESS[names[name]]
        if names[name] == "simulated":
            print(f"{name}: simulated, nothing to fetch")
            continue
        needs = f"; needs {access.agreement}" if access.agreement else ""
        print(f"{name}: {count} files, {transport.human(there)} here, {transport.human(missing)} to fetch{needs}")
    print(f"in all: {transport.human(sum(missing for *_, missing in sums.values()))} to fetch" + (f", and {unknown} files of unknown size" if unknown else ""))


def _needs(study: Study, dataset: str | None, subject: str | None, stimuli: bool, unpaired: bool) -> Iterator[Need]:
    for name in [dataset] if dataset else study.datasets if not unpaired else []:
        subjects = [subject] if subject else study.datasets[name].subjects
        if study.stimuli(name, "") == "stimuli" and (stimuli or not subject):
            yield _need(study, name, None, True, False)
        if not stimuli or study.stimuli(name, "") != "stimuli":
            yield from (_need(study, name, each, stimuli, False) for each in subjects)
    for own in study.further() if not unpaired and not stimuli else ():
        if dataset in (None, own["dataset"]) and subject in (None, own["subject"]):
            yield _need(study, own["dataset"], own["subject"], False, False, further=own["further"])
    for of in study.ranked().values() if not unpaired and not subject else ():
        if dataset in (None, study.decode[of["further"]].dataset):
            yield _need(study, study.decode[of["further"]].dataset, of.get("subject"), True, False, further=of["further"])
    if study.unpaired is not None and (unpaired or (dataset is None and not stimuli)):
        for each in [subject] if subject and unpaired else study.unpaired.subjects:
            yield _need(study, None, each, False, True)
