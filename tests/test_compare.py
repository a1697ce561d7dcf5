"""What several arms say together, from folders written by hand and worked out by hand."""

import json

import pytest

from edgewise.lab.compare import Arm, Comparison
from edgewise.lab.record import PARTS, ArmSpec, append_line, claim


def evaluation(step, responses, held_out, **more):
    return {
        "step": step, "responses": responses, "held_out": held_out, "wall_s": responses / 100, "cpu_s": responses / 200,
        "tokens": 4.0 * responses, "train_pass_rate": 0.3, **more,
    }  # fmt: skip


def step(number, responses, *, rolled_out=10, mixed=4, all_pass=4, all_fail=2):
    spent = dict.fromkeys(PARTS, responses / 500) | {"wall_s": responses / 100, "cpu_s": responses / 200}
    metrics = {"rolled_out": rolled_out, "mixed": mixed, "all_pass": all_pass, "all_fail": all_fail, "select_s": 0.01}
    return {"step": number, "responses": responses, "held_out": 0.0, "spent": spent, "metrics": metrics}


def arm(label, curve, seed=0, steps=None):
    """An arm of these (responses, held-out) evaluations."""
    evals = [evaluation(i, responses, held_out) for i, (responses, held_out) in enumerate(curve)]
    steps = [step(i, line["responses"]) for i, line in enumerate(evals) if i] if steps is None else steps
    return Arm(label=label, seed=seed, exact=True, steps=steps, evals=evals)


def comparison(*arms, reference="dapo"):
    by_label = {}
    for one in arms:
        by_label.setdefault(one.label, []).append(one)
    return Comparison(by_label, reference)


# -- one arm ------------------------------------------------------------------------------------------------------------------


def test_what_it_took_to_reach_an_accuracy_is_linear_between_evaluations():
    one = arm("hive", [(0, 0.2), (100, 0.3), (200, 0.5)])
    assert one.to_reach(0.3, "responses") == 100
    assert one.to_reach(0.35, "responses") == pytest.approx(125)
    assert one.to_reach(0.35, "cpu_s") == pytest.approx(0.625)
    assert one.to_reach(0.35, "tokens") == pytest.approx(500)
    assert one.to_reach(0.5, "responses") == 200


def test_an_accuracy_never_reached_is_none_and_one_there_from_the_start_costs_nothing():
    one = arm("hive", [(0, 0.2), (100, 0.5), (200, 0.4)])
    assert one.to_reach(0.51, "responses") is None
    assert one.to_reach(0.2, "responses") == 0.0
    assert one.to_reach(0.1, "responses") == 0.0


def test_the_first_time_counts_even_if_the_arm_falls_back():
    one = arm("hive", [(0, 0.2), (100, 0.4), (200, 0.3), (300, 0.5)])
    assert one.to_reach(0.4, "responses") == 100
    assert one.to_reach(0.35, "responses") == pytest.approx(75)
    assert (one.final, one.best) == (0.5, 0.5)
    assert arm("hive", [(0, 0.2), (100, 0.4), (200, 0.3)]).best == 0.4


def test_an_arm_is_read_back_from_its_folder(tmp_path):
    claim(tmp_path, ArmSpec(method="hive", label="hive:stage2=off", seed=3))
    for line in (evaluation(0, 0, 0.2), evaluation(1, 96, 0.25)):
        append_line(tmp_path / "evals.jsonl", line)
    append_line(tmp_path / "steps.jsonl", step(1, 96))
    one = Arm.read(tmp_path)
    assert (one.label, one.seed, one.exact, one.final) == ("hive:stage2=off", 3, True, 0.25)
    assert one.total("mixed") == 4
    assert one.total("no_such_metric") == 0
    claim(tmp_path / "words", ArmSpec(method="dapo", task="gsm_symbolic"))
    append_line(tmp_path / "words" / "evals.jsonl", {"step": 0, "responses": 0, "held_out": 0.5})
    assert (Arm.read(tmp_path / "words").label, Arm.read(tmp_path / "words").exact) == ("dapo", False)


# -- ratios -------------------------------------------------------------------------------------------------------------------


def test_the_saving_is_paired_seed_by_seed():
    """Seed 0: dapo needs 200, hive 50. Seed 1: dapo 200, hive 200 (another bar, .6). Geometric mean of 4 and 1."""
    found = comparison(
        arm("dapo", [(0, 0.2), (200, 0.4)]),
        arm("dapo", [(0, 0.2), (200, 0.6)], seed=1),
        arm("hive", [(0, 0.2), (100, 0.6)]),
        arm("hive", [(0, 0.2), (100, 0.4), (200, 0.6)], seed=1),
        arm("hive", [(0, 0.2), (1, 0.9)], seed=2),  # no partner: left out
    )
    saving, never = found.saving("hive", "responses")
    assert (saving.estimate, saving.low, saving.high, saving.n) == (
        pytest.approx(2.0),
        pytest.approx(1.0),
        pytest.approx(4.0),
        2,
    )
    assert never == 0
    assert found.saving("hive", "cpu_s")[0].estimate == pytest.approx(2.0)
    assert found.targets() == {0: 0.4, 1: 0.6}


def test_a_reference_that_peaked_before_its_end_is_counted_at_the_first_time_it_was_there():
    found = comparison(arm("dapo", [(0, 0.2), (100, 0.5), (300, 0.4)]), arm("hive", [(0, 0.2), (100, 0.4)]))
    saving, _ = found.saving("hive", "responses")
    assert saving.estimate == pytest.approx((200 / 3) / 100)
    assert found.saving("dapo", "responses")[0].estimate == 1.0


def test_a_method_that_never_got_there_counts_its_whole_budget_and_is_marked():
    found = comparison(arm("dapo", [(0, 0.2), (200, 0.4)]), arm("hive", [(0, 0.2), (100, 0.3), (250, 0.39)]))
    saving, never = found.saving("hive", "responses")
    assert (saving.estimate, never) == (pytest.approx(0.8), 1)
    assert "<0.80x" in found.table()
    row = found.summary()[1]
    assert (row["never_reached"], row["fewer_responses"]) == (1, [pytest.approx(0.8), None, None])


def test_where_nothing_was_learned_there_is_no_ratio_but_a_note():
    found = comparison(arm("dapo", [(0, 0.3), (200, 0.3)]), arm("hive", [(0, 0.3), (200, 0.4)]))
    assert found.saving("hive", "responses") == (None, 0)
    assert found.summary()[1]["fewer_responses"] is None
    assert found.notes() == [
        "dapo ended no better than it began (seed 0), so there is no accuracy to reach and no ratio; give a larger budget "
        "(--responses)"
    ]
    assert comparison(arm("dapo", [(0, 0.3), (200, 0.4)])).notes() == []


def test_without_the_reference_there_is_no_ratio_but_a_note():
    found = comparison(arm("hive", [(0, 0.2), (200, 0.4)]), arm("greso", [(0, 0.2), (200, 0.4)]))
    assert found.saving("hive", "responses") == (None, 0)
    assert found.targets() == {}
    assert found.notes() == ["dapo did not finish, so there is no accuracy to reach and no ratio"]
    assert found.table().splitlines()[2].split()[-2:] == ["–", "–"]


def test_the_share_of_the_oracles_saving():
    """dapo 200, hive 100, oracle 50: hive saves 1/2 of the responses, the oracle 3/4."""
    found = comparison(
        arm("dapo", [(0, 0.2), (200, 0.4)]), arm("hive", [(0, 0.2), (100, 0.4)]), arm("oracle", [(0, 0.2), (50, 0.4)])
    )
    assert found.share_of_oracle("hive") == pytest.approx(2 / 3)
    assert found.share_of_oracle("oracle") == pytest.approx(1.0)
    assert found.share_of_oracle("dapo") == pytest.approx(0.0)
    no_ceiling = comparison(arm("dapo", [(0, 0.2), (200, 0.4)]), arm("hive", [(0, 0.2), (100, 0.4)]))
    assert no_ceiling.share_of_oracle("hive") is None
    worse = comparison(arm("dapo", [(0, 0.2), (200, 0.4)]), arm("oracle", [(0, 0.2), (300, 0.4)]))
    assert worse.share_of_oracle("oracle") is None


# -- all of it ----------------------------------------------------------------------------------------------------------------


def test_the_summary_by_hand():
    found = comparison(
        arm("dapo", [(0, 0.2), (200, 0.4)]),
        arm("hive", [(0, 0.2), (100, 0.5), (200, 0.4)], steps=[step(1, 100), step(2, 200, rolled_out=30, mixed=16)]),
        arm("hive", [(0, 0.2), (300, 0.6)], seed=1),
        arm("oracle", [(0, 0.2), (100, 0.4)]),
    )
    rows = {row["method"]: row for row in found.summary()}
    assert list(rows) == ["dapo", "hive", "oracle"]
    hive = rows["hive"]
    assert hive["seeds"] == [0, 1]
    assert (hive["steps"], hive["responses"], hive["tokens"]) == (1.5, 250, 1000)
    assert hive["seconds"]["wall_s"] == pytest.approx(2.5)
    assert hive["seconds"]["train_s"] == pytest.approx(0.5)
    assert hive["mixed_share"] == pytest.approx((4 + 16 + 4) / (10 + 30 + 10))
    assert (hive["final"], hive["best"]) == (pytest.approx(0.5), pytest.approx(0.55))
    assert hive["fewer_responses"] == [pytest.approx(200 / (100 * 2 / 3)), None, None]  # one pair: no interval
    assert rows["oracle"]["fewer_seconds"] is None  # its knowledge has no price
    json.dumps(found.as_json(), allow_nan=False)


def test_the_table_by_hand():
    found = comparison(
        arm("dapo", [(0, 0.2), (200, 0.4)]),
        arm("dapo", [(0, 0.2), (200, 0.4)], seed=1),
        arm("hive", [(0, 0.2), (100, 0.4)]),
        arm("hive", [(0, 0.2), (50, 0.4)], seed=1),
        arm("oracle", [(0, 0.2), (50, 0.4)]),
        arm("oracle", [(0, 0.2), (50, 0.4)], seed=1),
    )
    lines = found.table().splitlines()
    assert lines[0].split()[-6:] == ["responses", "fewer", "after", "dapo's", "of", "oracle's"]
    assert lines[3].split() == [
        "hive", "1", "75", "300", "0.2s", "0.2s", "0.3s", "0.2s", "40%", "0.400", "0.400", "2.83x", "[2.00,", "4.00]", "2.83x",
        "[2.00,", "4.00]", "0.400", "at", "75", "86%",
    ]  # fmt: skip
    assert lines[4].split()[-8:] == ["4.00x", "[4.00,", "4.00]", "–", "0.400", "at", "50", "100%"]
    assert "oracle" not in comparison(arm("dapo", [(0, 0.2), (200, 0.4)])).table()


def test_a_single_arm_is_compared_with_nothing():
    lines = comparison(arm("dapo", [(0, 0.2), (200, 0.4)])).table().splitlines()
    assert lines[1].split()[-2:] == ["final", "best"]
    assert lines[-1].split()[-1] == "0.400"


def test_accuracy_and_responses_after_as_many_batches_as_the_reference_made():
    """dapo made 2 batches. hive was looked at after batch 1 (.3, 40 responses) and 3 (.5, 100): at 2 that is .4 and 70."""
    dapo = arm("dapo", [(0, 0.2), (100, 0.3), (200, 0.4)])
    hive = arm("hive", [(0, 0.2), (40, 0.3), (100, 0.5)])
    hive.evals[2]["step"] = 3
    hive.steps[1]["step"] = 3
    short = arm("slow", [(0, 0.2), (150, 0.3)])
    found = comparison(dapo, hive, short)
    assert hive.at_batch(2) == (pytest.approx(0.4), pytest.approx(70))
    assert found.at_reference_end("hive") == {"held_out": pytest.approx(0.4), "responses": pytest.approx(70)}
    assert found.at_reference_end("dapo") == {"held_out": 0.4, "responses": 200}
    assert found.at_reference_end("slow") is None
    assert found.summary()[2]["at_reference_end"] is None


def test_the_premise_is_the_mean_over_all_evaluations_that_looked():
    one = arm("dapo", [(0, 0.2), (200, 0.4)])
    assert comparison(one).premise() == {}
    one.evals[0] |= {"v_pass_corr": -0.5, "v_mixed_corr": 0.2, "v_mixed_corr_within_kind": 0.1}
    one.evals[1] |= {"v_pass_corr": -0.7, "v_mixed_corr": 0.4}
    assert comparison(one).premise() == {
        "v_pass_corr": pytest.approx(-0.6), "v_mixed_corr": pytest.approx(0.3), "v_mixed_corr_within_kind": pytest.approx(0.1),
    }  # fmt: skip


def test_the_premise_among_rolled_out_groups_is_the_mean_over_steps_that_could_tell():
    one = arm("hive", [(0, 0.2), (100, 0.3), (200, 0.4)])
    assert comparison(one).premise_of_groups() == {}
    one.steps[0]["metrics"] |= {"entropy_mixed_corr": 0.5, "entropy_pass_corr": -0.2}
    one.steps[1]["metrics"] |= {"entropy_mixed_corr": 0.1}
    found = comparison(one).premise_of_groups()
    assert found == {"entropy_mixed_corr": pytest.approx(0.3), "entropy_pass_corr": -0.2}


def test_curves_are_plain_and_one_for_each_arm():
    found = comparison(arm("dapo", [(0, 0.2), (200, 0.4)]), arm("dapo", [(0, 0.2), (100, 0.3)], seed=1)).as_json()
    assert [(curve["method"], curve["seed"], len(curve["points"])) for curve in found["curves"]] == [
        ("dapo", 0, 2),
        ("dapo", 1, 2),
    ]
    assert found["curves"][1]["points"][1] == {
        "step": 1, "responses": 100, "held_out": 0.3, "tokens": 400.0, "wall_s": 1.0, "cpu_s": 0.5,
    }  # fmt: skip
    assert (found["reference"], found["targets"], found["exact"]) == ("dapo", {"0": 0.4, "1": 0.3}, True)


def test_every_method_is_held_against_not_choosing_too():
    """dapo ends at .4. uniform gets there after 150 responses, hive after 100, slow never within its 400."""
    found = comparison(
        arm("dapo", [(0, 0.2), (300, 0.4)]),
        arm("uniform", [(0, 0.2), (100, 0.3), (200, 0.5)]),
        arm("hive", [(0, 0.2), (100, 0.4)]),
        arm("slow", [(0, 0.2), (400, 0.3)]),
    )
    assert [found.over_control(name).estimate for name in ("uniform", "hive", "slow", "dapo")] == pytest.approx(
        [1.0, 1.5, 150 / 400, 0.5]
    )
    lines = found.table().splitlines()
    assert "uniform's responses" in lines[0]
    assert "to it / its own" in lines[1]
    assert any("hive" in line and "1.50x" in line for line in lines)
    assert any("slow" in line and "<0.38x" in line for line in lines)
    without = comparison(arm("dapo", [(0, 0.2), (300, 0.4)]), arm("hive", [(0, 0.2), (100, 0.4)]))
    assert without.over_control("hive") is None
    assert "uniform's" not in without.table()
    never = comparison(
        arm("dapo", [(0, 0.2), (300, 0.4)]), arm("uniform", [(0, 0.2), (100, 0.3)]), arm("hive", [(0, 0.2), (100, 0.4)])
    )
    assert never.over_control("hive") is None
