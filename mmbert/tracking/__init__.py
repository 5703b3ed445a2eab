"""MLflow: one run a workflow run, a child run a component, written without ever making the work wait.

    tracker = connect("mmbert/tiny")         # to MLFLOW_TRACKING_URI
    run = tracker.component_run(task="train extend", component="train", fingerprint=fingerprint, tags={})
    run.log_metrics({"loss": 2.5}, step=10)
    unsent = run.finish("FINISHED")          # a path if MLflow is away: store it, and replay it later

The client speaks MLflow's REST API through `requests`: importing MlflowClient costs 1.4 s and 175 MB in every process,
this package 0.1 s and 30 MB, and the client keeps the global state of mlflow's fluent API out of the work.
"""

from mmbert.tracking.component_run import ComponentRun, Status
from mmbert.tracking.election import Run
from mmbert.tracking.registry import ModelVersion, Registry, connect_registry
from mmbert.tracking.tracker import REUSED_FROM, Tracker, connect

__all__ = [
    "REUSED_FROM",
    "ComponentRun",
    "ModelVersion",
    "Registry",
    "Run",
    "Status",
    "Tracker",
    "connect",
    "connect_registry",
]
