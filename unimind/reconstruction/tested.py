"""Which pictures a stimulus set is tested on, which of them change places in the controls, and which of its samples is shown of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from unimind.data.prepared import SPLITS, Stimuli
from unimind.errors import InputError
from unimind.study import Sampling

#: How a method shows one of several samples that it cannot choose among, in the protocol's words.
FIRST = "the first of them"
Rule = Literal["prediction", "encoding", "first"]
_WORDS: dict[Rule, str] = {
    "prediction": "agrees best with the method's own predicted embedding",
    "encoding": "makes the measured response likeliest, by an encoding model of the subject's training trials",
    "first": FIRST,
}


def rule_of_choice(sampling: Sampling, predicts: bool) -> Rule:
    """By what a picture's sample is chosen; `predicts` says whether the method predicts an image embedding. With strength 0 there is one sample."""
    if sampling.strength == 0:
        return "prediction"
    return "encoding" if sampling.chosen_by == "encoding" else "prediction" if predicts else "first"


def choice_of_sample(samples: int, rule: Rule = "prediction") -> str:
    """How one of a picture's samples comes to be shown, in the protocol's words."""
    return "the only one" if samples == 1 else _WORDS[rule]


def pictures_tested(stimuli: Path, prepared: Sequence[Path] = ()) -> NDArray[np.int64]:
    """Stimulus indices, ascending, of all pictures that a subject may be tested on, whether it is in the study yet or not.

    Parameters
    ----------
    stimuli : Path
        Its pictures that are test pictures by the source's rule, and all with the same pixels.
    prepared : sequence of Path
        Subjects whose test pictures are added: where a stimulus set is one subject's own, pictures that other subjects
        are tested on are test pictures too (`data.prepare.assign_splits`).

    Raises
    ------
    InputError
        There are none.
    """
    with Stimuli(stimuli) as pictures:
        test = np.isin(pictures.sha256, pictures.sha256[pictures.test])
    found = [np.flatnonzero(test)]
    for path in prepared:
        with h5py.File(path) as file:
            found.append(file["stimulus"][:][file["split"][:] == SPLITS["test"]].astype(np.int64))
    tested = np.unique(np.concatenate(found))
    if not len(tested):
        raise InputError(f"{stimuli}: no test pictures; check the data set's test rule")
    return tested


def derangement(n: int, seed: int | Sequence[int] = 0) -> NDArray[np.int64]:
    """A random permutation (n,) of which no element stays in place: one random cycle (Sattolo 1986).

    Raises
    ------
    ValueError
        With n < 2 there is none.
    """
    if n < 2:
        raise ValueError(f"{n} element has no derangement")
    random = np.random.default_rng(seed)
    order = np.arange(n)
    for last in range(n - 1, 0, -1):
        other = random.integers(last)
        order[last], order[other] = order[other], order[last]
    return order
