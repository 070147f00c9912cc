"""One recurrent layer and its backends: equations in torch, and a compiled kernel."""
