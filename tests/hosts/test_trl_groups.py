"""Groups of different sizes, continued, held and weighted, through the real GRPOTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from trl.trainer.utils import nanstd

import edgewise
from edgewise.errors import DegradedWarning, HostError
from edgewise.hosts.trl import attach
from edgewise.hosts.trl_advantage import group_advantages
from edgewise.method import Method, StepView
from edgewise.types import Groups, MethodState, Requests, Setting, Verdicts
from tests.hosts import tiny
from tests.hosts.tiny import G

# -- the formulas ------------------------------------------------------------------------------------------------------


def of_trl(rewards: torch.Tensor, weights: torch.Tensor, scale: str, aggregation: str) -> torch.Tensor:
    """TRL 1.16's `_generate_and_score_completions`, its advantage lines, written out for (groups, G, functions)."""
    flat = rewards.reshape(-1, rewards.shape[2])
    unscored = flat.isnan().all(dim=1)
    if aggregation == "sum_then_normalize":
        total = (flat * weights).nansum(dim=1)
        total[unscored] = torch.nan
        grid = total.view(rewards.shape[0], -1)
        advantage = total - grid.nanmean(dim=1).repeat_interleave(grid.shape[1])
        if scale == "group":
            advantage = advantage / (nanstd(grid, dim=1).repeat_interleave(grid.shape[1]) + 1e-4)
        elif scale == "batch":
            advantage = advantage / (nanstd(total) + 1e-4)
    else:
        scaled = (rewards - rewards.nanmean(dim=1, keepdim=True)) / (nanstd(rewards, dim=1, keepdim=True) + 1e-4)
        total = (scaled.reshape(-1, rewards.shape[2]) * weights).nansum(dim=1)
        total[unscored] = torch.nan
        advantage = (total - total.nanmean()) / (nanstd(total) + 1e-4)
    return advantage.nan_to_num(nan=0.0)


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_on_groups_of_one_size_advantages_are_those_of_trl(scale: str, aggregation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand((6, 5, 2), generator=generator)
    rewards[1, :, 0] = torch.nan
    rewards[2, 3] = torch.nan
    rewards[3] = 0.25
    weights = torch.tensor([1.0, 0.5])
    ours = torch.cat(group_advantages(list(rewards), weights, scale=scale, aggregation=aggregation))
    assert torch.allclose(ours, of_trl(rewards, weights, scale, aggregation), atol=2e-6)


def test_a_group_is_normalised_by_itself_whatever_its_size() -> None:
    groups = [torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0], [0.0], [0.0]]), torch.tensor([[1.0]])]
    two, four, one = group_advantages(groups, torch.ones(1), scale="group", aggregation="sum_then_normalize")
    assert two.tolist() == pytest.approx([0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)])
    assert four.tolist() == pytest.approx([0.75 / (0.5 + 1e-4)] + [-0.25 / (0.5 + 1e-4)] * 3)
    assert one.tolist() == [0.0]


# -- through the trainer -----------------------------------------------------------------------------------------------


class Shaped(Method):
    """Asks for the next prompts with the rollouts that `sizes` gives in turn; judges as the test says."""

    name: ClassVar[str] = "shaped"

    def __init__(self, sizes: list[int], judge: Any = None, *, needs: frozenset[str] = frozenset()) -> None:
        self.sizes, self._judge, self.needs = sizes, judge, needs

    def start(self, setting: Setting) -> None:
        self.visits = np.zeros(setting.pool_size, dtype=np.int64)
        self.seen: list[Groups] = []

    def propose(self, room: int, step: StepView) -> Requests:
        rows = step.draw(room)
        return Requests(rows, np.resize(np.array(self.sizes), len(rows)))

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        verdicts: Verdicts = super().judge(groups, step) if self._judge is None else self._judge(groups, step)
        return verdicts

    def observe(self, groups: Groups, step: StepView) -> None:
        self.visits[groups.rows] += 1
        self.seen.append(groups)

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        return {}

    def state(self) -> MethodState:
        return MethodState(prompts={"visits": self.visits})

    def restore(self, state: MethodState) -> None:
        self.visits = state.prompts["visits"].copy()


def captured(trainer: Any) -> list[tuple[list[str], torch.Tensor]]:
    """(prompts, advantages) of every batch that the optimizer gets, before TRL shuffles it."""
    batches: list[tuple[list[str], torch.Tensor]] = []
    inner = type(trainer)._generate_and_score_completions

    def spy(inputs: Any) -> Any:
        batch = inner(trainer, inputs)
        texts = trainer.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
        batches.append(([text.replace(" ", "") for text in texts], batch["advantages"].clone()))
        return batch

    trainer._generate_and_score_completions = spy
    return batches


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def expected(groups: Groups, i: int) -> list[float]:
    """The GRPO advantage of group i over its own rollouts, by hand."""
    r = groups.rewards[i, : groups.asked[i]]
    return ((r - r.mean()) / (r.std(ddof=1) + 1e-4)).tolist()


def test_groups_of_different_sizes_train_on_advantages_of_their_own(tmp_path: Path) -> None:
    method = Shaped([2, 6])
    trainer = tiny.trainer(tmp_path, max_steps=3, per_device_train_batch_size=4 * G)
    attach(trainer, method, on_problem="strict")
    batches = captured(trainer)
    trainer.train()
    assert len(batches) == 3
    for (prompts, advantages), groups in zip(batches, method.seen, strict=True):
        assert groups.asked.tolist() == [2, 6, 2, 6]
        texts = trainer.train_dataset["prompt"]
        assert prompts == [texts[row] for row, n in zip(groups.rows, groups.asked, strict=True) for _ in range(n)]
        by_hand = [value for i in range(4) for value in expected(groups, i)]
        assert advantages.tolist() == pytest.approx(by_hand, abs=1e-5)
    logged = [line["frac_reward_zero_std"] for line in trainer.state.log_history if "frac_reward_zero_std" in line]
    assert logged == [pytest.approx(float((a == 0).float().mean())) for _, a in batches]


def screen(groups: Groups, step: StepView) -> Verdicts:
    """Pilot of 2; those with two valid rollouts get the other 2 in the next round."""
    pilot = groups.asked == 2
    return Verdicts(~pilot, ("",) * len(groups), more=np.where(pilot, 2, 0))


def test_a_screened_group_trains_on_all_its_rollouts(tmp_path: Path) -> None:
    method = Shaped([2], screen)
    trainer = tiny.trainer(tmp_path, max_steps=2, per_device_train_batch_size=2 * G)
    selector = attach(trainer, method, on_problem="strict")
    batches = captured(trainer)
    trainer.train()
    for (_, advantages), groups in zip(batches, method.seen, strict=True):
        assert groups.asked.tolist() == [G, G]
        assert advantages.tolist() == pytest.approx([v for i in range(2) for v in expected(groups, i)], abs=1e-5)
    assert selector.metrics["rounds"] == 2
    assert selector.metrics["rollouts_total"] == 2 * 2 * G


def hold(groups: Groups, step: StepView) -> Verdicts:
    """Every pilot goes on in the next step."""
    pilot = groups.asked == 2
    return Verdicts(~pilot, ("",) * len(groups), hold=np.where(pilot, 2, 0))


def held_run(tmp_path: Path, resume: str | None, steps: int = 5) -> tuple[Any, Shaped, Any, list[Any]]:
    method = Shaped([2], hold)
    trainer = tiny.trainer(
        tmp_path, max_steps=steps, per_device_train_batch_size=3 * G, save_strategy="steps", save_steps=1,
        data=tiny.dataset(18),
    )  # fmt: skip
    selector = attach(trainer, method, on_problem="degrade")
    batches = captured(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, method, selector, batches


def test_held_groups_are_trained_in_a_later_step_and_survive_every_kill(tmp_path: Path) -> None:
    whole, method, selector, batches = held_run(tmp_path, None)
    final = weights(whole)
    assert any(
        (groups.policy_versions[:, :G].min(axis=1) < groups.policy_versions[:, :G].max(axis=1)).any() for groups in method.seen
    )
    for k in range(1, 5):
        again, _, resumed, later = held_run(tmp_path, str(tmp_path / f"checkpoint-{k}"))
        assert torch.equal(weights(again), final)
        assert resumed.metrics["rollouts_total"] == selector.metrics["rollouts_total"]
        for (a, b), (c, d) in zip(batches[len(batches) - len(later) :], later, strict=True):
            assert a == c
            assert torch.equal(b, d)


def test_a_checkpoint_without_the_held_rollouts_gives_their_groups_up_and_says_so(tmp_path: Path) -> None:
    held_run(tmp_path, None)
    (tmp_path / "checkpoint-2" / "edgewise" / "waiting-0.json").write_text("{")
    with pytest.warns(DegradedWarning) as warned:
        trainer, _, selector, _ = held_run(tmp_path, str(tmp_path / "checkpoint-2"))
    texts = " ".join(str(w.message) for w in warned)
    assert "cannot be read" in texts
    assert "given up" in texts
    assert trainer.state.global_step == 5


def test_weights_scale_advantages_and_untrained_rollouts_stay_in_the_baseline(tmp_path: Path) -> None:
    def halves(groups: Groups, step: StepView) -> Verdicts:
        trained = np.zeros(groups.rewards.shape, dtype=bool)
        trained[:, :G] = True
        factors = np.full(groups.rewards.shape, 0.5)
        factors[:, 0] = 3.0
        return Verdicts(groups.rows >= 0, ("",) * len(groups), trained=trained, weights=factors)

    method = Shaped([2 * G], halves)
    trainer = tiny.trainer(tmp_path, max_steps=2, per_device_train_batch_size=2 * G)
    attach(trainer, method, on_problem="strict")
    batches = captured(trainer)
    trainer.train()
    for (_, advantages), groups in zip(batches, method.seen, strict=True):
        by_hand = []
        for i in range(2):
            whole = expected(groups, i)[:G]
            by_hand += [whole[0] * 3.0, *(value * 0.5 for value in whole[1:])]
        assert advantages.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_signals_come_from_the_model_the_data_set_and_the_text(tmp_path: Path) -> None:
    data = tiny.dataset(12)
    data = data.add_column("difficulty", [float(i) for i in range(12)]).add_column("category", ["b", "a", "c"] * 4)
    trainer = tiny.trainer(tmp_path, data=data, max_steps=1)
    attach(trainer, "uniform")
    signals = trainer._edgewise.signals
    assert {"prompt_entropy", "prompt_perplexity", "rollout_entropy", "embedding", "difficulty", "category"} <= signals.served
    functions = signals.functions(trainer._edgewise._score_everywhere)
    rows = np.array([3, 0, 4])
    assert functions["difficulty"](rows).tolist() == [3.0, 0.0, 4.0]
    assert functions["category"](rows).tolist() == [1.0, 1.0, 0.0]
    assert functions["embedding"](rows).shape == (3, 256)
    assert (functions["prompt_perplexity"](rows) >= 1.0).all()


def test_a_method_whose_signal_is_missing_is_refused_at_start_in_words(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=1)
    with pytest.raises(HostError, match="needs the signal anchor_rates, which this host does not serve"):
        attach(trainer, Shaped([G], needs=frozenset({"anchor_rates"})))
    with pytest.raises(HostError, match="difficulty"):
        attach(trainer, Shaped([G], needs=frozenset({"difficulty"})))


def test_the_run_length_is_told_to_methods_that_follow_a_schedule(tmp_path: Path) -> None:
    told: list[int | None] = []

    class Told(Shaped):
        def start(self, setting: Setting) -> None:
            super().start(setting)
            told.append(setting.total_steps)

    attach(tiny.trainer(tmp_path, max_steps=12, num_iterations=2, gradient_accumulation_steps=3), Told([G]))
    attach(tiny.trainer(tmp_path, max_steps=-1), Told([G]))
    assert told == [6, None]
    assert edgewise.__version__
