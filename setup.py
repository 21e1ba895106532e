"""What pyproject.toml cannot declare: the kernels, and the configs inside the package."""

import platform
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildKernels(build_ext):
    """Compile the kernels if there is a compiler; otherwise apa_det uses plain PyTorch."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # loaded by ctypes, not imported


class BuildPackages(build_py):
    """Also put the configs into the wheel, as apa_det/configs."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "apa_det/configs")
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "configs", target, ignore=ignore, dirs_exist_ok=True)


def kernels() -> list[Extension]:
    """Return an extension per instruction set, each of all native_*.cpp."""
    flags = {"baseline": []}
    if platform.machine() in ("x86_64", "AMD64"):
        flags["avx2"] = ["-march=x86-64-v3"]
        flags["avx512"] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
    common = "-O3 -std=c++17 -fno-math-errno -fno-trapping-math -fopenmp-simd -fno-exceptions -g0"
    return [
        Extension(
            f"apa_det.kernels._native_{name}",
            [f"apa_det/kernels/native_{part}.cpp" for part in ("activation", "class_loss")],
            depends=[f"apa_det/kernels/native_{part}.h" for part in ("math", "common", "avx512")],
            extra_compile_args=[*common.split(), *extra],
            language="c++",
            optional=True,
        )
        for name, extra in flags.items()
    ]


setup(
    ext_modules=kernels(),
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPackages},
)
