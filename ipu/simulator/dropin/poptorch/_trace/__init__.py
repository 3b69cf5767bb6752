"""Tracing: what the simulator does while a model's forward runs in Python.

`watch` has the one function mode, the one dispatch mode and the order of the listeners, which are the other
modules. This is their contract.
"""

from __future__ import annotations

from typing import Any, Callable

# (func, args, kwargs) -> result.
Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
# (proceed, func, args, kwargs) -> result; `proceed` calls the later listeners and then the function.
Listener = Callable[[Call, Any, tuple[Any, ...], dict[str, Any]], Any]
