"""The command line: every stage has its help, mistakes are one line and exit 2."""

import errno
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from unimind.cli import machine_failure, main
from unimind.errors import InputError
from unimind.stages import STAGES

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
    parameters = inspect.signature(stage.load()).parameters
    expected = {argument.replace("-", "_") for argument in stage.arguments} | ({"study"} if stage.needs_study else set())
    assert set(parameters) == expected


def test_help_and_check_load_nothing_slow():
    code = (
        "import sys; from unimind.cli import main; main(['check', sys.argv[1]]); print(sorted({'torch', 'nibabel', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(TINY)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_check_says_what_a_valid_study_holds(capsys):
    assert main(["check", str(TINY)]) == 0
    assert "3 subjects, 5 methods" in capsys.readouterr().out


def test_further_files_are_added_to_a_study(tmp_path, capsys):
    (tmp_path / "more.yaml").write_text("methods: {plain: {scope: subject, enter: {kind: ridge}}}\n")
    files = [str(TINY), str(tmp_path / "more.yaml")]
    assert main(["check", *files]) == 0
    assert capsys.readouterr().out == f"{', '.join(files)}: a valid study, 3 subjects, 6 methods\n"
    assert main(["status", "--directory", str(tmp_path), "--study", *files]) == 0
    assert "\nplain\n" in capsys.readouterr().out
    (tmp_path / "more.yaml").write_text("- methods\n")
    assert main(["status", "--study", *files]) == 2
    assert capsys.readouterr().err.startswith(f"unimind status: {files[1]}: expected keys")


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


def failing(error, monkeypatch, arguments=("--directory", "somewhere")):
    """The status and the last line of a stage that raises `error`."""

    def fail(**_):
        raise error

    monkeypatch.setattr("unimind.report.status.status", fail)
    return main(["status", "--study", str(TINY), *arguments])


def wrapped():
    """As h5py: the write fails, and closing the file fails for the same reason."""
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        try:
            raise RuntimeError("Can't decrement id ref count")
        except RuntimeError as error:
            return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: no permission; change its rights, or name another place"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "/x/y: is on a read-only file system; change its rights, or name another place"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x: the disk is full; free some space and run again"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y"), "/x: the disk quota is used up; free some space and run again"),
        (wrapped(), "the disk is full; free some space and run again"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full; free some space and run again"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x/y"), "/x/y: a name too long for the file system; choose shorter ones"),
        (FileNotFoundError(errno.ENOENT, "No such file", "somewhere"), "somewhere: no such file or folder; correct the path, or run the stage"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "somewhere"), "somewhere: not a folder; correct the path"),
        (MemoryError(), "out of memory; give the job more memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory; give the job more memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of memory; give the job more memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), "out of memory; give the job more memory"),
    ],
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, error, line):
    assert failing(error, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("unimind status: ") and line in said


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "a file nobody gave"),
        OSError(errno.EIO, "Input/output error", "x"),
        OSError("no number"),
        RuntimeError("shapes do not fit"),
        KeyError("x"),
    ],
)
def test_other_errors_keep_their_traceback(monkeypatch, error):
    with pytest.raises(type(error)):
        failing(error, monkeypatch)


@pytest.mark.parametrize("stage", [name for name, stage in STAGES.items() if stage.batched])
def test_out_of_memory_names_the_key_that_helps(stage):
    assert "lower evaluation.batch_size, or give" in machine_failure(MemoryError(), stage, {})
    assert "batch_size" in inspect.getsource(importlib.import_module(STAGES[stage].module))


def test_out_of_memory_of_evaluate_names_its_option(monkeypatch, capsys):
    def fail(**_):
        raise MemoryError

    monkeypatch.setattr("unimind.evaluation.evaluate.evaluate", fail)
    assert main(["evaluate", "--truth", "a", "--reconstruction", "b", "--out", "c"]) == 2
    assert "out of memory; lower --batch-size, or give the job more memory" in capsys.readouterr().err


def test_version_and_no_stage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
