"""Curation: from sources to clean documents, in stages of datatrove pipelines.

A stage's work is split into units (a file of a source, a language), and each unit's result is kept under a fingerprint
of all that decides it. So a changed setting re-does the units that it touches, and a killed run goes on where it was.

    clean          a unit of a source: read, repair, filter                     -> documents by split and language
    signatures     a cleaned unit                                               -> digests and MinHash bands
    pairs          a row of a large language's signatures                       -> pairs of equal hashes
    duplicates     a language                                                   -> documents to drop
    contamination  a cleaned unit                                               -> documents to drop
    finish         a cleaned unit                                               -> files of documents
"""

from mmbert.data.curation.engine import Curated, CuratedFile, curate
from mmbert.data.curation.executor import Executor
from mmbert.data.curation.work import WorkStore

__all__ = ["Curated", "CuratedFile", "Executor", "WorkStore", "curate"]
