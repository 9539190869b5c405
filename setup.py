"""What pyproject.toml cannot say: the compiled quantizer.

A plain shared library, loaded by ctypes.  Without a C compiler setuptools warns, the install goes
on, and `experiments.quant.kernels.NAME` is None: everything works, in plain PyTorch.
"""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "experiments/quant/kernels"
# Apple's clang has no OpenMP: one thread there.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]


class BuildOnce(build_ext):
    """Compiles the sources side by side, and only where the library beside them is older.

    Every editable install builds in a folder of its own, and `make test` makes two.  One source is
    half a minute of a processor's time or more.
    """

    def build_extensions(self) -> None:
        one_by_one = self.compiler.compile

        def side_by_side(sources: list[str], *args: Any, **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: one_by_one([source], *args, **options), sources)
                return [path for paths in objects for path in paths]

        self.compiler.compile = side_by_side
        super().build_extensions()

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
            sources=sorted(glob(f"{FOLDER}/*.c")),
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
