"""The version of the package, where every part can read it; `setup.py` names the same one."""

__version__ = "0.2.0"
