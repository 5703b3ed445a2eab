"""`mmbert evaluate`: a model's scores on a suite."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from components.commands.as_json import echo_json, json_option
from mmbert import logs
from mmbert.evaluation.suites.base import DEFAULT_BOOTSTRAP_SAMPLES, DEFAULT_SEEDS
from mmbert.evaluation.suites.names import DEMO
from mmbert.evaluation.suites.registry import suite_names
from mmbert.places import cache_folder, scratch_folder


@click.command(name="evaluate")
@click.argument("model")
@click.option("--suite", required=True, metavar="NAME", help=f"one of {', '.join(suite_names())}")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder for scores.json")
@click.option("--tasks", multiple=True, metavar="TASK", help="only these; may be given several times, or with commas")
@click.option("--data-root", default="", help="folder or s3:// prefix of mirrored data sets, <root>/<owner>/<name>")
@click.option("--seeds", default=DEFAULT_SEEDS, show_default=True, type=click.IntRange(min=1), help="runs a task")
@click.option("--bootstrap-samples", default=DEFAULT_BOOTSTRAP_SAMPLES, show_default=True, type=click.IntRange(min=1))
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="a task's setting, or TASK.KEY=VALUE")
@click.option("--tokenizer", default="", help="folder or artifact, for a checkpoint that carries none")
@click.option("--recipe", default="", help="the recipe it was trained with, where a checkpoint does not say its shape")
@click.option(
    "--documents", multiple=True, help="suite demo: folder or artifacts of curated documents; default: the demo's own"
)
@click.option("--device", default="", help="like cpu or cuda:0; default: a GPU where there is one")
@json_option()
def evaluate_command(
    model: str,
    suite: str,
    out: Path,
    tasks: tuple[str, ...],
    data_root: str,
    seeds: int,
    bootstrap_samples: int,
    changes: tuple[str, ...],
    tokenizer: str,
    recipe: str,
    documents: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Score MODEL with a suite, and write scores.json and scores.parquet into OUT.

    MODEL is a Hugging Face folder, a model or checkpoint artifact, or a checkpoint that `mmbert convert` reads. Each
    task is done once for the same model, settings and data (kept below MMBERT_CACHE), so a killed evaluation goes on
    with what is missing. Data sets come from the hub by name, or from --data-root.
    """
    from components.code import commit
    from components.planning import read_recipe
    from mmbert.evaluation.suites.data import DataAccess
    from mmbert.evaluation.suites.mirror import open_data
    from mmbert.evaluation.suites.models import open_model
    from mmbert.evaluation.suites.registry import chosen_tasks, get_suite
    from mmbert.evaluation.suites.runner import Options, check_device, evaluate, first_seeds
    from mmbert.recipe.loading import parse_overrides

    found = get_suite(suite)
    options = Options(
        tasks=tuple(name for item in tasks for name in item.split(",")),
        seeds=first_seeds(seeds),
        bootstrap_samples=bootstrap_samples,
        changes=parse_overrides(changes),
        device=device,
    )
    chosen = chosen_tasks(found, options.tasks)
    if device:
        check_device(device)
    cache = cache_folder()
    with logs.results_apart(), scratch_folder() as scratch:
        trained_with = read_recipe(recipe) if recipe else None
        opened = open_model(model, scratch, cache, tokenizer=tokenizer, recipe=trained_with)
        if suite == DEMO:
            data = DataAccess(folders=_held_out(documents, scratch, cache))
        else:
            data = open_data(chosen, data_root, cache, {})
        scores = evaluate(
            opened.model,
            found,
            out,
            kind=opened.kind,
            data=data,
            cache=cache / "evaluation",
            options=options,
            commit=commit(),
            say=functools.partial(print, flush=True),
        )
    if as_json:
        # The units, thousands of numbers, stand in the file.
        rows = [{k: v for k, v in score.to_json().items() if k != "units"} for score in scores]
        echo_json({"file": str(out / "scores.json"), "model": opened.model.label, "scores": rows})
    else:
        click.echo(f"{out / 'scores.json'}")


def _held_out(documents: tuple[str, ...], scratch: Path, cache: Path) -> dict[str, Path]:
    from mmbert import storage
    from mmbert.artifacts import MANIFEST, open_artifact
    from mmbert.data.documents import HELD_OUT
    from mmbert.errors import UserError
    from mmbert.evaluation.suites.demo_suite import HELD_OUT_TEXT
    from mmbert.evaluation.suites.demo_text import packaged_text

    if not documents:
        return {HELD_OUT_TEXT.repo: packaged_text(cache)}
    place = scratch / "documents"
    for uri in documents:
        if storage.exists(storage.join(uri, MANIFEST)):
            open_artifact(uri, "documents").fetch_folder(place, cache / "files", f"{HELD_OUT}/")
        elif len(documents) == 1 and (Path(uri) / HELD_OUT).is_dir():
            place = Path(uri)
        else:
            raise UserError(
                f"--documents {uri}: give artifacts of curated documents, or one folder with {HELD_OUT}/ in it"
            )
    return {HELD_OUT_TEXT.repo: place / HELD_OUT}
