"""`make check-infra`: what can be known of infra/kubernetes, infra/helm and infra/terraform without a cluster.

Each kind of check is a module that yields Checks; tests/infra plants a fault of every kind.
"""
