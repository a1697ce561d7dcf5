"""The fault matrix: what may go wrong, and what edgewise promises then. The numbers are those of docs/reliability.md.

Tests note by number what they tried (`tests/ledger.py`).
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One row of the matrix."""

    part: str
    fault: str
    promise: str


_STORAGE: dict[int, tuple[str, str]] = {
    1: (
        "kill -9 while a snapshot is written",
        "The last committed state loads. Temporary files left behind are removed by the next writer.",
    ),
    2: (
        "kill -9 while a record is appended to the journal",
        "The torn tail is left out, said and kept; every record before it counts. Nothing is ever appended behind bytes that "
        "cannot be read: a new writer begins a new journal file.",
    ),
    3: (
        "power loss: a tail of NULs, an empty file, a file of zeros, a rename without data",
        "Taken as torn; the newest state that is whole loads.",
    ),
    4: (
        "a flipped bit",
        "Found by a hash, said with the file; the newest state that is whole loads, never a silently different one.",
    ),
    5: (
        "disk full while a snapshot is written",
        "The run goes on, one loud warning, a metric; the last good state stays; every later commit tries again.",
    ),
    6: (
        "disk full while the journal is written",
        "The same; once there is space the next commit writes a whole snapshot, and nothing was lost.",
    ),
    7: ("read-only file system, permission lost, quota, I/O error", "As 5. In strict mode the commit raises."),
    8: (
        "the directory removed, replaced by a file, or moved under the run",
        "Made again with a whole snapshot where that is possible, else as 5.",
    ),
    9: (
        "the selector's state is missing on resume",
        "An error before the first step that says where it was looked for; resume='fresh' starts without it.",
    ),
    10: (
        "a state of another run, method or group_size",
        "Refused with the fields that differ, nothing loaded; resume='adapt' takes another group_size, seed and parameters.",
    ),
    11: ("a state of a newer format", "Refused; the message names the version that reads it."),
    12: ("a state of an older format", "Read and carried on; the old file is kept as a backup."),
    13: (
        "the newest of two generations is damaged",
        "The next older one and its journal load; the message says which file is damaged and which step stands.",
    ),
    14: (
        "an object store whose rename copies, and may copy half",
        "A state carries its own hash: a half copy is passed over like any damaged file (the guide: marker files).",
    ),
}

_PROCESSES: dict[int, tuple[str, str]] = {
    15: ("two writers in one run directory", "The second is refused at once, with host, pid and age of the first."),
    16: (
        "a writer frozen, its lease taken over, wakes up",
        "It is fenced: nothing that it appends counts; it notices, says so and stops writing.",
    ),
    17: (
        "a lease left by a dead machine",
        "It expires once its heartbeat was seen to stand still on a monotonic clock; never by wall time or another host's pid.",
    ),
    18: ("clocks jump or disagree", "Order comes from counters; wall time is a label. The same run gives the same state."),
    19: ("fork with a state open", "The child knows that it is not the writer: it never writes, and the parent goes on."),
    20: ("SIGTERM with 30 s of grace", "Nothing to do: the last commit stands, exactly."),
    21: (
        "an actor restarted, every call made twice",
        "Building it again loads its state; a repeated call has the same answer and changes nothing.",
    ),
    22: (
        "a reader (a report) while the run writes",
        "It reads a whole state without a lock, and never blocks or breaks the run.",
    ),
}

_OUTCOMES: dict[int, tuple[str, str]] = {
    23: ("an outcome reported twice", "Counts once; the repeat is counted in dup_outcomes and changes nothing."),
    24: (
        "outcomes out of order",
        "Learned in the order of their tickets at the next decision: the same final state for every order of arrival.",
    ),
    25: (
        "an outcome of an old policy",
        "Judged and learned like any other, or, of an expired ticket, learned and not trained on; it holds nothing up.",
    ),
    26: (
        "an outcome that never comes",
        "Its ticket expires (expire_after) and frees its prompt; it outlives restarts; a late arrival teaches once.",
    ),
    27: ("an unknown ticket or id", "Counted and left out; in strict mode an error."),
    28: ("prompt ids that do not match their tickets", "Refused whole."),
    29: ("a partial group: 5 of 8", "Teaches by what came; never filled up from a neighbour."),
    30: ("an empty group, all rollouts failed", "A failure of infrastructure, not a pass rate of 0."),
    31: ("a group of one", "No signal, no NaN."),
    32: (
        "a group of 4,096, or of changing size",
        "Time grows with the rollouts; counts are whole; estimates use the true size.",
    ),
    33: ("a NaN reward", "That rollout is missing, the group goes on; the state stays finite."),
    34: ("±inf, 1e308", "Refused and said beyond 1e100, never clipped; the state stays finite."),
    35: ("a reward of None", "That rollout is missing."),
    36: (
        "graded, negative rewards, or beyond 1",
        "A pass is the host's verdict, or a reward of at least correct_at; zero variance is judged on the rewards themselves.",
    ),
    37: ("float noise in equal rewards", "They count as equal; no variance is negative."),
    38: ("rewards as bool, numpy, torch, 0-d, text", "Taken as numbers, or refused with the index of the entry."),
    39: ("the verifier changes in the middle of a run", "The measured error of predictions jumps: a metric that shows it."),
    40: ("an entropy that is NaN, None, 0 or constant", "Scored without it; it never changes the order of the others."),
    41: ("all scores NaN, all weights 0", "Uniform for that round, with a warning."),
}

_POOL: dict[int, tuple[str, str]] = {
    42: ("an empty data set", "An error before anything is loaded."),
    43: (
        "fewer prompts than the batch",
        "A smaller batch of distinct prompts, and a message; never one prompt twice in a batch.",
    ),
    44: (
        "everything filtered, mastered or impossible",
        "A bounded number of calls; a batch still comes while the method asks for one, and it is counted how.",
    ),
    45: (
        "the pool drains one way",
        "Every parked or retired prompt comes back. Methods whose paper asks for no floor may still leave one out for long.",
    ),
    46: ("duplicate ids", "An error that lists five; duplicates='merge' or 'suffix' accepts them."),
    47: ("one text under two ids", "A warning with the count."),
    48: (
        "ids that are missing, or the same in every row",
        "Fingerprints take their place; one id for several prompts is refused.",
    ),
    49: ("a trainer's uid that is random in each step", "Never an id here: hosts map to the row of the pool."),
    50: (
        "the data set edited between two runs",
        "By id: added -> prior, removed -> parked, changed -> reset, reordered -> no effect; one line says how many. Refused "
        "if less than half of the saved prompts are still there.",
    ),
    51: (
        "another world size, number of workers or batch size",
        "The same prompts for the same batch; another batch is allowed and said.",
    ),
    52: ("a loader that reads ahead", "Open tickets are handed out again: none lost, none doubled."),
    53: ("resume at the border of an epoch", "The next epoch runs in full."),
    54: ("resumed twice, or from an older step", "It rewinds to that step; the second resume equals the first."),
    55: (
        "ids with NFC and NFD, emoji, right-to-left text, 10 KB, newlines, U+2028, NUL, lone surrogates",
        "Kept to the code point; lone surrogates are allowed in text and refused in ids.",
    ),
    56: ("ids such as ../../x, /etc/x, con, 300 characters", "An id never becomes a file name."),
}

_HOSTILE: dict[int, tuple[str, str]] = {
    57: ("a pickle bomb as a state", "Refused before any of it runs; the package imports no pickle."),
    58: (
        "a zip bomb, a lying shape, deep JSON, a number of 5,000 digits, duplicate keys, a huge file",
        "Sizes are checked before anything is allocated: an error within a second and 200 MB.",
    ),
    59: ("a symbolic link in the run directory that points out", "Never written or read through."),
    60: (
        "a typo, a wrong type or a negative number in the configuration",
        "An error before anything loads, with the nearest name and the range.",
    ),
    61: ("a user's method raises, or answers wrong, too few or double rows", "Uniform for that round, said once, counted."),
    62: ("a user's method changes what it was given", "It cannot: it works on copies of its own."),
    63: ("a logger that is down, or refuses a key", "Watching and logging never stop a run."),
    64: (
        "1M prompts, 1M steps",
        "Memory stays flat, the journal is compacted; at 100,000 prompts a choice takes < 5 ms, a commit < 10; < 200 MB at 1M.",
    ),
}

FAULTS: dict[int, Fault] = {
    number: Fault(part, *row)
    for part, rows in (
        ("Storage", _STORAGE),
        ("Processes and time", _PROCESSES),
        ("Outcomes", _OUTCOMES),
        ("Pool and data", _POOL),
        ("Hostile or broken input", _HOSTILE),
    )
    for number, row in rows.items()
}
"""Number -> what goes wrong and what is promised."""
