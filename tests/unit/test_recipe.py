"""The recipe's schema: presets carry the published figures, wrong recipes name the key and the fix."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from mmbert.errors import UserError
from mmbert.recipe import Recipe, load_recipe, recipe_from_text, recipe_to_yaml
from mmbert.recipe.languages import language_table, published_set
from mmbert.recipe.schema import HubSource

B, T = 10**9, 10**12

# phase: tokens, sequence length, masking, temperature, theta, languages without code (facts of the card and the paper)
PUBLISHED_PHASES = {
    "pretrain": (2_300 * B, 1024, 0.30, 0.7, 10_000, 60),
    "extend": (600 * B, 8192, 0.15, 0.5, 160_000, 109),
    "decay": (100 * B, 8192, 0.05, 0.3, 160_000, None),
}


@pytest.mark.parametrize("preset", ["small", "base"])
@pytest.mark.parametrize("phase", PUBLISHED_PHASES)
def test_presets_carry_the_published_phases(preset: str, phase: str) -> None:
    recipe = load_recipe(preset)
    settings = getattr(recipe.phases, phase)
    tokens, length, masking, temperature, theta, languages = PUBLISHED_PHASES[phase]
    assert settings.tokens == tokens
    assert settings.max_seq_len == length
    assert settings.mask_probability == masking
    assert settings.temperature == temperature
    assert (settings.rope_theta.global_attention, settings.rope_theta.local_attention) == (theta, theta)
    assert settings.batch.global_batch_size == 4608
    if languages is not None:
        assert len(set(published_set(settings.languages)) - {"code"}) == languages


def test_presets_carry_the_published_shapes() -> None:
    small, base = load_recipe("small"), load_recipe("base")
    for recipe, hidden, heads in ((small, 384, 6), (base, 768, 12)):
        model = recipe.model
        assert (model.num_hidden_layers, model.intermediate_size, model.vocab_size) == (22, 1152, 256_000)
        assert (model.hidden_size, model.num_attention_heads) == (hidden, heads)
        assert (model.global_attn_every_n_layers, model.sliding_window, model.norm_eps) == (3, 128, 1e-5)
        assert (model.embedding_dropout, model.attention_output_dropout, model.mlp_dropout) == (0.0, 0.1, 0.0)
        ids = (model.pad_token_id, model.eos_token_id, model.bos_token_id, model.mask_token_id)
        assert ids == (0, 1, 2, 4)


def test_presets_carry_the_published_optimisation() -> None:
    small, base = load_recipe("small"), load_recipe("base")
    for recipe in (small, base):
        assert (recipe.optimizer.name, recipe.optimizer.betas, recipe.optimizer.eps) == (
            "stableadamw",
            (0.9, 0.95),
            1e-8,
        )
        assert (recipe.training.checkpoint_tokens, recipe.training.keep_checkpoints) == (10 * B, 10)
        assert recipe.training.precision == "bf16"
        first = recipe.phases.pretrain
        assert (first.learning_rate, first.weight_decay) == (8e-4, 8e-5)
        assert (first.batch.warmup_from, first.batch.microbatch_size) == (48, 48)
        assert first.published_tokens == 2 * T
    assert (base.phases.pretrain.schedule.warmup_tokens, small.phases.pretrain.schedule.warmup_tokens) == (3 * B, 4 * B)
    assert (base.phases.pretrain.batch.warmup_tokens, small.phases.pretrain.batch.warmup_tokens) == (60 * B, 100 * B)
    for phase in ("extend", "decay"):
        of_base, of_small = getattr(base.phases, phase), getattr(small.phases, phase)
        assert (of_base.learning_rate, of_base.weight_decay, of_base.batch.microbatch_size) == (8e-4, 8e-5, 6)
        assert (of_small.learning_rate, of_small.weight_decay, of_small.batch.microbatch_size) == (4e-4, 4e-5, 8)
    assert base.phases.extend.schedule.warmup_tokens == 0


def test_presets_carry_the_published_decay_and_merge() -> None:
    small, base = load_recipe("small"), load_recipe("base")
    shape = base.phases.decay.schedule
    assert (shape.decay_shape, shape.final_fraction, shape.decay_tokens) == ("one_minus_sqrt", 0.02, 100 * B)
    shape = small.phases.decay.schedule
    assert (shape.decay_shape, shape.final_fraction) == ("linear", 0.04)
    assert base.merge.method == "ties"
    assert (small.merge.method, small.merge.variants) == ("ema", ("decay-all",))
    for recipe in (small, base):
        variants = {name: published_set(str(v.languages)) for name, v in recipe.phases.decay.variants.items()}
        sizes = {name: len(codes) - 1 for name, codes in variants.items()}
        assert sizes == {"decay-eng": 109, "decay-cont": 109, "decay-all": 1833}


def test_presets_carry_the_published_shares() -> None:
    billions = {
        "fineweb2": 1196.6, "dclm": 600.0, "starcoder": 100.6, "arxiv": 27.8, "stackexchange": 18.6, "tulu_flan": 15.3,
        "dolmino_math": 11.2, "pes2o": 8.4, "wikipedia": 4.7, "books": 4.3,
    }  # fmt: skip
    total = sum(billions.values())
    recipe = load_recipe("base")
    assert set(recipe.phases.pretrain.source_shares) == set(billions)
    for source, share in recipe.phases.pretrain.source_shares.items():
        assert share == pytest.approx(billions[source] / total, abs=6e-4)
    decay = recipe.phases.decay.variants["decay-cont"].source_shares
    cont = {
        "fineweb2": 78.5, "wikipedia": 9.5, "arxiv": 3.3, "textbooks": 3.1, "prolong_code": 2.8, "books": 2.2,
        "dclm_dolmino": 2.0, "tulu_flan": 1.0, "starcoder": 0.5, "dolmino_math": 0.5,
    }  # fmt: skip
    for source, share in decay.items():
        assert share == pytest.approx(cont[source] / 103.3, abs=1.1e-3)


def test_english_shares_are_those_of_the_published_counts() -> None:
    table = language_table()
    recipe = load_recipe("base")
    decay = recipe.phases.decay.variants
    for column, shares in {
        "pretrain": recipe.phases.pretrain.language_shares,
        "ext": recipe.phases.extend.language_shares,
        "decay-eng": decay["decay-eng"].language_shares,
        "decay-all": decay["decay-all"].language_shares,
    }.items():
        total = sum(language.tokens[column] for language in table.values())
        assert shares["eng_Latn"] == pytest.approx(table["eng_Latn"].tokens[column] / total, abs=2e-3)


def test_tiny_has_the_whole_method() -> None:
    recipe = load_recipe("tiny")
    phases = [recipe.phases.pretrain, recipe.phases.extend, recipe.phases.decay]
    assert [p.mask_probability for p in phases] == [0.30, 0.15, 0.05]
    assert [p.temperature for p in phases] == [0.7, 0.5, 0.3]
    assert [p.rope_theta.global_attention for p in phases] == [10_000, 160_000, 160_000]
    assert phases[0].max_seq_len < phases[1].max_seq_len <= phases[2].max_seq_len
    assert len(recipe.reserved_languages) == 12
    assert not set(recipe.reserved_languages) & set(recipe.language_sets["core"])
    assert set(recipe.language_sets["sentences"]) <= set(recipe.language_sets["core"])


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_a_recipe_survives_being_written_out(preset: str) -> None:
    recipe = load_recipe(preset)
    assert recipe_from_text(recipe_to_yaml(recipe), "again") == recipe


WRONG = [
    (["nosuchkey=1"], ["nosuchkey", "unknown key"]),
    (["model.hidden_size=65"], ["hidden_size 65", "num_attention_heads"]),
    (["phases.pretrain.temperature=-1"], ["phases.pretrain.temperature = -1"]),
    (["phases.pretrain.mask_probability=1.5"], ["phases.pretrain.mask_probability = 1.5", "less than 1"]),
    (["phases.extend.tokens=6Q"], ["phases.extend.tokens = '6Q'", "k, M, B or T"]),
    (["phases.extend.max_seq_len=64"], ["extend.max_seq_len 64 is shorter than pretrain.max_seq_len 128"]),
    (["phases.pretrain.languages=[xxx_Latn]"], ["xxx_Latn", "deu_Latn"]),
    (["phases.pretrain.languages=nosuchset"], ["nosuchset", "sentences"]),
    (["phases.pretrain.source_shares={eld: 0.5, udhr: 0.2}"], ["source_shares add up to 0.7"]),
    (["phases.pretrain.source_shares={web: 1.0}"], ["no source 'web'", "eld"]),
    (["phases.pretrain.language_shares={eng_Latn: 0.7, deu_Latn: 0.7}"], ["language_shares add up to 1.4"]),
    (["phases.pretrain.batch.global_batch_size=33"], ["33 is not a multiple of training.lanes 8"]),
    (["phases.pretrain.batch.warmup_from=12"], ["warmup_from 12 is not a multiple of training.lanes 8"]),
    (["phases.pretrain.batch.microbatch_size=0"], ["phases.pretrain.batch.microbatch_size = 0", "greater than 0"]),
    (["phases.pretrain.max_seq_len=1"], ["phases.pretrain.max_seq_len = 1", "greater than 1"]),
    (["phases.decay.schedule.decay_tokens=1T"], ["decay_tokens", "longer than the phase"]),
    (["phases.decay.schedule.warmup_tokens=200k"], ["do not both fit"]),
    (["phases.decay.variants={v1.5: {languages: all}}"], ["phases.decay.variants.v1.5"]),
    (["merge.variants=[decay-none]"], ["decay-none", "decay-all"]),
    (["model.num_hidden_layers=5"], ["num_hidden_layers - 1 = 4", "global_attn_every_n_layers"]),
    (["model.mask_token_id=1"], ["special token ids"]),
]


@pytest.mark.parametrize(("overrides", "words"), WRONG, ids=[o[0] for o, _ in WRONG])
def test_a_wrong_recipe_names_the_key_and_what_would_be_right(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("tiny", overrides)
    for word in words:
        assert word in str(error.value)


def test_units_of_tokens_are_read() -> None:
    recipe = load_recipe("tiny", ["phases.extend.tokens=2.01M", "phases.decay.tokens=700_000"])
    assert recipe.phases.extend.tokens == 2_010_000
    assert recipe.phases.decay.tokens == 700_000


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(UserError, match="no preset 'huge'; there are base, small, tiny"):
        load_recipe("huge")


def test_broken_yaml_is_the_users_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: [", "utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(str(path))


def test_the_language_table_sums_to_the_published_counts() -> None:
    rows = csv.DictReader(Path("mmbert/recipe/languages.csv").read_text("utf-8").splitlines())
    totals = dict.fromkeys(("pretrain", "ext", "decay-eng", "decay-mid", "decay-all"), 0)
    for row in rows:
        for column in totals:
            totals[column] += int(row[column])
    billions = {column: round(total / B, 1) for column, total in totals.items()}
    assert billions == {"pretrain": 1989.0, "ext": 600.8, "decay-eng": 104.4, "decay-mid": 103.3, "decay-all": 114.2}


def test_a_recipe_cannot_be_changed_after_it_was_checked() -> None:
    recipe = load_recipe("tiny")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]
    assert isinstance(recipe, Recipe)
    assert yaml.safe_load(recipe_to_yaml(recipe))["seed"] == 17


@pytest.mark.parametrize("preset", ["small", "base"])
def test_presets_take_their_sources_from_the_catalog(preset: str) -> None:
    recipe = load_recipe(preset)
    datasets = {name: source.dataset for name, source in recipe.sources.items() if isinstance(source, HubSource)}
    assert datasets == {
        "fineweb2": "HuggingFaceFW/fineweb-2",
        "dclm": "mlfoundations/dclm-baseline-1.0",
        "starcoder": "bigcode/starcoderdata",
        "arxiv": "allenai/dolma",
        "stackexchange": "allenai/dolma",
        "tulu_flan": "allenai/dolma",
        "books": "allenai/dolma",
        "dolmino_math": "allenai/dolmino-mix-1124",
        "pes2o": "allenai/dolmino-mix-1124",
        "dclm_dolmino": "allenai/dolmino-mix-1124",
        "wikipedia": "jhu-clsp/megawika-2",
        "textbooks": "princeton-nlp/prolong-data-64K",
        "prolong_code": "princeton-nlp/prolong-data-64K",
    }
    assert set(recipe.phases.pretrain.source_shares) | set(
        recipe.phases.decay.variants["decay-cont"].source_shares
    ) == set(datasets)


def test_a_recipe_may_change_a_catalog_entry_and_is_written_whole() -> None:
    recipe = load_recipe("small", ["sources.fineweb2.held_out_share=0.01", "sources.fineweb2.on_error=drop"])
    source = recipe.sources["fineweb2"]
    assert isinstance(source, HubSource)
    assert (source.held_out_share, source.on_error, source.dataset) == (0.01, "drop", "HuggingFaceFW/fineweb-2")
    again = recipe_from_text(recipe_to_yaml(recipe), "again")
    assert again == recipe


HUB = "kind: huggingface, dataset: a/b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{kind: catalog, name: fineweb3}", "the catalog has no data set 'fineweb3'; it has arxiv, books"),
        ("{kind: catalog, name: dclm, colour: red}", "colour.*unknown key"),
        ("{text_field: body}", "sources.own.kind: this key is missing"),
        ("{kind: files, path: x, language: deu_latn}", "unknown language 'deu_latn'; write it deu_Latn"),
        ("{kind: files, path: x, language: deu_Cyrl}", "another script than is known for it; the table has deu_Latn"),
        ("{kind: files, path: x, language: germn}", "unknown language 'germn'"),
        ("{kind: files, path: x, language_codes: {de: deu}}", "unknown language 'deu'.*did you mean deu_Latn"),
        ("{kind: files, path: x, language: deu_Latn, language_field: l}", "language and language_field exclude"),
        ("{kind: files, path: x, text_field: a, text_template: '{b}'}", "text_field and text_template exclude"),
        ("{kind: files, path: x, text_template: 'no fields'}", "names no field"),
        ("{kind: files, path: x, text_template: '{a!r}'}", "is not a template"),
        ("{kind: files, path: x, on_error: ignore}", "on_error.*'stop' or 'drop'"),
        ("{kind: files, path: x, held_out_share: 1.5}", "held_out_share"),
        (f"{{{HUB}}}", "the language of its documents is not known; set language"),
        (f"{{{HUB}, subset: '{{language}}', data_files: [a]}}", "subset and data_files exclude"),
        (f"{{{HUB}, language: code, url_list: a}}", "url_list needs data_files"),
        (f"{{{HUB}, language: code, decode: {{tokenizer: a/b}}}}", "decode needs data_files"),
        ("{kind: tokenized, dataset: a/b, path: 'x/*'}", "either set language, or put {language} into path"),
        ("{kind: tokenized, dataset: a/b, path: 'x/{language}'}", "sources.own is tokenized already.*pretrained"),
    ],
)
def test_wrong_sources_name_the_fix(source: str, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_recipe("tiny", [f"sources.own={source}"])
