"""Data sets of the Hugging Face hub, by subset, by paths, or by a list of URLs."""

from __future__ import annotations

import contextlib
import difflib
import re
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import IO, Any, BinaryIO, cast

import orjson
from datatrove.data import Document as Record

from mmbert import hub
from mmbert.data.readers import Selection
from mmbert.data.sources import mds
from mmbert.data.sources.hub_files import HubFile, find_files
from mmbert.data.sources.lines import decompressed, plain_name
from mmbert.data.sources.reader import Unit, UnreadableError
from mmbert.data.sources.records import RecordMaker
from mmbert.data.sources.rows import Row, format_of, read_rows
from mmbert.errors import UserError
from mmbert.recipe.languages import known_languages
from mmbert.recipe.schema import HubSource

_JSON_START_BYTES = 2**16


class HubReader:
    """A Hugging Face data set at one commit; a unit is one of its files."""

    def __init__(self, name: str, settings: HubSource, max_characters: int) -> None:
        self.name = name
        self.settings = settings
        self.maker = RecordMaker(name, settings, max_characters)

    def units(self, selection: Selection) -> list[Unit]:
        settings = self.settings
        if settings.language is not None and settings.language not in selection:
            return []
        commit = self._commit()
        with hub.explained(f"source {self.name}", settings.dataset, settings.revision):
            if settings.url_list:
                files = self._urls(commit)
            elif settings.data_files:
                files = find_files(settings.dataset, commit, settings.data_files, settings.language_codes, selection)
                self._check_any(files, commit, selection)
            else:
                files = self._files_of_subsets(commit, selection)
        return [Unit(file.path, (str(settings.language or file.language),), file.version) for file in files]

    def read(self, unit: Unit, selection: Selection) -> Iterator[Record]:
        settings = self.settings
        with hub.explained(f"source {self.name}", settings.dataset, settings.revision):
            place = unit.name if settings.url_list else f"{settings.dataset}/{unit.name}"
            yield from self.maker.records(unit, place, self._rows(unit.name, place), selection)

    def _commit(self) -> str:
        return hub.resolve_commit(f"source {self.name}", self.settings.dataset, self.settings.revision)

    def _rows(self, path: str, place: str) -> Iterator[Row | UnreadableError]:
        settings = self.settings
        if settings.decode is not None:
            yield from mds.read_texts(settings.dataset, self._commit(), path, settings.decode, settings.text_field)
            return
        kind = format_of(path)
        with self._open(path) as stream:
            if kind is None and _is_json_lines(stream, path):
                kind = "jsonl"
            if kind is not None:
                where = f"source {self.name}: {place}"
                yield from read_rows(stream, where, kind, self.maker.columns(), settings.text_field)
                return
        yield from self._rows_of_datasets(path)

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[IO[bytes]]:
        if not self.settings.url_list:
            with hub.open_file(self.settings.dataset, self._commit(), path) as stream:
                yield stream
            return
        from huggingface_hub.file_download import http_get

        with tempfile.TemporaryFile() as file:
            http_get(path, cast(BinaryIO, file))
            file.seek(0)
            yield file

    def _rows_of_datasets(self, path: str) -> Iterator[Row | UnreadableError]:
        """Rows of a file in another format (arrow, webdataset, JSON that is no lines, ...) as `datasets` reads it."""
        from datasets import load_dataset

        _, root = hub.root_of(self.settings.dataset, self._commit())
        url = f"{root}/{path}" if hub.is_local(self.settings.dataset) else f"hf://{root}/{path}"
        module = self._module_name(self._commit(), path)
        rows = load_dataset(module, data_files={"train": [url]}, split="train", streaming=True)
        for number, values in enumerate(rows, start=1):
            yield Row(number, f"row {number}", values)

    def _urls(self, commit: str) -> list[HubFile]:
        settings = self.settings
        with hub.open_file(settings.dataset, commit, str(settings.url_list)) as stream:
            urls = stream.read().decode().split()
        chosen = sorted(url for url in urls if any(fnmatchcase(url, pattern) for pattern in settings.data_files))
        if not chosen:
            raise UserError(
                f"source {self.name}: none of the {len(urls)} URLs in {settings.dataset}/{settings.url_list} "
                f"matches data_files {', '.join(settings.data_files)}"
            )
        return [HubFile(url, None, f"{commit}:{url}") for url in chosen]

    def _check_any(self, files: list[HubFile], commit: str, selection: Selection) -> None:
        """Raises UserError where no file matches, whichever languages are selected."""
        settings = self.settings
        everything = Selection(1, 0, frozenset())
        if files or (
            selection != everything
            and find_files(settings.dataset, commit, settings.data_files, settings.language_codes, everything)
        ):
            return
        fs, root = hub.root_of(settings.dataset, commit)
        names = sorted(info["name"][len(root) + 1 :] for info in fs.ls(root, detail=True))
        raise UserError(
            f"source {self.name}: no file of the data set {settings.dataset} matches data_files "
            f"{', '.join(settings.data_files)}; at its top are {', '.join(names[:20]) or 'no files'}"
        )

    def _files_of_subsets(self, commit: str, selection: Selection) -> list[HubFile]:
        """The files of the subsets that `subset` names, as the data set's card or its folders lay them out."""
        settings = self.settings
        fs, root = hub.root_of(settings.dataset, commit)
        base = root if hub.is_local(settings.dataset) else f"hf://{root}"
        found = []
        for config, language in self._subsets(_module(settings.dataset, commit), selection):
            if settings.split not in config.data_files:
                raise UserError(
                    f"source {self.name}: the subset {config.name} of {settings.dataset} has no split "
                    f"'{settings.split}'; it has {', '.join(config.data_files)}"
                )
            listed = config.data_files[settings.split]
            below = f"{base}/{config.data_dir}" if config.data_dir else base
            # Patterns where the card lays out the subsets, paths where their folders do.
            for path in listed.resolve(below) if hasattr(listed, "resolve") else listed:
                relative = path[len(base) :].lstrip("/")
                info = fs.info(path) if hub.is_local(settings.dataset) else {}
                version = f"{info['size']}-{info['mtime']}" if info else f"{commit}:{relative}"
                found.append(HubFile(relative, language, version))
        return sorted(found, key=lambda file: file.path)

    def _subsets(self, module: Any, selection: Selection) -> list[tuple[Any, str]]:
        """(configuration, language) of the selected subsets."""
        settings = self.settings
        configs = {config.name: config for config in module.builder_configs_parameters.builder_configs}
        pattern = settings.subset or module.builder_configs_parameters.default_config_name or next(iter(configs))
        if settings.subset is None and pattern not in configs:
            pattern = next(iter(configs))
        if "{language}" not in pattern:
            if pattern not in configs:
                raise UserError(self._no_subset(pattern, list(configs)))
            language = settings.language or pattern
            return [(configs[pattern], language)] if language in selection else []
        before, after = map(re.escape, pattern.split("{language}", 1))
        named = [(re.fullmatch(f"{before}(.+){after}", name), config) for name, config in configs.items()]
        matches = [(settings.language_codes.get(match[1], match[1]), config) for match, config in named if match]
        known = [(config, language) for language, config in matches if language in known_languages()]
        if not known:
            raise UserError(self._no_subset(pattern, list(configs)))
        return [(config, language) for config, language in known if language in selection]

    def _no_subset(self, pattern: str, names: list[str]) -> str:
        near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3) or names[:5]
        return (
            f"source {self.name}: the data set {self.settings.dataset} has no subset '{pattern}'; "
            f"among its {len(names)} are {', '.join(near)}"
        )

    def _module_name(self, commit: str, path: str) -> str:
        name = plain_name(path).rpartition(".")[2]
        if name == "arrow":
            return "arrow"
        if name in ("json", "jsonl"):
            return "json"
        return str(_module(self.settings.dataset, commit).module_path.rpartition(".")[2])


def _module(dataset: str, commit: str) -> Any:
    """What `datasets` knows of a data set before it reads any: its subsets and their files."""
    from datasets.load import dataset_module_factory

    return dataset_module_factory(dataset, revision=None if hub.is_local(dataset) else commit)


def _is_json_lines(stream: IO[bytes], path: str) -> bool:
    """Whether a .json file holds an object a line, as most do."""
    if not plain_name(path).endswith(".json"):
        return False
    try:
        start = next(decompressed(stream, path), b"")[:_JSON_START_BYTES]
    except UnreadableError:
        return True
    finally:
        stream.seek(0)
    first, newline, _ = start.lstrip().partition(b"\n")
    if not newline:
        return first.startswith(b"{")
    with contextlib.suppress(orjson.JSONDecodeError):
        return isinstance(orjson.loads(first), dict)
    return False
