"""Stages `export` and `take`: a trained method out of a study into a bundle, and from a bundle into another study."""

import csv
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unimind import __version__
from unimind.bundle import CARD, CONTENT, PICTURES, copy_part, pack, read_bundle, write_manifest
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.errors import InputError
from unimind.progress import say
from unimind.serving.card import card
from unimind.storage import load_model, read_json, save_model, whole_directory, whole_file, write_json
from unimind.study import Study, layout, resolved

#: What a shared model's state holds that a new subject needs; of a subject's own parameters see `_nobodys`.
SHARED = ("encoder.", "condition.", "unet.", "sketch.")
#: Keys of a model's config.json that a bundle keeps.
KEPT = ("kind", "space", "encoder", "condition", "arguments")


def export(
    study: Study, method: str, out: Path, group: str | None = None, directory: Path | None = None, licence: str | None = None, push: str | None = None,
    without_voxels: bool = False,
) -> None:  # fmt: skip
    """Write a bundle: what a new subject needs of a trained method, and nothing of one training subject.

    Parameters
    ----------
    out : Path
        A folder, or a file that ends in .zip.
    group : str, optional
        Which group's model, where the method has several (one per data set).
    directory : Path, optional
        Where the study was run.
    licence : str, optional
        For the model card.
    push : str, optional
        Repository of the hub, `name/of-it`, that the folder is uploaded to.
    without_voxels : bool
        One Gaussian instead of the mixture around the training voxels' weights.

    Raises
    ------
    InputError
        No such method; one that shares nothing; one that is not trained yet.
    """
    results = Path(directory or ".") / study.results
    if method not in study.methods:
        raise InputError(f"--method: {method} given, no such method in the study; there are {', '.join(study.methods)}")
    settings = study.methods[method]
    if settings.scope == "subject":
        raise InputError(f"methods.{method}.scope: subject, so it shares nothing that a new subject could take; export another method")
    if settings.adapt is not None and settings.adapt.mix_training > 0:
        raise InputError(f"methods.{method}.adapt.mix_training: {settings.adapt.mix_training:g} given, but a bundle has no training subject to mix in; write 0")
    groups = list(dict.fromkeys(study.group(method, *pair) for pair in study.pairs("train")))
    if group is None and len(groups) > 1:
        raise InputError(f"--group: missing, and {method} has a model for each of {', '.join(groups)}; name one")
    group = groups[0] if group is None else group
    if group not in groups:
        raise InputError(f"--group: {group} given; {method} has {', '.join(groups)}")
    mixed = getattr(settings.enter, "mixed", False)
    if without_voxels and not mixed:
        raise InputError(f"--without-voxels: methods.{method} has no mixture around training voxels to leave out; leave the option out")
    members = study.members(method, group)
    with whole_directory(out) if out.suffix != ".zip" else tempfile.TemporaryDirectory() as made:  # type: ignore[attr-defined]
        folder = Path(made)
        if (taught := study.taught(method, group)) is not None:
            _model(results / taught, folder / "teach", _without_voxels if without_voxels else _of_nobody)
        if settings.shares or not settings.closed:
            shared = results / study.shared_model(method, group)
            _model(shared, folder / shared.parent.name, _of_nobody)
        if settings.embedding_prior is not None:  # no tensor of it is of one subject
            _model(results / layout.path(layout.EMBEDDING_PRIOR, method=method, group=group), folder / "embedding-prior", dict)
        obtained = _foundations(study, results / "foundations", folder / "foundations")
        content = {
            "study": _sections(study, method, mixed and not without_voxels),
            "seed": study.seed,
            "obtained": obtained,
            "responses": _responses([results / layout.path(layout.PREPARED, dataset=dataset, subject=subject) for dataset, subject in members]),
            "trained_on": _trained_on(study, results, members),
            "voxel_weights": bool(mixed and not without_voxels),
            "versions": {"unimind": __version__, "python": platform.python_version(), "torch": torch.__version__.partition("+")[0]},
        }
        write_json(folder / CONTENT, content)
        _pictures(study, results, folder / PICTURES)
        (folder / CARD).write_text(card(content, method, settings.label or method, licence, _table(results, method), out.name))
        write_manifest(folder, __version__)
        if out.suffix == ".zip":
            with whole_file(out) as temporary:
                pack(folder, temporary)
        if push is not None:
            _push(folder, push)
    say(f"{out}: {settings.label or method}, trained on {len(members)} subjects")


def take(study: Study, part: str, out: Path) -> None:
    """Write a part of the study's bundle as the stage that trained it wrote it: a model, or a foundation."""
    assert study.bundle is not None
    bundle = read_bundle(study.bundle)
    with whole_directory(out) as folder:
        copy_part(bundle, part if part in bundle.parts else f"foundations/{part}", folder)


def _of_nobody(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the tensors of single subjects."""
    return {name: tensor for name, tensor in state.items() if _nobodys(name)}


def _without_voxels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, and of the prior over voxels N(m, C) alone."""
    name = "prior.prior..components"
    return _of_nobody(state) | {name: state[name][:, :0].clone()}


def _nobodys(name: str) -> bool:
    """Whether a tensor of a model is of no single subject."""
    if name.startswith("prior.prior."):  # the prior by all; not those without each subject
        return name.startswith("prior.prior..")
    if name.startswith(("space.", "prior.")):
        return True
    own = name.removeprefix("encoder.enter.")
    return name.startswith(SHARED) and not (own != name and own.startswith(("maps.", "subject-")))


def _model(source: Path, out: Path, kept_of: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """A model, and of its tensors what is kept."""
    state, config = load_model(source)
    out.mkdir(parents=True)
    kept = {key: config[key] for key in KEPT if key in config}
    if "encoder" in kept:
        kept["encoder"] = kept["encoder"] | {"n_voxels": {}}
    save_model(out, kept_of(state), kept)
    shutil.copyfile(source / "efficiency.json", out / "efficiency.json")


def _foundations(study: Study, source: Path, out: Path) -> dict[str, Any]:
    """Copy the networks that were trained in the study; of those obtained, their name and their files' SHA-256."""
    obtained = {}
    for name in study.networks():
        config = read_json(source / name / "config.json")
        if not study.is_trained(name):
            obtained[name] = {"name": config["name"], "sources": config["sources"]}
            continue
        (out / name).mkdir(parents=True)
        for file in ("model.safetensors", "config.json", "efficiency.json"):
            if (source / name / file).exists():
                shutil.copyfile(source / name / file, out / name / file)
    return obtained


def _sections(study: Study, method: str, mixed: bool) -> dict[str, Any]:
    """What a study from the bundle takes over."""
    whole = resolved(study)
    own = whole["methods"][method]
    if own["enter"]["kind"] == "decoded":
        own["enter"]["mixed"] = mixed
    return {"picture_size": whole["picture_size"], "foundations": whole["foundations"], "methods": {method: own}}


def _responses(prepared: list[Path]) -> dict[str, Any]:
    """How responses were prepared, and the ROI words that voxels carry."""
    said: dict[str, set[str]] = {"normalisation": set(), "order": set(), "units": set(), "rois": set()}
    for path in prepared:
        with PreparedSubject(path) as data:
            for key in ("normalisation", "order"):
                said[key].add(str(data.attributes[key]))
            said["units"].add(str(data.protocol.get("units", data.attributes["units"])))
            said["rois"] |= set(data.roi_words)
    return {key: sorted(values) for key, values in said.items()}


def _trained_on(study: Study, results: Path, members: list[tuple[str, str]]) -> list[dict[str, Any]]:
    found = []
    for dataset, subject in members:
        with PreparedSubject(results / layout.path(layout.PREPARED, dataset=dataset, subject=subject)) as data:
            counts = {"voxels": data.n_voxels, "trials": len(data.trials("train")), "pictures": len(data.images("train"))}
        found.append({"dataset": dataset, "source": study.datasets[dataset].source, "subject": subject, **counts})
    return found


def _pictures(study: Study, results: Path, out: Path) -> None:
    """Which pictures training subjects train on, and which are tested on, by the SHA-256 of their pixels."""
    from safetensors.numpy import save_file

    tests: set[str] = set()
    others: set[str] = set()
    for dataset in study.datasets:
        for name in study.training_stimuli(dataset):
            with Stimuli(results / layout.path(layout.STIMULI, dataset=dataset, stimuli=name)) as pictures:
                tests |= set(pictures.sha256[pictures.test].tolist())
                others |= set(pictures.sha256[~pictures.test].tolist())
    rows = {name: [list(bytes.fromhex(one)) for one in sorted(own)] for name, own in (("tests", tests), ("trained", others - tests))}
    save_file({name: np.array(own, np.uint8).reshape(-1, 32) for name, own in rows.items()}, out)


def _table(results: Path, method: str) -> list[dict[str, str]]:
    """The method's own rows of the study's table, where it has been made."""
    path = results / layout.TABLES / "reconstruction.csv"
    if not path.exists():
        return []
    with open(path, newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["method"] == method and row["role"] in ("train", "new")]


def _push(folder: Path, repository: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Bundle of unimind {__version__}")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--push {repository}: refused by the hub ({reason}); log in by `hf auth login`, or correct the name") from None
    say(f"pushed to {repository} @ {done.oid}")
