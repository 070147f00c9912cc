"""What holds in every test: one thread, and shapes are checked."""

from __future__ import annotations

import torch

from tests import checked

checked.install()
torch.set_num_threads(1)  # small networks are slower on many, and tests run beside each other
