"""Names of files and folders: what a study makes, below `results/<study>/`.

Words in braces stand for names: a `dataset`, a `subject`, a set of `stimuli` (`Study.stimuli`), a `method`, a `group` of
subjects (`Study.group`), the `name` of a foundation, a `further` set of trials (`decode:`), a set of `candidates`
(`Study.candidates`). The workflow gives them to Snakemake as they are; `path` fills them in.
"""

import re
from pathlib import PurePosixPath

FETCHED_STIMULI = "fetched/{dataset}/{stimuli}.json"
FETCHED = "fetched/{dataset}/{subject}.json"
FETCHED_UNPAIRED = "fetched/unpaired/{subject}.json"
PICTURES = "pictures/{dataset}/{stimuli}.h5"
FETCHED_FURTHER = "fetched/{dataset}/{subject}.{further}.json"
FETCHED_CANDIDATES = "fetched/candidates/{candidates}.json"
STIMULI = "prepared/{dataset}/{stimuli}.h5"
PREPARED = "prepared/{dataset}/{subject}.h5"
FURTHER = "prepared/{dataset}/{subject}.{further}.h5"
CANDIDATES = "prepared/candidates/{candidates}.h5"
UNPAIRED = "prepared/unpaired/{subject}.h5"
INSPECTED = "inspected/{dataset}/{subject}.json"
OVERVIEW = "prepared/overview.csv"
FOUNDATION = "foundations/{name}"
EMBEDDINGS = "embeddings/{dataset}/{stimuli}.h5"
EMBEDDED_CANDIDATES = "embeddings/candidates/{candidates}.h5"
PRETRAINED = "models/{method}/pretrain"
ALIGNED = "models/{method}/align/{group}"
TAUGHT = "models/{method}/teach/{group}"
ENTERED = "models/{method}/enter/{dataset}-{subject}"
EMBEDDING_PRIOR = "models/{method}/embedding-prior/{group}"
CONDITIONED = "models/{method}/condition/{group}"
ADAPTED = "models/{method}/adapt/{dataset}-{subject}"
RECONSTRUCTION = "reconstructions/{method}/{dataset}/{subject}.h5"
PREDICTION = "predictions/{method}/{dataset}/{subject}.h5"
GRID = "reconstructions/{method}/{dataset}/{subject}.png"
CONTROLS = "reconstructions/controls/{dataset}/{stimuli}.h5"
FEATURES = "features/{dataset}/{stimuli}.h5"
METRICS = "metrics/{dataset}/{subject}"
GENERALISATION = "generalisation/{dataset}/{subject}.json"
DECODED = "decoded/{method}/{dataset}/{subject}.{further}.h5"
IMAGINED = "metrics/{dataset}/{subject}.{further}.json"
TRANSFER = "transfer/{method}/{dataset}/{subject}.json"
TABLES = "tables"
FIGURES = "figures"
REPORT = "report.html"


def path(pattern: str, **names: str) -> str:
    """A pattern with its words replaced by names; words without one stay."""
    return re.sub(r"\{(\w+)\}", lambda word: names.get(word[1], word[0]), pattern)


def without_ending(pattern: str) -> str:
    """A result's path without the ending of a file's name: what its log, its benchmark and its checkpoints are called."""
    return str(PurePosixPath(pattern).with_suffix("")) if pattern.endswith((".json", ".h5", ".csv", ".html")) else pattern
