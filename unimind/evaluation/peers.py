"""Published numbers of other methods: shown in a block of their own, never beside ours in one column."""

NSD = """\
| method | PixCorr ↑ | SSIM ↑ | AlexNet(2) ↑ | AlexNet(5) ↑ | Inception ↑ | CLIP ↑ | EffNet-B ↓ | SwAV ↓ | image retrieval ↑ | brain retrieval ↑ |
|---|---|---|---|---|---|---|---|---|---|---|
| MindEye2, 40 h | .322 | .431 | 96.1 | 98.6 | 95.4 | 93.0 | .619 | .344 | 98.8 | 98.3 |
| MindEye1 | .319 | .360 | 92.8 | 96.9 | 94.6 | 93.3 | .648 | .377 | 90.0 | 84.1 |
| Brain-Diffuser | .273 | .365 | 94.4 | 96.6 | 91.3 | 90.9 | .728 | .421 | 18.8 | 26.3 |
| Takagi & Nishimoto 2023 | .246 | .410 | 78.9 | 85.6 | 83.8 | 82.1 | .811 | .504 | - | - |
| MindEye2, 1 h | .195 | .419 | 84.2 | 90.6 | 81.2 | 79.2 | .810 | .468 | 79.0 | 57.4 |
| MindTuner, 40 h (own paper) | .322 | .421 | 95.8 | 98.8 | 95.6 | 93.8 | .612 | .340 | - | - |
| Brain-IT, 40 h (own paper) | .386 | .486 | 98.4 | 99.5 | 97.3 | 96.4 | .564 | .320 | - | - |
| MindBridge, one model (own paper) | .151 | .263 | - | 95.5 | 92.4 | 94.7 | .712 | .418 | - | - |
"""

NEW_SUBJECT = """\
| method | PixCorr ↑ | CLIP ↑ | parameters trained |
|---|---|---|---|
| MindEye2 | .195 | 79.2 | 2.2 G |
| MindAligner | .206 | 82.0 | 139 M |
| MindTuner | .224 | 83.5 | 77 M |
| Duala | .230 | 83.5 | 69 M |
| Brain-IT | .331 | - | voxel embeddings only |
| Zebra (zero-shot) | .131 | 71.5 | 0 |
"""

GOD = """\
| method | subject 1 | 2 | 3 | 4 | 5 |
|---|---|---|---|---|---|
| MinD-Vis, best samples: 50-way top-1 % ↑ | 9.1 | 13.9 | 27.4 | 15.2 | 14.3 |
"""


def markdown() -> str:
    """The peers' numbers with the protocol they were published under."""
    return f"""# Published numbers of other methods

These numbers come from the papers, not from this software, and each paper has a protocol of its own: 982 or 1000 test
images, 37 or 40 sessions, single trials or means of three, version of the betas, blending with a blurry image, two kinds of
SSIM, antialiasing or none. They are not strictly comparable with each other, and not at all with numbers on other data.

## NSD, subjects 1, 2, 5 and 7 averaged

Protocol: MindEye2 paper, table 1, 1000 test images, except where a row says otherwise; AlexNet, Inception, CLIP: two-way
identification in percent; EffNet-B, SwAV: correlation distance; retrieval among 300 in percent: "image retrieval" finds the
seen image by the brain (here `retrieval_backward`, brain to image), "brain retrieval" the brain response by the image
(here `retrieval_forward`, image to brain).

{NSD}
## NSD, a new subject with one hour (750 trials)

Protocol: each paper's own.

{NEW_SUBJECT}
## GOD

Protocol: MinD-Vis, 50 test images of classes never trained on, 35 trials averaged, 1000 draws of 49 other classes. Its FID
uses 64-dimensional Inception features and cannot be compared with ordinary FID. Over five samplings of subject 3 the mean is 23.85 ± 3.0 %.

{GOD}"""
