"""Packaging of KoGPT."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="kogpt",
    version="0.1.0",
    description="KoGPT, the Korean GPT-J: model, tokenizer, safe converter and sampling loop",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["kogpt", "kogpt.*"]),
    package_data={"kogpt": ["py.typed", "nano/*"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "safetensors>=0.8",
        "sentencepiece>=0.2.3",
        "tokenizers>=0.21",
        "tqdm>=4.66",
    ],
    extras_require={
        "train": ["matplotlib>=3.8"],
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "transformers>=5.0",
            "protobuf>=4.25",  # with which transformers reads a sentencepiece model
            "matplotlib>=3.8",
        ],
        "lint": ["ruff>=0.17", "mypy>=2.0"],
    },
    entry_points={"console_scripts": ["kogpt = kogpt.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Natural Language :: Korean",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
