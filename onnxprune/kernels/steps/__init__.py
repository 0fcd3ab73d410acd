"""Kernels inside training sessions, where ONNX's operators are slow: an operator `Step` of domain `onnxprune`, which is
never in a file (training/native.py puts it in).

tables.py        numbers that are shared with the C part (`_steps.h`), and the parameters of every kernel
driver.py        all that the C part calls; one function, compiled by numba
geometry.py      sizes of a convolution; its input as planes, shifted for every column of the kernel
conv_weight.py   the gradient of the weights of a convolution
conv.py          narrow and depthwise convolutions whose weights are inputs, and the gradients of their inputs
clip.py          the gradients of Relu and Clip
max_pool.py      the gradient of MaxPool
batch_norm.py    the gradients of a BatchNormalization by the statistics of the batch
product.py       products with weights that are mostly zero
recurrent.py     LSTM, GRU and RNN over all steps, and back; cells.py: one step of one sample

Sums do not depend on the number of threads: what a task adds up is its own.
"""
