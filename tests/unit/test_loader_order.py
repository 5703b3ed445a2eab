"""The order of documents and the bits of masking are what they were: saved states stay valid."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np

from mmbert.loader.lane import StreamRows
from mmbert.loader.loader import Loader, LoaderSettings
from mmbert.loader.masking import MaskingRule

# Of the first release. Another digest means another order: every saved state would go on with other documents.
DIGEST = "9037db0284bf0a8a2a5961f70d84c57d4c628df6381a381335f534fd3d359c05"


def test_batches_and_states_are_those_of_the_first_release() -> None:
    rows = [[[7 + 13 * (r + d + s) % 90 for d in range(1 + r % 7)] for r in range(60 // (s + 1))] for s in range(4)]
    begins = np.cumsum([0, *(len(stream) for stream in rows)])
    shards = np.array([*range(0, int(begins[-1]), 7), int(begins[-1])])
    streams = [
        StreamRows(f"s/{i}", 1.0 + i, int(begins[i]), len(stream), sum(map(sum, stream)), shards)
        for i, stream in enumerate(rows)
    ]

    def read(stream: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array(rows[stream][row - int(begins[stream])], np.int64)
        return (np.arange(lengths.sum(), dtype=np.uint32) * 31 + row) % 997, lengths

    settings = LoaderSettings(
        17, 4, 64, lambda tokens: 8 if tokens < 4_000 else 12, MaskingRule(0.3, 1_000, 4, (0, 1, 2, 4)), Path("unused"),
        buffer_tokens=1_500,
    )  # fmt: skip
    digest = hashlib.sha256()
    for batch in islice(Loader(streams, read, settings, 0, 1, workers=0), 30):
        for values in (batch.input_ids, batch.cu_seqlens, batch.masked_indices, batch.targets):
            digest.update(values.numpy().tobytes())
        assert batch.state is not None
        for number, lane in sorted(batch.state.lanes.items()):
            digest.update(f"{number} {lane.emitted}".encode())
            for array in (lane.consumed, lane.draws, lane.open_rows, lane.waiting):
                digest.update(array.tobytes())
    assert digest.hexdigest() == DIGEST
