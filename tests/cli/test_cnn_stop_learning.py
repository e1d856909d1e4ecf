from __future__ import annotations

import json


def test_a_table_of_spreads_is_judged(assay, tmp_path):
    table = tmp_path / "spreads.csv"
    table.write_text("conv1,conv2\n" + "0.514,0.9\n" * 4 + "0.52,0.9\n" * 7)
    assert assay("analyse", "cnn-stop-learning", str(table))[:2] == (0, "stop after epoch 9 of 11\n")
    status, printed, _ = assay("analyse", "cnn-stop-learning", str(table), "--json", "--epochs", "8")
    assert (status, json.loads(printed)) == (0, {"epochs": 11, "layers": 2, "stop": None})
    assert assay("analyse", "cnn-stop-learning", str(table), "--decimals", "1")[1] == "stop after epoch 6 of 11\n"
    assert "no reason to stop" in assay("analyse", "cnn-stop-learning", str(table), "--epochs", "8")[1]


def test_bad_input_is_one_line(assay, tmp_path):
    (tmp_path / "words.csv").write_text("a,b\n0.1,x\n")
    (tmp_path / "empty.csv").write_text("a,b\n")
    (tmp_path / "ragged.csv").write_text("0.1,0.2\n0.1\n")
    for arguments, message in [
        (["/no/such"], "cannot read '/no/such'"),
        ([str(tmp_path / "words.csv")], "line 2: not a number for each layer"),
        ([str(tmp_path / "empty.csv")], "has no row of numbers"),
        ([str(tmp_path / "ragged.csv")], "every epoch has the same number of layers"),
        ([str(tmp_path / "ragged.csv"), "--epochs", "1"], "epochs=1"),
    ]:
        status, printed, errors = assay("analyse", "cnn-stop-learning", *arguments)
        assert (status, printed, errors.count("\n")) == (2, "", 1)
        assert message in errors
