"""A study small enough to train in seconds."""

from unimind.study import parse_study

DIM, IMAGES = 12, 60
VOXELS = {"a": 40, "b": 33, "c": 52}
TRAINING = {"steps": 30, "batch_size": 24, "learning_rate": 2e-3, "validate_every": 10}
#: So few and so small that nothing moves.
IDLE = {"steps": 4, "batch_size": 8, "learning_rate": 1e-12, "validate_every": 2}
CONVMIXER = {"kind": "convmixer", "width": 16, "depth": 1, "patch": 4, "kernel": 3}
VIT = {"kind": "vit", "width": 16, "depth": 1, "heads": 2, "patch": 4}
#: What is added to a body that is pretrained, where its kind has a decoder of settings of its own.
DECODERS = {"convmixer": {"decoder_depth": 1}, "vit": {"decoder_width": 8, "decoder_depth": 1}}
MLP = {"kind": "mlp", "width": 16, "depth": 1, "dropout": 0.1}
ADAPTER = {"kind": "adapter", "size": 32, "repeats": "draw"}
LOSSES = {"siamese": 1.0, "embedding": 1.0, "latent": 0.5, "softclip": 0.5, "subject": 0.1, "adversarial": 0.1}
RIDGE = {"scope": "subject", "enter": {"kind": "ridge", "alphas": [1.0, 100.0], "folds": 3}}
DECODED = {"enter": {"kind": "decoded"}, "body": MLP, "align": {"training": TRAINING}}


def method_of(**changes):
    """A method in which every stage has something to do."""
    return {
        "scope": "dataset", "enter": ADAPTER, "body": CONVMIXER, "pretrain": {"training": TRAINING},
        "align": {"losses": LOSSES, "training": TRAINING}, "adapt": {"training": TRAINING},
    } | changes  # fmt: skip


def with_decoder(method):
    """The method, its body with a small decoder where it is pretrained."""
    return method | {"body": method["body"] | DECODERS.get(method["body"]["kind"], {})} if method["pretrain"] else method


def study_of_methods(**methods):
    """The study of these methods: two training subjects, one new one."""
    return parse_study(
        {
            "name": "tiny",
            "datasets": {"sim": {"source": "simulated", "training_subjects": ["subj01", "subj02"], "new_subjects": ["subj03"]}},
            "unpaired": {"source": "simulated", "subjects": ["1", "2"]},
            "foundations": {"embedding": {"kind": "study-clip"}, "autoencoder": {"kind": "study"}, "diffusion": {"kind": "study"}},
            "methods": methods,
        }
    )


def make_study(**changes):
    """A method `m` of the given form, the same with a ViT over three repeats, ridge regression, and a closed form with a body."""
    method = method_of(**changes)
    vit = method | {"body": VIT, "enter": ADAPTER | {"repeats": "channels"}}
    return study_of_methods(m=with_decoder(method), vit=with_decoder(vit), ridge=RIDGE, decoded=DECODED)
