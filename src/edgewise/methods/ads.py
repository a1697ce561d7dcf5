"""ADS, Adaptive Data Scheduling, arXiv 2606.22305: clusters of like prompts, in each a small set at the edge of what passes.

Once: 64 k-means clusters of the embeddings, each sorted easy to hard by an offline difficulty; the set of a cluster is its
easiest m = B / 4 prompts. A batch is the sets of 4 clusters, drawn without replacement with chances p_k. After a batch
(equations 4 to 7 of the paper, as its code numbers them):

    r_k <- mean pass rate of the cluster's prompts in the batch, 1/2 at first
    p_k <- 0.7 p_k + 0.3 r_k / Σ r
    a prompt of the set with pass rate below 0.5 - 0.17 gives way to its easier neighbour, above 0.5 + 0.17 to its harder one

Places that are taken give the nearest free one, in the direction of the move first. After every pass over the pool, N / B
batches, the schedule starts anew.

Differs from the paper in: vectors are clustered as they are served, scaled to length 1, without the code's PCA to 128
dimensions; m follows from the batch size (32 at the paper's 128); where prompts in flight leave a set short, further
clusters are drawn, then any prompt. Written from the authors' code; of the paper itself only what that code says was seen.
The batch of an asynchronous host is what was reported before a new policy version first asks. Clusters are not saved but
built again after a resume, and the schedule starts anew if they come out of other sizes, and when the data set was edited.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.clusters import clusters, easy_to_hard
from edgewise.choosers.rank import Proportional
from edgewise.errors import SignalError, StateMismatchError
from edgewise.method import StepView, renumbered
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling, shared_array
from edgewise.methods.entry import Entry
from edgewise.prediction import Visits
from edgewise.types import DIFFICULTY, EMBEDDING, Floats, Groups, Ints, MethodState, Requests, Setting

_NONE = np.empty(0, dtype=np.int64)


def moved_set(places: Ints, moves: Ints, size: int) -> Ints:
    """The set of a cluster after a batch: as many distinct places as before, rising. [code: ads_sampler.py]

    places: (m,) distinct, in [0, size), 0 = easiest.  moves: (m,) -1 to an easier place, +1 to a harder one, 0 to stay.

    >>> moved_set(np.array([0, 1, 2]), np.array([1, 0, 1]), 6).tolist()
    [1, 2, 3]
    """
    if size <= len(places):
        return np.sort(places)
    taken = np.zeros(size, dtype=np.bool_)
    taken[places[moves == 0]] = True
    easier, harder = np.sort(places[moves < 0]), np.sort(places[moves > 0])[::-1]
    for place, move in [*((p, -1) for p in easier.tolist()), *((p, 1) for p in harder.tolist())]:
        wanted = min(max(place + move, 0), size - 1)
        free = np.flatnonzero(~taken)
        against = (free - wanted) * move < 0  # of two free places as near, the one in the direction of the move
        taken[free[np.lexsort((against, np.abs(free - wanted)))[0]]] = True
    return np.flatnonzero(taken).astype(np.int64)


@dataclass(kw_only=True, eq=False)
class Ads(DynamicSampling):
    """Draws clusters by how well they pass, and from each a set of prompts that follows the pass rate of one half."""

    name: ClassVar[str] = "ads"

    clusters: int = 64
    """K. [code, as the paper's]"""
    active: int = 4
    """Clusters in a batch. [code, as the paper's]"""
    band: float = 0.17
    """ε: pass rates within this of one half stay. [code, as the paper's]"""
    smoothing: float = 0.3
    """α: weight of the newest pass rates in the chances of clusters. [code, as the paper's]"""
    restart_after: int | None = None
    """Batches after which the schedule starts anew. None: one pass over the pool [code, as the paper's]; 0: never."""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    batch_size: int = field(default=0, init=False, repr=False)
    _rows: list[Ints] | None = field(default=None, init=False, repr=False)
    _cluster: Ints = field(init=False, repr=False)
    _place: Ints = field(init=False, repr=False)
    _seed: int = field(default=-1, init=False, repr=False)
    _version: int = field(default=-1, init=False, repr=False)
    _batches: int = field(default=0, init=False, repr=False)
    _sizes: Ints = field(init=False, repr=False)
    _chances: Floats = field(init=False, repr=False)
    _rates: Floats = field(init=False, repr=False)
    _sets: Ints = field(init=False, repr=False)
    _heard_rows: Ints = field(init=False, repr=False)
    _heard: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(self, "clusters", low=1)
        checks.whole(self, "active", low=1)
        checks.number(self, "band", low=0.0, high=0.5)
        checks.number(self, "smoothing", low=0.0, high=1.0)
        if self.restart_after is not None:
            checks.whole(self, "restart_after", low=0, advice="None restarts after every pass over the pool.")
        self.needs = frozenset({EMBEDDING, DIFFICULTY})

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self.batch_size = setting.batch_size
        self._rows, self._seed, self._version, self._sizes = None, -1, -1, _NONE
        self._heard_rows, self._heard = _NONE, np.empty(0)
        self._begin()

    def _begin(self) -> None:
        """The schedule at the start of a pass: every cluster alike, every set at the easy end."""
        count = len(self._sizes)
        self._chances, self._rates, self._batches = np.full(count, 1.0 / max(count, 1)), np.full(count, 0.5), 0
        width = -(-self.batch_size // min(self.active, max(count, 1)))
        places = np.broadcast_to(np.arange(width, dtype=np.int64), (count, width))
        self._sets = np.where(places < self._sizes[:, None], places, -1)

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        rows = self._known_clusters(step)
        self._follow(step)
        order = Proportional()(self._chances, len(rows), step.rng("clusters"))
        chosen = _NONE
        for cluster in order.tolist():
            places = self._sets[cluster]
            candidates = rows[cluster][places[places >= 0]]
            candidates = candidates[step.eligible(candidates)]
            shuffled = step.rng(f"set {cluster}").permutation(candidates)
            chosen = np.concatenate([chosen, shuffled[: target - len(chosen)]])
            if len(chosen) == target:
                break
        if len(chosen) < target:
            chosen = np.concatenate([chosen, self._others(chosen, target - len(chosen), step)])
        if len(chosen) == 0:
            return self.nothing_left(room, step)
        return Requests.of(chosen, self.group_size)

    def _others(self, chosen: Ints, most: int, step: StepView) -> Ints:
        """At most `most` prompts outside all sets, drawn uniformly."""
        pool = np.arange(self.pool_size, dtype=np.int64)
        free = pool[step.eligible(pool) & ~np.isin(pool, chosen)]
        others = step.rng("others").permutation(free)[:most]
        step.log(outside_sets=len(others))
        return others

    def _known_clusters(self, step: StepView) -> list[Ints]:
        """Rows of each cluster, easy to hard; the first call of a process asks the host and clusters."""
        if self._seed < 0:
            self._seed = int(step.rng("seed of clusters").integers(2**62))
        if self._rows is None:
            found = self._cluster_pool(step)
            self._rows = [rows for rows in found if len(rows)]
            self._cluster, self._place = np.empty(self.pool_size, dtype=np.int64), np.empty(self.pool_size, dtype=np.int64)
            for cluster, rows in enumerate(self._rows):
                self._cluster[rows], self._place[rows] = cluster, np.arange(len(rows))
        sizes = np.array([len(rows) for rows in self._rows], dtype=np.int64)
        if not np.array_equal(sizes, self._sizes):
            if len(self._sizes):
                step.problem(
                    StateMismatchError(
                        f"Ads: the saved schedule is of {len(self._sizes)} clusters, and the embeddings served now give "
                        f"{len(sizes)} of other sizes. The schedule starts anew; serve the same vectors in every run."
                    )
                )
            self._sizes = sizes
            self._begin()
        return self._rows

    def _cluster_pool(self, step: StepView) -> list[Ints]:
        pool = np.arange(self.pool_size, dtype=np.int64)
        vectors, difficulty = step.signal(EMBEDDING, pool), step.signal(DIFFICULTY, pool)
        usable = np.asarray(np.isfinite(vectors).all(axis=1), dtype=np.bool_)
        known = np.isfinite(difficulty)
        for name, good, then in (
            (EMBEDDING, usable, "These prompts form a cluster of their own."),
            (DIFFICULTY, known, "These prompts are the hardest of their cluster."),
        ):
            if not good.all():
                first = int(np.flatnonzero(~good)[0])
                step.problem(
                    SignalError(
                        f"signal({name!r}) of prompt row {first} must be finite ({int((~good).sum())} of {len(good)} "
                        f"prompts are not). {then}"
                    )
                )
        cluster = np.zeros(self.pool_size, dtype=np.int64)
        if usable.any():
            cluster[usable] = clusters(vectors[usable], self.clusters, np.random.default_rng(self._seed))
        return easy_to_hard(cluster, np.where(known, difficulty, np.inf), usable, self.clusters)

    def _follow(self, step: StepView) -> None:
        """Move chances and sets by the pass rates heard since the last policy version; with none they wait."""
        if step.policy_version == self._version:
            return
        self._version = step.policy_version
        if len(self._heard_rows) == 0:
            return
        cluster, place = self._cluster[self._heard_rows], self._place[self._heard_rows]
        counts = np.bincount(cluster, minlength=len(self._rates))
        means = np.bincount(cluster, self._heard, minlength=len(self._rates)) / np.maximum(counts, 1)
        self._rates = np.where(counts > 0, means, self._rates)
        total = self._rates.sum()
        wanted = self._rates / total if total > 0.0 else np.full(len(self._rates), 1.0 / len(self._rates))
        self._chances = (1.0 - self.smoothing) * self._chances + self.smoothing * wanted
        moves = (self._heard > 0.5 + self.band).astype(np.int64) - (self._heard < 0.5 - self.band)
        step.gauge(too_easy=int((moves > 0).sum()), too_hard=int((moves < 0).sum()), in_band=int((moves == 0).sum()))
        for one in np.unique(cluster).tolist():
            self._move(one, place[cluster == one], moves[cluster == one])
        self._heard_rows, self._heard = _NONE, np.empty(0)
        self._batches += 1
        span = self.pool_size // self.batch_size if self.restart_after is None else self.restart_after
        if 0 < span <= self._batches:
            self._begin()

    def _move(self, cluster: int, places: Ints, moves: Ints) -> None:
        """Move the set of one cluster. Prompts that are no longer in the set move nothing."""
        held = self._sets[cluster][self._sets[cluster] >= 0]
        by_place = np.zeros(int(self._sizes[cluster]), dtype=np.int64)
        by_place[places] = moves
        self._sets[cluster, : len(held)] = moved_set(held, by_place[held], int(self._sizes[cluster]))

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        visits = Visits.of(groups, self.correct_at)
        before = ~np.isin(self._heard_rows, visits.rows)  # the last word on a prompt counts, so that the list stays short
        self._heard_rows = np.concatenate([self._heard_rows[before], visits.rows])
        self._heard = np.concatenate([self._heard[before], visits.successes / visits.trials])

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        shared = {
            **super().state().shared,
            "schedule": np.array([self._seed, self._version, self._batches], dtype=np.int64),
            "sizes": self._sizes,
            "chances": self._chances,
            "rates": self._rates,
            "sets": self._sets,
            "heard_rows": self._heard_rows,
            "heard": self._heard,
        }
        return MethodState(shared=shared)

    def restore(self, state: MethodState) -> None:
        names = ("schedule", "sizes", "chances", "rates", "sets", "heard_rows", "heard")
        found = {name: np.array(shared_array(state, name, "Ads")) for name in names}
        if not len(found["sizes"]) == len(found["chances"]) == len(found["rates"]) == len(found["sets"]):
            raise StateMismatchError("Ads.restore: arrays of one entry a cluster differ in length. Use a state of this method.")
        self._sizes, self._chances, self._rates = found["sizes"], found["chances"], found["rates"]
        self._sets, self._heard_rows, self._heard = found["sets"], found["heard_rows"], found["heard"]
        if int(found["schedule"][0]) != self._seed:  # clusters of another seed
            self._rows = None
        self._seed, self._version, self._batches = map(int, found["schedule"])
        super().restore(state)

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        """Clusters of another pool are other clusters: the schedule starts anew, with what was heard of the last batch."""
        held, fresh = super().adapt(state, rows), self.state().shared
        heard_rows = renumbered(state.shared["heard_rows"], rows)
        anew = {name: fresh[name] for name in ("sizes", "chances", "rates", "sets")}
        seed, version, _ = state.shared["schedule"].tolist()
        own = {
            "schedule": np.array([seed, version, 0], dtype=np.int64),
            "heard_rows": heard_rows[heard_rows >= 0], "heard": state.shared["heard"][heard_rows >= 0],
        }  # fmt: skip
        return MethodState(held.prompts, {**held.shared, **anew, **own})


ENTRIES = {
    "ads": Entry(
        factory=Ads,
        summary="Clusters of like prompts drawn by how well they pass; in each a set that follows a pass rate of one half.",
        signal="pass rates of the last batch",
        keeps="nothing; a set of places a cluster",
        extra_rollouts="zero-variance groups, as in plain GRPO",
        cost="k-means over the pool, once a process; then little",
        when="large pools of many topics with a difficulty measured beforehand; sets leave the easy end by one place a batch",
        paper="ADS, arXiv 2606.22305, as its authors' code runs",
    ),
}
