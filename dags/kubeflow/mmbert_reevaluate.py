"""The KFP pipeline `mmbert-reevaluate`: champion and candidate evaluated again, by hand or as a recurring run."""

from typing import Any

from kfp import dsl

from components.kubeflow import Layout, render
from components.workflows import reevaluate


def pipeline(layout: Layout) -> Any:
    @dsl.pipeline(name="mmbert-reevaluate", description=reevaluate.__doc__)
    def mmbert_reevaluate(root: str, model: str = "") -> None:
        render(reevaluate, layout, root, model=model)

    return mmbert_reevaluate
