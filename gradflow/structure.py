"""The structure version: a number that changes whenever the library gives a Tensor other memory or another place.

A compiled step compares it with the number that it saw last, in place of looking at every parameter. It is changed
*after* what it tells of: new memory (`model.to`, an optimizer that takes parameters in), a leaf made or unmade, a
gradient set or cleared, a hook, a group of parameters, another default. Values do not count, wherever they are written.
"""

from __future__ import annotations

from itertools import count

_next = count(1).__next__  # atomic under the GIL: two threads never write the same number
version = 0
rules = 0  # how often a derivative rule or an implementation has been registered


def changed() -> None:
    """Say that something other than a value has changed; 40 ns."""
    global version
    version = _next()


def rules_changed() -> None:
    """Say that a primitive is computed, or differentiated, in another way from now on."""
    global rules
    rules = _next()
    changed()
