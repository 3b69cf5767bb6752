"""The tokenizer: BERT's behaviour, training, saving for transformers, damaged vocabularies."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.added_tokens import AddedToken
from data.corpora import open_corpus
from data.files import DataError
from data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer, train_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
BERT_VOCABULARY = REPOSITORY.parent / "shared" / "data" / "vocab" / "bert-base-uncased-vocab.txt"
needs_bert_vocabulary = pytest.mark.skipif(
    not BERT_VOCABULARY.is_file(), reason=f"{BERT_VOCABULARY} is missing"
)

HARD_LINES = [
    "Naïve FAÇADES don't re-encode; 日本語 text, e.g. [MASK] or ##ing!",
    "tabs\tand\u00a0blanks\u200b, control\x07 characters � and emoji 🙂",
    "Supercalifragilisticexpialidocious " + "x" * 300,
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Real text: docstrings of a few standard modules."""
    import argparse
    import email
    import logging
    import subprocess as process
    import threading

    texts = [vars(m).get("__doc__") or "" for m in (argparse, email, logging, process, threading)]
    texts += [
        value.__doc__ or "" for m in (argparse, logging, process, threading) for value in vars(m).values()
    ]
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n\n".join(texts) + "\n\n" + "\n".join(HARD_LINES), encoding="utf-8")
    return open_corpus(str(file))


@pytest.fixture(scope="module")
def trained(corpus):
    return train_tokenizer(corpus, 1000)


@needs_bert_vocabulary
@pytest.mark.parametrize("lowercase", [True, False])
def test_it_encodes_as_transformers_does(corpus, lowercase):
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(str(BERT_VOCABULARY), lowercase=lowercase)
    vocabulary = BERT_VOCABULARY.read_text(encoding="utf-8").split("\n")
    theirs = transformers.BertTokenizer(str(BERT_VOCABULARY), do_lower_case=lowercase)
    assert (ours.vocab_size, ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id) == (
        (30522, 0, 100, 101, 102, 103)
    )
    # Ours takes special tokens in a text for text, theirs doesn't.
    lines = [line.replace("[MASK]", "mask") for d in corpus.documents() for line in d.split("\n")]
    encoded = ours.encode_lines(lines)
    assert len(theirs) == len(vocabulary) - 1
    for line, ids in zip(lines, encoded):
        assert ids.dtype == np.int32
        assert ids.tolist() == theirs(line, add_special_tokens=False)["input_ids"], line


def test_text_never_becomes_a_special_token(trained):
    for line in ("[MASK] [CLS] [SEP] [PAD]", "a[MASK]b", "[mask]"):
        (ids,) = trained.encode_lines([line])
        assert set(ids.tolist()).isdisjoint({trained.cls_id, trained.sep_id, trained.mask_id, trained.pad_id})


def test_blank_lines_give_no_tokens_and_order_is_kept(trained):
    assert [len(ids) for ids in trained.encode_lines(["", "  ", "a", ""])] == [0, 0, 1, 0]
    assert trained.encode_lines([]) == []


def test_special_tokens_come_first_and_the_size_is_the_one_asked(trained):
    assert trained.vocabulary[:5] == SPECIAL_TOKENS
    assert trained.special_ids == (0, 1, 2, 3, 4) and trained.pad_id == 0
    assert trained.vocab_size == len(set(trained.vocabulary)) == 1000
    assert trained.is_continuation.tolist() == [token.startswith("##") for token in trained.vocabulary]


def test_decoding_gives_the_words_back(trained):
    line = "this is a handler that writes logging records to a stream"
    (ids,) = trained.encode_lines([line])
    assert trained.decode(ids) == line
    assert len(ids) < len(line) / 3  # pieces are words and their parts, not characters
    assert trained.decode([trained.cls_id, *ids, trained.sep_id]) == f"[CLS] {line} [SEP]"


def test_training_is_the_same_in_another_process(trained, corpus):
    program = (
        "import sys; from data.corpora import open_corpus; from data.tokenizer import train_tokenizer\n"
        "print(train_tokenizer(open_corpus(sys.argv[1]), 1000).fingerprint())"
    )
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", program, corpus.name],
            cwd=REPOSITORY,
            env={"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": hash_seed, "PYTHONPATH": "."},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert out.stdout.strip() == trained.fingerprint()


def test_a_small_corpus_is_filled_up_with_unused_tokens(corpus):
    tokenizer = train_tokenizer(corpus, 20000)
    assert tokenizer.vocab_size == 20000
    unused = [token for token in tokenizer.vocabulary if token.startswith("[unused")]
    assert len(unused) > 5000 and tokenizer.vocabulary[-1] == f"[unused{len(unused) - 1}]"


def test_cased_training_keeps_case(corpus):
    cased = train_tokenizer(corpus, 1000, lowercase=False)
    (ids,) = cased.encode_lines(["Return the Thread"])
    assert cased.decode(ids) == "Return the Thread"
    assert cased.fingerprint() != train_tokenizer(corpus, 1000).fingerprint()


def test_a_vocabulary_too_small_for_the_characters_says_how_large(corpus):
    with pytest.raises(
        DataError, match=r"vocab_size 30 is too small: .* alone are (\d+)\. Set vocab_size to"
    ):
        train_tokenizer(corpus, 30)


@pytest.mark.parametrize("lowercase", [True, False])
def test_saved_files_are_read_by_transformers_and_by_us(trained, corpus, tmp_path, lowercase):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(trained.vocabulary, lowercase=lowercase)
    tokenizer.save(tmp_path)
    lines = [line for document in corpus.documents() for line in document.split("\n") if "[MASK]" not in line]
    encoded = [ids.tolist() for ids in tokenizer.encode_lines(lines)]
    for kind in (transformers.AutoTokenizer, transformers.BertTokenizerFast):
        theirs = kind.from_pretrained(str(tmp_path))
        assert theirs(lines, add_special_tokens=False)["input_ids"] == encoded
        assert theirs.mask_token_id == tokenizer.mask_id and theirs.pad_token_id == tokenizer.pad_id
        pair = theirs("one", "two")
        assert pair["input_ids"] == [
            tokenizer.cls_id,
            *tokenizer.encode_lines(["one"])[0],
            tokenizer.sep_id,
            *tokenizer.encode_lines(["two"])[0],
            tokenizer.sep_id,
        ]
        assert pair["token_type_ids"][0] == 0 and pair["token_type_ids"][-1] == 1
    assert load_tokenizer(str(tmp_path)).fingerprint() == tokenizer.fingerprint()
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).fingerprint() == tokenizer.fingerprint()
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(str(tmp_path)).fingerprint() == tokenizer.fingerprint()
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(str(tmp_path), lowercase=lowercase).fingerprint() == tokenizer.fingerprint()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["vocab.txt"]  # no temporary file is left


def test_what_transformers_saves_is_read(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path / "ours")
    transformers.AutoTokenizer.from_pretrained(str(tmp_path / "ours")).save_pretrained(
        str(tmp_path / "theirs")
    )
    assert load_tokenizer(str(tmp_path / "theirs")).vocabulary == trained.vocabulary


def test_pickling_keeps_everything(trained):
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.fingerprint() == trained.fingerprint()
    for ours, theirs in zip(copy.encode_lines(HARD_LINES), trained.encode_lines(HARD_LINES)):
        assert ours.tolist() == theirs.tolist()


def test_the_fingerprint_sees_vocabulary_case_and_accents(trained):
    swapped = [*trained.vocabulary[:-2], trained.vocabulary[-1], trained.vocabulary[-2]]
    others = (
        Tokenizer(swapped),
        Tokenizer(trained.vocabulary, lowercase=False),
        Tokenizer(trained.vocabulary, strip_accents=False),
        trained,
    )
    assert len({tokenizer.fingerprint() for tokenizer in others}) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"vocab\.txt' is empty"),
        (b"\n\n", r"vocab\.txt' is empty"),
        (b"[PAD]\n[UNK]\n[CLS]\nword\n", r"vocab\.txt'.* lacks \[SEP\], \[MASK\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", "has 'a' twice, as id 5 and as id 7"),
        (b"\xff\xfe\x00", r"vocab\.txt' is not UTF-8"),
    ],
)
def test_damaged_vocabularies_are_told(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    for source in (tmp_path, tmp_path / "vocab.txt"):
        with pytest.raises(DataError, match=message):
            load_tokenizer(str(source))


def test_windows_line_ends_are_read(trained, tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(trained.vocabulary).encode())
    assert load_tokenizer(str(tmp_path / "vocab.txt")).fingerprint() == trained.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "has a BPE model"),
        ({"normalizer": {"type": "NFC"}}, "has the normaliser"),
        ({"model": None}, "has a None model"),
    ],
)
def test_other_kinds_of_tokenizer_json_are_refused(trained, tmp_path, change, message):
    trained.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        load_tokenizer(str(tmp_path))


def without(key):
    return lambda content: content.pop(key)


def put(value, *path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


DAMAGE = {
    "tokenizer.json": [
        *(put(value, "model") for value in ([], "WordPiece", 3)),
        *(
            put(value, "model", "vocab")
            for value in ([], "x", {"[PAD]": "0"}, {"[PAD]": 0.5}, {"[PAD]": True})
        ),
        *(put(value, "model", "vocab", "more") for value in (-1, None, 10**30, 3, [])),
        put(1000, "model", "vocab", "\ud800"),
        put(1000, "model", "vocab", "a\nb"),
        *(
            put(value, "added_tokens")
            for value in ({}, "x", [3], [[]], [{"content": 3, "id": 0}], [{"id": 3}])
        ),
        put([{"content": "[PAD]"}], "added_tokens"),
        put([{"content": "[PAD]", "id": "0"}], "added_tokens"),
        *(put(value, "normalizer") for value in ([], "x")),
        *(put(value, "normalizer", "lowercase") for value in ("true", 1, None, [])),
        *(put(value, "normalizer", "strip_accents") for value in ("true", 1, {})),
        put("yes", "normalizer", "clean_text"),
        *(without(key) for key in ("model", "normalizer")),
    ],
    "tokenizer_config.json": [
        *(put(value, "do_lower_case") for value in ("true", 1, None, [])),
        *(put(value, "strip_accents") for value in ("false", 0, [])),
        *(put(value, "tokenize_chinese_chars") for value in ("false", 0, None)),
    ],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, changes in DAMAGE.items() for number in range(len(changes))]
)
def test_a_damaged_field_is_named(trained, tmp_path, name, number):
    trained.save(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    DAMAGE[name][number](content)
    (tmp_path / name).write_text(json.dumps(content))
    if name == "tokenizer_config.json":
        (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"vocabulary|damaged|normaliser|model|tokens|token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "[]", '{"a": 1, "a": 2}', "\0", "x" * 300_000_000]
)
def test_a_file_that_is_no_tokeniser_is_an_error_of_ours(trained, tmp_path, name, text):
    trained.save(tmp_path)
    (tmp_path / name).write_text(text)
    if name != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load_tokenizer(str(tmp_path))


def test_a_cut_off_tokenizer_json_is_told(trained, tmp_path):
    trained.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"tokenizer\.json' is not JSON"):
        load_tokenizer(str(file))


def test_a_source_that_is_nowhere_is_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file or folder"):
        load_tokenizer(str(tmp_path / "missing.txt"))
    with pytest.raises(DataError, match=r"neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(str(tmp_path))
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"'no-such-owner/no-such-model'.* downloading it from the Hugging Face hub failed"
    ):
        load_tokenizer("no-such-owner/no-such-model")


WORDS = (*SPECIAL_TOKENS, "hello", "Hello", "é", "e", "É", "a", "##b", "b")
TEXTS = ["Hello É [ENT] a", "xyzhello XYZ xyz[ENT]hello", "ab[ent] b xyz ab", "[MASK] hello"]


def edited(folder, *, json_=None, config=None, without=()):
    """A saved tokeniser of WORDS whose JSON files were changed, as transformers finds it too."""
    Tokenizer(WORDS).save(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for name, change in (("tokenizer.json", json_), ("tokenizer_config.json", config)):
        content = json.loads((folder / name).read_text())
        if change is not None:
            change(content)
        (folder / name).write_text(json.dumps(content))
    for name in without:
        (folder / name).unlink()
    return str(folder)


def encoded_as_by_transformers(folder, texts):
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    assert len(theirs) == ours.vocab_size
    for text in texts:
        assert ours.encode_lines([text])[0].tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    return ours


ABSENT = object()


@pytest.mark.parametrize("of_json", [True, False])
@pytest.mark.parametrize("of_config", [True, False, ABSENT])
@pytest.mark.parametrize("key", ["lowercase", "strip_accents"])
def test_files_that_disagree_are_read_as_by_transformers(tmp_path, key, of_json, of_config):
    def in_config(content):
        content.pop("do_lower_case" if key == "lowercase" else key)
        if of_config is not ABSENT:
            content["do_lower_case" if key == "lowercase" else key] = of_config

    folder = edited(tmp_path, json_=put(of_json, "normalizer", key), config=in_config)
    encoded_as_by_transformers(folder, ["Hello É", "hello é e"])


def test_a_tokenizer_json_of_any_class_keeps_its_normaliser(tmp_path):
    folder = edited(
        tmp_path,
        json_=put(False, "normalizer", "lowercase"),
        config=put("PreTrainedTokenizerFast", "tokenizer_class"),
    )
    assert not encoded_as_by_transformers(folder, ["Hello É"]).lowercase


@pytest.mark.parametrize(("model_type", "lowercase"), [(None, False), ("bert", True), ("groupbert", False)])
def test_without_a_class_the_models_type_decides_on_the_normaliser(tmp_path, model_type, lowercase):
    folder = edited(
        tmp_path,
        json_=put(False, "normalizer", "lowercase"),
        config=lambda content: content.pop("tokenizer_class", None),
        without=["config.json"],
    )
    if model_type is not None:
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    assert encoded_as_by_transformers(folder, ["Hello É"]).lowercase == lowercase


def added(**flags):
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {**usual, **flags}


@pytest.mark.parametrize(
    "tokens",
    [
        [added(content="[ENT]", id=13)],
        [added(content="[ENT]", id=13, normalized=False, special=True)],
        [added(content="XYZ", id=13), added(content="[ENT]", id=14, normalized=False)],
        [added(content="XYZ", id=13, single_word=True), added(content="[ENT]", id=14, lstrip=True)],
        [added(content="hello", id=5)],
        [added(content="Hello", id=6, normalized=False)],
    ],
)
def test_added_tokens_are_produced(tmp_path, tokens):
    pytest.importorskip("transformers")

    def add(content):
        content["added_tokens"] += tokens

    folder = edited(tmp_path / "a", json_=add)
    ours = encoded_as_by_transformers(folder, TEXTS[:3])
    produced = {i for text in TEXTS for i in ours.encode_lines([text])[0].tolist()}
    assert {token["id"] for token in tokens} <= produced
    ours.save(tmp_path / "b")
    for same in (load_tokenizer(str(tmp_path / "b")), pickle.loads(pickle.dumps(ours))):
        assert same.fingerprint() == ours.fingerprint() != Tokenizer(WORDS).fingerprint()
    text, ids = "e [ENT] a", ours.encode_lines(["e [ENT] a"])[0]
    offsets = ours.encode_with_offsets(text)[1]
    assert len(ids) == len(offsets) and next(text[a:b] for a, b in offsets) == "e"


@pytest.mark.parametrize("content", ["\u0301", "\u200b"])
def test_an_added_token_that_the_normaliser_removes_is_found_in_the_text(content):
    """tokenizers panics on such a token beside letters of several bytes."""
    tokenizer = Tokenizer([*WORDS, content], added=[AddedToken(content)])
    ids = tokenizer.encode_lines([f"hello{content}中 🎉 hello"])[0].tolist()
    hello, token, unknown = WORDS.index("hello"), len(WORDS), WORDS.index("[UNK]")
    assert ids == [hello, token, unknown, unknown, hello]


@pytest.mark.parametrize("where", ["added_tokens.json", "added_tokens_decoder"])
def test_tokens_added_to_a_vocab_txt_are_produced(tmp_path, where):
    def config(content):
        if where == "added_tokens_decoder":
            content[where] = {"13": added(content="[ENT]")}

    folder = edited(tmp_path, config=config, without=["tokenizer.json"])
    if where == "added_tokens.json":
        (tmp_path / where).write_text('{"[ENT]": 13}')
    ours = encoded_as_by_transformers(folder, TEXTS[:3])
    assert 13 in ours.encode_lines(["a [ENT] b"])[0].tolist()


@pytest.mark.parametrize(
    "content", ["[]", '{"[ENT]": 14}', '{"[ENT]": "13"}', '{"": 13}', '{"a\\nb": 13}', '{"[ENT]": 13', "\0"]
)
def test_bad_added_tokens_are_told(tmp_path, content):
    folder = edited(tmp_path, without=["tokenizer.json"])
    (tmp_path / "added_tokens.json").write_text(content)
    with pytest.raises(DataError, match=r"added|line break"):
        load_tokenizer(folder)


@pytest.mark.parametrize("value", [None, "false", "true", 0, []])
@pytest.mark.parametrize("beside_json", [True, False])
def test_a_do_lower_case_that_is_no_boolean_is_told(tmp_path, value, beside_json):
    folder = edited(
        tmp_path, config=put(value, "do_lower_case"), without=[] if beside_json else ["tokenizer.json"]
    )
    with pytest.raises(DataError, match=r"do_lower_case is .*, not true or false"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n\n\n",
        lambda text: (text + "\n \n\t\n").replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n",
    ],
)
def test_marks_and_blank_lines_of_a_vocab_txt_change_nothing(trained, tmp_path, change):
    from model.files import check_vocabulary

    text = "".join(f"{token}\n" for token in trained.vocabulary)
    (tmp_path / "vocab.txt").write_bytes(change(text).encode())
    assert load_tokenizer(str(tmp_path / "vocab.txt")).fingerprint() == trained.fingerprint()
    assert load_tokenizer(str(tmp_path)).fingerprint() == trained.fingerprint()
    check_vocabulary(tmp_path, trained.vocab_size)


def test_a_vocabulary_with_capitals_that_is_read_in_lower_case_is_warned_of(tmp_path, capsys):
    from data.tokenizer import named_tokenizer

    class Options:
        tokenizer, lowercase, vocab_size = str(tmp_path / "vocab.txt"), True, 100

    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    named_tokenizer(Options)
    assert "warning: 2 of the 13 tokens of" in (told := capsys.readouterr().err) and "--no-lowercase" in told
    Options.lowercase = False
    named_tokenizer(Options)
    (tmp_path / "vocab.txt").write_text("\n".join((*SPECIAL_TOKENS, "[unused0]", "hello")))
    Options.lowercase = True
    named_tokenizer(Options)
    assert capsys.readouterr().err == ""
