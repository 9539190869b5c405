"""What pyproject.toml cannot say: the compiled quantizer.

A plain shared library, loaded by ctypes.  Without a C compiler setuptools warns, the install goes
on, and `experiments.quant.kernels.NAME` is None: everything works, in plain PyTorch.
"""

import os
import shutil
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "experiments/quant/kernels"
# Apple's clang has no OpenMP: one thread there.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]


class BuildOnce(build_ext):
    """Takes what lies beside the sources, where it is newer than they are.

    Every editable install builds in a folder of its own; `make test` makes two, and the kernel
    takes a minute and a half to compile on a slow machine.
    """

    def build_extension(self, ext: Extension) -> None:
        built = Path(FOLDER, os.path.basename(self.get_ext_filename(ext.name)))
        sources = [*ext.sources, *ext.depends, __file__]
        newest = max(os.path.getmtime(source) for source in sources)
        if self.force or not built.is_file() or built.stat().st_mtime <= newest:
            super().build_extension(ext)
            return
        target = Path(self.get_ext_fullpath(ext.name))
        if not (target.exists() and target.samefile(built)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, target)


setup(
    cmdclass={"build_ext": BuildOnce},
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
    ],
)
