"""The programme for a GPU machine: what proves the kernels, measures them and trains, in parts with limits."""
