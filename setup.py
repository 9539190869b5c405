"""What pyproject.toml cannot say: the compiled quantizer.

A plain shared library, loaded by ctypes.  Without a C compiler setuptools warns, the install goes
on, and `experiments.quant.kernels.NAME` is None: everything works, in plain PyTorch.
"""

import sys
from glob import glob

from setuptools import Extension, setup

FOLDER = "experiments/quant/kernels"
# Apple's clang has no OpenMP: one thread there.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]

setup(
    ext_modules=[
        Extension(
            "experiments.quant.kernels._quantize",
            sources=[f"{FOLDER}/quantize.c"],
            depends=sorted(glob(f"{FOLDER}/*.h")),
            # Exact: no contraction to FMA.  The other two only let the compiler vectorise more.
            extra_compile_args=[
                *("-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
                *OPENMP,
            ],
            extra_link_args=OPENMP,
            libraries=["m"],
            optional=True,
        )
    ]
)
