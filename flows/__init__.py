from pathlib import Path

# Prefect's home (pyproject.toml) lies in it, and Prefect makes no parents.
(Path(__file__).resolve().parent.parent / "data/.work").mkdir(parents=True, exist_ok=True)
