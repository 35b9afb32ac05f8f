"""The science: tensors in, tensors out. Importing this package needs torch and numpy alone, and imports neither."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metadiff.classifier import Classifier

__all__ = ["Classifier"]


def __getattr__(name: str) -> object:
    """`metadiff.Classifier`, which brings scikit-learn, is imported when somebody asks for it."""
    if name != "Classifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from metadiff.classifier import Classifier

    return Classifier
