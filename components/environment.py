"""What a container's environment comes from on a cluster: one secret and one config map of its namespace.

Neither has to hold all of the variables. Manifests name them and never hold a value.
"""

from __future__ import annotations

SECRET, CONFIG_MAP = "mmbert-secrets", "mmbert-settings"
SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "HF_TOKEN",
)
SETTINGS = (
    "AWS_ENDPOINT_URL",
    "S3_ENDPOINT_URL",
    "AWS_REGION",
    "MLFLOW_TRACKING_URI",
    "MMBERT_MLFLOW_URL",
    "MMBERT_AIRFLOW_URL",
    "HF_ENDPOINT",
    "MMBERT_LOG_FORMAT",
    "MMBERT_METRICS_PORT",
)
