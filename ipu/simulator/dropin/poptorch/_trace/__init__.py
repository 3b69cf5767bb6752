"""Tracing: everything that happens while a model's forward runs in Python.

`watch` has the function mode, the dispatch mode and the order of their listeners, which the other modules
implement. The types below are the listeners' interface.
"""

from __future__ import annotations

from typing import Any, Callable

# (func, args, kwargs) -> result.
Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
# (proceed, func, args, kwargs) -> result; `proceed` calls the later listeners and then the function.
Listener = Callable[[Call, Any, tuple[Any, ...], dict[str, Any]], Any]
