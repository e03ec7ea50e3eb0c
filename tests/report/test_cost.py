"""`unimind plan`: counts by hand and against what stages and networks themselves count."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from unimind.cli import main
from unimind.data.prepared import write_prepared, write_stimuli
from unimind.data.sources.base import Stimulus
from unimind.foundations.diffusion import adaptable_names
from unimind.models.bodies import TRUNKS
from unimind.models.prior import EncodingPrior, Recorded
from unimind.models.ridge import fit_ridge
from unimind.report import calibration, work
from unimind.report.cost import CARDS, HERE, LAUNCH, PUBLISHED, UTILISATION, Cost, Machine, costs, last_line, table, total_cost
from unimind.stages import STAGES
from unimind.study import ConvMixer, Study, ViT, parse_study, read_study
from unimind.study.plan import Job

ROOT = Path(__file__).parents[2]
TINY = yaml.safe_load((ROOT / "tests/workflow/studies/tiny.yaml").read_text())
ADDED = {"embedded": "config", "thesis": "thesis", "macaque": "macaque_v4", "macaque_v4": "macaque_v4", "nsd": "nsd"}
STUDIES = [[path] for path in sorted((ROOT / "config").glob("*.yaml"))]
STUDIES += [
    [ROOT / f"config/{ADDED[path.stem.rpartition('_of_')[2] if '_of_' in path.stem else 'nsd']}.yaml", path]
    for path in sorted((ROOT / "config/additions").glob("*.yaml"))
]


def found(parts: list[Cost], stage: str, **names: str) -> Cost:
    (one,) = [cost for cost in parts if cost.job.stage == stage and names.items() <= cost.job.names.items()]
    return one


def with_epochs() -> Study:
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["datasets"]["simulated"]["validation_fraction"] = 0.2
    content["methods"]["unimind-vit"]["align"]["training"] = {"epochs": 3, "batch_size": 8}
    content["methods"]["unimind-vit"]["adapt"]["training"] = {"epochs": 2, "batch_size": 8}
    content["methods"]["mindvis"]["pretrain"]["training"] = {"epochs": 5, "batch_size": 4}
    return parse_study(content)


# --- the study's numbers ----------------------------------------------------------------------------------------------


def test_counts_of_a_tiny_study_by_hand():
    study = with_epochs()
    parts = costs(study)
    assert [cost.job for cost in parts] == list(study.jobs())
    # 2 sessions x 60 trials, each picture twice: 60 pictures, 10 of them to test on, 10 held out, 40 to train on; 120 voxels
    assert found(parts, "prepare", subject="subj02").written == 120 * 120 * 4
    assert found(parts, "stimuli").written == (10 + 8 * 50) * 32 * 32 * 3
    assert found(parts, "align", method="unimind-vit").steps == 3 * 2 * 40 / 8
    assert found(parts, "adapt", method="unimind-vit").steps == 2 * 40 / 8
    # one run of 120 volumes in windows of 10: 12 samples, the last one held out, of two people
    assert found(parts, "pretrain", method="mindvis").steps == math.ceil(5 * 2 * 11 / 4)
    assert found(parts, "condition", method="mindvis", group="simulated-subj01").steps == 4
    # two samples and the shuffled control of ten pictures, in blocks and then in one file
    drawn = found(parts, "reconstruct", method="unimind", subject="subj03")
    assert (drawn.written, drawn.lies) == (2 * 10 * 3 * 32 * 32 * 3, 10 * 3 * 32 * 32 * 3)
    # what a training holds is read once, however many steps it makes: responses, and 16 numbers and a latent of 4 x 8 x 8 of every picture
    size = study.methods["mindvis"].enter.size
    assert found(parts, "pretrain", method="mindvis").read == 2 * 12 * size * 4
    assert found(parts, "align", method="unimind-vit").read == 2 * 120 * 120 * 4 + 2 * 40 * 4 * (16 + 4 * 8 * 8)
    crop, batch = study.methods["mindvis"].condition.crop, study.methods["mindvis"].condition.training.batch_size
    latents = 4 * batch * (4 * 4 * 8 * 8 + crop * 3 * 32 * 32)
    assert found(parts, "condition", method="mindvis", group="simulated-subj01").read == 120 * 120 * 4 + latents
    # 16 numbers of the embedding, a latent of 4 x 8 x 8
    assert found(parts, "embed").written == 410 * 4 * (16 + 4 * 8 * 8)


def test_the_pictures_drawn_and_what_guidance_doubles():
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["methods"]["unimind"] |= {"sampling": {"steps": 10, "samples": 2, "guidance": 3.0, "strength": 0.5}}
    content["methods"]["unimind"]["condition"] = content["methods"]["unimind"]["condition"] | {"drop": 0.1}
    own = found(costs(parse_study(content)), "reconstruct", method="unimind", subject="subj01")
    assert math.isnan(own.flops)  # what the study's own CLIP and autoencoder cost is not known beforehand
    content["methods"] = {"unimind": content["methods"]["unimind"]}
    content["methods"]["unimind"]["sampling"]["samples"] = 1
    content.pop("transfer", None)
    content["foundations"] |= {"autoencoder": {"kind": "hub"}, "diffusion": {"kind": "hub"}}
    study = parse_study(content | {"picture_size": 64})
    once = found(costs(study), "reconstruct", method="unimind", subject="subj01").flops
    unet = work.UNet((320, 640, 1280, 1280), (1, 1, 1, 0), 768).work(8, 8).flops
    decoder = work.coder((128, 256, 512, 512), 64, 4, 2, True).flops
    assert once == pytest.approx(2 * 10 * (unet * 10 * 0.5 * 2 + decoder))  # twice: the shuffled control


def test_a_study_without_pictures_predicts_embeddings():
    content = {key: TINY[key] for key in ("name", "picture_size", "datasets")}
    content["foundations"] = {"embedding": {"kind": "squeezenet", "weights": "w.safetensors"}, "diffusion": {"kind": "none"}}
    content["methods"] = {"ridge": {"enter": {"kind": "ridge"}, "scope": "subject"}}
    parts = costs(parse_study(content))
    assert found(parts, "predict", subject="subj01").written == 2 * 10 * 512 * 4  # and of shuffled responses
    assert found(parts, "embed").written == 410 * 512 * 4


def test_prepared_files_count_where_they_are(tmp_path):
    study = with_epochs()
    folder = tmp_path / study.results / "prepared/simulated"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    write_prepared(
        folder / "subj01.h5", random.normal(size=(30, 7)).astype(np.float32), stimulus=np.arange(30), session=np.zeros(30),
        split=[0] * 20 + [1] * 4 + [2] * 6, stimuli=30, dataset="simulated", subject="subj01",
    )  # fmt: skip
    pixels = (random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(30))
    write_stimuli(folder / "stimuli.h5", (Stimulus.from_pixels(str(k), image, k >= 24, 32) for k, image in enumerate(pixels)), 30, 32)
    parts = costs(study, tmp_path)
    assert found(parts, "prepare", subject="subj01").written == 30 * 7 * 4
    assert found(parts, "align", method="unimind-vit").steps == math.ceil(3 * (20 + 40) / 8)
    assert found(parts, "reconstruct", method="unimind", subject="subj01").lies == 6 * 3 * 32 * 32 * 3
    written = found(parts, "stimuli").written
    assert written == 30 * 32 * 32 * 3 and (folder / "stimuli.h5").stat().st_size == pytest.approx(written, rel=0.25)  # noise does not compress


def test_time_is_operations_or_launches_and_checkpoints_follow_it():
    job = Job("m", "align", {}, "x")
    cost = Cost(job, flops=1e15, launches=10, precision="bf16", written=100, checkpoint=1000, minutes_apart=10)
    machine = Machine({"bf16": 0.35e12}, 2e-6)
    assert cost.seconds(machine) == pytest.approx(1e15 / 0.35e12)
    assert Cost(job, flops=1, launches=1e6, precision="bf16").seconds(machine) == pytest.approx(2)
    assert math.isnan(Cost(job, flops=1, precision="tf32").seconds(machine)) and Cost(job).seconds(machine) == 0
    assert cost.writes(cost.seconds(machine)) == 100 + 1000 * (1 + 4)  # 2857 s: one every ten minutes, and one at the end
    assert CARDS["H100"] == Machine({precision: UTILISATION * rate for precision, rate in PUBLISHED["H100"].items()}, LAUNCH)
    assert total_cost([cost, Cost(job, flops=math.nan)]).unknown


# --- networks ---------------------------------------------------------------------------------------------------------


def counted(module, *given) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*given)
    return counter.get_total_flops()


@pytest.mark.parametrize(("decoder", "shown"), [(False, 1.0), (True, 0.25)])
def test_work_of_a_vit_is_what_torch_counts(decoder, shown):
    body = ViT(kind="vit", width=16, depth=2, heads=2, patch=4, decoder_width=8, decoder_depth=1)
    trunk = TRUNKS["vit"](3, 64, decoder=decoder, **body.model_dump(exclude={"kind"}))
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[:, : round(16 * (1 - shown))] = True
    own = work.vit(3, 64, body, shown, decoder)
    assert own.flops == counted(trunk.reconstruct if decoder else trunk, torch.randn(1, 3, 64), mask)
    assert own.parameters == sum(parameter.numel() for parameter in trunk.parameters())


def test_work_of_a_convmixer_is_what_torch_counts():
    body = ConvMixer(kind="convmixer", width=16, depth=2, patch=4, kernel=3, decoder_depth=1)
    trunk = TRUNKS["convmixer"](3, 64, decoder=True, **body.model_dump(exclude={"kind"}))
    own = work.convmixer(3, 64, body, True)
    assert (own.flops, own.parameters) == (counted(trunk.reconstruct, torch.randn(1, 3, 64)), sum(p.numel() for p in trunk.parameters()))


CIN256 = {
    "block_out_channels": [192, 384, 576, 960], "in_channels": 3, "out_channels": 3, "attention_head_dim": 1, "cross_attention_dim": 512,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3], "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
}  # fmt: skip
OWN = {
    "block_out_channels": [16, 32], "in_channels": 10, "out_channels": 4, "attention_head_dim": 4, "cross_attention_dim": 12, "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4, "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "unet", "side", "context"),
    [(CIN256, work.UNet((192, 384, 576, 960), (0, 1, 1, 1), 512, 2, 3, 3), 64, 77), (OWN, work.UNet((16, 32), (0, 1), 12, 1, 10, 4, True), 8, 2)],
)
def test_work_of_a_unet_is_what_torch_counts(config, unet, side, context):
    """cin256-v2's at its true size, and the form of the study's own."""
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config)
        flops = counted(network, torch.zeros(1, config["in_channels"], side, side), torch.ones(1), torch.zeros(1, context, config["cross_attention_dim"]))
    own, sizes = unet.work(side, context), {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert (own.flops, own.parameters) == (flops, sum(sizes.values()))
    assert work.adapted(unet) == sum(sizes[name] for name in adaptable_names(network))


@pytest.mark.parametrize("decodes", [False, True])
def test_work_of_an_autoencoder_is_what_torch_counts(decodes):
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    with torch.device("meta"):
        network = AutoencoderKL(block_out_channels=[32, 64], layers_per_block=2, latent_channels=4, **blocks)
        half, given = (network.decoder, torch.zeros(1, 4, 16, 16)) if decodes else (network.encoder, torch.zeros(1, 3, 32, 32))
        flops = counted(half, given)
    own = work.coder((32, 64), 32, 4 if decodes else 8, 2, decodes)  # an encoder gives mean and spread
    assert (own.flops, own.parameters) == (flops, sum(parameter.numel() for parameter in half.parameters()))


@pytest.mark.parametrize(("n", "voxels"), [(300, 700), (1500, 1100)])
def test_work_of_closed_forms_is_what_torch_counts(n, voxels):
    """Of matrix products; torch does not count factorisations."""
    random, features, targets = np.random.default_rng(0), 64, 40
    design, responses = random.normal(size=(n, features)), random.normal(size=(n, voxels)).astype(np.float32)
    moments, coordinates = (random.normal(size=(features, targets)), random.normal(size=targets)), random.normal(size=(n, targets)).astype(np.float32)

    def operations(function, *given):
        with FlopCounterMode(display=False) as counter:
            found = function(*given)
        return found, counter.get_total_flops()

    own = Recorded(design, responses)
    prior, learning = operations(EncodingPrior.learned, [own], features)
    _, decoding = operations(lambda: prior.decoder(Recorded(design, responses), coordinates, moments))
    _, ridge = operations(fit_ridge, responses, coordinates, [1.0, 10.0], 5)
    rank, seen = min(n, 1024) + features, 0.8 * n if n < voxels else voxels
    in_place = 2 * n**2 * voxels if n < voxels else 0  # `addmm_`, which torch does not count either
    uncounted = 10 * work.factorised(seen, targets) + work.factorised(min(n, voxels), targets) + in_place
    assert learning == pytest.approx(work.learned(voxels, features, 15), rel=0.1)
    assert decoding == pytest.approx(work.decoded(n, voxels, targets, features, prior.components.shape[1], 1024) - work.factorised(rank, features), rel=0.1)
    assert ridge == pytest.approx(work.ridge(n, voxels, targets, 2, 5) - uncounted, rel=0.05)


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", STUDIES, ids=lambda files: "+".join(path.stem for path in files))
def test_every_study_that_ships_has_a_plan(files, tmp_path):
    study = read_study(*files)
    parts = costs(study)
    assert [cost.job for cost in parts] == list(study.jobs())
    whole = total_cost(parts)
    assert whole.steps > 0 and whole.written > 0 and all(seconds > 0 for seconds in whole.seconds.values())
    assert len(list(table(parts))) == 1 + len({(cost.job.part, cost.job.stage) for cost in parts})


@pytest.mark.parametrize(("name", "days", "card"), [("thesis", 6, "H100"), ("thesis-24gb", 12, "RTX 4090")])
def test_headers_of_the_thesis_say_what_the_plan_says(name, days, card):
    path = ROOT / f"config/{name}.yaml"
    study = read_study(path)
    parts, said = costs(study), path.read_text().splitlines()
    for line in [*table([cost for cost in parts if cost.job.part in study.methods and STAGES[cost.job.stage].gpu]), last_line(study, parts)]:
        assert f"# {line}" in said
    assert total_cost(parts).seconds[card] <= days * 86400
    assert total_cost(parts).card < {"thesis": 80e9, "thesis-24gb": 23e9}[name]


def test_nsd_trains_as_long_as_gods_epochs():
    study = read_study(ROOT / "config/thesis.yaml")
    faithful = read_study(ROOT / "config/thesis.yaml", ROOT / "config/additions/faithful_of_thesis.yaml")
    method = study.methods["thesis-vit"]
    assert method.condition.training.steps == 500 * 1200 / 5
    assert method.align.training.steps == 100 * 5 * 1200 / 16 and method.adapt.training.steps == 20 * 1200 / 16
    for name in ("thesis-vit", "thesis-convmixer"):
        own = faithful.methods[name]
        assert (own.align.training.epochs, own.condition.training.epochs, own.adapt.training.epochs) == (100, 500, 20)
    assert faithful.methods["mindvis"].condition.training.epochs == 500


def test_the_last_line_of_the_stage_is_the_total(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["plan", "--study", "study.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    study = parse_study(TINY)
    assert lines[-1] == last_line(study, costs(study)) and all(name in lines[-1] for name in CARDS)
    assert main(["plan", "--study", "study.yaml", "--directory", "nowhere"]) == 2
    assert capsys.readouterr().err == "unimind plan: nowhere: no such folder; give the one that holds results/\n"


def test_calibration_foretells_what_other_work_takes_here(monkeypatch):
    """In processor time of one thread, which others on the machine do not change: another network's training step, and a larger ridge regression."""
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    monkeypatch.setattr(calibration, "SECONDS", 0.2)
    machine = calibration.calibrate({"fp32", "fp64", "tf32"}, 1)
    assert set(machine.rates) == {"fp32", "fp64"} and 0 < machine.launch < 1e-3
    body, job = ConvMixer(kind="convmixer", width=256, depth=4, patch=16, kernel=9), Job("m", "align", {}, "x")
    trunk, signal = TRUNKS["convmixer"](1, 4096, decoder=False, **body.model_dump(exclude={"kind"})), torch.randn(8, 1, 4096)
    random = np.random.default_rng(0)
    inputs, targets = random.standard_normal((900, 3000), np.float32), random.standard_normal((900, 300), np.float32)
    for flops, precision, function in (
        (3 * 8 * work.convmixer(1, 4096, body).flops, "fp32", lambda: trunk(signal).sum().backward()),
        (work.ridge(900, 3000, 300, 3, 4), "fp64", lambda: fit_ridge(inputs, targets, [1.0, 10.0, 100.0], 4)),
    ):
        taken = calibration._seconds(function, torch.device("cpu"))
        assert 1 / 4 < Cost(job, flops=flops, precision=precision).seconds(machine) / taken < 4


def test_the_machine_at_hand_stands_beside_the_cards(monkeypatch, tmp_path, capsys):
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["methods"]["unimind-vit"]["align"]["training"] = {"steps": 3, "batch_size": 8, "precision": "tf32"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(calibration, "calibrate", lambda precisions, threads: Machine({"fp32": 1e9, "fp64": 2e9}, 0.0, "a machine"))
    assert main(["plan", "--study", str(tmp_path / "study.yaml"), "--directory", str(tmp_path), "--calibrate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    hours = {tuple(line.split()[:2]): line.split()[-1] for line in lines if line}
    study = parse_study(content)
    steps = found(costs(study), "pretrain", method="mindvis")
    assert lines[0].endswith("here h") and hours["mindvis", "pretrain"] == f"{steps.flops / 1e9 / 3600:.3g}" and hours["unimind-vit", "align"] == "?"
    assert "Here: a machine. Measured by calibration, 1e9 operations a second: fp32 1, fp64 2; 0 us a kernel." in lines
    assert "tf32 needs a card: what asks for it does not run here." in lines
    assert f"{HERE} (measured by calibration; without what needs a card)" in lines[-1] and "(estimated)" in lines[-1]
