"""The study: everything a user decides, typed.

This package is the one source of the schema (`unimind schema`), of the defaults and of the reference in
`config/README.md`. It imports nothing of the rest but its errors and the names of measures, and nothing slow: Snakemake reads it too.
"""

from unimind.study.base import Section, Training
from unimind.study.data import (
    AnyDataset,
    ArraysData,
    BidsData,
    BidsRois,
    BlockDesign,
    Bold5000Data,
    ByCategories,
    ByClusters,
    Dataset,
    FarPictures,
    GlmSingle,
    GodData,
    LagWindow,
    LaionFmriData,
    MosaicData,
    NsdData,
    RandomPictures,
    Rois,
    SimulatedData,
    SingleTrialGlm,
    SplitRule,
    Unpaired,
)
from unimind.study.decode import Decode
from unimind.study.evaluation import Evaluation, Transfer
from unimind.study.foundations import (
    AutoencoderAlone,
    ClipVisionEmbedding,
    DrawnPictures,
    Foundations,
    Frozen,
    HubAutoencoder,
    HubDiffusion,
    IpAdapterGenerator,
    KandinskyGenerator,
    LdmAutoencoder,
    LdmDiffusion,
    NoGenerator,
    OpenClipEmbedding,
    SqueezeNetEmbedding,
    StudyAutoencoder,
    StudyClassifier,
    StudyDiffusion,
    StudyEmbedding,
    Taef2Autoencoder,
    UnclipGenerator,
)
from unimind.study.methods import (
    Adapt,
    Adapter,
    AdaptLosses,
    Align,
    Condition,
    ConvMixer,
    Decoded,
    Embedder,
    EmbeddingPrior,
    Identity,
    Interpolate,
    Losses,
    MaxPool,
    Method,
    Mlp,
    Pretrain,
    Residual,
    Ridge,
    Sampling,
    TrainedOn,
    ViT,
    Voxels,
    VoxelTokens,
    Wrap,
)
from unimind.study.read import parse_study, read_study
from unimind.study.whole import Study, resolved
