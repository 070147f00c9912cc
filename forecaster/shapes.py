"""Array annotations with named axes. jaxtyping checks them in tests; where it is not installed, they are plain array types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Complex, Float, Float32, Float64, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Complex, Float, Float32, Float64, Int, UInt8
    except ImportError:  # jaxtyping is a development dependency

        class _UncheckedArray:
            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Complex = Float = Float32 = Float64 = Int = UInt8 = _UncheckedArray

__all__ = ["Bool", "Complex", "Float", "Float32", "Float64", "Int", "UInt8"]
