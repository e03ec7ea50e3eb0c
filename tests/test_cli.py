"""The command line: every stage has its help, mistakes are one line and exit 2."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from unimind.cli import STAGES, main
from unimind.errors import InputError

TINY = Path(__file__).parent / "workflow/studies/tiny.yaml"


@pytest.mark.parametrize("name", [*STAGES, "check", "schema"])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage: unimind" in capsys.readouterr().out


@pytest.mark.parametrize("name", STAGES)
def test_stage_takes_exactly_the_arguments_of_its_command(name):
    stage = STAGES[name]
    parameters = inspect.signature(getattr(importlib.import_module(stage.module), stage.function)).parameters
    expected = {argument.replace("-", "_") for argument in stage.arguments} | ({"study"} if stage.study else set())
    assert set(parameters) == expected


def test_help_and_check_load_nothing_slow():
    code = (
        "import sys; from unimind.cli import main; main(['check', sys.argv[1]]); print(sorted({'torch', 'nibabel', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(TINY)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_check_says_what_a_valid_study_holds(capsys):
    assert main(["check", str(TINY)]) == 0
    assert "3 subjects, 4 methods" in capsys.readouterr().out


def test_bad_study_is_one_line_and_exit_2(tmp_path, capsys):
    (tmp_path / "study.yaml").write_text("name: x\ncolour: red\n")
    assert main(["check", str(tmp_path / "study.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("unimind check: ") and "Traceback" not in error


def test_interrupted_stage_says_that_it_can_go_on(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unimind.report.doctor.doctor", interrupted)
    assert main(["doctor", "--study", str(TINY)]) == 130
    assert "run again to continue" in capsys.readouterr().err


def test_input_error_of_a_stage_is_one_line(monkeypatch, capsys):
    def refuse(**_):
        raise InputError("betas.nii.gz: of another\ngrid than the ROI")

    monkeypatch.setattr("unimind.report.status.status", refuse)
    assert main(["status", "--study", str(TINY)]) == 2
    assert capsys.readouterr().err == "unimind status: betas.nii.gz: of another grid than the ROI\n"


def test_version_and_no_stage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
