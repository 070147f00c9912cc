"""Array annotations with named axes. jaxtyping checks them while tests run; without it they are the bare array types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Float64, Int, UInt8
    except ImportError:  # a bare training machine

        class _UncheckedArray:
            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Float64 = Int = UInt8 = _Bare

__all__ = ["Bool", "Float", "Float64", "Int", "UInt8"]
