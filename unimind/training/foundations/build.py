"""Stage `foundation`: one frozen network, trained in the study, read from a local file, or fetched from a hub."""

from pathlib import Path

from unimind.bundle import read_bundle
from unimind.errors import InputError
from unimind.study import Study


def foundation(
    study: Study, name: str, embedding: Path | None, autoencoder: Path | None, stimuli: list[Path], embeddings: list[Path], checkpoints: Path | None, out: Path
) -> None:
    """Write `out`, the directory of the foundation called `name` (embedding, autoencoder, diffusion, classifier).

    `embedding` and `autoencoder` are the directories of those foundations, needed by a diffusion model trained in the
    study; `stimuli` and `embeddings` the training stimulus sets, where it is trained on them.
    """
    settings = getattr(study.foundations, name, None) if name in ("embedding", "autoencoder", "diffusion", "classifier") else None
    if settings is None:
        raise InputError(f"foundations.{name}: not in the study; there are embedding, autoencoder, diffusion and, where configured, classifier")
    if not settings.kind.startswith("study"):
        from unimind.foundations.external import build
        from unimind.storage import read_json, whole_directory

        with whole_directory(out) as temporary:
            build(settings, temporary)
            if study.bundle is not None:
                read_bundle(study.bundle).require_foundation(name, read_json(temporary / "config.json"))
        return
    checkpoints = checkpoints or out.with_name(f"{out.name}.checkpoints")
    if name == "autoencoder":
        from unimind.training.foundations.autoencoder import train_autoencoder

        train_autoencoder(study, checkpoints, out)
    elif name == "embedding":
        from unimind.training.foundations.embedding import train_embedding

        train_embedding(study, checkpoints, out)
    elif name == "classifier":
        from unimind.training.foundations.classifier import train_classifier

        train_classifier(study, checkpoints, out)
    else:
        from unimind.training.foundations.diffusion import train_diffusion

        if embedding is None or autoencoder is None:
            raise InputError("foundation --name diffusion: needs --embedding and --autoencoder, the directories of those foundations")
        train_diffusion(study, autoencoder, embedding, stimuli, embeddings, checkpoints, out)
