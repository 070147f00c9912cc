"""One recurrent layer and its backends: the equations in torch, and a compiled kernel."""
