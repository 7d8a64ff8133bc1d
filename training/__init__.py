"""Training: the loop, its state, several processes, and the stages that the paper does not have (pretrain.py)."""
