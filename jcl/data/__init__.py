"""Streams of stages: readers of data, scenarios that order it, and draws of batches from it."""

from jcl.data import snapshots
from jcl.data.arrays import Scenario, from_arrays, from_scenario, reorder, scenario
from jcl.data.byte_stream import from_bytes, windows
from jcl.data.chats import chat, pair
from jcl.data.class_orders import split_by_seed
from jcl.data.datasets import read_dataset, read_tfds
from jcl.data.documents import Documents, read_jsonl, read_text
from jcl.data.infilling import fill_in_the_middle
from jcl.data.instructions import (
    as_instructions,
    questions_as_instructions,
    read_citb,
    read_superni,
    read_trace,
)
from jcl.data.labelled import encode_labelled, read_csv, read_images
from jcl.data.masking import masked, phrases, spans
from jcl.data.packed_stream import from_text
from jcl.data.packing import Rows, gather, pack_rows
from jcl.data.preferences import from_pairs, read_hh, read_shp, right_over_wrong
from jcl.data.scenarios import (
    blurry,
    by_domain,
    gradual,
    hold_out,
    joint,
    online,
    permuted,
    recurring,
    rotated,
    rotation,
    split,
)
from jcl.data.sources import digits, fashion_mnist, mnist, mnist5k, python_domains
from jcl.data.stages import with_replay
from jcl.data.stream import Stream, from_leaves, members, pack, stack
from jcl.data.tokens import Tokens, tokenise
from jcl.data.validation import hold_rows_out, validation_split

__all__ = [
    "Documents",
    "Rows",
    "Scenario",
    "Stream",
    "Tokens",
    "as_instructions",
    "blurry",
    "by_domain",
    "chat",
    "digits",
    "encode_labelled",
    "fashion_mnist",
    "fill_in_the_middle",
    "from_arrays",
    "from_bytes",
    "from_leaves",
    "from_pairs",
    "from_scenario",
    "from_text",
    "gather",
    "gradual",
    "hold_out",
    "hold_rows_out",
    "joint",
    "masked",
    "members",
    "mnist",
    "mnist5k",
    "online",
    "pack",
    "pack_rows",
    "pair",
    "permuted",
    "phrases",
    "python_domains",
    "questions_as_instructions",
    "read_citb",
    "read_csv",
    "read_dataset",
    "read_hh",
    "read_images",
    "read_jsonl",
    "read_shp",
    "read_superni",
    "read_text",
    "read_tfds",
    "read_trace",
    "recurring",
    "reorder",
    "right_over_wrong",
    "rotated",
    "rotation",
    "scenario",
    "snapshots",
    "spans",
    "split",
    "split_by_seed",
    "stack",
    "tokenise",
    "validation_split",
    "windows",
    "with_replay",
]
