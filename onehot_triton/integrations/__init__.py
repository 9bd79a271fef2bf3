"""Other libraries, one module each; importing `onehot_triton` imports none of them."""
