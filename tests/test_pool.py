"""Prompts and their names: where ids come from, what is refused, and what identifies a pool."""

import hashlib
import subprocess
import sys
import warnings

import datasets
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgewise
from edgewise import pool as pool_module
from edgewise.data import ArrowRows
from edgewise.errors import PoolError
from edgewise.pool import PromptPool
from edgewise.rows import fingerprint
from tests import ledger

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ENDLESS = []
ENDLESS.append(ENDLESS)
STRANGE = [
    *("../../x", "/etc/passwd", "con", "", " ", "a\nb", "a\u2028b", "a\x00b", "\u00e9", "e\u0301", "😀", "مرحبا"),
    *("x" * 10_240, "#2", "0", "00"),
]


def rows(n, **columns):
    """n rows with distinct prompts, and a column a keyword: a list, or a function of the row."""
    return [
        {"prompt": f"{i}+{i}=", "answer": str(2 * i), **{k: v(i) if callable(v) else v[i] for k, v in columns.items()}}
        for i in range(n)
    ]


# ------------------------------------------------------------------------------------------------------ finding ids


@pytest.mark.parametrize("column", ["prompt_id", "id", "task_id", "example_id", "uid"])
def test_a_known_column_names_the_prompts(column):
    pool = PromptPool.from_dataset(rows(3, **{column: lambda i: 10 - i}))
    assert pool.ids == ("10", "9", "8")
    assert pool.how == f"ids from column {column!r}"


@pytest.mark.parametrize("key", ["index", "qid"])
def test_ids_are_found_inside_extra_info(key):
    pool = PromptPool.from_dataset(rows(3, extra_info=lambda i: {key: f"q{i}"}))
    assert pool.ids == ("q0", "q1", "q2")
    assert pool.how == f"ids from column 'extra_info.{key}'"


def test_earlier_columns_win():
    pool = PromptPool.from_dataset(rows(2, uid=["u", "v"], id=["a", "b"], prompt_id=["p", "q"]))
    assert pool.ids == ("p", "q")


def test_the_constant_index_that_verl_writes_is_refused_and_the_content_names_the_prompt():
    pool = PromptPool.from_dataset(rows(3, extra_info=lambda i: {"index": 0}))
    assert pool.ids[0] == fingerprint("0+0=", {"answer": "0"}).hex()
    assert pool.how == (
        "ids are fingerprints of prompt and reference answer, as no column is fit to be a key; not taken: "
        "'extra_info.index' is '0' in every row"
    )


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (["a", "b", None], "'id' has no value in row 2"),
        (["a", float("nan"), "b"], "'id' has no value in row 1"),
        (["a", "b", "a"], "'id' repeated: 3 rows, 2 values"),
        (["a", "b", 1.5], "'id' holds 1.5 (float) in row 2"),
        (["a", "b", True], "'id' holds True (bool) in row 2"),
        (["a", "b", "\ud800"], "'id' has a lone surrogate in row 2"),
        ([1, "1", 2], "'id' repeated: 3 rows, 2 values"),
    ],
)
def test_a_guessed_column_that_cannot_be_a_key_is_passed_over_and_the_reason_kept(values, why):
    pool = PromptPool.from_dataset(rows(3, id=values, uid=["x", "y", "z"]))
    assert pool.ids == ("x", "y", "z")
    assert pool.how == f"ids from column 'uid'; not taken: {why}"


def test_a_column_present_in_some_rows_only_is_passed_over():
    data = rows(3)
    data[1]["id"] = "only here"
    assert PromptPool.from_dataset(data).how.endswith("'id' has no value in rows 0, 2")


def test_ids_that_repeat_across_sources_are_qualified_by_the_source():
    pool = PromptPool.from_dataset(rows(4, extra_info=lambda i: {"index": i % 2}, data_source=["gsm", "gsm", "math", "math"]))
    assert pool.ids == ("gsm/0", "gsm/1", "math/0", "math/1")
    assert pool.how == "ids from columns 'data_source' and 'extra_info.index', as 'extra_info.index' alone repeats"


def test_sources_that_do_not_make_ids_unique_are_not_used():
    pool = PromptPool.from_dataset(rows(4, id=[0, 1, 1, 1], data_source=["a", "a", "b", "b"]))
    assert pool.ids[0] == fingerprint("0+0=", {"answer": "0"}).hex()


def test_one_row_is_a_pool_and_its_id_is_not_called_constant():
    assert PromptPool.from_dataset(rows(1, id=[7])).ids == ("7",)


def test_numpy_whole_numbers_are_ids():
    assert PromptPool.from_dataset(rows(2, id=np.arange(2))).ids == ("0", "1")


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(6)), st.sampled_from(["id", "extra_info", "none", "repeated", "some"]))
def test_how_ids_are_found_does_not_depend_on_the_order_of_rows(order, kind):
    columns = {
        "id": {"id": lambda i: f"id{i}"},
        "extra_info": {"extra_info": lambda i: {"index": i}},
        "none": {},
        "repeated": {"id": lambda i: i // 2, "uid": lambda i: i},
        "some": {"id": lambda i: i if i else None, "task_id": lambda i: i},
    }[kind]
    data = rows(6, **columns)
    straight, shuffled = PromptPool.from_dataset(data), PromptPool.from_dataset([data[i] for i in order])
    assert shuffled.ids == tuple(straight.ids[i] for i in order)
    assert shuffled.how.split(" in row")[0] == straight.how.split(" in row")[0]
    assert (shuffled.digest == straight.digest) == (list(order) == sorted(order))


# -------------------------------------------------------------------------------------------------- an explicit column


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, None, 4, 5, 6, 7], "id_column='key' has no value in row 2. Ids are text or whole numbers."),
        ([None, 2, None, None, None, None, None], "has no value in rows 0, 2, 3, 4, 5 and 1 more"),
        ([1, 2, 3, 4, 5, 6, 2.5], "id_column='key' holds 2.5 (float) in row 6"),
        ([1, 2, 3, 4, 5, 6, [1]], "id_column='key' holds [1] (list) in row 6"),
        (["k"] * 7, "id_column='key' is 'k' in every row, so it names no prompt"),
        (list("abcdebb"), "7 rows, 5 ids: 'b' in rows 1, 5, 6. Name a column with one id a prompt"),
        ([None] * 7, "id_column='key' holds no value in any row. The data set has the columns 'prompt', 'answer', 'key'"),
        (["a", "b", "c", "d", "e", "f", "\udfff"], "The ids of row 6 hold a lone surrogate (broken text), e.g. '\\udfff'"),
    ],
)
def test_an_explicit_column_unfit_to_be_a_key_is_an_error_that_names_the_rows(values, message):
    with pytest.raises(PoolError) as caught:
        PromptPool.from_dataset(rows(7, key=values), id_column="key")
    assert message in str(caught.value)


def test_a_missing_explicit_column_suggests_the_nearest():
    with pytest.raises(PoolError, match=r"id_column='qids' holds no value in any row. Did you mean 'qid'\?"):
        PromptPool.from_dataset(rows(2, qid=[1, 2]), id_column="qids")


def test_an_explicit_column_may_look_inside_another():
    pool = PromptPool.from_dataset(rows(2, meta=lambda i: {"key": {"name": f"n{i}"}}), id_column="meta.key.name")
    assert pool.ids == ("n0", "n1")
    assert pool.how == "ids from column 'meta.key.name', as asked"


def test_a_column_with_a_dot_in_its_own_name_is_taken_as_it_is():
    assert PromptPool.from_dataset(rows(2, **{"extra_info.index": lambda i: i + 5})).ids == ("5", "6")


# ---------------------------------------------------------------------------------------------------------- duplicates


def test_more_than_five_duplicate_ids_are_counted():
    with pytest.raises(
        PoolError, match=r"16 rows, 8 ids: '0' in rows 0, 8; .*'4' in rows 4, 12; and 3 more ids\. Name a column"
    ):
        PromptPool.from_dataset(rows(16, key=lambda i: i % 8), id_column="key")


def test_equal_rows_without_ids_are_an_error_by_default():
    with pytest.raises(PoolError, match=r"Rows share an id \(ids are fingerprints .*3 rows, 2 ids"):
        PromptPool.from_dataset([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])


def test_merge_keeps_the_first_row_of_an_id():
    data = [{"prompt": "a", "n": 0}, {"prompt": "b", "n": 1}, {"prompt": "a", "n": 2}, {"prompt": "c", "n": 3}]
    pool = PromptPool.from_dataset(data, duplicates="merge")
    assert [pool[row]["n"] for row in range(len(pool))] == [0, 1, 3]
    assert [pool.row_of(prompt_id) for prompt_id in pool.ids] == [0, 1, 2]
    assert pool.fingerprints.tobytes() == b"".join(fingerprint(text, {}) for text in "abc")


def test_merging_rows_that_say_different_things_warns_with_the_count():
    data = rows(4, key=["a", "b", "a", "a"])
    with pytest.warns(UserWarning, match="duplicates='merge': 2 merged rows have another text or answer than the first row"):
        pool = PromptPool.from_dataset(data, id_column="key", duplicates="merge")
    assert pool.ids == ("a", "b")


def test_suffix_keeps_every_row_and_passes_over_names_that_are_taken():
    pool = PromptPool.from_dataset(rows(5, key=["x", "x", "x#2", "x", "y"]), id_column="key", duplicates="suffix")
    assert pool.ids == ("x", "x#3", "x#2", "x#4", "y")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "a#2", "a#3", "a#2#2", "b"]), min_size=2, max_size=12).filter(lambda ids: len(set(ids)) > 1)
)
def test_suffixed_ids_are_always_distinct_and_first_rows_keep_their_name(ids):
    pool = PromptPool.from_dataset(rows(len(ids), key=ids), id_column="key", duplicates="suffix")
    assert len(set(pool.ids)) == len(ids)
    for name in set(ids):
        assert pool.ids[ids.index(name)] == name


def test_an_unknown_way_to_treat_duplicates_suggests_the_nearest():
    with pytest.raises(PoolError, match="duplicates='merg' must be one of error, merge, suffix. Did you mean 'merge'"):
        PromptPool.from_dataset(rows(1), duplicates="merg")


def test_the_same_text_under_two_ids_is_one_warning_with_the_count():
    data = [{"id": i, "prompt": "same" if i < 3 else f"other {i}"} for i in range(5)]
    with pytest.warns(UserWarning, match="2 of 5 prompts have the text and answer of another prompt") as caught:
        PromptPool.from_dataset(data)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_the_same_text_with_another_answer_is_another_prompt():
    data = [{"id": 0, "prompt": "x", "answer": "1"}, {"id": 1, "prompt": "x", "answer": "2"}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PromptPool.from_dataset(data)


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("data", [[], iter([]), datasets.Dataset.from_dict({"prompt": []})])
def test_an_empty_data_set_is_refused(data):
    with pytest.raises(PoolError, match=r"The pool is empty: the data set has no rows\. Check its split and its filters"):
        PromptPool.from_dataset(data)


def test_no_ids_are_refused():
    with pytest.raises(PoolError, match="The pool is empty: there is no prompt to choose from"):
        PromptPool.from_ids([])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("my.parquet", "from_dataset takes rows, got the path 'my.parquet'. Read the file first: edgewise.data.read(path)"),
        ({"train": [], "test": []}, "got a mapping with the keys 'train', 'test'. If these are splits, pass one"),
        (["1+1="], "Row 0 of the data set is str, and each row must be a mapping such as {'prompt': '1+1='"),
        ([{"prompt": "a"}, None], "Row 1 of the data set is NoneType"),
        (7, "from_dataset takes a sequence or an iterable of mappings, got int"),
        ([{"question": "a"}], "The data set has no column 'prompt'. It has the columns 'question'. Pass prompt_column=..."),
        ([{"promt": "a"}], "has no column 'prompt'. Did you mean 'promt'?"),
        ([{"prompt": "a"}, {}, {"prompt": None}], "Column 'prompt' is empty in rows 1, 2; every row needs a prompt"),
        ([{"prompt": None}], "Column 'prompt' is empty in row 0; every row needs a prompt. Drop these rows"),
        ([{"prompt": "a"}, {"prompt": float("nan")}], "Column 'prompt' is empty in row 1"),
        ([{"prompt": ENDLESS}], "Row 0 holds a value too deep or too long (maximum recursion depth exceeded"),
        ([{"prompt": "a", "answer": 10**5_000}], "Row 0 holds a value too deep or too long (Exceeds the limit (4300 digits)"),
        (pandas.DataFrame({"prompt": ["a"]}), "From a pandas DataFrame pass df.to_dict('records')"),
        (
            [{"prompt": object()}],
            "Row 0 holds a value of type object in 'prompt' or its answer columns, which has no stable content",
        ),
    ],
)
def test_what_is_no_data_set_of_prompts_is_refused_with_a_remedy(data, message):
    with pytest.raises(PoolError) as caught:
        PromptPool.from_dataset(data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("abc", "takes a sequence of ids, got one string"),
        ({"a", "b"}, "takes ids in order, got a set, whose order changes. Pass sorted(ids)."),
        (["a", None, "b"], "PromptPool.from_ids: has no value in row 1"),
        (["a", 1.0], "PromptPool.from_ids: holds 1.0 (float) in row 1"),
        (["a", "b", "a"], "names more than one prompt alike: 3 rows, 2 ids: 'a' in rows 0, 2. Give every prompt its own id"),
        (["a", "\ud83d"], "The ids of row 1 hold a lone surrogate"),
    ],
)
def test_bad_ids_of_a_host_are_refused(ids, message):
    with pytest.raises(PoolError) as caught:
        PromptPool.from_ids(ids)
    assert message in str(caught.value)


def test_fingerprints_of_another_shape_are_refused():
    with pytest.raises(PoolError, match=r"PromptPool\(fingerprints=\.\.\.\) must be \(1,\) of dtype V16, got \(2,\) of \|V16"):
        PromptPool(["a"], fingerprints=np.zeros(2, "V16"))


# ----------------------------------------------------------------------------------------------------- using a pool


def test_strange_ids_are_kept_code_point_by_code_point():
    pool = PromptPool.from_ids(STRANGE)
    assert list(pool.ids) == STRANGE
    assert [pool.row_of(prompt_id) for prompt_id in STRANGE] == list(range(len(STRANGE)))


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=20, unique=True))
def test_any_text_is_an_id_and_finds_its_row(ids):
    pool = PromptPool.from_ids(ids)
    assert list(pool.ids) == ids
    assert pool.rows_of(ids).tolist() == list(range(len(ids)))


def test_unknown_ids_are_an_error_with_the_nearest_and_minus_one_in_bulk():
    pool = PromptPool.from_ids(["prompt-1", "prompt-2"])
    with pytest.raises(PoolError, match=r"The pool of 2 prompts has no prompt_id 'promp-1'\. Did you mean 'prompt-1'\?"):
        pool.row_of("promp-1")
    assert pool.rows_of(["prompt-2", "?"]).tolist() == [1, -1]


def test_rows_are_read_lazily_and_out_of_range_is_an_index_error():
    class Counting:
        reads = 0

        def __len__(self):
            return 3

        def __getitem__(self, row):
            Counting.reads += 1
            return {"prompt": f"p{row}", "id": row}

    pool = PromptPool.from_dataset(Counting())
    before = Counting.reads
    assert pool[2]["prompt"] == "p2"
    assert Counting.reads == before + 1
    for row in (3, -1):
        with pytest.raises(IndexError, match="outside the pool of 3"):
            pool[row]


def test_a_pool_of_bare_ids_answers_with_the_id():
    pool = PromptPool.from_ids([7, 8])
    assert pool[1] == {"prompt_id": "8"}
    assert pool.fingerprints.tobytes() == bytes(32)
    assert repr(pool) == "PromptPool(2 prompts, ids given by the host)"


def test_a_generator_of_rows_is_kept():
    pool = PromptPool.from_dataset(row for row in rows(3))
    assert pool[2]["prompt"] == "2+2="


def test_fingerprints_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        PromptPool.from_ids(["a"]).fingerprints[0] = b"x" * 16


# ------------------------------------------------------------------------------------------- fingerprints and digest


def test_a_hugging_face_data_set_an_arrow_table_and_a_list_give_the_same_pool():
    data = [
        {"prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"{i}"}], "extra_info": {"index": i}}
        for i in range(2_500)  # more than two chunks
    ]
    data[0]["prompt"][0]["name"] = "judge"  # Arrow writes name=None everywhere else
    plain = PromptPool.from_dataset(data)
    dataset = datasets.Dataset.from_list(data)
    for other in (dataset, ArrowRows(dataset.data.table), dataset.with_format("numpy"), (row for row in data)):
        pool = PromptPool.from_dataset(other)
        assert pool.digest == plain.digest
        assert pool.how == plain.how == "ids from column 'extra_info.index'"
    selected = PromptPool.from_dataset(dataset.select([4, 2]))
    assert selected.ids == ("4", "2")
    assert selected[0]["extra_info"] == {"index": 4}


def test_the_digest_sees_ids_order_text_and_answers():
    base = rows(3, id=["a", "b", "c"])
    changed = [
        base[::-1],
        base[:2],
        [*base[:2], {**base[2], "id": "d"}],
        [*base[:2], {**base[2], "prompt": "2+2 ="}],
        [*base[:2], {**base[2], "answer": "5"}],
    ]
    digests = {PromptPool.from_dataset(data).digest for data in [base, *changed]}
    assert len(digests) == 1 + len(changed)
    assert PromptPool.from_dataset([{**row, "unrelated": 1} for row in base]).digest == PromptPool.from_dataset(base).digest


def test_the_digest_cannot_be_fooled_by_moving_a_boundary():
    assert PromptPool.from_ids(["ab", "c"]).digest != PromptPool.from_ids(["a", "bc"]).digest


def test_the_digest_is_the_same_in_another_process():
    code = "from edgewise.pool import PromptPool; print(PromptPool.from_dataset([{'prompt': 'é😀', 'answer': 1.5}]).digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == PromptPool.from_dataset([{"prompt": "é😀", "answer": 1.5}]).digest


def test_answer_columns_can_be_chosen():
    data = [{"prompt": "x", "key": "1"}, {"prompt": "x", "key": "2"}]
    assert len(PromptPool.from_dataset(data, answer_columns=["key"])) == 2
    assert len(PromptPool.from_dataset(data, answer_columns="key")) == 2
    with pytest.raises(PoolError, match="Rows share an id"):
        PromptPool.from_dataset(data)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_different_texts_have_different_fingerprints_lone_surrogates_included(one, other):
    assert (fingerprint(one, {}) == fingerprint(other, {})) == (one == other)


def test_values_of_other_libraries_have_stable_fingerprints():
    from datetime import date
    from decimal import Decimal

    assert fingerprint("x", {"answer": np.array([1, 2])}) == fingerprint("x", {"answer": [1, 2]})
    assert fingerprint("x", {"answer": np.int64(3)}) == fingerprint("x", {"answer": 3})
    assert fingerprint(b"\x00", {}) == fingerprint(bytearray(1), {}) != fingerprint(b"\x01", {})
    assert fingerprint("x", {"answer": Decimal("1.50")}) != fingerprint("x", {"answer": date(2026, 1, 1)})


# -------------------------------------------------------------------------------------------------- faults of data sets


@pytest.mark.parametrize("kind", ["explicit", "guessed", "content", "host"])
def test_duplicate_ids_are_refused_merged_or_told_apart(kind):
    """Any number of rows under any number of ids: the error lists five of them; merged, each id is once; suffixed, each row."""
    rng = np.random.default_rng(ledger.seed())
    cases = held = 0
    for _ in range(ledger.cases(20, chaos=500)):
        n = int(rng.integers(3, 40))
        names = [f"name-{i}" for i in rng.integers(0, int(rng.integers(2, n)), size=n)]
        distinct = len(set(names))
        if distinct in (1, n):
            continue
        cases += 1
        data = [{"key": name, "prompt": f"text of {name}"} for name in names]
        column = "key" if kind == "explicit" else None
        if kind == "guessed":  # repeated, so that no guess takes it: the content names the prompt, and that repeats too
            data = [{"id": row["key"], "prompt": row["prompt"]} for row in data]
        with pytest.raises(PoolError, match=rf"{n} rows, {distinct} ids: ") as caught:
            PromptPool.from_ids(names) if kind == "host" else PromptPool.from_dataset(data, id_column=column)
        repeated = len({name for name in names if names.count(name) > 1})
        shown = str(caught.value).count(" in rows ")
        assert shown == min(5, repeated)
        assert ("more ids" in str(caught.value)) == (repeated > 5)
        if kind != "host":
            merged = PromptPool.from_dataset(data, id_column=column, duplicates="merge")
            assert [row["prompt"] for row in merged] == list(dict.fromkeys(row["prompt"] for row in data))
            apart = PromptPool.from_dataset(data, id_column=column, duplicates="suffix")
            assert [row["prompt"] for row in apart] == [row["prompt"] for row in data]
            assert len(set(apart.ids)) == n
        held += 1
    ledger.note(46, tried=cases, held=held)


def test_one_text_under_two_ids_is_said_with_the_count_whatever_the_number():
    rng = np.random.default_rng(ledger.seed())
    cases = ledger.cases(20, chaos=500)
    for _ in range(cases):
        n = int(rng.integers(2, 40))
        texts = rng.integers(0, n - 1, size=n).tolist()  # at least one is there twice
        repeated = n - len(set(texts))
        with pytest.warns(UserWarning, match=f"{repeated} of {n} prompts have the text and answer of another prompt under"):
            pool = PromptPool.from_dataset([{"id": i, "prompt": f"text {text}"} for i, text in enumerate(texts)])
        assert len(pool) == n
        assert len(set(pool.keys[0].tolist())) == n, "they are learned about apart"
    ledger.note(47, tried=cases, held=cases)


@pytest.mark.parametrize("column", ["id", "uid", "task_id", "extra_info"])
@pytest.mark.parametrize("missing", [None, float("nan"), 0, "", "same"])
def test_without_ids_the_content_names_the_prompts_and_one_id_for_all_is_refused(column, missing):
    value = {"index": missing} if column == "extra_info" else missing
    name = "extra_info.index" if column == "extra_info" else column
    data = rows(6, **{column: [value] * 6})
    pool = PromptPool.from_dataset(data)
    assert list(pool.ids) == [fingerprint(row["prompt"], {"answer": row["answer"]}).hex() for row in data]
    assert pool.ids == PromptPool.from_dataset(rows(6)).ids, "the same names as without that column"
    with pytest.raises(PoolError, match=r"holds no value in any row|in every row, so it names no prompt|has no value in rows"):
        PromptPool.from_dataset(data, id_column=name)
    some = rows(6, **{column: [value if i == 3 else {"index": i} if column == "extra_info" else i for i in range(6)]})
    if missing is None or missing != missing:  # one row without an id: the column cannot name the prompts
        assert PromptPool.from_dataset(some).ids == pool.ids
        with pytest.raises(PoolError, match="has no value in row 3"):
            PromptPool.from_dataset(some, id_column=name)
    ledger.note(48, tried=3, held=3)


LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=ledger.cases(20, chaos=500), deadline=None)
@given(st.lists(LETTERS, min_size=4, max_size=20, unique=True))
def test_any_ids_go_through_a_saved_state_and_a_journal(tmp_path_factory, ids):
    """Strange ids and any text: names of tickets, beliefs by name, and the digest come back code point by code point."""
    names = [*dict.fromkeys([*STRANGE, *ids])]
    folder = tmp_path_factory.mktemp("ids")

    def selector(**more):
        return edgewise.Selector("mopps", PromptPool.from_ids(names), batch_size=2, group_size=2, on_problem="strict", **more)

    one = selector(directory=folder / "run")
    for version in range(3):
        tickets = one.take(3, policy_version=version)
        one.report([edgewise.Outcome(ticket=t, rewards=[1.0, 0.0]) for t in tickets[1:]])
        one.commit()  # the first a snapshot, the others records of a journal
    one.save(folder / "state")
    one.close()
    again, other = selector(directory=folder / "run"), selector()
    other.restore(folder / "state")
    again.close()
    visits = dict(zip(names, one.method.state().prompts["visits"].tolist(), strict=True))
    for twin in (again, other):
        assert [t.prompt_id for t in twin.in_flight] == [t.prompt_id for t in one.in_flight]
        assert [names[t.row] for t in twin.in_flight] == [t.prompt_id for t in twin.in_flight]
        assert dict(zip(twin.pool.ids, twin.method.state().prompts["visits"].tolist(), strict=True)) == visits
    ledger.note(55, tried=len(names), held=len(names))


def test_forms_of_one_letter_are_two_prompts_and_lone_surrogates_are_no_name():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    pool = PromptPool.from_ids([composed, decomposed])
    assert (pool.row_of(composed), pool.row_of(decomposed)) == (0, 1)
    assert pool.keys[0][0] != pool.keys[0][1]
    for lone in ("\ud800", "a\udfffb", "\ud83d"):
        with pytest.raises(PoolError, match="lone surrogate"):
            PromptPool.from_ids(["fine", lone])
        text = PromptPool.from_dataset([{"prompt": lone}, {"prompt": "fine"}])  # in a text they are only text
        assert len(text) == 2
        assert PromptPool.from_dataset([{"id": lone, "prompt": "a"}, {"id": "x", "prompt": "b"}]).how.endswith("in row 0")
    ledger.note(55, tried=7, held=7)


# ------------------------------------------------------------------------------------------------------------- keys


def test_keys_are_of_ids_and_contents_in_the_order_of_the_pool():
    data = rows(50, id=lambda i: f"n{i}")
    pool, shuffled = PromptPool.from_dataset(data), PromptPool.from_dataset(data[::-1])
    ids, contents = pool.keys
    assert (ids.dtype, contents.dtype, ids.shape, contents.shape) == (np.uint64, np.uint64, (50,), (50,))
    assert len(set(ids.tolist())) == len(set(contents.tolist())) == 50
    for mine, theirs in zip(pool.keys, shuffled.keys, strict=True):
        assert mine.tolist() == theirs[::-1].tolist()
        with pytest.raises(ValueError, match="read-only"):
            mine[0] = 0
    assert pool.keys[0] is ids, "made once"
    again = PromptPool.from_dataset([{**row, "answer": "?"} for row in data])
    assert again.keys[0].tolist() == ids.tolist()
    assert not set(again.keys[1].tolist()) & set(contents.tolist())
    assert PromptPool.from_ids(pool.ids).keys[1].tolist() == [0] * 50
    assert int(ids[0]) == int.from_bytes(hashlib.blake2b(b"n0", digest_size=8).digest(), "little")


def test_ids_whose_hashes_collide_are_told_apart_alike_in_any_order(monkeypatch):
    """With hashes of one byte, and then of two bits more, 60 ids collide many times over."""
    sound = pool_module._hashes

    def short(ids, salt=0):
        return sound(ids, salt) & np.uint64({0: 0xFF, 1: 0x3FF}.get(salt, 2**64 - 1))

    monkeypatch.setattr(pool_module, "_hashes", short)
    names = [f"n{i}" for i in range(60)]
    plain = short(names)
    assert len(set(plain.tolist())) < 60
    pool = PromptPool.from_ids(names)
    keys = dict(zip(names, pool.keys[0].tolist(), strict=True))
    assert len(set(keys.values())) == 60
    order = np.random.default_rng(0).permutation(60)
    shuffled = PromptPool.from_ids([names[i] for i in order])
    assert dict(zip(shuffled.ids, shuffled.keys[0].tolist(), strict=True)) == keys
    alone = [name for name, key in zip(names, plain.tolist(), strict=True) if plain.tolist().count(key) == 1]
    assert all(keys[name] == int(short([name])[0]) for name in alone if keys[name] < 256)
    left = PromptPool.from_ids(names[1:])  # a prompt whose double left may count as new, and never as another one
    known = dict(zip(left.ids, left.keys[0].tolist(), strict=True))
    owner = {key: name for name, key in keys.items()}
    assert all(owner.get(key, name) == name for name, key in known.items())


def test_a_million_prompts_cost_a_string_and_sixteen_bytes_each():
    """Checked at 100,000: 16 bytes of fingerprint, and no index until it is asked for."""
    pool = PromptPool.from_ids(range(100_000))
    assert pool.fingerprints.nbytes == 1_600_000
    assert pool._row_by_id is None
    assert pool.row_of("99999") == 99_999


@pytest.mark.parametrize(
    "empty",
    [
        lambda method: PromptPool.from_dataset([]),
        lambda method: PromptPool.from_dataset(iter(())),
        lambda method: PromptPool.from_ids([]),
        lambda method: edgewise.Selector(method, [], batch_size=2, group_size=4),
        lambda method: edgewise.Selector(method, iter(()), batch_size=2, group_size=4),
    ],
)
def test_an_empty_data_set_is_refused_before_a_method_starts(empty, monkeypatch):
    method = edgewise.make("hive")
    monkeypatch.setattr(type(method), "start", lambda *_: pytest.fail("the method was started"))
    with pytest.raises(PoolError, match="The pool is empty: .* Check "):
        empty(method)
    ledger.note(42, tried=1, held=1)
