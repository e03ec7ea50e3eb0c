"""Code hashes: the same wherever the clone lies, changed by code and by nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unimind.provenance import code_hash, modules_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path):
    """A small package of the same name, with a module that imports another one lazily."""
    folder = tmp_path / "unimind"
    (folder / "losses").mkdir(parents=True)
    shutil.copy(ROOT / "unimind/provenance.py", folder)
    (folder / "__init__.py").write_text("")
    (folder / "losses/__init__.py").write_text("")
    (folder / "losses/one.py").write_text('"""One."""\nX = 1\n')
    (folder / "losses/two.py").write_text("Y = 2\n")
    (folder / "stage.py").write_text("def stage():\n    from unimind.losses.one import X\n    return X\n")
    (folder / "other.py").write_text("import unimind.losses.two\n")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    code = "from unimind.provenance import code_hash as h; print(h('unimind.stage'), h('unimind.other'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder.parent, capture_output=True, text=True, check=True)
    return dict(zip(("stage", "other"), done.stdout.split(), strict=True))


def test_edit_reaches_the_modules_that_import_it_and_no_others(package):
    before = hashes(package)
    (package / "losses/one.py").write_text('"""One."""\nX = 2\n')
    after = hashes(package)
    assert after["stage"] != before["stage"] and after["other"] == before["other"]


def test_comments_docstrings_and_place_do_not_count(package, tmp_path):
    before = hashes(package)
    (package / "losses/one.py").write_text('"""Another docstring."""\n\nX = 1  # a remark\n')
    assert hashes(package) == before
    shutil.copytree(package, tmp_path / "elsewhere" / "unimind")
    assert hashes(tmp_path / "elsewhere" / "unimind") == before


def test_modules_of_follows_imports_inside_functions():
    assert "unimind.data.prepared" in modules_of("unimind.data.prepare")
    assert "unimind.study" not in modules_of("unimind.data.prepare")


def test_what_is_not_called_does_not_count():
    whole, part = (modules_of("unimind.evaluation.transfer", unused) for unused in (None, "unimind.training.adapt"))
    assert "unimind.training.objectives.siamese" in whole and "unimind.models.prior" in part
    assert not {"unimind.training.adapt", "unimind.training.objectives.siamese"} & set(part)


def test_unknown_module_is_an_error():
    with pytest.raises(ModuleNotFoundError):
        code_hash("unimind.no_such_module")
