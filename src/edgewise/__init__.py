"""edgewise: which prompts deserve rollouts next?

    import edgewise

    selector = edgewise.Selector("hive", pool, batch_size=256, group_size=8)

`edgewise.hosts.trl.attach(trainer, "hive")` puts a selector into a TRL `GRPOTrainer`.
To read the code, begin with `types`, `method` and `errors`.
"""

from edgewise._version import __version__
from edgewise.compose import compose
from edgewise.errors import EdgewiseError
from edgewise.method import Method
from edgewise.methods import METHODS, make
from edgewise.methods.user import Composed
from edgewise.pool import PromptPool
from edgewise.selector import Selector
from edgewise.step import Step
from edgewise.types import Groups, Outcome, Requests, Ticket, Verdicts

__all__ = [
    "METHODS",
    "Composed",
    "EdgewiseError",
    "Groups",
    "Method",
    "Outcome",
    "PromptPool",
    "Requests",
    "Selector",
    "Step",
    "Ticket",
    "Verdicts",
    "__version__",
    "compose",
    "make",
]
