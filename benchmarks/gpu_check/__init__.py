"""`python -m benchmarks.gpu_check`: what only a GPU can show, in one command of at most 8 minutes (docs/gpu.md).

`steps.py` lists the steps. Each one runs in a process of its own (`running.py`), so a hang, a CUDA error or an
out-of-memory error in one does not spoil the others, and writes its report as it goes (`report.py`).
"""
