"""Writers of the on-disk formats in which few-shot data sets are published, the oracle of those who read them.

Each writes a small data set as the format is documented, without any code of the project, so that a reader that returns the same
pixels under the same class and split has read the format and not its own idea of it. Rows of different classes alternate, as
nothing promises that a class lies in one piece.
"""

from tests.formats.arrays import DUMPS, Dump, cache, cifar100_python, cifar_pickles, gidaris, metaoptnet_npz, ren
from tests.formats.files import (
    bertinetto,
    class_folders,
    csv_images,
    csv_text,
    cub_folders,
    cub_tgz,
    omniglot_folders,
    omniglot_zips,
)
from tests.formats.hostile_archives import bomb_images, hostile_tars, hostile_zips
from tests.formats.hostile_pickles import hostile_arrays, hostile_pickles, spiked
from tests.formats.malformed import MALFORMED, UNSEEN, Malformed
from tests.formats.python2 import Long, Unicode, python2_pickle
from tests.formats.sample import Sample, encoded, global_labels, make_sample, rows, stacked, write

__all__ = [
    "DUMPS",
    "MALFORMED",
    "UNSEEN",
    "Dump",
    "Long",
    "Malformed",
    "Sample",
    "Unicode",
    "bertinetto",
    "bomb_images",
    "cache",
    "cifar100_python",
    "cifar_pickles",
    "class_folders",
    "csv_images",
    "csv_text",
    "cub_folders",
    "cub_tgz",
    "encoded",
    "gidaris",
    "global_labels",
    "hostile_arrays",
    "hostile_pickles",
    "hostile_tars",
    "hostile_zips",
    "make_sample",
    "metaoptnet_npz",
    "omniglot_folders",
    "omniglot_zips",
    "python2_pickle",
    "ren",
    "rows",
    "spiked",
    "stacked",
    "write",
]
