"""One recurrent layer: its equations cell by cell, and its backends, one in torch and one compiled."""
