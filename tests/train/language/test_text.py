"""Corpora, tokenizers, pre-training examples and classification arrays."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.errors import FileFormatError, InputError
from trimtab.models import Classifier, Encoder, EncoderConfig, PretrainingModel
from trimtab.train.language import (
    LabelledText,
    PretrainingBatches,
    TextClassification,
    accuracy,
    classification_loss,
    dictionary_entries,
    encode_texts,
    length_buckets,
    load_vocabulary,
    package_docstrings,
    pretraining_batches,
    pretraining_loss,
    pretraining_optimizer,
    scores,
    text_documents,
    train_vocabulary,
    wordnet_glosses,
)
from trimtab.train.language.pretraining import make_example, windows

TEXTS = [
    "the owl sleeps by day and hunts by night",
    "a river carries sand from the hills to the sea",
    "bread is baked from flour, water and salt",
    "the moon turns around the earth in a month",
    "glass is made of sand that was melted",
    "a tree grows one ring of wood in a year",
]


@pytest.fixture(scope="module")
def vocabulary():
    return train_vocabulary(TEXTS, 60, kind="words")


def test_wordnet_records_are_read_with_their_class(tmp_path):
    record = "00001740 {:02d} n 01 thing 0 000 | {}  \n"
    for name, label in (("noun", 5), ("verb", 38), ("adj", 0), ("adv", 2)):
        text = "  1 This is a licence line.\n" + record.format(
            label, f'a kind of {name}; "as here"'
        )
        (tmp_path / f"data.{name}").write_text(text)
    corpus = wordnet_glosses(tmp_path)
    assert corpus.texts[0] == "a kind of noun"
    assert [corpus.classes[label] for label in corpus.labels] == [
        "noun.animal",
        "verb.motion",
        "adj.all",
        "adv.all",
    ]
    (tmp_path / "data.adv").write_text("nonsense\n")
    with pytest.raises(FileFormatError, match="line 1, is not a WordNet record"):
        wordnet_glosses(tmp_path)
    with pytest.raises(FileFormatError, match="Install Debian's package wordnet-base"):
        wordnet_glosses(tmp_path / "absent")


def test_the_installed_wordnet_has_its_published_size():
    try:
        corpus = wordnet_glosses()
    except FileFormatError:
        pytest.skip("WordNet is not installed here")
    assert len(corpus) == 117_659
    assert len(set(corpus.labels)) == 45
    assert round(corpus.majority, 3) == 0.123


def test_dictionaries_are_read_in_dictd_format(tmp_path):
    words = {"00databaseinfo": "About", "apple": "a fruit\n  of a tree", "brook": "a small river"}
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    content, lines = "", []
    for word, text in words.items():
        lines.append(f"{word}\t{digits[len(content)]}\t{digits[len(text)]}")
        content += text
    (tmp_path / "tiny.index").write_text("\n".join(lines) + "\n")
    (tmp_path / "tiny.dict.dz").write_bytes(gzip.compress(content.encode()))
    assert dictionary_entries("tiny", tmp_path) == [
        ("apple", "a fruit of a tree"),
        ("brook", "a small river"),
    ]
    (tmp_path / "tiny.dict.dz").write_bytes(b"not gzip")
    with pytest.raises(FileFormatError, match="damaged"):
        dictionary_entries("tiny", tmp_path)
    with pytest.raises(FileFormatError, match="package dict-gone"):
        dictionary_entries("gone", tmp_path)


def test_docstrings_of_installed_packages_are_real_text():
    corpus = package_docstrings(("click", "equinox"), standard_library=False)
    assert corpus.classes == ("click", "equinox")
    assert min(corpus.labels.count(0), corpus.labels.count(1)) > 50
    assert len(set(corpus.texts)) == len(corpus)
    with pytest.raises(InputError, match="'no_such_package' is not installed"):
        package_docstrings(("no_such_package",))


def test_text_folders_are_read_by_paragraph(tmp_path):
    (tmp_path / "a.txt").write_text("one\nline\n\n\n two \n")
    assert text_documents(tmp_path) == [["one line", "two"]]
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(FileFormatError, match=r"b\.txt is not UTF-8 text \(byte 3\)"):
        text_documents(tmp_path)
    with pytest.raises(FileFormatError, match="holds no file"):
        text_documents(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "words"])
def test_a_tokenizer_survives_its_file_and_opens_in_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    made = train_vocabulary(TEXTS * 3, 80, kind=kind)
    made.save(tmp_path / "tokenizer.json")
    again = load_vocabulary(tmp_path)
    assert again.encode(TEXTS) == made.encode(TEXTS)
    assert again.special == made.special
    assert len(set(made.special)) == 5
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.encode(TEXTS[0], add_special_tokens=False) == made.encode(TEXTS[:1])[0]


def test_wrong_tokenizers_are_refused(tmp_path):
    with pytest.raises(InputError, match="no room beside 5 special"):
        train_vocabulary(TEXTS, 5)
    with pytest.raises(InputError, match="unigram, wordpiece or words"):
        train_vocabulary(TEXTS, 50, kind="bytes")
    with pytest.raises(FileFormatError, match="does not exist"):
        load_vocabulary(tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileFormatError, match="is not a tokenizer"):
        load_vocabulary(tmp_path)


def test_windows_hold_consecutive_lines_up_to_the_limit():
    lines = [[1] * 4, [2] * 4, [3] * 9, [4] * 25]
    found = windows(lines, 10)
    assert [[len(part) for part in window] for window in found] == [[4, 4], [9], [10], [10], [5]]
    assert [t for window in found for part in window for t in part] == [t for x in lines for t in x]
    assert windows([], 10) == []


def test_an_example_can_be_restored_from_its_targets(vocabulary):
    lines = vocabulary.encode(TEXTS[:4])
    orders, fates = [], []
    for seed in range(200):
        example = make_example(lines, vocabulary, 60, 8, np.random.default_rng(seed))
        restored = example["ids"].copy()
        used = example["weights"] > 0
        at, hidden = example["positions"][used], example["ids"][example["positions"][used]]
        restored[at] = example["targets"][used]
        fates += list(np.where(hidden == vocabulary.mask, 0, hidden != restored[at]).tolist())
        length = int((restored != vocabulary.padding).sum())
        assert used.sum() == min(8, max(1, int(0.15 * length)))
        assert (np.diff(at) > 0).all()
        assert not np.isin(example["targets"][used], vocabulary.special[:4]).any()
        body = restored[:length]
        first, second = np.split(body[1:-1], [list(body[1:-1]).index(vocabulary.separator)])
        parts = [list(first), list(second[1:])]
        assert list(example["segments"][: len(first) + 2]) == [0] * (len(first) + 2)
        assert list(example["segments"][len(first) + 2 : length]) == [1] * (len(parts[1]) + 1)
        if example["order"]:
            parts.reverse()
        assert parts[0] + parts[1] == [t for line in lines for t in line]
        orders.append(int(example["order"]))
    assert 0.35 < np.mean(orders) < 0.65


def test_eight_of_ten_hidden_words_become_the_mask(vocabulary):
    line = [list(range(5, 55))] * 6
    masked = changed = total = 0
    for seed in range(60):
        example = make_example(line, vocabulary, 400, 80, np.random.default_rng(seed))
        at = example["positions"][example["weights"] > 0]
        now, was = example["ids"][at], example["targets"][: len(at)]
        masked += int((now == vocabulary.mask).sum())
        changed += int(((now != vocabulary.mask) & (now != was)).sum())
        total += len(at)
    assert abs(masked / total - 0.8) < 0.03
    assert abs(changed / total - 0.1) < 0.03


def test_batches_resume_where_they_were_left(vocabulary):
    def fresh():
        return pretraining_batches(
            [TEXTS] * 5, vocabulary, tokens=24, batch_size=4, predictions=4, seed=3, threads=1
        )

    straight = fresh()
    wanted = [next(straight) for _ in range(9)]
    first = fresh()
    for _ in range(4):
        next(first)
    second = fresh()
    second.set_state(first.get_state())
    for batch in wanted[4:]:
        again = next(second)
        for name, array in batch.items():
            np.testing.assert_array_equal(again[name], array)


def test_an_epoch_visits_every_window_once(vocabulary):
    lines = [[[i + 5] * 3] for i in range(10)]
    source = PretrainingBatches(lines, vocabulary, 12, 5, 2, seed=0)
    seen = []
    for index in (0, 1):
        batch = source[index]
        for row in range(5):
            seen.append(int(batch["targets"][row, 0]))
    assert sorted(seen) == list(range(5, 15))
    with pytest.raises(InputError, match="cannot fill a batch of 11"):
        PretrainingBatches(lines, vocabulary, 12, 11, 2, seed=0)
    with pytest.raises(InputError, match="hold no text"):
        pretraining_batches([TEXTS], vocabulary, tokens=4, batch_size=1)


def test_pretraining_learns(vocabulary):
    from trimtab.train import training_step

    config = EncoderConfig(
        vocabulary=len(vocabulary), width=32, feed_forward=32, depth=1, max_tokens=24, dropout=0.0
    )
    batches = pretraining_batches([TEXTS], vocabulary, tokens=24, batch_size=3, predictions=4)
    step = training_step(
        pretraining_loss, pretraining_optimizer(60, rate=1e-2, warmup=5), trainable=None or _arrays
    )
    state = step.initial_state(PretrainingModel(config, key=jax.random.key(0)), jax.random.key(1))
    losses = []
    for _ in range(60):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["masked_loss"]))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    assert {"order_loss", "masked_accuracy", "order_accuracy"} <= set(metrics)


def _arrays(leaf):
    import equinox as eqx

    return eqx.is_inexact_array(leaf)


def test_the_schedule_ends_at_zero_and_stays_there():
    optimizer = pretraining_optimizer(10, rate=1.0, warmup=2, decay=0.0)
    parameter = jnp.ones(())
    state = optimizer.init(parameter)
    sizes = []
    for _ in range(13):
        update, state = optimizer.update(jnp.ones(()), state, parameter)
        sizes.append(abs(float(update)))
    assert sizes[0] == 0.0
    assert max(sizes) == sizes[2]
    assert sizes[10:] == [0.0, 0.0, 0.0]


def test_texts_and_pairs_fit_their_length(vocabulary):
    single = encode_texts(TEXTS, vocabulary, 8)
    assert single["ids"].shape == (6, 8)
    assert (single["ids"][:, 0] == vocabulary.start).all()
    assert (single["lengths"] == 8).all()
    assert (single["ids"][:, -1] == vocabulary.separator).all()
    pairs = encode_texts(["owl", TEXTS[1]], vocabulary, 9, second=[TEXTS[0], "sea"])
    assert pairs["segments"][0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert pairs["segments"][1].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert (pairs["lengths"] == 9).all()


@pytest.mark.parametrize("seed", [None, 0])
def test_length_buckets_never_need_padding(seed):
    lengths = np.random.default_rng(0).integers(1, 9, 100)
    batches = length_buckets(lengths, 32, seed=seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(100))
    for rows in batches:
        assert len(set(lengths[rows])) == 1
        assert len(rows) * lengths[rows[0]] <= 32


def test_a_classifier_learns_to_tell_two_kinds_of_text():
    import optax

    from trimtab.train import training_batches, training_step

    texts = tuple(f"{a} {b}" for a in ("owl", "river") for b in "abcdefghij") * 4
    corpus = LabelledText("toy", texts, tuple(int("river" in t) for t in texts), ("owl", "river"))
    data = TextClassification.split(corpus, train=60, test=20, tokens=6, words=20)
    config = EncoderConfig(
        vocabulary=len(data.vocabulary), width=16, feed_forward=16, depth=1, max_tokens=6
    )
    encoder = Encoder(config, key=jax.random.key(0))
    model = Classifier(encoder, 2, key=jax.random.key(1))
    step = training_step(classification_loss, optax.adam(1e-2))
    state = step.initial_state(model, jax.random.key(2))
    batches = training_batches(data.train, 20, seed=0, threads=0)
    for _ in range(40):
        state, _ = step(state, next(batches))
    assert accuracy(state.model, data.test, batch_size=8) == 1.0
    with pytest.raises(InputError, match="fewer than"):
        TextClassification.split(corpus, train=70, test=20, tokens=6, words=20)


def test_regression_uses_the_squared_error():
    batch = {
        "ids": jnp.zeros((2, 3), jnp.int32),
        "segments": jnp.zeros((2, 3), jnp.int32),
        "labels": jnp.array([1.0, 3.0]),
    }
    loss, metrics = classification_loss(lambda i, s, key=None: jnp.array([2.0]), batch, None)
    assert float(loss) == 1.0
    assert float(metrics["squared_error"]) == 1.0


def test_scores_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 2, (2, 200))
    found = scores(predicted, labels)
    assert np.isclose(found["matthews"], metrics.matthews_corrcoef(labels, predicted))
    assert np.isclose(found["f1"], metrics.f1_score(labels, predicted))
    assert np.isclose(found["accuracy"], metrics.accuracy_score(labels, predicted))
    stats = pytest.importorskip("scipy.stats")
    a, b = generator.integers(0, 20, (2, 100)).astype(float)
    found = scores(a, b)
    assert np.isclose(found["spearman"], stats.spearmanr(a, b).statistic)
    assert np.isclose(found["pearson"], stats.pearsonr(a, b).statistic)
