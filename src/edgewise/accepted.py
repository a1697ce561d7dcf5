"""Whose outcome is it? Those of open and of expired tickets count, once; what anything else is gets counted, or said."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from edgewise.errors import OutcomeError
from edgewise.types import Outcome, Ticket

if TYPE_CHECKING:
    from edgewise.selector import Selector

_NAMED = 3
"""Tickets that an error names as the nearest."""


def accepted(
    selector: Selector, reported: Sequence[Outcome], held: Mapping[int, Ticket], answered: Container[int]
) -> tuple[list[Outcome], list[Outcome]]:
    """Outcomes of `held` tickets and outcomes of expired ones, that agree with what was issued, in the order given.

    Repeats and unknown tickets are counted in `dup_outcomes`, and raise an OutcomeError in strict mode; what is no outcome, or
    was issued otherwise, is a problem. Nothing is changed by it but counts.

    answered: tickets of `held` whose outcome is known and waits for others.
    """
    good: list[Outcome] = []
    late: list[Outcome] = []
    seen: set[int] = set()
    for outcome in reported:
        if not isinstance(outcome, Outcome) or not _is_ticket(outcome.ticket):
            selector.problem(
                OutcomeError(
                    f"report(...) takes a list of edgewise.Outcome, each with the ticket it answers, got {outcome!r:.200}. "
                    "It is left out."
                )
            )
            continue
        seq = outcome.ticket.seq
        issued = held.get(seq) or selector._expired.get(seq)
        if issued is None or seq in seen or seq in answered:
            selector._totals["dup_outcomes"] += 1
            if selector.strict:
                raise OutcomeError(_stranger(outcome.ticket, held, selector._next_seq))
            continue
        differs = [] if outcome.ticket is issued else _differs(selector, outcome.ticket, issued)
        if differs:
            selector.problem(
                OutcomeError(
                    f"Outcome for ticket {issued.seq}: it was issued for prompt {issued.prompt_id!r} and is reported for "
                    f"{outcome.ticket.prompt_id!r}, with another {', '.join(differs)}. The outcome is refused whole."
                )
            )
            continue
        seen.add(seq)
        (good if seq in held else late).append(outcome if outcome.ticket is issued else replace(outcome, ticket=issued))
    return good, late


def _differs(selector: Selector, given: Ticket, issued: Ticket) -> list[str]:
    """Names of what two tickets of one number do not agree in.

    What was predicted may differ: it does not always come back from a host bit for bit. So may the row, once the data set was
    edited between two runs: an outcome may come back with the row that its prompt had before.
    """
    free = {"predicted_pass_rate"} if selector._stream.slots.rows is None else {"predicted_pass_rate", "row"}
    names = [field.name for field in fields(Ticket) if field.name not in free]
    return [name for name in names if getattr(given, name) != getattr(issued, name)]


def _stranger(ticket: Ticket, held: Mapping[int, Ticket], next_seq: int) -> str:
    """What to say of a ticket that is not open."""
    known = ticket.seq < next_seq
    why = "it was already reported or cancelled, or `take` issued it." if known else "no such ticket was issued."
    near = sorted(held, key=lambda seq: abs(seq - ticket.seq))[:_NAMED]
    named = ", ".join(f"{seq} ({held[seq].prompt_id!r})" for seq in near)
    same = [str(seq) for seq, open_ in held.items() if open_.prompt_id == ticket.prompt_id][:_NAMED]
    return (
        f"Outcome for ticket {ticket.seq} of prompt {ticket.prompt_id!r}: {why} Nearest open tickets: {named or 'none'}."
        + f" Open tickets of that prompt: {', '.join(same)}." * bool(same)
    )


def _is_ticket(given: object) -> bool:
    return isinstance(given, Ticket) and isinstance(given.seq, (int, np.integer))
