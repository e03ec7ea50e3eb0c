"""A study small enough to train in seconds."""

from unimind.study import parse_study

DIM, IMAGES = 12, 60
VOXELS = {"a": 40, "b": 33, "c": 52}
TRAINING = {"steps": 30, "batch_size": 24, "learning_rate": 2e-3, "validate_every": 10}
CONVMIXER = {"kind": "convmixer", "width": 16, "depth": 1, "patch": 4, "kernel": 3, "decoder_depth": 1}
VIT = {"kind": "vit", "width": 16, "depth": 1, "heads": 2, "patch": 4, "decoder_width": 8, "decoder_depth": 1}
LOSSES = {"siamese": 1.0, "embedding": 1.0, "softclip": 0.5, "subject": 0.1, "adversarial": 0.1}


def make_study(**changes):
    method = {
        "scope": "dataset",
        "voxels": {"size": 32, "repeats": "draw"},
        "encoder": CONVMIXER,
        "pretrain": {"training": TRAINING},
        "align": {"losses": LOSSES, "training": TRAINING},
        "adapt": {"training": TRAINING},
    } | changes
    return parse_study(
        {
            "name": "tiny",
            "datasets": {"sim": {"source": "simulated", "training_subjects": ["subj01", "subj02"], "new_subjects": ["subj03"]}},
            "unpaired": {"source": "simulated", "subjects": ["1", "2"]},
            "foundations": {"embedding": {"kind": "study-clip"}, "autoencoder": {"kind": "study"}, "diffusion": {"kind": "study"}},
            "methods": {
                "m": method,
                "vit": method | {"encoder": VIT, "voxels": {"size": 32, "repeats": "channels"}},
                "ridge": {"scope": "subject", "encoder": {"kind": "ridge"}},
            },
        }
    )
