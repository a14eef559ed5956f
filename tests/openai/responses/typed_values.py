"""Values that the types of a package allow, typed dictionaries above all."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from hypothesis import strategies as st
from typing_extensions import get_type_hints, is_typeddict

JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
TEXT = st.text(st.characters(), max_size=8)  # halves of surrogate pairs, too

_PLAIN: dict[object, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(-3, 10**6),
    float: st.floats(0, 2),
    bool: st.booleans(),
    type(None): st.none(),
    object: JSON,
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:  # Any: a type, or a form of typing
    """Return a strategy for the values of a type, as they are in JSON."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    if is_typeddict(hint):
        return st.deferred(lambda: _dictionaries(hint))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Annotated, Required, NotRequired):
        return values_of(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(each) for each in arguments])
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    if len(arguments) == 1:  # a list, an iterable or a sequence
        return st.lists(values_of(arguments[0]), max_size=3)
    raise TypeError(f"no values of {hint}")


def _dictionaries(hint: Any) -> st.SearchStrategy[dict[str, Any]]:  # Any: a typed dictionary
    hints: dict[str, Any] = get_type_hints(hint, include_extras=True)
    # not __required_keys__: annotations that are strings are unknown to it
    required = [name for name, each in hints.items() if get_origin(each) is Required]
    values = {name: values_of(each) for name, each in hints.items()}
    return st.fixed_dictionaries({name: values.pop(name) for name in required}, optional=values)
