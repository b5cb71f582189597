"""Plans a run before chips are rented: memory, time and traffic of its real train step."""

from zoo.planning.chips import Slice, find_slice
from zoo.planning.plan import Plan, cached_plan, make_plan
from zoo.planning.search import search, what_would_fit

__all__ = [
    "Plan",
    "Slice",
    "cached_plan",
    "find_slice",
    "make_plan",
    "search",
    "what_would_fit",
]
