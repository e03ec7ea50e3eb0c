"""Conda environments, constraints and pyproject.toml say the same, and every rule's environment holds what its stage imports."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from unimind.provenance import _file, modules_of
from unimind.stages import STAGES

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALWAYS = ["unimind.__main__", "unimind.cli", "unimind.study", "unimind.storage", "unimind.progress", "unimind.errors"]


def pinned(lines: list[str]) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


CONSTRAINTS = pinned([line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")])


def environment(path: Path) -> tuple[list[str], dict[str, str]]:
    """Conda packages and pinned pip packages of an environment file."""
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    return [entry for entry in dependencies if isinstance(entry, str)], pinned(next(entry["pip"] for entry in dependencies if isinstance(entry, dict)))


def imports(module: str) -> set[str]:
    """Distributions that a stage's modules import or look for by name, anywhere in them."""
    names = set()
    for part in [*modules_of(module), *ALWAYS]:
        file = _file(part)
        assert file is not None
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.util.find_spec" and isinstance(node.args[0], ast.Constant):
                names.add(node.args[0].value)
    known = packages_distributions()
    found = {canonicalize_name(known[name][0]) for name in names - set(sys.stdlib_module_names) - {"unimind"} if name in known}
    return found - {"botocore", "tensorboard"}  # boto3's other half; used only where it is


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_versions_are_those_of_the_constraints(path):
    conda, pip = environment(path)
    assert "pip" in conda and any(entry.startswith("python ") for entry in conda)
    assert pip and all(CONSTRAINTS[name] == version for name, version in pip.items())


def test_constraints_meet_the_project_s_requirements():
    extras = [entry for entries in PROJECT["optional-dependencies"].values() for entry in entries]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(CONSTRAINTS[canonicalize_name(requirement.name)]), requirement


def test_constraints_hold_versions_and_no_addresses():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!_]+", line), line


def test_environments_ask_only_for_the_project_s_requirements():
    required = {canonicalize_name(Requirement(entry).name) for entry in PROJECT["dependencies"]}
    for path in ENVIRONMENTS:
        assert set(environment(path)[1]) <= required, path


def test_every_rule_s_environment_holds_what_its_stage_imports():
    seen = set()
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", file.read_text(), re.MULTILINE):
            path = (file.parent / re.search(r'conda:\n +"(.*)"', body)[1]).resolve()
            stage = re.search(r'call_of\(\s*"([\w-]+)"', body)[1]
            seen.add(path)
            assert imports(STAGES[stage].module) <= set(environment(path)[1]), (name, path.name)
    assert seen == {path.resolve() for path in ENVIRONMENTS}


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_packages_are_valid_match_specs(path):
    rattler = pytest.importorskip("rattler", reason="py-rattler is not installed; conda itself checks this in the GitHub workflow")
    for entry in environment(path)[0]:
        assert str(rattler.MatchSpec(entry, strict=True)).split()[0] == entry.split()[0]
    with pytest.raises(Exception, match="unable to parse version spec"):
        rattler.MatchSpec("python >=3.11,", strict=True)


def test_container_holds_what_the_workflow_reads():
    definition = (ROOT / "Apptainer.def").read_text()
    for name in ("pyproject.toml", "constraints.txt", "Snakefile", "workflow", "config", "envs", "unimind"):
        assert f"    {name} /opt/unimind/{name}\n" in definition
    assert "-c constraints.txt -e '.[workflow]'" in definition and "-c constraints.txt -e '.[workflow]'" in (ROOT / "Makefile").read_text()
    assert "From: python:3.11" in definition
