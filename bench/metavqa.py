"""Meta-VQA from its published files and features of CLIP: adapters' weights from a question, against CLIP as it is.

    python -m bench.metavqa FOLDER [--steps N] [--device cuda] [--out FILE]

docs/metavqa.md says what the folder holds, what is in the table, and how long it takes. All else is by params.yaml: its sections
hyperldm (sizes and training), evaluate (what validation may choose from) and shared.
"""

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metadiff.adapter import Adapter
from metadiff.artifact import file_sha256, write_json
from metadiff.errors import DataError, NumericError, ParamsError
from metadiff.metavqa import IMAGES, PROMPTS, TEST, TEXTS, TRAIN, read_metavqa
from metadiff.params import Params, load
from metadiff.textbuild import text_pace
from metadiff.vqaladder import MODELS, Ladder
from metadiff.vqatasks import VQASplits
from stages.fingerprint import prepare_torch
from stages.progress import progress

FILES = (TRAIN, TEST, PROMPTS, IMAGES, TEXTS)
HIDDEN = 256  # units of the adapter
RESULT = Path(__file__).parent / "results" / "metavqa.json"
CODES = {NumericError: os.EX_SOFTWARE, ParamsError: os.EX_USAGE}


def asked_params(steps: int | None, device: str | None) -> Params:
    """Those of params.yaml, but for what the command line says."""
    params = load()
    if steps is not None and steps < 1:
        raise ParamsError(f"--steps: must be at least 1, got {steps}")
    hyperldm = params.hyperldm.model_copy(
        update={} if steps is None else {"steps": steps, "encoder_steps": min(steps, params.hyperldm.encoder_steps)}
    )
    shared = params.shared.model_copy(update={} if device is None else {"device": device})
    return params.model_copy(update={"hyperldm": hyperldm, "shared": shared})


def refuse_absent(folder: Path, said: str = "") -> None:
    if not folder.is_dir():
        raise DataError(f"{said}{folder}: no such folder")


def answered(ladder: Ladder) -> dict[str, Any]:
    """Every model taught, then every row of the table."""
    methods: dict[str, Any] = {}
    facts: dict[str, Any] = {"best_step": {}, "seconds": {}, "rows": {}}
    steps = sum(text_pace(ladder.section, model).steps for model in MODELS)
    with progress("metavqa: training", total=steps, done=0, unit="steps") as advance:
        for model in MODELS:
            start = time.perf_counter()
            methods[model], facts["best_step"][model] = ladder.taught(model, methods.get("hnet"), advance)
            facts["seconds"][model] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    with progress("metavqa: answers", total=len([*ladder.candidates(methods)]), done=0, unit="rows") as advance:
        for name, row in ladder.rows(methods):
            facts["rows"][name] = row
            advance(1)
    facts["seconds"]["answers"] = round(time.perf_counter() - start, 1)
    return facts


def run(folder: Path, params: Params) -> dict[str, Any]:
    made_with = prepare_torch(params.shared)
    data = read_metavqa(folder)
    splits = VQASplits.of(data, seed=params.shared.seed, device=params.shared.device)
    learner = Adapter("adapter", dim=data.images_ID.shape[1], hidden=HIDDEN)
    ladder = Ladder(params.hyperldm, params.evaluate, splits, learner, params.shared.seed)
    about = {
        "seed": params.shared.seed,
        "tasks": {split: len(questions) for split, questions in splits.questions.items()},
        "files": {name: file_sha256(folder / name) for name in FILES},
        "learner": asdict(learner),
        "params": {name: getattr(params, name).model_dump(mode="json") for name in ("hyperldm", "evaluate")},
        "made_with": made_with,
    }
    return about | answered(ladder)


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':14}{'mean over tasks':>16}{'all images':>12}{'validation':>12}  chosen there"]
    for name, row in rows.items():
        mean = f"{row['accuracy']:.2f} ± {row['ci95']:.2f}"
        lines.append(f"{name:14}{mean:>16}{row['pooled']:12.2f}{row['val']:12.2f}  {row['chosen']}".rstrip())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.metavqa", description="Weights from the questions of Meta-VQA.")
    parser.add_argument("folder", type=Path, help="with the five files of docs/metavqa.md")
    parser.add_argument(
        "--steps",
        type=int,
        help="of training, of each model; at most hyperldm.encoder_steps of hyperclip; by default hyperldm.steps",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default shared.device")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        params = asked_params(chosen.steps, chosen.device)
        refuse_absent(chosen.folder)
        refuse_absent(chosen.out.parent, "--out: ")
        facts = run(chosen.folder, params)
    except (DataError, NumericError, ParamsError) as error:
        print(f"metavqa: {error}", file=sys.stderr)
        return CODES.get(type(error), os.EX_DATAERR)
    print(table(facts["rows"]))
    write_json(chosen.out, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
