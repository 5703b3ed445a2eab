"""Near duplicates: shingles and signatures against plain sets, clusters against a plain union-find."""

import tracemalloc
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import regex
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from mmbert.data.dedup import shingles as shingles_module
from mmbert.data.dedup.clusters import duplicate_clusters, duplicate_pairs, join, settle
from mmbert.data.dedup.minhash import NO_SHINGLE, MinHashSettings, band_hashes, minimums
from mmbert.data.dedup.shingles import shingles
from mmbert.data.dedup.steps import MinHashClusters, MinHashFilter, MinHashPairs, MinHashSignatures
from mmbert.errors import InfrastructureError

SETTINGS = MinHashSettings()
LETTERS = "aAbéÉßñiİжЙσςΣ한글이क़हि्ुשָءًاـ的日本ぁカㄅกำไทยລາວខ្មမြ་བོད"
OTHERS = " \n.,،٫-—'»।0７٣²½\u200d\u00ad\u0301\ufe0f\ud800🙂_\0"
texts = st.text(st.sampled_from(LETTERS + OTHERS + " " * 8 + "1234"), max_size=120)
WORD = regex.compile(
    r"(?P<number>\p{N}+(?:[.,،٫٬]\p{N}+)*)|(?P<ideograph>[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}])"
    r"|(?P<unspaced>[[\p{L}\p{M}]&&[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]])"
    r"|(?P<letters>(?:[[\p{L}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]])+)",
    regex.V1,
)


def plain_shingles(text: str, words: int = 5) -> set[tuple[str, ...]]:
    """What `shingles` should hash, as plain tuples of words."""
    text = regex.sub(r"[\p{Cf}\u0640\u0301\ufe0f\u05b8\u064b]", "", text)
    spans = {"number": words, "letters": words, "ideograph": round(1.6 * words), "unspaced": 5 * words}
    found = [(match[0], match.lastgroup) for match in WORD.finditer(text)]
    plain = ["0" if kind == "number" else "".join(map(plain_letter, word)) for word, kind in found]
    ends = [index + spans[str(kind)] for index, (_, kind) in enumerate(found)]
    return {tuple(plain[index:end]) for index, end in enumerate(ends) if end <= len(plain)}


def plain_letter(letter: str) -> str:
    for form in (letter.casefold(), letter.lower()):
        rest = [c for c in unicodedata.normalize("NFKD", form) if unicodedata.combining(c) not in {220, 230, 232}]
        if len(rest) == 1:
            return rest[0]
    return letter


def hashed(text: str, words: int = 5) -> set[int]:
    return {int(h) for part in shingles([text], words) for h in part.hashes}


@settings(max_examples=200)  # the first call makes the table of letters
@given(first=texts, second=texts, words=st.integers(1, 3))
def test_shingles_are_those_of_a_plain_reading(first: str, second: str, words: int) -> None:
    a, b = plain_shingles(first, words), plain_shingles(second, words)
    assert len(hashed(first, words)) == len(a)
    assert len(hashed(first, words) & hashed(second, words)) == len(a & b)


@given(documents=st.lists(texts, max_size=8), batch=st.integers(1, 300), data=st.data())
def test_a_document_has_the_same_hashes_in_any_batch_and_order(
    documents: list[str], batch: int, data: st.DataObject
) -> None:
    two_words = MinHashSettings(shingle_words=2)
    together = band_hashes(documents, two_words)
    assert together.shape == (len(documents), 14)
    order = data.draw(st.permutations(range(len(documents))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shingles_module, "_BATCH_CHARACTERS", batch)
        shuffled = band_hashes([documents[i] for i in order], two_words)
    assert np.array_equal(shuffled, together[list(order)])


@given(documents=st.lists(texts, max_size=4), length=st.integers(1, 60))
def test_slices_of_a_long_document_give_the_hashes_of_the_whole(documents: list[str], length: int) -> None:
    two_words = MinHashSettings(shingle_words=2)
    whole = minimums(documents, two_words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shingles_module, "_SLICE_CHARACTERS", length)
        sliced = minimums(documents, two_words)
    assert np.array_equal(sliced.values, whole.values)
    assert np.array_equal(sliced.present, whole.present)


def test_memory_does_not_grow_with_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shingles_module, "_SLICE_CHARACTERS", 2**13)
    text = "some words of a very long document " * 30_000
    band_hashes([text[: 2**14], "short"], SETTINGS)
    tracemalloc.start()
    band_hashes([text, "short"], SETTINGS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(text)


def test_short_documents_that_differ_are_kept_apart() -> None:
    """With 32 bits for the single shingle of each, ten pairs would be expected to collide."""
    hashes = band_hashes([f"n {''.join(chr(97 + int(d)) for d in str(n))} z z z" for n in range(300_000)], SETTINGS)
    assert len(np.unique(hashes[:, 0])) == len(hashes)


def test_hashes_stay_what_they_were() -> None:
    """Stored signatures would be worthless after a change: then raise the version of the component that stores them."""
    english = "All human beings are born free and equal in dignity and rights."
    chinese = "人人生而自由，在尊严和权利上一律平等。"
    found = band_hashes([english, chinese], MinHashSettings(num_bands=2, rows_per_band=3))
    assert found.tolist() == [[6475066974199865630, 18359836087903414839], [17627971650545482842, 2875819971106548252]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The quick, brown fox; jumps over 12 dogs!", "the QUICK brown fox jumps over 3,500.25 dogs"),
        ("Où est l'élève naïve de Zoë à midi", "OU EST L’ELEVE NAIVE DE ZOE A MIDI"),
        ("ΟΔΟΣ ΚΑΙ ΛΟΓΟΣ ΤΗΣ ΠΟΛΗΣ", "οδος και λογος της πόλης"),
        ("كَتَبَ الوَلَدُ الدَّرْسَ في البَيْتِ", "كتب الولد الدرس في البيت"),
        ("我们，都是 好朋友，今天一起去。", "我们都是好朋友今天一起去"),
        ("می\u200cخواهم کتاب را به او بدهم", "میخواهم کتاب را به او بدهم"),
    ],
)
def test_case_accents_punctuation_and_numbers_make_no_difference(one: str, other: str) -> None:
    hashes = band_hashes([one, other], SETTINGS)
    assert np.array_equal(hashes[0], hashes[1])
    assert NO_SHINGLE not in hashes


@pytest.mark.parametrize("text", ["", " ", "…!", "four words are short", "人人生而自由", "สวัสดีครับ", "\ud800"])
def test_a_text_shorter_than_a_shingle_has_no_near_duplicate(text: str) -> None:
    hashes = band_hashes([text, text, "five words are long enough"], SETTINGS)
    assert (hashes[:2] == NO_SHINGLE).all()
    assert (hashes[2] != NO_SHINGLE).all()
    assert duplicate_clusters(hashes).tolist() == [0, 1, 2]


def test_no_documents() -> None:
    assert band_hashes([], SETTINGS).shape == (0, 14)
    assert duplicate_clusters(band_hashes([], SETTINGS)).shape == (0,)


DIGITS_TO_LETTERS = str.maketrans("0123456789", "abcdefghij")


def random_words(rng: np.random.Generator, count: int) -> list[str]:
    return [str(number).translate(DIGITS_TO_LETTERS) for number in rng.integers(10**9, size=count)]


def jaccard(a: list[str], b: list[str]) -> float:
    one, other = ({*zip(*(words[i:] for i in range(5)), strict=False)} for words in (a, b))
    return len(one & other) / len(one | other)


@pytest.mark.parametrize(("length", "share"), [(12, 0.03), (300, 0.01), (300, 0.04), (300, 0.08), (2000, 0.05)])
def test_rows_and_bands_agree_as_often_as_their_formulas_say(length: int, share: float) -> None:
    rng = np.random.default_rng(length)
    pairs, rows, bands = 200, SETTINGS.rows_per_band, SETTINGS.num_bands
    documents: list[str] = []
    true = np.empty(pairs)
    for pair in range(pairs):
        words = random_words(rng, length)
        other = np.where(rng.random(length) < share, random_words(rng, length), words).tolist()
        documents += [" ".join(words), " ".join(other)]
        true[pair] = jaccard(words, other)
    values = minimums(documents, SETTINGS).values
    equal = (values[:, ::2] == values[:, 1::2]).reshape(bands, rows, pairs)
    # Of independent rows and bands the counts would be binomial.
    assert_binomial(equal.sum((0, 1)), true, rows * bands)
    assert_binomial(equal.all(1).sum(0), true**rows, bands)
    assert_binomial(equal.all(1).any(0), np.array([SETTINGS.probability(j) for j in true]), 1)
    hashes = band_hashes(documents, SETTINGS)
    assert np.array_equal((hashes[::2] == hashes[1::2]).T, equal.all(1))


def assert_binomial(counts: np.ndarray, probabilities: np.ndarray, trials: int) -> None:
    """Mean within five standard errors; variance (where it says anything) within a half."""
    variances = trials * probabilities * (1 - probabilities)
    difference = counts - trials * probabilities
    assert abs(difference.sum()) <= 5 * np.sqrt(variances.sum())
    uncertain = variances > 1
    if uncertain.sum() > 100:
        assert 0.5 < (difference[uncertain] ** 2 / variances[uncertain]).mean() < 1.5


def plain_clusters(hashes: np.ndarray) -> list[int]:
    first = list(range(len(hashes)))
    for band in range(hashes.shape[1]):
        for a in range(len(hashes)):
            for b in range(a + 1, len(hashes)):
                if hashes[a, band] == hashes[b, band] != NO_SHINGLE:
                    low, high = sorted((first[a], first[b]))
                    first = [low if f == high else f for f in first]
    return first


@st.composite
def hash_tables(draw: st.DrawFn) -> np.ndarray:
    bands = draw(st.integers(1, 4))
    # Neighbours and the ends of the range, so that bits and borders matter; 0 stands for no shingle.
    values = st.sampled_from([0, 1, 2, 3, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1])
    rows = draw(st.lists(st.lists(st.one_of(values, st.integers(1, 2**64 - 1)), min_size=bands, max_size=bands)))
    return np.array(rows, np.uint64).reshape(-1, bands)


@given(hashes=hash_tables(), parts=st.integers(1, 7), chunk=st.integers(1, 9))
def test_clusters_are_those_of_a_plain_union_find_in_any_number_of_parts(
    hashes: np.ndarray, parts: int, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmbert.data.dedup.clusters._CHUNK_DOCUMENTS", chunk)
        assert duplicate_clusters(hashes, parts).tolist() == plain_clusters(hashes)


@given(hashes=hash_tables(), parts=st.integers(1, 7))
def test_parts_hold_the_pairs_of_the_whole(hashes: np.ndarray, parts: int) -> None:
    column = hashes[:, 0]
    split = np.concatenate([duplicate_pairs([column], part, parts) for part in range(parts)])
    assert sorted(split.tolist()) == sorted(duplicate_pairs([column]).tolist())
    assert (split[:, 0] < split[:, 1]).all()


def test_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="part 2 does not exist"):
        duplicate_pairs([], 2, 2)


@given(data=st.data(), documents=st.integers(1, 30))
def test_the_order_of_joins_does_not_matter(data: st.DataObject, documents: int) -> None:
    index = st.integers(0, documents - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(index, index))), np.int64).reshape(-1, 2)
    at_once, one_by_one = np.arange(documents), np.arange(documents)
    join(at_once, pairs)
    for pair in data.draw(st.permutations(pairs.tolist())):
        join(one_by_one, np.array([pair]))
    settle(at_once)
    settle(one_by_one)
    assert at_once.tolist() == one_by_one.tolist()
    assert all(at_once[a] == at_once[b] for a, b in pairs)


def test_memory_mapped_hashes(tmp_path: Path) -> None:
    hashes = band_hashes(
        [f"the same words in {n % 3} documents over and over {'abc'[n % 3]}" for n in range(9)], SETTINGS
    )
    np.save(tmp_path / "hashes.npy", hashes)
    found = duplicate_clusters(np.load(tmp_path / "hashes.npy", mmap_mode="r"), parts=3)
    assert found.tolist() == duplicate_clusters(hashes).tolist()


@pytest.mark.parametrize("key", ["num_bands", "rows_per_band", "shingle_words"])
def test_settings_below_one_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is 0"):
        MinHashSettings(**{key: 0})


def documents_of_task(rank: int) -> list[Document]:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    texts = ["short", " ".join(words), f"{' '.join(words)}!", f"{'abc'[rank]}x " * 9, " ".join(reversed(words))]
    return [Document(text, f"{rank}-{n}") for n, text in enumerate(texts)]


def read_task(data: None, rank: int, world_size: int) -> Iterator[Document]:
    yield from documents_of_task(rank)


def run_signatures(folder: Path, tasks: int) -> None:
    for rank in range(tasks):
        passed = list(MinHashSignatures(str(folder)).run(iter(documents_of_task(rank)), rank, tasks))
        assert [d.id for d in passed] == [d.id for d in documents_of_task(rank)]


def run_clusters(folder: Path) -> None:
    for rank in range(28):
        MinHashPairs(str(folder)).run(rank=rank, world_size=28)
    MinHashClusters(str(folder)).run()


def kept_by_filter(folder: Path, rank: int, documents: list[Document]) -> list[str]:
    return [d.id for d in MinHashFilter(str(folder)).run(iter(documents), rank, 3)]


def test_pipelines_keep_the_first_of_each_cluster_over_tasks(tmp_path: Path) -> None:
    folder, kept = str(tmp_path / "dedup"), []

    def note(data: Iterator[Document], rank: int, world_size: int) -> Iterator[Document]:
        for document in data:
            kept.append(document.id)
            yield document

    logger.disable("datatrove")
    for pipeline, tasks in (
        ([read_task, MinHashSignatures(folder)], 3),
        ([MinHashPairs(folder)], 28),
        ([MinHashClusters(folder)], 1),
        ([read_task, MinHashFilter(folder), note], 3),
    ):
        logs = str(tmp_path / f"logs-{len(list(tmp_path.iterdir()))}")
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=logs).run()
    assert kept == ["0-0", "0-1", "0-3", "0-4", "1-0", "1-3", "2-0", "2-3"]


def test_pairs_of_all_tasks_are_those_of_each_band(tmp_path: Path) -> None:
    run_signatures(tmp_path, 3)
    for rank in range(42):
        MinHashPairs(str(tmp_path)).run(rank=rank, world_size=42)
    hashes = band_hashes([d.text for rank in range(3) for d in documents_of_task(rank)], SETTINGS)
    for band in range(14):
        files = sorted((tmp_path / "pairs").glob(f"{band:02d}-*.pairs"))
        assert len(files) == 3
        found = np.concatenate([np.fromfile(file, "<i8") for file in files]).reshape(-1, 2)
        assert sorted(found.tolist()) == sorted(duplicate_pairs([hashes[:, band]]).tolist())
        assert len(found) == 7


def test_steps_without_documents(tmp_path: Path) -> None:
    list(MinHashSignatures(str(tmp_path)).run(iter([]), 0, 1))
    run_clusters(tmp_path)
    assert kept_by_filter(tmp_path, 0, []) == []


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: [*d, Document("one more", "x")]])
def test_filter_stops_where_the_documents_are_not_those_of_the_signatures(tmp_path: Path, change: object) -> None:
    run_signatures(tmp_path, 3)
    run_clusters(tmp_path)
    with pytest.raises(InfrastructureError, match="run from the signatures on"):
        kept_by_filter(tmp_path, 1, change(documents_of_task(1)))


def test_a_cut_off_file_is_named(tmp_path: Path) -> None:
    run_signatures(tmp_path, 1)
    path = tmp_path / "band-02" / "00000.hashes"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InfrastructureError, match=r"band-02/00000\.hashes is cut off at 37 bytes"):
        MinHashPairs(str(tmp_path)).run(rank=2, world_size=14)


@pytest.mark.parametrize("world_size", [1, 13, 15])
def test_pairs_refuse_a_number_of_tasks_that_the_bands_cannot_share(tmp_path: Path, world_size: int) -> None:
    with pytest.raises(ValueError, match="take a multiple"):
        MinHashPairs(str(tmp_path)).run(rank=0, world_size=world_size)
