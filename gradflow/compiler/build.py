"""All passes in order: from a trace to an executable program."""

from __future__ import annotations

from typing import Any, NamedTuple

from gradflow.compiler import races
from gradflow.compiler.fuse import fused
from gradflow.compiler.generator import CodeGenerator, Executable
from gradflow.compiler.lower import lower
from gradflow.compiler.memory import Plan, planned
from gradflow.compiler.orient import oriented
from gradflow.compiler.regions import scheduled


class Switches(NamedTuple):
    """Which passes run; all of them, but in tests that compare with and without."""

    share: bool = True
    thin: int = 4
    orient: bool = True
    fuse: bool = True
    reuse: bool = True


ALL = Switches()


def plan_of(
    trace: Any, namespace: Any, generator: CodeGenerator, tasks: int | None = None, switches: Switches = ALL
) -> Plan:
    """Plan a trace for a code generator, in parts for so many tasks (by default as many as the generator says).

    Raises:
        UnsupportedError: the trace has no lowered form.
    """
    graph = lower(
        trace,
        namespace,
        thin=switches.thin if generator.fuses else 0,  # sums of products pay in a fused loop alone
        share=switches.share,
        open_updates=generator.opens_updates,
        items=generator.items,
    )
    if switches.orient:
        graph = oriented(graph, generator.turns)
    groups = fused(graph, switches.fuse and generator.fuses)
    tasks = generator.tasks(graph) if tasks is None else tasks
    plan = planned(graph, scheduled(graph, groups, tasks), tasks, switches.reuse)
    races.check(plan)
    return plan


def build(trace: Any, namespace: Any, generator: CodeGenerator) -> Executable:
    """The program of a trace."""
    plan = plan_of(trace, namespace, generator)
    try:
        return generator.generate(plan, namespace)
    finally:
        plan.graph.dissolve()
