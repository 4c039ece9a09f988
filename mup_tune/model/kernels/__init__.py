"""Triton kernels of the GPU step: plain functions over tensors, forward and backward, each with a PyTorch twin."""
