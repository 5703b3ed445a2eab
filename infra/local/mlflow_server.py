"""MLflow's command, after its admin got the password of this stack's credentials, also where it had another before."""

from __future__ import annotations

from mlflow.cli import cli
from mlflow.server.auth import auth_config, bootstrap_admin_user, store


def main() -> None:
    bootstrap_admin_user()
    # By itself MLflow takes the password for a new user only, and new credentials would lock everybody out.
    if not store.authenticate_user(auth_config.admin_username, auth_config.admin_password):
        store.update_user(auth_config.admin_username, auth_config.admin_password)
    cli()


if __name__ == "__main__":
    main()
