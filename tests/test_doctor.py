"""What the doctor sees in files as people have them, and in files nobody should have."""

import json
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from edgewise import data, doctor
from edgewise.cli import main
from edgewise.errors import ConfigError, PoolError
from edgewise.pool import PromptPool

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1="}]
GOOD = [{"id": i, "prompt": f"{i}+{i}=", "answer": str(2 * i), "pass_rate": i / 4} for i in range(5)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def every_format(tmp_path):
    """The same rows as JSON lines, JSON, parquet, and a folder by save_to_disk."""
    jsonl = write_jsonl(tmp_path / "d.jsonl", GOOD)
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(GOOD, indent=1))
    lines = write_jsonl(tmp_path / "lines.json", GOOD)
    parquet = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), parquet)
    folder = tmp_path / "folder"
    datasets.Dataset.from_list(GOOD).save_to_disk(str(folder))
    return [jsonl, listed, lines, parquet, folder]


# ------------------------------------------------------------------------------------------------------ reading files


def test_every_format_gives_the_same_pool(every_format):
    pools = [PromptPool.from_dataset(data.read(path)) for path in every_format]
    assert {pool.digest for pool in pools} == {pools[0].digest}
    assert [dict(pool[3]) for pool in pools] == [GOOD[3]] * len(pools)


def test_json_lines_end_at_newline_only_and_keep_every_character(tmp_path):
    texts = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0ch", "nul\x00", "lone \ud83d", "😀", "e\u0301", "tab\there"]
    path = tmp_path / "strange.jsonl"
    raw = "\n".join(json.dumps({"prompt": text}, ensure_ascii="\ud83d" in text) for text in texts)
    path.write_bytes(b"\xef\xbb\xbf" + raw.replace("\\t", "\t").encode() + b"\r\n\n  \n")
    rows = data.read(path)
    assert [row["prompt"] for row in rows] == texts
    pool = PromptPool.from_dataset(rows)
    assert [pool[row]["prompt"] for row in range(len(pool))] == texts


def test_bad_lines_are_named_by_number(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b'{"prompt": "a"}\n{"prompt": \n[1]\n\n\xff\xfe\n"text"\n'
        + b"\x00" * 8
        + b"\n"
        + b"[" * 100_000
        + b"\n1"
        + b"0" * 6_000
    )
    with pytest.raises(PoolError) as caught:
        data.read(path)
    lines = str(caught.value).split("\n")
    assert lines[0] == f"{path}: 7 of 8 lines cannot be read. Repair or delete them."
    assert lines[1] == "  line 2: Expecting value: line 2 column 1 (char 12)"
    assert lines[2:5] == [
        "  line 3: list instead of an object",
        "  line 5: not UTF-8 at byte 0",
        "  line 6: str instead of an object",
    ]
    assert lines[6] == "  and 2 more"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1, 2", "is not JSON (Expecting ',' delimiter"),
        ("a.json", b"", "is not JSON (Expecting value"),
        ("a.json", b"3", "holds one int; expected a list of objects, or one object a line"),
        ("a.json", b'[{"prompt": "a"}, 7, 8]', 'item 1 of the list is no object such as {"prompt": "1+1="} (2 in all)'),
        ("a.parquet", b"PAR1 not really", "is not a readable parquet file"),
    ],
)
def test_broken_content_is_a_pool_error(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PoolError) as caught:
        data.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_paths_that_cannot_be_read_are_config_errors_with_a_remedy(tmp_path):
    (tmp_path / "x.csv").write_text("prompt\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "p.jsonl").write_text("")
    (tmp_path / "bare").mkdir()
    datasets.DatasetDict({"train": datasets.Dataset.from_list(GOOD)}).save_to_disk(str(tmp_path / "splits"))
    expected = {
        "none.jsonl": "none.jsonl: there is no such file or folder. edgewise reads .parquet, .jsonl, .json and",
        "openai/gsm8k": "openai/gsm8k: there is no such file or folder.",
        "x.csv": "x.csv: cannot tell the format from the suffix '.csv'",
        "parts": f"is not a data set written by datasets' save_to_disk. Name one file: {tmp_path / 'parts' / 'p.jsonl'}",
        "bare": "is not a data set written by datasets' save_to_disk. edgewise reads .parquet",
        "splits": f"holds the splits train. Name one: {tmp_path / 'splits' / 'train'}",
    }
    for name, message in expected.items():
        with pytest.raises(ConfigError) as caught:
            data.read(tmp_path / name)
        assert message in str(caught.value)
    assert len(data.read(tmp_path / "splits" / "train")) == len(GOOD)


@pytest.mark.parametrize(("package", "index", "extra"), [("pyarrow", 3, "edgewise[data]"), ("datasets", 4, "edgewise[trl]")])
def test_a_missing_package_is_named_with_its_extra(every_format, monkeypatch, package, index, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}\. pip install '{extra.replace('[', '.').replace(']', '.')}'"):
        data.read(every_format[index])


# ------------------------------------------------------------------------------------------------------- diagnosing


def test_a_good_data_set_is_fine():
    found = doctor.examine(GOOD)
    assert found.problems == found.notes == []
    assert (found.rows, found.prompt_column, found.prompt_shape) == (5, "prompt", "text (5 rows)")
    assert found.prompt_characters == (4, 4, 4)
    assert found.answer_columns == ["answer"]
    assert found.ids == "ids from column 'id'"
    assert found.id_examples == ["0", "1", "2"]
    assert found.prior_pass_rates == {"pass_rate": "0.00 to 1.00, mean 0.50, 40% exactly 0 or 1, 5 of 5 rows"}


def test_a_chat_in_the_form_of_verl_is_understood():
    rows = [
        {"prompt": CHAT, "data_source": "gsm", "reward_model": {"ground_truth": str(i)}, "extra_info": {"index": i}}
        for i in range(3)
    ]
    found = doctor.examine(rows)
    assert found.prompt_shape == "chat of system + user (3 rows)"
    assert found.prompt_characters == (12, 12, 12)
    assert found.ids == "ids from column 'extra_info.index'"
    assert found.answer_columns == ["reward_model.ground_truth"]
    assert found.repeated_texts == 2
    assert found.problems == ["2 rows repeat an earlier prompt with another reference answer: rows 1, 2."]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "The data set has no rows: nothing to choose from."),
        ([{"text": "a"}], "No prompt column: none of prompt, question, problem, query, input, instruction, messages exists."),
        ([{"question": "a"}], "The prompts seem to be in 'question', and trainers read 'prompt'. Rename the column, or pass"),
        (
            [{"prompt": "a"}, {"prompt": CHAT}],
            "Prompts have more than one shape: text (1 rows), chat of system + user (1 rows).",
        ),
        ([{"prompt": 7}], "Prompts are int (neither text nor chat) (1 rows); trainers expect text or a list of chat messages."),
        ([{"prompt": "a"}, {"prompt": " \n"}], "1 prompts are empty: row 1."),
        ([{"prompt": "a"}] * 2, "Rows share an id (ids are fingerprints"),
        (
            [{"prompt": "a", "answer": 1}, {"prompt": "a", "answer": 2}],
            "1 rows repeat an earlier prompt with another reference",
        ),
        ([{"prompt": "a"}, {}], "Column 'prompt' is empty in row 1"),
        ([{"prompt": object()}], "Row 0 holds a value of type object"),
    ],
)
def test_what_would_be_refused_or_spoil_a_run_is_a_problem(rows, problem):
    found = doctor.examine(rows)
    assert any(text.startswith(problem) for text in found.problems), found.problems
    assert "problem: " in doctor.render(found)


def test_what_is_worth_knowing_is_a_note():
    rows = [{"id": i, "prompt": "same" if i < 2 else str(i), "accuracy": i * 10} for i in range(4)]
    found = doctor.examine(rows)
    assert not found.problems
    assert found.notes[0].startswith("No reference answer found (answer, solution, ground_truth")
    assert found.notes[1].startswith("1 of 4 prompts have the text and answer of another prompt under a different id")
    assert found.notes[2] == "'accuracy' is named like a pass rate, but holds values outside [0, 1]."
    assert found.prior_pass_rates == {}


def test_words_are_no_pass_rates():
    assert doctor.examine([{"prompt": "a", "accuracy": "high"}]).prior_pass_rates == {}


def test_why_columns_were_not_taken_is_told():
    rows = [{"prompt": str(i), "id": 0, "uid": None if i else "x"} for i in range(3)]
    assert doctor.examine(rows).ids.endswith("not taken: 'id' is '0' in every row, 'uid' has no value in rows 1, 2")


# ----------------------------------------------------------------------------------------------------------- the verb


def test_the_verb_prints_the_findings_and_the_next_command(every_format, capsys):
    for path in every_format:
        assert main(["doctor", str(path)]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(
            "rows       5\ncolumns    id, prompt, answer, pass_rate\nprompt     column 'prompt': text (5 rows)\n"
        )
        assert "ids        ids from column 'id'" in printed
        assert printed.endswith("fine: edgewise can choose from these prompts.\nnext: edgewise methods\n")


def test_a_problem_is_exit_code_1_and_the_next_command_is_quoted(tmp_path, capsys):
    path = write_jsonl(tmp_path / "my data.jsonl", [{"prompt": "a"}, {"prompt": "a"}])
    assert main(["doctor", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "problem: Rows share an id" in printed
    assert printed.endswith(f"next: repair, then: edgewise doctor '{path}'\n")


def test_bad_lines_are_a_problem_not_wrong_usage(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text("{\n")
    assert main(["doctor", str(path)]) == 1
    assert "line 1: " in capsys.readouterr().out


def test_a_prompt_nested_too_deep_is_a_problem_with_its_row(tmp_path, capsys):
    path = tmp_path / "deep.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": ' + "[" * 800 + "]" * 800 + "}\n")
    assert main(["doctor", str(path)]) == 1
    assert "problem: Row 1 holds a value too deep or too long" in capsys.readouterr().out


def test_a_missing_file_is_wrong_usage_in_one_clean_message(capsys):
    assert main(["doctor", "nowhere.parquet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("edgewise: nowhere.parquet: there is no such file or folder. ")
    assert "Traceback" not in printed.err


def test_an_explicit_id_column_is_checked(tmp_path, capsys):
    path = write_jsonl(tmp_path / "d.jsonl", [{**row, "key": 1} for row in GOOD])
    assert main(["doctor", str(path), "--id-column", "key"]) == 1
    assert "problem: id_column='key' is '1' in every row" in capsys.readouterr().out


def test_json_says_the_same(every_format, capsys):
    assert main(["doctor", str(every_format[0]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ids"] == "ids from column 'id'"
    assert found["problems"] == []
    assert found["next"] == "edgewise methods"


def test_lone_surrogates_survive_printing(tmp_path, capsys):
    path = tmp_path / "lone.jsonl"
    path.write_text('{"prompt": "\\ud83d", "id": "\\ud83d"}\n{"prompt": "b", "id": "b"}\n')
    assert main(["doctor", str(path)]) == 0
    assert "'id' has a lone surrogate in row 0" in capsys.readouterr().out
