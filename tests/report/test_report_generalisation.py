"""The page's part on generalisation: figures, tables and words from the checks of every subject."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_fakes import METHODS, SUBJECTS

from unimind.evaluation.checks import records
from unimind.evaluation.measures import MEASURES
from unimind.report.figures import figures
from unimind.report.generalisation import chance_of
from unimind.report.page import report
from unimind.report.tables import meanings
from unimind.storage import read_json
from unimind.study import read_study

CONFIG = Path(__file__).parents[2] / "config/config.yaml"
TOPS = ("top1", "top10", "top50")
CLEAN = {"kind": "clean", "alarm": False, "text": "it is fine."}


def method(skill: float, by_distance: np.ndarray, findings: list[dict]) -> dict:
    return {
        "by": "the predicted embedding",
        "training_identification": {"candidates": 101, "median_place": 4.0} | {top: {"value": skill, "ci_low": skill - 0.1, "ci_high": skill} for top in TOPS},
        "copies": {"of": 29, "pictures": 0.03, "predictions": 0.0},
        "spread": {"count": 30, "different": {"pictures": 28, "predictions": 27}, "effective_rank": 7.25, "effective_rank_of_targets": 9.5, "variance": 0.31},
        "groups": {
            "score": 0.9, "same_group": 0.1, "within": {"value": 0.8, "ci_low": 0.7, "ci_high": 0.9}, "category_level": 0.87,
            "between": {"value": 0.91, "ci_low": 0.9, "ci_high": 0.92}, "one_output_each": False,
        },
        "by_distance": {"study_clip": {"groups": [{"distance": k / 10, "value": value, "n": 6} for k, value in enumerate(by_distance)],
                                       "correlation": -0.5, "p": 0.01, "without_near_duplicates": 0.8}},
        "findings": findings, "bottleneck": [{"dimensions": 3**k, "identification": {"value": 0.5 + 0.05 * k}} for k in range(5)],
    }  # fmt: skip


def alone(value: float) -> dict:
    one = {"value": value, "ci_low": value - 0.05, "ci_high": value + 0.05}
    return {"pixcorr": one, "similarity": one, "pixcorr_of_another": 0.011, "similarity_of_another": -0.021}


@pytest.fixture(scope="module")
def told(fake, tmp_path_factory):
    """(page, figures' captions, checks) of the fake study with checks: near-duplicates for one subject, a collapse of Ridge in two, no alarm else."""
    root = tmp_path_factory.mktemp("told")
    files = []
    for number, (subject, role) in enumerate(SUBJECTS.items()):
        known = 3 if subject == "subj02" else 0
        places = [{"dataset": "drawings", "stimuli": "stimuli", "stimulus": 0, "embedding_distance": 0.2}] * len(fake.test)
        audit = {
            "test_pictures": 30, "training_pictures": 100, "near_duplicates": known, "median_distance": 0.412, "median_distance_within_training": 0.431,
            "outside_training_span": 0.125, "near_duplicate": [k < known for k in range(30)], "nearest": places, "perceptually_nearest": places,
            "distance": (0.2 - 0.1 * (known > 0) + np.arange(30) / 100).tolist(), "perceptual_distance": [0.3] * 30,
        }  # fmt: skip
        collapse = {"kind": "collapse", "alarm": True, "text": "to 30 test pictures it gives only 4 different pictures."}
        findings = {key: [collapse] if key == "ridge" and number < 2 else [CLEAN] for key in METHODS}
        near = {"kind": "duplicates", "alarm": known > 0, "text": f"{known} of 30 test pictures (10 %) have a near-duplicate."}
        content = {
            "study": "fake", "dataset": "drawings", "subject": subject, "role": role, "stimulus": fake.test.tolist(), "audit": audit, "findings": [near],
            "rules": {"embedding": "tiny CLIP", "distance": "1 - correlation", "perceptual_distance": "LPIPS", "candidates": 3, "near_duplicate": "both near"},
            "groups": {"count": 10, "kind": "clusters"},
            "recovery": {"samples": 3, "test_pictures": {"count": 30, "distance": 0.412, "embedding": alone(0.81), "latent": alone(0.97)},
                         "shapes": {"count": 12, "distance": 0.563, "embedding": alone(0.27), "latent": alone(0.93)}},
            "methods": {key: method(skill - 0.5, skill - 0.05 * np.arange(5), findings[key]) for key, skill in METHODS.items()},
        }  # fmt: skip
        del content["methods"]["mindvis"]["bottleneck"]
        files.append(root / f"{subject}.json")
        files[-1].write_text(json.dumps(content))
    tables = root / "tables"
    tables.symlink_to(fake.root / "tables")
    if not (tables / "declaration.json").exists():
        own = {
            "dataset": "drawings", "subject": "subj04", "subject_seen_in_training": False, "sessions": 1, "training_trials": 200, "training_pictures": 100,
            "training_minutes": 13.3, "repeats_in_training": "2", "test_pictures": 30, "trials_per_test_picture": "2", "methods": [],
            "rule_of_test_pictures": "pictures shown to every subject", "near_duplicates_in_training": 0,
        }  # fmt: skip
        tables.unlink()
        tables.mkdir()
        for path in (fake.root / "tables").iterdir():
            (tables / path.name).symlink_to(path)
        (tables / "declaration.json").write_text(json.dumps({"study": "fake", "subjects": [own]}))
    figures(fake.study, **{**fake.inputs(), "tables": root / "none", "models": [], "reconstructions": []}, generalisation=files, out=root / "figures")
    report(fake.study, fake.overview, tables, root / "figures", fake.metrics, fake.models, root / "page.html", generalisation=files)
    page = (root / "page.html").read_text()
    return re.sub(r"\s+", " ", page[page.index('<h2 id="generalise">') : page.index('<h2 id="new">')]), read_json(root / "figures/captions.json"), files


def test_the_words_say_who_has_which_fault(told):
    part, *_ = told
    assert "subj02: 3 of 30 test pictures (10 %) have a near-duplicate." in part
    assert re.search(r"Ridge|ridge", part) and "collapse, in 2 subjects of 4; subj01: to 30 test pictures it gives only 4 different pictures." in part
    quiet = re.search(r"No alarm for (.*?): neither", part)[1]
    assert "ridge" not in quiet and all(key in quiet for key in METHODS if key != "ridge")
    assert "subj04: not seen in the training of shared models; 200 training trials in 1 session, 13.3 minutes" in part


def test_the_tables_hold_the_numbers_of_the_checks(told):
    part, *_ = told
    assert part.count('<th scope="row">subj0') == 4 and "0.412" in part and "0.431" in part and "12.5" in part
    for skill in METHODS.values():
        assert f">{100 * (skill - 0.5):.1f}<" in part, "the mean over training subjects"
    assert "among 101 candidates, chance 0.99, 9.9, 50 %" in part


def test_chance_is_never_above_all_of_few_candidates():
    assert [chance_of(count) for count in (58, 37)] == ["1.7, 17, 86", "2.7, 27, 100"]


def test_what_the_generator_alone_can_show_is_said_and_stands_in_a_table(told, fake):
    part, _, files = told
    assert "correlates in pixels by 0.27 [0.22, 0.32] with the shape, by 0.01 with another one; of test pictures 0.81 [0.76, 0.86]. It shows them less" in part
    lines = re.findall(r'<th scope="row">(12 shapes|30 test pictures): (.*?)</th>(.*?)</tr>', part, re.S)
    assert [line[0] for line in lines] == ["12 shapes", "30 test pictures"] * 2 and all("0.563" in line[2] for line in lines[::2])
    found = pd.DataFrame(records(fake.study, [json.loads(files[0].read_text())])).set_index("check").value
    assert found["recovery:shapes:embedding:pixcorr"] == 0.27 and found["recovery:test_pictures:latent:similarity_of_another"] == -0.021


def test_the_figures_show_pairs_and_scores_by_distance(told):
    _, captions, _ = told
    assert [one["file"] for one in captions if one["section"] == "generalise"] == [
        "nearest_drawings.png",
        "distance_drawings.png",
        "bottleneck_drawings.png",
        "recovery_drawings.png",
    ]
    alt = {one["file"]: one["alt"] for one in captions}
    assert "3 of them near-duplicates" in alt["nearest_drawings.png"]
    assert "ridge" in alt["bottleneck_drawings.png"] and "mindvis" not in alt["bottleneck_drawings.png"], "mindvis has no such line"


def test_a_run_without_checks_says_so(page):
    assert "This run has no checks of generalisation." in page.read_text()


def test_agreement_with_raters_is_said_beside_the_measures_it_is_known_of():
    known = {name: measure.raters for name, measure in MEASURES.items() if measure.raters is not None}
    assert known == {"clip": 0.44, "effnet": 0.75, "pixcorr": 0.12}, "of the field's measures, not of those of our own that are like them"
    table = pd.DataFrame({"metric": ["effnet", "ssim"]})
    told = dict(meanings(read_study(CONFIG), table, {}))
    assert told["EffNet-B"] == "correlation distance of EfficientNet features; agreement with human raters 0.75 (SEED, ICLR 2026)"
    assert "raters" not in told["SSIM"]
