"""The KFP pipeline `mmbert-pretrain`: the workflow of components/workflows.py as KFP tasks."""

from typing import Any

from kfp import dsl

from components.kubeflow import Layout, render
from components.workflows import pretrain


def pipeline(layout: Layout) -> Any:
    @dsl.pipeline(name="mmbert-pretrain", description=pretrain.__doc__)
    def mmbert_pretrain(root: str) -> None:
        render(pretrain, layout, root)

    return mmbert_pretrain
