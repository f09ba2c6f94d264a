"""Pods of the manager and of the plain script, brought up and down by turns.

A round is both sides at the same thing, one right after the other. The ratio is taken within each
round, because the machine may be busy with other things in one round and not in the next.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from attrs import define, field, frozen

from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio, spread
from bench.node import Node, new_node
from bench.opponent import PlainScript, plain_script
from bench.row import Row

AT_A_TIME = 8
BOUND = 1.25


@frozen
class Side:
    """One side of a round: seconds of each of its pods."""

    up: Sequence[float]
    down: Sequence[float]


@define
class Match:
    """Rounds under the same conditions: ours, and the plain script's."""

    rounds: list[tuple[Side, Side]] = field(factory=list)

    def row(
        self,
        name: str,
        of: Callable[[Side], Sequence[float]],
        which: Callable[[Sequence[float]], float] = median,
    ) -> Row:
        """The ratio of what `of` picks from both sides, by the `which` of each round's pods."""
        pairs = [(which(of(ours)), which(of(plain))) for ours, plain in self.rounds]
        all_ours = [seconds for ours, _ in self.rounds for seconds in of(ours)]
        all_plain = [seconds for _, plain in self.rounds for seconds in of(plain)]
        low, high = paired_interval(pairs)
        return Row(
            name=name,
            value=paired_ratio(pairs),
            bound=BOUND,
            unit="×",
            detail=(
                f"95 %: {low:.2f}–{high:.2f}; ours {spread(all_ours)}, plain {spread(all_plain)}; "
                f"{len(pairs)} rounds of {len(all_ours) // len(pairs)} each"
            ),
            samples={"ours": all_ours, "plain": all_plain},
        )


@define
class Comparison:
    """All matches."""

    in_sequence: Match = field(factory=Match)
    at_a_time: Match = field(factory=Match)


def compare(bench: Bench) -> Comparison:
    """Run all rounds, with one round of each kind before that counts for nothing."""
    found = Comparison()
    with new_node() as node, plain_script(node) as plain:
        for match, count, rounds, how in (
            (found.in_sequence, 1, bench.times(40, 3), "one at a time"),
            (found.at_a_time, AT_A_TIME, bench.times(10, 2), f"{AT_A_TIME} at a time"),
        ):
            bench.step(f"{how}, warming up")
            _one_round(node, plain, 0, count)
            for number in range(rounds):
                bench.step(f"{how}, round {number + 1} of {rounds}")
                match.rounds.append(_one_round(node, plain, number, count))
    return found


def _one_round(node: Node, plain: PlainScript, number: int, count: int) -> tuple[Side, Side]:
    """Both sides once; they take turns in going first."""
    names = [f"pod{index}" for index in range(count)]
    if number % 2:
        theirs = _plain_turn(plain, names)
        return _our_turn(node, names), theirs
    return _our_turn(node, names), _plain_turn(plain, names)


def _our_turn(node: Node, names: Sequence[str]) -> Side:
    with ThreadPoolExecutor(len(names)) as threads:
        started = list(threads.map(node.up, names))
        for pod, _ in started:
            node.wait_for_greeting(pod)
        down = list(threads.map(node.down, [pod for pod, _ in started]))
    return Side([took for _, took in started], down)


def _plain_turn(plain: PlainScript, names: Sequence[str]) -> Side:
    up = plain.up(names)
    for name in names:
        plain.wait_for_greeting(name)
    return Side(up, plain.down(names))
