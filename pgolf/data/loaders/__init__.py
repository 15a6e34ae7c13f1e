"""Training batches out of token shards: one module a loader, chosen by `train/loader`.

No loader depends on the run's seed: the published data order is the same for every seed, and an ablation must see the
same data. Each can be saved and resumed to the token, and is made as
`Loader(files, world_size, rank, shape, **what its YAML says)`.
"""

from pgolf.data.loaders.batch import Batch, BatchShape, Loader
from pgolf.data.loaders.coprime_stride import CoprimeStrideLoader
from pgolf.data.loaders.document_packing import DocumentPackingLoader
from pgolf.data.loaders.order import ShardOrder
from pgolf.data.loaders.prefetch import Prefetch
from pgolf.data.loaders.sequential import SequentialLoader
from pgolf.data.loaders.shuffled_sequence import SharedShuffledSequenceLoader, ShuffledSequenceLoader

__all__ = [
    "Batch",
    "BatchShape",
    "CoprimeStrideLoader",
    "DocumentPackingLoader",
    "Loader",
    "Prefetch",
    "SequentialLoader",
    "ShardOrder",
    "SharedShuffledSequenceLoader",
    "ShuffledSequenceLoader",
]
