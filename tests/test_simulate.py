"""The simulated learner against its own equations, and the comparison against runs written by hand."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from edgewise import types
from edgewise.cli import main
from edgewise.errors import ConfigError, HostError
from edgewise.lab.learner import SimulatedLearner
from edgewise.lab.simulate import METHODS, Comparison, Run, compare, simulate
from edgewise.methods import METHODS as EVERY
from edgewise.metrics import rank_correlation
from edgewise.selector import Selector
from edgewise.types import PASS_RATE, PROMPT_ENTROPY, Ticket
from tests.fakes import groups_of


def ticket(seq, row, rollouts=8):
    return Ticket(seq=seq, row=row, prompt_id=f"simulated-{row}", step=0, round=0, policy_version=0, rollouts=rollouts)


# --------------------------------------------------------------------------------------------------------- the learner


def test_the_pass_rate_is_the_logistic_of_ability_over_difficulty():
    learner = SimulatedLearner(4, skills=2)
    learner.difficulty[:] = [0.0, 1.0, -1.0, 0.5]
    learner.discrimination[:] = [1.0, 1.0, 2.0, 1.0]
    learner.ability[:] = [0.0, 1.0]
    learner.familiarity[:] = [0.0, 0.0, 0.5, 0.0]
    expected = [0.5, 0.5, 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-0.5))]
    assert learner.pass_rate() == pytest.approx(expected)
    assert learner.pass_rate(np.array([3, 0])) == pytest.approx([expected[3], 0.5])


def test_mixed_chance_by_hand():
    learner = SimulatedLearner(1)
    learner.difficulty[:] = math.log(3)
    learner.discrimination[:] = 1.0
    assert learner.pass_rate() == pytest.approx([0.25])
    assert learner.mixed_chance(2) == pytest.approx([0.375])


def test_only_mixed_groups_teach_and_relatives_share_the_gain():
    """Rows 0 and 2 are of skill 0. Two of four passed: variance 1/4. One of two finished passed: 1/4 again."""
    learner = SimulatedLearner(4, skills=2, skill_gain=1.0, own_gain=2.0, transfer=0.1)
    learner.train(groups_of([0, 1, 2], [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, math.nan, math.nan]]))
    assert learner.familiarity == pytest.approx([0.5, 0.0, 0.5, 0.0])
    assert learner.ability == pytest.approx([0.5, 0.05])


def test_what_is_trained_and_by_how_much_comes_from_the_verdicts():
    """Mean 3/4 of the group. Trained: a failure (9/16) and a pass (1/16), mean 5/16; then the pass counts double: 11/32."""
    learner = SimulatedLearner(2, skills=1, own_gain=1.0, skill_gain=0.0)
    group = groups_of([0], [[1, 1, 1, 0]])
    some = np.array([[False, False, True, True]])
    learner.train(replace(group, trained=some))
    assert learner.familiarity == pytest.approx([5 / 16, 0])
    learner.train(replace(group, trained=some, weights=np.array([[5.0, 5.0, 2.0, 1.0]])))
    assert learner.familiarity == pytest.approx([5 / 16 + 11 / 32, 0])
    learner.train(replace(group, weights=np.zeros((1, 4))))
    assert learner.familiarity == pytest.approx([5 / 16 + 11 / 32, 0])


def test_a_group_of_more_trained_rollouts_has_a_larger_share_of_the_step():
    """Six rollouts trained in one group and two in another, both of variance 1/4: 6/4 and 2/4 of it."""
    learner = SimulatedLearner(2, skills=1, own_gain=4.0, skill_gain=0.0)
    nan = math.nan
    both = groups_of([0, 1], [[1, 1, 1, 0, 0, 0], [1, 0, nan, nan, nan, nan]])
    learner.train(replace(both, trained=np.array([[True] * 6, [True, True] + [False] * 4])))
    assert learner.familiarity == pytest.approx([1.5, 0.5])


def test_a_prompt_that_is_twice_in_a_batch_learns_twice():
    learner = SimulatedLearner(2, own_gain=1.0)
    learner.train(groups_of([1, 1], [[1, 0], [1, 0]]))
    assert learner.familiarity == pytest.approx([0.0, 0.5])


def test_a_batch_without_variance_moves_nothing():
    learner = SimulatedLearner(4)
    before = learner.pass_rate().copy()
    learner.train(groups_of([0, 1], [[1, 1], [0, 0]]))
    learner.train(groups_of([2], [[math.nan, math.nan]]))
    assert (learner.pass_rate() == before).all()


def test_rewards_follow_the_pass_rate():
    """50,000 rollouts of one prompt; a mean off by 6 sigma (.013) about once in 5e8."""
    learner = SimulatedLearner(1)
    learner.difficulty[:] = 0.0
    (outcome,) = learner.rollout([ticket(0, 0, 50_000)])
    assert np.mean(outcome.rewards) == pytest.approx(0.5, abs=0.0135)
    assert outcome.correct == [reward == 1.0 for reward in outcome.rewards]
    assert outcome.response_tokens == 60 * 50_000 + 90 * outcome.correct.count(False)
    assert learner.responses == 50_000


def test_an_answer_depends_on_the_ticket_and_not_on_its_company():
    tickets = [ticket(seq, seq % 5) for seq in range(20)]
    together = SimulatedLearner(5, seed=3).rollout(tickets)
    alone = SimulatedLearner(5, seed=3)
    assert [alone.rollout([one])[0] for one in reversed(tickets)][::-1] == together
    assert SimulatedLearner(5, seed=4).rollout(tickets) != together


def test_the_signals_are_what_they_say():
    learner = SimulatedLearner(2_000)
    rows = np.array([5, 1_999, 0])
    assert (learner.signals[PASS_RATE](rows) == learner.pass_rate()[rows]).all()
    assert (learner.signals[PROMPT_ENTROPY](rows) == learner.prompt_entropy[rows]).all()
    assert (learner.prompt_entropy > 0).all()
    assert learner.pool.ids[1_999] == "simulated-1999"


def test_every_signal_that_edgewise_names_is_served_and_is_what_its_name_says():
    learner = SimulatedLearner(500)
    everything = {value for name, value in vars(types).items() if name.isupper() and isinstance(value, str)}
    assert everything - types.ROLLOUT_SIGNALS == set(learner.signals)
    for name, serve in learner.signals.items():
        values = serve(np.array([3, 400, 3]))
        assert values.shape[:1] == (3,)
        assert values.ndim == 1 + (name in types.MATRIX_SIGNALS)
        assert np.isfinite(values).all()
        assert np.array_equal(values[0], values[2])
    rows = np.arange(500)
    assert (learner.signals[types.PROMPT_PERPLEXITY](rows) >= 1.0).all()
    assert np.array_equal(learner.signals[types.CATEGORY](rows), learner.skill)
    assert (np.abs(learner.signals[types.HIDDEN_ANGLES](rows)) <= 1.0).all()
    weak, strong = learner.signals[types.ANCHOR_RATES](rows).T
    assert weak.min() >= 0.0
    assert strong.max() <= 1.0
    assert weak.mean() < strong.mean()
    difficulty = learner.signals[types.DIFFICULTY](rows)
    assert 0.0 <= difficulty.min() < difficulty.max() <= 100.0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_embedding_explains_the_share_of_difficulty_that_was_asked_for(share):
    """R² of a linear fit on 4,000 prompts; noise adds 16/4000 to it, and 6 deviations are below .08."""
    learner = SimulatedLearner(4_000, embedding_share=share)
    x = np.column_stack([np.ones(4_000), learner.fixed_signals[types.EMBEDDING]])
    left = learner.difficulty - x @ np.linalg.lstsq(x, learner.difficulty, rcond=None)[0]
    assert 1.0 - left.var() / learner.difficulty.var() == pytest.approx(share, abs=0.08)


def test_response_entropies_are_one_a_rollout_and_have_the_mean_that_is_documented():
    (outcome,) = (learner := SimulatedLearner(1)).rollout([ticket(0, 0, 6)])
    p = float(learner.pass_rate()[0])
    assert len(outcome.rollout_entropy) == 6
    assert min(outcome.rollout_entropy) > 0.0
    assert np.mean(outcome.rollout_entropy) == pytest.approx(0.1 + 1.6 * p * (1 - p))


@pytest.mark.parametrize(("rho", "low", "high"), [(0.75, -0.8, -0.66), (0.0, -0.14, 0.14), (-1.0, 0.9, 1.0)])
def test_prompt_entropy_relates_to_the_pass_rate_as_asked(rho, low, high):
    """Over 2,000 prompts a rank correlation of 0 leaves +-.14 (6 sigma) once in 5e8."""
    learner = SimulatedLearner(2_000, entropy_difficulty=rho)
    assert low < rank_correlation(learner.prompt_entropy, learner.pass_rate()) < high


@pytest.mark.parametrize(("pool", "share"), [("wasteful", 0.645), ("balanced", 0.2)])
def test_the_pools_waste_as_much_as_they_say(pool, share):
    assert 1 - SimulatedLearner(2_000, pool=pool).mixed_chance(8).mean() == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 0}, "SimulatedLearner needs prompts >= 1 and skills >= 1, got 0 and 8."),
        ({"skills": 0}, "got 2000 and 0."),
        ({"pool": "wastful"}, "must be one of wasteful, balanced. Did you mean 'wasteful'?"),
        ({"entropy_difficulty": 1.5}, "must be in [-1, 1], got 1.5."),
        ({"embedding_share": -0.1}, "SimulatedLearner(embedding_share=...) must be in [0, 1], got -0.1."),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        SimulatedLearner(**settings)
    assert message in str(caught.value)


def test_a_streaming_host_can_be_simulated_too():
    learner = SimulatedLearner(200)
    selector = Selector("greso", learner.pool, batch_size=8, group_size=4, seed=0)
    waiting = []
    for version in range(20):
        waiting += selector.take(8, signals=learner.signals, policy_version=version)
        finished, waiting = waiting[:6], waiting[6:]
        judged = selector.report(learner.rollout(finished))
        learner.train(judged.groups.select(judged.verdicts.keep))
    assert learner.responses == 20 * 6 * 4
    assert len(selector.in_flight) == len(waiting) == 40
    assert learner.ability.sum() > 0


# ------------------------------------------------------------------------------------------------------- the comparison


def made(method, responses, pass_rates, *, groups=10, mixed=5, seed=0):
    steps = len(responses) - 1
    return Run(method, seed, responses, pass_rates, [groups] * steps, [mixed] * steps)


def test_responses_to_a_pass_rate_lie_on_the_line_between_steps():
    run = made("hive", [0, 100, 200], [0.2, 0.4, 0.6])
    assert run.responses_to(0.1) == 0
    assert run.responses_to(0.5) == pytest.approx(150)
    assert run.responses_to(0.61) is None
    assert run.pass_rate_at(50) == pytest.approx(0.3)
    assert run.pass_rate_at(1_000) == 0.6


def test_a_summary_by_hand():
    """The bar of both seeds is .4 after 100 responses. `hive` needs 50 and 25; `slow` needs 200 and never gets there."""
    runs = {
        "hive": [made("hive", [0, 100], [0.2, 0.6], mixed=9), made("hive", [0, 50], [0.2, 0.6], mixed=7)],
        "slow": [made("slow", [0, 200], [0.2, 0.4]), made("slow", [0, 200], [0.2, 0.3])],
        "dapo": [made("dapo", [0, 100], [0.2, 0.4], mixed=2)] * 2,
    }
    found = Comparison({}, runs, {})
    hive, slow, dapo = found.summary()
    assert hive["responses_to_bar"] == pytest.approx(37.5)
    assert hive["ratio"] == pytest.approx(math.sqrt(0.5 * 0.25))
    assert (hive["ratio_low"], hive["ratio_high"]) == pytest.approx((0.25, 0.5))
    assert hive["mixed_share"] == pytest.approx(0.8)
    assert hive["final_pass_rate"] == pytest.approx(0.6)
    assert (slow["seeds_below_bar"], slow["ratio"]) == (1, pytest.approx(2.0))
    assert slow["final_pass_rate"] == pytest.approx((0.3 + 0.25) / 2)
    assert (dapo["ratio"], dapo["ratio_low"], dapo["ratio_high"]) == (1.0, 1.0, 1.0)
    assert all(row["simulated"] is True for row in (hive, slow, dapo))
    lines = found.table().splitlines()
    assert lines[2].split() == ["hive", "38", "0.35", "[0.25,", "0.50]", "80%", "0.600", "0", "0.00"]
    assert lines[3].split()[:7] == ["slow", ">=", "200", ">=", "2.00", "[2.00,", "2.00]"]
    assert "1 by definition" in lines[4]


def test_the_same_seed_gives_the_same_curves_and_another_seed_others():
    settings = {"prompts": 300, "steps": 4, "seeds": 1}
    once, again, other = compare(["hive"], **settings), compare(["hive"], **settings), compare(["hive"], **settings, seed0=1)
    for method in ("hive", "dapo"):
        assert once.runs[method][0].pass_rates == again.runs[method][0].pass_rates
        assert once.runs[method][0].responses == again.runs[method][0].responses
        assert once.runs[method][0].pass_rates != other.runs[method][0].pass_rates


def test_a_step_without_a_mixed_group_is_a_step_without_an_update():
    """Impossible prompts: nothing to train on, and the loop still ends."""
    learner = SimulatedLearner(64)
    learner.difficulty[:] = 50.0
    run = simulate("dapo", learner, batch_size=8, group_size=4, seed=0, until=lambda run: run.steps >= 3)
    assert run.pass_rates[-1] == run.pass_rates[0]
    assert sum(run.mixed) == 0
    assert sum(run.groups) > 0


def test_the_oracle_needs_the_fewest_responses_and_every_selecting_method_fewer_than_dynamic_sampling():
    found = compare(prompts=500, steps=24, seeds=1)
    ratio = {method: found.ratio(method).estimate for method in found.runs}
    assert min(ratio, key=ratio.get) == "oracle"
    assert ratio["greso"] < 1.0
    assert ratio["hive"] < 1.0


def test_a_reference_that_learned_nothing_sets_no_bar(monkeypatch):
    frozen = functools.partial(SimulatedLearner, skill_gain=0.0, own_gain=0.0)
    monkeypatch.setattr("edgewise.lab.simulate.SimulatedLearner", frozen)
    with pytest.raises(ConfigError, match="dynamic sampling learned nothing in 2 steps of seed 0, so there is no bar"):
        compare(["greso"], prompts=200, steps=2, seeds=1)


@pytest.mark.parametrize("pool", ["wasteful", "balanced"])
@pytest.mark.parametrize("rho", [0.75, -0.75])
def test_no_method_wastes_more_than_uniform(pool, rho):
    """Share of mixed groups on a frozen learner, whether prompt entropy is high for hard or for easy prompts; margin .13.

    1,200 groups each: the difference of two shares has a standard deviation of at most .0205. A method that wastes exactly as
    much as uniform would fail by 6.3 sigma, once in 6e9; in one of 20 cases, once in 3e8.
    """
    share = {}
    for method in METHODS:
        learner = SimulatedLearner(600, pool=pool, entropy_difficulty=rho, skill_gain=0.0, own_gain=0.0, seed=1)
        run = simulate(method, learner, batch_size=32, group_size=8, seed=1, until=lambda run: sum(run.groups) >= 1_200)
        share[method] = sum(run.mixed) / sum(run.groups)
    for method in METHODS:
        assert share[method] > share["uniform"] - 0.13, (method, share)


def test_prompts_never_rolled_out_are_counted():
    """One step of 8 groups leaves 192 of 200 prompts, two of them 184: the stream offers no prompt twice in one pass."""
    run = simulate("uniform", SimulatedLearner(200), batch_size=8, group_size=4, seed=0, until=lambda run: run.steps >= 2)
    assert run.starved == [192, 184]
    assert run.starved_at(8 * 4) == 192
    assert run.starved_at(1_000) == 184


@pytest.mark.parametrize("method", ["speed", "pilot-commit"])
def test_a_group_that_is_continued_is_one_group(method):
    """Pilots that go on come in two tickets; what is counted are groups."""
    learner = SimulatedLearner(200, pool="balanced")
    run = simulate(method, learner, batch_size=8, group_size=8, seed=0, until=lambda run: run.steps >= 4)
    visited = len(learner.difficulty) - run.starved[-1]
    assert visited == sum(run.groups)  # within the first pass each prompt is one group
    assert sum(run.mixed) <= sum(run.groups)


def test_all_stands_for_every_method_and_says_what_it_leaves_out(monkeypatch):
    some = {name: EVERY[name] for name in ("uniform", "prepo", "gps-ppm-20m")}
    monkeypatch.setattr("edgewise.lab.simulate.EVERY", some)
    said = []
    found = compare(["all"], prompts=200, steps=2, seeds=1, say=said.append)
    assert list(found.runs) == ["uniform", "prepo", "dapo"]
    assert said[0].startswith("left out: gps-ppm-20m: ")


def test_a_method_whose_signal_is_not_served_is_named(monkeypatch):
    served = property(lambda self: {PROMPT_ENTROPY: lambda rows: self.prompt_entropy[rows]})
    monkeypatch.setattr(SimulatedLearner, "signals", served)
    monkeypatch.setattr("edgewise.lab.simulate.EVERY", {name: EVERY[name] for name in ("greso", "oracle")})
    said = []
    assert list(compare(["all"], prompts=200, steps=2, seeds=1, say=said.append).runs) == ["greso", "dapo"]
    assert any(line.startswith("left out: oracle: The method 'oracle' needs the signal pass_rate") for line in said)
    with pytest.raises(HostError, match="'oracle' needs the signal pass_rate"):
        compare(["oracle"], prompts=200, steps=2, seeds=1)


# ------------------------------------------------------------------------------------------------------------ the verb

SMALL = ["simulate", "--prompts", "200", "--steps", "3", "--seeds", "2", "--methods", "greso,uniform"]


def test_every_line_says_that_it_is_simulated(capsys, tmp_path):
    assert main([*SMALL, "--out", str(tmp_path / "new" / "run")]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert all(line.startswith("simulated |") for line in lines)
    assert printed.err == ""
    assert f"simulated | written: {tmp_path}/new/run/simulated.json" in lines
    assert lines[-1].startswith("simulated | next: edgewise methods ")
    written = json.loads((tmp_path / "new" / "run" / "simulated.json").read_text())
    assert written["simulated"] is True
    assert len(written["curves"]) == 6  # dapo is the reference, asked for or not
    assert written["curves"][0]["responses"][0] == 0


def test_json_is_json_and_nothing_else(capsys):
    assert main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["simulated"] is True
    assert [row["method"] for row in found["methods"]] == ["greso", "uniform", "dapo"]
    assert found["settings"]["seeds"] == 2
    assert found["start"]["entropy_pass_corr"] < -0.5


def test_one_seed_has_no_interval_and_says_so(capsys):
    assert main(["simulate", "--prompts", "200", "--steps", "2", "--seeds", "1", "--methods", "uniform"]) == 0
    printed = capsys.readouterr().out
    assert "simulated | 1 seed: no interval; --seeds 5 says more." in printed
    assert "nan" not in printed


def test_an_output_folder_that_cannot_be_written_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"edgewise: --out {tmp_path / 'file'}: cannot be written (")
