"""Metadata, dependencies and the folder mapping of the package; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

# Lower bounds are the oldest versions known to offer what is used; docs/support.md says which were tried.
REQUIRED = [
    "torch>=2.6",
    "transformers>=5.23,<6",
    "peft>=0.20",
    "accelerate>=1.15",
    "datasets>=5.1",
    "evaluate>=0.4.6",
    "huggingface_hub>=2.4",
    "safetensors>=0.8",
    "httpx2>=2.0",
    "pyarrow>=26.0",
    "tokenizers>=0.23.3",
    "pillow>=12.0",
    "numpy>=2.0",
    "scipy>=1.14",
    "pyyaml>=6.0",
    "tqdm>=4.67",
    "filelock>=3.16",
    "typer>=0.24",
    "rich>=13.0",
]

EXTRAS = {
    "data": ["pycocotools>=2.0.8"],
    "plots": ["matplotlib>=3.9"],
    "demo": ["gradio>=6.29.1"],
    "docs": ["mkdocs-material>=9.8.2", "mkdocstrings[python]>=1.0.8"],
    "official": ["gdown>=6.5.1"],
    "onnx": ["onnx>=1.23", "onnxruntime>=1.31", "onnxscript>=0.7"],
    "ray": ["ray[data]>=2.50"],
    "video": ["av>=14.0"],
}
EXTRAS["dev"] = [
    *EXTRAS["data"],
    *EXTRAS["plots"],
    *EXTRAS["demo"],
    *EXTRAS["onnx"],
    *EXTRAS["official"],
    *EXTRAS["docs"],
    *EXTRAS["ray"],
    *EXTRAS["video"],
    "build>=1.2",
    "codespell>=2.4",
    "hypothesis>=6.100",
    "jsonschema>=4.20",
    "mypy>=2.4",
    "parameterized>=0.9",
    "pytest>=8.3",
    "pytest-cov>=7.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.17",
    "selenium>=4.25",
    "setuptools>=77",
    "twine>=6.1",
    "types-PyYAML",
    "types-tqdm",
    "wheel>=0.45",
]


class BuildWithCode(build_py):
    """Puts the code of `modeling/` beside the weights of shipped checkpoints, as saving does; git holds it once."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for config in (Path(self.build_lib) / "hivg_hf" / "checkpoints").glob("*/config.json"):
            for file in (ROOT / "modeling").glob("*_hivg.py"):
                self.copy_file(str(file), str(config.parent / file.name))


setup(
    name="hivg-hf",
    version="0.2.0",
    description="HiVG visual grounding for the Hugging Face ecosystem: an expression and an image in, one box out.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The sources of the model stand in the top-level folder `modeling`, the files that travel to the Hub. The symbolic
    # link hivg_hf/modeling, which serves checkouts without an install, must not be packaged a second time.
    packages=[*find_packages(include=["hivg_hf", "hivg_hf.*"], exclude=["hivg_hf.modeling*"]), "hivg_hf.modeling"],
    package_dir={"hivg_hf.modeling": "modeling"},
    package_data={
        "hivg_hf": [
            "py.typed",
            "checkpoints/**/*",
            "recipes/**/*.yaml",
            "evaluation/templates/*.md",
            "evaluation/*.json",
        ]
    },
    cmdclass={"build_py": BuildWithCode},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["hivg=hivg_hf.cli:main"]},
    author="The hivg_hf developers",
    keywords="visual grounding, referring expression comprehension, CLIP, LoRA, HiVG, transformers",
    project_urls={
        "Paper": "https://arxiv.org/abs/2404.13400",
        "Authors' code": "https://github.com/linhuixiao/HiVG",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
