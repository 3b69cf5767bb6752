"""The rows of `speed` about many micro batches of one sequence, which the simulator merges.

The other sides: a plain loop as its user finds it; the same in a process that keeps freed memory, as the
simulator's does; and, there too, a loop over one batch of all these sequences. The last one computes another
loss, a mean over the whole batch, with the fewest operations: it is the bound of what merging can reach.
"""

from __future__ import annotations

from typing import Dict, Tuple

PLAIN, KEEPS_MEMORY, ONE_BATCH = "plain_loop", "plain_loop_that_keeps_memory", "one_batch"

# Name -> the other side, model, dtype, sequences per micro batch, micro batches per update.
COMPARISONS: Tuple[Tuple[str, str, str, str, int, int], ...] = tuple(
    (f"accumulation_{count}_vs_{other}", other, size, "float32", 1, count)
    for size, count in (("tiny", 64), ("mini", 16))
    for other in (PLAIN, KEEPS_MEMORY, ONE_BATCH)
)
_TO_REACH = {64: (3.5, 4.0), 16: (1.7, 2.0)}
# Name -> the goal, and what would be better still.
GOALS: Dict[str, Tuple[float, float]] = {
    name: (0.95, 1.0) if other == ONE_BATCH else _TO_REACH[count]
    for name, other, _, _, _, count in COMPARISONS
}
