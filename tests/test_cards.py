"""Cards are taken by one process each; stand-ins are files, so that no card is needed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unimind import cards

ROOT = Path(__file__).parents[1]
HOLD = "from unimind.cards import take_card; print(take_card(), flush=True); input()"


@pytest.fixture
def stand_ins(tmp_path):
    for number in range(3):
        (tmp_path / str(number)).touch()
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return inherited | {"UNIMIND_CARDS": str(folder), "PYTHONPATH": str(ROOT)}


def holder(folder: Path, more: dict[str, str] | None = None) -> subprocess.Popen:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", HOLD], env=environment(folder) | (more or {}), text=True, **pipes)


@pytest.mark.parametrize("count", [2, 4])
def test_every_process_has_a_card_of_its_own_and_a_killed_ones_is_free_again(tmp_path, count):
    for number in range(count):
        (tmp_path / str(number)).touch()
    first = [holder(tmp_path) for _ in range(count)]
    try:
        numbers = [int(process.stdout.readline()) for process in first]
        assert sorted(numbers) == list(range(count))
        first.append(late := holder(tmp_path))
        assert f"all {count} graphics cards are in use" in late.stderr.readline()
        first[1].send_signal(signal.SIGKILL)
        assert int(late.stdout.readline()) == numbers[1]
    finally:
        for process in first:
            process.kill()
            process.wait()


def test_a_card_is_taken_once_by_a_process_and_one_alone_is_nobodys(stand_ins):
    """A second call gives the same card; one of several processes has its launcher's."""
    twice = "from unimind.cards import take_card; print(take_card(), take_card())"
    (stand_ins / "alone").mkdir()
    (stand_ins / "alone/0").touch()
    for folder, more, expected in ((stand_ins, {}, "0 0"), (stand_ins, {"LOCAL_RANK": "1"}, "None None"), (stand_ins / "alone", {}, "None None")):
        assert subprocess.check_output([sys.executable, "-c", twice], env=environment(folder) | more, text=True).strip() == expected


def test_processes_of_one_slurm_allocation_take_different_cards_and_those_of_another_do_not_wait_for_them(stand_ins, tmp_path):
    """An interactive allocation shows all its cards to every process; another job's cards have the same numbers and are others."""
    own = {"TMPDIR": str(tmp_path)}
    jobs = [{"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "8"}, {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}]
    started = [holder(stand_ins, own | job) for job in jobs]
    try:
        assert sorted(int(process.stdout.readline()) for process in started[:2]) == [0, 1]
        assert [process.stdout.readline() for process in started[2:]] == ["0\n", "0\n"]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_launcher_takes_all_its_cards_or_none(stand_ins):
    """Two jobs of two cards each on three: whoever comes second waits without holding one, and a third that needs one is not kept waiting."""

    def launched(count):
        program = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([sys.executable, "-m", "unimind.cards", str(count), *program], env=environment(stand_ins), text=True, **pipes)

    started = [launched(2)]
    try:
        assert started[0].stdout.readline() == "0,1\n"
        started.append(launched(2))
        assert "of 3 graphics cards too many are in use; waiting for 2 free ones" in started[1].stderr.readline()
        started.append(holder(stand_ins))
        assert started[2].stdout.readline() == "2\n"
        started[0].send_signal(signal.SIGKILL)
        assert started[1].stdout.readline() == "0,1\n"
        assert "processes: 5 given, but there are 3 graphics cards here" in launched(5).communicate(timeout=30)[1]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [0, 1, 2, 10]), ("1", [1]), ("10,0", [10, 0]), ("", []), ("GPU-8f3e", [0])],
    ids=["all", "one", "in an order", "none", "by name"],
)
def test_cards_are_counted_as_torch_counts_them(monkeypatch, visible, expected):
    monkeypatch.delenv("UNIMIND_CARDS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(cards, "glob", lambda pattern: [f"/dev/nvidia{number}" for number in (10, 2, 0, 1)])
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [str(path) for path in cards.cards()] == [f"/dev/nvidia{number}" for number in expected]
