"""Studies whose seeds split the data, and tables of described tasks; with results that are made up."""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML
from scipy import stats

from metadiff.artifact import seal
from metadiff.params import load
from stages import figures, study, table
from stages.imports import ROOT
from stages.intervals import half_over_seeds, interval

METHODS = {"uncond": 50, "mlp": 70, "hyperldm-g1": 75, "hyperldm-best": 78, "adapt-10": 72, "text-adapt-2": 77, "many-shot": 90}
KINDS = {"two": 3, "not": 4, "some": 2, "either": 3}  # tasks of a kind, and as many more as the seed's number
PUBLISHED = [path.parent.name for path in (ROOT / "studies").glob("*/params.yaml")]


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    monkeypatch.setattr(table, "STUDIES", tmp_path)
    return tmp_path


def varied(folder: Path, dataset: str = "shapes", **more: Any) -> Path:  # noqa: ANN401
    """A study whose seeds split, unless it is said otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"datasets": [dataset], "seeds": [0, 1, 2], "split_by_seed": True, "table_of": "sentences"}
    text |= {"paths": {dataset: "data/builtin/described-shapes.safetensors"}, "labelled": {"hyperldm-best": 2, "many-shot": 256}}
    text |= {"rivals": ["mlp", "adapt-10", "end-to-end"], "drawn": [*METHODS], "shown": ["uncond", "mlp"], "names": {}}
    prepare = {"source": "described-shapes", "color": "rgb", "encoder": "cached"}
    changes: dict[str, Any] = {"changes": {"all": {}, dataset: {"prepare": prepare}}}
    YAML().dump(text | changes | more, folder / "params.yaml")
    return folder


# Cells


def test_a_cell_of_a_study_that_splits_by_seed_prepares_its_images_with_its_seed(
    studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, Path]] = []
    monkeypatch.setattr(study, "run", lambda stage, cell: ran.append((stage, cell)))
    monkeypatch.setattr(study, "keep_results", lambda *_: None)
    varied(studies / "text")
    assert study.main(["text", "shapes", "2"]) == 0
    cell = studies / "text/cells/shapes/2"
    assert ran == [(stage, cell) for stage in ("prepare", "pretrain", "collect", "metatrain", "evaluate")]
    params, project = load(cell / "params.yaml"), load(ROOT / "params.yaml")
    assert (params.shared.seed, params.prepare.split_seed) == (2, 2)
    assert (cell / params.prepare.path).resolve() == ROOT / "data/builtin/described-shapes.safetensors"
    assert params.prepare.split == project.prepare.split
    varied(studies / "text", split_by_seed=False)
    study.compose(studies / "text", "shapes", cell, 2)
    params = load(cell / "params.yaml")
    assert (params.shared.seed, params.prepare.split_seed) == (2, project.prepare.split_seed)


def test_a_stage_of_a_cell_that_fails_ends_it(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(study, "run", lambda stage, _cell: ran.append(stage) or (65 if stage == "pretrain" else 0))
    varied(studies / "text")
    assert study.main(["text", "shapes", "2"]) == 65
    assert ran == ["prepare", "pretrain"]


def test_what_a_study_that_splits_by_seed_cannot_do_is_said(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = varied(studies / "text") / "params.yaml"
    assert study.main(["text", "shapes"]) == os.EX_USAGE
    assert capsys.readouterr().err == f"{path}: split_by_seed: each cell of shapes prepares its images; say its seed\n"
    params = YAML().load(path)
    params["changes"]["shapes"]["prepare"]["split_seed"] = 7
    YAML().dump(params, path)
    assert study.main(["text", "shapes", "0"]) == os.EX_USAGE
    expected = "changes.shapes.prepare.split_seed: the study sets it by its seeds and paths; remove it\n"
    assert capsys.readouterr().err.endswith(expected)


def test_what_each_cell_has_prepared_is_taken_over_seed_by_seed(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    varied(studies / "text")
    varied(studies / "more", "other", split_by_seed=False, paths={}, backbones={"other": "text/shapes"}, changes={"all": {}})
    ran: list[str] = []
    monkeypatch.setattr(study, "run", lambda stage, _cell: ran.append(stage))
    monkeypatch.setattr(study, "keep_results", lambda *_: None)
    for seed in (1, 2):
        for name, params in (("prepared", {"split_seed": seed}), ("backbone", {})):
            made = studies / f"text/cells/shapes/{seed}/data" / name
            made.mkdir(parents=True)
            (made / "made").write_text(f"{name} {seed}")
            seal(made, about={"params": params})
    assert study.main(["more", "other", "1"]) == 0
    assert ran == ["collect", "metatrain", "evaluate"]
    cell = studies / "more/cells/other/1"
    assert [(cell / "data" / name / "made").read_text() for name in ("prepared", "backbone")] == ["prepared 1", "backbone 1"]
    assert load(cell / "params.yaml").prepare.split_seed == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_of_all_cells_of_a_study_are_right(name: str, tmp_path: Path) -> None:
    folder = ROOT / "studies" / name
    changed = study.varied_of(folder)
    for dataset in changed["datasets"]:
        for seed in study.seeds_of(changed, dataset):
            study.compose(folder, dataset, tmp_path / dataset / str(seed), seed)
            params = load(tmp_path / dataset / str(seed) / "params.yaml")
            assert params.shared.seed == seed
            assert (params.prepare.split_seed == seed) or not changed.get("split_by_seed")


@pytest.mark.parametrize("rows", ["", "test,seen\n"])
def test_a_cell_keeps_its_answers_to_sentences_and_their_seconds(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "adaptation_seconds", lambda _cell: {"ncm": 0.1})
    monkeypatch.setattr(study, "described_seconds", lambda _cell: {"hyperldm-g1": 2.0} if rows else {})
    found = tmp_path / "data/results"
    found.mkdir(parents=True)
    for name, text in {"metrics.json": "{}", "episodes.csv": "", "lineage.json": "{}"}.items():
        (found / name).write_text(text)
    (found / "described.csv").write_text(f"split,text\n{rows}")
    study.keep_results(tmp_path, tmp_path / "kept")
    assert (tmp_path / "kept/described.csv").is_file() == bool(rows)
    seconds = json.loads((tmp_path / "kept/seconds.json").read_bytes())
    assert seconds == {"ncm": 0.1} | ({"described": {"hyperldm-g1": 2.0}} if rows else {})


# Tables


def made_up(folder: Path, **more: Any) -> Path:  # noqa: ANN401
    """Three seeds, each of tasks of its own, in another order a classifier."""
    text = varied(folder, **more)
    for seed in (0, 1, 2):
        random, results = np.random.default_rng(seed), study.results_folder(text, "shapes", seed)
        tasks = [(f"{kind} {number} of {seed}", kind) for kind, count in KINDS.items() for number in range(count + seed)]
        rows = [
            (split, words, task, kind, name, int(random.binomial(100, at / 100)), 100, random.uniform(0.2, 0.9))
            for split in ("val", "test")
            for words in ("seen", "unseen")
            for name, at in METHODS.items()
            for task, kind in random.permutation(tasks)
        ]
        results.mkdir(parents=True)
        columns = ["split", "text", "task", "kind", "classifier", "correct", "queries", "nll"]
        pd.DataFrame(rows, columns=columns).to_csv(results / "described.csv", index=False)
        seconds = {"ncm": 9.0, "described": {name: 1 + seed for name in METHODS if name != "uncond"}}
        (results / "seconds.json").write_text(json.dumps(seconds))
        (results / "metrics.json").write_text(json.dumps({"spread_of_latents": {"hyperldm-g1": 0.9 + seed / 10}}))
    return text


def expected(text: Path, kinds: list[str], words: str, method: str, rival: str = "") -> tuple[float, float, int, int]:
    """By other means: the mean, its half interval, the number of tasks, and for how many seeds it is above zero."""
    means, count, above = [], 0, 0
    for seed in (0, 1, 2):
        answers = pd.read_csv(study.results_folder(text, "shapes", seed) / "described.csv")
        answers = answers[(answers.split == "test") & (answers.text == words) & answers.kind.isin(kinds)]
        right = answers.set_index(["task", "classifier"]).eval("100 * correct / queries").unstack()
        values = right[method] - (right[rival] if rival else 0)
        means.append(values.mean())
        count += len(values)
        above += values.mean() > 1.96 * stats.sem(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(means), scale=stats.sem(means))
    return float(np.mean(means)), float((high - low) / 2), count, above


def test_rows_are_of_kinds_words_and_methods(studies: Path) -> None:
    text = made_up(studies / "text")
    rows = table.dataset_rows(text, "shapes", study.varied_of(text))
    first = pd.read_csv(study.results_folder(text, "shapes", 0) / "described.csv").query("split == 'test'")["kind"].unique()
    groups = {"plain": ["two", "not"], "ambiguous": ["some", "either"]} | {kind: [kind] for kind in first}
    assert [(row["kind"], row["text"], row["method"]) for row in rows] == [
        (kind, words, name) for kind in groups for words in ("seen", "unseen") for name in METHODS
    ]
    shots = {"hyperldm-best": 2, "adapt-10": 10, "text-adapt-2": 2, "many-shot": 256}
    for row in rows:
        asked = text, groups[row["kind"]], row["text"], row["method"]
        mean, half, count, _ = expected(*asked)
        assert (row["accuracy"], row["ci95"]) == pytest.approx((mean, half), abs=2e-3)
        assert (row["dataset"], row["way"], row["shot"], row["seeds"], row["tasks"]) == (
            "shapes",
            2,
            shots.get(row["method"], 0),
            3,
            count,
        )
        assert {key for key in row if key.startswith("vs_") and not key.endswith("_ci95")} == {
            f"vs_{rival}" for rival in ("mlp", "adapt-10") if rival != row["method"]
        }
        if row["method"] != "mlp":
            mean, half, _, above = expected(*asked, "mlp")
            assert row["seeds_above_mlp"] == above
            assert (row["vs_mlp"], row["vs_mlp_ci95"]) == pytest.approx((mean, half), abs=2e-3)
        assert row.get("seconds") == (None if row["method"] == "uncond" else 2)
        assert row.get("spread") == ([0.9, 1.0, 1.1] if row["method"] == "hyperldm-g1" else None)
    means = []
    for seed in (0, 1, 2):
        answers = pd.read_csv(study.results_folder(text, "shapes", seed) / "described.csv")
        means.append(answers.query("split == 'test' and text == 'unseen' and kind == 'not' and classifier == 'mlp'").nll.mean())
    (found,) = (row["nll"] for row in rows if (row["kind"], row["text"], row["method"]) == ("not", "unseen", "mlp"))
    assert found == pytest.approx(np.mean(means), abs=1e-4)


def test_latents_that_published_models_draw_are_spread_like_those_of_training() -> None:
    """The published sampler explodes."""
    rows = json.loads((ROOT / "studies/from-text/table.json").read_bytes())
    spread = {row["method"]: row["spread"] for row in rows if "spread" in row}
    assert {*spread} == {"hyperldm-g1", "hyperldm-g1.5", "hyperldm-g3"}
    assert all(len(of_seeds) == 5 and min(of_seeds) > 0.8 and max(of_seeds) < 1.2 for of_seeds in spread.values())


def test_a_seed_that_has_not_two_tasks_of_a_kind_is_not_among_its_seeds(studies: Path) -> None:
    text = made_up(studies / "text")
    for seed, left in ((0, 0), (1, 1)):
        path = study.results_folder(text, "shapes", seed) / "described.csv"
        answers = pd.read_csv(path)
        number = answers["task"].str.extract(r"(\d+) of")[0].astype(int)
        answers[(answers["kind"] != "some") | (number < left)].to_csv(path, index=False)
    rows = table.dataset_rows(text, "shapes", study.varied_of(text))
    seeds = {row["kind"]: (row["seeds"], row["tasks"]) for row in rows}
    assert seeds == {"plain": (3, 27), "ambiguous": (3, 17), "two": (3, 12), "not": (3, 15), "some": (1, 4), "either": (3, 12)}


def test_the_table_is_written_with_its_ladder_and_shown_in_readme(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = made_up(studies / "text")
    assert table.main(["text"]) == 0
    rows = json.loads((text / "table.json").read_bytes())
    assert len(capsys.readouterr().out.splitlines()) == len(rows) == 6 * 2 * len(METHODS)
    with Image.open(text / "ladder.png") as picture:
        assert picture.width == 1080
    assert not (text / "gain.png").exists()
    lines = table.markdown(table.shown_rows(text)).splitlines()
    assert lines[0] == "| sentences | classifier | images | accuracy | in unseen words | to mlp | nll | s / 1000 tasks |"
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        [f"| {kind}", name, "0"] for kind in ("plain", "ambiguous") for name in ("uncond", "mlp")
    ]
    by = {(row["kind"], row["text"], row["method"]): row for row in rows}
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    for cell, words in ((cells[3], "seen"), (cells[4], "unseen")):
        row = by["plain", words, "uncond"]
        assert cell == f"{row['accuracy']:.2f} ± {row['ci95']:.2f}"
    assert cells[-1] == ""  # of which no seconds are told


def test_the_ladder_goes_from_the_worst_to_the_best_on_plain_sentences(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    text, seen = made_up(studies / "text"), []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: seen.append(self))
    rows = table.dataset_rows(text, "shapes", study.varied_of(text))
    figures.draw_ladder(text / "ladder.png", rows, ["many-shot", "mlp", "uncond"])
    plain, ambiguous = seen[0].axes
    assert [label.get_text() for label in plain.get_yticklabels()] == ["uncond", "mlp", "many-shot"]
    for axes, kind in ((plain, "plain"), (ambiguous, "ambiguous")):
        drawn = {y: x for part in axes.containers for x, y in zip(*part.lines[0].get_data(), strict=True)}
        told = {row["method"]: row["accuracy"] for row in rows if (row["kind"], row["text"]) == (kind, "seen")}
        assert drawn == {0: told["uncond"], 1: told["mlp"], 2: told["many-shot"]}


def drop_a_row(answers: pd.DataFrame) -> pd.DataFrame:
    return answers.drop(answers.index[answers["split"] == "test"][5])


def double_a_row(answers: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([answers, answers[answers["split"] == "test"].head(1)])


def rename_one(answers: pd.DataFrame) -> pd.DataFrame:
    return answers.replace({"classifier": {"mlp": "other"}})


def drop_test(answers: pd.DataFrame) -> pd.DataFrame:
    return answers[answers["split"] == "val"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_a_row, "2/described.csv: not one row for every classifier, text and task; make the cell again"),
        (double_a_row, "2/described.csv: not one row for every classifier, text and task; make the cell again"),
        (rename_one, r"2/described.csv: other classifiers than .*0/described.csv, such as mlp; make the cells again"),
        (drop_test, "2/described.csv: nothing of the split test; make the cell again"),
    ],
)
def test_answers_that_cannot_be_paired_are_said(
    studies: Path, spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = made_up(studies / "text")
    path = study.results_folder(text, "shapes", 2) / "described.csv"
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    assert_said(capsys, message)


@pytest.mark.parametrize("name", ["described.csv", "metrics.json", "seconds.json"])
def test_a_missing_file_of_a_cell_is_said(studies: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = made_up(studies / "text")
    (study.results_folder(text, "shapes", 1) / name).unlink()
    assert_said(capsys, f"shapes/1/{name}: missing; make the cell, or dvc pull the study")
    assert not (text / "table.json").exists()


def test_a_table_of_what_there_is_not_is_said(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up(studies / "text", table_of="words")
    assert_said(capsys, "params.yaml: table_of: expected episodes or sentences, got words")


def assert_said(capsys: pytest.CaptureFixture[str], message: str) -> None:
    assert table.main(["text"]) == os.EX_DATAERR
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert pd.Series([said]).str.contains(message).all()


# Intervals


@pytest.mark.parametrize("training", [0.0, 2.0])
def test_an_interval_over_seeds_that_split_covers_the_truth_as_often_as_it_says(training: float) -> None:
    """Five seeds with 30 to 50 tasks of their own, which are of deviation 10; the seeds' training differs by ``training``."""
    random, covered, twice, within = np.random.default_rng(3), 0, 0, 0
    for _ in range(4000):
        parts = [random.normal(80 + training * random.normal(), 10, random.integers(30, 51)) for _ in range(5)]
        found = interval("accuracy", "ci95", parts, same=False)
        apart = abs(found["accuracy"] - 80)
        tasks = 1.96 * sum(part.var(ddof=1) / len(part) for part in parts) ** 0.5 / 5
        covered += apart <= found["ci95"]
        twice += apart <= np.hypot(found["ci95"], tasks)
        within += apart <= tasks
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)
    assert twice / 4000 > 0.965  # what counting the tasks' variance twice would give
    assert within / 4000 < (0.96 if training == 0 else 0.8)  # and what the tasks alone


def test_an_interval_of_one_seed_is_over_its_tasks() -> None:
    values = np.random.default_rng(0).normal(70, 9, 60)
    for same in (True, False):
        found = interval("accuracy", "ci95", [values], same=same)
        assert found == {"accuracy": round(values.mean(), 3), "ci95": round(1.96 * stats.sem(values), 3)}


@pytest.mark.parametrize("seeds", range(2, 11))
def test_students_factor_is_that_of_as_many_seeds(seeds: int) -> None:
    means = np.random.default_rng(seeds).normal(size=seeds)
    assert half_over_seeds(means) == pytest.approx(stats.t.ppf(0.975, seeds - 1) * stats.sem(means), rel=1e-3)


def test_names_of_data_sets_do_not_overlap_and_the_legend_covers_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the numbers of the study whose names are the longest."""
    from matplotlib.figure import Figure

    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: seen.append(self))
    rows = json.loads((ROOT / "studies/mc-di/table.json").read_bytes())
    figures.draw_gains(tmp_path / "gain.png", rows, study.varied_of(ROOT / "studies/mc-di")["drawn"])
    (figure,) = seen
    figure.draw_without_rendering()
    (legend,) = figure.legends
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert all(legend.get_window_extent().y1 < low for low in (axes.get_window_extent().y0, *(box.y0 for box in boxes)))
