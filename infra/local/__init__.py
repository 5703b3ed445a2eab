"""The laptop stack: S3, MLflow and Airflow on loopback, and the demo's terminal driver. See docs/local-stack.md."""
