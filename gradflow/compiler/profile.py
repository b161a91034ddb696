"""Where the time of a program goes: its items one by one, held against what the machine can do."""

from __future__ import annotations

from typing import final

from gradflow.compiler.generator import Timed


@final
class Profile:
    """How long each item of a program takes, in one thread.

    Attributes:
        items: what it is, seconds, floating-point operations, bytes moved.
        operations, nbytes: the most that this machine does in a second, measured: of a large product, of a large copy.
    """

    def __init__(self, items: list[Timed], ceilings: tuple[float, float]) -> None:
        self.items = items
        self.operations, self.nbytes = ceilings

    @property
    def seconds(self) -> float:
        """All items together."""
        return sum(item.seconds for item in self.items)

    @property
    def limit(self) -> float:
        """The least that they could take: each at the ceiling that it meets first."""
        return sum(max(i.operations / self.operations, i.nbytes / self.nbytes) for i in self.items)

    def __str__(self) -> str:
        total = self.seconds or float("inf")
        lines = [f"{'µs':>9} {'share':>6} {'GFLOP/s':>9} {'GB/s':>7} {'items':>5}"]
        for count, item in self._alike():
            speed, bandwidth = item.operations / item.seconds / 1e9, item.nbytes / item.seconds / 1e9
            what = item.what if len(item.what) <= 80 else f"{item.what[:77]}..."
            figures = f"{item.seconds / total:6.1%} {speed:9.1f} {bandwidth:7.1f} {count:5}"
            lines.append(f"{item.seconds * 1e6:9.2f} {figures}  {what}")
        whole = f"{self.seconds * 1e6:9.2f} all"
        if self.limit:
            whole += f", {self.seconds / self.limit:.1f} times the {self.limit * 1e6:.2f} µs at this machine's ceilings"
        lines.append(f"{whole} ({self.operations / 1e9:.0f} GFLOP/s, {self.nbytes / 1e9:.0f} GB/s, one thread)")
        return "\n".join(lines)

    def _alike(self) -> list[tuple[int, Timed]]:
        """Items of one name together, with how many they are, the longest first."""
        alike: dict[str, list[Timed]] = {}
        for item in self.items:
            alike.setdefault(item.what, []).append(item)
        summed = [
            (len(found), Timed(what, *(sum(column) for column in zip(*(i[1:] for i in found), strict=True))))
            for what, found in alike.items()
        ]
        return sorted(summed, key=lambda pair: -pair[1].seconds)
