"""Bundles: a trained method in one folder, zip file or hub repository, and what a reader checks of it.

A bundle holds safetensors, JSON and a model card, and a manifest of them; never a response or a picture.

| file | what |
|---|---|
| `README.md` | the model card |
| `manifest.json` | schema version; size and SHA-256 of every file |
| `bundle.json` | the method and the foundations as a study's sections; how responses were prepared; ROI words; versions |
| `pictures.safetensors` | SHA-256 (n, 32) of the pictures trained on, and of those tested on: so that a new subject is not tested on the former |
| `teach/`, `align/` or `condition/`, `embedding-prior/` | what the training subjects taught: as these stages wrote it, without anything of one subject |
| `foundations/<name>/` | networks that were trained in the study |
"""

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from unimind.errors import InputError
from unimind.storage import file_hash, write_json

#: Version of the form above.
SCHEMA = 2
FORMAT = "unimind bundle"
MANIFEST, CONTENT, PICTURES, CARD = "manifest.json", "bundle.json", "pictures.safetensors", "README.md"
#: Endings of the files a bundle may hold: nothing that could run.
ENDINGS = (".json", ".safetensors", ".md")
#: Name of a repository of the hub, and its revision.
HUB = re.compile(r"([\w.-]+/[\w.-]+?)(?:\s*@\s*([\w./-]+))?")
#: What a study may set anew of a bundle's method.
FREE = ("label", "sampling", "adapt")


class Bundle:
    """A bundle whose form has been checked, and its JSON files' hashes; of weights, each part's when it is opened.

    Attributes
    ----------
    where : str
        As the user named it.
    manifest, content : dict
        `manifest.json` and `bundle.json`.
    """

    def __init__(self, where: str, root: Path, archive: bool) -> None:
        self.where, self.root, self._archive = where, root, archive
        self.manifest = self._json(MANIFEST)
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise InputError(f"{where}: its {MANIFEST} is not that of a bundle; write one by `unimind export`")
        if self.manifest.get("schema") != SCHEMA:
            raise InputError(
                f"{where}: a bundle of schema version {self.manifest.get('schema')}, and this Unimind reads version {SCHEMA}; use the version that wrote it"
            )
        self.files: dict[str, dict[str, Any]] = self.manifest["files"]
        self._check_form()
        with self._opened([CONTENT]) as folder:
            self.content: dict[str, Any] = json.loads((folder / CONTENT).read_text())

    @property
    def method(self) -> str:
        """Name of its method."""
        return next(iter(self.content["study"]["methods"]))

    @property
    def parts(self) -> list[str]:
        """Folders of models: `teach`, `align`, `condition`, `embedding-prior`, `foundations/<name>`."""
        return sorted({str(PurePosixPath(name).parent) for name in self.files if name.endswith("/model.safetensors")})

    @contextmanager
    def part(self, name: str) -> Iterator[Path]:
        """A model's folder, to be read; InputError where there is none, or a file of it is not the one that was exported."""
        if name not in self.parts:
            raise InputError(f"{self.where}: has no part {name}, but {', '.join(self.parts)}; export it again")
        with self._opened([file for file in self.files if PurePosixPath(file).parent == PurePosixPath(name)]) as folder:
            yield folder / name

    def pictures(self) -> dict[str, set[str]]:
        """SHA-256 of the pictures that the training subjects `trained` on, and that are `tests` among theirs."""
        from safetensors.numpy import load_file

        with self._opened([PICTURES]) as folder:
            return {name: {bytes(row).hex() for row in rows} for name, rows in load_file(folder / PICTURES).items()}

    def check(self) -> None:
        """Check every file's hash; InputError for the first that is wrong."""
        with self._opened(list(self.files)):
            pass

    def require_words(self, words: list[str], where: str) -> None:
        """InputError where voxels carry ROI words that the training subjects' voxels did not."""
        known = self.content["responses"]["rois"]
        if known and (other := [word for word in words if word not in known]):
            raise InputError(
                f"{where}: ROI words {', '.join(other)}, but {self.where} was trained on {', '.join(known)}; use its words, or give no ROI labels "
                "(roi_labels: false) where the voxels are of the same areas"
            )

    def require_foundation(self, name: str, config: dict[str, Any]) -> None:
        """InputError where a network that was obtained is not the one that the bundle was trained with, by its files' SHA-256."""
        wanted = self.content["obtained"].get(name)
        if wanted is not None and (wanted["name"], wanted["sources"]) != (config.get("name"), config.get("sources")):
            raise InputError(
                f"foundations.{name}: {config.get('name')} of {config.get('sources')} found, but {self.where} was trained with {wanted['name']} of "
                f"{wanted['sources']}; get the same weights"
            )

    def _names(self) -> dict[str, int]:
        """Files and their sizes; what a hub's client or git keeps beside them is passed over."""
        if self._archive:
            with self._zip() as file:
                found = {info.filename: info.file_size for info in file.infolist() if not info.is_dir()}
        else:
            found = {path.relative_to(self.root).as_posix(): path.stat().st_size for path in self.root.rglob("*") if path.is_file()}
        return {name: size for name, size in found.items() if not name.startswith((".git", ".cache/"))}

    def _check_form(self) -> None:
        there = self._names()
        for name in there:
            if name not in self.files and name != MANIFEST:
                raise InputError(f"{self.where}: holds {name}, a foreign file that its {MANIFEST} does not name; remove it, or get the bundle again")
        for name, said in self.files.items():
            if not name.endswith(ENDINGS) or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                raise InputError(f"{self.where}: its {MANIFEST} names {name}, which no bundle may hold; get the bundle again")
            if there.get(name) != said["bytes"]:
                raise InputError(f"{self.where}: cut short: {there.get(name, 0)} of {said['bytes']} bytes of {name} are there; get the bundle again")

    def _json(self, name: str) -> Any:
        try:
            if not self._archive:
                return json.loads((self.root / name).read_text(encoding="utf-8"))
            with self._zip() as file:
                return json.loads(file.read(name))
        except (FileNotFoundError, KeyError):
            raise InputError(f"{self.where}: no bundle there (no {name}); name what `unimind export` wrote") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{self.where}: its {name} is not JSON ({error}); get the bundle again") from None

    def _zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.root)
        except zipfile.BadZipFile:
            raise InputError(f"{self.where}: not a whole zip file (cut short?); get the bundle again") from None

    @contextmanager
    def _opened(self, names: list[str]) -> Iterator[Path]:
        """A folder with some of the files, whose hashes have been checked."""
        with ExitStack() as stack:
            folder = self.root
            if self._archive:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unimind-bundle-")))
                try:
                    with self._zip() as file:
                        for name in names:
                            file.extract(name, folder)
                except zipfile.BadZipFile as error:
                    raise InputError(f"{self.where}: damaged ({error}); get the bundle again") from None
            for name in names:
                if (found := file_hash(folder / name)) != self.files[name]["sha256"]:
                    raise InputError(f"{self.where}: {name} has SHA-256 {found[:16]}, its {MANIFEST} says {self.files[name]['sha256'][:16]}; get it again")
            yield folder


def read_bundle(path: str | Path) -> Bundle:
    """A bundle from a folder, a zip file, or a repository of the hub, `name` or `name @ revision`.

    Raises
    ------
    InputError
        One line: nothing is there, or what is there is cut short, holds a foreign file, is of another schema version or not a bundle.
    """
    where = str(path)
    local = Path(os.path.expanduser(os.path.expandvars(where)))
    if local.is_dir():
        return Bundle(where, local, False)
    if local.is_file():
        return Bundle(where, local, True)
    named = HUB.fullmatch(where.strip())
    if named is None or where.startswith((".", "/")):
        raise InputError(f"{where}: no such bundle; name a folder or zip file that `unimind export` wrote, or a repository of the hub (name @ revision)")
    return Bundle(where, _from_hub(named[1], named[2] or "main"), False)


def _from_hub(repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[f"*{ending}" for ending in ENDINGS]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{repository} @ {revision}: neither a file here nor to be had from the hub ({reason}); correct the name") from None


def write_manifest(folder: Path, version: str) -> None:
    """Write the manifest of all files of a folder."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST}
    said = {name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for name, path in files.items()}
    write_json(folder / MANIFEST, {"format": FORMAT, "schema": SCHEMA, "unimind": version, "files": said})


def pack(folder: Path, out: Path) -> None:
    """Write a folder's files as a zip file."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())


def copy_part(bundle: Bundle, part: str, out: Path) -> None:
    """Copy a part's files into an existing folder."""
    with bundle.part(part) as folder:
        for file in folder.iterdir():
            if f"{part}/{file.name}" in bundle.files:
                shutil.copyfile(file, out / file.name)


def study_of(bundle: Bundle, content: dict[str, Any]) -> dict[str, Any]:
    """A study's content with what its bundle gives: the method, the foundations, the pictures' size.

    Raises
    ------
    InputError
        A key differs from what the bundle was trained with.
    """
    given = bundle.content["study"]
    for name, section in (content.get("methods") or {}).items():
        if name not in given["methods"] and isinstance(section, dict) and section.get("scope") != "subject":
            raise InputError(
                f"methods.{name}: no such method in {bundle.where}, which has {bundle.method}; beside it only methods of `scope: subject` need no training"
            )
    obtained = set(bundle.content["obtained"])
    for place, own, mine in _pairs(content, given):
        if own != mine and not _free(place, obtained):
            raise InputError(f"{'.'.join(place)}: {own!r} given, but {bundle.where} was trained with {mine!r}; leave it out")
    return _joined(given, content)


def _free(place: tuple[str, ...], obtained: set[str]) -> bool:
    """Whether a study may say otherwise than the bundle: how pictures are drawn, and where a network is got that its hash identifies."""
    if place[0] == "methods":
        return len(place) > 2 and place[2] in FREE
    return place[0] == "foundations" and place[1] in obtained and place[-1] != "kind"


def _pairs(content: Any, given: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(content, dict) and isinstance(given, dict):
        for key in content:
            if key in given:
                yield from _pairs(content[key], given[key], (*place, key))
    else:
        yield place, content, given


def _joined(given: Any, content: Any) -> Any:
    if not isinstance(given, dict) or not isinstance(content, dict):
        return content
    return {key: _joined(given[key], content[key]) if key in content and key in given else content.get(key, given.get(key)) for key in {**given, **content}}
