"""Near-duplicates with everything between the steps on a real S3 server."""

from __future__ import annotations

import pytest
from datatrove.data import Document

from mmbert.data.dedup.steps import MinHashClusters, MinHashFilter, MinHashPairs, MinHashSignatures
from tests.fixtures_stack import S3


def test_steps_share_a_folder_on_s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    folder = f"{s3_server.make_bucket('minhash-test')}/deu_Latn"
    tasks = [["eins zwei drei vier fünf", "kurz"], ["sechs sieben acht neun zehn", "Eins, zwei, drei, vier, fünf!"]]
    for rank, texts in enumerate(tasks):
        documents = (Document(text, text) for text in texts)
        assert [d.text for d in MinHashSignatures(folder).run(documents, rank, 2)] == texts
    for rank in range(14):
        MinHashPairs(folder).run(rank=rank, world_size=14)
    MinHashClusters(folder).run()
    kept = [
        [d.text for d in MinHashFilter(folder).run((Document(text, text) for text in texts), rank, 2)]
        for rank, texts in enumerate(tasks)
    ]
    assert kept == [tasks[0], tasks[1][:1]]
