"""What can go wrong through no fault of the code; the stages turn each into an exit code of its own."""


class ParamsError(ValueError):
    """params.yaml asks for something that cannot be: one line a problem."""


class DataError(ValueError):
    """The input data cannot be used as it is."""


class CorruptArtifactError(DataError):
    """A file is not what its manifest says it is."""


class NumericError(ArithmeticError):
    """A loss, gradient or weight stopped being a finite number."""
