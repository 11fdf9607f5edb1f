"""Packaging of KoGPT.

With KOGPT_BUILD_KERNELS=1 the kernels are compiled too, or the install fails: those for CPUs, and
those for GPUs where torch has CUDA; with KOGPT_BUILD_KERNELS=cpu those for CPUs alone. Else they
are compiled on first use, where that can be. Ninja is no requirement: without it torch compiles one
file after the other.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildPackage(build_py):
    """Starts from nothing: a source that is gone would be installed from an older build."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "kogpt", ignore_errors=True)
        super().run()


def kernels() -> dict[str, Any]:
    """The arguments of `setup` that compile the kernels; none where nobody asked for them."""
    asked = os.environ.get("KOGPT_BUILD_KERNELS", "")
    if asked not in ("", "0", "1", "cpu"):
        sys.exit(f"KOGPT_BUILD_KERNELS={asked}: it must be 0, 1 or cpu")
    if asked in ("", "0"):
        return {}
    sys.path.insert(0, str(ROOT))
    try:
        from kogpt.kernels import building
    except ModuleNotFoundError as error:
        sys.exit(
            f"KOGPT_BUILD_KERNELS={asked} wants the torch that is installed: pip install"
            f" --no-build-isolation ({error})"
        )
    try:
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or building.RELEASED_ARCHITECTURES
        kinds = ["cpu"] if asked == "cpu" else building.useful_kinds()
        return building.setup_arguments("kogpt.kernels", kinds, architectures)
    except building.CannotBuildError as error:
        sys.exit(f"KOGPT_BUILD_KERNELS={asked}, but the kernels cannot be compiled: {error}")


compiled = kernels()
setup(
    name="kogpt",
    version="0.1.0",
    description="KoGPT, the Korean GPT-J: model, tokenizer, safe converter and sampling loop",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["kogpt", "kogpt.*"]),
    package_data={
        "kogpt": ["py.typed", "*.pyi", "nano/*", "kernels/csrc/*", "kernels/csrc/cpu/*"],
        "kogpt.diagnostics": ["*.html", "*.css", "*.js"],
        "kogpt.evaluation": ["tasks/*", "presets/*"],
        "kogpt.evaluation.harness": ["*.yaml"],
    },
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "safetensors>=0.8",
        "sentencepiece>=0.2.3",
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "setuptools>=65",  # which compiles the kernels on first use
    ],
    extras_require={
        "train": ["matplotlib>=3.8"],
        "torchao": ["torchao>=0.18"],
        "evaluate": ["scikit-learn>=1.5", "scipy>=1.11", "matplotlib>=3.8"],
        "harness": ["lm-eval[hf]>=0.4.13"],  # with its own backend, to compare
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "transformers>=5.0",
            "peft>=0.17",
            "compressed-tensors>=0.15",  # with which transformers reads quantised weights
            "protobuf>=4.25",  # with which transformers reads a sentencepiece model
            "matplotlib>=3.8",
            "scikit-learn>=1.5",
            "torchao>=0.18",
            "tensorboard>=2.15",
        ],
        "lint": ["ruff>=0.17", "mypy>=2.0", "clang-format==23.*"],
    },
    entry_points={"console_scripts": ["kogpt = kogpt.cli:main"]},
    classifiers=[
        "Natural Language :: Korean",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    ext_modules=compiled.get("ext_modules"),
    cmdclass={"build_py": BuildPackage, **compiled.get("cmdclass", {})},
)
