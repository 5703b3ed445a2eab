"""The KFP pipeline `mmbert-add-languages`: a trained model learns new languages in a decay phase of its own."""

from typing import Any

from kfp import dsl

from components.kubeflow import Layout, render
from components.workflows import add_languages


def pipeline(layout: Layout) -> Any:
    @dsl.pipeline(name="mmbert-add-languages", description=add_languages.__doc__)
    def mmbert_add_languages(root: str, model: str, text: str = "") -> None:
        render(add_languages, layout, root, model=model, text=text)

    return mmbert_add_languages
