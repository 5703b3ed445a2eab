"""The recipe's schema. An unknown key, an impossible combination or a wrong unit is an error before anything runs."""

from mmbert.recipe.schema.base import parse_tokens
from mmbert.recipe.schema.curation import (
    Curation,
    LanguageIdentification,
    NearDuplicates,
    PersonalData,
    QualityClassifier,
    Shards,
    WebQuality,
)
from mmbert.recipe.schema.evaluation import Evaluation, Gate, SuiteRun
from mmbert.recipe.schema.model import CheckpointTokenizer, Model, PretrainedTokenizer, TrainedTokenizer
from mmbert.recipe.schema.recipe import Recipe
from mmbert.recipe.schema.sources import (
    EldSource,
    FilesSource,
    HubSource,
    Source,
    TokenizedSource,
    TokenSpans,
    UdhrSource,
)
from mmbert.recipe.schema.training import (
    BadBatches,
    Batch,
    LanguageList,
    Merge,
    Mixture,
    PhaseTraining,
    RopeTheta,
    Schedule,
    Training,
)

__all__ = [
    "BadBatches",
    "Batch",
    "CheckpointTokenizer",
    "Curation",
    "EldSource",
    "Evaluation",
    "FilesSource",
    "Gate",
    "HubSource",
    "LanguageIdentification",
    "LanguageList",
    "Merge",
    "Mixture",
    "Model",
    "NearDuplicates",
    "PersonalData",
    "PhaseTraining",
    "PretrainedTokenizer",
    "QualityClassifier",
    "Recipe",
    "RopeTheta",
    "Schedule",
    "Shards",
    "Source",
    "SuiteRun",
    "TokenSpans",
    "TokenizedSource",
    "TrainedTokenizer",
    "Training",
    "UdhrSource",
    "WebQuality",
    "parse_tokens",
]
