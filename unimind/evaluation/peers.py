"""Published numbers of other methods: in tables of their own, and only of measures that this study defines as they do."""

from collections.abc import Collection

from unimind.evaluation.measures import MEASURES
from unimind.study import Study

#: Percent where a measure is a share. SSIM is left out: papers report two kinds of it, and mostly do not say which.
NSD = {
    "MindEye2, 40 h": {"pixcorr": 0.322, "alexnet2": 96.1, "alexnet5": 98.6, "inception": 95.4, "clip": 93.0, "effnet": 0.619, "swav": 0.344,
                       "retrieval_backward": 98.8, "retrieval_forward": 98.3},
    "MindEye1": {"pixcorr": 0.319, "alexnet2": 92.8, "alexnet5": 96.9, "inception": 94.6, "clip": 93.3, "effnet": 0.648, "swav": 0.377,
                 "retrieval_backward": 90.0, "retrieval_forward": 84.1},
    "Brain-Diffuser": {"pixcorr": 0.273, "alexnet2": 94.4, "alexnet5": 96.6, "inception": 91.3, "clip": 90.9, "effnet": 0.728, "swav": 0.421,
                       "retrieval_backward": 18.8, "retrieval_forward": 26.3},
    "Takagi & Nishimoto 2023": {"pixcorr": 0.246, "alexnet2": 78.9, "alexnet5": 85.6, "inception": 83.8, "clip": 82.1, "effnet": 0.811, "swav": 0.504},
    "MindEye2, 1 h": {"pixcorr": 0.195, "alexnet2": 84.2, "alexnet5": 90.6, "inception": 81.2, "clip": 79.2, "effnet": 0.810, "swav": 0.468,
                      "retrieval_backward": 79.0, "retrieval_forward": 57.4},
    "MindTuner, 40 h (own paper)": {"pixcorr": 0.322, "alexnet2": 95.8, "alexnet5": 98.8, "inception": 95.6, "clip": 93.8, "effnet": 0.612, "swav": 0.340},
    "Brain-IT, 40 h (own paper)": {"pixcorr": 0.386, "alexnet2": 98.4, "alexnet5": 99.5, "inception": 97.3, "clip": 96.4, "effnet": 0.564, "swav": 0.320},
    "MindBridge, one model (own paper)": {"pixcorr": 0.151, "alexnet5": 95.5, "inception": 92.4, "clip": 94.7, "effnet": 0.712, "swav": 0.418},
}  # fmt: skip
#: One hour is 750 trials.
NEW_SUBJECT = {
    "MindEye2": {"pixcorr": 0.195, "clip": 79.2}, "MindAligner": {"pixcorr": 0.206, "clip": 82.0}, "MindTuner": {"pixcorr": 0.224, "clip": 83.5},
    "Duala": {"pixcorr": 0.230, "clip": 83.5}, "Brain-IT": {"pixcorr": 0.331}, "Zebra (zero-shot)": {"pixcorr": 0.131, "clip": 71.5},
}  # fmt: skip
GOD = {f"MinD-Vis, subject {subject}, best samples": {"nway_top1": value} for subject, value in enumerate((9.1, 13.9, 27.4, 15.2, 14.3), 1)}
#: Source of the data -> (heading, protocol, numbers).
PUBLISHED = {
    "nsd": [
        (
            "NSD, subjects 1, 2, 5 and 7 averaged",
            "MindEye2 paper, table 1, 1000 test images, except where a row says otherwise; retrieval among 300. Papers call retrieval by what is found: "
            "brain to image is their image retrieval, image to brain their brain retrieval.",
            NSD,
        ),
        ("NSD, a new subject with one hour (750 trials)", "each paper's own.", NEW_SUBJECT),
    ],
    "god": [
        (
            "GOD",
            "MinD-Vis, 50 test images of classes never trained on, 35 trials averaged, 1000 draws of 49 other classes. Over five samplings of subject 3 the "
            "mean is 23.85 ± 3.0 %. Its FID is of 64-dimensional features, and stands nowhere here.",
            GOD,
        )
    ],
}


def markdown(study: Study, measured: Collection[str]) -> str:
    """The peers' numbers on the study's data sets, with the protocol they were published under.

    Parameters
    ----------
    study : Study
    measured : names
        Measures that the study's tables have: of others nothing is shown.
    """
    text = [
        "# Published numbers of other methods",
        "These numbers come from the papers, not from this software, and each paper has a protocol of its own: 982 or 1000 test images, 37 or 40 sessions, "
        "single trials or means of three, version of the betas, blending with a blurry image, antialiasing or none. Here stand those of data sets and measures "
        "of this study whose definition is the same; even so they are not strictly comparable.",
    ]
    for source in dict.fromkeys(section.source for section in study.datasets.values()):
        for heading, protocol, numbers in PUBLISHED.get(source, []):
            names = [name for name in MEASURES if name in measured and any(name in row for row in numbers.values())]
            if names:
                text += [f"## {heading}", f"Protocol: {protocol}", _table(names, numbers)]
    if len(text) == 2:
        text.append("There are none on this study's data in measures that it has.")
    return "\n\n".join(text) + "\n"


def _table(names: list[str], numbers: dict[str, dict[str, float]]) -> str:
    heads = [f"{MEASURES[name].title}{' %' if MEASURES[name].percent else ''} {'↓' if MEASURES[name].better == 'lower' else '↑'}" for name in names]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---|" * len(names)]
    for method, row in numbers.items():
        cells = ["-" if name not in row else f"{row[name]:.1f}" if MEASURES[name].percent else f"{row[name]:.3f}" for name in names]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
