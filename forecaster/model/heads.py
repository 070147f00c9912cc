"""stub"""

from __future__ import annotations
from typing import Any
import torch


class P:
    params = 1
    noise = 0
    shiftable = True

    def loss(self, p, t):
        return (p[..., 0] - t) ** 2

    def mean(self, p):
        return p[..., 0]

    def shift(self, p, by):
        return p + by[..., None]


Head = Any


def head(s):
    return P()
