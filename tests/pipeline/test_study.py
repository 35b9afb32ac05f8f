"""Studies: cells with parameters of their own, and the table that is made of them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dvc.repo import Repo
from matplotlib.figure import Figure
from PIL import Image
from ruamel.yaml import YAML
from scipy import stats

from metadiff import cli
from metadiff import studies as studies_of
from metadiff.artifact import seal, verify
from metadiff.errors import ParamsError
from metadiff.params import load
from metadiff.tracepage import parents
from stages import study, table
from stages.figures import draw_gains, of_every_shot
from stages.imports import ROOT
from stages.intervals import half_over_seeds
from tests.repository import Repository

PUBLISHED = sorted(path.parent for path in (ROOT / "studies").glob("*/table.json"))
OUTS = {
    "prepare": "data/prepared",
    "pretrain": "data/backbone",
    "collect": "data/trajectories",
    "metatrain": "data/generator",
    "evaluate": "data/results",
}
COLUMNS = {"dataset", "method", "way", "shot", "seeds", "accuracy", "ci95", "seconds"}


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    monkeypatch.setattr(table, "STUDIES", tmp_path)
    return tmp_path


def varied(folder: Path, path: str = "data/builtin/kanjivg.json", **changes: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    paths = dict.fromkeys(changes, path)
    text = {"datasets": [*changes], "seeds": [0, 1], "paths": paths, "changes": {"all": {"shared": {"threads": 1}}, **changes}}
    text |= {"rivals": ["ncm", "gaussian"], "drawn": ["metadiff"], "names": {}}
    YAML().dump(text, folder / "params.yaml")
    return folder


def test_a_cell_has_the_projects_parameters_changed_for_all_then_for_its_data_set(studies: Path) -> None:
    few = varied(studies / "few", one={}, two={"prepare": {"image_size": 40}, "shared": {"threads": 3}})
    study.compose(few, "two", study.cell_folder(few, "two", 7), 7)
    study.compose(few, "one", study.cell_folder(few, "one", 0))
    project, one, two = (
        load(path) for path in (ROOT / "params.yaml", *(studies / f"few/cells/{c}/params.yaml" for c in ("one/0", "two/7")))
    )
    assert (one.shared.threads, two.shared.threads, two.shared.seed, two.prepare.image_size) == (1, 3, 7, 40)
    assert two.metatrain == one.metatrain == project.metatrain
    assert (studies / "few/cells/two/7" / two.prepare.path).resolve() == (ROOT / project.prepare.path).resolve()


def test_a_data_set_or_parameter_that_there_is_not_is_said(studies: Path) -> None:
    few = varied(studies / "few", one={"pretrain": {"epocs": 3}}, two={"shared": {"seed": 3}})
    with pytest.raises(ParamsError, match="datasets: no data set tow; there are one, two"):
        study.compose(few, "tow", studies / "cell")
    with pytest.raises(ParamsError, match=r"pretrain\.epocs: unknown key; did you mean pretrain\.epochs"):
        study.compose(few, "one", studies / "cell")
    with pytest.raises(ParamsError, match=r"changes\.two\.shared\.seed: the study sets it by its seeds and paths; remove it"):
        study.compose(few, "two", studies / "cell")


def borrowing(studies: Path, **changes: dict[str, Any]) -> Path:
    """A study whose data set `two` has the backbones of data set `one` of `few`."""
    varied(studies / "few", one={"prepare": {"image_size": 40}, "pretrain": {"epochs": 3}, "evaluate": {"episodes": 7}})
    more = varied(studies / "more", two=changes)
    params = YAML().load(more / "params.yaml") | {"paths": {}, "backbones": {"two": "few/one"}}
    YAML().dump(params, more / "params.yaml")
    return more


def test_a_data_set_may_have_the_backbones_of_another_study(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the parameters that made them, and its own after that; only the stages after them run."""
    borrowing(studies, evaluate={"query": 9})
    ran: list[str] = []
    for cell, name in ((studies / "few/cells/one", "prepared"), (studies / "few/cells/one/1", "backbone")):
        (cell / "data" / name).mkdir(parents=True)
        (cell / "data" / name / "made").write_text(name)
        seal(cell / "data" / name, about={"params": {}})
    monkeypatch.setattr(study, "run", lambda stage, _cell: ran.append(stage))
    monkeypatch.setattr(study, "keep_results", lambda *_: None)
    assert study.main(["more", "two", "1"]) == 0
    assert ran == ["collect", "metatrain", "evaluate"]
    cell = studies / "more/cells/two/1"
    found, project = load(cell / "params.yaml"), load(ROOT / "params.yaml")
    assert (found.prepare.image_size, found.pretrain.epochs, found.evaluate.query, found.shared.seed) == (40, 3, 9, 1)
    assert found.evaluate.episodes == project.evaluate.episodes
    assert [(cell / "data" / name / "made").read_text() for name in ("prepared", "backbone")] == ["prepared", "backbone"]


def test_backbones_of_another_study_are_not_made_here(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    borrowing(studies, pretrain={"epochs": 9})
    for arguments, message in (
        (["more", "two"], "backbones: the images of two are prepared by few/one"),
        (["more", "two", "1"], "changes.two.pretrain: the backbones are those of few/one; remove it"),
    ):
        assert study.main(arguments) == os.EX_USAGE
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("source", ["few/three", "fewer/one", "few", "more/two"])
def test_backbones_of_a_study_or_data_set_that_there_is_not_are_said(
    studies: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = borrowing(studies)
    YAML().dump(YAML().load(more / "params.yaml") | {"backbones": {"two": source}}, more / "params.yaml")
    assert study.main(["more", "two", "1"]) == os.EX_USAGE
    expected = f"backbones.two: expected a study and one of its data sets, as few-shot/omniglot, got {source}\n"
    assert capsys.readouterr().err.endswith(expected)


def test_backbones_that_other_parameters_made_are_refused(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    borrowing(studies)
    for cell, name in ((studies / "few/cells/one", "prepared"), (studies / "few/cells/one/1", "backbone")):
        (cell / "data" / name).mkdir(parents=True)
        made = {"prepared": {"image_size": 40, "path": "elsewhere"}, "backbone": {"epochs": 4}}[name]
        seal(cell / "data" / name, about={"params": made})
    assert study.main(["more", "two", "1"]) == os.EX_USAGE
    expected = "data/backbone: was made with epochs 4, the parameters say 3: make that study again\n"
    assert capsys.readouterr().err.endswith(expected)


def test_what_all_data_sets_change_of_a_backbone_is_not_of_one_from_elsewhere(studies: Path) -> None:
    more = borrowing(studies)
    params = YAML().load(more / "params.yaml")
    params["changes"]["all"]["pretrain"] = {"epochs": 9}
    YAML().dump(params, more / "params.yaml")
    study.compose(more, "two", more / "cell")
    assert load(more / "cell/params.yaml").pretrain.epochs == 3


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "studies").glob("*/dvc.yaml")))
def test_the_graph_of_a_study_makes_the_cells_that_its_table_reads(name: str) -> None:
    varied = YAML(typ="safe").load(ROOT / "studies" / name / "params.yaml")
    wanted = {
        f"studies/{name}/results/{dataset}/{seed}" for dataset in varied["datasets"] for seed in study.seeds_of(varied, dataset)
    }
    made = {str(Path(out.fs_path).relative_to(ROOT)) for out in Repo(ROOT).index.outs}
    assert {path for path in made if path.startswith(f"studies/{name}/results/")} == wanted


def test_backbones_that_are_not_here_are_asked_for(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    borrowing(studies)
    assert study.main(["more", "two", "1"]) == os.EX_USAGE
    assert capsys.readouterr().err.endswith(
        "few/cells/one/data/prepared: not here; dvc pull it, or make the study that it is of\n"
    )


def test_a_data_set_may_have_fewer_seeds() -> None:
    params = {"seeds": [0, 1, 2], "fewer": {"two": [0]}}
    assert [study.seeds_of(params, name) for name in ("one", "two")] == [[0, 1, 2], [0]]


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_an_interval_is_over_episodes_and_over_seeds(seeds: int) -> None:
    values = np.random.default_rng(0).normal(70, 9, (seeds, 400)) + 3 * np.arange(seeds)[:, None]
    found = table.interval("accuracy", "ci95", values, same=True)
    assert found["accuracy"] == pytest.approx(values.mean(), abs=1e-3)
    episodes = 1.96 * stats.sem(values.mean(0))
    over_seeds = stats.t.ppf(0.975, seeds - 1) * stats.sem(values.mean(1)) if seeds > 1 else 0
    assert found["ci95"] == pytest.approx(np.hypot(episodes, over_seeds), abs=2e-3)


def test_rows_pair_the_episodes_of_a_seed(studies: Path) -> None:
    few = varied(studies / "few", one={})
    correct = np.random.default_rng(1).integers(30, 70, (2, 2, 50))  # seed, classifier, episode
    for seed in (0, 1):
        results = study.results_folder(few, "one", seed)
        results.mkdir(parents=True)
        (results / "seconds.json").write_text(json.dumps({"ncm": 0.1, "metadiff": 0.3 + 0.2 * seed}))
        (results / "metrics.json").write_text(json.dumps({"way": 5, "episodes": 50, "chosen": {"ncm": {}, "metadiff": {}}}))
        (results / "memory.json").write_text(json.dumps({"metadiff": {"reconstruction": 0.4 + seed, "verdict": "generalises"}}))
        parts = [
            pd.DataFrame(
                {"split": split, "shot": 1, "classifier": name, "episode": range(50), "correct": right, "queries": 75, "nll": 0.5}
            )
            for split, name, right in (
                ("test", "ncm", correct[seed, 0]),
                ("test", "metadiff", correct[seed, 1]),
                ("val", "ncm", 0),
            )
        ]
        pd.concat(parts).sample(frac=1, random_state=seed).to_csv(results / "episodes.csv", index=False)
    changed = study.varied_of(few)
    ncm, metadiff = sorted(table.dataset_rows(few, "one", changed), key=lambda row: ["ncm", "metadiff"].index(row["method"]))
    apart = 100 * (correct[:, 1] - correct[:, 0]) / 75
    assert (ncm["method"], metadiff["method"], metadiff["seeds"], metadiff["seconds"]) == ("ncm", "metadiff", 2, 0.4)
    assert metadiff["vs_ncm"] == pytest.approx(apart.mean(), abs=1e-3)
    assert (metadiff["reconstruction"], ncm.get("reconstruction")) == ([0.4, 1.4], None)
    above = sum(row.mean() > 1.96 * row.std(ddof=1) / 50**0.5 for row in apart)
    assert metadiff["seeds_above_ncm"] == above
    assert "vs_ncm" not in ncm
    renamed = table.dataset_rows(few, "one", changed | {"names": {"metadiff": "ours"}})
    assert metadiff | {"method": "ours"} in renamed
    table.write_table(few)
    assert json.loads((few / "table.json").read_bytes()) in ([ncm, metadiff], [metadiff, ncm])
    with Image.open(few / "gain.png") as picture:
        assert picture.width > picture.height
    assert not (few / "draws.png").exists()
    told = {"reconstruction", "nll"}
    for shown, said in ((["ncm", "metadiff"], {"nll"}), (["metadiff"], told)):  # not where others would be without it
        YAML().dump(changed | {"shown": shown}, few / "params.yaml")
        heading = table.markdown(table.shown_rows(few)).splitlines()[0]
        assert told & {cell.strip() for cell in heading.split("|")} == said


def test_a_table_goes_to_the_page_that_its_study_says(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "ROOT", studies)
    monkeypatch.setattr(table, "shown_rows", lambda of: [{"kind": "", "method": of.name, "shot": 1}])
    monkeypatch.setattr(table, "markdown", lambda rows: f"the table of {rows[0]['method']}")
    for name, page in (("first", "README.md"), ("second", "docs/second.md")):
        few = varied(studies / name, one={})
        (few / "table.json").write_text("[]")
        if page != "README.md":
            YAML().dump(study.varied_of(few) | {"page": page}, few / "params.yaml")
        (studies / page).parent.mkdir(exist_ok=True)
        (studies / page).write_text("above\n" + "of old".join(table.marks(name)) + "\nbelow\n")
    assert table.main(["--pages"]) == 0
    for name, page in (("first", "README.md"), ("second", "docs/second.md")):
        text = (studies / page).read_text()
        assert f"-->\nthe table of {name}\n<!-- end" in text
        assert (text.startswith("above"), text.endswith("below\n"), "of old" in text) == (True, True, False)
    (studies / "docs/second.md").write_text("no marks")
    assert table.main(["--pages"]) == os.EX_DATAERR
    assert "second.md: no place for the table of second; write the lines" in capsys.readouterr().err


def kept_by(cell: Path, **files: str) -> set[str]:
    """What a cell keeps of such results."""
    (cell / "data/results").mkdir(parents=True)
    for name, text in {"metrics.json": "{}", "episodes.csv": "", "lineage.json": "{}", **files}.items():
        (cell / "data/results" / name).write_text(text)
    study.keep_results(cell, cell / "kept")
    for path in (cell / "kept").iterdir():
        assert path.name == "seconds.json" or path.read_bytes() == (cell / "data/results" / path.name).read_bytes()
    return {path.name for path in (cell / "kept").iterdir()}


def test_a_cell_keeps_its_curves_where_there_are_generators_of_whole_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "adaptation_seconds", lambda _cell: {"ncm": 0.1})
    always = {"metrics.json", "episodes.csv", "lineage.json", "seconds.json"}
    assert kept_by(tmp_path / "rows", **{"draws.csv": "draws\n1\n", "chain.csv": "time\n"}) == always
    drawn = {"draws.csv": "draws,local 1-shot\n1,50\n", "chain.csv": "time,local 1-shot\n0,20\n", "memory.json": "{}"}
    assert kept_by(tmp_path / "weights", **drawn) == always | {*drawn}


def drawn_study(folder: Path, **changes: object) -> Path:
    """Two seeds whose curves are known."""
    few = varied(folder, one={})
    params = YAML().load(few / "params.yaml") | {"drawn": ["local", "regression", "ncm"], "draws_of": "one", **changes}
    YAML().dump(params | {"names": {"weights-regression": "regression"}}, few / "params.yaml")
    for seed in (0, 1):
        results = study.results_folder(few, "one", seed)
        results.mkdir(parents=True)
        values = {"draws": [1, 2, 16], "local 5-shot": [60.0, 70 + 4 * seed, 80], "local 5-shot nll": [2.0, 1, 0.5]}
        values |= {"naive 5-shot": [30.0] * 3, "naive 5-shot nll": [9.0] * 3}
        pd.DataFrame(values | {f"weights-regression 5-shot{what}": [2.0] * 3 for what in ("", " nll")}).to_csv(
            results / "draws.csv", index=False
        )
    return few


def test_curves_of_draws_are_over_seeds(studies: Path) -> None:
    few = drawn_study(studies / "few")
    curves = table.draws_curves(few, "one", seeds=[0, 1], names={"weights-regression": "regression"})
    assert [*curves] == ["local", "naive", "regression"]
    assert [*curves["local"]] == ["5-shot", "5-shot nll"]
    accuracy = curves["local"]["5-shot"]
    assert (accuracy.index.tolist(), accuracy.loc[2].tolist()) == ([1, 2, 16], [70, 74])
    half = half_over_seeds(accuracy.to_numpy().T)
    np.testing.assert_allclose(half, [0, stats.t.ppf(0.975, 1) * stats.sem([70, 74]), 0], rtol=1e-3)
    assert half_over_seeds(accuracy.to_numpy().T[:1]).tolist() == [0, 0, 0]


def test_the_figure_of_gains_is_of_data_sets_that_have_every_number_of_shots() -> None:
    asked = [("one", 1), ("one", 5), ("few", 1), ("two", 5), ("two", 1)]
    assert of_every_shot([{"dataset": dataset, "shot": shot} for dataset, shot in asked]) == ["one", "two"]


def test_the_figure_of_gains_shows_them_above_the_method_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: seen.append(self))
    row = {"dataset": "one", "shot": 1, "vs_ncm": -20.0, "vs_ncm_ci95": 1.0}
    rows = [row | {"method": "local", "vs_reptile": 2.5, "vs_reptile_ci95": 0.5}]
    draw_gains(tmp_path / "gain.png", rows, ["local"])
    draw_gains(tmp_path / "gain.png", rows, ["local"], against="reptile")
    found = [(axes.lines[0].get_ydata()[0], axes.get_ylabel()) for figure in seen for axes in figure.axes]
    assert found == [(-20.0, "points above nearest-class-mean"), (2.5, "points above reptile")]


def test_gains_on_what_nothing_is_compared_with_are_refused(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = drawn_study(studies / "few")
    YAML().dump(YAML().load(few / "params.yaml") | {"against": "nothing"}, few / "params.yaml")
    assert table.main(["few"]) == os.EX_DATAERR
    assert capsys.readouterr().err == f"{few / 'params.yaml'}: against: expected one of rivals, ncm, gaussian, got nothing\n"


def test_the_figure_of_draws_has_the_drawn_models_of_its_data_set(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, seen = drawn_study(studies / "few"), {}
    monkeypatch.setattr(table, "dataset_rows", lambda *_, **__: [])
    monkeypatch.setattr(table, "draw_gains", lambda *_, **__: None)
    draw_draws = table.draw_draws

    def remembered(path: Path, dataset: str, curves: dict[str, Any]) -> None:
        seen[dataset] = [*curves]
        draw_draws(path, dataset, curves)

    monkeypatch.setattr(table, "draw_draws", remembered)
    assert table.main(["few"]) == 0
    assert seen == {"one": ["local", "regression"]}
    with Image.open(few / "draws.png") as picture:
        assert picture.width == 900


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drawn": ["ncm"]}, "drawn: none of them is drawn several times; there are local, naive, regression"),
        ({"draws_of": "two"}, "results/two/0/draws.csv: missing; draws_of of"),
    ],
)
def test_a_figure_of_draws_that_cannot_be_is_said(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(table, "dataset_rows", lambda *_, **__: [])
    monkeypatch.setattr(table, "draw_gains", lambda *_, **__: None)
    drawn_study(studies / "few", **changes)
    assert table.main(["few"]) == os.EX_DATAERR
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_more_seeds_than_there_are_factors_for_are_refused(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = varied(studies / "few", one={})
    YAML().dump(YAML().load(few / "params.yaml") | {"seeds": [*range(11)]}, few / "params.yaml")
    assert table.main(["few"]) == os.EX_DATAERR
    assert "seeds: at most 10, got 11" in capsys.readouterr().err


CHILD = """
import pathlib, signal, time
log = pathlib.Path("log").open("a", buffering=1)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: print(int(number), file=log))
print("ready", file=log)
deadline = time.monotonic() + 20
while time.monotonic() < deadline and "15" not in pathlib.Path("log").read_text().split():
    time.sleep(0.05)
"""


def test_one_interrupt_reaches_a_stage_once_and_a_termination_is_passed_on(tmp_path: Path) -> None:
    """As a terminal sends them: Ctrl-C to the whole group, `kill` to one process."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").touch()
    (tmp_path / "stages/child.py").write_text(CHILD)
    code = "import sys; from pathlib import Path; from stages import study; study.ROOT = Path(sys.argv[1]); "
    code += "study.run('child', study.ROOT)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, start_new_session=True)
    log = tmp_path / "log"
    try:
        wait_for(lambda: log.is_file() and "ready" in log.read_text())
        os.killpg(parent.pid, signal.SIGINT)
        wait_for(lambda: "2" in log.read_text().split())
        os.kill(parent.pid, signal.SIGTERM)
        assert parent.wait(timeout=20) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert log.read_text().split() == ["ready", "2", "15"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_its_page_has_the_table_of_every_published_study() -> None:
    for folder in PUBLISHED:
        rows = json.loads((folder / "table.json").read_bytes())
        assert all(row.keys() >= COLUMNS and row.keys() & {"episodes", "tasks"} for row in rows)
        begin, end = table.marks(folder.name)
        assert begin + table.markdown(table.shown_rows(folder)) + end in table.page(folder).read_text(), "run: make tables"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_of_two_seeds_runs_through_dvc_and_again_only_what_changed(tiny: Repository) -> None:
    changes: dict[str, Any] = {"pictures": {}}
    varied(tiny.root / "studies/few-shot", "pictures", **changes)
    graph = (ROOT / "studies/few-shot/dvc.yaml").read_text()
    (tiny.root / "studies/few-shot/dvc.yaml").write_text(graph)
    (tiny.root / "studies/few-shot/.gitignore").write_text("/cells/\n/results/\n")
    tiny.run("dvc", "repro", "studies/few-shot/dvc.yaml")
    rows = json.loads((tiny.root / "studies/few-shot/table.json").read_text())
    assert {row["seeds"] for row in rows} == {2}
    cells = [tiny.root / f"studies/few-shot/cells/pictures/{seed}/data" for seed in (0, 1)]
    assert verify(cells[0] / "backbone") != verify(cells[1] / "backbone")
    assert os.stat(cells[0] / "prepared/images.h5").st_nlink > 1
    text = (tiny.root / "params.yaml").read_text()
    (tiny.root / "params.yaml").write_text(text.replace("draws: 4", "draws: 2"))
    said = tiny.run("dvc", "repro", "studies/few-shot/dvc.yaml").stderr
    assert said.count("metatrain: finished before") == 2
    assert "evaluate: finished before" not in said


@pytest.mark.parametrize("prepared", ["", "0/"])
def test_a_number_of_a_cell_is_traced_to_the_code_and_artifacts_that_made_it(
    copy: Repository, prepared: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images are of all seeds, or the cell's own copy of those of another study."""
    root, yaml = copy.root, YAML()
    results = root / "studies/few/results/one/0"
    results.mkdir(parents=True)
    for name in ("lineage.json", "metrics.json"):
        shutil.copy(root / "data/results" / name, results)
    made = {name: stage["outs"] for name, stage in yaml.load(root / "dvc.lock")["stages"].items()}
    outs = [{**made[stage][0], "path": f"studies/few/cells/one/0/{Path(stage_out)}"} for stage, stage_out in OUTS.items()]
    outs[0] |= {"path": f"studies/few/cells/one/{prepared}data/prepared"}
    stages = {"prepare@one": {"outs": outs[:1]}, "cell@one-0": {"outs": outs[1:]}}
    yaml.dump({"stages": stages}, root / "studies/few/dvc.lock")
    copy.run("git", "add", "-A")
    copy.run("git", "commit", "-qm", "study")
    chain = studies_of.read_cell(root, "few/one/0")
    assert (chain.strange, [*chain.stages]) == ((), [*OUTS])
    assert parents(chain, "evaluate") == ["metatrain", "collect", "pretrain", "prepare"]
    monkeypatch.chdir(root)
    assert cli.main(["trace", "--study", "few/one/0", "test.shot1.ncm.accuracy", "--page", "trace.html"]) == 0
    printed = capsys.readouterr().out
    assert "study few/one/0, commit" in printed
    assert f"test.shot1.ncm.accuracy = {chain.metrics['test']['shot1']['ncm']['accuracy']}" in printed
    for cell, message in (("few/one", "expected a study, a data set and a seed"), ("few/one/9", "not made, or not here")):
        assert cli.main(["trace", "--study", cell]) == os.EX_DATAERR
        assert message in capsys.readouterr().err
