"""A plan in words: what `explain()` shows."""

from __future__ import annotations

from collections import Counter

from gradflow.compiler.fuse import Group
from gradflow.compiler.memory import Plan


def describe(plan: Plan) -> str:
    """Regions with their groups, what runs outside of loops, and the memory."""
    graph = plan.graph
    calls = [node for node in graph.nodes if node.op == "call"]
    stored = len(graph.stores) - len(plan.copied)
    groups = sum(len(r.all()) for r in plan.regions)
    regions = f"{len(plan.regions)} region{'s' * (len(plan.regions) > 1)}"
    split = f"rows split over {plan.tasks} task{'s' * (plan.tasks > 1)}"
    arena = f"arena of {plan.arena:,} bytes ({plan.unshared:,} if no memory were used twice)"
    lines = [
        f"{len(graph.nodes)} nodes in {groups} groups and {regions}, {split}",
        f"{arena}; {stored} of {len(graph.stores)} stores in place",
    ]
    if calls:
        named = Counter(f"{node.settings[0]}{f' at {node.site}' if node.site else ''}" for node in calls)
        lines.append("not fused, called one by one: " + ", ".join(f"{n} x {what}" for what, n in named.items()))
    for i, region in enumerate(plan.regions):
        lines.append(f"region {i}")
        lines += [f"  alone  {_line(group)}" for group in region.first]
        lines += [f"  {_line(group)}" for group in region.groups]
    return "\n".join(lines)


def _line(group: Group) -> str:
    rows, columns = group.space
    ops = [node.settings[0] if node.op == "call" else node.op for node in group.nodes]
    inner = f" over {group.nodes[0].operands[0].space[1]}" if ops == ["gemm"] else ""
    sites = list(dict.fromkeys(n.site.rpartition("/")[2] for n in group.nodes if n.site))
    where = f"  ({', '.join(sites)})" if sites else ""
    return f"{rows} x {columns}{inner}: {' '.join(ops)}{where}"
