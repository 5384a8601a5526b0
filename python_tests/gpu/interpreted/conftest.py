"""These tests run the Triton kernels on Triton's CPU interpreter, which must be chosen before triton is imported.

`python_tests/gpu/test_interpreted.py` starts them in a process of their own; elsewhere they are not collected. By hand:
TRITON_INTERPRET=1 python -m pytest python_tests/gpu/interpreted
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from python_tests.gpu.interpreter import repair

    repair()
else:
    collect_ignore_glob = ["test_*.py"]
