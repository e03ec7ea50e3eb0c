"""The typed study: what it refuses and how it says so, the names it gives, and its documents."""

import json
import re
from pathlib import Path

import pytest
import yaml

from unimind.errors import InputError
from unimind.study import Study, parse_study, read_study, resolved
from unimind.study_reference import BEGIN, json_schema, markdown, update

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/workflow/studies/tiny.yaml"
STUDIES = [TINY, *sorted((ROOT / "config").glob("*.yaml"))]


@pytest.fixture
def tiny() -> dict:
    return yaml.safe_load(TINY.read_text())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_of_the_repository_are_valid(path):
    study = read_study(path)
    assert parse_study(json.loads(json.dumps(resolved(study)))) == study


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(nmae="x"), ["nmae", "did you mean name"]),
        (lambda s: s["methods"]["unimind-vit"]["body"].update(dept=2), ["methods.unimind-vit.body.dept", "did you mean depth"]),
        (lambda s: s["methods"]["unimind"]["enter"].update(size=2), ["methods.unimind.enter.size", "unknown key"]),
        (lambda s: s["methods"]["ridge"].pop("enter"), ["methods.ridge.enter: missing"]),
        (lambda s: s["methods"]["ridge"].update(enter={"kind": "rigde"}), ["methods.ridge.enter.kind: rigde given", "ridge"]),
        (lambda s: s["datasets"]["simulated"].update(session=2), ["datasets.simulated.session", "did you mean sessions"]),
        (lambda s: s.update(picture_size=-1), ["picture_size", "-1"]),
        (lambda s: s["datasets"]["simulated"].update(training_subjects=["anna"]), ["datasets.simulated", "anna", "subj01"]),
        (lambda s: s["datasets"]["simulated"].update(training_subjects=[], new_subjects=[]), ["datasets.simulated", "no subject"]),
        (lambda s: s["datasets"]["simulated"].update(source="nds"), ["datasets.simulated.source", "nds", "nsd"]),
        (lambda s: s["datasets"]["simulated"].update(training_subjects=["subj01"]), ["methods.unimind.enter: decoded", "at least 2 needed"]),
        (lambda s: s["methods"]["ridge"].update(scope="study"), ["methods.ridge", "shares nothing", "scope: subject"]),
        (lambda s: s["methods"]["unimind"].update(scope="subject"), ["methods.unimind: scope: subject", "enter.kind decoded is taught"]),
        (lambda s: s["methods"]["unimind-vit"].pop("adapt"), ["methods.unimind-vit.adapt", "subj03"]),
        (lambda s: s["methods"]["unimind-convmixer"].pop("align"), ["methods.unimind-convmixer: adapt", "scope: subject"]),
        (lambda s: s["methods"]["unimind"].pop("align"), ["methods.unimind: align: missing", "trains the body"]),
        (lambda s: s.pop("unpaired"), ["pretrain", "unpaired"]),
        (lambda s: s["methods"]["mindvis"]["enter"].update(size=63), ["methods.mindvis", "enter.size: 63", "body.patch"]),
        (lambda s: s["methods"]["mindvis"].update(body=s["methods"]["mindvis"]["body"] | {"width": 15}), ["methods.mindvis: body.width: 15", "body.heads"]),
        (lambda s: s["methods"]["mindvis"].pop("body"), ["methods.mindvis: body: identity given", "wrap predicts nothing by itself"]),
        (lambda s: s["methods"]["mindvis"].pop("condition"), ["methods.mindvis: condition: missing", "align.losses.embedding"]),
        (lambda s: s["foundations"].update(diffusion={"kind": "ldm"}), ["sampling.strength", "write 0", "autoencoder alone"]),
        (lambda s: s["methods"]["mindvis"].update(sampling={"strength": 0}), ["methods.mindvis", "sampling.strength", "latent"]),
        (lambda s: s["methods"]["unimind-vit"].update(pretrain={}, body={"kind": "mlp"}), ["methods.unimind-vit: pretrain", "convmixer or vit"]),
        (
            lambda s: s["methods"]["unimind-convmixer"]["adapt"].update(strategy="adapter"),
            ["methods.unimind-convmixer: adapt.strategy", "low-rank or everything"],
        ),
        *(
            (lambda s, losses=losses: s["methods"]["unimind-vit"].update(adapt={"losses": losses}), [f"methods.unimind-vit.adapt: losses{key}", words])
            for losses, key, words in (
                ({"siamese": 1}, ".siamese: 1 given", "give mix_training a share"),
                ({"subject": 0.5}, ".subject: 0.5 given", "leave it out"),
                ({"adversarial": 1}, ".adversarial: 1 given", "leave it out"),
                ({"cycle": 1}, ".cycle: 1 given", "leave it out"),
                ({"embedding": 0, "latent": 0}, ": nothing left to adapt by", "give `embedding`"),
            )
        ),
        (
            lambda s: s["methods"]["mindvis"].update(condition={"drop": 0}, sampling={"guidance": 2.0}),
            ["methods.mindvis: condition.drop: 0", "guidance 2", "write 0.1, or guidance: 1"],
        ),
        (
            lambda s: s["methods"]["ridge"].update(sampling={"guidance": 1.5, "strength": 0.5}) or s["foundations"]["diffusion"].update(drop_condition=0),
            ["foundations.diffusion.drop_condition: 0", "methods.ridge.sampling.guidance 1.5", "write 0.1, or guidance: 1"],
        ),
        (lambda s: s["evaluation"].update(metrics=["psnr"]), ["evaluation", "psnr", "ssim"]),
        (lambda s: s["foundations"]["embedding"]["training"].update(epochs=3), ["foundations.embedding.training", "steps and epochs"]),
        (lambda s: s["transfer"].update(methods=["mindvis"]), ["transfer.methods: mindvis", "give it `adapt:`"]),
        (
            lambda s: s["methods"]["ridge"].update(condition={}) or s["transfer"].update(methods=["ridge"]),  # trained on all of the subject's trials
            ["transfer.methods: ridge", "widen its `scope:`"],
        ),
        (lambda s: s["transfer"].update(methods=["nobody"]), ["transfer.methods: nobody is no method"]),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(tiny, change, words):
    change(tiny)
    with pytest.raises(InputError) as error:
        parse_study(tiny, "my.yaml")
    message = str(error.value)
    assert "\n" not in message and message.startswith("my.yaml: ")
    assert all(word in message for word in words), message


IDLE = {
    "unimind-vit.align.margin": {"align": {"losses": {"siamese": 0}, "margin": 2}},
    "unimind-vit.align.shuffle_labels": {"align": {"losses": {"siamese": 0}, "shuffle_labels": True}},
    "unimind-vit.align.temperature": {"align": {"temperature": 0.1}},
    "unimind-vit.align.mixco": {"align": {"mixco": 0.3}},
    "unimind-vit.align.in_sample": {"align": {"in_sample": True}},
    "unimind-vit.align.noise": {"align": {"noise": 0.5}},
    "unimind-vit.align.losses.cycle": {"align": {"losses": {"cycle": 1}}},
    "unimind-vit.adapt.losses.reconstruction": {"adapt": {"losses": {"reconstruction": 1}}},
    "ridge.enter.folds": {"enter": {"kind": "ridge", "alphas": [10.0], "folds": 3}},
    "unimind-vit.adapt.rank": {"adapt": {"rank": 2}},
    "unimind-vit.adapt.losses.latent": {"align": {"losses": {"latent": 0}}, "adapt": {"losses": {"latent": 0.1}}},
    "unimind-vit.adapt.losses.embedding": {"align": {"losses": {"embedding": 0}}, "condition": {}},
    "unimind-convmixer.adapt.start": {"adapt": {"strategy": "everything", "start": "interpolate"}},
    "unimind.condition.crop": {"condition": {"crop": 0.5}},
    "unimind.pretrain": {"pretrain": {}},
    "unimind.adapt": {"adapt": {}},
    "ridge.align": {"align": {}},
    "ridge.pretrain": {"pretrain": {}},
    "ridge.adapt": {"adapt": {}},
    "ridge.sampling.sampler": {"sampling": {"strength": 0, "sampler": "ddim"}},
    "ridge.sampling.steps": {"sampling": {"strength": 0, "steps": 5}},
    "ridge.sampling.guidance": {"sampling": {"strength": 0, "guidance": 2}},
    "ridge.sampling.samples": {"sampling": {"strength": 0, "samples": 2}},
    "ridge.trained_on": {"trained_on": {"subjects": 1}},
    "unimind.condition.tokens": {"condition": {"tokens": 2}},
    "unimind-vit.body.decoder_width": {"pretrain": None},
    "unimind-convmixer.body.decoder_depth": {"pretrain": None},
    "mindvis.align.losses.siamese": {"align": {"losses": {"siamese": 0.5}}},
    "mindvis.align.losses.subject": {"align": {"losses": {"siamese": 0, "subject": 0.5}}},
    "mindvis.align.losses.adversarial": {"align": {"losses": {"adversarial": 0.5}}},
    "mindvis.align.margin": {"align": {"margin": 2}},
    "mindvis.align.shuffle_labels": {"align": {"shuffle_labels": True}},
    "mindvis.sampling.strength": {"sampling": {"strength": 0.5}},
}


@pytest.mark.parametrize("key", IDLE)
def test_a_setting_that_does_nothing_is_refused_with_its_path(tiny, key):
    name = key.partition(".")[0]
    tiny["methods"][name] |= IDLE[key]
    with pytest.raises(InputError) as error:
        parse_study(tiny)
    message = str(error.value)
    assert "\n" not in message and message.replace(": ", ".").startswith(f"study.methods.{key}."), message


ARRAYS = {"source": "arrays", "training_subjects": ["anna"], "responses": "anna.npy"}
BIDS = {"source": "bids", "training_subjects": ["sub-01"], "derivatives": "d", "rois": {"all": {"file": "mask.nii.gz"}}}
CLOSED = {"enter": {"kind": "decoded"}}
#: A baseline that trains nothing but its body on what the condition stage leaves as it is.
BODY = CLOSED | {"body": {"kind": "mlp"}, "align": {}}
NOTHING_OF_TINY_DRAWN = {
    "embedding": {"kind": "open-clip"},
    "autoencoder": {"kind": "hub"},
    "diffusion": {"kind": "study", "pictures": "training"},
    "classifier": None,
}


@pytest.mark.parametrize(
    ("section", "changes", "path", "why"),
    [
        ("transfer", {"trials": ["all"], "seeds": 2}, "transfer: seeds", "all trials"),
        ("transfer", {"methods": ["unimind"], "baselines": {}, "scratch": False}, "transfer.scratch", "adapted by training"),
        *(
            ("transfer", {"pictures": False, "baselines": {"other": BODY | own}}, f"transfer.baselines.other.{key}", "transfer.pictures false")
            for key, own in (("sampling", {"sampling": {"steps": 2}}), ("condition", {"condition": {"train_encoder": False}}))
        ),
        ("foundations", NOTHING_OF_TINY_DRAWN | {"drawn": {"count": 200}}, "foundations: drawn.count", "trained on drawn pictures"),
        ("foundations", NOTHING_OF_TINY_DRAWN | {"drawn": {"seed": 2}}, "foundations: drawn.seed", "trained on drawn pictures"),
        ("unpaired", {"source": "hcp"}, "unpaired: volumes", "source hcp"),
        ("unpaired", {"source": "arrays", "volumes": 1200}, "unpaired: runs", "source arrays"),
        ("unpaired", {"source": "arrays", "volumes": 1200, "runs": None, "drop_original": True}, "unpaired: drop_original", "source arrays"),
        ("datasets", {"mine": ARRAYS | {"images": "pictures", "images_key": "x"}}, "datasets.mine: images_key", "no array"),
        ("datasets", {"mine": ARRAYS | {"images": "a.zip", "images_shape": [8, 8]}}, "datasets.mine: images_shape", "no array"),
        ("datasets", {"mine": ARRAYS | {"images": "a.tar", "images_transposed": True}}, "datasets.mine: images_transposed", "no array"),
        ("datasets", {"mine": BIDS | {"images": "pictures", "images_key": "x"}}, "datasets.mine: images_key", "no array"),
    ],
)
def test_a_setting_of_the_study_that_does_nothing_is_refused_with_its_path(tiny, section, changes, path, why):
    tiny[section] = {key: value for key, value in (tiny[section] | changes).items() if value is not None or key == "classifier"}
    with pytest.raises(InputError) as error:
        parse_study(tiny)
    message = str(error.value)
    assert message.startswith(f"study: {path}: ") and why in message and message.endswith("leave it out") and "\n" not in message


@pytest.mark.parametrize("losses", [{"siamese": 0.5}, {"subject": 0.5}, {"adversarial": 0.5}])
def test_losses_across_subjects_need_a_model_of_several(tiny, losses):
    """The default of the Siamese loss and 0 are accepted, and a baseline of fewer subjects may have its method's losses."""
    tiny["methods"] = {"one": tiny["methods"]["unimind-vit"] | {"align": {"losses": losses}}}
    tiny["transfer"]["methods"] = None
    del tiny["transfer"]["baselines"]
    parse_study(tiny)
    several = tiny["datasets"]["simulated"]
    tiny["datasets"]["simulated"] = several | {"training_subjects": ["subj01"]}
    key = next(iter(losses))
    with pytest.raises(InputError, match=f"methods.one.align.losses.{key}: 0.5 given, but every model of one is of one subject, .*; leave it out"):
        parse_study(tiny)
    tiny["datasets"]["second"] = several
    parse_study(tiny)
    del tiny["datasets"]["second"]
    for siamese in (0, 1):
        tiny["methods"]["one"]["align"] = {"losses": {"siamese": siamese}}
        parse_study(tiny)
    tiny["datasets"]["simulated"] = several
    tiny["transfer"]["baselines"] = {"fewer": tiny["methods"]["one"] | {"align": {"losses": losses}, "trained_on": {"subjects": 1}}}
    parse_study(tiny)


def test_what_another_setting_reads_is_no_idle_one(tiny):
    """Losses of `adapt`, a condition stage without a predicted embedding, a list of test pictures, what a baseline is trained by."""
    vit = tiny["methods"]["unimind-vit"]
    vit["align"] = {"losses": {"siamese": 0, "softclip": 0}, "margin": 2, "temperature": 0.1}
    vit["adapt"] |= {"losses": {"siamese": 1, "softclip": 1}, "mix_training": 0.5}
    tiny["methods"]["mindvis"]["condition"]["tokens"] = 3
    people = {"training_subjects": ["anna", "ben"], "responses": "{subject}.npy"}
    tiny["datasets"]["mine"] = ARRAYS | people | {"images": "p.npy", "images_shape": [8, 8], "count_from": 1, "split": {"images": "test.txt"}}
    tiny["transfer"] |= {"pictures": False, "baselines": {"latent": BODY | {"sampling": {"strength": 0}}, "tuned": BODY | {"condition": {}}}}
    study = parse_study(tiny)
    align = study.methods["unimind-vit"].align
    assert (align.margin, align.temperature, study.methods["mindvis"].condition.tokens, study.datasets["mine"].count_from) == (2, 0.1, 3, 1)
    assert study.transfer.baselines["latent"].sampling.strength == 0 and study.transfer.baselines["tuned"].condition is not None
    for reads, without, refused in (
        (vit["adapt"]["losses"], {"siamese": 0}, "methods.unimind-vit: align.margin: 2.0 given, but losses.siamese is 0"),
        (vit["adapt"]["losses"], {"softclip": 0}, "methods.unimind-vit: align.temperature: 0.1 given, but losses.softclip is 0"),
        (tiny["datasets"]["mine"]["split"], {"images": None, "every": 5}, "datasets.mine: count_from: there is no trial table"),
    ):
        before = dict(reads)
        reads |= without
        with pytest.raises(InputError, match=refused):
            parse_study(tiny)
        reads.clear()
        reads |= before


def test_enter_has_one_name(tiny):
    tiny["methods"]["ridge"]["encoder"] = tiny["methods"]["ridge"].pop("enter")
    with pytest.raises(InputError, match="methods.ridge.encoder: unknown key"):
        parse_study(tiny)


def test_file_that_is_missing_or_no_yaml(tmp_path):
    with pytest.raises(InputError, match="no such study file"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(InputError, match="not YAML"):
        read_study(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- name")
    with pytest.raises(InputError, match="list given"):
        read_study(tmp_path / "list.yaml")
    (tmp_path / "latin.yaml").write_bytes("title: sémantique\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.yaml: not a text file in UTF-8 .*; save it as UTF-8"):
        read_study(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "addition",
    [
        {"seed": 3, "methods": {"second": yaml.safe_load(TINY.read_text())["methods"]["ridge"]}},
        {"unpaired": {"subjects": ["100206"]}, "evaluation": {}},
        {"methods": {"unimind-vit": {"enter": {"size": 128}}}},
        {"methods": {"ridge": {"enter": None}}, "name": {"x": 1}},
    ],
)
def test_files_are_merged_as_snakemake_merges_them(tmp_path, monkeypatch, addition):
    config = pytest.importorskip("snakemake.settings.types").ConfigSettings
    monkeypatch.setattr("unimind.study.read.parse_study", lambda content, where: (content, where))
    files = [TINY, tmp_path / "more.yaml"]
    files[1].write_text(yaml.safe_dump(addition))
    content, where = read_study(*files)
    assert content == config(configfiles=files).overwrite_config
    assert where == f"{TINY}, {tmp_path / 'more.yaml'}"


def test_groups_and_members_follow_the_scope(tiny):
    tiny["datasets"]["second"] = tiny["datasets"]["simulated"] | {"training_subjects": ["subj04", "subj05"], "new_subjects": []}
    tiny["methods"]["together"] = tiny["methods"]["unimind-vit"] | {"scope": "study"}
    study = parse_study(tiny)
    assert study.group("together", "second", "subj04") == "all"
    assert study.members("together", "all") == [("simulated", "subj01"), ("simulated", "subj02"), ("second", "subj04"), ("second", "subj05")]
    assert study.group("unimind-vit", "simulated", "subj03") == "simulated"
    assert study.members("unimind-vit", "simulated") == [("simulated", "subj01"), ("simulated", "subj02")]
    assert study.members("ridge", "simulated-subj03") == [("simulated", "subj03")]
    assert study.role("simulated", "subj03") == "new" and study.role("second", "subj04") == "train"


def test_every_subject_may_have_its_own_pictures():
    data = {"source": "arrays", "training_subjects": ["a", "b"], "new_subjects": ["c"], "responses": "{subject}.npy", "images": "{subject}.zip"}
    study = parse_study(
        {
            "name": "x",
            "datasets": {"mine": data},
            "methods": {"ridge": {"scope": "subject", "enter": {"kind": "ridge"}}},
            "foundations": {"diffusion": {"kind": "study"}},
        }
    )
    assert study.stimuli("mine", "c") == "c.stimuli" and study.training_stimuli("mine") == ["a.stimuli", "b.stimuli"]


def test_roots_expand_variables(tiny, monkeypatch):
    monkeypatch.setenv("WHERE", "/somewhere")
    tiny["datasets"]["simulated"]["root"] = "$WHERE/else"
    assert parse_study(tiny).root("simulated") == "/somewhere/else"
    assert parse_study(tiny).unpaired_root() == "results/tiny/raw/unpaired"


# --- documents --------------------------------------------------------------------------------------------------------


def test_schema_and_reference_are_in_step_with_the_types(tmp_path):
    """`make reference` brings them up to date."""
    (tmp_path / "README.md").write_text((ROOT / "config/README.md").read_text())
    update(tmp_path)
    assert (tmp_path / "README.md").read_text() == (ROOT / "config/README.md").read_text()
    for name in ("study.schema.json", "declaration.schema.json"):
        assert (tmp_path / name).read_text() == (ROOT / "config" / name).read_text()


def test_reference_names_every_key_and_its_links_lead_somewhere():
    text = markdown()
    for section in [Study.model_json_schema(), *Study.model_json_schema()["$defs"].values()]:
        assert all(f"| `{key}` |" in text for key in section["properties"])
    anchors = {re.sub(r"[^\w-]", "", line[3:].lower().replace(" ", "-")) for line in text.splitlines() if line.startswith("## ")}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links and links <= anchors


def test_schema_accepts_the_studies_and_refuses_a_misspelt_key(tiny):
    from jsonschema import Draft202012Validator

    schema = json.loads(json_schema())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for path in STUDIES:
        assert not list(validator.iter_errors(yaml.safe_load(path.read_text())))
    tiny["methods"]["ridge"]["lable"] = "x"
    assert list(validator.iter_errors(tiny))


def test_examples_of_the_introduction_are_valid_studies():
    introduction = (ROOT / "config/README.md").read_text().partition(BEGIN)[0]
    studies = [block for block in re.findall(r"```yaml\n(.*?)```", introduction, re.DOTALL) if "datasets:" in block]
    assert studies
    for block in studies:
        parse_study(yaml.safe_load(block))


def test_fewer_training_subjects_are_for_the_comparison_alone(tiny):
    fewer = tiny["methods"]["unimind-vit"] | {"trained_on": {"subjects": 1}}
    with pytest.raises(InputError, match="methods.fewer.trained_on: .* move fewer to transfer.baselines"):
        parse_study(tiny | {"methods": tiny["methods"] | {"fewer": fewer}})
    tiny["transfer"] = {"trials": [20], "baselines": {"fewer": fewer}}
    assert parse_study(tiny).members("fewer", "simulated") == [("simulated", "subj01")]
    assert parse_study(tiny).members("unimind-vit", "simulated") == [("simulated", "subj01"), ("simulated", "subj02")]
    fewer["trained_on"]["subjects"] = 3
    with pytest.raises(InputError, match="fewer.trained_on.subjects: 3 given, but datasets.simulated.training_subjects names 2"):
        parse_study(tiny)


# --- additions --------------------------------------------------------------------------------------------------------


def differences(a: dict, b: dict, path: str = "") -> dict[str, tuple]:
    """Paths of the keys in which two methods differ, with both values."""
    out: dict[str, tuple] = {}
    for key in sorted(a.keys() | b.keys()):
        own, other = a.get(key), b.get(key)
        if isinstance(own, dict) and isinstance(other, dict):
            out |= differences(own, other, f"{path}{key}.")
        elif own != other:
            out[path + key] = (own, other)
    return out


def test_training_subjects_of_the_addition_are_all_that_differs():
    study = read_study(ROOT / "config/macaque_v4.yaml", ROOT / "config/additions/training_subjects_of_macaque_v4.yaml")
    method = study.methods["unimind"].model_dump()
    rows = {name: baseline.model_dump() for name, baseline in study.transfer.baselines.items() if baseline.trained_on}
    assert not study.transfer.pictures, "so that nothing of how they are drawn differs"
    for own in (method, *rows.values()):
        del own["sampling"]
    assert all(differences(method, row).keys() == {"label", "trained_on"} for row in rows.values())
    assert {name: (len(study.members(name, "v4")), study.share(name)) for name in rows} == {"of-3": (3, 317), "of-7": (7, 136), "of-3-whole": (3, None)}


def test_ablations_leave_out_one_thing_each():
    study = read_study(ROOT / "config/config.yaml", ROOT / "config/additions/ablations_of_embedded.yaml")
    added = study.methods.keys() - read_study(ROOT / "config/config.yaml").methods.keys()
    methods = {name: method.model_dump() for name, method in study.methods.items()}
    found = {name: differences(methods["mindvis" if name.startswith("mindvis") else "thesis-convmixer"], methods[name]) for name in added}
    assert all(paths.pop("label") for paths in found.values())
    assert found.pop("no-pretraining").keys() == {"pretrain"}
    assert found == {
        "no-cross-attention": {"condition.cross_attention": (True, False)},
        "no-time": {"condition.time": (True, False)},
        "no-siamese": {"align.losses.siamese": (0.5, 0.0)},
        "shuffled-labels": {"align.shuffle_labels": (False, True)},
        "interpolate": {"enter.kind": ("adapter", "interpolate"), "adapt.strategy": ("adapter", "low-rank")},
        "mindvis-no-crops": {"condition.crop": (0.5, 0.0)},
    }


def test_ways_to_draw_differ_from_unimind_in_nothing_else():
    study = read_study(ROOT / "config/config.yaml", ROOT / "config/additions/drawing_of_embedded.yaml")
    unimind = study.methods["unimind"].model_dump()
    keys = {"from-noise": {"sampling.strength"}, "prior-over-embeddings": {"embedding_prior"}, "prior-from-noise": {"sampling.strength", "embedding_prior"}}
    assert {name: set(differences(unimind, study.methods[name].model_dump())) - {"label"} for name in keys} == keys


def test_the_faithful_addition_trains_the_thesis_for_longer_and_nothing_else():
    thesis = ROOT / "config/thesis.yaml"
    before, after = (resolved(study) for study in (read_study(thesis), read_study(thesis, ROOT / "config/additions/faithful_of_thesis.yaml")))
    found = differences(before, after)
    epochs = {"align": 100, "condition": 500, "adapt": 20}
    assert {path: new for path, (_, new) in found.items()} == {
        f"methods.{name}.{stage}.training.{key}": value
        for name in ("thesis-convmixer", "thesis-vit", "mindvis")
        for stage in (epochs if name != "mindvis" else ["condition"])
        for key, value in (("steps", None), ("epochs", epochs[stage]))
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["foundations"].update(embedding={"kind": "squeezenet"}), "embedding.kind: squeezenet given, but ip-adapter takes the embedding"),
        (lambda s: s["foundations"]["diffusion"].update(target="tokens", x=0), "foundations.diffusion.x: unknown key"),
        (lambda s: s["foundations"].update(diffusion={"kind": "ip-adapter", "target": "tokens"}, embedding={"kind": "open-clip"}), "write clip-vision"),
        (lambda s: s["foundations"]["diffusion"].update(encoder="x"), "diffusion.encoder: given, but only an adapter that takes tokens"),
        (lambda s: s["foundations"]["diffusion"].update(weights="models/a.bin"), "foundations.diffusion.weights: string should match"),
        (lambda s: s["foundations"].update(diffusion={"kind": "kandinsky-2.2", "size": 500}), "foundations.diffusion.size: input should be a multiple of 64"),
        (lambda s: s["methods"]["unimind"]["sampling"].update(guidance=0.5), "methods.unimind.sampling.guidance: 0.5 given, but the pipelines"),
        (lambda s: (s["foundations"].update(diffusion={"kind": "kandinsky-2.2"}), s["methods"]["ridge"]["sampling"].update(sampler="plms")), "write dpm"),
        (lambda s: s["methods"]["unimind"].update(condition={}), "methods.unimind.condition: given, but foundations.diffusion.kind ip-adapter is"),
        (
            lambda s: (s["foundations"].update(diffusion={"kind": "hub"}), s["methods"]["unimind"].update(embedding_prior={})),
            "methods.unimind.embedding_prior: given, but foundations.diffusion.kind hub does not take the image embedding; leave it out",
        ),
        (
            lambda s: s["transfer"].update(baselines={"other": {"enter": {"kind": "decoded"}, "embedding_prior": {}}}),
            "transfer.baselines.other.embedding_prior: given, but with transfer.pictures false",
        ),
        (lambda s: s["foundations"].update(diffusion={"kind": "autoencoder"}), "autoencoder nothing else is drawn than the predicted latent; write 0"),
    ],
)
def test_what_a_frozen_generator_does_not_take_is_refused(change, words):
    content = yaml.safe_load((ROOT / "config/nsd.yaml").read_text())
    change(content)
    with pytest.raises(InputError, match=re.escape(words)) as raised:
        parse_study(content)
    assert "\n" not in str(raised.value)
