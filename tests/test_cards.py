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


def holder(folder: Path) -> subprocess.Popen:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", HOLD], env=environment(folder), text=True, **pipes)


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


def test_a_card_is_taken_once_by_a_process_and_left_to_the_scheduler(stand_ins):
    """A second call gives the same card; SLURM hands out its cards itself; one card alone is nobody's."""
    twice = "from unimind.cards import take_card; print(take_card(), take_card())"
    (stand_ins / "alone").mkdir()
    (stand_ins / "alone/0").touch()
    for folder, more, expected in ((stand_ins, {}, "0 0"), (stand_ins, {"SLURM_JOB_ID": "7"}, "None None"), (stand_ins / "alone", {}, "None None")):
        assert subprocess.check_output([sys.executable, "-c", twice], env=environment(folder) | more, text=True).strip() == expected


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
